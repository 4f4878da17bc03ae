"""BLoB: a mean-field Gaussian over `A` whose standard deviations are squares."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from bayeslora import guides, priors
from bayeslora.adapters import Factors, Stack
from bayeslora.methods.fields import NonNegative, Positive, PositiveOrAuto
from bayeslora.methods.spreads import LearnedSpreads


@dataclass(frozen=True)
class BLoB(LearnedSpreads):
    r"""A Gaussian over every entry of `A`; `B` is a point.

    For each layer, with $A \in \mathbb{R}^{r \times d_{in}}$:

    $$p(A_{ij}) = N(0, \sigma_p^2), \qquad q(A_{ij}) = N(M_{ij}, \Omega_{ij}^2), \quad \Omega_{ij} = G_{ij}^2.$$

    Learned: $M$, $G$ and $B$. The loss per example is the NLL at a draw of `A` plus temperature / n times
    $\sum_{\mathrm{layers}} KL(q \,\Vert\, p)$, in nats; `B` has a flat prior.

    Args:
        prior_scale: Standard deviation $\sigma_p$, in units of the weights; or `"learn"`, for each layer by empirical
            Bayes, $\sigma_p^2 = \overline{M_{ij}^2 + \Omega_{ij}^2}$ after every step.
        init_root: Largest starting value of $G$, which is drawn from U(`init_root` / √2, `init_root`): at 0.05, Ω
            starts between 0.00125 and 0.0025, in units of the weights.
        temperature: Multiplies the KL; or `"auto"`, that of several fits which predicts rows not trained on best.
        spread_rate: ρ, peak rate of the natural steps of Ω (`natural`): in a step, its precision goes this part of the
            way to what prior and batch ask for. None for 20 / steps of the fit, and no more than ½.
        guide_learning_rate: Learning rate of $G$ with the Trainer's optimiser instead of natural steps, as in the
            paper: Ω then ends where rate times steps takes it.

    Raises:
        ValueError: If a field is not positive.

    Differs from the paper: weights are drawn once per step and particle, not perturbed per example or token (flipout);
    the KL's weight is temperature / n.

    References:
        Wang et al. (2024), [BLoB](https://arxiv.org/abs/2406.11675).
    """

    name = "blob"
    usual_scale = 0.2
    prior_scale: Positive | Literal["learn"] = 0.2
    init_root: Positive = 0.05
    temperature: PositiveOrAuto = 0.03
    spread_rate: Positive | None = None
    guide_learning_rate: NonNegative | None = None

    def stack_prior(self, stack: Stack) -> Factors:
        with stack.layers, poutine.scale(scale=self.temperature / stack.num_examples):
            A = self.sample_normals(stack, {"A": stack.A_shape})["A"]
            B = pyro.sample(stack.site("B"), priors.flat(stack.B_shape))
        return Factors(A, B)

    def stack_guide(self, stack: Stack) -> nn.Module:
        M = guides.kaiming(len(stack), *stack.A_shape)
        G = torch.empty_like(M).uniform_(self.init_root / math.sqrt(2), self.init_root)
        return guides.Sites(
            stack,
            scale=self.temperature / stack.num_examples,
            **self.scales_of_prior(stack, "A"),
            A=SquaredNormal(M, G),
            B=guides.Point(torch.zeros(len(stack), *stack.B_shape)),
        )


class SquaredNormal(guides.Site):
    """Independent Normal entries whose standard deviation is the square of what is learned.

    Args:
        loc: Starting mean, `[layer, …]`.
        sqrt_scale: Starting square root of the standard deviation, `[layer, …]`.
    """

    form = "root"

    def __init__(self, loc: Tensor, sqrt_scale: Tensor):
        super().__init__()
        self.loc = nn.Parameter(loc)
        self.sqrt_scale = nn.Parameter(sqrt_scale)

    def forward(self) -> dist.Distribution:
        return dist.Normal(self.loc, self.sqrt_scale.square()).to_event(self.loc.dim() - 1)

    def spreads(self) -> Iterator[nn.Parameter]:
        yield self.sqrt_scale
