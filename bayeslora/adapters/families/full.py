"""Any change of a layer's weight, of its bias, or of both."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bayeslora.adapters.families.base import Family, Shapes, linear, spread
from bayeslora.adapters.weights import frozen_weight, precise
from bayeslora.types import FactorTuple, PerLayer


class FullFactors(NamedTuple):
    """The change Δ of a layer's `weight`, `[*draw, layer, d_out, d_in]`."""

    weight: Tensor


class BiasFactors(NamedTuple):
    """The change δ of a layer's `bias`, `[*draw, layer, d_out]`."""

    bias: Tensor


class AffineFactors(NamedTuple):
    """Changes of a layer's `weight`, Δ `[*draw, layer, d_out, d_in]`, and of its `bias`, δ `[*draw, layer, d_out]`."""

    weight: Tensor
    bias: Tensor


class Additive(Family):
    """Direct changes of a layer's weight, its bias, or both, as the factors say; they start at 0."""

    has_rank = False

    def shapes(self, d_in: int, d_out: int, rank: int) -> Shapes:
        every = {"weight": (d_out, d_in), "bias": (d_out,)}
        return {name: every[name] for name in self.factors._fields}

    def initial(self, num_layers: int, shapes: Shapes, measured: Mapping[str, Tensor]) -> FactorTuple:
        return self.factors(*(torch.zeros(num_layers, *shape) for shape in shapes.values()))

    def forward(self, base: nn.Module, x: Tensor, factors: FactorTuple) -> Tensor:
        h = base(x)
        weight, bias = self.delta(factors), self.bias_delta(factors)
        if weight is not None:
            h = h + linear(x.to(weight.dtype), weight).to(h.dtype)
        return h if bias is None else h + spread(bias, h).to(h.dtype)

    def delta(self, factors: FactorTuple, bases: Sequence[nn.Module] = ()) -> Tensor | None:
        return getattr(factors, "weight", None)

    def bias_delta(self, factors: FactorTuple) -> Tensor | None:
        return getattr(factors, "bias", None)

    def difference_norm(
        self, factors: FactorTuple, reference: FactorTuple | None = None, bases: Sequence[nn.Module] = ()
    ) -> PerLayer:
        changes = factors if reference is None else [a - b for a, b in zip(factors, reference, strict=True)]
        squares = [
            change.square().flatten(-dims).sum(-1) for change, dims in zip(changes, self.layer_dims, strict=True)
        ]
        return torch.stack(squares).sum(0).sqrt()


class Full(Additive):
    r"""Any change of a layer's weight: $h = (W_0 + \Delta) x + b_0$."""

    factors = FullFactors
    layer_dims = (2,)
    columns = "weight"
    rows = "weight"

    def start_scale(self, d_in: int) -> float:
        """Return a hundredth of the standard deviation of a new layer's weights, because Δ starts at 0."""
        return 0.01 / math.sqrt(3 * d_in)


class Bias(Additive):
    r"""A change of a layer's bias: $h = W_0 x + b_0 + \delta$. A layer without a bias gets one.

    References:
        Ben Zaken et al. (2021), [BitFit](https://arxiv.org/abs/2106.10199).
    """

    factors = BiasFactors
    layer_dims = (1,)


class Affine(Additive):
    r"""Any change of a layer's weight and bias: $h = (W_0 + \Delta) x + b_0 + \delta$.

    A layer without a bias gets one. The norm of a change is that of Δ and δ together.
    """

    factors = AffineFactors
    layer_dims = (2, 1)

    def measure(self, bases: Sequence[nn.Module]) -> Mapping[str, Tensor]:
        return {"W0": torch.stack([precise(frozen_weight(base)) for base in bases])}

    def frozen(self, bases: Sequence[Any]) -> AffineFactors:
        """Return the layers' weights and biases without adapters, `[layer, …]`; a missing bias is 0."""
        weights = [frozen_weight(base) for base in bases]
        biases = [
            weight.new_zeros(len(weight)) if base.bias is None else base.bias.detach()
            for weight, base in zip(weights, bases, strict=True)
        ]
        return AffineFactors(torch.stack(weights), torch.stack(biases))

    def matrices(self, factors: AffineFactors) -> dict[str, Tensor]:
        """Return one matrix, the weight with the bias as its last column."""
        return {"weight": torch.cat([factors.weight, factors.bias[..., None]], dim=-1)}

    def from_matrices(self, matrices: Mapping[str, Tensor]) -> AffineFactors:
        weight = matrices["weight"]
        return AffineFactors(weight[..., :-1], weight[..., -1])

    def curvature(
        self, factors: AffineFactors, scaling: Tensor, x: Tensor, g: Tensor
    ) -> dict[str, tuple[Tensor, Tensor]]:
        return {"weight": (torch.cat([x, torch.ones_like(x[..., :1])], dim=-1), g)}
