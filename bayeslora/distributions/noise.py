"""Noise about which nothing is learned."""

import math
from collections.abc import Sequence

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints


class FixedNoise(TorchDistribution):
    """Noise about which nothing is learned: the guide draws it as the prior does.

    Its draws count as reparameterised because there is no parameter to differentiate. The ELBO has no term for a site
    that the guide draws from a distribution of this kind.

    Args:
        event_shape: Shape of one value.
        like: A tensor with the dtype and device that draws get; None for torch's defaults.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_rsample = True

    def __init__(self, event_shape: tuple[int, ...], like: Tensor | None = None, batch_shape: tuple[int, ...] = ()):
        self.like = torch.empty(()) if like is None else like
        super().__init__(torch.Size(batch_shape), torch.Size(event_shape), validate_args=False)


class Seed(FixedNoise):
    """A number that identifies a draw of noise, uniform on (−1, 1); 0, its mean, stands for no noise.

    Args:
        silent: Whether there is no noise: every draw is 0.
        like: A tensor with the dtype and device that draws get; None for torch's defaults.
    """

    support = constraints.interval(-1, 1)

    def __init__(self, silent: bool = False, like: Tensor | None = None, batch_shape: tuple[int, ...] = ()):
        self.silent = silent
        super().__init__((), like, batch_shape)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "Seed":
        return Seed(self.silent, self.like, tuple(batch_shape))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        value = self.like.new_zeros(self._extended_shape(torch.Size(sample_shape)))
        return value if self.silent else value.uniform_(-1, 1)

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.full_like(value, -math.log(2))

    @property
    def mean(self) -> Tensor:
        return self.like.new_zeros(self.batch_shape)
