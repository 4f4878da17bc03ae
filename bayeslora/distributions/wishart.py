"""Covariance matrices, as their Cholesky factors: the Wishart distribution."""

import functools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints, register_kl, transform_to
from torch.distributions.utils import lazy_property


class LowerCholesky(type(constraints.lower_cholesky)):  # type: ignore[misc]
    """Lower triangular matrices with a positive diagonal, to which there is a map from as many reals, one to one.

    torch has a map to its own constraint from whole matrices, whose upper half does not count.
    """


lower_cholesky = LowerCholesky()


class FillLowerCholesky(Transform):
    r"""Write $r (r + 1) / 2$ reals into a lower triangular matrix, row by row, with $\exp$ on its diagonal."""

    domain = constraints.real_vector
    codomain = lower_cholesky
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FillLowerCholesky)

    def _call(self, x: Tensor) -> Tensor:
        rank = _rank(x.shape[-1])
        rows, columns = torch.tril_indices(rank, rank, device=x.device)
        matrix = x.new_zeros(*x.shape[:-1], rank, rank)
        matrix[..., rows, columns] = x
        return matrix.tril(-1) + torch.diag_embed(matrix.diagonal(dim1=-2, dim2=-1).exp())

    def _inverse(self, y: Tensor) -> Tensor:
        rows, columns = torch.tril_indices(*y.shape[-2:], device=y.device)
        return (y.tril(-1) + torch.diag_embed(y.diagonal(dim1=-2, dim2=-1).log()))[..., rows, columns]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return y.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def forward_shape(self, shape: Sequence[int]) -> torch.Size:
        return torch.Size((*shape[:-1], _rank(shape[-1]), _rank(shape[-1])))

    def inverse_shape(self, shape: Sequence[int]) -> torch.Size:
        return torch.Size((*shape[:-2], shape[-1] * (shape[-1] + 1) // 2))


def _rank(count: int) -> int:
    """Return r, of which r (r + 1) / 2 is given."""
    return (math.isqrt(8 * count + 1) - 1) // 2


@biject_to.register(LowerCholesky)
@transform_to.register(LowerCholesky)
def _to_lower_cholesky(constraint: LowerCholesky) -> FillLowerCholesky:
    return FillLowerCholesky()


class WishartCholesky(TorchDistribution):
    r"""Cholesky factor of a Wishart matrix with diagonal scale matrix.

    $\Sigma = \Lambda \Lambda^\top \sim W_r(V, \nu)$ with $V = \mathrm{diag}(v)$. Drawn by Bartlett's decomposition,
    $\Lambda = \mathrm{diag}(\sqrt v) T$ with $T$ lower triangular, $T_{jj}^2 \sim \chi^2(\nu - j + 1)$ and
    $T_{jk} \sim N(0, 1)$ for $j > k$: no matrix is formed or factorised, gradients reach $v$ pathwise, and the cost
    does not depend on $\nu$.

    Args:
        df: Degrees of freedom $\nu \ge r$, a number.
        scale_diag: $v > 0$, `[*batch, rank]`.

    References:
        Bartlett (1933), On the theory of statistical regression.
    """

    arg_constraints = {"scale_diag": constraints.independent(constraints.positive, 1)}
    support = lower_cholesky
    has_rsample = True

    def __init__(self, df: float, scale_diag: Float[Tensor, "*batch rank"], validate_args: bool | None = None):
        rank = scale_diag.shape[-1]
        if not rank <= df < math.inf:
            raise ValueError(f"df={df} degrees of freedom: give a finite number of at least the rank, {rank}.")
        self.df = df
        self.scale_diag = scale_diag
        super().__init__(scale_diag.shape[:-1], torch.Size([rank, rank]), validate_args=validate_args)

    @property
    def rank(self) -> int:
        return self.event_shape[-1]

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "WishartCholesky":
        scale_diag = self.scale_diag.expand(torch.Size(batch_shape) + self.event_shape[-1:])
        return WishartCholesky(self.df, scale_diag, validate_args=False)

    def _chi2_df(self) -> Tensor:
        """Return ν, ν−1, …, ν−r+1."""
        return self.df - torch.arange(self.rank, dtype=self.scale_diag.dtype, device=self.scale_diag.device)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        # A χ²(ν) variable is twice a Gamma(ν/2) one. ν carries no gradient.
        chi2 = 2 * torch._standard_gamma((self._chi2_df() / 2).expand(shape[:-1]))
        T = torch.randn(shape, dtype=chi2.dtype, device=chi2.device).tril_(-1)
        T.diagonal(dim1=-2, dim2=-1).copy_(chi2.sqrt_())
        return self.scale_diag.sqrt().unsqueeze(-1) * T

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Return the log-density of $\Lambda$.

        It is that of $\Sigma$ plus the logarithm of the Jacobian $2^r \prod_j \Lambda_{jj}^{r-j+1}$.
        """
        r, df = self.rank, self.df
        log_diag = value.diagonal(dim1=-2, dim2=-1).log()
        trace = (value.square().sum(-1) / self.scale_diag).sum(-1)
        normaliser = df * r / 2 * math.log(2) + df / 2 * self.scale_logdet + mvlgamma(df / 2, r)
        powers = torch.arange(r, 0, -1, dtype=value.dtype, device=value.device)
        jacobian = r * math.log(2) + (powers * log_diag).sum(-1)
        return (df - r - 1) * log_diag.sum(-1) - trace / 2 - normaliser + jacobian

    @property
    def mean(self) -> Tensor:
        r"""$E[\Lambda]$: $\sqrt{2 v_j}\, \Gamma((\nu-j+2)/2) / \Gamma((\nu-j+1)/2)$ on the diagonal, 0 below."""
        half = self._chi2_df() / 2
        ratio = (torch.lgamma(half + 0.5) - torch.lgamma(half)).exp()
        return torch.diag_embed((2 * self.scale_diag).sqrt() * ratio)

    @lazy_property
    def scale_trace(self) -> Tensor:
        r"""$\mathrm{tr}\, V$, `[*batch]`."""
        return self.scale_diag.sum(-1)

    @lazy_property
    def scale_logdet(self) -> Tensor:
        r"""$\ln|V|$, `[*batch]`."""
        return self.scale_diag.log().sum(-1)

    @property
    def expected_trace(self) -> Tensor:
        r"""$E[\mathrm{tr}\,\Sigma] = \nu\, \mathrm{tr}\, V$, `[*batch]`."""
        return self.df * self.scale_trace

    @property
    def expected_logdet(self) -> Tensor:
        r"""$E[\ln|\Sigma|] = \psi_r(\nu/2) + r \ln 2 + \ln|V|$, `[*batch]`."""
        return self.scale_logdet + (mvdigamma(self.df / 2, self.rank) + self.rank * math.log(2))


@register_kl(WishartCholesky, WishartCholesky)
def _kl_wishart(q: WishartCholesky, p: WishartCholesky) -> Tensor:
    # The map from Σ to Λ is one to one, so this is the divergence of the Wishart distributions themselves.
    r = q.rank
    trace = (q.scale_diag / p.scale_diag).sum(-1)
    logdet = q.scale_logdet - p.scale_logdet
    if q.df == p.df:
        return q.df / 2 * (trace - logdet - r)
    return (
        q.df / 2 * (trace - r)
        - p.df / 2 * logdet
        + mvlgamma(p.df / 2, r)
        - mvlgamma(q.df / 2, r)
        + (q.df - p.df) / 2 * mvdigamma(q.df / 2, r)
    )


def mvlgamma(a: float, r: int) -> float:
    r"""Return $\ln \Gamma_r(a)$, a number."""
    return r * (r - 1) / 4 * math.log(math.pi) + sum(math.lgamma(a - j / 2) for j in range(r))


@functools.lru_cache
def mvdigamma(a: float, r: int) -> float:
    r"""Return $\psi_r(a) = \sum_{j=1}^r \psi(a + (1-j)/2)$, a number."""
    return float(torch.digamma(a - torch.arange(r, dtype=torch.float64) / 2).sum())
