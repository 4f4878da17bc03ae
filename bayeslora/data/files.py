"""Data from files and tables, and their splits."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bayeslora.paths import check_place
from bayeslora.types import Data

if TYPE_CHECKING:
    from datasets import DatasetDict

LABELS = ("labels", "label", "label_ids")
"""Columns that hold the labels."""


def split(data: Data, name: str) -> Data:
    """Return a split of a `datasets.DatasetDict`, None if it has none of that name; any other data is all `train`."""
    if isinstance(data, Mapping) and data and all(hasattr(value, "column_names") for value in data.values()):
        if name == "train" and name not in data:
            raise ValueError(f"The data has no 'train' split, only {', '.join(data)}.")
        return data.get(name)
    return tabular(data) if name == "train" else None


def tabular(data: Data) -> Data:
    """Return pandas tables and texts by name as a `datasets.Dataset`, tables of numbers as arrays, other data as is."""
    if isinstance(data, Mapping):
        columns = [value for value in data.values() if isinstance(value, list)]
        if len(columns) < len(data) or not all(value and isinstance(value[0], str) for value in columns):
            return data
    elif not (hasattr(data, "columns") and hasattr(data, "to_numpy")):
        return data
    import datasets

    if isinstance(data, Mapping):
        return datasets.Dataset.from_dict(data)
    label = next((name for name in LABELS if name in data.columns), None)
    inputs = data if label is None else data.drop(columns=label)
    if all(dtype.kind in "fiub" for dtype in inputs.dtypes):
        values = inputs.to_numpy(np.float32, copy=True)
        return values if label is None else (values, data[label].to_numpy(copy=True))
    return datasets.Dataset.from_pandas(data, preserve_index=False)


def read(name: str) -> "DatasetDict":
    """Read a `datasets.DatasetDict` from a CSV, JSON or Parquet file, a folder of them, or the hub.

    Raises:
        ValueError: If it is not there, is empty, has another ending, or cannot be read.
    """
    from datasets import load_dataset

    check_place(name, "data", ", or a name on the hub")
    path = Path(name)
    kinds = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
    if path.is_file():
        if path.suffix not in kinds:
            raise ValueError(f"{name} ends in {path.suffix!r}; give a file that ends in {', '.join(kinds)}.")
        if not path.stat().st_size:
            raise ValueError(f"{name} is empty: give a file with a row for each example.")
    elif path.is_dir() and not any(path.iterdir()):
        raise ValueError(f"{name} is an empty folder: give one with data files, or a file.")
    try:
        return load_dataset(kinds[path.suffix], data_files=name) if path.is_file() else load_dataset(name)
    except Exception as error:
        raise ValueError(_failed(name, path, error)) from error


def _failed(name: str, path: Path, error: Exception) -> str:
    """Return what to say of data that could not be read."""
    reason = " ".join(str(error.__cause__ or error).split())
    if "corresponds to no data" in reason:
        return f"{name} has no rows: give a file with a row for each example."
    if path.is_file():
        return f"{name} cannot be read as {path.suffix[1:]}: {reason[:300] or 'it has no rows'}."
    if path.is_dir():
        return f"{name} is a folder whose files cannot be read as data: {reason:.300}."
    return f"{name!r} is not a file or folder, and the hub does not have it: {reason:.300}."
