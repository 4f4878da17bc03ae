"""ScalaBL: a Gaussian over r numbers per layer, in the subspace that `A` and `B` span."""

import math
from dataclasses import dataclass
from typing import Literal

import pyro
import torch
from pyro import poutine
from torch import nn

from bayeslora import guides, priors
from bayeslora.adapters import Factors, Stack
from bayeslora.methods.fields import NonNegative, Positive, PositiveOrAuto
from bayeslora.methods.spreads import LearnedSpreads


@dataclass(frozen=True)
class ScalaBL(LearnedSpreads):
    r"""A Gaussian over the r scales of a layer's directions; `A` and `B` are points.

    For each layer, with $g \in \mathbb{R}^r$:

    $$\Delta W = s\, B\, \mathrm{diag}(g)\, A, \qquad p(g_i) = N(0, \sigma_p^2), \qquad q(g_i) = N(m_i, \omega_i^2).$$

    Learned: $A$, $B$, $m$ and $\omega$: $2r$ numbers per layer beyond LoRA's. The loss per example is the NLL at a draw
    of $g$ plus temperature / n times $\sum_{\mathrm{layers}} KL(q \,\Vert\, p)$, in nats; `A` and `B` have flat priors.

    Args:
        prior_scale: Standard deviation $\sigma_p$ of $g$, which has no unit and starts at mean 1; or `"learn"`, for
            each layer by empirical Bayes, $\sigma_p^2 = \overline{m_i^2 + \omega_i^2}$ after every step.
        init_scale: Largest starting value of $\omega$, which is drawn from U(`init_scale` / √2, `init_scale`).
        temperature: Multiplies the KL; or `"auto"`, that of several fits which predicts rows not trained on best.
        spread_rate: ρ, peak rate of the natural steps of ω (`natural`): in a step, its precision goes this part of the
            way to what prior and batch ask for. None for 20 / steps of the fit, and no more than ½.
        guide_learning_rate: Learning rate of ω with the Trainer's optimiser instead of natural steps.

    Raises:
        ValueError: If a field is not positive.

    Differs from the released code: `A` starts as LoRA's, $g$ at mean 1, and the KL is that of q to p.

    References:
        Samplawski et al. (2025), [ScalaBL](https://arxiv.org/abs/2506.21408).
    """

    name = "scalabl"
    usual_scale = 1.0
    prior_scale: Positive | Literal["learn"] = 1.0
    init_scale: Positive = 0.05
    temperature: PositiveOrAuto = 1.0
    spread_rate: Positive | None = None
    guide_learning_rate: NonNegative | None = None

    def stack_prior(self, stack: Stack) -> Factors:
        with stack.layers, poutine.scale(scale=self.temperature / stack.num_examples):
            g = self.sample_normals(stack, {"g": (stack.rank,)})["g"]
            A = pyro.sample(stack.site("A"), priors.flat(stack.A_shape))
            B = pyro.sample(stack.site("B"), priors.flat(stack.B_shape))
        return Factors(g[..., None] * A, B)

    def stack_guide(self, stack: Stack) -> nn.Module:
        scale = torch.empty(len(stack), stack.rank).uniform_(self.init_scale / math.sqrt(2), self.init_scale)
        return guides.Sites(
            stack,
            scale=self.temperature / stack.num_examples,
            **self.scales_of_prior(stack, "g"),
            g=guides.Normal(torch.ones(len(stack), stack.rank), scale),
            A=guides.Point(guides.kaiming(len(stack), *stack.A_shape)),
            B=guides.Point(torch.zeros(len(stack), *stack.B_shape)),
        )
