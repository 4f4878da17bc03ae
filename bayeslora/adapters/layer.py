"""The layer that stands in a network for an adapted one, and the factors bound to it."""

from typing import Any

from torch import Tensor, nn

from bayeslora.adapters.families import Family
from bayeslora.adapters.rows import has_rows_first


class Slot:
    """Holds the factors bound to one layer; a copy of it is empty.

    Bound factors are part of an autograd graph, which can be neither deep-copied nor pickled.

    Attributes:
        factors: Scaled factors, None where none are bound.
        rows: Rows of the batch over all draws, None where there are no several draws.
        sequences: Sequences of tokens in a row, which the network may make rows of their own.
        trusting: Whether rows are taken for the batch's where they might be tokens as well, being as many.
    """

    def __init__(self) -> None:
        self.factors: Any = None
        self.rows: int | None = None
        self.sequences = 1
        self.trusting = False

    def __deepcopy__(self, memo: dict[int, Any]) -> "Slot":
        return Slot()

    def __reduce__(self) -> tuple[type["Slot"], tuple[()]]:
        return Slot, ()


class NotFoldedError(Exception):
    """A layer's input does not have the rows of the batch, grouped by draw, in its first dimension."""


class AdaptedLayer(nn.Module):
    """A linear layer with whatever factors are bound to it; without any, the layer itself."""

    def __init__(self, base: nn.Module, family: Family):
        super().__init__()
        self.base = base
        self.family = family
        self.slot = Slot()

    def forward(self, x: Tensor) -> Tensor:
        slot = self.slot
        if slot.rows is not None and not has_rows_first(x, slot.rows, slot.sequences, slot.trusting):
            raise NotFoldedError(
                f"The input of a layer, {tuple(x.shape)}, does not begin with the {slot.rows} rows of several draws. "
                "Draws of such a network run one by one, which activation checkpointing cannot repeat: leave it off."
            )
        return self.base(x) if slot.factors is None else self.family.forward(self.base, x, slot.factors)

    def __getattr__(self, name: str) -> Any:
        # Networks read `weight.dtype`, `in_features` and the like off their linear layers.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)
