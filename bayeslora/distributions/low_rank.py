"""Normal vectors whose covariance is of low rank, beside a diagonal."""

from collections.abc import Sequence

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import LowRankMultivariateNormal, constraints


class LowRankNormal(TorchDistribution):
    r"""A vector $x = m + U \varepsilon + d \odot \eta$ with standard Normal ε and η.

    Its covariance is $U U^\top + \mathrm{diag}(d^2)$. Unlike torch's, it can be drawn where d is 0 or very small.

    Args:
        loc: Mean m, `[*batch, number]`.
        factor: U, `[*batch, number, rank]`.
        scale: d ≥ 0, `[*batch, number]`.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, factor: Tensor, scale: Tensor):
        self.loc, self.factor, self.scale = loc, factor, scale
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "LowRankNormal":
        shape = torch.Size(batch_shape)
        event = self.event_shape
        return LowRankNormal(
            self.loc.expand(shape + event),
            self.factor.expand(shape + event + self.factor.shape[-1:]),
            self.scale.expand(shape + event),
        )

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return self.factor.square().sum(-1) + self.scale.square()

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        common = torch.randn(*shape, self.factor.shape[-1], 1, dtype=self.loc.dtype, device=self.loc.device)
        own = torch.randn(*shape, *self.event_shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + (self.factor @ common).squeeze(-1) + self.scale * own

    def log_prob(self, value: Tensor) -> Tensor:
        return LowRankMultivariateNormal(self.loc, self.factor, self.scale.square()).log_prob(value)
