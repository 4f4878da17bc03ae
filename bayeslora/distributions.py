"""Distributions that Pyro lacks, each with its `register_kl` pair."""

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pyro.distributions import Delta, Independent, RelaxedBernoulli, TorchDistribution
from pyro.distributions import Dirichlet as PyroDirichlet
from torch import Tensor
from torch.distributions import constraints, kl_divergence, register_kl
from torch.distributions.utils import lazy_property

__all__ = [
    "ColumnNormal",
    "Deviations",
    "Dirichlet",
    "Enumerated",
    "FixedNoise",
    "Flat",
    "KroneckerNormal",
    "Mask",
    "RelaxedMask",
    "Seed",
    "SharedNoise",
    "WishartCholesky",
    "expected_square_sum",
    "kl_divergence",
]


class Dirichlet(PyroDirichlet):
    r"""Dirichlet distribution, drawn as normalised gammas.

    $g_k \sim \mathrm{Gamma}(\alpha_k, 1)$, $\pi = g / \sum_k g_k$: gradients are exact implicit reparameterisation,
    and unlike torch's own operator they survive `torch.func.grad` and `vmap`.

    Args:
        concentration: $\alpha > 0$, `[*batch, K]`.
    """

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        concentration = self.concentration.expand(self._extended_shape(torch.Size(sample_shape)))
        # Gammas of a small concentration underflow; all of them zero would have no proportions.
        gammas = torch._standard_gamma(concentration) + torch.finfo(concentration.dtype).tiny
        return gammas / gammas.sum(-1, keepdim=True)


def expected_square_sum(concentration: Float[Tensor, "*batch component"]) -> Float[Tensor, "*batch"]:
    r"""$E[\sum_k \pi_k^2] = \sum_k \alpha_k (\alpha_k + 1) / (\alpha_0 (\alpha_0 + 1))$ under Dirichlet(α).

    Args:
        concentration: $\alpha$, `[*batch, K]`.

    Returns:
        `[*batch]`, between 1/K and 1.
    """
    total = concentration.sum(-1)
    return (concentration * (concentration + 1)).sum(-1) / (total * (total + 1))


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
    support = constraints.lower_cholesky
    has_rsample = True

    def __init__(self, df: float, scale_diag: Float[Tensor, "*batch rank"], validate_args: bool | None = None):
        rank = scale_diag.shape[-1]
        if not rank <= df < math.inf:
            raise ValueError(f"df={df} degrees of freedom: a finite number of at least the rank, {rank}, is needed.")
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
        """ν, ν−1, …, ν−r+1."""
        return self.df - torch.arange(self.rank, dtype=self.scale_diag.dtype, device=self.scale_diag.device)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        # A χ²(ν) variable is twice a Gamma(ν/2) one. ν carries no gradient.
        chi2 = 2 * torch._standard_gamma((self._chi2_df() / 2).expand(shape[:-1]))
        T = torch.randn(shape, dtype=chi2.dtype, device=chi2.device).tril_(-1)
        T.diagonal(dim1=-2, dim2=-1).copy_(chi2.sqrt_())
        return self.scale_diag.sqrt().unsqueeze(-1) * T

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Log-density of $\Lambda$: that of $\Sigma$ plus the Jacobian $2^r \prod_j \Lambda_{jj}^{r-j+1}$."""
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


def mvlgamma(a: float, r: int) -> float:
    r"""$\ln \Gamma_r(a)$, a number."""
    return r * (r - 1) / 4 * math.log(math.pi) + sum(math.lgamma(a - j / 2) for j in range(r))


@functools.lru_cache
def mvdigamma(a: float, r: int) -> float:
    r"""$\psi_r(a) = \sum_{j=1}^r \psi(a + (1-j)/2)$, a number."""
    return float(torch.digamma(a - torch.arange(r, dtype=torch.float64) / 2).sum())


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
        r"""$\mathrm{tr}(c^2 \Sigma)$ of one column, in expectation where `covariance` is given, `[*batch]`."""
        trace = self.covariance.expected_trace if self.covariance else self.cov_tril.square().sum((-2, -1))
        return trace if self.scale is None else self.scale.square() * trace

    @property
    def logdet(self) -> Tensor:
        r"""$\ln|c^2 \Sigma|$ of one column, in expectation where `covariance` is given, `[*batch]`."""
        if self.covariance:
            logdet = self.covariance.expected_logdet
        else:
            logdet = 2 * self.cov_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return logdet if self.scale is None else logdet + 2 * self.event_shape[0] * self.scale.log()


class StandardColumns(TorchDistribution):
    r"""A matrix of independent $N(0, \sigma^2)$ entries: the prior that `ColumnNormal` has a closed-form KL to.

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


class KroneckerNormal(TorchDistribution):
    r"""A matrix $F$ whose entries are Normal with precision $R \otimes C + \tau I$, R over rows and C over columns.

    With $R = U_R\, \mathrm{diag}(\lambda)\, U_R^\top$ and $C = U_C\, \mathrm{diag}(\mu)\, U_C^\top$, the entries of
    $U_R^\top (F - m)\, U_C$ are independent with precision $\lambda_i \mu_j + \tau$. Bases may have fewer columns than
    rows: what they leave out has precision τ. No matrix over all entries is formed.

    Args:
        loc: Mean m, `[*batch, row, column]`.
        row_basis: $U_R$, `[*batch, row, a]`, orthonormal columns (or zero).
        row_values: $\lambda \ge 0$, `[*batch, a]`.
        column_basis: $U_C$, `[*batch, column, b]`, likewise.
        column_values: $\mu \ge 0$, `[*batch, b]`.
        precision: $\tau > 0$, `[]`.
    """

    arg_constraints = {"precision": constraints.positive}
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(
        self,
        loc: Float[Tensor, "*batch row column"],
        row_basis: Float[Tensor, "*batch row a"],
        row_values: Float[Tensor, "*batch a"],
        column_basis: Float[Tensor, "*batch column b"],
        column_values: Float[Tensor, "*batch b"],
        precision: Float[Tensor, ""],
        validate_args: bool | None = None,
    ):
        self.loc = loc
        self.row_basis, self.row_values = row_basis, row_values
        self.column_basis, self.column_values = column_basis, column_values
        self.precision = precision
        super().__init__(loc.shape[:-2], loc.shape[-2:], validate_args=validate_args)

    @property
    def eigenvalues(self) -> Tensor:
        r"""$\lambda_i \mu_j$, `[*batch, a, b]`."""
        return self.row_values[..., :, None] * self.column_values[..., None, :]

    @property
    def mean(self) -> Tensor:
        return self.loc

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "KroneckerNormal":
        batch_shape = torch.Size(batch_shape)
        matrices = (self.loc, self.row_basis, self.column_basis)
        loc, row_basis, column_basis = (value.expand(batch_shape + value.shape[-2:]) for value in matrices)
        row_values, column_values = (
            value.expand(batch_shape + value.shape[-1:]) for value in (self.row_values, self.column_values)
        )
        return KroneckerNormal(
            loc, row_basis, row_values, column_basis, column_values, self.precision, validate_args=False
        )

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        Z = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        shrink = (1 + self.eigenvalues / self.precision).rsqrt() - 1
        rotated = self.row_basis.mT @ Z @ self.column_basis
        return self.loc + (Z + self.row_basis @ (shrink * rotated) @ self.column_basis.mT) / self.precision.sqrt()

    def log_prob(self, value: Tensor) -> Tensor:
        centred = value - self.loc
        rotated = self.row_basis.mT @ centred @ self.column_basis
        square = self.precision * centred.square().sum((-2, -1)) + (self.eigenvalues * rotated.square()).sum((-2, -1))
        numbers = self.event_shape.numel()
        logdet = numbers * self.precision.log() + (self.eigenvalues / self.precision).log1p().sum((-2, -1))
        return (logdet - square - numbers * math.log(2 * math.pi)) / 2


class Flat(TorchDistribution):
    r"""The improper prior $p \propto 1$ over all reals: density 1, and a draw is zero.

    Pyro's `ImproperUniform` cannot be sampled, and so cannot stand in a program that is run for its sites' names.

    Args:
        event_shape: Shape of one value.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_rsample = True

    def __init__(self, event_shape: tuple[int, ...], batch_shape: tuple[int, ...] = ()):
        super().__init__(torch.Size(batch_shape), torch.Size(event_shape), validate_args=False)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "Flat":
        return Flat(self.event_shape, torch.Size(batch_shape))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return torch.zeros(self._extended_shape(torch.Size(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        return value.new_zeros(value.shape[: value.dim() - len(self.event_shape)])


class FixedNoise(TorchDistribution):
    """Noise about which nothing is learned: the guide draws it as the prior does.

    There is no parameter to differentiate, so that its draws count as reparameterised, and no divergence: the ELBO has
    no term for a site that the guide draws from a distribution of this kind.

    Args:
        event_shape: Shape of one value.
        like: A tensor whose dtype and device the draws have; torch's defaults without one.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_rsample = True

    def __init__(self, event_shape: tuple[int, ...], like: Tensor | None = None, batch_shape: tuple[int, ...] = ()):
        self.like = torch.empty(()) if like is None else like
        super().__init__(torch.Size(batch_shape), torch.Size(event_shape), validate_args=False)


class Mask(FixedNoise):
    r"""A vector whose entries are dropped (0) with probability p and kept (1) otherwise, independently, at a fixed p.

    Args:
        size: Entries.
        p: Probability that an entry is dropped, $0 \le p < 1$. At 0 nothing is drawn: every entry is 1.
        rescale: Whether kept entries are 1/(1−p), so that the mean is 1.
        like: A tensor whose dtype and device the draws have; torch's defaults without one.
    """

    support = constraints.independent(constraints.nonnegative, 1)

    def __init__(
        self,
        size: int,
        p: float,
        rescale: bool = False,
        like: Tensor | None = None,
        batch_shape: tuple[int, ...] = (),
    ):
        if not 0 <= p < 1:
            raise ValueError(f"p={p}: a probability of at least 0 and less than 1 is needed.")
        self.p = p
        self.rescale = rescale
        super().__init__((size,), like, batch_shape)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "Mask":
        return Mask(self.event_shape[0], self.p, self.rescale, self.like, tuple(batch_shape))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        if self.p == 0:
            return self.like.new_ones(shape)
        kept = self.like.new_empty(shape).bernoulli_(1 - self.p)
        return kept.div_(1 - self.p) if self.rescale else kept

    def log_prob(self, value: Tensor) -> Tensor:
        kept = value.ne(0).to(value.dtype)
        p = kept.new_tensor(self.p)
        return (torch.xlogy(kept, 1 - p) + torch.xlogy(1 - kept, p)).sum(-1)

    @property
    def mean(self) -> Tensor:
        return self.like.new_full(self.batch_shape + self.event_shape, 1.0 if self.rescale else 1 - self.p)


class Enumerated(Delta):
    """Equally probable values, which a plate of draws takes in order, from the first again after the last.

    Without draws it is at the last value, its mean by convention: that of the distribution belongs to no member.

    Args:
        values: The values, `[member, layer, …]`; the batch shape is `[layer]`.
    """

    def __init__(self, values: Tensor):
        self.values = values
        super().__init__(values[-1], event_dim=values.dim() - 2)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Delta:
        draws = batch_shape[:-1]
        if not draws:
            return self
        order = torch.arange(math.prod(draws), device=self.values.device) % len(self.values)
        return Delta(self.values[order].view(*draws, *self.values.shape[1:]), event_dim=self.event_dim)


class SharedNoise:
    """Standard Normal numbers, `[*draw, size]`, drawn once and the same for all distributions that refer to them."""

    def __init__(self, size: int):
        self.size = size
        self.value: Tensor | None = None

    def draw(self, draws: tuple[int, ...], like: Tensor) -> Tensor:
        """The numbers, of the dtype and on the device of `like`."""
        if self.value is None or self.value.shape[:-1] != draws:
            self.value = like.new_empty(*draws, self.size).normal_()
        return self.value


class Deviations(TorchDistribution):
    r"""The Gaussian of SWAG: $\bar\theta + \sigma z_1 / \sqrt2 + D z_2 / \sqrt{2 (M - 1)}$, the last term for M ≥ 2.

    Args:
        loc: $\bar\theta$, `[layer, …]`; the batch shape is `[layer]`.
        scale: $\sigma$, of that shape.
        deviations: D, `[M, layer, …]`.
        noise: $z_2$, which other distributions may share; its first M numbers are used.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, deviations: Tensor, noise: SharedNoise, draws: tuple[int, ...] = ()):
        self.loc, self.scale, self.deviations, self.noise, self.draws = loc, scale, deviations, noise, draws
        super().__init__(torch.Size((*draws, loc.shape[0])), loc.shape[1:], validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "Deviations":
        return Deviations(self.loc, self.scale, self.deviations, self.noise, tuple(batch_shape[:-1]))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        draws = (*sample_shape, *self.draws)
        value = self.loc + self.scale * torch.randn_like(self.loc.expand(*draws, *self.loc.shape)) / math.sqrt(2)
        size = len(self.deviations)
        if size < 2:
            return value
        noise = self.noise.draw(draws, self.loc)[..., :size]
        return value + torch.tensordot(noise, self.deviations, dims=1) / math.sqrt(2 * (size - 1))

    @property
    def mean(self) -> Tensor:
        return self.loc.expand(self.batch_shape + self.event_shape)


class Seed(FixedNoise):
    """A number that names a draw of noise, uniform on (−1, 1); 0, its mean, is for no noise.

    Args:
        silent: Whether there is no noise: every draw is 0.
        like: A tensor whose dtype and device the draws have; torch's defaults without one.
    """

    support = constraints.interval(-1, 1)

    def __init__(self, silent: bool = False, like: Tensor | None = None, batch_shape: tuple[int, ...] = ()):
        self.silent = silent
        super().__init__((), like, batch_shape)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "Seed":
        return Seed(self.silent, self.like, tuple(batch_shape))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        value = self.like.new_zeros(self._extended_shape(torch.Size(sample_shape)))
        return value if self.silent else value.uniform_(-1, 1)

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.full_like(value, -math.log(2))

    @property
    def mean(self) -> Tensor:
        return self.like.new_zeros(self.batch_shape)


class RelaxedMask(Independent):
    r"""A smoothed `Mask` with learned rates: entries $m_i = \sigma((\ell_i + \mathrm{logit}\, u_i) / \tau)$, u uniform.

    With $\ell = \ln((1 - p) / p)$, an entry tends, as $\tau \to 0$, to 1 with probability $1 - p$ and to 0 otherwise.
    The KL divergence to a `Mask` of rate $p^0$ is that of the hard masks, a sum over entries of
    $\mathrm{KL}(\mathrm{Bernoulli}(1 - p_i) \Vert \mathrm{Bernoulli}(1 - p^0))$. The draw is relaxed so that gradients
    reach p; the divergence has no need to be.

    Args:
        logits: $\ell$, `[*batch, size]`.
        temperature: $\tau > 0$.

    References:
        Maddison et al. (2016), [The Concrete Distribution](https://arxiv.org/abs/1611.00712).
    """

    def __init__(self, logits: Float[Tensor, "*batch size"], temperature: float):
        self.logits = logits
        self.temperature = temperature
        base = RelaxedBernoulli(logits.new_full((), temperature), logits=logits, validate_args=False)
        super().__init__(base, 1, validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "RelaxedMask":
        return RelaxedMask(self.logits.expand(torch.Size(batch_shape) + self.event_shape), self.temperature)


@register_kl(RelaxedMask, Mask)
def _kl_mask(q: RelaxedMask, p: Mask) -> Tensor:
    log_kept, log_dropped = F.logsigmoid(q.logits), F.logsigmoid(-q.logits)
    kept = log_kept.exp()
    return (kept * (log_kept - math.log1p(-p.p)) + (1 - kept) * (log_dropped - math.log(p.p))).sum(-1)


@register_kl(Dirichlet, Dirichlet)
def _kl_dirichlet(q: Dirichlet, p: Dirichlet) -> Tensor:
    # torch's formula, with components and their total in one tensor: a third of its operations.
    # The prior's constants are in single precision even where the guide is in double.
    concentrations = (q.concentration, p.concentration.to(q.concentration.dtype))
    a, b = (torch.cat([c, c.sum(-1, keepdim=True)], dim=-1) for c in concentrations)
    terms = torch.lgamma(b) - torch.lgamma(a) + (a - b) * torch.digamma(a)
    return terms[..., :-1].sum(-1) - terms[..., -1]


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


@register_kl(ColumnNormal, StandardColumns)
def _kl_columns(q: ColumnNormal, p: StandardColumns) -> Tensor:
    rank, columns = q.event_shape
    kl = columns / 2 * (q.trace / p.scale**2 - q.logdet + rank * (2 * math.log(p.scale) - 1))
    return kl if q.loc is None else kl + (q.loc / p.scale).square().sum((-2, -1)) / 2
