"""LoRA with dropout on the adapter's input."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayeslora.adapters.families.base import Shapes
from bayeslora.adapters.families.low_rank import Factors, LowRank


class SeededFactors(NamedTuple):
    """`A` and `B` as of low rank, and `seed` `[*draw, layer]`, a number for each draw of the noise; 0 for none."""

    A: Tensor
    B: Tensor
    seed: Tensor


class InputDropout(LowRank):
    r"""LoRA with dropout on the adapter's input: $h = W_0 x + s B A\, (x \odot m)$, $m_i \in \{0, 1/(1-p)\}$.

    In training mode it is torch's dropout, with torch's random state. In evaluation mode, the seed of a draw determines
    its mask: it is the same for every batch of the same shape, however draws are grouped.

    Args:
        p: Probability that an entry of the input is dropped.
    """

    factors = SeededFactors
    layer_dims = (2, 2, 0)

    def __init__(self, p: float):
        self.p = p

    def shapes(self, d_in: int, d_out: int, rank: int) -> Shapes:
        return {**super().shapes(d_in, d_out, rank), "seed": ()}

    def initial(self, num_layers: int, shapes: Shapes, measured: Mapping[str, Tensor]) -> SeededFactors:
        A, B = super().initial(num_layers, shapes, measured)
        return SeededFactors(A, B, torch.zeros(num_layers))

    def forward(self, base: nn.Module, x: Tensor, factors: SeededFactors) -> Tensor:
        seeds = [] if base.training else factors.seed.reshape(-1).tolist()
        if self.p == 0 or not (base.training or any(seeds)):
            return super().forward(base, x, Factors(factors.A, factors.B))
        h = base(x)
        x = x.to(factors.A.dtype)
        x = F.dropout(x, self.p) if base.training else self._dropped(x, seeds)
        return h + self.update(x, factors).to(h.dtype)

    def _dropped(self, x: Tensor, seeds: Sequence[float]) -> Tensor:
        """Apply the mask of each draw to its block of the input's rows."""
        masks = torch.ones(len(seeds), x.numel() // len(seeds), dtype=x.dtype, device=x.device)
        generator = torch.Generator(x.device)
        for mask, number in zip(masks, seeds, strict=True):
            if number:
                # A whole number: a generator on the CPU reads only 32 bits of it.
                generator.manual_seed(int(number * 2**23))
                mask.bernoulli_(1 - self.p, generator=generator).div_(1 - self.p)
        return x * masks.view(x.shape)

    def without_noise(self) -> LowRank:
        return LowRank()
