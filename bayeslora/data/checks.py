"""Find what a network cannot read in the inputs before it is run on them, and name the row.

Each check looks at all numbers of a column, or of a batch, at once; rows are told apart only where one is bad.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from bayeslora.contracts import ArgumentError
from bayeslora.data.columns import NOTHING, Columns
from bayeslora.data.computed import columns_of_first
from bayeslora.data.forms import Arrays, Numbered
from bayeslora.data.plain import Plain
from bayeslora.data.stored import Column, columns_of_rows, columns_of_table
from bayeslora.limits import Limits
from bayeslora.tasks.checking import REPAIR, rows_said
from bayeslora.tasks.conversations import are_messages
from bayeslora.types import Batch, Row

TOKENS = ("input_ids", "decoder_input_ids")
MASK = "attention_mask"
BESIDE_TOKENS = (MASK, "token_type_ids", "position_ids")
"""Inputs with a number for each token of `input_ids`."""
MEDIA = {"Image": "images", "Audio": "sounds", "Video": "films"}
"""Columns of `datasets` that a processor has to read, by the names of their types."""


NOT_NAMED = {
    "text": "text out: what is given is what the network reads",
    "label": "label out: the labels are those given beside the inputs",
    "id": "id out: the prediction's rows are those of the data, in their order",
}
"""What to leave of data without columns, and why."""


def columns_are_read(asked: Columns, found: Plain, name: str, with_labels: bool) -> None:
    """Raise an `ArgumentError` if a column was named, and the data have no columns: the name would be left out.

    Args:
        asked: The columns named.
        found: The data, whose columns may only be seen in their rows.
        name: What to call the data in messages.
        with_labels: Whether labels are read.
    """
    read = found.columns
    if isinstance(found.inputs, IterableDataset):  # whose columns are seen as they stream by
        return
    by_row = isinstance(found.inputs, Dataset | list)
    asks = {"text": asked.text and not read.text, "id": asked.id not in (None, read.id)}
    asks["label"] = with_labels and asked.label not in (None, read.label)
    names = found.names or (columns_of_first(found.inputs) if by_row and any(asks.values()) else ())
    lost = {**asks, "id": asks["id"] and not (by_row and asked.id in names)}
    if asks["label"]:
        named = found.labels is not None and not by_row and found.labels.name == asked.label  # a `Series` has a name
        lost["label"] = not named and not (by_row and asked.label in names)
    for keyword in filter(lost.get, NOT_NAMED):
        has_others = keyword == "label" and "text" not in names
        raise _not_there(keyword, getattr(asked, keyword), name, names if has_others else ())


def check_asked(asked: Columns, row: Any, name: str, with_labels: bool) -> None:
    """Raise an `ArgumentError` if a row of a stream or a loader, or a batch of one, lacks a column that was named."""
    if asked is NOTHING:
        return
    names = tuple(map(str, row)) if isinstance(row, Mapping) else ()
    wanted = {"text": asked.text, "label": (asked.label,) if with_labels else (), "id": (asked.id,)}
    for keyword, columns in wanted.items():
        if any(column is not None and column not in names for column in columns):
            raise _not_there(keyword, getattr(asked, keyword), name, names)


def _not_there(keyword: str, column: Any, data: str, names: Sequence[str]) -> ArgumentError:
    """The error about a column that was named and is not among those that there are, if there are any."""
    if isinstance(column, tuple):
        column = column[0] if len(column) == 1 else [*column]
    if names:
        return ArgumentError(f"{keyword}={column!r}: {data} has no such column, only {', '.join(names)}.")
    return ArgumentError(
        f"{keyword}={column!r}: {data} has no columns to name, only arrays or rows of them. Give a table that has "
        f"that column, or leave {NOT_NAMED[keyword]}."
    )


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
        bad = values % 1 != 0
        if name in limits.sizes and (bad.any() or name != MASK):
            raise _not_whole(data, name, column.rows_where(bad if bad.any() else ~bad) + start)
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
            if name in limits.sizes and (bool((bad := value % 1 != 0).any()) or name != MASK):
                raise _not_whole(name_of, name, rows(bad if bad.any() else ~bad))
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


def check_stored(data: str, rows: Any, limits: Limits, inputs: Collection[str] = ()) -> bool:
    """Check all rows of a dataset that are in memory, or in a table that gives them as they are stored.

    Args:
        data: What to call the data.
        rows: The dataset.
        limits: What the network can take in.
        inputs: Names of its inputs, which all rows have, or none.

    Returns:
        Whether they are.

    Raises:
        ValueError: If the network cannot read them; it names the first such row.
    """
    if isinstance(rows, Arrays):
        check_batch(data, rows.columns, limits)
        return True
    if isinstance(listed := getattr(rows, "rows", None), list):
        _check_names(data, listed, inputs)
    parts = stored_columns(data, rows, lambda name: name != "labels")
    if parts is None:
        return False
    for start, columns in parts:
        for name, column in columns.items():
            check_column(data, name, column, limits, start)
        check_lengths(data, columns, start)
    return True


def stored_columns(
    data: str, rows: Any, chosen: Callable[[str], bool]
) -> Iterable[tuple[int, dict[str, Column]]] | None:
    """Return the chosen columns of rows as they are stored, some rows at a time; None if they are not."""
    listed = getattr(rows, "rows", None)
    if isinstance(listed, list):
        return [(0, columns_of_rows(listed, [name for name in listed[0] if chosen(name)], data))]
    if hasattr(rows, "column_names") and rows.format["type"] != "custom":
        return columns_of_table(rows, [name for name in rows.column_names if chosen(name)])
    return None


def check_tags(data: str, rows: Any, per_token: bool) -> None:
    """Raise a ValueError if stored rows have another number of labels than of tokens, where each token has one."""
    if per_token:
        for start, columns in stored_columns(data, rows, lambda name: name in (TOKENS[0], "labels")) or ():
            check_lengths(data, columns, start)


def _check_names(data: str, rows: Sequence[Row], inputs: Collection[str]) -> None:
    """Raise a ValueError if a row lacks an input of the network's that others have."""
    for place, row in enumerate(rows):
        if row.keys() != rows[0].keys() and (odd := [n for n in inputs if (n in row) != (n in rows[0])]):
            raise lacking(data, rows, place, odd, of="")


def lacking(data: str, rows: Sequence[Row], place: int, names: Iterable[str], of: str = " of a batch") -> ValueError:
    """Return the error about a row that lacks what the first has, or has what that lacks.

    Args:
        data: What to call the data.
        rows: The rows.
        place: The row.
        names: What rows have.
        of: What rows without numbers of their own are counted in.
    """
    name = next(name for name in names if (name in rows[place]) != (name in rows[0]))
    row = place if name in rows[0] else 0
    return ValueError(
        f"{data}: {called(rows[row], row, of)} has no {name!r}, and others have: give it to all rows, or to none."
    )


def check_rows(data: str, rows: Sequence[Row], per_token: bool = False) -> None:
    """Raise a ValueError if a row lacks what others have, or a label for each token, where each token has one."""
    beside = (*BESIDE_TOKENS, "labels") if per_token else BESIDE_TOKENS
    for place, row in enumerate(rows):
        if row.keys() != rows[0].keys():
            raise lacking(data, rows, place, (*rows[0], *row))
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


def called(row: Row, place: int, of: str = " of a batch") -> str:
    """Return what to call a row: by its number in the data, if that is known, or else in its batch."""
    return f"row {row.number}" if isinstance(row, Numbered) else f"row {place}{of}"


def not_finite(data: str, name: str, rows: np.ndarray) -> ValueError:
    return ValueError(f"{data}: {name!r} is NaN or infinite in {rows_said(rows)}. {REPAIR}.")


def _beyond(data: str, name: str, size: int, value: int, rows: np.ndarray) -> ValueError:
    if name == MASK:
        return _not_a_mask(data, rows)
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


def _not_a_mask(data: str, rows: np.ndarray) -> ValueError:
    return ValueError(
        f"{data}: {MASK!r} holds something else than 0 and 1 in {rows_said(rows)}: give 1 where there is a token, and "
        "0 where there is padding."
    )


def _not_whole(data: str, name: str, rows: np.ndarray) -> ValueError:
    if name == MASK:
        return _not_a_mask(data, rows)
    return ValueError(
        f"{data}: {name!r} has real numbers in {rows_said(rows)}, and the network looks them up in a table: give whole "
        "ones, such as a tokenizer returns."
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


def not_numbers(name: str, column: str, value: Any, where: str) -> ValueError:
    """Return the error about a value that is to be numbers, and is not."""
    if is_image(value):
        return unprocessed(name, column, "images")
    renamed = " Call the column 'messages'." if are_messages(value) else ""
    if hasattr(value, "isoformat"):
        renamed = " Name another column, or give what counts of the date, such as the weekday, or the number of days."
    return ValueError(
        f"{name}: {column!r} is {value!r:.60} in {where}, of type {type(value).__name__}, where numbers are "
        f"needed.{renamed}"
    )


def check_processed(name: str, features: Mapping[str, Any]) -> None:
    """Raise a ValueError if a table without texts or numbers of the network has images, sounds or films."""
    for column, feature in features.items():
        if (kind := MEDIA.get(type(feature).__name__)) is not None:
            raise unprocessed(name, column, kind)


def is_image(value: Any) -> bool:
    """Whether a value is an image of PIL, which NumPy would read as bare numbers, neither resized nor scaled."""
    return any(kind.__module__.startswith("PIL.") for kind in type(value).__mro__)


def unprocessed(name: str, column: str, kind: str) -> ValueError:
    """Return the error about images, sounds or films that are not yet numbers."""
    return ValueError(
        f"{name}: {column!r} holds {kind}: give the network's inputs instead, which the model's processor makes of "
        "them. With processor = AutoProcessor.from_pretrained(…), a dataset becomes "
        f"dataset.with_transform(lambda rows: {{**processor(rows[{column!r}], return_tensors='pt'), 'label': "
        "rows['label']})."
    )
