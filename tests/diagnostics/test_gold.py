"""The sampler has the exact posterior where that is known, and the product's own priors everywhere."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd.functional import jacobian
from torch.distributions import biject_to

from bayeslora import ArgumentError, Posterior, diagnostics
from bayeslora.adapters import AdaptedNetwork
from bayeslora.diagnostics import Gold
from bayeslora.diagnostics.sampling import _effective
from bayeslora.distributions import WishartCholesky
from bayeslora.methods import AutoGuide, MonteCLoRA
from bayeslora.program import Program
from tests.diagnostics.conjugate import Conjugate, Homoscedastic
from tests.helpers import assert_mean_close


@pytest.fixture(scope="module")
def problem() -> Conjugate:
    return Conjugate()


@pytest.mark.parametrize("samples", [25, pytest.param(500, marks=pytest.mark.slow)])
def test_the_sampler_has_the_exact_posterior(problem: Conjugate, samples: int) -> None:
    posterior = problem.full()
    found = diagnostics.gold(posterior, problem.rows, samples, 15 if samples < 100 else 200)
    assert found.divergences == 0
    A = found.sites["3x2.A"].flatten(1)
    error = (A.mean(0) - problem.mean(problem.labels)) / problem.covariance.diagonal().sqrt()
    width = 4.8 / min(found.effective, samples) ** 0.5
    assert float(error.abs().max()) < width
    same, wide = found.against(posterior, problem.rows), found.against(problem.full(1.5), problem.rows)
    assert same["bias"] < width
    assert same["sd"] == pytest.approx(1, abs=width / 1.4)  # a standard deviation is known to 1 / √(2 S)
    assert wide["sd"] == pytest.approx(1.5 * same["sd"], rel=0.1)
    assert wide["coverage"] > same["coverage"]


class Linearised(AutoGuide):
    """A method whose predictions are first-order expansions, as Laplace's are."""

    name = "linearised"
    approximation = "linear"


def test_logits_are_the_networks_also_where_predictions_are_linearised(problem: Conjugate) -> None:
    method = Linearised(prior_program=problem.prior(), temperature=1.0, init_scale=0.5)
    network = AdaptedNetwork(nn.Sequential(problem.base, nn.Tanh()), method.family, rank=2, num_examples=40)
    posterior = Posterior(Program(network, method, Homoscedastic()).eval())
    found = diagnostics.gold(posterior, problem.rows, 4, 1)
    expected = posterior.program.logits(found.sites, {"input": problem.x})
    np.testing.assert_allclose(found.logits, expected.detach(), atol=1e-12)


def test_rows_count_as_they_did_in_the_fit() -> None:
    counts = torch.ones(40).double()
    counts[:20] = 0
    problem = Conjugate(counts / counts.mean())
    found = diagnostics.gold(problem.full(), problem.rows, 25, 15, weight=counts.numpy())
    A = found.sites["3x2.A"].flatten(1)
    error = (A.mean(0) - problem.mean(problem.labels)) / problem.covariance.diagonal().sqrt()
    assert float(error.abs().max()) < 4.8 / min(found.effective, 25) ** 0.5


def test_it_draws_covariances_and_weights_too(problem: Conjugate) -> None:
    program = problem.program(MonteCLoRA(objective="elbo", temperature=1.0, components=2))
    found = diagnostics.gold(Posterior(program), problem.rows, 5, 5)
    tril = found.sites["3x2.cov_tril"]
    assert tril.shape == (5, 1, 2, 2)
    assert bool((tril.diagonal(dim1=-2, dim2=-1) > 0).all())
    assert bool((tril[..., 0, 1] == 0).all())
    assert (found.sites["3x2.B"] == program.centre()["3x2.B"]).all()


def test_the_map_to_the_support_of_a_wishart_factor_is_one_to_one() -> None:
    distribution = WishartCholesky(5.0, torch.ones(3, dtype=torch.float64))
    to = biject_to(distribution.support)
    x = torch.randn(6, dtype=torch.float64)
    y = to(x)
    torch.testing.assert_close(to.inv(y), x)
    assert bool(distribution.support.check(y))
    below = torch.tril_indices(3, 3)
    matrix = jacobian(lambda value: to(value)[below[0], below[1]], x)
    torch.testing.assert_close(to.log_abs_det_jacobian(x, y), matrix.det().abs().log())
    assert to.forward_shape((4, 6)) == (4, 3, 3)
    assert to.inverse_shape((4, 3, 3)) == (4, 6)
    assert_mean_close(distribution.sample((2_000,)).diagonal(dim1=-2, dim2=-1), distribution.mean.diagonal())


def test_so_few_draws_that_nothing_is_known_are_refused(problem: Conjugate) -> None:
    with pytest.raises(ArgumentError, match="num_samples=3: 4 draws at least"):
        diagnostics.gold(problem.full(), problem.rows, 3, 1)
    found = diagnostics.gold(problem.full(), problem.rows, 4, 1)
    assert repr(found).startswith("Gold\n  verdict      Not a reference")


@pytest.mark.parametrize(
    ("effective", "divergences", "words"),
    [
        (250.0, 0, "A reference, worth 250 independent draws"),
        (250.0, 3, "Not a reference: 3 of 4 transitions diverged"),
        (12.0, 0, "Not a reference: its draws are worth 12"),
        (0.0, 0, "Not a reference: no draw differs"),
    ],
)
def test_a_chain_says_whether_it_is_a_reference(effective: float, divergences: int, words: str) -> None:
    found = Gold({}, np.zeros((4, 3)), effective, divergences)
    assert found.verdict.startswith(words)
    assert found.good == words.startswith("A ")
    assert found.verdict in " ".join(repr(found).split())


def test_a_chain_that_is_stuck_is_worth_nothing() -> None:
    assert _effective(np.ones((20, 3))) == 0
