"""Rows of data in the forms that `fit` reads: how many there are, some of them, and what tells them from others."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from bayeslora.data import opened, split
from bayeslora.hashing import hashed
from bayeslora.isolation import seeded
from bayeslora.types import Data


def part(data: Data | None, name: str) -> Any:
    """Return a split of a `DatasetDict`, a file, a folder or a hub name; data without splits are `train`; else None."""
    data = opened(data)
    return None if data is None else split(data, name)


def count(data: Data) -> int | None:
    """Return the number of rows; None if it is not known."""
    if isinstance(data, tuple) and len(data) == 2:
        return count(data[0])
    if isinstance(data, Mapping):
        return len(next(iter(data.values())))
    if isinstance(data, IterableDataset | DataLoader) or not hasattr(data, "__len__"):
        return None
    return len(data)


def take(data: Data, rows: Sequence[int], name: str = "data") -> Any:
    """Return some rows of data, in the form that the data has.

    Raises:
        TypeError: If it is a stream or a `DataLoader`.
    """
    if isinstance(data, IterableDataset | DataLoader) or not hasattr(data, "__len__"):
        raise TypeError(f"{name} is a {type(data).__name__}, of which no part can be taken: give a dataset.")
    if hasattr(data, "select") and hasattr(data, "column_names"):
        return data.select(rows)
    if hasattr(data, "iloc"):
        return data.iloc[list(rows)]
    if isinstance(data, Dataset):
        return Subset(data, rows)
    if isinstance(data, tuple) and len(data) == 2 and not isinstance(data[0], str):
        return tuple(take(each, rows, name) for each in data)
    if isinstance(data, Mapping):
        return {key: take(each, rows, name) for key, each in data.items()}
    if isinstance(data, np.ndarray | torch.Tensor):
        return data[list(rows)]
    return [data[row] for row in rows]


def digest(data: Data) -> str:
    """Return what tells data from others: all rows, which are read once; nothing of streams but their class."""
    with seeded(0):  # rows may be computed with random numbers
        return hashed(content(data))


def content(data: Any) -> Any:
    """Return all that rows hold."""
    if hasattr(data, "column_names") and hasattr(data, "map") and hasattr(data, "__len__"):
        return {name: list(data[name]) for name in data.column_names}
    if hasattr(data, "iloc"):
        frame = data if hasattr(data, "columns") else data.to_frame()
        return {str(name): frame[name].tolist() for name in frame.columns}
    if isinstance(data, tuple) and len(data) == 2 and not isinstance(data[0], str):
        return [content(each) for each in data]
    if isinstance(data, Mapping):
        return {name: content(each) for name, each in data.items()}
    if isinstance(data, DataLoader):
        return [type(data).__name__, data.batch_size, content(data.dataset)]
    if isinstance(data, IterableDataset):
        return type(data).__name__
    if isinstance(data, Dataset) and (size := count(data)) is not None:
        return [size, *(data[row] for row in range(size))]
    return data
