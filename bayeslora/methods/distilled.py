"""What `Posterior.distil` fits: a LoRA, and a Gaussian over its output layer."""

from dataclasses import dataclass
from typing import ClassVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from bayeslora import guides, priors
from bayeslora.adapters import Affine, Family, Stack, Stacks
from bayeslora.distributions import LowRankNormal
from bayeslora.methods.base import PerStackMethod
from bayeslora.methods.fields import Few
from bayeslora.types import FactorTuple


@dataclass(frozen=True)
class Distilled(PerStackMethod):
    r"""A point estimate of `A` and `B`, and a Gaussian of low rank over the output layer W, its bias the last column.

    $$f(x) = W \phi(x), \qquad \mathrm{vec}\, W \sim N\big(M, U U^\top + \mathrm{diag}(d^2)\big),$$

    with φ the features that the adapted network gives the output layer, and 1. For any x, the logits are Gaussian: a
    draw of them is a draw of W, and the network below runs once for all draws. `Posterior.distil` sets U and d, so that
    the logits vary as those of the draws of another posterior do. A fit by itself leaves them at 0: it is LoRA's. All
    priors are flat.

    Args:
        spread_rank: Columns of U.

    References:
        Hinton et al. (2015), [Distilling the Knowledge in a Neural Network](https://arxiv.org/abs/1503.02531);
        Korattikara et al. (2015), [Bayesian Dark Knowledge](https://arxiv.org/abs/1506.04416);
        Malinin et al. (2020), [Ensemble Distribution Distillation](https://arxiv.org/abs/1905.00076).
    """

    name = "distilled"
    claims = "noise"
    head_family: ClassVar[Family | None] = Affine()
    spread_rank: Few = 16

    def stack_prior(self, stack: Stack) -> FactorTuple:
        if not stack.in_head:
            with stack.layers:
                factors = {
                    name: pyro.sample(stack.site(name), priors.flat(shape)) for name, shape in stack.shapes.items()
                }
            return stack.family.factors(**factors)
        (shape,) = stack.matrix_shapes.values()
        with stack.layers:
            weight = pyro.sample(stack.site("weight"), priors.flat((shape[0] * shape[1],)))
        return stack.family.from_matrices({"weight": weight.unflatten(-1, shape)})

    def guide(self, stacks: Stacks) -> nn.Module:
        heads = [stack.name for stack in stacks.values() if stack.in_head]
        random = heads[-1:]  # of the head's layers, the last one makes the logits
        return guides.PerStack({n: self._guide(stack, n in random) for n, stack in stacks.items()})

    def stack_guide(self, stack: Stack) -> nn.Module:
        return self._guide(stack, stack.in_head)

    def _guide(self, stack: Stack, random: bool) -> nn.Module:
        if not stack.in_head:
            points = {name: guides.Point(value) for name, value in stack.initial()._asdict().items()}
            return guides.Sites(stack, scale=1.0, **points)
        (shape,) = stack.matrix_shapes.values()
        return Head(stack, shape[0] * shape[1], self.spread_rank if random else 0)

    def num_draws(self, guide: nn.Module) -> int | None:
        return None if any(isinstance(part, Output) and part.is_random for part in guide.modules()) else 1


class Head(guides.Sites):
    """The guide of a stack of the task head.

    Args:
        stack: The stack.
        size: Numbers of one layer, its bias included.
        rank: Columns of U; 0 for points.
    """

    def __init__(self, stack: Stack, size: int, rank: int):
        zeros = torch.zeros(len(stack), size)
        super().__init__(stack, weight=Output(zeros, rank) if rank else guides.Point(zeros))

    def start(self, factors: FactorTuple) -> None:
        """Start from trained factors."""
        (matrix,) = self.stack.family.matrices(factors).values()
        with torch.no_grad():
            self.get_parameter("sites.weight.loc").copy_(matrix.flatten(-2))


class Output(guides.Site):
    """A point, which becomes a Gaussian around it once its spread is set.

    Args:
        loc: Starting point, `[layer, number]`.
        rank: Columns of U.
    """

    factor: Tensor
    deviation: Tensor
    nonnegative = ("deviation",)

    def __init__(self, loc: Tensor, rank: int):
        super().__init__()
        self.loc = nn.Parameter(loc)
        self.register_buffer("factor", torch.zeros(*loc.shape, rank))
        self.register_buffer("deviation", torch.zeros_like(loc))

    @property
    def is_random(self) -> bool:
        """Whether its spread is set."""
        return bool(self.factor.any()) or bool(self.deviation.any())

    def forward(self) -> dist.Distribution:
        if not self.is_random:
            return dist.Delta(self.loc, event_dim=1)
        return LowRankNormal(self.loc, self.factor, self.deviation)
