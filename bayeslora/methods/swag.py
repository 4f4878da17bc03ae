"""SWAG: a Gaussian fitted to the path of training."""

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from bayeslora import guides, priors
from bayeslora.adapters import Affine, Stack, Stacks
from bayeslora.distributions import Deviations, SharedNoise
from bayeslora.fitted import FittedProgram
from bayeslora.methods.base import PerStackMethod
from bayeslora.methods.fields import Few, PartOfRun
from bayeslora.types import FactorTuple

MOST = 10_000
"""Snapshots of a run."""


@dataclass(frozen=True)
class SWAG(PerStackMethod):
    r"""A Gaussian fitted to the path of adapters and task head in the last phase of LoRA's training.

    In the collection phase, the last part of the run, snapshots $\theta_i$ are taken at even intervals. Their mean
    $\bar\theta$, the mean of their squares, and the last M deviations $D = (\theta_i - \bar\theta_i)$, each from the
    mean at that time, are kept. A draw is

    $$\bar\theta + \tfrac{1}{\sqrt2}\, \mathrm{diag}^{1/2} z_1 + \frac{1}{\sqrt{2 (M - 1)}}\, D z_2, \qquad
      \mathrm{diag} = \max(\overline{\theta^2} - \bar\theta^2, 0),$$

    with $z_1, z_2$ standard Normal, and one $z_2 \in \mathbb{R}^M$ for the whole network. The last term needs M ≥ 2.
    The loss is the NLL per example. The centre is $\bar\theta$.

    Args:
        snapshots: Number of snapshots.
        deviations: Largest M.
        last_part: The part of the run, up to its end, over which the snapshots are spread.

    Raises:
        ValueError: If a number is less than 1, or the part is not in (0, 1].

    Differs from the paper: the learning rate in the collection phase is the Trainer's, which decays by default.

    References:
        Maddox et al. (2019), [SWAG](https://arxiv.org/abs/1902.02476), Algorithm 1.
    """

    name = "swag"
    claims = "noise"
    head_family = Affine()
    snapshots: Few = 20
    deviations: Few = 10
    last_part: PartOfRun = 0.5

    def stack_prior(self, stack: Stack) -> FactorTuple:
        with stack.layers:
            return priors.flat_factors(stack)

    def stack_guide(self, stack: Stack) -> nn.Module:
        starts = stack.initial()._asdict()
        sites: dict[str, Any] = {name: Moments(value, self.deviations) for name, value in starts.items()}
        return guides.Sites(stack, **sites)

    def guide(self, stacks: Stacks) -> nn.Module:
        return SWAGGuide({name: self.stack_guide(stack) for name, stack in stacks.items()}, self.deviations)

    def num_draws(self, guide: nn.Module) -> int | None:
        # Fewer than two snapshots make a point.
        return 1 if int(moments(guide)[0].collected) < 2 else None

    def after_step(self, program: FittedProgram, step: int) -> None:
        if step in guides.last_steps(program.num_steps, self.snapshots, self.last_part):
            for site in moments(program.guide):
                site.collect()


class Moments(guides.Site):
    """A learned point, and the running moments of its values at each call of `collect`.

    Args:
        value: Its starting value, `[layer, …]`.
        room: How many deviations are kept.
    """

    mean: Tensor
    square: Tensor
    deviations: Tensor
    collected: Tensor
    nonnegative = ("square",)

    def __init__(self, value: Tensor, room: int):
        super().__init__()
        self.loc = nn.Parameter(value)
        self.register_buffer("mean", torch.zeros_like(value))
        self.register_buffer("square", torch.zeros_like(value))
        self.register_buffer("deviations", torch.zeros(room, *value.shape))
        # A float, because a guide has a single dtype.
        self.register_buffer("collected", torch.zeros(()))
        self.noise: SharedNoise | None = None

    def snapshots_taken(self) -> tuple[float, int]:
        return float(self.collected), MOST

    def collect(self) -> None:
        """Add the present value of the point to the moments."""
        count, value = int(self.collected), self.loc.detach()
        self.mean.mul_(count).add_(value).div_(count + 1)
        self.square.mul_(count).add_(value.square()).div_(count + 1)
        self.deviations[count % len(self.deviations)] = value - self.mean
        self.collected += 1

    def forward(self) -> dist.Distribution:
        count = int(self.collected)
        if self.training or not count:
            return dist.Delta(self.loc, event_dim=self.loc.dim() - 1)
        assert self.noise is not None
        spread = (self.square - self.mean.square()).clamp(min=0).sqrt()
        return Deviations(self.mean, spread, self.deviations[:count], self.noise)


class SWAGGuide(guides.PerStack):
    """The guides of all stacks, which share the noise that multiplies the deviations."""

    def __init__(self, stacks: dict[str, nn.Module], room: int):
        super().__init__(stacks)
        self.room = room

    def forward(self) -> None:
        noise = SharedNoise(self.room)
        for site in moments(self):
            site.noise = noise
        super().forward()


def moments(guide: nn.Module) -> list[Moments]:
    """Return the sites of a guide that keep moments."""
    return [site for site in guide.modules() if isinstance(site, Moments)]
