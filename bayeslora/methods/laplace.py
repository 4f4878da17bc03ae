"""Laplace approximations: Gaussians around a trained point, from the curvature of its likelihood."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import Distribution

from bayeslora import curvature, guides, priors
from bayeslora.adapters import Affine, Family, Stack, Stacks, split_site
from bayeslora.dials import Dial
from bayeslora.fitted import FittedProgram
from bayeslora.methods.base import PerStackMethod
from bayeslora.methods.fields import Count, Positive
from bayeslora.methods.laplace_matrix import Matrix
from bayeslora.precision import CANDIDATES, largest_evidence, least_nll
from bayeslora.types import Batch, FactorTuple

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Laplace(PerStackMethod):
    r"""A Gaussian around the trained factors and head, whose precision is the curvature there plus the prior's.

    For each matrix of factors F of each layer (`A`, `B`, and a layer of the task head, its bias the last column),

    $$q(F) = N\big(\hat F, (R \otimes C + \tau I)^{-1}\big),$$

    with $\hat F$ trained as a point under flat priors, $R \otimes C$ its Kronecker-factored Gauss-Newton matrix, summed
    over the training data (`curvature.gauss_newton`), and $p(F) = N(0, 1/\tau)$ entry by entry, one τ for all. C
    stands over the inputs of F, R over the gradients of its outputs. Different matrices are independent. Predictions
    are linearised by default; `predict(approximation="draws")` runs the network on draws.

    With `fit(prior=…)`, training has the earlier Gaussian as its prior, and its precision is added to the new
    curvature: the sum of two Kronecker products is replaced by the nearest one, which is the sum itself where a matrix
    has one row or one column, and τ is that of the first fit.

    Args:
        prior_precision: τ, in inverse squared units of the weights; or how to choose it: `"validation"`, the least NLL
            of the linearised predictions on the validation data among 0.1, 0.32, 1, … 10⁶; `"evidence"`, the largest
            marginal likelihood, by MacKay's fixed point, also used without validation data; or `"auto"`, the value at
            which rows that were not trained on are predicted best.
        last_layer: Whether only the task head is random, and the adapters are points.
        max_width: Largest number of rows or columns over which R or C is held in full.
        kept: Eigenvectors of R or C that are kept beyond that width; other directions have the prior's variance.
        post_hoc: Whether adapters and task head stay as they were passed to `fit(init=…)`: nothing is trained.

    Raises:
        ValueError: If a field is out of its range, or `last_layer` is asked of a network without a task head.

    References:
        MacKay (1992), A practical Bayesian framework for backpropagation networks; Ritter et al. (2018), A scalable
        Laplace approximation for neural networks; Daxberger et al. (2021), [Laplace
        Redux](https://arxiv.org/abs/2106.14806); Yang et al. (2023), [Bayesian low-rank
        adaptation](https://arxiv.org/abs/2308.13111).
    """

    name = "laplace"
    head_family: ClassVar[Family | None] = Affine()
    approximation: ClassVar[str] = "linear"
    dial = Dial("prior_precision", CANDIDATES[1::2], "precision")
    prior_precision: Literal["validation", "evidence", "auto"] | Positive = "validation"
    last_layer: bool = False
    max_width: Count = 1024
    kept: Count = 64
    post_hoc: bool = False

    def stack_prior(self, stack: Stack) -> FactorTuple:
        with stack.layers, poutine.scale(scale=1 / stack.num_examples):
            matrices = {n: pyro.sample(stack.site(n), priors.flat(s)) for n, s in stack.matrix_shapes.items()}
        return stack.family.from_matrices(matrices)

    def guide(self, stacks: Stacks) -> nn.Module:
        if self.last_layer and not any(stack.in_head for stack in stacks.values()):
            raise ValueError("last_layer=True: the network has no task head of its own; set last_layer=False.")
        return super().guide(stacks)

    def stack_guide(self, stack: Stack) -> nn.Module:
        return LaplaceGuide(self, stack)

    def num_draws(self, guide: nn.Module) -> int | None:
        return None if any(bool(site.precision > 0) for site in _matrices(guide).values()) else 1

    def carry_on(self, guide: nn.Module) -> None:
        for matrix in _matrices(guide).values():
            matrix.precision.zero_()

    def claimed_priors(self, program: FittedProgram) -> dict[str, Distribution]:
        if program.prior is not None:
            return {}
        found = {site: matrix for site, matrix in _matrices(program.guide).items() if matrix.precision > 0}
        means = {site: (torch.zeros_like(matrix.loc) - _frozen(program, site)) for site, matrix in found.items()}
        return {site: dist.Normal(mean, found[site].precision.rsqrt()).to_event(2) for site, mean in means.items()}

    def refine(
        self, program: FittedProgram, guide: nn.Module, train: Iterable[Batch], validation: Iterable[Batch]
    ) -> nn.Module:
        """Measure the curvature, and choose τ, or add the precision of the Gaussian that is the prior."""
        matrices = _matrices(guide)
        found = curvature.gauss_newton(program, train, {site: matrix.ranks for site, matrix in matrices.items()})
        for site, matrix in matrices.items():
            matrix.put(found[site])
        if program.prior is not None:
            for site, matrix in matrices.items():
                matrix.add(program.prior.distribution(site))
            return guide
        tau, how = self.prior_precision, "given"
        if tau == "validation" and validation:
            tau, how = least_nll(program, validation, partial(self.dial.put, guide)), "validation"
        elif isinstance(tau, str):
            weights = [matrix.loc.detach() + _frozen(program, site) for site, matrix in matrices.items()]
            tau, how = largest_evidence([matrix.eigenvalues() for matrix in matrices.values()], weights), "evidence"
        self.dial.put(guide, tau)
        logger.info("Laplace: prior precision %.3g (%s).", tau, how)
        return guide


class LaplaceGuide(nn.Module):
    """The guide of one stack: its matrices, independent."""

    def __init__(self, method: Laplace, stack: Stack):
        super().__init__()
        self.stack = stack
        is_random = stack.in_head or not method.last_layer
        self.matrices = nn.ModuleDict()
        for name, shape in stack.matrix_shapes.items():
            ranks = [size if size <= method.max_width else method.kept for size in shape]
            loc = torch.zeros(len(stack), *shape)
            matrix = Matrix(loc, *ranks) if is_random else guides.Point(loc)
            self.matrices[name] = matrix.requires_grad_(not method.post_hoc)
        self.start(stack.initial())

    def forward(self) -> None:
        # The weight matters where an earlier fit is the prior: flat ones have no density.
        with self.stack.layers, poutine.scale(scale=1 / self.stack.num_examples):
            for name, matrix in self.matrices.items():
                pyro.sample(self.stack.site(name), matrix())

    def start(self, factors: FactorTuple) -> None:
        """Start from trained factors."""
        with torch.no_grad():
            for name, value in self.stack.family.matrices(factors).items():
                self.matrices[name].get_parameter("loc").copy_(value)


def _matrices(guide: nn.Module) -> dict[str, Matrix]:
    """Return the matrices that have a curvature, by site."""
    parts: Any = guide.values()  # type: ignore[operator]
    return {
        part.stack.site(name): matrix
        for part in parts
        for name, matrix in part.matrices.items()
        if isinstance(matrix, Matrix)
    }


def _frozen(program: FittedProgram, site: str) -> Tensor | float:
    """Return what the prior is about beside a factor: the weights of the task head, whose factors are their change."""
    stack, name = split_site(site)
    head = Affine()
    return head.matrices(head.frozen(program.network.bases(stack)))[name] if program.stacks[stack].in_head else 0.0
