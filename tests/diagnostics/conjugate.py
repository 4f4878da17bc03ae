"""A linear layer, Gaussian labels of known noise, a Gaussian prior on `A`, and `B` held: everything is known."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from bayeslora import Posterior
from bayeslora.adapters import AdaptedNetwork, Factors, Stack
from bayeslora.methods import AutoGuide, Method
from bayeslora.program import Program
from bayeslora.tasks import Likelihood

NOISE, PRIOR, S = 0.6, 0.7, 1.5
NUM_EXAMPLES, D_IN, D_OUT, RANK = 40, 3, 2, 2


class Homoscedastic(Likelihood):
    """y ~ N(f, NOISE²)."""

    name = "homoscedastic"
    has_temperature = False

    @classmethod
    def fitting(cls, logits: Tensor, labels: Any, tokenizer: Any = None) -> "Homoscedastic":
        return cls()

    def distribution(self, logits: Tensor) -> dist.Distribution:
        return dist.Normal(logits, NOISE).to_event(1)

    def check_labels(self, labels: Any) -> None: ...

    def config(self) -> dict[str, Any]:
        return {}


class Conjugate:
    """Inputs, and the exact posterior of vec(A), row by row, for any labels.

    P = s² BᵀB / σ² ⊗ XᵀWX + I / σ_p², mean P⁻¹ vec(s Bᵀ RᵀWX / σ²), with R the labels' distance from the base network,
    and W how much rows count.
    """

    def __init__(self, counts: Tensor | None = None) -> None:
        self.counts = torch.ones(NUM_EXAMPLES).double() if counts is None else counts
        torch.manual_seed(3)
        self.base = nn.Linear(D_IN, D_OUT).double()
        mixing = torch.tensor([[1.0, 0.9, 0.0], [0.0, 0.5, 0.8], [0.0, 0.0, 0.6]]).double()
        self.x = torch.randn(NUM_EXAMPLES, D_IN).double() @ mixing  # features that go together
        self.B = torch.tensor([[1.0, 0.8], [0.2, 0.7]]).double()
        gram = torch.kron(self.B.T @ self.B, self.x.T * self.counts @ self.x)
        self.precision = S**2 / NOISE**2 * gram + torch.eye(RANK * D_IN).double() / PRIOR**2
        self.covariance = self.precision.inverse()
        truth = PRIOR * torch.randn(RANK, D_IN).double()
        self.labels = self.base(self.x).detach() + S * self.x @ truth.T @ self.B.T
        self.labels += NOISE * torch.randn(NUM_EXAMPLES, D_OUT).double()

    @property
    def rows(self) -> tuple[dict[str, Tensor], Tensor]:
        return {"input": self.x}, self.labels

    def mean(self, labels: Tensor) -> Tensor:
        residual = labels - self.base(self.x).detach()
        return torch.linalg.solve(
            self.precision, (S / NOISE**2 * self.B.T @ residual.T * self.counts @ self.x).flatten()
        )

    def program(self, method: Method) -> Program:
        network = AdaptedNetwork(
            nn.Sequential(self.base), method.family, rank=RANK, alpha=S * RANK, num_examples=NUM_EXAMPLES
        )
        return Program(network, method, Homoscedastic()).eval()

    def prior(self) -> Callable[[Stack], Factors]:
        def prior_program(stack: Stack) -> Factors:
            with stack.layers:
                A = pyro.sample(f"{stack.name}.A", dist.Normal(0.0, PRIOR).expand(stack.A_shape).to_event(2))
            return Factors(A, self.B.expand(*A.shape[:-2], *self.B.shape))

        return prior_program

    def put(self, program: Program, labels: Tensor, scale: float = 1.0) -> Program:
        """Give the full-rank guide the exact posterior, with every standard deviation times `scale`."""
        auto = program.guide["3x2"].auto
        tril = scale * torch.linalg.cholesky(self.covariance)
        with torch.no_grad(), pyro.settings.context(module_local_params=True):
            auto.loc.copy_(self.mean(labels))
            auto.scale = tril.diagonal()
            auto.scale_tril = tril / tril.diagonal()[:, None]
        return program

    def full(self, scale: float = 1.0) -> Posterior:
        """The exact posterior, or one that is narrower or wider."""
        method = AutoGuide(prior_program=self.prior(), autoguide="AutoMultivariateNormal", temperature=1.0)
        return Posterior(self.put(self.program(method), self.labels, scale))

    def mean_field(self) -> Posterior:
        """The mean-field guide at its optimum: the exact means, and variances that are conditional on all others."""
        program = self.program(AutoGuide(prior_program=self.prior(), temperature=1.0))
        auto = program.guide["3x2"].auto
        with torch.no_grad(), pyro.settings.context(module_local_params=True):
            getattr(auto.locs, "3x2").A = self.mean(self.labels).view(1, RANK, D_IN)
            getattr(auto.scales, "3x2").A = self.precision.diagonal().rsqrt().view(1, RANK, D_IN)
        return Posterior(program)

    def exact_loo(self) -> np.ndarray:
        """The log predictive density of each example given the others, `[example]`."""
        terms = []
        for left_out in range(NUM_EXAMPLES):
            kept = [i for i in range(NUM_EXAMPLES) if i != left_out]
            x, residual = self.x[kept], (self.labels - self.base(self.x).detach())[kept]
            weighted = x * self.counts[kept, None]
            precision = S**2 / NOISE**2 * torch.kron(self.B.T @ self.B, x.T @ weighted)
            precision = precision + torch.eye(RANK * D_IN).double() / PRIOR**2
            mean = torch.linalg.solve(precision, (S / NOISE**2 * self.B.T @ residual.T @ weighted).flatten())
            design = S * torch.kron(self.B, self.x[left_out][None])  # logits are the base's plus this times vec(A)
            covariance = design @ precision.inverse() @ design.T + NOISE**2 * torch.eye(D_OUT).double()
            centre = self.base(self.x[left_out]).detach() + design @ mean
            terms.append(float(dist.MultivariateNormal(centre, covariance).log_prob(self.labels[left_out])))
        assert all(map(math.isfinite, terms))
        return np.array(terms)
