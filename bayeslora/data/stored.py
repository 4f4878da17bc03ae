"""Columns of numbers as they are stored, and what is wrong with those that hold something else."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from bayeslora.tasks.checking import REPAIR, is_missing

REAL = frozenset((float, np.float32, np.float64))


class Column(NamedTuple):
    """The numbers of some rows of a column, one after another.

    Args:
        values: All numbers.
        lengths: How many of them belong to each innermost sequence, `[sequence]`.
        per_row: How many sequences belong to each row, `[row]`; None for one each.
    """

    values: np.ndarray
    lengths: np.ndarray
    per_row: np.ndarray | None = None

    def rows_of(self, sequences: np.ndarray) -> np.ndarray:
        """Return the rows of some sequences, each once."""
        if self.per_row is None:
            return np.unique(sequences)
        return np.unique(np.searchsorted(np.cumsum(self.per_row), sequences, side="right"))

    def rows_where(self, bad: np.ndarray) -> np.ndarray:
        """Return the rows of the numbers that are bad, each once."""
        return self.rows_of(np.searchsorted(np.cumsum(self.lengths), np.flatnonzero(bad), side="right"))


def columns_of_rows(rows: Sequence[Mapping[str, Any]], names: Sequence[str], data: str) -> dict[str, Column]:
    """Return the columns of some rows in which each has a list of numbers, or a list of such lists.

    Raises:
        ValueError: If the first row has, and another has not; it names the row.
    """
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows] if name in rows[0] else []
        try:
            column = _of_lists(values)
        except (TypeError, ValueError, OverflowError):
            raise _odd_entry(data, name, values) from None
        if column is not None:
            columns[name] = column
    return columns


def _odd_entry(data: str, name: str, values: Sequence[Any]) -> ValueError:
    """The error about a column of lists of numbers, one of which has something else."""
    depth = np.ndim(values[0][:1])
    for row, value in enumerate(values):
        entries = [*itertools.chain.from_iterable(value)] if depth > 1 and not isinstance(value[0], str) else value
        odd = next((each for each in entries if not _is_number(each)), None)
        if any(map(is_missing, entries)):
            return ValueError(f"{data}: {name!r} has a missing value in row {row}. {REPAIR}.")
        if odd is not None:
            break
    return ValueError(
        f"{data}: {name!r} has {odd!r:.60} in row {row}, of type {type(odd).__name__}, where a number is needed."
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating | np.bool_) and bool(-(2**63) <= value < 2**63)


def _of_lists(values: Sequence[Any]) -> Column | None:
    if not all(hasattr(value, "__len__") for value in values):
        return None
    first: Any = next((value for value in values if len(value)), ())
    per_row = None
    if len(first) and not np.isscalar(first[0]) and np.ndim(first[0]):
        per_row = np.fromiter(map(len, values), np.int64, len(values))
        values = list(itertools.chain.from_iterable(values))
        first = next((value for value in values if len(value)), ())
    lengths = np.fromiter(map(len, values), np.int64, len(values))
    kind = np.asarray(first[:1]).dtype
    if kind.kind not in "iufb":
        return None
    if kind.kind in "iu" and not REAL.isdisjoint(map(type, itertools.chain.from_iterable(values))):
        kind = np.dtype(np.float64)  # numbers that are whole in the first row alone
    return Column(np.fromiter(itertools.chain.from_iterable(values), kind, int(lengths.sum())), lengths, per_row)


def columns_of_table(table: Any, names: Sequence[str]) -> Iterator[tuple[int, dict[str, Column]]]:
    """Yield the columns of a `datasets.Dataset` as it is stored, some rows at a time, and the number of the first.

    Raises:
        ValueError: If a value of such a column is missing.
    """
    stored = table.with_format("arrow")
    names = [name for name in names if name in table.column_names]
    for start in range(0, len(table) if names else 0, ROWS):
        part = stored.select_columns(names)[start : start + ROWS]
        columns = {}
        for name in names:
            column = _of_arrow(part.column(name).combine_chunks())
            if column is not None:
                columns[name] = column
        yield start, columns


ROWS = 50_000
"""Rows of a table that are looked at together."""


def _of_arrow(array: Any) -> Column | None:
    import pyarrow as pa  # type: ignore[import-untyped]

    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    lengths: list[np.ndarray] = []
    while True:
        if isinstance(array, pa.ExtensionArray):
            array = array.storage
        if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type) or _is_fixed(array.type)):
            break
        sizes = np.full(len(array), array.type.list_size) if _is_fixed(array.type) else array.value_lengths()
        lengths.append(sizes if isinstance(sizes, np.ndarray) else sizes.fill_null(0).to_numpy(zero_copy_only=False))
        array = array.flatten()
    if pa.types.is_null(array.type):  # of lists that are all empty
        array = array.cast(pa.float64())
    if not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type) or pa.types.is_boolean(array.type)):
        return None
    values = array.to_numpy(zero_copy_only=False)  # what is missing becomes NaN
    if not lengths:
        return Column(values, np.ones(len(values), np.int64))
    per_row = lengths[0]
    for inner in lengths[1:-1]:
        ends = np.cumsum(per_row)
        sums = np.concatenate([[0], np.cumsum(inner)])
        per_row = sums[ends] - sums[ends - per_row]
    return Column(values, lengths[-1], None if len(lengths) == 1 else per_row)


def _is_fixed(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_fixed_size_list(kind))


def numbers(data: str, name: str, values: Any) -> np.ndarray:
    """Return a list, or an array of objects, as an array of numbers.

    Raises:
        ValueError: If rows differ in shape, or one has something else than numbers; it names the row.
    """
    try:
        array = np.asarray(values)
    except ValueError:  # of differing shapes
        array = None
    if array is not None and array.dtype.kind in "iufbc":
        return array
    if not np.iterable(values):
        raise ValueError(
            f"{data}: {name!r} is {values!r:.60}, of type {type(values).__name__}: give an array with an entry for "
            "each example."
        )
    rows = list(values)
    for number, row in enumerate(rows):
        entries = np.asarray(row, dtype=object).ravel().tolist() if not isinstance(row, str) else [row]
        odd = next(
            (entry for entry in entries if not isinstance(entry, (int, float, np.number, np.bool_, Tensor))), None
        )
        if any(map(is_missing, entries)):
            raise ValueError(f"{data}: {name!r} has a missing value in row {number}. {REPAIR}.")
        if odd is not None:
            raise ValueError(
                f"{data}: {name!r} is {odd!r:.60} in row {number}, of type {type(odd).__name__}, where a number is "
                "needed."
            )
        if np.shape(row) != np.shape(rows[0]):
            raise ValueError(
                f"{data}: {name!r} has shape {np.shape(row)} in row {number} and {np.shape(rows[0])} in row 0: give "
                "rows of one shape, or, for tokens, a table or records, and a tokenizer that pads them."
            )
    return np.asarray(rows, dtype=np.float64 if any(isinstance(v, float) for v in rows) else None)
