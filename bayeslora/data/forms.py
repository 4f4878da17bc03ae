"""Forms of a dataset: rows by number, arrays, streams, and several orders of the same rows."""

import itertools
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset, get_worker_info

from bayeslora.contracts import LONGEST_RANGE, is_endless
from bayeslora.origins import package
from bayeslora.types import Data

logger = logging.getLogger(__name__)


class Numbered(dict[str, Any]):
    """A row that knows its number in the data, by which messages call it."""

    number: int = 0


def converted(convert: Callable[[Any], dict[str, Any]], row: Any, number: int) -> Numbered:
    """Return a row as a mapping; an error about it says its number."""
    try:
        result = Numbered(convert(row))
    except (TypeError, ValueError) as error:
        if type(error) not in (TypeError, ValueError):
            raise
        text = re.sub(r", row 0\b", "", str(error))  # of the one that was converted
        raise type(error)(f"{text} It is row {number}.") from error
    result.number = number
    return result


def row_at(rows: Any, index: int) -> Any:
    """Return a row of a dataset of the user's; what its own code raises says of which row.

    Raises:
        ValueError: If the dataset has fewer rows than it says.
    """
    try:
        return rows[index]
    except IndexError as error:
        if not 0 <= index < len(rows):  # by which a loop ends
            raise
        raise ValueError(
            f"The data has no row {number_of(rows, index)} ({type(error).__name__}: {error}), and its length says that "
            f"there are {len(rows)}: correct its __len__, or its __getitem__."
        ) from error
    except Exception as error:
        error.add_note(f"It was raised by row {number_of(rows, index)} of the data.")
        raise


def numbers_of(rows: Sequence[Any]) -> list[int] | None:
    """Return the numbers of rows, if they are known."""
    numbers = [row.number for row in rows if isinstance(row, Numbered)]
    return numbers if numbers and len(numbers) == len(rows) else None


class Part(Subset[Any]):
    """Some rows of a dataset, which keep their numbers."""


def number_of(rows: Any, index: int) -> int:
    """Return the number that a row had in the data, before parts of it were taken."""
    while isinstance(rows, Part):
        rows, index = rows.dataset, rows.indices[index]
    return index


class Examples(Dataset[dict[str, Any]]):
    """Rows of a map-style dataset as mappings of network inputs, with `labels` if there are any."""

    def __init__(self, rows: Any, convert: Callable[[Any], dict[str, Any]]):
        self.rows = rows
        self.convert = convert

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return converted(self.convert, row_at(self.rows, index), number_of(self.rows, index))


class Arrays(Dataset[dict[str, Any]]):
    """Arrays of equal length as a dataset of their rows."""

    def __init__(self, columns: Mapping[str, Tensor]):
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: column[index] for name, column in self.columns.items()}


class Stream(IterableDataset[dict[str, Any]]):
    """Rows of a stream, in its own order, as mappings of network inputs, with `labels` if there are any.

    Args:
        rows: Anything that can be iterated over repeatedly; its `set_epoch`, if it has one, is called before each pass.
        convert: Row to mapping.
        num_examples: Rows per pass, after which it ends; None for all.
        name: What to call it in messages.

    Raises:
        ValueError: If `num_examples` is less than 1.
        TypeError: If it can be read only once.
    """

    def __init__(
        self, rows: Any, convert: Callable[[Any], dict[str, Any]], num_examples: int | None = None, name: str = "data"
    ):
        if num_examples is not None and num_examples < 1:
            raise ValueError(f"num_examples={num_examples}: give a whole number of at least 1.")
        check_repeatable(rows, name)
        self.name = name
        self.has_given = False
        self.stream = rows
        self.convert = convert
        self.num_examples = num_examples

    def __len__(self) -> int:
        if self.num_examples is None:
            raise TypeError("The length of a stream is not known.")
        return self.num_examples

    def __iter__(self) -> Iterator[dict[str, Any]]:
        count = 0
        for row in self._rows():
            count += 1
            self.has_given = True
            yield converted(self.convert, row, count - 1)
        if not count and self.has_given:
            raise ValueError(
                f"{self.name} is a stream that gave rows once, and gives none any more: it has to be one that can be "
                "read again from the start, whose __iter__ begins anew."
            )
        # Each worker of a loader reads only a part.
        if self.num_examples is not None and count < self.num_examples and get_worker_info() is None:
            logger.warning("The stream ended after %d of %d examples.", count, self.num_examples)

    def _rows(self) -> Iterator[Any]:
        """Yield the stream's own rows; what its code raises says after how many."""
        count = 0
        try:
            for row in itertools.islice(self.stream, self.num_examples):
                yield row
                count += 1
        except Exception as error:
            error.add_note(f"It was raised by {self.name}, a stream, after {count} rows.")
            raise

    def set_epoch(self, epoch: int) -> None:
        """Tell the stream which pass comes next: a shuffled stream of `datasets` has a different order in each."""
        if hasattr(self.stream, "set_epoch"):
            self.stream.set_epoch(epoch)


def _is_one_shot(rows: Any) -> bool:
    """Return whether a stream of the user's own goes on where it was left, instead of beginning anew."""
    if package(type(rows).__module__) in ("datasets", "torch"):
        return False
    first, second = iter(rows), iter(rows)
    if first is not second:
        return False
    nothing = object()
    given = next(first, nothing)
    return given is not nothing and not _same(given, next(iter(rows), nothing))


def _same(value: Any, other: Any) -> bool:
    if isinstance(value, Mapping):
        return isinstance(other, Mapping) and _same([*value.items()], [*other.items()])
    if isinstance(value, (list, tuple)):
        return type(value) is type(other) and len(value) == len(other) and all(map(_same, value, other))
    return np.array_equal(np.asarray(value), np.asarray(other))


class OwnOrders(Dataset[tuple[dict[str, Any], ...]]):
    """Rows of a dataset for several readers, each with its own order.

    However the items are shuffled, every reader gets every row once, and the first reader gets the rows in the items'
    own order. The other readers' orders are drawn from torch's random state.

    Args:
        rows: The dataset.
        readers: How many there are.
    """

    def __init__(self, rows: Any, readers: int):
        self.rows = rows
        self.orders = [list(range(len(rows))), *(torch.randperm(len(rows)).tolist() for _ in range(readers - 1))]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[dict[str, Any], ...]:
        return tuple(self.rows[order[index]] for order in self.orders)


def order_by_length(rows: Any) -> np.ndarray | None:
    """Return the order of rows by their number of tokens, or that of the longest of their sequences.

    None if that takes long: rows have to be in a list, or in a `datasets.Dataset`, which has them in a file.
    """
    listed = isinstance(rows, list) and "input_ids" in rows[0]
    if not listed and "input_ids" not in getattr(rows, "column_names", ()):
        return None
    return np.argsort([_length(row["input_ids"]) for row in rows], kind="stable")


def _length(ids: Sequence[Any]) -> int:
    return max(map(len, ids)) if len(ids) and np.ndim(ids[0]) else len(ids)


def check_repeatable(rows: Any, name: str) -> None:
    """Raise a TypeError if a stream can be read only once."""
    if _is_one_shot(rows):
        raise TypeError(
            f"{name} is a stream that can be read only once, and several passes are needed: let its __iter__ "
            "return a new iterator each time, or give a list of its rows."
        )


def check_form(data: Data, name: str) -> None:
    """Raise an error if data, or a part of it, can be read only once, is a range without an end, or has no name.

    Raises:
        TypeError: Of what can be read only once.
        ValueError: Of all else.
    """
    parts = {"": data}
    if isinstance(data, tuple):
        parts |= {f", entry {index},": part for index, part in enumerate(data)}
    elif isinstance(data, Mapping):
        if odd := [column for column in data if not isinstance(column, str)]:
            raise ValueError(
                f"{name} has a column named {odd[0]!r:.40}: give texts, the network's names of its inputs."
            )
        parts |= {f", column {column!r},": part for column, part in data.items()}
    for where, part in parts.items():
        if is_endless(part):
            raise ValueError(
                f"{name}{where} is {part!r:.100}, of more than {LONGEST_RANGE:,} numbers: give one for each example, "
                "as an array."
            )
        if isinstance(part, Iterator):
            raise TypeError(
                f"{name}{where} is a {type(part).__name__}, which can be read only once, and several passes are "
                "needed: give a list, list(…)."
            )
