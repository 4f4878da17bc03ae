"""Points: their flat prior, and several points in turn."""

import math
from collections.abc import Sequence

import torch
from pyro.distributions import Delta, TorchDistribution
from torch import Tensor
from torch.distributions import constraints


class Flat(TorchDistribution):
    r"""The improper prior $p \propto 1$ over all reals, with density 1; every draw is 0.

    Pyro's `ImproperUniform` cannot be sampled, and so cannot be used in a program that is run to find its sites.

    Args:
        event_shape: Shape of one value.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_rsample = True

    def __init__(self, event_shape: tuple[int, ...], batch_shape: tuple[int, ...] = ()):
        super().__init__(torch.Size(batch_shape), torch.Size(event_shape), validate_args=False)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "Flat":
        return Flat(self.event_shape, torch.Size(batch_shape))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return torch.zeros(self._extended_shape(torch.Size(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        return value.new_zeros(value.shape[: value.dim() - len(self.event_shape)])


class Enumerated(Delta):
    """Equally probable values, which a plate of draws takes in order, starting again after the last.

    Without draws its value is the last one, which is also its mean by convention: the true mean belongs to no member.

    Args:
        values: The values, `[member, layer, …]`; the batch shape is `[layer]`.
    """

    def __init__(self, values: Tensor):
        self.values = values
        super().__init__(values[-1], event_dim=values.dim() - 2)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Delta:
        draws = batch_shape[:-1]
        if not draws:
            return self
        order = torch.arange(math.prod(draws), device=self.values.device) % len(self.values)
        return Delta(self.values[order].view(*draws, *self.values.shape[1:]), event_dim=self.event_dim)
