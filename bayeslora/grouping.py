"""Which rows have equal inputs: none of them is learned from where another is predicted."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from bayeslora.data import LABELS, NOTHING, Columns, Weight, apart, given, plain
from bayeslora.data.columns import NOT_INPUTS
from bayeslora.hashing import hashed
from bayeslora.isolation import seeded
from bayeslora.types import WEIGHTS, Data

PLAIN = (str, bytes, int, float, complex, np.generic, np.ndarray, Tensor, type(None))
"""Values that are equal where their bytes, or their texts, are."""


def same_inputs(dataset: Any) -> np.ndarray:
    """Return the number of the first row that has the same inputs as a row, `[row]`; all rows are read.

    Args:
        dataset: Rows as a network reads them, mappings.
    """
    return _first(
        {name: value for name, value in dataset[number].items() if name not in ("labels", WEIGHTS)}
        for number in range(len(dataset))
    )


def same_given(data: Data, asked: Columns = NOTHING, weight: Weight | None = None) -> np.ndarray:
    """Return the same of data as a user has them, before a network reads them, `[row]`.

    Args:
        data: Data in any form but a stream or a `DataLoader`.
        asked: The columns that the user names.
        weight: The column of the rows' weights, if there is one.
    """
    found = plain(apart(given(data), weight, "data")[0], asked)
    inputs, columns = found.inputs, found.columns

    def are_inputs(names: Iterable[Any]) -> list[Any]:
        others = (*LABELS, columns.label, columns.id, asked.label)
        return [name for name in names if name not in others and not NOT_INPUTS.fullmatch(str(name))]

    def without_label(row: Any) -> Any:
        if isinstance(row, Mapping):
            return [row[name] for name in are_inputs(row)]
        return row[:-1] if isinstance(row, tuple) and len(row) > 1 and not found.are_texts else row

    if hasattr(inputs, "column_names"):
        names = [*(columns.text or columns.features or are_inputs(inputs.column_names))]
        table = inputs.with_format(None)
        return _first(zip(*(table[name] for name in names), strict=True)) if names else np.arange(len(table))
    if isinstance(inputs, Mapping):
        return _first(zip(*(inputs[name] for name in are_inputs(inputs)), strict=True))
    return _first(without_label(inputs[number]) for number in range(len(inputs)))


def _first(rows: Iterable[Any]) -> np.ndarray:
    first: dict[str, int] = {}
    with seeded(0):  # rows that are transformed at random
        return np.array([first.setdefault(_key(row, number), number) for number, row in enumerate(rows)], np.int64)


def _key(row: Any, number: int) -> str:
    """Return what equal rows share; a row with a value that cannot be compared has one of its own."""
    row = _comparable(row)
    return hashed(row) if all(isinstance(value, PLAIN) for value in _leaves(row)) else f"row {number}"


def _comparable(value: Any) -> Any:
    """Return a value with images and lists of whole numbers, such as tokens, as arrays, which are hashed at once."""
    if isinstance(value, Mapping):
        return {name: _comparable(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        if value and all(type(part) is int for part in value):
            return np.array(value)
        return [_comparable(part) for part in value]
    return np.asarray(value) if not isinstance(value, PLAIN) and hasattr(value, "__array_interface__") else value


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _leaves(part)
    else:
        yield value


def tenth(same: np.ndarray, order: np.ndarray) -> np.ndarray | None:
    """Choose a tenth of the rows to hold out, equal rows together; None if that takes more than half of them.

    Groups of equal rows are taken as they come in the order, unless they are more than is still lacking; if none is
    small enough, it is the smallest.

    Args:
        same: The number of the first row that equals a row, `[row]`.
        order: The numbers of all rows, in the order in which they are taken.

    Returns:
        Whether each row is held out, `[row]`.
    """
    counts = np.bincount(same, minlength=len(same))
    wanted, taken = max(len(same) // 10, 1), []
    for group in dict.fromkeys(same[order].tolist()):
        if counts[group] <= wanted:
            taken.append(group)
            wanted -= counts[group]
    if not taken:
        taken = [min(np.flatnonzero(counts).tolist(), key=lambda group: counts[group])]
    chosen = np.isin(same, taken)
    return chosen if 2 * chosen.sum() <= len(same) else None
