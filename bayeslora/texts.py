"""Texts as users of scikit-learn have them: lists, arrays, Series, and tables with one column or two."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bayeslora.contracts import ArgumentError
from bayeslora.types import Data

TEXTS = ("text", "text_pair")
"""What the columns of texts are called."""


def text_table(X: Any) -> Any:
    """Return texts as a table with a column of them or two; None of what is not text.

    Raises:
        ArgumentError: If some entries are not text, or there are more columns.
    """
    if hasattr(X, "columns"):
        table: Any = X
        values = X.to_numpy()
    else:
        array = X if isinstance(X, np.ndarray) else None
        if array is None and not hasattr(X, "dtype") and not hasattr(X, "to_numpy"):
            first = next(iter(X), None) if isinstance(X, list | tuple) else None
            first = first[0] if isinstance(first, list | tuple) and len(first) else first
            if not isinstance(first, str):
                return None
        values = np.asarray(X, dtype=object) if array is None else array
        table = values = values[:, None] if values.ndim == 1 else values
    if values.dtype.kind not in "OUST" or values.ndim != 2 or not any(isinstance(v, str) for v in values[:1].flat):
        return None
    for row, entries in enumerate(values):
        for value in entries:
            if not isinstance(value, str):
                raise ArgumentError(
                    f"X has texts, and {value!r} in row {row}: give one or two columns of texts, or numbers alone."
                )
    if values.shape[1] > len(TEXTS):
        raise ArgumentError(f"X has {values.shape[1]} columns of texts: give one, or two for pairs of texts.")
    return table


def table_of(
    columns: Mapping[str, Sequence[str]], labels: np.ndarray | None = None, names: Sequence[str] | None = None
) -> Data:
    """Return texts, and labels if there are any, as a `datasets.Dataset`."""
    import datasets

    table = datasets.Dataset.from_dict({**columns, **({} if labels is None else {"labels": labels})})
    return table if names is None else table.cast_column("labels", datasets.ClassLabel(names=list(names)))
