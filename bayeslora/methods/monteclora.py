"""MonteCLoRA: a Dirichlet-weighted Gaussian mixture with Wishart covariance over the columns of `A`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from bayeslora import priors
from bayeslora.adapters import Stack
from bayeslora.distributions import ColumnNormal, Dirichlet, StandardColumns, WishartCholesky, expected_square_sum
from bayeslora.methods import monteclora_elbo
from bayeslora.methods.fields import Few, NonNegative, Positive, Unbounded
from bayeslora.methods.monteclora_noise import NoisyColumns
from bayeslora.tuning import USUAL_RATIO
from bayeslora.types import FactorTuple, Sites


@dataclass(frozen=True)
class MonteCLoRA(NoisyColumns):
    r"""Gaussian noise on the columns of `A`, with a Wishart covariance and Dirichlet weights; `B` is a point.

    For each layer, with $A \in \mathbb{R}^{r \times d_{in}}$ and column $i$ of it $a_i$:

    $$\pi \sim \mathrm{Dir}(\alpha), \quad \Sigma \sim W_r(\mathrm{diag}(v), \nu), \quad
      a_i = \mu_i + \epsilon \sum_k \pi_k S_{k,i}, \quad S_{k,i} \sim N(0, \Sigma).$$

    Given $\pi$ and $\Sigma$ the sum is exactly $N(0, (\sum_k \pi_k^2)\, \Sigma)$: one draw is enough, whatever K is.
    Learned: $\mu$, $B$, and $r + K$ numbers more, $v$ and $\alpha$. The loss per example is

    $$\mathrm{NLL} + \frac{1}{L} \sum_{\mathrm{layers}} \Big( \eta\, (KL_D + KL_W + KL_N) + \sum_k \pi_k^2 \Big),$$

    a tempered negative ELBO: $KL_D$ of π to Dir(α⁰), $KL_W$ of Σ to $W_r(I, \nu)$ and $KL_N$ of one column of the noise
    to $N(0, I)$, in nats; the last sum is the paper's cooperative loss.

    With another `base`, another factor has these columns, and the remaining factors are points, as `B` is here.

    Args:
        components: K, mixture components. They act only through $\sum_k \pi_k^2$.
        concentration: Prior concentration α⁰ of each component.
        concentration_init: Where the learned α starts: at the `"prior"`, or `"random"`, U(0, 1) per component.
        noise_ratio: c, standard deviation of the noise on an entry of `A` at the start, in units of the standard
            deviation of `A`'s initialisation, $(3 d_{in})^{-1/2}$ (of $Q$'s, .02; of Δ, which starts at 0, a hundredth
            of `A`'s). It sets ε per stack. With `"auto"`, c is a point site too, chosen during training by the NLL of
            held-out data.
        sample_scale: ε itself, as in the paper, the same in every stack; it replaces `noise_ratio`.
        kl_weight: η.
        cooperative: Whether the loss has the cooperative term.
        sparse: Whether π is replaced by the one-hot vector of its largest component: in distribution of `A`, K = 1.
        df: Degrees of freedom ν of Σ: `"features"` ($d_{in}$, and at least the rows of Σ), `"rank"` (the rows of Σ, r),
            a number of at least that, or `inf`: no Wishart distribution, Σ = diag(v), which ε then scales directly.
        objective: `"paper"`, the loss above, or `"elbo"`: NLL and `temperature` / n times all KLs in full, with priors
            $a_i \mid \pi, \Sigma \sim N(0, \epsilon^2 \sum_k \pi_k^2\, \Sigma)$ and $B_{ij} \sim N(0, \sigma_B^2)$.
        temperature: Multiplies the KLs of `"elbo"`.
        prior_scale: Standard deviation of `A` under the prior of `"elbo"`, which sets ε; None for `noise_ratio`'s.
        prior_scale_B: $\sigma_B$ of `"elbo"`, of `B` and any other point but DoRA's `m`, in units of the weights.
        analytic: Whether regularisers are taken in expectation over π and Σ, in closed form and free of noise, or at
            the draws, as the paper does. (Of `"elbo"`, the KL of `A` is in expectation over Σ, at the drawn π.)
        guide_learning_rate: Learning rate of v and α; None for the common rate.
        post_hoc: Whether μ, `B` and the task head stay as they were passed to `fit(init=…)`; only v and α are trained.
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
    components: Few = 4
    concentration: Positive = 1.0
    concentration_init: Literal["prior", "random"] = "prior"
    noise_ratio: NonNegative | Literal["auto"] = USUAL_RATIO
    sample_scale: NonNegative | None = None
    kl_weight: Positive = 1e-5
    cooperative: bool = True
    sparse: bool = False
    df: Literal["features", "rank"] | Positive | Unbounded = "features"
    objective: Literal["paper", "elbo"] = "paper"
    temperature: Positive = 1.0
    prior_scale: Positive | None = None
    prior_scale_B: Positive = 1.0
    analytic: bool = True
    guide_learning_rate: NonNegative | None = None
    post_hoc: bool = False
    base: Literal["lora", "full", "dora", "adalora"] = "lora"

    @classmethod
    def paper(cls, **fields: Any) -> "MonteCLoRA":
        """Make a method with the paper's K=4, ε=5e-3, α⁰=1, η=1e-5, cooperative loss, ν=d_in, regularisers at draws."""
        return cls(**{"sample_scale": 5e-3, "analytic": False, **fields})

    def summaries(self, stack: Stack, sites: Sites) -> Mapping[str, tuple[Tensor, tuple[str, ...]]]:
        variance = sites["cov_tril"].square().sum((-2, -1)) / self.rows(stack)
        values = {"weights": (sites["weights"], ("component",)), "mean_variance": (variance, ())}
        return values | ({"noise_ratio": (sites["noise_ratio"], ())} if "noise_ratio" in sites else {})

    def stack_prior(self, stack: Stack) -> FactorTuple:
        if self.objective == "elbo":
            return monteclora_elbo.prior(self, stack)
        eta, rows = self.kl_weight / stack.num_layers, self.rows(stack)
        with stack.layers:
            epsilon = self.scale_of_noise(stack, self.ratio(stack))
            with poutine.scale(scale=eta):
                prior = torch.full((self.components,), float(self.concentration))
                pi = pyro.sample(stack.site("weights"), Dirichlet(prior))
                pyro.sample(stack.site("cov_tril"), self.covariance(stack, torch.ones(rows), is_prior=True))
            with poutine.scale(scale=eta / stack.d_in):
                # Given π, and Σ with its Cholesky factor cov_tril, Σ_k π_k S_ki is √(Σ_k π_k²) times this.
                noise = pyro.sample(stack.site("noise"), StandardColumns(rows, stack.d_in))
            mu = pyro.sample(stack.site("loc"), priors.flat((rows, stack.d_in)))
            points = {n: pyro.sample(stack.site(n), priors.flat(stack.shapes[n])) for n in self.points(stack)}
        A = mu + (epsilon * self.square_sum(pi).sqrt())[..., None, None] * noise
        return stack.family.factors(**{self.noisy: A}, **points)

    def stack_guide(self, stack: Stack) -> nn.Module:
        return MonteCLoRAGuide(self, stack)


class MonteCLoRAGuide(nn.Module):
    """q over one stack's sites: the prior's families with α and v learned; points for μ and the other factors.

    The noise is conditional on `cov_tril`, as in Algorithm 1 (and `A`, of the ELBO, on `weights` too).
    """

    loc: nn.Parameter
    noise_ratio: Tensor | None
    nonnegative = ("noise_ratio",)

    def __init__(self, method: MonteCLoRA, stack: Stack):
        super().__init__()
        self.method = method
        self.stack = stack
        method.degrees_of_freedom(stack)  # raises before training starts if df does not fit
        alpha = torch.full((len(stack), method.components), float(method.concentration))
        if method.concentration_init == "random":
            alpha = torch.rand_like(alpha).clamp(min=1e-3)  # U(0, 1), without the concentration 0, which is not allowed
        self.log_concentration = nn.Parameter(alpha.log())
        self.log_scale_diag = nn.Parameter(torch.zeros(len(stack), method.rows(stack)))
        for name, value in stack.initial()._asdict().items():
            parameter = nn.Parameter(value, requires_grad=not method.post_hoc)
            self.register_parameter("loc" if name == method.noisy else name, parameter)
        ratio = torch.full((len(stack),), USUAL_RATIO) if method.noise_ratio == "auto" else None
        self.register_buffer("noise_ratio", ratio)

    def forward(self) -> None:
        method, stack = self.method, self.stack
        if method.objective == "elbo":
            return monteclora_elbo.guide(self)
        eta = method.kl_weight / stack.num_layers
        q_pi, q_covariance, integrated = self.mixture()
        with stack.layers:
            method.ratio(stack, self.noise_ratio)
            with poutine.scale(scale=eta):
                pi = pyro.sample(stack.site("weights"), q_pi)
                cov_tril = pyro.sample(stack.site("cov_tril"), q_covariance)
            with poutine.scale(scale=eta / stack.d_in):
                pyro.sample(stack.site("noise"), ColumnNormal(cov_tril, stack.d_in, integrated))
            pyro.sample(stack.site("loc"), dist.Delta(self.loc, event_dim=2))
            self.sample_points()
            if method.cooperative and not method.sparse:
                # In the guide, a factor enters the loss with a plus sign.
                square_sum = expected_square_sum(q_pi.concentration) if method.analytic else method.square_sum(pi)
                with poutine.scale(scale=1 / stack.num_layers):
                    pyro.factor(stack.site("cooperative"), square_sum, has_rsample=True)

    def mixture(self) -> tuple[Dirichlet, dist.Distribution, WishartCholesky | None]:
        """Return q(π), q(Λ), and q(Λ) again if KLs of the noise are taken in expectation over it, else None."""
        q_pi = Dirichlet(self.log_concentration.exp())
        covariance = self.method.covariance(self.stack, self.log_scale_diag.exp())
        # A point has no expectation to take: its draw is exact.
        integrated = covariance if self.method.analytic and isinstance(covariance, WishartCholesky) else None
        return q_pi, covariance, integrated

    def spreads(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that describe the noise: α and v."""
        yield from (self.log_concentration, self.log_scale_diag)

    def sample_points(self) -> None:
        """Sample the factors without noise, which are points."""
        for name in self.method.points(self.stack):
            value = self.get_parameter(name)
            pyro.sample(self.stack.site(name), dist.Delta(value, event_dim=value.dim() - 1))

    def start(self, factors: FactorTuple) -> None:
        """Start from trained factors."""
        with torch.no_grad():
            for name, value in factors._asdict().items():
                self.get_parameter("loc" if name == self.method.noisy else name).copy_(value)
