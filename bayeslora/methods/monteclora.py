"""MonteCLoRA: a Dirichlet-weighted Gaussian mixture with Wishart covariance over the columns of `A`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from bayeslora import guides, priors
from bayeslora.adapters import Factors, Stack
from bayeslora.distributions import (
    ColumnNormal,
    Dirichlet,
    StandardColumns,
    WishartCholesky,
    expected_square_sum,
)
from bayeslora.methods.base import PerStackMethod
from bayeslora.types import Sites


@dataclass(frozen=True)
class MonteCLoRA(PerStackMethod):
    r"""Columns of `A` as a Dirichlet-weighted average of Gaussians with a Wishart covariance; `B` a point.

    For each layer, with $A \in \mathbb{R}^{r \times d_{in}}$ and column $i$ of it $a_i$:

    $$\pi \sim \mathrm{Dir}(\alpha), \quad \Sigma \sim W_r(\mathrm{diag}(v), \nu), \quad
      a_i = \mu_i + \epsilon \sum_k \pi_k S_{k,i}, \quad S_{k,i} \sim N(0, \Sigma).$$

    Given $\pi$ and $\Sigma$ the sum is exactly $N(0, (\sum_k \pi_k^2)\, \Sigma)$: one draw instead of K, whatever K is.
    Learned: $\mu$, $B$, and $r + K$ numbers more, $v$ and $\alpha$. The loss per example is

    $$\mathrm{NLL} + \frac{1}{L} \sum_{\mathrm{layers}} \Big( \eta\, (KL_D + KL_W + KL_N) + \sum_k \pi_k^2 \Big),$$

    a tempered negative ELBO: $KL_D$ of π to Dir(α⁰), $KL_W$ of Σ to $W_r(I, \nu)$ and $KL_N$ of one column of the noise
    to $N(0, I)$, in nats; the last sum is the paper's cooperative loss.

    Args:
        components: K, mixture components. They act only through $\sum_k \pi_k^2$.
        concentration: Prior concentration α⁰ of each component.
        concentration_init: Where the learned α starts: at the `"prior"`, or `"random"`, U(0, 1) per component.
        noise_ratio: c, standard deviation of the noise on an entry of `A` at the start, in units of the standard
            deviation of `A`'s initialisation, $(3 d_{in})^{-1/2}$. It sets ε per stack.
        sample_scale: ε itself, the paper's form, the same in every stack; replaces `noise_ratio`.
        kl_weight: η.
        cooperative: Whether the loss has the cooperative term.
        df: Degrees of freedom ν of Σ: `"features"` ($d_{in}$), `"rank"` (r), or a number of at least r.
        objective: `"paper"`, the loss above.
        analytic: Whether regularisers are taken in expectation over π and Σ, in closed form and free of noise, or at
            the draws, as the paper does.
        guide_learning_rate: Learning rate of v and α; None for the common one.

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
    noise_ratio: float = 4.0
    sample_scale: float | None = None
    kl_weight: float = 1e-5
    cooperative: bool = True
    df: Literal["features", "rank"] | float = "features"
    objective: Literal["paper"] = "paper"
    analytic: bool = True
    guide_learning_rate: float | None = None

    @classmethod
    def paper(cls, **fields: Any) -> "MonteCLoRA":
        """The paper's settings: K=4, ε=5e-3, α⁰=1, η=1e-5, cooperative loss, ν=d_in, regularisers at the draws."""
        return cls(**{"sample_scale": 5e-3, "analytic": False, **fields})

    def __post_init__(self) -> None:
        def require(holds: bool, field: str, what: str) -> None:
            if not holds:
                raise ValueError(f"{field}={getattr(self, field)!r}: {what}.")

        require(self.components >= 1, "components", "give a whole number of at least 1")
        require(self.concentration > 0, "concentration", "give a positive number")
        require(self.concentration_init in ("prior", "random"), "concentration_init", "give 'prior' or 'random'")
        require(self.noise_ratio >= 0, "noise_ratio", "give a number of at least 0")
        require(self.sample_scale is None or self.sample_scale >= 0, "sample_scale", "give a number of at least 0")
        require(self.kl_weight > 0, "kl_weight", "give a positive number, however small")
        require(self.objective == "paper", "objective", "the objective is 'paper'")
        if isinstance(self.df, str):
            require(self.df in ("features", "rank"), "df", "give 'features', 'rank' or a number")

    def stack_prior(self, stack: Stack) -> Factors:
        kl_scale = self.kl_weight / stack.num_layers
        df = self.degrees_of_freedom(stack)
        with stack.layers:
            with poutine.scale(scale=kl_scale):
                weights = pyro.sample(
                    f"{stack.name}.weights", Dirichlet(torch.full((self.components,), self.concentration))
                )
                pyro.sample(f"{stack.name}.cov_tril", WishartCholesky(df, torch.ones(stack.rank)))
            with poutine.scale(scale=kl_scale / stack.d_in):
                noise = pyro.sample(f"{stack.name}.noise", StandardColumns(stack.rank, stack.d_in))
            loc = pyro.sample(f"{stack.name}.loc", priors.flat(stack.A_shape))
            B = pyro.sample(f"{stack.name}.B", priors.flat(stack.B_shape))
        spread = self.scale_of_noise(stack) * weights.square().sum(-1).sqrt()
        return Factors(loc + spread[..., None, None] * noise, B)

    def stack_guide(self, stack: Stack) -> nn.Module:
        return MonteCLoRAGuide(self, stack)

    def degrees_of_freedom(self, stack: Stack) -> float:
        """ν of one stack."""
        if isinstance(self.df, str):
            return stack.d_in if self.df == "features" else stack.rank
        if self.df < stack.rank:
            raise ValueError(f"df={self.df}: Σ needs at least rank = {stack.rank} degrees of freedom.")
        return self.df

    def scale_of_noise(self, stack: Stack) -> float:
        r"""ε of one stack: `sample_scale`, or $c\, (3 d_{in})^{-1/2} / \sqrt{\nu\, E[\sum \pi^2]}$ at v = 1."""
        if self.sample_scale is not None:
            return self.sample_scale
        # Under the prior: a random start of α is meant to change the loudness.
        square_sum = (self.concentration + 1) / (self.components * self.concentration + 1)
        noise_sd = math.sqrt(self.degrees_of_freedom(stack) * square_sum)
        return self.noise_ratio / math.sqrt(3 * stack.d_in) / noise_sd

    def summaries(self, stack: Stack, sites: Sites) -> Mapping[str, tuple[Tensor, tuple[str, ...]]]:
        variance = sites["cov_tril"].square().sum((-2, -1)) / stack.rank
        return {"weights": (sites["weights"], ("component",)), "mean_variance": (variance, ())}


class MonteCLoRAGuide(nn.Module):
    """q over one stack's sites: the prior's families with α and v learned; points for μ and `B`.

    `noise` is conditional on `cov_tril`, as in the prior of Algorithm 1.
    """

    def __init__(self, method: MonteCLoRA, stack: Stack):
        super().__init__()
        self.method = method
        self.stack = stack
        self.df = method.degrees_of_freedom(stack)
        alpha = torch.full((len(stack), method.components), method.concentration)
        if method.concentration_init == "random":
            alpha = torch.rand_like(alpha).clamp(min=1e-3)  # U(0, 1); a concentration of 0 is outside the space
        self.log_concentration = nn.Parameter(alpha.log())
        self.log_scale_diag = nn.Parameter(torch.zeros(len(stack), stack.rank))
        self.loc = nn.Parameter(guides.kaiming(len(stack), *stack.A_shape))
        self.B = nn.Parameter(torch.zeros(len(stack), *stack.B_shape))

    def forward(self) -> None:
        method, stack = self.method, self.stack
        concentration = self.log_concentration.exp()
        covariance = WishartCholesky(self.df, self.log_scale_diag.exp())
        kl_scale = method.kl_weight / stack.num_layers
        with stack.layers:
            with poutine.scale(scale=kl_scale):
                weights = pyro.sample(f"{stack.name}.weights", Dirichlet(concentration))
                cov_tril = pyro.sample(f"{stack.name}.cov_tril", covariance)
            with poutine.scale(scale=kl_scale / stack.d_in):
                columns = ColumnNormal(cov_tril, stack.d_in, covariance if method.analytic else None)
                pyro.sample(f"{stack.name}.noise", columns)
            pyro.sample(f"{stack.name}.loc", dist.Delta(self.loc, event_dim=2))
            pyro.sample(f"{stack.name}.B", dist.Delta(self.B, event_dim=2))
            if method.cooperative:
                # In the guide, a factor enters the loss with a plus sign.
                square_sum = expected_square_sum(concentration) if method.analytic else weights.square().sum(-1)
                with poutine.scale(scale=1 / stack.num_layers):
                    pyro.factor(f"{stack.name}.cooperative", square_sum, has_rsample=True)
