"""Simulation-based calibration: the exact posterior passes, and what is narrower or wider is caught."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bayeslora import Posterior, diagnostics, fit
from bayeslora.adapters import AdaptedNetwork
from bayeslora.diagnostics import Calibration
from bayeslora.diagnostics.simulation import fitted as by_adam
from bayeslora.diagnostics.simulation import rank
from bayeslora.methods import BLoB
from bayeslora.program import Program
from bayeslora.tasks import TokenClassification
from tests.diagnostics.conjugate import D_IN, PRIOR, RANK, Conjugate
from tests.diagnostics.test_groups import fitted
from tests.helpers import FAILURE_RATE
from tests.study.networks import DATA, FEW, network


@pytest.fixture(scope="module")
def problem() -> Conjugate:
    return Conjugate()


def ranked(problem: Conjugate, scale: float, simulations: int = 120) -> Calibration:
    posterior = problem.full()
    exact: Callable[[Any], Any] = lambda batch: problem.put(posterior.program, batch["labels"], scale)  # noqa: E731
    return diagnostics.sbc(posterior, problem.rows, exact, simulations, 39, probes=1)


@pytest.mark.parametrize("simulations", [30, pytest.param(120, marks=pytest.mark.slow)])
def test_the_exact_posterior_is_calibrated(problem: Conjugate, simulations: int) -> None:
    found = ranked(problem, 1.0, simulations)
    assert found.passes(FAILURE_RATE)
    assert found.ranks.keys() == {"log_likelihood", "logits[0, 0]", "logits[0, 1]", "delta_norm_3x2[0]"}
    assert all(ranks.shape == (simulations,) for ranks in found.ranks.values())


@pytest.mark.parametrize(("scale", "word"), [(1 / 1.5, "narrow"), pytest.param(1.5, "wide", marks=pytest.mark.slow)])
def test_what_is_narrower_or_wider_is_caught(problem: Conjugate, scale: float, word: str) -> None:
    found = ranked(problem, scale)
    assert not found.passes(FAILURE_RATE)
    assert f"too {word}" in found.verdict
    spread = found.table().set_index("quantity")["spread"]["logits[0, 0]"]
    assert spread == pytest.approx(1 / scale, rel=0.25)


def test_draws_that_equal_the_truth_as_masks_do_leave_ranks_uniform() -> None:
    generator = np.random.default_rng(0)
    ranks = [rank(generator.integers(0, 3, 20), generator) for _ in range(300)]
    assert Calibration({"x": np.array(ranks)}, 19).passes(FAILURE_RATE)


def test_ranks_in_the_middle_are_called_too_wide() -> None:
    ranks = np.random.default_rng(0).integers(0, 50, (3, 150)).mean(0).astype(int)
    found = Calibration({"x": ranks}, 49)
    assert not found.passes(FAILURE_RATE)
    assert "too wide" in found.verdict


def test_a_shift_is_caught() -> None:
    found = Calibration({"x": np.minimum(np.random.default_rng(0).integers(0, 50, 150) + 10, 49)}, 49)
    assert not found.passes(FAILURE_RATE)
    assert "draws lie below the true values" in found.verdict


def test_uniform_ranks_fail_as_often_as_they_should_and_stay_within_the_bands() -> None:
    generator = np.random.default_rng(1)
    runs = [Calibration({"x": generator.integers(0, 20, 80)}, 19) for _ in range(100)]
    failed = sum(not run.passes(0.05) for run in runs)
    assert failed <= 17  # a binomial count of 100 at 0.05 exceeds it with probability 2e-6
    low, high = runs[0].bands()
    ecdfs = [np.bincount(run.ranks["x"], minlength=20).cumsum()[:-1] / 80 for run in runs]
    inside = np.mean([((low <= ecdf) & (ecdf <= high)).all() for ecdf in ecdfs])
    assert 0.88 < inside <= 1


@pytest.mark.parametrize(
    ("simulations", "draws", "known"), [(1, 99, False), (5, 99, False), (40, 99, True), (40, 1, False)]
)
def test_few_simulations_are_not_called_calibrated(simulations: int, draws: int, known: bool) -> None:
    ranks = np.random.default_rng(2).integers(0, draws + 1, (5, simulations))
    found = Calibration({str(index): each for index, each in enumerate(ranks)}, draws)
    assert found.passes(FAILURE_RATE)
    assert found.is_known == known
    assert found.verdict.startswith("Calibrated" if known else "Not known")
    assert f"{found.resolution:.2f} times too narrow" in found.verdict or not known


def test_the_resolution_is_the_least_spread_that_fails() -> None:
    scores, second, _ = Calibration({"x": np.zeros(40, int)}, 999)._scores(40)
    resolution = Calibration({"x": np.zeros(40, int)}, 999).resolution
    for factor, passes in ((0.97, True), (1.03, False)):
        wanted = np.quantile(np.random.default_rng(0).normal(size=100_000), (np.arange(40) + 0.5) / 40)
        wanted *= factor * resolution * second**0.5 / np.sqrt((wanted**2).mean())
        ranks = np.abs(scores[:, None] - wanted).argmin(0)
        assert Calibration({"x": ranks}, 999).passes() == passes


def test_points_are_held_and_the_loss_is_fitted_by_default(problem: Conjugate) -> None:
    program = problem.program(BLoB(prior_scale=PRIOR))
    sites = program.guide["3x2"].sites
    sites["B"].loc.data.copy_(problem.B)
    found = diagnostics.sbc(Posterior(program), problem.rows, num_simulations=2, num_draws=9, steps=20, probes=1)
    assert found.num_draws == 9
    assert (sites["B"].loc == problem.B).all()
    assert sites["A"].loc.shape == (1, RANK, D_IN)
    assert found.plot().axes
    assert "simulations" in repr(found)


HEADLESS: dict[str, Any] = {**FEW, "head": [], "progress": False}


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("blob", {}, None),
        ("blob", {"rank": 1}, r"draws of '4x6.A' of shape \(1, 1, 4\), and of the truth \(1, 2, 4\)"),
        ("blob", {"alpha": 3}, "fit changed what is not drawn, such as a task head, alpha"),
        ("blob", {"head": None}, "fit changed what is not drawn, such as a task head, alpha"),
        ("monteclora", {}, "fit returned draws of .*, and the truth has '4x6.A'"),
        ("lora", {}, "A fit gave 1 of 3 draws"),
    ],
)
def test_fits_are_those_of_the_posteriors_sites_in_its_network(
    method: str, settings: dict[str, Any], message: str | None
) -> None:
    head = {"head": settings.get("head", [])}
    posterior, x = fit(network(), DATA, "blob", **HEADLESS | head), DATA[0][:20]
    again: Callable[[Any], Any] = lambda batch: fit(  # noqa: E731
        network(), (x, batch["labels"]), method, **HEADLESS | settings
    )
    with nullcontext() if message is None else pytest.raises(ValueError, match=message):
        diagnostics.sbc(posterior, x, again, 2, 3)


def test_weights_of_tokens_are_no_part_of_a_simulation() -> None:
    # Simulated labels have none, and a fit that weighed them would be called uncalibrated.
    model, method = nn.Sequential(nn.Linear(4, 12), nn.Unflatten(-1, (4, 3))), BLoB()
    network = AdaptedNetwork(model, method.family, rank=1, num_examples=5)
    program = Program(network, method, TokenClassification(3))
    program.guide["4x12"].sites["B"].loc.data.fill_(0.5)  # at 0, A has no gradient
    batch = {"input": torch.randn(5, 4), "labels": torch.arange(20).view(5, 4) % 3}
    found = []
    for weights in (None, torch.tensor([9.0, 1.0, 1.0])):
        program.likelihood.token_weights = weights
        torch.manual_seed(0)
        found.append(by_adam(program, batch, 3, 0.1).guide.state_dict())
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_only_posteriors_can_be_simulated() -> None:
    with pytest.raises(ValueError, match="'tfb' is noise around a point"):
        diagnostics.sbc(fitted("tfb"), np.zeros((4, 6)))


def test_inputs_of_another_shape_are_said(problem: Conjugate) -> None:
    posterior = problem.full()
    with pytest.raises(ValueError, match=r"^The network cannot read its inputs, .*\(5, 7\) .*: .*\. Give inputs"):
        diagnostics.sbc(posterior, np.zeros((5, 7)), num_simulations=2, num_draws=9)
