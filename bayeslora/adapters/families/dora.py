"""DoRA: low rank in the direction of each row of the weight, free in its length."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayeslora.adapters.families.base import Family, Shapes, kaiming, kaiming_scale, linear, norm_of_products, spread
from bayeslora.adapters.weights import frozen_weight, precise
from bayeslora.types import PerLayer, Scaling


class DoRAFactors(NamedTuple):
    """`A` and `B` as of low rank, and the norm `m` of every row of the weight, `[*draw, layer, d_out]`."""

    A: Tensor
    B: Tensor
    m: Tensor


class DoRA(Family):
    r"""Low rank in direction, free in length: $h = m \odot (W_0 + s B A)\, x \,/\, \lVert W_0 + s B A \rVert_{row}$.

    The norm of each row is a constant to the gradient, as in the paper's §4.3; a bias stays as it is. `m` starts at
    $\lVert W_0 \rVert_{row}$, `A` and `B` as LoRA's. The norms are computed from products with `A`, without forming the
    changed weight. Quantised weights are refused, because their norms are not known here.

    References:
        Liu et al. (2024), [DoRA](https://arxiv.org/abs/2402.09353).
    """

    factors = DoRAFactors
    layer_dims = (2, 2, 1)
    peft_names: ClassVar[Mapping[str, str]] = {
        "A": "lora_A.weight",
        "B": "lora_B.weight",
        "m": "lora_magnitude_vector",
    }
    peft_settings: ClassVar[Mapping[str, Any]] = {"use_dora": True}
    columns = "A"
    rows = "B"

    def shapes(self, d_in: int, d_out: int, rank: int) -> Shapes:
        return {"A": (rank, d_in), "B": (d_out, rank), "m": (d_out,)}

    def measure(self, bases: Sequence[nn.Module]) -> Mapping[str, Tensor]:
        return {"m": torch.stack([precise(frozen_weight(base)).square().sum(-1).sqrt() for base in bases])}

    def initial(self, num_layers: int, shapes: Shapes, measured: Mapping[str, Tensor]) -> DoRAFactors:
        A, B = kaiming(num_layers, *shapes["A"]), torch.zeros(num_layers, *shapes["B"])
        return DoRAFactors(A, B, measured["m"].clone())

    def scale(self, factors: DoRAFactors, scaling: Scaling) -> DoRAFactors:
        return factors._replace(B=factors.B * scaling[:, None, None])

    def forward(self, base: nn.Module, x: Tensor, factors: DoRAFactors) -> Tensor:
        A, B, _ = factors
        h, bias = base(x), getattr(base, "bias", None)
        gain = spread(self.gain(base, factors), h)
        update = (gain - 1) * (h if bias is None else h - bias) + gain * linear(linear(x.to(A.dtype), A), B)
        return h + update.to(h.dtype)

    def gain(self, base: nn.Module, factors: DoRAFactors) -> Float[Tensor, "*draw d_out"]:
        """Return the factor that multiplies each row of W0 + sBA: m over its norm."""
        with torch.no_grad():
            weight, A, B = frozen_weight(base).to(factors.A.dtype), factors.A, factors.B
            cross = ((weight @ A.mT) * B).sum(-1)
            square = weight.square().sum(-1) + 2 * cross + ((B @ (A @ A.mT)) * B).sum(-1)
            norm = square.clamp(min=torch.finfo(square.dtype).tiny).sqrt()
        return factors.m / norm

    def start_scale(self, d_in: int) -> float:
        return kaiming_scale(d_in)

    def delta(self, factors: DoRAFactors, bases: Sequence[nn.Module] = ()) -> Tensor:
        deltas = []
        for base, layer in zip(bases, self.unstack(factors), strict=True):
            gain, weight = self.gain(base, layer)[..., None], frozen_weight(base).to(layer.A.dtype)
            deltas.append((gain - 1) * weight + gain * (layer.B @ layer.A))
        return torch.stack(deltas, dim=-3)

    def difference_norm(
        self, factors: DoRAFactors, reference: DoRAFactors | None = None, bases: Sequence[nn.Module] = ()
    ) -> PerLayer:
        # With g the gain: g (W0 + BA) - g'(W0 + B'A') = (g - g') W0 + (gBA - g'B'A'), squared by its parts.
        references = [None] * len(bases) if reference is None else self.unstack(reference)
        norms = []
        for base, layer, other in zip(bases, self.unstack(factors), references, strict=True):
            weight = frozen_weight(base).double()
            gain, product = self._parts(base, layer)
            other_gain, other_product = self._parts(base, other)
            change, products = gain - other_gain, [*product, *((-B, A) for B, A in other_product)]
            cross: Tensor = sum(((B * (weight @ A.mT)).sum(-1) for B, A in products), torch.zeros(()))
            square = (change.square() * weight.square().sum(-1) + 2 * change * cross).sum(-1)
            norms.append((square + norm_of_products(products).square()).clamp(min=0).sqrt())
        return torch.stack(norms, dim=-1).to(factors.A.dtype)

    def _parts(self, base: nn.Module, factors: DoRAFactors | None) -> tuple[Any, list[tuple[Tensor, Tensor]]]:
        """Return the gain g of one layer, and gB with A; 1 and an empty list if there are no factors."""
        if factors is None:
            return 1.0, []
        gain = self.gain(base, factors).double()
        return gain, [(gain[..., None] * factors.B, factors.A.double())]
