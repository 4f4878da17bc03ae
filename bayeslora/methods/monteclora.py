"""MonteCLoRA: a Dirichlet-weighted Gaussian mixture with Wishart covariance over the columns of `A`."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from bayeslora import priors
from bayeslora.adapters import SVD, DoRA, Family, Full, LowRank, Stack
from bayeslora.distributions import (
    ColumnNormal,
    Dirichlet,
    StandardColumns,
    WishartCholesky,
    expected_square_sum,
)
from bayeslora.methods.base import PerStackMethod, Tuning
from bayeslora.tuning import nll_by_loudness
from bayeslora.types import Batch, Sites

logger = logging.getLogger(__name__)

DEFAULT_RATIO = 4.0
"""c by default, and where `"auto"` starts."""

TUNE_AFTER = (0.4, 0.6, 0.8, 1.0)
"""Fractions of training after which `"auto"` looks at held-out data."""

TUNE_DRAWS = 4

BASES: dict[str, tuple[Family, str]] = {
    "lora": (LowRank(), "A"),
    "full": (Full(), "weight"),
    "dora": (DoRA(), "A"),
    "adalora": (SVD(), "Q"),
}
"""What MonteCLoRA is put on: the adapter family, and its factor whose columns are random."""


@dataclass(frozen=True)
class MonteCLoRA(PerStackMethod):
    r"""Gaussian noise on the columns of `A`, with a Wishart covariance and Dirichlet weights; `B` is a point.

    For each layer, with $A \in \mathbb{R}^{r \times d_{in}}$ and column $i$ of it $a_i$:

    $$\pi \sim \mathrm{Dir}(\alpha), \quad \Sigma \sim W_r(\mathrm{diag}(v), \nu), \quad
      a_i = \mu_i + \epsilon \sum_k \pi_k S_{k,i}, \quad S_{k,i} \sim N(0, \Sigma).$$

    Given $\pi$ and $\Sigma$ the sum is exactly $N(0, (\sum_k \pi_k^2)\, \Sigma)$: one draw instead of K, whatever K is.
    Learned: $\mu$, $B$, and $r + K$ numbers more, $v$ and $\alpha$. The loss per example is

    $$\mathrm{NLL} + \frac{1}{L} \sum_{\mathrm{layers}} \Big( \eta\, (KL_D + KL_W + KL_N) + \sum_k \pi_k^2 \Big),$$

    a tempered negative ELBO: $KL_D$ of π to Dir(α⁰), $KL_W$ of Σ to $W_r(I, \nu)$ and $KL_N$ of one column of the noise
    to $N(0, I)$, in nats; the last sum is the paper's cooperative loss.

    On another `base`, another factor has these columns, and the remaining factors are points as `B` is.

    Args:
        components: K, mixture components. They act only through $\sum_k \pi_k^2$.
        concentration: Prior concentration α⁰ of each component.
        concentration_init: Where the learned α starts: at the `"prior"`, or `"random"`, U(0, 1) per component.
        noise_ratio: c, standard deviation of the noise on an entry of `A` at the start, in units of the standard
            deviation of `A`'s initialisation, $(3 d_{in})^{-1/2}$ (of $Q$'s, .02; of Δ, which starts at 0, a hundredth
            of `A`'s). It sets ε per stack. With `"auto"`, c is a point site too, found during training by the NLL of
            held-out data.
        sample_scale: ε itself, the paper's form, the same in every stack; replaces `noise_ratio`.
        kl_weight: η.
        cooperative: Whether the loss has the cooperative term.
        sparse: Whether π is replaced by the one-hot vector of its largest component: in law of `A`, K = 1.
        df: Degrees of freedom ν of Σ: `"features"` ($d_{in}$, and at least the rows of Σ), `"rank"` (the rows of Σ, r),
            a number of at least that, or `inf`: no Wishart distribution, Σ = diag(v), which ε then multiplies directly.
        objective: `"paper"`, the loss above, or `"elbo"`: NLL and `temperature` / n times all KLs in full, with priors
            $A_{ij} \sim N(0, \sigma_A^2)$ and $B_{ij} \sim N(0, \sigma_B^2)$ (`B` at a point), and no cooperative term.
        temperature: Multiplies the KLs of `"elbo"`.
        prior_scale: $\sigma_A$ of `"elbo"`, in units of the weights; None for the unit of `noise_ratio`.
        prior_scale_B: $\sigma_B$ of `"elbo"`, of `B` and any other point but DoRA's `m`, in units of the weights.
        analytic: Whether regularisers are taken in expectation over π and Σ, in closed form and free of noise, or at
            the draws, as the paper does. (Of `"elbo"`, the KL of `A` is in expectation over Σ, at the drawn π.)
        guide_learning_rate: Learning rate of v and α; None for the common one.
        post_hoc: Whether μ, `B` and the task head stay as `fit(init=…)` gave them, and only v and α are trained.
        base: Whose columns are random: those of `A` of `"lora"` or `"dora"`, of $Q$ of `"adalora"` (its $P \Lambda Q$,
            at a fixed rank and without its penalty), or of the change Δ of the weights, `"full"`. Σ has $d_{out}$ rows
            then, instead of r, and drawing the noise takes $d_{out}^2 d_{in}$ operations per layer and step.

    Raises:
        ValueError: If a field is out of its range.

    Differs from the paper: ε is set relative to the width of the layer; regularisers are analytic; prediction averages
    draws. `MonteCLoRA.paper()` has the paper's settings.

    References:
        Seth et al. (2024), [MonteCLoRA](https://arxiv.org/abs/2411.04358), §4.1, §4.4, Algorithm 1.
    """

    name = "monteclora"
    components: int = 4
    concentration: float = 1.0
    concentration_init: Literal["prior", "random"] = "prior"
    noise_ratio: float | Literal["auto"] = DEFAULT_RATIO
    sample_scale: float | None = None
    kl_weight: float = 1e-5
    cooperative: bool = True
    sparse: bool = False
    df: Literal["features", "rank"] | float = "features"
    objective: Literal["paper", "elbo"] = "paper"
    temperature: float = 1.0
    prior_scale: float | None = None
    prior_scale_B: float = 1.0
    analytic: bool = True
    guide_learning_rate: float | None = None
    post_hoc: bool = False
    base: Literal["lora", "full", "dora", "adalora"] = "lora"

    @classmethod
    def paper(cls, **fields: Any) -> "MonteCLoRA":
        """The paper's settings: K=4, ε=5e-3, α⁰=1, η=1e-5, cooperative loss, ν=d_in, regularisers at the draws."""
        return cls(**{"sample_scale": 5e-3, "analytic": False, **fields})

    def __post_init__(self) -> None:
        self.require(self.base in BASES, "base", f"give one of {', '.join(BASES)}")
        self.require(self.components >= 1, "components", "give a whole number of at least 1")
        self.require(self.concentration_init in ("prior", "random"), "concentration_init", "give 'prior' or 'random'")
        self.require(self.objective in ("paper", "elbo"), "objective", "give 'paper' or 'elbo'")
        for field in ("concentration", "kl_weight", "temperature", "prior_scale_B"):
            self.require(getattr(self, field) > 0, field, "give a positive number, however small")
        self.require(self.prior_scale is None or self.prior_scale > 0, "prior_scale", "give a positive number, or None")
        if isinstance(self.noise_ratio, str):
            self.require(self.noise_ratio == "auto", "noise_ratio", "give a number of at least 0, or 'auto'")
            self.require(
                self.sample_scale is None, "sample_scale", "it would replace noise_ratio='auto'; give one of them"
            )
        else:
            self.require(self.noise_ratio >= 0, "noise_ratio", "give a number of at least 0, or 'auto'")
        self.require(self.sample_scale is None or self.sample_scale >= 0, "sample_scale", "give a number of at least 0")
        if isinstance(self.df, str):
            self.require(self.df in ("features", "rank"), "df", "give 'features', 'rank' or a number")
        if self.objective == "elbo":
            silent = 0 in (self.noise_ratio, self.sample_scale)
            self.require(not silent, "objective", "'elbo' needs noise: a point has no divergence from a Normal prior")

    @property
    def family(self) -> Family:  # type: ignore[override]
        """The adapter family of `base`."""
        return BASES[self.base][0]

    @property
    def noisy(self) -> str:
        """The factor whose columns are random."""
        return BASES[self.base][1]

    def stack_prior(self, stack: Stack) -> Any:
        with stack.layers:
            ratio = self.noise_ratio
            if ratio == "auto":
                ratio = pyro.sample(f"{stack.name}.noise_ratio", priors.flat(()))
            with poutine.scale(scale=self.kl_scale(stack)):
                alpha = torch.full((self.components,), self.concentration)
                weights = pyro.sample(f"{stack.name}.weights", Dirichlet(alpha))
                pyro.sample(
                    f"{stack.name}.cov_tril", self.covariance(stack, torch.ones(self.rows(stack)), is_prior=True)
                )
            if self.objective == "elbo":
                with poutine.scale(scale=self.kl_scale(stack)):
                    columns = StandardColumns(self.rows(stack), stack.d_in, self.prior_scale or self.unit(stack))
                    factor = pyro.sample(f"{stack.name}.{self.noisy}", columns)
                    points = self.sample_points(stack, self.prior_scale_B)
            else:
                with poutine.scale(scale=self.kl_scale(stack) / stack.d_in):
                    noise = pyro.sample(f"{stack.name}.noise", StandardColumns(self.rows(stack), stack.d_in))
                loc = pyro.sample(f"{stack.name}.loc", priors.flat(stack.shapes[self.noisy]))
                factor = loc + self.spread(stack, weights, ratio)[..., None, None] * noise
                points = self.sample_points(stack)
        return stack.family.factors(**{self.noisy: factor}, **points)

    def sample_points(self, stack: Stack, scale: float | None = None) -> dict[str, Tensor]:
        """The factors without noise, under Normal priors of a scale or flat ones; of DoRA's `m`, always flat."""

        def prior(name: str) -> dist.Distribution:
            if scale is None or name in stack.measured:
                return priors.flat(stack.shapes[name])
            return priors.normal(stack.shapes[name], scale)

        return {name: pyro.sample(f"{stack.name}.{name}", prior(name)) for name in self.points(stack)}

    def points(self, stack: Stack) -> list[str]:
        """Names of the factors without noise."""
        return [name for name in stack.shapes if name != self.noisy]

    def rows(self, stack: Stack) -> int:
        """Rows of the random factor, which are those of Σ: r, or $d_{out}$ of full weights."""
        return stack.shapes[self.noisy][0]

    def stack_guide(self, stack: Stack) -> nn.Module:
        return MonteCLoRAGuide(self, stack)

    def kl_scale(self, stack: Stack) -> float:
        """What multiplies one layer's KLs: η / L of the paper's objective, temperature / n of the ELBO."""
        if self.objective == "elbo":
            return self.temperature / stack.num_examples
        return self.kl_weight / stack.num_layers

    def covariance(self, stack: Stack, scale_diag: Tensor, is_prior: bool = False) -> dist.Distribution:
        """The distribution of Λ; without a Wishart distribution, the point diag(√v), which has no prior."""
        if self.degrees_of_freedom(stack) < math.inf:
            return WishartCholesky(self.degrees_of_freedom(stack), scale_diag)
        if is_prior:
            return priors.flat((self.rows(stack), self.rows(stack)))
        return dist.Delta(torch.diag_embed(scale_diag.sqrt()), event_dim=2)

    def spread(self, stack: Stack, weights: Tensor, ratio: float | Tensor) -> Tensor:
        r"""$\epsilon \sqrt{\sum_k \pi_k^2}$, `[*draw, layer]`."""
        return self.scale_of_noise(stack, ratio) * self.square_sum(weights).sqrt()

    def square_sum(self, weights: Tensor) -> Tensor:
        r"""$\sum_k \pi_k^2$, which is 1 for a one-hot π, `[*draw, layer]`."""
        return torch.ones_like(weights[..., 0]) if self.sparse else weights.square().sum(-1)

    def degrees_of_freedom(self, stack: Stack) -> float:
        """ν of one stack."""
        if isinstance(self.df, str):
            return max(stack.d_in, self.rows(stack)) if self.df == "features" else self.rows(stack)
        if not self.df >= self.rows(stack):
            what = "rank" if stack.family.has_rank else "d_out"
            raise ValueError(f"df={self.df}: Σ needs at least {what} = {self.rows(stack)} degrees of freedom.")
        return self.df

    def scale_of_noise(self, stack: Stack, ratio: float | Tensor) -> float | Tensor:
        r"""ε of one stack: `sample_scale`, or c units over $\sqrt{\nu\, E[\sum \pi^2]}$ at v = 1."""
        if self.sample_scale is not None:
            return self.sample_scale
        # Under the prior: a random start of α is meant to change the loudness.
        square_sum = 1.0 if self.sparse else (self.concentration + 1) / (self.components * self.concentration + 1)
        df = self.degrees_of_freedom(stack)
        return ratio * self.unit(stack) / math.sqrt(square_sum * (df if df < math.inf else 1))

    def unit(self, stack: Stack) -> float:
        """What the noise is measured in: the standard deviation of the random factor's start.

        Δ starts at 0: a hundredth of what a new layer's weights would start with.
        """
        if self.base == "adalora":
            return SVD.init_scale
        return (0.01 if self.base == "full" else 1) / math.sqrt(3 * stack.d_in)

    def tuning(self) -> Tuning | None:
        return Tuning(TUNE_AFTER, TUNE_DRAWS + 1) if self.noise_ratio == "auto" else None

    def tune(self, program: Any, batches: Sequence[Batch]) -> None:
        """Multiply c by the factor from 1/2 to √2 with the least held-out NLL, under a log-normal prior on c.

        The prior, an octave around the default, decides where few examples say little. A louder c has to be confirmed
        by draws of its own.
        """
        ratios = [guide.noise_ratio for guide in program.guide.values()]
        num_examples = sum(len(batch["labels"]) for batch in batches)

        def loss(factors: Tensor) -> Tensor:
            octaves = (float(ratios[0][0]) * factors / DEFAULT_RATIO).log2()
            return nll_by_loudness(program, batches, factors, TUNE_DRAWS) + octaves.square() / (2 * num_examples)

        factors = torch.logspace(-1, 0.5, 25, base=2, dtype=torch.float64)
        losses = loss(factors)
        best = float(factors[losses.argmin()])
        torch._foreach_mul_(ratios, best)
        if best > 1 and loss(torch.ones(1)) > losses[factors == 1]:
            torch._foreach_div_(ratios, best)
        logger.info("Noise ratio: %.2f.", float(ratios[0][0]))

    def summaries(self, stack: Stack, sites: Sites) -> Mapping[str, tuple[Tensor, tuple[str, ...]]]:
        variance = sites["cov_tril"].square().sum((-2, -1)) / self.rows(stack)
        values = {"weights": (sites["weights"], ("component",)), "mean_variance": (variance, ())}
        return values | ({"noise_ratio": (sites["noise_ratio"], ())} if "noise_ratio" in sites else {})


class MonteCLoRAGuide(nn.Module):
    """q over one stack's sites: the prior's families with α and v learned; points for μ and the other factors.

    The noise is conditional on `cov_tril`, as in Algorithm 1 (and `A`, of the ELBO, on `weights` too).
    """

    loc: nn.Parameter

    def __init__(self, method: MonteCLoRA, stack: Stack):
        super().__init__()
        self.method = method
        self.stack = stack
        method.degrees_of_freedom(stack)  # refuses what does not fit before training starts
        alpha = torch.full((len(stack), method.components), method.concentration)
        if method.concentration_init == "random":
            alpha = torch.rand_like(alpha).clamp(min=1e-3)  # U(0, 1); a concentration of 0 is outside the space
        self.log_concentration = nn.Parameter(alpha.log())
        self.log_scale_diag = nn.Parameter(torch.zeros(len(stack), method.rows(stack)))
        for name, value in stack.initial()._asdict().items():
            parameter = nn.Parameter(value, requires_grad=not method.post_hoc)
            self.register_parameter("loc" if name == method.noisy else name, parameter)
        if method.noise_ratio == "auto":
            self.register_buffer("noise_ratio", torch.full((len(stack),), DEFAULT_RATIO))

    def forward(self) -> None:
        method, stack = self.method, self.stack
        kl_scale = method.kl_scale(stack)
        concentration = self.log_concentration.exp()
        covariance = method.covariance(stack, self.log_scale_diag.exp())
        # A point has no expectation to take: its draw is exact.
        integrated = covariance if method.analytic and isinstance(covariance, WishartCholesky) else None
        with stack.layers:
            ratio = method.noise_ratio
            if ratio == "auto":
                ratio = pyro.sample(f"{stack.name}.noise_ratio", dist.Delta(self.noise_ratio))
            with poutine.scale(scale=kl_scale):
                weights = pyro.sample(f"{stack.name}.weights", Dirichlet(concentration))
                cov_tril = pyro.sample(f"{stack.name}.cov_tril", covariance)
            if method.objective == "elbo":
                with poutine.scale(scale=kl_scale):
                    spread = method.spread(stack, weights, ratio)
                    columns = ColumnNormal(
                        cov_tril, stack.d_in, integrated, self.loc.expand(*spread.shape, -1, -1), spread
                    )
                    pyro.sample(f"{stack.name}.{method.noisy}", columns)
                    self._sample_points()
                return
            with poutine.scale(scale=kl_scale / stack.d_in):
                pyro.sample(f"{stack.name}.noise", ColumnNormal(cov_tril, stack.d_in, integrated))
            pyro.sample(f"{stack.name}.loc", dist.Delta(self.loc, event_dim=2))
            self._sample_points()
            if method.cooperative and not method.sparse:
                # In the guide, a factor enters the loss with a plus sign.
                square_sum = expected_square_sum(concentration) if method.analytic else method.square_sum(weights)
                with poutine.scale(scale=1 / stack.num_layers):
                    pyro.factor(f"{stack.name}.cooperative", square_sum, has_rsample=True)

    def _sample_points(self) -> None:
        for name in self.method.points(self.stack):
            value = self.get_parameter(name)
            pyro.sample(f"{self.stack.name}.{name}", dist.Delta(value, event_dim=value.dim() - 1))

    def start(self, factors: Any) -> None:
        """Begin at trained factors."""
        with torch.no_grad():
            for name, value in factors._asdict().items():
                self.get_parameter("loc" if name == self.method.noisy else name).copy_(value)
