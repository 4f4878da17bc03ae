"""Losses that become NaN or infinite, or that run away."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

RUNAWAY = 1e7
"""How many times what it was at the start, or 1 nat per example if that is more, a loss may become.

Single precision has 24 bits: beside such a loss, the whole loss of the start is about one unit in the last place, and
nothing more can be learned from it. A fit that works stays far away: an example would have the probability
exp(-10,000,000) or a density of exp(10,000,000), and a number's density ends at exp(709) even in double precision.
"""


class DivergedError(RuntimeError):
    """The loss or its gradient became NaN, infinite or absurdly large; the posterior is at the last state before that.

    Attributes:
        posterior: The posterior at the last good state; of `Posterior.distil`, that which was to be distilled.
    """

    def __init__(self, message: str, posterior: Any):
        super().__init__(message)
        self.posterior = posterior


def read(loss: Tensor, gradients: Sequence[Tensor]) -> list[float]:
    """Return a loss and the largest number of each gradient, in one look at the device."""
    return torch.stack([loss.detach(), *_largest(gradients)]).tolist()


def is_good(found: Sequence[float], start: float) -> bool:
    """Return whether what `read` returned is finite, and the loss not too far from that of the start."""
    return all(map(math.isfinite, found)) and abs(found[0]) <= RUNAWAY * max(1.0, abs(start))


def stays(values: Sequence[Tensor], before: Sequence[Tensor]) -> bool:
    """Return whether numbers are finite, and not so much larger than before that those are rounded off beside them."""
    largest, start = (float(torch.stack([*_largest(each)]).max()) for each in (values, before))
    return math.isfinite(largest) and largest <= RUNAWAY * max(1.0, start)


def _largest(values: Sequence[Tensor]) -> Sequence[Tensor]:
    # Some are empty, as are the distances between the cut points of two ordered classes.
    filled = [value.detach() for value in values if value.numel()]
    return torch._foreach_norm(filled, float("inf")) if filled else ()
