r"""What methods with learned Gaussian spreads share: the steps of the spreads, and a prior whose scale is learned too.

The scale of a Gaussian prior that maximises the evidence lower bound (empirical Bayes) has a closed form. For the d
numbers of a factor of one layer, with means m and standard deviations s,

$$\sigma_p^2 = \frac1d \sum_j (m_j^2 + s_j^2).$$

It is set after every step. As a site of its own, at a point and with a flat prior, it reaches prior and guide alike.
"""

from collections.abc import Mapping
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from bayeslora import guides, natural, priors
from bayeslora.adapters import Stack
from bayeslora.dials import Dial
from bayeslora.fitted import FittedProgram
from bayeslora.methods.base import PerStackMethod

REACH = 20.0
"""Sum of the default rates of a fit at a constant rate: one that decays to 0 leaves e⁻¹⁰ of a precision's distance."""

MOST = 0.5
"""Largest default rate: a batch has its noise."""


class LearnedSpreads(PerStackMethod):
    """A method whose Gaussian spreads take natural steps, and whose prior's scale may be learned.

    Attributes:
        spread_rate: Peak rate ρ of the natural steps; None for 20 / steps of the fit, but no more than ½.
        prior_scale: The standard deviation of the prior, or `"learn"`.
        usual_scale: Where a learned one starts.
    """

    dial = Dial("temperature", (0.003, 0.01, 0.03, 0.1, 0.3, 1.0))
    prior_scale: float | Literal["learn"]
    usual_scale: float

    def optimizer_groups(self, program: FittedProgram, learning_rate: float) -> list[natural.Group]:
        if self.guide_learning_rate is not None:
            return []
        return natural.of_spreads(guides.gaussians(program.guide), self.rate_of_spreads(program))

    def rate_of_spreads(self, program: FittedProgram) -> float:
        """Return the peak rate of natural steps."""
        return min(REACH / program.num_steps, MOST) if self.spread_rate is None else self.spread_rate

    def scale_of_prior(self, stack: Stack, name: str) -> float | Tensor:
        """Return the prior's standard deviation of a factor: the field, or the value of its site, `[*draw, layer]`."""
        if self.prior_scale != "learn":
            return self.prior_scale
        return pyro.sample(stack.site(f"prior_scale_{name}"), priors.flat(()))

    def scales_of_prior(self, stack: Stack, *names: str) -> dict[str, guides.Site]:
        """Return the sites of the guide for learned scales of the priors of some factors, which come before theirs."""
        if self.prior_scale != "learn":
            return {}
        return {f"prior_scale_{name}": LearnedScale(len(stack), self.usual_scale) for name in names}

    def sample_normals(self, stack: Stack, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """Sample factors of independent Normals from the prior, after the scales of their priors."""
        scales = {name: self.scale_of_prior(stack, name) for name in shapes}
        return {name: pyro.sample(stack.site(name), centred(shape, scales[name])) for name, shape in shapes.items()}

    def after_step(self, program: FittedProgram, step: int) -> None:
        if self.prior_scale == "learn":
            for guide in program.guide.children():
                learn_scales(guide)


def centred(shape: tuple[int, ...], scale: float | Tensor) -> dist.Distribution:
    """Return N(0, σ_p²) entries, as one event of a shape; of a tensor, each layer has its own σ_p, `[*draw, layer]`."""
    if not isinstance(scale, Tensor):
        return priors.normal(shape, scale)
    # A draw from the flat prior of a scale is 0, which no Normal has.
    scale = scale.clamp(min=1e-6)[(..., *(None for _ in shape))].expand(*scale.shape, *shape)
    return dist.Normal(torch.zeros_like(scale), scale).to_event(len(shape))


class LearnedScale(guides.Site):
    """The standard deviation of a prior, a point that is set and has no gradient, `[layer]`."""

    value: Tensor
    nonnegative = ("value",)

    def __init__(self, num_layers: int, scale: float):
        super().__init__()
        self.register_buffer("value", torch.full((num_layers,), scale))

    def forward(self) -> dist.Distribution:
        return dist.Delta(self.value)


@torch.no_grad()
def learn_scales(guide: Any) -> None:
    """Set the learned scales of a stack's priors to their optimum, given its `sites` and its `squares()`."""
    squares: Mapping[str, Tensor] = guide.squares()
    for name, site in guide.sites.items():
        if isinstance(site, LearnedScale):
            square = squares[name.removeprefix("prior_scale_")]
            site.value.copy_(square.flatten(1).mean(1).sqrt())
