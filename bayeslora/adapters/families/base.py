"""What an adapter family is: which factors a layer has, and the layer's forward pass given them."""

import abc
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bayeslora.types import FactorTuple, PerLayer, Scaling

Shapes = Mapping[str, tuple[int, ...]]
"""Factor name to the shape of one layer's factor."""


def kaiming(*shape: int) -> Float[Tensor, "layer rank d_in"]:
    """Draw LoRA's starting value of `A`: U(±1/√d_in), standard deviation 1/√(3 d_in).

    Args:
        shape: `(layer, rank, d_in)`.
    """
    bound = 1 / math.sqrt(shape[-1])
    return torch.empty(shape).uniform_(-bound, bound)


def kaiming_scale(d_in: int) -> float:
    """Return the standard deviation of the entries of `kaiming`, 1/√(3 d_in)."""
    return 1 / math.sqrt(3 * d_in)


class Family(abc.ABC):
    """Which factors a layer has, their shapes, and the layer's forward pass given them.

    Attributes:
        factors: The `NamedTuple` of this family's factors, `[*draw, layer, …]` each.
        layer_dims: Number of dimensions of one layer's factor, per factor; `[*draw, layer]` precede them.
        has_rank: Whether shapes depend on a rank r, and the change is scaled by s = alpha / r.
        peft_names: Factor to its name in PEFT's LoRA layer, for families whose factors such a layer holds unchanged.
        peft_settings: Settings of `peft.LoraConfig` besides ranks, alphas and targets.
    """

    factors: ClassVar[Any]
    layer_dims: ClassVar[tuple[int, ...]]
    has_rank: ClassVar[bool] = True
    peft_names: ClassVar[Mapping[str, str]] = {}
    peft_settings: ClassVar[Mapping[str, Any]] = {}

    @property
    def columns(self) -> str:
        """The factor whose columns belong to the layer's input features.

        Raises:
            TypeError: If there is none.
        """
        raise self._refusal("have no factor whose columns belong to the layer's input features")

    @property
    def rows(self) -> str:
        """The factor whose rows belong to the layer's output features.

        Raises:
            TypeError: If there is none.
        """
        raise self._refusal("have no factor whose rows belong to the layer's output features")

    def start_scale(self, d_in: int) -> float:
        """Return the standard deviation of the entries that the factor `columns` starts from.

        If that factor starts at 0, it is a scale that is small compared to the starting weights of a new layer.

        Raises:
            TypeError: If there is no such factor.
        """
        raise self._refusal("have no factor whose columns belong to the layer's input features")

    def product(self, factors: FactorTuple) -> tuple[Tensor, Tensor]:
        """Return the change of the weight as a pair, `right` `[…, rank, d_in]` and `left` `[…, d_out, rank]`.

        The change is `left @ right`; it is scaled if the given factors are.

        Raises:
            TypeError: If the change is not a product of two small matrices.
        """
        raise self._refusal("do not change the weight by a product of two small matrices")

    def matrices(self, factors: FactorTuple) -> dict[str, Tensor]:
        """Return the factors as the matrices that `curvature` is about, `[…, row, column]`, by name."""
        return factors._asdict()

    def from_matrices(self, matrices: Mapping[str, Tensor]) -> FactorTuple:
        """Return the factors whose `matrices` are given."""
        return self.factors(**matrices)

    def curvature(
        self, factors: FactorTuple, scaling: Tensor, x: Tensor, g: Tensor
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Return each matrix's inputs, `[…, column]`, and the gradients of its outputs, `[…, row]`, of one layer.

        Args:
            factors: One layer's factors, without s.
            scaling: The layer's s.
            x: The layer's input, `[…, d_in]`.
            g: Gradients with respect to the layer's output, `[…, d_out]`.

        Raises:
            TypeError: If the curvature of these factors is not known.
        """
        raise TypeError(f"The curvature of {type(self).__name__} factors is not known; that of low-rank ones is.")

    @abc.abstractmethod
    def shapes(self, d_in: int, d_out: int, rank: int) -> Shapes:
        """Return the shape of one layer's factor, by factor name."""

    @abc.abstractmethod
    def initial(self, num_layers: int, shapes: Shapes, measured: Mapping[str, Tensor]) -> FactorTuple:
        """Return factors to start from, `[layer, …]` each, with which every layer computes what its base does.

        Args:
            num_layers: Layers of the stack.
            shapes: Factor name to the shape of one layer's factor.
            measured: What `measure` returned for these layers.
        """

    def measure(self, bases: Sequence[nn.Module]) -> Mapping[str, Tensor]:
        """Measure what the starting factors need to know of the layers' frozen weights, name to `[layer, …]`."""
        return {}

    def scale(self, factors: FactorTuple, scaling: Scaling) -> FactorTuple:
        """Fold the per-layer scaling s, `[layer]`, into stacked factors: once per stack, not once per layer."""
        return factors

    @abc.abstractmethod
    def forward(self, base: nn.Module, x: Tensor, factors: FactorTuple) -> Tensor:
        """Return one layer's output, given its scaled factors, `[*draw, …]`; each draw has a block of the rows."""

    @abc.abstractmethod
    def delta(self, factors: FactorTuple, bases: Sequence[nn.Module] = ()) -> Tensor | None:
        """Return the change of the weight, `[*draw, layer, d_out, d_in]`, or None if it does not change.

        Args:
            factors: Scaled factors, `[*draw, layer, …]`.
            bases: The layers, for families whose change depends on the frozen weights.
        """

    def bias_delta(self, factors: FactorTuple) -> Tensor | None:
        """Return the change of the bias, `[*draw, layer, d_out]`, of scaled factors, or None if it does not change."""
        return None

    @abc.abstractmethod
    def difference_norm(
        self, factors: FactorTuple, reference: FactorTuple | None = None, bases: Sequence[nn.Module] = ()
    ) -> PerLayer:
        """Return the Frobenius norm of the difference of two changes of weight and bias, `[*draw, layer]`.

        Args:
            factors: Scaled factors, `[*draw, layer, …]`.
            reference: Others, or None for no change.
            bases: The layers, for families whose change depends on the frozen weights.
        """

    def places(self, names: Sequence[str]) -> list[str]:
        """Return the layers of `targets="all-linear"`, given the names of all linear layers of the body."""
        return list(names)

    def peft(self, factors: FactorTuple) -> dict[str, Tensor]:
        """Return the parameters of the PEFT LoRA layer that computes the same, by their names there.

        Args:
            factors: One layer's factors, without s, which PEFT applies itself.

        Raises:
            ValueError: If there is no such layer.
        """
        if not self.peft_names:
            raise ValueError(
                f"{type(self).__name__} adapters have no form in PEFT's LoRA, and cannot be exported: low-rank, SVD "
                "and DoRA adapters can."
            )
        return {name: getattr(factors, factor) for factor, name in self.peft_names.items()}

    def without_noise(self) -> "Family":
        """Return the family that computes the same without noise; its factors are these but for the noise's."""
        return self

    def unstack(self, factors: FactorTuple) -> list[FactorTuple]:
        """Split stacked factors into one tuple of factors per layer."""
        # One `unbind` per factor: its backward pass is a single `stack`, where indexing would add L scatters.
        columns = (value.unbind(-1 - dims) for value, dims in zip(factors, self.layer_dims, strict=True))
        return [self.factors(*layer) for layer in zip(*columns, strict=True)]

    def _refusal(self, what: str) -> TypeError:
        return TypeError(f"{type(self).__name__} adapters {what}: choose another family, such as low rank.")


class Product(Family):
    """A family whose change of the weight is a product of two small matrices, those of `product`."""

    def delta(self, factors: FactorTuple, bases: Sequence[nn.Module] = ()) -> Tensor:
        right, left = self.product(factors)
        return left @ right

    def difference_norm(
        self, factors: FactorTuple, reference: FactorTuple | None = None, bases: Sequence[nn.Module] = ()
    ) -> PerLayer:
        right, left = self.product(factors)
        products = [(left, right)]
        if reference is not None:
            right, left = self.product(reference)
            products.append((-left, right))
        return norm_of_products(products)


def spread(value: Tensor, rows: Tensor) -> Tensor:
    """Shape features `[*draw, d]` to broadcast with rows `[row, …, d]`, a block of which belongs to each draw."""
    if value.dim() == 1:
        return value
    by_row = value.repeat_interleave(len(rows) // len(value), dim=0)
    return by_row.view(len(rows), *[1] * (rows.dim() - 2), -1)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `x Wᵀ + b`; if `W` has a draw dimension, each draw has a block of the rows of `x`."""
    if weight.dim() == 2:
        return F.linear(x, weight, bias)
    h = x.reshape(len(weight), -1, x.shape[-1]) @ weight.mT
    return (h if bias is None else h + bias[:, None]).view(*x.shape[:-1], -1)


def norm_of_products(products: Sequence[tuple[Tensor, Tensor]]) -> Float[Tensor, "..."]:
    r"""Return $\lVert \sum_i B_i A_i \rVert_F$ of pairs `B` `[…, d_out, rank]`, `A` `[…, rank, d_in]`."""
    # B A + B'A' = [B, B'] [A; A'], and |BA|^2 = tr(B'B AA'): Gram matrices of size 2r are enough.
    shape = torch.broadcast_shapes(*(A.shape[:-2] for _, A in products))
    B = torch.cat([B.expand(*shape, -1, -1) for B, _ in products], dim=-1).double()
    A = torch.cat([A.expand(*shape, -1, -1) for _, A in products], dim=-2).double()
    square = ((B.mT @ B) * (A @ A.mT)).sum((-2, -1))
    return square.clamp(min=0).sqrt().to(products[0][0].dtype)
