"""Forms of a dataset: rows by number, arrays, streams, and several orders of the same rows."""

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

logger = logging.getLogger(__name__)


class Examples(Dataset[dict[str, Any]]):
    """Rows of a map-style dataset as mappings of network inputs, with `labels` if there are any."""

    def __init__(self, rows: Any, convert: Callable[[Any], dict[str, Any]]):
        self.rows = rows
        self.convert = convert

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.convert(self.rows[index])


class Arrays(Dataset[dict[str, Any]]):
    """Arrays of equal length as a dataset of their rows."""

    def __init__(self, columns: Mapping[str, Tensor]):
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: column[index] for name, column in self.columns.items()}


class Stream(IterableDataset[dict[str, Any]]):
    """Rows of a stream, in its own order, as mappings of network inputs, with `labels` if there are any.

    Args:
        rows: Anything that can be iterated over repeatedly; its `set_epoch`, if it has one, is called before each pass.
        convert: Row to mapping.
        num_examples: Rows per pass, after which it ends; None for all.

    Raises:
        ValueError: If `num_examples` is less than 1.
    """

    def __init__(self, rows: Any, convert: Callable[[Any], dict[str, Any]], num_examples: int | None = None):
        if num_examples is not None and num_examples < 1:
            raise ValueError(f"num_examples={num_examples}: give a whole number of at least 1.")
        self.stream = rows
        self.convert = convert
        self.num_examples = num_examples

    def __len__(self) -> int:
        if self.num_examples is None:
            raise TypeError("The length of a stream is not known.")
        return self.num_examples

    def __iter__(self) -> Iterator[dict[str, Any]]:
        count = 0
        for row in itertools.islice(self.stream, self.num_examples):
            count += 1
            yield self.convert(row)
        # Each worker of a loader reads only a part.
        if self.num_examples is not None and count < self.num_examples and get_worker_info() is None:
            logger.warning("The stream ended after %d of %d examples.", count, self.num_examples)

    def set_epoch(self, epoch: int) -> None:
        """Tell the stream which pass comes next: a shuffled stream of `datasets` has a different order in each."""
        if hasattr(self.stream, "set_epoch"):
            self.stream.set_epoch(epoch)


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
