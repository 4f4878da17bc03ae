"""Adapter families: which factors a layer has, and the layer's forward pass given them."""

import abc
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bayeslora.types import PerLayer, Scaling


def kaiming(*shape: int) -> Float[Tensor, "layer rank d_in"]:
    """LoRA's starting value of `A`: U(±1/√d_in), standard deviation 1/√(3 d_in).

    Args:
        shape: `(layer, rank, d_in)`.
    """
    bound = 1 / math.sqrt(shape[-1])
    return torch.empty(shape).uniform_(-bound, bound)


class Factors(NamedTuple):
    """The low-rank factors of a stack, `A` `[*draw, layer, rank, d_in]` and `B` `[*draw, layer, d_out, rank]`."""

    A: Tensor
    B: Tensor


class AffineFactors(NamedTuple):
    """Changes of a layer's `weight`, Δ `[*draw, layer, d_out, d_in]`, and of its `bias`, δ `[*draw, layer, d_out]`."""

    weight: Tensor
    bias: Tensor


class Family(abc.ABC):
    """Which factors a layer has, their shapes, and the layer's forward pass given them.

    Attributes:
        factors: The `NamedTuple` of this family's factors, `[*draw, layer, …]` each.
        layer_dims: Dimensions of one layer's factor, per factor; what stands before them is `[*draw, layer]`.
        has_rank: Whether shapes depend on a rank r, and the change is scaled by s = alpha / r.
    """

    factors: ClassVar[Any]
    layer_dims: ClassVar[tuple[int, ...]]
    has_rank: ClassVar[bool] = True

    @abc.abstractmethod
    def shapes(self, d_in: int, d_out: int, rank: int) -> Mapping[str, tuple[int, ...]]:
        """Factor name to the shape of one layer's factor."""

    @abc.abstractmethod
    def initial(self, num_layers: int, shapes: Mapping[str, tuple[int, ...]], measured: Mapping[str, Tensor]) -> Any:
        """Factors to start from, `[layer, …]` each, with which every layer computes what its base does.

        Args:
            num_layers: Layers of the stack.
            shapes: Factor name to the shape of one layer's factor.
            measured: What `measure` returned for these layers.
        """

    def measure(self, bases: Sequence[nn.Module]) -> Mapping[str, Tensor]:
        """What the starting factors need to know of the layers' frozen weights, name to `[layer, …]`."""
        return {}

    def scale(self, factors: Any, scaling: Scaling) -> Any:
        """Fold the per-layer scaling s, `[layer]`, into stacked factors: once per stack, not once per layer."""
        return factors

    @abc.abstractmethod
    def forward(self, base: nn.Module, x: Tensor, factors: Any) -> Tensor:
        """One layer's output, given its scaled factors, `[*draw, …]`; with draws, the rows of `x` belong to them."""

    @abc.abstractmethod
    def delta(self, factors: Any, bases: Sequence[nn.Module] = ()) -> Tensor | None:
        """The change of the weight, `[*draw, layer, d_out, d_in]`, or None where it stays as it is.

        Args:
            factors: Scaled factors, `[*draw, layer, …]`.
            bases: The layers, for families whose change depends on the frozen weights.
        """

    def bias_delta(self, factors: Any) -> Tensor | None:
        """The change of the bias, `[*draw, layer, d_out]`, given scaled factors, or None where it stays as it is."""
        return None

    @abc.abstractmethod
    def difference_norm(self, factors: Any, reference: Any | None = None, bases: Sequence[nn.Module] = ()) -> PerLayer:
        """Frobenius norm of the difference of two changes of weight and bias, `[*draw, layer]`.

        Args:
            factors: Scaled factors, `[*draw, layer, …]`.
            reference: Others, or None for no change.
            bases: The layers, for families whose change depends on the frozen weights.
        """

    def unstack(self, factors: Any) -> list[Any]:
        """Stacked factors as one tuple of factors per layer."""
        # One `unbind` per factor: its backward pass is a single `stack`, where indexing would add L scatters.
        columns = (value.unbind(-1 - dims) for value, dims in zip(factors, self.layer_dims, strict=True))
        return [self.factors(*layer) for layer in zip(*columns, strict=True)]


class LowRank(Family):
    r"""LoRA: $h = W_0 x + s B A x$, with $A \in \mathbb{R}^{r \times d_{in}}$, $B \in \mathbb{R}^{d_{out} \times r}$.

    References:
        Hu et al. (2021), [LoRA](https://arxiv.org/abs/2106.09685).
    """

    factors = Factors
    layer_dims = (2, 2)

    def shapes(self, d_in: int, d_out: int, rank: int) -> Mapping[str, tuple[int, ...]]:
        return {"A": (rank, d_in), "B": (d_out, rank)}

    def initial(
        self, num_layers: int, shapes: Mapping[str, tuple[int, ...]], measured: Mapping[str, Tensor]
    ) -> Factors:
        return Factors(kaiming(num_layers, *shapes["A"]), torch.zeros(num_layers, *shapes["B"]))

    def scale(self, factors: Factors, scaling: Scaling) -> Factors:
        return Factors(factors.A, factors.B * scaling[:, None, None])

    def forward(self, base: nn.Module, x: Tensor, factors: Factors) -> Tensor:
        A, B = factors
        h = base(x)
        x = x.to(A.dtype)
        if A.dim() == 2:
            update = F.linear(F.linear(x, A), B)
        else:
            rows = x.reshape(len(A), -1, x.shape[-1])
            update = (rows @ A.mT @ B.mT).view(h.shape)
        return h + update.to(h.dtype)

    def delta(self, factors: Factors, bases: Sequence[nn.Module] = ()) -> Tensor:
        return factors.B @ factors.A

    def difference_norm(
        self, factors: Factors, reference: Factors | None = None, bases: Sequence[nn.Module] = ()
    ) -> PerLayer:
        parts = [factors] if reference is None else [factors, factors._replace(A=reference.A, B=-reference.B)]
        return norm_of_products([(part.B, part.A) for part in parts])


class Affine(Family):
    r"""Any change of a layer's weight and bias: $h = (W_0 + \Delta) x + b_0 + \delta$; both are 0 at the start.

    A layer without a bias gets one. The norm of a change is that of Δ and δ together.
    """

    factors = AffineFactors
    layer_dims = (2, 1)
    has_rank = False

    def shapes(self, d_in: int, d_out: int, rank: int) -> Mapping[str, tuple[int, ...]]:
        return {"weight": (d_out, d_in), "bias": (d_out,)}

    def initial(
        self, num_layers: int, shapes: Mapping[str, tuple[int, ...]], measured: Mapping[str, Tensor]
    ) -> AffineFactors:
        return AffineFactors(*(torch.zeros(num_layers, *shape) for shape in shapes.values()))

    def forward(self, base: nn.Module, x: Tensor, factors: AffineFactors) -> Tensor:
        h = base(x)
        return h + linear(x.to(factors.weight.dtype), factors.weight, factors.bias).to(h.dtype)

    def delta(self, factors: AffineFactors, bases: Sequence[nn.Module] = ()) -> Tensor:
        return factors.weight

    def bias_delta(self, factors: AffineFactors) -> Tensor:
        return factors.bias

    def difference_norm(
        self, factors: AffineFactors, reference: AffineFactors | None = None, bases: Sequence[nn.Module] = ()
    ) -> PerLayer:
        weight, bias = factors if reference is None else (a - b for a, b in zip(factors, reference, strict=True))
        return (weight.square().sum((-2, -1)) + bias.square().sum(-1)).sqrt()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x Wᵀ + b`; where `W` has a draw dimension, the rows of `x` belong to the draws, a block of them each."""
    if weight.dim() == 2:
        return F.linear(x, weight, bias)
    h = x.reshape(len(weight), -1, x.shape[-1]) @ weight.mT
    return (h if bias is None else h + bias[:, None]).view(*x.shape[:-1], -1)


def norm_of_products(products: Sequence[tuple[Tensor, Tensor]]) -> PerLayer:
    r"""$\lVert \sum_i B_i A_i \rVert_F$ of pairs `B` `[…, d_out, rank]`, `A` `[…, rank, d_in]`; no sum is formed."""
    # B A + B'A' = [B, B'] [A; A'], and |BA|^2 = tr(B'B AA'): Gram matrices of size 2r, not weights.
    shape = torch.broadcast_shapes(*(A.shape[:-2] for _, A in products))
    B = torch.cat([B.expand(*shape, -1, -1) for B, _ in products], dim=-1).double()
    A = torch.cat([A.expand(*shape, -1, -1) for _, A in products], dim=-2).double()
    square = ((B.mT @ B) * (A @ A.mT)).sum((-2, -1))
    return square.clamp(min=0).sqrt().to(products[0][0].dtype)
