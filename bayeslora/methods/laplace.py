"""Laplace approximations: Gaussians around a trained point, from the curvature of its likelihood."""

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from bayeslora import curvature, guides, priors
from bayeslora.adapters import Affine, AffineFactors, Family, Stack
from bayeslora.adapters.weights import frozen_weight
from bayeslora.distributions import KroneckerNormal
from bayeslora.methods.base import PerStackMethod

logger = logging.getLogger(__name__)

CANDIDATES = tuple(10 ** (k / 2) for k in range(-2, 13))
"""Prior precisions among which held-out data choose: 0.1 to 10⁶, two per power of ten."""

NUM_DRAWS = 64
"""Draws of the logits with which a candidate is judged."""


@dataclass(frozen=True)
class Laplace(PerStackMethod):
    r"""A Gaussian around the trained factors and head, whose precision is the curvature there plus the prior's.

    For each matrix of factors F of each layer (`A`, `B`, and a layer of the task head, its bias the last column),

    $$q(F) = N\big(\hat F, (R \otimes C + \tau I)^{-1}\big),$$

    with $\hat F$ trained as a point under flat priors, $R \otimes C$ its Kronecker-factored Gauss-Newton matrix, summed
    over the training data (`curvature.gauss_newton`), and $p(F) = N(0, 1/\tau)$ entry by entry, one τ for all. C
    stands over the inputs of F, R over the gradients of its outputs. Different matrices are independent.

    Predictions are linearised by default; `predict(approximation="draws")` runs the network on draws.

    Args:
        prior_precision: τ, in inverse squared units of the weights; or how it is chosen: `"validation"`, the least NLL
            of the linearised predictions on the validation data among 0.1, 0.32, 1, … 10⁶; `"evidence"`, the largest
            marginal likelihood, by MacKay's fixed point. Without validation data, the first is the second.
        last_layer: Whether only the task head is random, and the adapters stay points.
        max_width: Largest number of rows or columns over which R or C is held in full.
        kept: Eigenvectors of R or C that are kept above it; the rest has no curvature, and the prior's variance.
        post_hoc: Whether adapters and task head stay as `fit(init=…)` gave them: nothing is trained.

    Raises:
        ValueError: If a field is out of its range, or `last_layer` is asked of a network without a task head.

    References:
        MacKay (1992), A practical Bayesian framework for backpropagation networks;
        Ritter et al. (2018), A scalable Laplace approximation for neural networks;
        Daxberger et al. (2021), [Laplace Redux](https://arxiv.org/abs/2106.14806);
        Yang et al. (2023), [Bayesian low-rank adaptation](https://arxiv.org/abs/2308.13111).
    """

    name = "laplace"
    head_family: ClassVar[Family | None] = Affine()
    approximation: ClassVar[str] = "linear"
    prior_precision: Literal["validation", "evidence"] | float = "validation"
    last_layer: bool = False
    max_width: int = 1024
    kept: int = 64
    post_hoc: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.prior_precision, str):
            known = self.prior_precision in ("validation", "evidence")
            self.require(known, "prior_precision", "give 'validation', 'evidence' or a positive number")
        else:
            self.require(self.prior_precision > 0, "prior_precision", "give a positive number")
        for field in ("max_width", "kept"):
            self.require(getattr(self, field) >= 1, field, "give a whole number of at least 1")

    def stack_prior(self, stack: Stack) -> Any:
        with stack.layers:
            sites = {n: pyro.sample(f"{stack.name}.{n}", priors.flat(s)) for n, s in _shapes(stack).items()}
        if stack.in_head:
            return AffineFactors(sites["weight"][..., :-1], sites["weight"][..., -1])
        return stack.family.factors(**sites)

    def guide(self, stacks: Any) -> nn.Module:
        if self.last_layer and not any(stack.in_head for stack in stacks.values()):
            raise ValueError("last_layer=True: the network has no task head of its own; set last_layer=False.")
        return super().guide(stacks)

    def stack_guide(self, stack: Stack) -> nn.Module:
        return LaplaceGuide(self, stack)

    def num_draws(self, guide: nn.Module) -> int | None:
        return None if any(bool(site.precision > 0) for site in _matrices(guide).values()) else 1

    def refine(self, program: Any, guide: nn.Module, train: Iterable[Any], validation: Iterable[Any]) -> nn.Module:
        """Measure the curvature, and choose τ."""
        matrices = _matrices(guide)
        found = curvature.gauss_newton(program, train, {site: matrix.ranks for site, matrix in matrices.items()})
        for site, matrix in matrices.items():
            matrix.put(found[site])
        precision, how = self.prior_precision, "given"
        if isinstance(precision, str):
            how = "validation" if precision == "validation" and validation else "evidence"
            precision = (
                _least_nll(program, matrices, validation) if how == "validation" else _evidence(program, matrices)
            )
        _set(matrices, precision)
        logger.info("Laplace: prior precision %.3g (%s).", precision, how)
        return guide


class LaplaceGuide(nn.Module):
    """The guide of one stack: its matrices, independent."""

    def __init__(self, method: Laplace, stack: Stack):
        super().__init__()
        self.stack = stack
        is_random = stack.in_head or not method.last_layer
        self.matrices = nn.ModuleDict()
        for name, shape in _shapes(stack).items():
            ranks = [size if size <= method.max_width else method.kept for size in shape]
            loc = torch.zeros(len(stack), *shape)
            matrix = Matrix(loc, *ranks) if is_random else guides.Point(loc)
            self.matrices[name] = matrix.requires_grad_(not method.post_hoc)
        self.start(stack.initial())

    def forward(self) -> None:
        with self.stack.layers:
            for name, matrix in self.matrices.items():
                pyro.sample(f"{self.stack.name}.{name}", matrix())

    def start(self, factors: Any) -> None:
        """Begin at trained factors."""
        if self.stack.in_head:
            values = {"weight": torch.cat([factors.weight, factors.bias[..., None]], dim=-1)}
        else:
            values = factors._asdict()
        with torch.no_grad():
            for name, value in values.items():
                matrix: Any = self.matrices[name]
                matrix.loc.copy_(value)


class Matrix(guides.Site):
    """A point; once its curvature and τ are known, a Normal around it.

    Args:
        loc: Starting point, `[layer, row, column]`.
        row_rank: Eigenvectors that are kept, of the rows.
        column_rank: Likewise, of the columns.

    Attributes:
        precision: τ, 0 until it is known.
    """

    precision: Tensor
    row_basis: Tensor
    row_values: Tensor
    column_basis: Tensor
    column_values: Tensor

    def __init__(self, loc: Tensor, row_rank: int, column_rank: int):
        super().__init__()
        layers, rows, columns = loc.shape
        self.ranks = row_rank, column_rank
        self.loc = nn.Parameter(loc)
        self.register_buffer("precision", torch.zeros(()))
        self.register_buffer("row_basis", torch.zeros(layers, rows, row_rank))
        self.register_buffer("row_values", torch.zeros(layers, row_rank))
        self.register_buffer("column_basis", torch.zeros(layers, columns, column_rank))
        self.register_buffer("column_values", torch.zeros(layers, column_rank))

    def forward(self) -> dist.Distribution:
        if not self.precision > 0:
            return dist.Delta(self.loc, event_dim=2)
        return KroneckerNormal(
            self.loc, self.row_basis, self.row_values, self.column_basis, self.column_values, self.precision
        )

    def put(self, layers: list[curvature.Kronecker]) -> None:
        """Take the curvature of each layer."""
        for name in curvature.Kronecker._fields:
            getattr(self, name).copy_(torch.stack([getattr(layer, name) for layer in layers]))

    def eigenvalues(self) -> Tensor:
        """Of the curvature, `[layer, a, b]`."""
        return self.row_values[..., :, None] * self.column_values[..., None, :]


def _shapes(stack: Stack) -> dict[str, tuple[int, ...]]:
    """Shapes of a stack's matrices: a head's layer has its bias in the last column."""
    return {"weight": (stack.d_out, stack.d_in + 1)} if stack.in_head else dict(stack.shapes)


def _matrices(guide: Any) -> dict[str, Matrix]:
    """The matrices that have a curvature, by site."""
    return {
        f"{stack}.{name}": matrix
        for stack, part in guide.items()
        for name, matrix in part.matrices.items()
        if isinstance(matrix, Matrix)
    }


def _set(matrices: dict[str, Matrix], precision: float) -> None:
    for matrix in matrices.values():
        matrix.precision.fill_(precision)


def _evidence(program: Any, matrices: dict[str, Matrix]) -> float:
    r"""τ at the largest marginal likelihood.

    With $\ell$ all eigenvalues of the curvature, it has $\tau = \gamma / \lVert F \rVert^2$, $\gamma = \sum_i \ell_i /
    (\ell_i + \tau)$. The norm is that of the factors, and of the task head's weights in whole, not of their changes.
    """
    eigenvalues = torch.cat([matrix.eigenvalues().flatten().double() for matrix in matrices.values()])
    square = sum(float(_weights(program, site, matrix).double().square().sum()) for site, matrix in matrices.items())
    precision = 1.0
    for _ in range(1_000):
        gamma = float((eigenvalues / (eigenvalues + precision)).sum())
        previous, precision = precision, min(max(gamma / max(square, 1e-30), CANDIDATES[0]), CANDIDATES[-1])
        if abs(math.log(precision / previous)) < 1e-6:
            break
    return precision


def _weights(program: Any, site: str, matrix: Matrix) -> Tensor:
    name = site.rpartition(".")[0]
    if not program.stacks[name].in_head:
        return matrix.loc.detach()
    weights = matrix.loc.detach().clone()
    for layer, base in zip(weights, program.network.bases(name), strict=True):
        layer[:, :-1] += frozen_weight(base)
        if base.bias is not None:
            layer[:, -1] += base.bias
    return weights


def _least_nll(program: Any, matrices: dict[str, Matrix], batches: Iterable[Any]) -> float:
    """The candidate with the least NLL of the linearised predictions."""
    seed = int(torch.randint(2**31, ()))
    scores = {}
    for precision in CANDIDATES:
        _set(matrices, precision)
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(seed)
            linearised = program.linearised(program.draw(NUM_DRAWS))
            total, count = 0.0, 0
            for batch in batches:
                logits = linearised({name: value for name, value in batch.items() if name != "labels"})
                log_probs = program.likelihood.log_prob(logits, batch["labels"]).double()
                total -= float((log_probs.logsumexp(0) - math.log(NUM_DRAWS)).sum())
                count += log_probs.shape[1]
        scores[precision] = total / count
    return min(scores, key=lambda precision: scores[precision])
