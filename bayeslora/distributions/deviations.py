"""A Gaussian that is drawn by weighting deviations from a mean, and noise that several of them share."""

import math
from collections.abc import Sequence

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints


class SharedNoise:
    """Standard Normal numbers, `[*draw, size]`, drawn once for all distributions that refer to them."""

    def __init__(self, size: int):
        self.size = size
        self.value: Tensor | None = None

    def draw(self, draws: tuple[int, ...], like: Tensor) -> Tensor:
        """Return the numbers, with the dtype and on the device of `like`."""
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
