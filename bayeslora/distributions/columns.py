"""Matrices whose columns are independent Gaussians of one covariance, and their standard prior."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints, register_kl

from bayeslora.distributions.wishart import WishartCholesky


class ColumnNormal(TorchDistribution):
    r"""A matrix whose columns are independent $N(m_i, c^2 \Sigma)$ given $\Sigma = \Lambda \Lambda^\top$.

    Args:
        cov_tril: $\Lambda$, lower triangular, `[*batch, rank, rank]`.
        num_columns: Columns, $d_{in}$.
        covariance: The distribution that `cov_tril` was drawn from. Given it, KL divergences are taken in expectation
            over $\Lambda$, in closed form, instead of at the draw.
        loc: The columns' means $m$, `[*batch, rank, column]`; zero by default.
        scale: $c > 0$, `[*batch]`; one by default.
    """

    arg_constraints = {"cov_tril": constraints.lower_triangular}
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(
        self,
        cov_tril: Float[Tensor, "*batch rank rank"],
        num_columns: int,
        covariance: WishartCholesky | None = None,
        loc: Float[Tensor, "*batch rank column"] | None = None,
        scale: Float[Tensor, "*batch"] | None = None,
        validate_args: bool | None = None,
    ):
        self.cov_tril = cov_tril
        self.covariance = covariance
        self.loc = loc
        self.scale = scale
        event_shape = torch.Size([cov_tril.shape[-1], num_columns])
        super().__init__(cov_tril.shape[:-2], event_shape, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "ColumnNormal":
        batch_shape = torch.Size(batch_shape)
        return ColumnNormal(
            self.cov_tril.expand(batch_shape + self.cov_tril.shape[-2:]),
            self.event_shape[-1],
            self.covariance and self.covariance.expand(batch_shape),
            None if self.loc is None else self.loc.expand(batch_shape + self.event_shape),
            None if self.scale is None else self.scale.expand(batch_shape),
            validate_args=False,
        )

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        value = self.cov_tril @ torch.randn(shape, dtype=self.cov_tril.dtype, device=self.cov_tril.device)
        if self.scale is not None:
            value = self.scale[..., None, None] * value
        return value if self.loc is None else self.loc + value

    def log_prob(self, value: Tensor) -> Tensor:
        rank, columns = self.event_shape
        if self.loc is not None:
            value = value - self.loc
        log_diag = self.cov_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        if self.scale is not None:
            value = value / self.scale[..., None, None]
            log_diag = log_diag + rank * self.scale.log()
        white = torch.linalg.solve_triangular(self.cov_tril, value, upper=False)
        return -white.square().sum((-2, -1)) / 2 - columns * log_diag - rank * columns / 2 * math.log(2 * math.pi)

    @property
    def mean(self) -> Tensor:
        if self.loc is not None:
            return self.loc.expand(self.batch_shape + self.event_shape)
        return self.cov_tril.new_zeros(()).expand(self.batch_shape + self.event_shape)

    @property
    def trace(self) -> Tensor:
        r"""$\mathrm{tr}(c^2 \Sigma)$ of one column, in expectation if `covariance` is given, `[*batch]`."""
        trace = self.covariance.expected_trace if self.covariance else self.cov_tril.square().sum((-2, -1))
        return trace if self.scale is None else self.scale.square() * trace

    @property
    def logdet(self) -> Tensor:
        r"""$\ln|c^2 \Sigma|$ of one column, in expectation if `covariance` is given, `[*batch]`."""
        if self.covariance:
            logdet = self.covariance.expected_logdet
        else:
            logdet = 2 * self.cov_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return logdet if self.scale is None else logdet + 2 * self.event_shape[0] * self.scale.log()


class SharedColumns(ColumnNormal):
    r"""The prior $N(0, c^2 \Sigma)$ of columns, given the same $\Sigma$ and c as their posterior has.

    Its divergence from a `ColumnNormal` with these is $\frac{1}{2 c^2} \sum_i m_i^\top \Sigma^{-1} m_i$, in expectation
    $E[\Sigma^{-1}] = V^{-1} / (\nu - r - 1)$ if that one has a `covariance`, with ν > r + 1.
    """

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "SharedColumns":
        batch_shape = torch.Size(batch_shape)
        cov_tril = self.cov_tril.expand(batch_shape + self.cov_tril.shape[-2:])
        scale = None if self.scale is None else self.scale.expand(batch_shape)
        return SharedColumns(cov_tril, self.event_shape[-1], scale=scale, validate_args=False)


@register_kl(ColumnNormal, SharedColumns)
def _kl_shared(q: ColumnNormal, p: SharedColumns) -> Tensor:
    assert q.loc is not None
    loc = q.loc if q.scale is None else q.loc / q.scale[..., None, None]
    if q.covariance is None:
        return torch.linalg.solve_triangular(q.cov_tril, loc, upper=False).square().sum((-2, -1)) / 2
    mean_inverse = 1 / (q.covariance.scale_diag * (q.covariance.df - q.covariance.rank - 1))
    return (loc.square().sum(-1) * mean_inverse).sum(-1) / 2


class StandardColumns(TorchDistribution):
    r"""A matrix of independent $N(0, \sigma^2)$ entries: the prior to which `ColumnNormal` has a closed-form KL.

    Args:
        rank: Rows.
        num_columns: Columns.
        scale: Standard deviation $\sigma$.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(self, rank: int, num_columns: int, scale: float = 1.0, batch_shape: tuple[int, ...] = ()):
        self.scale = scale
        event_shape = torch.Size([rank, num_columns])
        super().__init__(torch.Size(batch_shape), event_shape, validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "StandardColumns":
        rank, num_columns = self.event_shape
        return StandardColumns(rank, num_columns, self.scale, tuple(batch_shape))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.scale * torch.randn(self._extended_shape(torch.Size(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        normaliser = self.event_shape.numel() * (math.log(self.scale) + math.log(2 * math.pi) / 2)
        return -(value / self.scale).square().sum((-2, -1)) / 2 - normaliser


@register_kl(ColumnNormal, StandardColumns)
def _kl_columns(q: ColumnNormal, p: StandardColumns) -> Tensor:
    rank, columns = q.event_shape
    kl = columns / 2 * (q.trace / p.scale**2 - q.logdet + rank * (2 * math.log(p.scale) - 1))
    return kl if q.loc is None else kl + (q.loc / p.scale).square().sum((-2, -1)) / 2


@register_kl(ColumnNormal, ColumnNormal)
def _kl_other_columns(q: ColumnNormal, p: ColumnNormal) -> Tensor:
    """At the draws of both Λ, also where expectations over one could be taken."""
    rank, columns = q.event_shape
    own, other = (x.cov_tril if x.scale is None else x.scale[..., None, None] * x.cov_tril for x in (q, p))
    ratio = torch.linalg.solve_triangular(other, own, upper=False)
    shift = torch.linalg.solve_triangular(other, q.mean - p.mean, upper=False)
    logdet = 2 * ratio.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return (columns * (ratio.square().sum((-2, -1)) - logdet - rank) + shift.square().sum((-2, -1))) / 2
