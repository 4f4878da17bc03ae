"""Find what a network cannot read in the inputs before it is run on them, and name the row.

Each check looks at all numbers of a column, or of a batch, at once; rows are told apart only where one is bad.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bayeslora.data.forms import Arrays, Numbered
from bayeslora.limits import Limits
from bayeslora.tasks.checking import REPAIR, is_missing, rows_said
from bayeslora.tasks.conversations import are_messages
from bayeslora.types import Batch, Row

TOKENS = ("input_ids", "decoder_input_ids")
MASK = "attention_mask"
BESIDE_TOKENS = (MASK, "token_type_ids", "position_ids")
"""Inputs with a number for each token of `input_ids`."""


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


def check_column(data: str, name: str, column: Column, limits: Limits, start: int = 0) -> None:
    """Raise a ValueError if a column has numbers, or a number of them, that the network cannot read.

    Args:
        data: What to call the data.
        name: The network's input.
        column: Its values.
        limits: What the network can take in.
        start: Number of the first row.
    """
    values = column.values
    if name in TOKENS and not column.lengths.all():
        raise _no_tokens(data, name, column.rows_of(np.flatnonzero(column.lengths == 0)) + start)
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise not_finite(data, name, column.rows_where(~np.isfinite(values)) + start)
        return
    size = limits.sizes.get(name)
    if size is not None and values.size and values.dtype.kind in "iu" and not 0 <= values.min() <= values.max() < size:
        bad = (values < 0) | (values >= size)
        raise _beyond(data, name, size, int(values[bad][0]), column.rows_where(bad) + start)
    if name == TOKENS[0] and limits.longest is not None and column.lengths.max(initial=0) > limits.longest:
        rows = column.rows_of(np.flatnonzero(column.lengths > limits.longest)) + start
        raise _too_long(data, int(column.lengths.max()), limits.longest, rows)
    if name == MASK and values.size and column.per_row is None and not values.all():
        seen = np.zeros(len(column.lengths), bool)
        seen[np.searchsorted(np.cumsum(column.lengths), np.flatnonzero(values), side="right")] = True
        if not seen.all():
            raise _unseen(data, np.flatnonzero(~seen) + start)


def check_lengths(data: str, columns: Mapping[str, Column], start: int = 0) -> None:
    """Raise a ValueError if a row has more tokens than numbers beside them, or fewer; labels among them."""
    tokens = columns.get(TOKENS[0])
    if tokens is None:
        return
    for name in (*BESIDE_TOKENS, "labels"):
        if name in columns and len(columns[name].lengths) == len(tokens.lengths):
            differing = np.flatnonzero(columns[name].lengths != tokens.lengths)
            if len(differing):
                sizes = [int(each.lengths[differing[0]]) for each in (columns[name], tokens)]
                raise ValueError(
                    f"{data}: {name!r} and 'input_ids' differ in length in "
                    f"{rows_said(tokens.rows_of(differing) + start)}, {sizes[0]} and {sizes[1]}: give a number for "
                    "each token."
                )


def check_batch(data: str, batch: Batch, limits: Limits, numbers: Sequence[int] | None = None, of: str = "") -> None:
    """Raise a ValueError if a batch has inputs that the network cannot read.

    Args:
        data: What to call the data.
        batch: The network's inputs, with labels beside them or not.
        limits: What the network can take in.
        numbers: The rows' numbers in the data; None for 0, 1, ….
        of: What the rows are numbered in, where that is not the data, such as " of a batch".
    """

    def rows(bad: Tensor) -> np.ndarray:
        found = np.flatnonzero(bad.reshape(len(bad), -1).any(1).cpu().numpy())
        return found if numbers is None else np.asarray(numbers)[found]

    name_of = f"{data}{of}"
    for name, value in batch.items():
        if name == "labels" or not isinstance(value, Tensor) or not value.dim() or not len(value):
            continue
        every = torch.ones(len(value), dtype=torch.bool)
        if name in TOKENS and value.dim() > 1 and not value.shape[-1]:
            raise _no_tokens(name_of, name, rows(every))
        if value.is_floating_point() or value.is_complex():
            if not bool(value.isfinite().all()):
                raise not_finite(name_of, name, rows(~value.isfinite()))
            continue
        size = limits.sizes.get(name)
        if size is not None and value.numel() and value.dtype != torch.bool:
            lowest, highest = (int(end) for end in value.aminmax())
            if lowest < 0 or highest >= size:
                bad = (value < 0) | (value >= size)
                raise _beyond(name_of, name, size, int(value[bad][0]), rows(bad))
        if name == TOKENS[0] and limits.longest is not None and value.dim() > 1 and value.shape[-1] > limits.longest:
            mask = batch.get(MASK)
            if isinstance(mask, Tensor) and mask.shape == value.shape:  # the rest may be short, and padded
                every = mask[..., limits.longest :].cpu() != 0
            raise _too_long(name_of, value.shape[-1], limits.longest, rows(every if every.any() else ~every))
        if name == MASK and value.dim() in (2, 3) and not bool((seen := value.reshape(len(value), -1).any(1)).all()):
            raise _unseen(name_of, rows(~seen))
    tokens = batch.get(TOKENS[0])
    if not isinstance(tokens, Tensor) or tokens.dim() < 2:
        return
    for name in BESIDE_TOKENS:
        value = batch.get(name)
        if isinstance(value, Tensor) and value.dim() == tokens.dim() and value.shape[-1] != tokens.shape[-1]:
            raise ValueError(
                f"{name_of}: {name!r} has {value.shape[-1]} numbers a row, and 'input_ids' has {tokens.shape[-1]}: "
                "give a number for each token."
            )


def check_stored(data: str, rows: Any, limits: Limits) -> bool:
    """Check all rows of a dataset that are in memory, or in a table that gives them as they are stored.

    Args:
        data: What to call the data.
        rows: The dataset.
        limits: What the network can take in.

    Returns:
        Whether they are.

    Raises:
        ValueError: If the network cannot read them; it names the first such row.
    """
    if isinstance(rows, Arrays):
        check_batch(data, rows.columns, limits)
        return True
    parts = _stored(rows, lambda name: name != "labels")
    if parts is None:
        return False
    for start, columns in parts:
        for name, column in columns.items():
            check_column(data, name, column, limits, start)
        check_lengths(data, columns, start)
    return True


def _stored(rows: Any, chosen: Callable[[str], bool]) -> Iterable[tuple[int, dict[str, Column]]] | None:
    """Return the chosen columns of rows as they are stored, some rows at a time; None if they are not."""
    listed = getattr(rows, "rows", None)
    if isinstance(listed, list):
        return [(0, columns_of_rows(listed, [name for name in listed[0] if chosen(name)]))]
    if hasattr(rows, "column_names") and rows.format["type"] != "custom":
        return columns_of_table(rows, [name for name in rows.column_names if chosen(name)])
    return None


def check_tags(data: str, rows: Any, per_token: bool) -> None:
    """Raise a ValueError if stored rows have another number of labels than of tokens, where each token has one."""
    for start, columns in (_stored(rows, lambda name: name in (TOKENS[0], "labels")) or ()) if per_token else ():
        check_lengths(data, columns, start)


def check_rows(data: str, rows: Sequence[Row], per_token: bool = False) -> None:
    """Raise a ValueError if a row lacks what others have, or a label for each token, where each token has one."""
    beside = (*BESIDE_TOKENS, "labels") if per_token else BESIDE_TOKENS
    for place, row in enumerate(rows):
        if row.keys() != rows[0].keys():
            name = next(name for name in (*rows[0], *row) if (name in row) != (name in rows[0]))
            lacking = place if name in rows[0] else 0
            raise ValueError(
                f"{data}: {called(rows[lacking], lacking)} has no {name!r}, and others have: give it to all rows, or "
                "to none."
            )
        for name, value in row.items():
            if value is None or (name in TOKENS and not len(value)):
                what = "is missing" if value is None else "has no tokens, as of an empty text,"
                raise ValueError(f"{data}: {name!r} {what} in {called(row, place)}. {REPAIR}.")
            if name in beside and TOKENS[0] in row and len(value) != len(row[TOKENS[0]]):
                raise ValueError(
                    f"{data}: {name!r} and 'input_ids' differ in length in {called(row, place)}, {len(value)} and "
                    f"{len(row[TOKENS[0]])}: give a number for each token."
                )


def of_one_shape(data: str, name: str, values: list[Tensor], rows: Sequence[Row]) -> list[Tensor]:
    """Return the values of some rows, which are to be stacked, or raise a ValueError if they differ in shape."""
    odd = next((place for place, value in enumerate(values) if value.shape != values[0].shape), None)
    if odd is None:
        return values
    advice = "padding them needs the tokenizer: pass tokenizer=…" if values[odd].dim() == 1 else "give them one shape"
    raise ValueError(
        f"{data}: rows of {name!r} have different lengths, {list(values[0].shape)} in {called(rows[0], 0)} and "
        f"{list(values[odd].shape)} in {called(rows[odd], odd)}; {advice}."
    )


def called(row: Row, place: int) -> str:
    """Return what to call a row: by its number in the data, if that is known, or else in its batch."""
    return f"row {row.number}" if isinstance(row, Numbered) else f"row {place} of a batch"


def not_finite(data: str, name: str, rows: np.ndarray) -> ValueError:
    return ValueError(f"{data}: {name!r} is NaN or infinite in {rows_said(rows)}. {REPAIR}.")


def _beyond(data: str, name: str, size: int, value: int, rows: np.ndarray) -> ValueError:
    if name not in TOKENS:
        return ValueError(
            f"{data}: {name!r} is {value} in {rows_said(rows)}, and the network's table for it has {size} entries, 0 "
            f"to {size - 1}."
        )
    advice = (
        "use the tokenizer that the network was trained with or, if tokens were added to it, "
        "model.resize_token_embeddings(len(tokenizer))"
        if value >= 0
        else "fill up short texts with the tokenizer's padding token, and mark them in 'attention_mask'"
    )
    return ValueError(
        f"{data}: {name!r} has the token {value} in {rows_said(rows)}, and the network knows {size} tokens, 0 to "
        f"{size - 1}: {advice}."
    )


def _no_tokens(data: str, name: str, rows: np.ndarray) -> ValueError:
    return ValueError(f"{data}: {name!r} has no tokens, as of an empty text, in {rows_said(rows)}. {REPAIR}.")


def _too_long(data: str, longest: int, limit: int, rows: np.ndarray) -> ValueError:
    return ValueError(
        f"{data}: 'input_ids' has more tokens than the network's {limit} positions, up to {longest}, in "
        f"{rows_said(rows)}: cut texts when they are tokenised, tokenizer(…, truncation=True, max_length={limit}), or "
        "give the texts themselves, which are cut."
    )


def _unseen(data: str, rows: np.ndarray) -> ValueError:
    return ValueError(
        f"{data}: {MASK!r} is 0 everywhere in {rows_said(rows)}, of which the network would see nothing. Remove such "
        "rows, or give the mask that the tokenizer returns."
    )


def columns_of_rows(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Column]:
    """Return the columns of some rows in which each has a list of numbers, or a list of such lists."""
    return {
        name: column
        for name in names
        if name in rows[0] and (column := _of_lists([row.get(name) for row in rows])) is not None
    }


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


def not_numbers(name: str, column: str, value: Any, where: str) -> ValueError:
    """Return the error about a value that is to be numbers, and is not."""
    renamed = " Call the column 'messages'." if are_messages(value) else ""
    return ValueError(
        f"{name}: {column!r} is {value!r:.60} in {where}, of type {type(value).__name__}, where numbers are "
        f"needed.{renamed}"
    )
