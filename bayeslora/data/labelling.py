"""Give rows the numbers of their classes, in place of the labels that the data has."""

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayeslora.data import stored
from bayeslora.data.forms import Arrays, Examples
from bayeslora.data.reading import Reader
from bayeslora.tasks import Likelihood
from bayeslora.tasks.classes import Classes
from bayeslora.tasks.labels import RawLabels


def labelled(dataset: Any, raw: RawLabels, values: Any, reader: Reader) -> Any:
    """Return a dataset with a label for each row; one that has the labels already is returned as it is.

    Args:
        dataset: A `datasets.Dataset`, arrays, or rows in a list.
        raw: The labels as the data has them.
        values: The same as the network knows them.
        reader: The reader of the data.

    Raises:
        ValueError: If there are more or fewer labels than rows.
    """
    if hasattr(dataset, "column_names"):
        if "labels" in dataset.column_names and (values is raw.values or values is raw.plain):
            return dataset
        dataset = dataset.remove_columns("labels") if "labels" in dataset.column_names else dataset
        listed = values.tolist() if isinstance(values, np.ndarray | Tensor) else list(values)
        return dataset.add_column("labels", listed)
    if isinstance(dataset, Arrays):
        if np.ndim(values) and len(values) != len(dataset):
            lengths = {name: len(column) for name, column in dataset.columns.items()} | {"labels": len(values)}
            raise ValueError(f"{reader.name}: arrays differ in length, {lengths}.")
        return Arrays({**dataset.columns, "labels": reader.numbers("labels", values)})
    labels, rows = reader.label_values(values), dataset.rows
    if len(labels) != len(rows):
        raise ValueError(f"{reader.name}: there are {len(rows)} texts, and {len(labels)} labels.")
    return Examples([{**row, "labels": label} for row, label in zip(rows, labels, strict=True)], dataset.convert)


def collected(rows: Any, are_batches: bool, name: str) -> RawLabels | None:
    """Return the labels of rows, or batches, that are computed one by one, if they are texts; None if not."""
    row: dict[str, Any] = next(iter(rows), {})
    first = row.get("labels")
    if isinstance(first, str):
        return RawLabels([row["labels"] for row in rows], data=name)
    if are_batches and isinstance(first, list | tuple) and first and isinstance(first[0], str):
        return RawLabels([label for batch in rows for label in batch["labels"]], data=name)
    return None


def array(labels: Any) -> np.ndarray:
    """Return the labels of all examples as an array; labels of tokens are concatenated if examples differ in length."""
    if isinstance(labels, list) and all(map(np.ndim, labels)) and len({*map(len, labels)}) > 1:
        return np.concatenate([np.asarray(row) for row in labels])
    try:
        return np.asarray(labels)
    except ValueError:
        return stored.numbers("data", "labels", labels)


def encoded_row(raw: RawLabels, kind: type[Likelihood], classes: Classes | None, label: Any) -> Any:
    """Return the label of a row, or of the rows of a batch, as a kind of label knows it."""
    is_text = isinstance(label, str) or (isinstance(label, list | tuple) and label and isinstance(label[0], str))
    if classes is None and raw.names is None and not is_text:
        return label
    single = np.ndim(label) == 0
    labels = dataclasses.replace(raw, values=[label] if single else label)
    encoded = kind.encode(labels, classes)
    if encoded is labels.values or encoded is labels.plain:
        return label
    return encoded[0] if single else torch.as_tensor(encoded)
