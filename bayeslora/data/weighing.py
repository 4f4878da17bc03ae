"""Weights of rows, as people have them: a column, or an array."""

import copy
from collections.abc import Sequence
from typing import Annotated, Any, TypeAlias

import numpy as np
from torch.utils.data import Dataset

from bayeslora.contracts import ArgumentError, Kind, is_endless
from bayeslora.data.beside import taken
from bayeslora.types import WEIGHTS, Data

Weight: TypeAlias = Annotated[
    Any,
    Kind(
        "the name of a column, or an array with a number for each row",
        lambda value: (
            isinstance(value, str) or (isinstance(value, Sequence) and len(value) > 0) or getattr(value, "ndim", 0) > 0
        ),
    ),
]
"""How much rows count: a column, or a number for each."""


class Weighted(Dataset[dict[str, Any]]):
    """Rows of a dataset, each with its weight.

    Args:
        unweighted: The rows.
        weights: A number for each.
    """

    def __init__(self, unweighted: Any, weights: np.ndarray):
        self.unweighted = unweighted
        self.weights = weights

    def __len__(self) -> int:
        return len(self.unweighted)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = copy.copy(self.unweighted[index])
        row[WEIGHTS] = float(self.weights[index])
        return row


def apart(data: Data, weight: Weight | None, name: str, needed: bool = True) -> tuple[Data, np.ndarray | None]:
    """Return data without its column of weights, and the weights, `[row]`.

    Args:
        data: Data in any form.
        weight: A column of it, or the weights themselves.
        name: What to call the data in messages.
        needed: Whether the column has to be there.

    Raises:
        ArgumentError: If there is no such column, or a weight is negative or not a number.
    """
    if weight is None:
        return data, None
    if not isinstance(weight, str):
        return data, checked(weight, "weight")
    if isinstance(data, tuple) and len(data) == 2 and not isinstance(data[0], str):
        inputs, found = apart(data[0], weight, name, needed)
        return (inputs, data[1]), found
    rest, columns = taken(data, [weight])
    values = columns.get(weight)
    if values is None and needed:
        raise ArgumentError(
            f"weight={weight!r}: {name} has no such column; name one of a table, or give an array with a number for "
            "each row."
        )
    return rest, None if values is None else checked(values, f"weight={weight!r}")


def checked(values: Any, what: str) -> np.ndarray:
    """Return weights as an array; an `ArgumentError` unless they are finite numbers of at least 0, and not all 0."""
    try:
        weights = np.asarray([] if is_endless(values) else values, dtype=np.float64)
    except (TypeError, ValueError):
        weights = np.full(1, np.nan)
    if weights.ndim != 1 or not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise ArgumentError(f"{what}: give a finite number of at least 0 for each row, and more than 0 for some.")
    with np.errstate(over="ignore"):
        if not np.isfinite(weights.sum()):
            raise ArgumentError(
                f"{what}: the sum is infinite, and only their ratios count: divide them by the largest."
            )
    return weights
