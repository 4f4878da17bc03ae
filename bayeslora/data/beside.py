"""Columns that are taken out of data in any form, and labels that stand in several of them, one for each class."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, IterableDataset

from bayeslora.contracts import ArgumentError
from bayeslora.data.columns import Columns
from bayeslora.tasks.checking import is_missing, rows_said
from bayeslora.tasks.labels import RawLabels
from bayeslora.types import Data

WRITTEN = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
"""Texts that say whether a label applies."""


def columns_of(data: Data) -> tuple[str, ...] | None:
    """Return the names of the columns of data; None if it is not a table that is stored."""
    if isinstance(data, DataLoader | IterableDataset):
        return None
    if hasattr(data, "column_names") and hasattr(data, "map"):
        return tuple(data.column_names)
    if hasattr(data, "columns") and hasattr(data, "iloc"):
        return tuple(data.columns)
    if isinstance(data, Mapping):
        return tuple(data)
    if isinstance(data, list) and data and all(isinstance(row, Mapping) for row in data):
        return tuple(dict.fromkeys(key for row in data for key in row))
    return None


def framed(data: Data, known: Columns) -> Data:
    """Return a table that has the columns of numbers of the fit as pandas has it; other data as they are."""
    if not known.features or not {*known.features} <= {*(columns_of(data) or ())}:
        return data
    import pandas as pd

    table: Any = data
    if hasattr(table, "with_format"):
        return table if table.format["type"] == "custom" else table.with_format(None).to_pandas()
    with contextlib.suppress(ValueError):  # of columns of unequal length, or numbers alone, which are refused elsewhere
        return pd.DataFrame(table) if isinstance(table, Mapping | list) else table
    return data


def taken(data: Data, columns: Sequence[str]) -> tuple[Data, dict[str, Any]]:
    """Return a table without some of its columns, and those of them that it has, by their names."""
    found = [column for column in columns if column in (columns_of(data) or ())]
    if not found:
        return data, {}
    if hasattr(data, "column_names"):
        rows = data.with_format(None)
        return data.remove_columns(found), {column: rows[column][:] for column in found}
    if hasattr(data, "iloc"):
        return data.drop(columns=found), {column: data[column].to_numpy() for column in found}
    if isinstance(data, Mapping):
        return {key: value for key, value in data.items() if key not in found}, {key: data[key] for key in found}
    assert isinstance(data, list)
    rest = [{key: value for key, value in row.items() if key not in found} for row in data]
    return rest, {column: [row.get(column) for row in data] for column in found}


def check_there(names: Sequence[str], there: Sequence[Any], data: str) -> None:
    """Raise a ValueError if columns of labels that are looked for are not all there."""
    lacking = [name for name in names if name not in there]
    if lacking:
        raise ValueError(
            f"label={list(names)}: {data} has no column {', '.join(map(repr, lacking))}, only "
            f"{', '.join(map(str, there))}."
        )


def side_by_side(columns: Mapping[str, Any], data: str) -> RawLabels:
    """Return columns that each say whether a class applies as one row of 0 and 1 for each example.

    Real numbers stay as they are, without names: they are for a likelihood of the user's own.

    Args:
        columns: Whether a class applies to each row, 0 or 1, by the name of the class.
        data: What to call the data in messages.

    Raises:
        ArgumentError: If a column says something else.
        ValueError: If a label is missing.
    """
    name, numbers = ", ".join(columns), []
    for column, values in columns.items():
        each = [WRITTEN.get(v.strip().casefold(), v) if isinstance(v, str) else v for v in np.asarray(values).tolist()]
        if empty := [row for row, value in enumerate(each) if is_missing(value) or value == ""]:
            raise ValueError(f"{data}: the label in {column!r} is missing in {rows_said(empty)}. Remove such rows.")
        are_real = all(isinstance(v, float) for v in each)
        odd = next((row for row, v in enumerate(each) if v not in (0, 1)), None)
        if odd is not None and not are_real:
            raise ArgumentError(
                f"label={list(columns)}: {data} has {each[odd]!r:.40} in {column!r}, row {odd}, and each of several "
                "columns says whether its class applies, 0 or 1. Remove such rows, or name one column."
            )
        numbers.append(np.asarray(each, dtype=np.float64))
    matrix = np.stack(numbers, axis=1)
    if np.isin(matrix, (0, 1)).all():
        return RawLabels(matrix.astype(np.int64), name, tuple(columns), data)
    return RawLabels(matrix, name, None, data)
