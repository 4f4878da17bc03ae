"""BLoB: a mean-field Gaussian over `A` whose standard deviations are squares."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from bayeslora import guides, priors
from bayeslora.adapters import Factors, Stack
from bayeslora.methods.base import PerStackMethod
from bayeslora.methods.fields import NonNegative, Positive


@dataclass(frozen=True)
class BLoB(PerStackMethod):
    r"""A Gaussian over every entry of `A`; `B` is a point.

    For each layer, with $A \in \mathbb{R}^{r \times d_{in}}$:

    $$p(A_{ij}) = N(0, \sigma_p^2), \qquad q(A_{ij}) = N(M_{ij}, \Omega_{ij}^2), \quad \Omega_{ij} = G_{ij}^2.$$

    Learned: $M$, $G$ and $B$. The loss per example is the NLL at a draw of `A` plus temperature / n times
    $\sum_{\mathrm{layers}} KL(q \,\Vert\, p)$, in nats; `B` has a flat prior.

    Args:
        prior_scale: Standard deviation $\sigma_p$, in units of the weights.
        init_root: Largest starting value of $G$, which is drawn from U(`init_root` / √2, `init_root`): at 0.05, Ω
            starts between 0.00125 and 0.0025, in units of the weights.
        temperature: Multiplies the KL.
        guide_learning_rate: Learning rate of $G$; None for the common rate.

    Raises:
        ValueError: If a field is not positive.

    Differs from the paper: weights are drawn once per step and particle, not perturbed per example or token (flipout);
    the KL's weight is temperature / n.

    References:
        Wang et al. (2024), [BLoB](https://arxiv.org/abs/2406.11675).
    """

    name = "blob"
    prior_scale: Positive = 0.2
    init_root: Positive = 0.05
    temperature: Positive = 1.0
    guide_learning_rate: NonNegative | None = None

    def stack_prior(self, stack: Stack) -> Factors:
        with stack.layers, poutine.scale(scale=self.temperature / stack.num_examples):
            A = pyro.sample(stack.site("A"), priors.normal(stack.A_shape, self.prior_scale))
            B = pyro.sample(stack.site("B"), priors.flat(stack.B_shape))
        return Factors(A, B)

    def stack_guide(self, stack: Stack) -> nn.Module:
        M = guides.kaiming(len(stack), *stack.A_shape)
        G = torch.empty_like(M).uniform_(self.init_root / math.sqrt(2), self.init_root)
        return guides.Sites(
            stack,
            scale=self.temperature / stack.num_examples,
            A=SquaredNormal(M, G),
            B=guides.Point(torch.zeros(len(stack), *stack.B_shape)),
        )


class SquaredNormal(guides.Site):
    r"""Independent Normal entries whose standard deviation is the square of what is learned.

    Adam's steps have the size of the learning rate η. A step of the root $G$ multiplies the standard deviation by about
    $1 + 2 \eta / G$, a step of its logarithm by $1 + \eta$: only the root gets off its start in a short fit.

    Args:
        loc: Starting mean, `[layer, …]`.
        sqrt_scale: Starting square root of the standard deviation, `[layer, …]`.
    """

    def __init__(self, loc: Tensor, sqrt_scale: Tensor):
        super().__init__()
        self.loc = nn.Parameter(loc)
        self.sqrt_scale = nn.Parameter(sqrt_scale)

    def forward(self) -> dist.Distribution:
        return dist.Normal(self.loc, self.sqrt_scale.square()).to_event(self.loc.dim() - 1)

    def spreads(self) -> Iterator[nn.Parameter]:
        yield self.sqrt_scale
