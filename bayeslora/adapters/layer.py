"""The layer that replaces an adapted one in a network, and the factors bound to it."""

from typing import Any

from torch import Tensor, nn

from bayeslora.adapters.families import Family
from bayeslora.adapters.rows import has_rows_first
from bayeslora.adapters.weights import bare


class Slot:
    """A place for the factors bound to one layer; copies of it are empty.

    Bound factors are part of an autograd graph, which can be neither deep-copied nor pickled.

    Attributes:
        factors: Scaled factors, None if none are bound.
        rows: Rows of the batch over all draws, None unless there are several draws.
        sequences: Sequences of tokens in a row, which the network may turn into rows.
        apart: Whether draws run one by one, so that the layer must not be called with the factors of several.
    """

    def __init__(self) -> None:
        self.hold()

    def hold(self, factors: Any = None, rows: int | None = None, sequences: int = 1, apart: bool = False) -> None:
        """Hold factors, or none."""
        self.factors, self.rows, self.sequences, self.apart = factors, rows, sequences, apart

    def __deepcopy__(self, memo: dict[int, Any]) -> "Slot":
        return Slot()

    def __reduce__(self) -> tuple[type["Slot"], tuple[()]]:
        return Slot, ()


class NotFoldedError(Exception):
    """A layer's input does not have the rows of the batch, grouped by draw, in its first dimension.

    Args:
        shape: The shape of the input.
        rows: The rows that it was to begin with.
    """

    def __init__(self, shape: tuple[int, ...], rows: int):
        super().__init__(shape, rows)
        self.reason = f"a layer's input, {shape}, is not known to begin with the {rows} rows of several draws"

    def __str__(self) -> str:
        return (
            f"{self.reason.capitalize()}. Draws of such a network run one by one, which activation checkpointing "
            "cannot repeat: leave it off."
        )


def _itself(layer: nn.Module) -> nn.Module:
    return layer


class AdaptedLayer(nn.Module):
    """A linear layer with the factors that are bound to it; without any, it acts as the layer itself.

    Attributes:
        keeps_rows: Whether its rows may be taken for those of the batch: until `folding` finds that they are not.
    """

    def __init__(self, base: nn.Module, family: Family):
        super().__init__()
        self.base = base
        self.family = family
        self.slot = Slot()
        self.keeps_rows = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # A network may name the input, as the layer's own class does.
        return super().__call__(*args, *kwargs.values())

    def forward(self, x: Tensor) -> Tensor:
        slot = self.slot
        if slot.rows is not None and not (
            self.keeps_rows and not slot.apart and has_rows_first(x, slot.rows, slot.sequences)
        ):
            raise NotFoldedError(tuple(x.shape), slot.rows)
        return self.base(x) if slot.factors is None else self.family.forward(self.base, x, slot.factors)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # A `__deepcopy__` would be lent to modules around the layer that show its attributes.
        return (_itself, (self.base,)) if bare.get() else super().__reduce_ex__(protocol)

    def __getattr__(self, name: str) -> Any:
        # Networks read attributes of their linear layers, such as `weight.dtype` and `in_features`.
        try:
            return super().__getattr__(name)
        except AttributeError:
            # Python's own protocols are about one object: lent the `__deepcopy__` of its base, a copy would be one of
            # the base alone.
            if name.startswith("__"):
                raise
            return getattr(super().__getattr__("base"), name)
