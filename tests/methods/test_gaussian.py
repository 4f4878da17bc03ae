"""A linear layer, Gaussian labels, a Gaussian prior on `A`, and `B` held: the posterior is known."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from bayeslora.adapters import AdaptedNetwork, Factors, Stack
from bayeslora.methods import AutoGuide, BLoB, Laplace, Method
from bayeslora.program import Program
from bayeslora.tasks import Likelihood
from tests.helpers import assert_mean_close
from tests.methods.conftest import dense_precision

NOISE, PRIOR = 0.3, 0.7
NUM_EXAMPLES, D_IN, D_OUT, RANK, S = 7, 3, 4, 2, 1.5


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(D_IN, D_OUT).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Homoscedastic(Likelihood):
    """y ~ N(f, NOISE²)."""

    name = "homoscedastic"

    @classmethod
    def fitting(cls, logits: Tensor, labels: Any, tokenizer: Any = None) -> "Homoscedastic":
        return cls()

    def distribution(self, logits: Tensor) -> dist.Distribution:
        return dist.Normal(logits, NOISE).to_event(1)

    def check_labels(self, labels: Any) -> None: ...

    def config(self) -> dict[str, Any]:
        return {}


@dataclass
class Problem:
    """The data, and the exact posterior of vec(A), row by row.

    P = s² BᵀB / σ² ⊗ XᵀX + I / σ_p², mean P⁻¹ vec(s Bᵀ Rᵀ X / σ²), with R the labels' distance from the base network.
    """

    batch: dict[str, Tensor]
    B: Tensor
    mean: Tensor
    precision: Tensor


@pytest.fixture
def problem() -> Problem:
    torch.manual_seed(3)
    base = Linear()
    x, labels = torch.randn(NUM_EXAMPLES, D_IN).double(), torch.randn(NUM_EXAMPLES, D_OUT).double()
    B = torch.randn(D_OUT, RANK).double()
    residual = labels - base(x).detach()
    precision = S**2 / NOISE**2 * torch.kron(B.T @ B, x.T @ x) + torch.eye(RANK * D_IN).double() / PRIOR**2
    mean = torch.linalg.solve(precision, (S / NOISE**2 * B.T @ residual.T @ x).flatten())
    return Problem({"x": x, "labels": labels}, B, mean, precision)


def make_program(method: Method, problem: Problem, **settings: Any) -> Program:
    torch.manual_seed(3)
    network = AdaptedNetwork(Linear(), rank=RANK, alpha=S * RANK, num_examples=NUM_EXAMPLES)
    return Program(network, method, Homoscedastic(), **settings)


def hold(point: nn.Parameter, value: Tensor) -> None:
    point.requires_grad_(False).copy_(value)


def gradients(program: Program, problem: Problem, num_draws: int = 500) -> dict[str, Tensor]:
    """The loss's gradient at many draws, `[draw, …]`."""
    names, parameters = zip(*program.trainable(), strict=True)
    draws = [torch.autograd.grad(program(**problem.batch).loss, parameters) for _ in range(num_draws)]
    return {name: torch.stack(column) for name, column in zip(names, zip(*draws, strict=True), strict=True)}


def holding(B: Tensor) -> Callable[[Stack], Factors]:
    """The prior of `A`, with `B` known."""

    def prior_program(stack: Stack) -> Factors:
        with stack.layers:
            A = pyro.sample(f"{stack.name}.A", dist.Normal(0.0, PRIOR).expand(stack.A_shape).to_event(2))
        return Factors(A, B.expand(*A.shape[:-2], *B.shape))

    return prior_program


def test_the_full_rank_autoguide_holds_the_exact_posterior(problem: Problem) -> None:
    method = AutoGuide(prior_program=holding(problem.B), autoguide="AutoMultivariateNormal", temperature=1.0)
    program = make_program(method, problem)
    auto = program.guide["3x4"].auto
    covariance = problem.precision.inverse()
    tril = torch.linalg.cholesky(covariance)
    with torch.no_grad(), pyro.settings.context(module_local_params=True):
        auto.loc.copy_(problem.mean)
        auto.scale = tril.diagonal()
        auto.scale_tril = tril / tril.diagonal()[:, None]
    for gradient in gradients(program, problem).values():
        assert_mean_close(gradient, 0.0)
    centred = program.draw(4_000)["3x4.A"].flatten(1) - problem.mean
    assert_mean_close(centred, 0.0)
    assert_mean_close(centred[:, :, None] * centred[:, None, :], covariance)
    with torch.no_grad():
        auto.scale_tril_unconstrained.mul_(0.5)
    with pytest.raises(AssertionError, match="z-score"):
        assert_mean_close(gradients(program, problem)["guide.3x4.auto.scale_tril_unconstrained"], 0.0)


def test_laplace_is_exact(problem: Problem) -> None:
    program = make_program(Laplace(prior_precision=PRIOR**-2), problem).eval()
    matrices = program.guide["3x4"].matrices
    with torch.no_grad():
        hold(matrices["A"].loc, problem.mean.view(1, RANK, D_IN))
        hold(matrices["B"].loc, problem.B[None])
    halves = [{name: value[rows] for name, value in problem.batch.items()} for rows in (slice(3), slice(3, None))]
    program.guide = program.method.refine(program, program.guide, halves, [])
    torch.testing.assert_close(dense_precision(matrices["A"])[0], problem.precision)
    centred = program.draw(4_000)["3x4.A"].flatten(1) - problem.mean
    assert_mean_close(centred[:, :, None] * centred[:, None, :], problem.precision.inverse())


def test_the_mean_field_autoguide_has_its_known_optimum(problem: Problem) -> None:
    program = make_program(AutoGuide(prior_program=holding(problem.B), temperature=1.0), problem)
    auto = program.guide["3x4"].auto
    with torch.no_grad(), pyro.settings.context(module_local_params=True):
        getattr(auto.locs, "3x4").A = problem.mean.view(1, RANK, D_IN)
        getattr(auto.scales, "3x4").A = problem.precision.diagonal().rsqrt().view(1, RANK, D_IN)
    for gradient in gradients(program, problem).values():
        assert_mean_close(gradient, 0.0)


def test_the_mean_field_optimum_has_the_posteriors_mean_and_conditional_variances(problem: Problem) -> None:
    program = make_program(BLoB(prior_scale=PRIOR, temperature=1.0), problem)
    sites = program.guide["3x4"].sites
    with torch.no_grad():
        hold(sites["B"].loc, problem.B)
        sites["A"].loc.copy_(problem.mean.view(1, RANK, D_IN))
        sites["A"].sqrt_scale.copy_(problem.precision.diagonal().pow(-0.25).view(1, RANK, D_IN))
    at_optimum = gradients(program, problem)
    assert set(at_optimum) == {"guide.3x4.sites.A.loc", "guide.3x4.sites.A.sqrt_scale"}
    for gradient in at_optimum.values():
        assert_mean_close(gradient, 0.0)
    with torch.no_grad():
        sites["A"].sqrt_scale.mul_(1.1)
    with pytest.raises(AssertionError, match="z-score"):
        assert_mean_close(gradients(program, problem)["guide.3x4.sites.A.sqrt_scale"], 0.0)
