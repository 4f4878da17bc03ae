"""Adapter families: which factors a layer has, and the layer's forward pass given them."""

import abc
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayeslora.types import PerLayer, Scaling


class Factors(NamedTuple):
    """The low-rank factors of a stack, `A` `[*draw, layer, rank, d_in]` and `B` `[*draw, layer, d_out, rank]`."""

    A: Tensor
    B: Tensor


class Family(abc.ABC):
    """Which factors a layer has, their shapes, and the layer's forward pass given them.

    Attributes:
        factors: The `NamedTuple` of this family's factors, `[*draw, layer, …]` each.
        layer_dims: Dimensions of one layer's factor, per factor; what stands before them is `[*draw, layer]`.
    """

    factors: ClassVar[Any]
    layer_dims: ClassVar[tuple[int, ...]]

    @abc.abstractmethod
    def shapes(self, d_in: int, d_out: int, rank: int) -> Mapping[str, tuple[int, ...]]:
        """Factor name to the shape of one layer's factor."""

    @abc.abstractmethod
    def scale(self, factors: Any, scaling: Scaling) -> Any:
        """Fold the per-layer scaling s, `[layer]`, into stacked factors: once per stack, not once per layer."""

    @abc.abstractmethod
    def forward(self, base: nn.Module, x: Tensor, factors: Any) -> Tensor:
        """One layer's output, given its scaled factors, `[*draw, …]`; with draws, the rows of `x` belong to them."""

    @abc.abstractmethod
    def delta(self, factors: Any) -> Tensor:
        """The change of the weight, `[*draw, layer, d_out, d_in]`, given scaled factors."""

    @abc.abstractmethod
    def difference_norm(self, factors: Any, reference: Any) -> PerLayer:
        """Frobenius norm of the difference of two weight changes, `[*draw, layer]`, never forming either."""

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

    def delta(self, factors: Factors) -> Tensor:
        return factors.B @ factors.A

    def difference_norm(self, factors: Factors, reference: Factors) -> PerLayer:
        # BA - B'A' = [B, -B'] [A; A'], and |BA|^2 = tr(B'B AA'): Gram matrices of size 2r, not weights.
        shape = torch.broadcast_shapes(factors.A.shape[:-2], reference.A.shape[:-2])
        A = torch.cat([f.A.expand(*shape, -1, -1) for f in (factors, reference)], dim=-2).double()
        B = torch.cat([f.expand(*shape, -1, -1) for f in (factors.B, -reference.B)], dim=-1).double()
        square = ((B.mT @ B) * (A @ A.mT)).sum((-2, -1))
        return square.clamp(min=0).sqrt().to(factors.A.dtype)
