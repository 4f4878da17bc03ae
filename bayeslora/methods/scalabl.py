"""ScalaBL: a Gaussian over r numbers per layer, in the subspace that `A` and `B` span."""

import math
from dataclasses import dataclass

import pyro
import torch
from pyro import poutine
from torch import nn

from bayeslora import guides, priors
from bayeslora.adapters import Factors, Stack
from bayeslora.methods.base import PerStackMethod
from bayeslora.methods.fields import NonNegative, Positive


@dataclass(frozen=True)
class ScalaBL(PerStackMethod):
    r"""A Gaussian over the r scales of a layer's directions; `A` and `B` are points.

    For each layer, with $g \in \mathbb{R}^r$:

    $$\Delta W = s\, B\, \mathrm{diag}(g)\, A, \qquad p(g_i) = N(0, \sigma_p^2), \qquad q(g_i) = N(m_i, \omega_i^2).$$

    Learned: $A$, $B$, $m$ and $\omega$: $2r$ numbers per layer beyond LoRA's. The loss per example is the NLL at a draw
    of $g$ plus temperature / n times $\sum_{\mathrm{layers}} KL(q \,\Vert\, p)$, in nats; `A` and `B` have flat priors.

    Args:
        prior_scale: Standard deviation $\sigma_p$ of $g$, which has no unit and starts at mean 1.
        init_scale: Largest starting value of $\omega$, which is drawn from U(`init_scale` / √2, `init_scale`).
        temperature: Multiplies the KL.
        guide_learning_rate: Learning rate of $\omega$; None for the common rate.

    Raises:
        ValueError: If a field is not positive.

    Differs from the released code: `A` starts as LoRA's, $g$ at mean 1, and the KL is that of q to p.

    References:
        Samplawski et al. (2025), [ScalaBL](https://arxiv.org/abs/2506.21408).
    """

    name = "scalabl"
    prior_scale: Positive = 1.0
    init_scale: Positive = 0.05
    temperature: Positive = 1.0
    guide_learning_rate: NonNegative | None = None

    def stack_prior(self, stack: Stack) -> Factors:
        with stack.layers, poutine.scale(scale=self.temperature / stack.num_examples):
            g = pyro.sample(stack.site("g"), priors.normal((stack.rank,), self.prior_scale))
            A = pyro.sample(stack.site("A"), priors.flat(stack.A_shape))
            B = pyro.sample(stack.site("B"), priors.flat(stack.B_shape))
        return Factors(g[..., None] * A, B)

    def stack_guide(self, stack: Stack) -> nn.Module:
        scale = torch.empty(len(stack), stack.rank).uniform_(self.init_scale / math.sqrt(2), self.init_scale)
        return guides.Sites(
            stack,
            scale=self.temperature / stack.num_examples,
            g=guides.Normal(torch.ones(len(stack), stack.rank), scale),
            A=guides.Point(guides.kaiming(len(stack), *stack.A_shape)),
            B=guides.Point(torch.zeros(len(stack), *stack.B_shape)),
        )
