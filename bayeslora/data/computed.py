"""Rows that are computed when they are asked for, or stream by: their texts, and their labels before they are read."""

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset

from bayeslora.contracts import ArgumentError
from bayeslora.data.columns import INPUTS, LABELS, Columns, class_names, label_of
from bayeslora.data.forms import Part, check_repeatable, row_at
from bayeslora.isolation import seeded
from bayeslora.tasks import conversations
from bayeslora.tasks.labels import RawLabels

FEW = (str, bool, int, float, type(None))
"""What stands beside a text in a row that is not the network's input already."""


def untransformed(data: Any) -> Any:
    """Return a table of `datasets` whose transform makes its rows as a torch `Dataset` of them; others as they are.

    Columns of such a table cannot be taken out, or renamed, because the transform is for those that there were.
    """
    is_custom = getattr(data, "format", None) is not None and hasattr(data, "with_transform")
    return Part(data, range(len(data))) if is_custom and data.format.get("type") == "custom" else data


def named(labels: RawLabels | None, data: Any, asked: Columns, known: Columns, name: str) -> RawLabels | None:
    """Return labels with the names that the table behind computed rows declares for their classes, if it does.

    They are those of labels which a transform leaves as they are: that is looked at in the first row.

    Args:
        labels: The labels; None if they are not known yet, and then none are returned with the names.
        data: The rows.
        asked: The columns that the user names.
        known: The columns of the fit.
        name: What to call the data in messages.

    Raises:
        ArgumentError: If there are several tables, which number their classes in other ways.
    """
    every = {_names_in(table, asked, known) for table in _tables(data)}
    if len(every) > 1:
        orders = " and ".join(sorted(", ".join(each[1]) if each else "without names" for each in every)[:2])
        raise ArgumentError(
            f"{name} is put together from tables that number their classes in other ways, {orders}: let all have the "
            "same names, table.cast_column('label', datasets.ClassLabel(names=[…]))."
        )
    own = every.pop() if every else None
    return labels if own is None else replace(labels or RawLabels([], own[0], None, name), names=own[1])


def _tables(data: Any) -> list[Any]:
    """Return the tables of `datasets` behind parts, loaders and others that leave their labels as they are."""
    if hasattr(data, "column_names") and hasattr(data, "features"):
        return [data]
    collate = getattr(data, "collate_fn", None)
    made_by = str(getattr(collate, "__module__", "")).partition(".")[0]  # the function's, or its class's
    if isinstance(data, Subset) or (isinstance(data, DataLoader) and made_by in ("torch", "transformers")):
        return _tables(data.dataset)
    return [table for each in data.datasets for table in _tables(each)] if isinstance(data, ConcatDataset) else []


def _names_in(table: Any, asked: Columns, known: Columns) -> tuple[str, tuple[str, ...]] | None:
    """Return the column of labels of a table, and the names of its classes; None if it has none."""
    features = table.features or {}
    label = label_of([*features], asked, known, ())
    names = class_names(features.get(label))
    if label is None or names is None:
        return None
    if (getattr(table, "format", None) or {}).get("type") == "custom":
        with seeded(0):
            try:
                row, stored = table[0], table.with_format(None)[0][label]
            except Exception:  # of the user's own code: it is raised again where rows are read
                return None
        found = next((row[each] for each in (label, *LABELS) if each in row), None)
        if not np.array_equal(np.asarray(found), np.asarray(stored)):
            return None
    return label, names


def texts(data: "Dataset[Any]", label: str | None) -> list[Any] | None:
    """Return the rows of a dataset if they have texts, which are then read once; None if they are a network's inputs.

    Args:
        data: A dataset whose rows have numbers.
        label: The column of labels that the user names.
    """
    with seeded(0):  # rows may be read with random changes
        try:
            size = len(data)  # type: ignore[arg-type]
            are_texts = size > 0 and _has_texts(data[0], label)
        except Exception:  # of the user's own code: it is raised again, with the row, where rows are needed
            return None
        return [row_at(data, index) for index in range(size)] if are_texts else None


def columns_of_first(rows: Any) -> tuple[str, ...]:
    """Return the columns of the first row of a dataset or list; none if it has none, or cannot be read."""
    with seeded(0):  # rows may be read with random changes
        try:
            row = rows[0]
        except Exception:  # of the user's own code: it is raised again, with the row, where rows are needed
            return ()
    return tuple(map(str, row)) if isinstance(row, Mapping) else ()


def check_length(data: "Dataset[Any]", name: str) -> None:
    """Raise an `ArgumentError` if a dataset of the user's has a `__len__` that does not return a number of rows."""
    try:
        len(data)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError) as error:
        if hasattr(data, "__len__"):
            raise ArgumentError(
                f"{name} is a {type(data).__name__} whose length cannot be told ({error}): let its __len__ return the "
                "number of its rows."
            ) from error


def check_loader(loader: DataLoader[Any], label: str | None, name: str) -> None:
    """Raise an `ArgumentError` if a loader gives texts, which nothing would turn into tokens."""
    if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
        return
    with seeded(0):
        try:
            row = loader.dataset[0]
        except Exception:  # a dataset without rows, or whose sampler gives other keys than numbers
            return
    if getattr(loader.collate_fn, "__name__", "") == "default_collate" and _has_texts(row, label):
        raise ArgumentError(f"{name} is a DataLoader of texts: give its dataset, loader.dataset, and batch_size=….")


def _has_texts(row: Any, label: str | None) -> bool:
    if isinstance(row, Mapping):
        if {*INPUTS} & {*row} or conversations.columns_in(row):
            return False
        values = [value for key, value in row.items() if key not in (*LABELS, label)]
        alone = all(isinstance(value, FEW) for value in values) and any(isinstance(value, str) for value in values)
        return alone or any(map(_holds_texts, values))
    first = row[0] if isinstance(row, tuple | list) and len(row) == 2 else row
    pair = isinstance(first, tuple | list) and len(first) == 2 and all(isinstance(each, str) for each in first)
    return pair or isinstance(first, str)


def _holds_texts(value: Any) -> bool:
    """Whether a value is words, choices, answers: a list or mapping that has a text in it."""
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return any(isinstance(part, str) or _holds_texts(part) for part in parts)


def seen(
    data: Any, asked: Columns, num_examples: int | None, name: str, only_texts: bool = False
) -> tuple[tuple[str, ...], RawLabels | None]:
    """Return the columns and the labels of rows that are computed or stream by, from one pass over them.

    Args:
        data: A dataset, loader or stream.
        asked: The columns that the user names.
        num_examples: Examples of a stream.
        name: What to call the data in messages.
        only_texts: Whether only labels that are texts are looked for.

    Returns:
        Names of columns, and the labels; none, and None, if the rows have no names, or no labels.

    Raises:
        TypeError: If it is a stream that can be read only once.
    """
    rows: Any
    if isinstance(data, IterableDataset):
        check_repeatable(data, name)
        rows = itertools.islice(data, num_examples) if num_examples else ()
    elif isinstance(data, DataLoader):
        rows = data.dataset if not isinstance(data.dataset, IterableDataset) else ()
    else:
        rows = data if isinstance(data, Dataset) and hasattr(data, "__len__") else ()
    found: list[Any] = []
    names: tuple[str, ...] = ()
    with seeded(0):
        for row in (row_at(rows, index) for index in range(len(rows))) if hasattr(rows, "__getitem__") else rows:
            column = next((each for each in (asked.label, *LABELS) if isinstance(row, Mapping) and each in row), None)
            if column is not None:
                found.append(row[column])
            elif isinstance(row, tuple | list) and len(row) == 2:
                found.append(row[1])
            else:
                return (), None
            if only_texts and not isinstance(found[0], str):
                return (), None
            names = names or (tuple(map(str, row)) if isinstance(row, Mapping) else ())
    return names, RawLabels(found, asked.label or LABELS[0], None, name) if found else None
