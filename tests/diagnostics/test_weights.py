"""k-hat and leave-one-out where both are known, and refusals where neither means anything."""

import math
import warnings
from pathlib import Path
from typing import Any

import arviz_stats
import numpy as np
import pytest
import torch
from pyro import poutine

from bayeslora import METHODS, ArgumentError, diagnostics, fit, load
from bayeslora.diagnostics import sampling, weights
from bayeslora.weights import weighing_tokens
from tests.diagnostics.conjugate import NUM_EXAMPLES, Conjugate
from tests.diagnostics.test_groups import FAST, VARIANTS, data, fitted
from tests.study.networks import DATA, network
from tests.tasks.cases import model


@pytest.fixture(scope="module")
def problem() -> Conjugate:
    return Conjugate()


def test_the_exact_posterior_passes(problem: Conjugate) -> None:
    found = problem.full().khat(problem.rows)
    assert float(found) == found.khat < 0.5
    assert found.good
    assert found.width == pytest.approx(1, abs=1e-6)
    assert found.efficiency == pytest.approx(1, abs=1e-6)
    assert found.temperature == pytest.approx(1)
    assert "The posterior it claims" in found.verdict
    assert found.verdict in " ".join(repr(found).split())


@pytest.mark.parametrize(("scale", "words"), [(1 / 1.5, "1.50 times too narrow"), (1.5, "1.50 times too wide")])
def test_guides_that_are_narrowed_or_widened_are_caught(problem: Conjugate, scale: float, words: str) -> None:
    found = problem.full(scale).khat(problem.rows)
    assert not found.good
    assert words in found.verdict
    assert found.width == pytest.approx(scale, rel=1e-6)


def test_a_small_mistake_is_not_called_a_large_one(problem: Conjugate) -> None:
    assert problem.full(1.05).khat(problem.rows).good


def test_mean_field_misses_what_goes_together(problem: Conjugate) -> None:
    found = problem.mean_field().khat(problem.rows)
    assert found.width == pytest.approx(1, abs=5 * found.width_error)  # its own optimum
    assert found.khat > weights.largest_k(1000)
    assert "misses parts of it" in found.verdict


def test_loo_is_exact_loo(problem: Conjugate) -> None:
    exact = problem.exact_loo()
    found = problem.full().loo(problem.rows, 4000)
    assert found.good
    assert found.elpd == pytest.approx(exact.sum(), abs=0.1)
    np.testing.assert_allclose(found.pointwise, exact, atol=0.1)
    wide = problem.full(1.3).loo(problem.rows, 4000)  # corrected for
    assert wide.elpd == pytest.approx(exact.sum(), abs=0.2)


def test_rows_count_as_they_did_in_the_fit() -> None:
    counts = torch.linspace(0.5, 1.5, NUM_EXAMPLES).double()
    problem = Conjugate(counts / counts.mean())
    posterior = problem.full()
    posterior.weighted = True  # as fit(…, weight=…) leaves it
    for call in (posterior.khat, posterior.loo):
        with pytest.raises(ValueError, match=r"Rows had weights in the fit.*pass weight=… or class_weights=…"):
            call(problem.rows)
    found = posterior.khat(problem.rows, weight=counts.numpy())
    assert found.good
    assert (found.width, found.efficiency) == pytest.approx((1, 1), abs=1e-6)
    exact = problem.exact_loo()
    left_out = posterior.loo(problem.rows, 2000, weight=counts.numpy())
    np.testing.assert_allclose(left_out.pointwise, exact, atol=0.15)
    posterior.weighted = False
    assert posterior.khat(problem.rows).efficiency < 0.9


def test_a_fit_remembers_that_rows_had_weights(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"rank": 1, "epochs": 1, "batch_size": 16, "progress": False}
    x, y = DATA
    posterior = fit(network(), (x, y), "blob", class_weights=[1, 2, 3], **settings)
    posterior.save(tmp_path / "saved")
    for each in (posterior, load(tmp_path / "saved", model=network()), posterior.calibrate(DATA, 2)):
        with pytest.raises(ValueError, match="Rows had weights in the fit"):
            each.khat(DATA, 20)
        by_class = each.khat(DATA, 20, class_weights=[1, 2, 3])
        by_row = each.khat(DATA, 20, weight=1.0 + y)
        assert by_class.efficiency == by_row.efficiency
        with pytest.raises(ValueError, match="Rows had weights in the fit"):
            diagnostics.gold(each, DATA, 4, 1)
    assert not fit(network(), (x, y), "blob", **settings).weighted


def test_tokens_count_as_their_classes_did_in_the_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: each token's log-likelihood by the weight of its class, over the mean of all observed tokens."""
    ids = torch.randint(3, 60, (12, 6), generator=torch.Generator().manual_seed(0))
    labels = ids % 2
    labels[:4, 3:] = -100
    rows = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, labels
    made = model("Bert", "ForTokenClassification", num_labels=2)
    settings: dict[str, Any] = {"rank": 1, "epochs": 1, "targets": "last:1", "progress": False}
    posterior = fit(made(), rows, "blob", class_weights=[1, 4], **settings)
    posterior.save(tmp_path / "saved")
    loaded = load(tmp_path / "saved", model=made())
    given: tuple[Any, Any] = None, [1, 4]
    weighed = diagnostics.Weighed(posterior, rows, given, 5, None, 0, 64)
    seen, predicted = weighed.terms(weighed.sites)
    log_draws: Any = posterior.predict(rows, 5).log_draws  # type: ignore[attr-defined]
    each = np.take_along_axis(log_draws.reshape(5, 12, 6, 2), labels.clamp(min=0).numpy()[None, ..., None], -1)[..., 0]
    observed = (labels >= 0).numpy()
    counts = np.where(observed, np.where(labels == 1, 4, 1), 0.0)
    np.testing.assert_allclose(seen, (counts / counts[observed].mean() * each).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(predicted, (observed * each).sum(-1), rtol=1e-5)
    worth = [each.khat(rows, 20, class_weights=[1, 4]).efficiency for each in (posterior, loaded)]
    assert worth[0] == worth[1]

    def stop(target: Any, **_: Any) -> None:
        raise StopIteration(target)

    monkeypatch.setattr(sampling, "NUTS", stop)
    with pytest.raises(StopIteration) as stopped:
        diagnostics.gold(loaded, rows, class_weights=[1, 4])
    centre = poutine.condition(stopped.value.value, data=loaded.program.centre())
    with weighing_tokens(loaded.program.likelihood, torch.ones(2)):
        trace = poutine.trace(centre).get_trace()
    trace.compute_log_prob(lambda name, site: name == "labels")
    log_draws = loaded.predict(rows, center=True).log_draws  # type: ignore[attr-defined]
    each = np.take_along_axis(log_draws.reshape(12, 6, 2), labels.clamp(min=0).numpy()[..., None], -1)[..., 0]
    by_hand = (counts / counts[observed].mean() * each).sum() / weighed.found.temperature
    assert trace.nodes["labels"]["log_prob_sum"].item() == pytest.approx(by_hand, rel=1e-4)


def test_it_is_what_arviz_stats_computes(problem: Conjugate) -> None:
    posterior = problem.full(1.1)
    idata = posterior.to_arviz(problem.rows, 1000, prior=False)
    stats = idata.sample_stats
    log_p = (stats["log_prior"] + stats["log_likelihood_sum"]).to_numpy()[0]
    theirs = arviz_stats.loo_approximate_posterior(
        idata, log_p, stats["log_q"].to_numpy()[0], pointwise=True, var_name="labels"
    )
    ours = posterior.loo(problem.rows, 1000)
    np.testing.assert_allclose(ours.pointwise, theirs.elpd_i, atol=1e-3)
    np.testing.assert_allclose(ours.pareto_k, theirs.pareto_k, atol=0.05)


def test_mean_fields_loo_warns(problem: Conjugate) -> None:
    with pytest.warns(UserWarning, match=r"Not to be trusted: k is above 0\.67 for \d+ of 40 examples.*fit\(folds=K\)"):
        found = problem.mean_field().loo(problem.rows)
    assert not found.good


CLAIMS = {name: METHODS[method](**fields).claims for name, (method, fields) in VARIANTS.items()}


@pytest.mark.parametrize("name", [name for name, claim in CLAIMS.items() if claim != "posterior"])
def test_what_is_not_a_posterior_is_refused(name: str) -> None:
    posterior, what = fitted(name), {"points": "one network or several", "noise": "noise around a point"}
    for call in (posterior.khat, posterior.loo):
        with pytest.raises(ValueError, match=rf"{what[CLAIMS[name]]}.*fit\(folds=K\)"):
            call((data()["input"], data()["labels"]))


POSTERIORS = [
    pytest.param(name, marks=() if name in FAST else pytest.mark.slow)
    for name, claim in CLAIMS.items()
    if claim == "posterior"
]


@pytest.mark.parametrize("name", POSTERIORS)
def test_every_posterior_is_weighed(name: str) -> None:
    posterior, rows = fitted(name), (data()["input"], data()["labels"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, left_out = posterior.khat(rows, 60), posterior.loo(rows, 60)
    assert set(found.by_stack) <= set(posterior.program.stacks)
    assert len(found.by_stack) >= 2
    assert found.temperature == pytest.approx(getattr(posterior.method, "temperature", 1.0))
    assert found.verdict
    assert np.isfinite(left_out.pointwise).all()


def test_a_few_draws_say_nothing_of_a_tail() -> None:
    found = weights.LeaveOneOut(np.zeros(2), np.array([math.inf, math.nan]), 0.0, num_draws=5)
    assert found.verdict.startswith("Not known: 5 draws are too few")
    assert not found.good


def test_other_data_than_the_fits_is_noticed(problem: Conjugate) -> None:
    with pytest.warns(UserWarning, match="The data has 10 rows, and the fit had 40"):
        problem.full().khat(({"input": problem.x[:10]}, problem.labels[:10]), 100)


def test_as_many_rows_with_other_labels_are_noticed_in_any_order_and_after_loading(tmp_path: Path) -> None:
    x, y = torch.randn(12, 4, dtype=torch.float64), torch.randn(12, dtype=torch.float64)
    base = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
    fit(base, (x, y), "blob", rank=2, epochs=1, progress=False).save(tmp_path)
    posterior = load(tmp_path, base)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The data has")
        posterior.khat((x.flip(0), y.flip(0)), 20)
    with pytest.warns(UserWarning, match="The data has other labels than the fit had: weights are about the training"):
        posterior.khat((x, y + 1), 20)


@pytest.mark.parametrize("seed", range(3))
def test_a_tail_is_cut_until_it_is_a_pareto_distributions(seed: int) -> None:
    # Weights of one number, whose tail begins where they have a maximum: arviz finds 5 for their k.
    z = np.random.default_rng(seed).normal(size=4000)
    flat = 0.02 * (z**3 - 3 * 0.92**2 * z)
    smoothed, k = weights.psis(flat)
    assert k < weights.LARGEST_K
    np.testing.assert_allclose(np.exp(smoothed), np.exp(flat - np.logaddexp.reduce(flat)), rtol=0.2)
    heavy = np.log(np.random.default_rng(seed).pareto(1.0, 4000) + 1)  # k = 1
    together = weights.psis(np.stack([flat, heavy, np.zeros(4000)]))[1]
    assert together[0] == k
    assert 0.7 < together[1] < 1.4
    assert together[2] == 0


def test_what_draws_share_has_no_tail() -> None:
    atoms = np.repeat([0.0, -3.0, -8.0], [50, 40, 10])
    smoothed, k = weights.psis(atoms)
    assert k == -np.inf
    np.testing.assert_allclose(smoothed, atoms - np.logaddexp.reduce(atoms))
    k = float(k)
    found = weights.KHat(k, {"a": k}, np.nan, np.nan, 0.5, 100, 1.0)
    assert not found.good
    assert found.verdict.startswith("Not the posterior it claims, as far as 100 draws can tell: draws are worth 50%")
    assert "none: there is no tail" in repr(found)
    assert "not known" in repr(found)
    assert weights.KHat(k, {"a": k}, 1.01, 0.01, 0.95, 100, 1.0).good


def test_degenerate_sizes_are_said(problem: Conjugate) -> None:
    posterior = problem.full()
    for call in (posterior.khat, posterior.loo):
        with pytest.raises(ArgumentError, match="num_draws=1: weights are those of draws beside each other"):
            call(problem.rows, 1)
    few = posterior.khat(problem.rows, 5)
    assert few.verdict.startswith("Not known: 5 draws are too few")
    assert not few.good
    assert not few.too_wide
    assert not few.too_narrow
    flat = weights.KHat(0.3, {}, 1e-9, 0.0, 0.5, 1000, 1.0)
    assert "more than 100 times too narrow" in flat.verdict
    one = weights.LeaveOneOut(np.zeros(1), np.zeros(1), 0.0, num_draws=1000)
    assert math.isnan(one.se)
    assert "nan" not in repr(one)
