"""Data in the forms that people have them, as inputs in one of a few forms, and their labels."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from bayeslora.contracts import ArgumentError
from bayeslora.data import annotated, computed, mistaken, written
from bayeslora.data.beside import check_there, columns_of, framed, side_by_side, taken
from bayeslora.data.columns import (
    LABELS,
    NOTHING,
    USUAL_OF_NUMBERS,
    Columns,
    Found,
    check_asked,
    choose,
    class_names,
    features_of,
    label_of,
    written_out,
)
from bayeslora.data.forms import check_form
from bayeslora.data.tabling import as_table, plain_table
from bayeslora.tasks import conversations
from bayeslora.tasks.checking import REPAIR, is_missing
from bayeslora.tasks.labels import RawLabels
from bayeslora.types import Data

NONE_FOUND = Found()


@dataclass(frozen=True)
class Plain:
    """Inputs of a network, or what they are made of, and labels.

    Args:
        inputs: A `datasets.Dataset`, whose labels, if it has any, are in the column `labels`; a list of texts, or of
            pairs of texts; an array, or a mapping of arrays; or what is read row by row: a list of mappings, a torch
            `Dataset`, a `DataLoader`, a stream.
        labels: The labels, if they can be told without reading the rows.
        columns: The columns that were read, if there are any.
        names: Names of all columns; of texts without one, `text`.
    """

    inputs: Any
    labels: RawLabels | None = None
    columns: Found = NONE_FOUND
    names: tuple[str, ...] = ()

    @property
    def are_texts(self) -> bool:
        """Whether the inputs are texts, or pairs of them, that stand in no table."""
        return isinstance(self.inputs, list) and any(map(_is_text, self.inputs)) and "text" in self.names


@dataclass(frozen=True)
class How:
    """How data are read; `plain` says what the arguments are."""

    asked: Columns
    known: Columns
    name: str
    with_labels: bool


def plain(
    data: Data, asked: Columns = NOTHING, known: Columns = NOTHING, name: str = "data", with_labels: bool = True
) -> Plain:
    """Return data in one of the forms that a `Plain` lists, and their labels.

    Args:
        data: Data in any form.
        asked: The columns that the user names.
        known: The columns of the fit.
        name: What to call the data in messages.
        with_labels: Whether labels are wanted.

    Raises:
        ValueError: If a column is not there.
    """
    return data if isinstance(data, Plain) else _plain(data, How(asked, known, name, with_labels))


def _plain(data: Data, how: How) -> Plain:
    if several := how.asked.labels or (how.known.labels if how.asked.label is None else ()):
        return _of_several(data, several, how)
    if isinstance(data, DataLoader):
        computed.check_loader(data, how.asked.label, how.name)
    if isinstance(data, DataLoader | IterableDataset):
        return _row_by_row(data, how)
    data = written.records(computed.untransformed(framed(data, how.known)))
    check_form(data, how.name)
    if hasattr(data, "column_names") and hasattr(data, "map"):
        return _table(data, how)
    if isinstance(data, Dataset):
        computed.check_length(data, how.name)
        rows = computed.texts(data, how.asked.label)
        read = Plain(data) if rows is None else _list(rows, how)
        if not how.with_labels:
            return read
        return replace(read, labels=computed.named(read.labels, data, how.asked, how.known, how.name))
    if isinstance(data, tuple) and len(data) == 2 and not isinstance(data[0], str):
        if (words := annotated.of_pair(data)) is not None:
            return _table(as_table(words, how.name), how)
        mistaken.check_pair(data, how.name)
        if _is_frame(data[0]):
            return _frame(data[0], how, raw(data[1], "labels", how.name))
        inputs = _plain(data[0], replace(how, with_labels=False))
        labels = raw(data[1], "labels", how.name)
        if hasattr(inputs.inputs, "column_names"):
            table = inputs.inputs
            table = table.remove_columns("labels") if "labels" in table.column_names else table
            return _table(table, how, labels)
        return replace(inputs, labels=labels)
    if _is_frame(data):
        return _frame(data, how)
    if isinstance(data, Mapping):
        return _mapping(dict(data), how)
    values = _values(data)
    return _list(values, how) if isinstance(values, list) and values else Plain(values)


def _of_several(data: Data, several: tuple[str, ...], how: How) -> Plain:
    """Return a table whose labels stand in several columns, and any other data as if none were asked for.

    Columns of the fit may be missing together; a row of labels may then stand in one column.
    """
    are_asked, name = bool(how.asked.labels), how.name
    how = replace(how, asked=replace(how.asked, labels=()), known=replace(how.known, labels=()))
    if isinstance(data, tuple) and len(data) == 2 and {*several} <= {*(columns_of(data[1]) or ())}:
        labels = side_by_side(taken(data[1], several)[1], name)
        read = _plain((data[0], labels), how)
        return replace(read, columns=replace(read.columns, labels=several))
    if columns_of(data) is None and are_asked and how.with_labels:
        raise ArgumentError(f"label={list(several)}: {name} is not a table with such columns: give one.")
    rest, found = taken(data, several)
    if how.with_labels and (are_asked or found):
        check_there(several, columns_of(data) or (), name)
    if not found or not how.with_labels:
        return _plain(rest, how)
    labels = side_by_side(found, name)
    if _is_frame(rest):
        read = _frame(rest, how, labels)
    elif hasattr(rest, "column_names"):
        read = _table(rest, how, labels)
    else:
        columns = taken(rest, columns_of(rest) or ())[1]
        if any(map(_holds_texts, columns.values())):
            read = _table(as_table(columns, name), how, labels, columns)
        else:
            read = Plain(columns, labels, Found(), tuple(columns))
    return replace(read, columns=replace(read.columns, labels=several))


def raw(labels: Any, column: str, name: str) -> RawLabels:
    """Return labels with the names of their classes, if they have any.

    Args:
        labels: A list, an array, a pandas `Series`, a table with a column per class, or a column of `datasets`.
        column: What to call their column in messages.
        name: What to call the data in messages.
    """
    if isinstance(labels, RawLabels):
        return labels
    if not hasattr(labels, "__len__") or isinstance(labels, str | bytes) or getattr(labels, "ndim", 1) == 0:
        raise ValueError(
            f"{name}: the labels are one {type(labels).__name__}: give an array with one for each example."
        )
    if _is_frame(labels):
        if labels.shape[1] == 1:
            return raw(labels.iloc[:, 0], column, name)
        mistaken.check_labels(labels, name)
        return RawLabels(labels.to_numpy(copy=True), column, tuple(map(str, labels.columns)), name)
    categories = getattr(getattr(labels, "dtype", None), "categories", None)
    if categories is not None:
        values = np.asarray(labels, dtype=object).tolist()
        if all(isinstance(each, int | float | np.number | np.bool_) for each in categories):
            return RawLabels(values, _name_of(labels, column), None, name)
        values = [None if is_missing(value) else str(value) for value in values]
        return RawLabels(values, _name_of(labels, column), tuple(map(str, categories)), name)
    if hasattr(labels, "to_numpy"):
        values = labels.to_numpy(copy=True)
        return RawLabels(values, _name_of(labels, column), None, name)
    feature = getattr(labels, "features", None)
    if feature is not None and not isinstance(labels, Mapping):  # a column of `datasets`
        return RawLabels(labels[:], getattr(labels, "column_name", column), class_names(feature), name)
    return RawLabels(labels, column, None, name)


def _name_of(series: Any, default: str) -> str:
    own = getattr(series, "name", None)
    return default if own is None else str(own)


def _is_frame(data: Any) -> bool:
    """Whether data is a table of pandas, or one that can be turned into one as polars' can."""
    return hasattr(data, "columns") and hasattr(data, "to_numpy") and hasattr(data, "iloc")


def _is_text(value: Any) -> bool:
    """Whether a value is a text, or a pair of texts."""
    pair = isinstance(value, list | tuple) and len(value) == 2
    return isinstance(value, str) or (pair and all(isinstance(each, str) for each in value))


def _values(data: Any) -> Any:
    """Return a `Series`, a column of `datasets`, or an array as an array of numbers, or as a list of anything else."""
    if isinstance(data, Tensor):
        return data
    if hasattr(data, "column_name") and hasattr(data, "source"):  # a column of `datasets`
        data = data[:]
    if hasattr(data, "to_numpy"):
        data = data.to_numpy(copy=True)
    if isinstance(data, np.ndarray | np.generic):
        data = np.asarray(data)
        data = data[:, 0] if data.dtype.kind in "OUS" and data.ndim == 2 and data.shape[1] == 1 else data
        data = data if data.dtype.kind in "biufc" else data.tolist()
    if isinstance(data, list | tuple) and len(data) and isinstance(data[0], bytes):
        return [value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in data]
    return list(data) if isinstance(data, tuple) else data


def _unwrapped(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _are_words(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(each, str) for each in value)


def _list(values: list[Any], how: How) -> Plain:
    """Return a list of texts, of pairs, of rows as mappings, or of inputs with their labels."""
    asked, known, name = how.asked, how.known, how.name
    if all(value is None for value in values):
        raise ValueError(f"{name}: all {len(values)} rows are missing (None). {REPAIR}.")
    if (columns := annotated.of_rows(values, known)) is not None:
        return _table(as_table(columns, name), how)
    values = conversations.as_rows(values)
    first = _unwrapped(values[0])
    if (
        isinstance(first, Mapping)
        and not asked.text
        and conversations.are_lists(conversations.columns_in(first), first)
    ):
        names = tuple(dict.fromkeys(key for row in values for key in row))  # not as a table, which unites their fields
        return Plain(values, None, Found(id=asked.id), names)
    if any(isinstance(value, str) for value in values):
        return Plain([str(_unwrapped(value)) if isinstance(value, str) else value for value in values], names=("text",))
    if all(isinstance(row, Mapping) for row in values):
        if any(
            isinstance(each, str) or _are_words(each) for row in values for k, each in row.items() if k not in LABELS
        ):
            keys = dict.fromkeys(key for row in values for key in row)
            columns = {key: [row.get(key) for row in values] for key in keys}
            return _table(as_table(columns, name), how, given=columns)
        mistaken.check_rows(values, name)
        return Plain(values)
    if all(isinstance(row, list | tuple) and len(row) == 1 and isinstance(row[0], str) for row in values):
        return Plain([row[0] for row in values], names=("text",))
    if isinstance(first, list | tuple) and 2 <= len(first) <= 3 and all(len(row) == len(first) for row in values):
        if len(first) == 3 and isinstance(first[0], str) and isinstance(first[1], str):
            pairs = [(row[0], row[1]) for row in values]
            return Plain(pairs, raw([row[2] for row in values], "labels", name), names=("text",))
        if len(first) == 2 and _is_text(first[0]):
            texts_alone = isinstance(first[0], str) and isinstance(first[1], str)
            if texts_alone and (len(known.text) == 2 or (not how.with_labels and not known.text)):
                return Plain([tuple(row) for row in values], names=("text",))
            return Plain(
                [row[0] if isinstance(row[0], str) else tuple(row[0]) for row in values],
                raw([row[1] for row in values], "labels", name),
                names=("text",),
            )
    mistaken.check_rows(values, name)
    return Plain(values)


def _mapping(data: dict[str, Any], how: How) -> Plain:
    """Return a mapping of texts as a table, and one of numbers as arrays."""
    asked, name = how.asked, how.name
    if (one := next((key for key, value in data.items() if isinstance(value, str)), None)) is not None:
        raise ArgumentError(
            f"{name}: {one!r} is one text, {str(data[one])!r:.60}: give a list of texts for each column, or a list of "
            "records."
        )
    talk = conversations.columns_in(data)
    if talk and conversations.are_lists(talk, {key: next(iter(data[key]), None) for key in talk}):
        columns = {key: list(_values(value)) for key, value in data.items()}
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return _list(rows, how)
    labels = (*LABELS, asked.label)
    named = {*(asked.text or how.known.text)}
    texts = bool(named & {*data}) or any(_holds_texts(value) for key, value in data.items() if key not in labels)
    if texts:
        columns = {key: list(_values(value)) for key, value in data.items()}
        mistaken.check_lengths(columns, name)
        return _table(as_table(columns, name), how, given=data)
    column = asked.label if asked.label in data else next((key for key in LABELS if key in data), None)
    arrays = {key: value for key, value in data.items() if key != column}
    given = None if column is None else raw(data[column], str(column), name)
    return Plain(arrays, given, Found(label=column), tuple(data))


def _holds_texts(values: Any) -> bool:
    values = _values(values)
    if not isinstance(values, list | tuple) or not values:
        return False
    first = values[0]
    return isinstance(first, str) or (
        isinstance(first, list | tuple | np.ndarray) and any(isinstance(v, str) for v in first)
    )


def _frame(frame: Any, how: How, labels: RawLabels | None = None) -> Plain:
    """Return a table of pandas: one of numbers as an array, any other as a `datasets.Dataset`."""
    asked, known, name = how.asked, how.known, how.name
    names = [*map(str, frame.columns)]
    twice = [column for column in dict.fromkeys(names) if names.count(column) > 1]
    if twice:
        raise ValueError(f"{name} has several columns {', '.join(map(repr, twice))}: give each a name of its own.")
    frame = frame.set_axis(names, axis=1)
    talk = conversations.columns_in(names)
    if labels is None and talk and len(frame) and conversations.are_lists(talk, dict(frame.iloc[0])):
        return _list(frame.to_dict("records"), how)
    label = None if labels is not None else label_of(names, asked, known, USUAL_OF_NUMBERS)
    numeric = [column for column in names if _is_numeric(frame[column])]
    inputs = features_of(names, label, known if {*known.features} <= {*names} else NOTHING, asked, name)
    rest = [column for column in inputs if column not in numeric]
    one_is_left = len(rest) == 1 and len(inputs) > 1 and not known.text and not _is_prose(frame[rest[0]])
    if label is None and labels is None and asked.label is None and one_is_left:
        # The one column beside numbers that is none.
        label, rest = rest[0], []
        inputs = [column for column in inputs if column != label]
    if inputs and not rest and not asked.text and not ({*known.text} & {*names}):
        check_asked(names, asked, name, how.with_labels and labels is None)
        inputs = features_of(names, label, known, asked, name)
        array = frame[inputs].to_numpy(np.float32, copy=True)
        given = labels if labels is not None else None if label is None else raw(frame[label], label, name)
        ignored = tuple(column for column in names if column not in (*inputs, label, asked.id))
        return Plain(array, given, Found((), label, asked.id, tuple(inputs), ignored=ignored))
    columns = {column: _values(frame[column]) for column in names}
    columns = {
        column: [None if is_missing(value) else value for value in values]
        if isinstance(values, list) and not any(isinstance(value, list | np.ndarray) for value in values)
        else values
        for column, values in columns.items()
    }
    return _table(as_table(columns, name), how, labels, frame)


def _is_numeric(series: Any) -> bool:
    return getattr(series.dtype, "kind", "O") in "fiub" and not hasattr(series.dtype, "categories")


def _is_prose(series: Any) -> bool:
    """Whether a column holds texts to be read, which differ from row to row, and not a few words."""
    values = [value for value in series.tolist() if isinstance(value, str)]
    return len(values) < len(series) or 2 * len({*values}) > len(values)


def _table(table: Any, how: How, labels: RawLabels | None = None, given: Any = None) -> Plain:
    """Return a `datasets.Dataset` with its labels in the column `labels`.

    Args:
        table: The table.
        how: How it is read.
        labels: Labels that are given beside it.
        given: What the table was made of, if its columns say more.
    """
    table = plain_table(table)
    new = table if labels is not None else annotated.rewritten(table, how.asked, how.known, how.name, how.with_labels)
    table, given = new, given if new is table else None
    beside = None if labels is None else list(labels.plain)
    found = choose(table, how.asked, how.known, how.name, how.with_labels, beside)
    label, table = found.label, written_out(table, found.text)
    names = (*table.column_names, *(("text",) if found.text else ()))
    if label is not None:
        if label != "labels":
            table = table.remove_columns("labels") if "labels" in table.column_names else table
            table = table.rename_column(label, "labels")
        own = class_names(table.features.get("labels")) if table.features else None
        if own is None and given is not None and hasattr(given[label], "dtype"):
            labels = raw(given[label], label, how.name)
        else:
            labels = RawLabels(table.with_format(None)["labels"], label, own, how.name)
    return Plain(table, labels, found, names)


def _row_by_row(data: Any, how: How) -> Plain:
    """Return a loader or a stream, with the names of its classes, if it has any."""
    asked, known = how.asked, how.known
    names = tuple(getattr(data, "column_names", None) or ())
    label = label_of(names, asked, known, ()) if names else None
    labels = computed.named(None, data, asked, known, how.name)
    texts = asked.text or known.text if {*(asked.text or known.text)} <= {*names} else ()
    return Plain(data, labels, Found(texts, asked.label or label, asked.id), names)
