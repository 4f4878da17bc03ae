"""Texts as users of scikit-learn have them: lists, arrays, Series, and tables with one column or two."""

from typing import Any

import numpy as np

from bayeslora.contracts import ArgumentError
from bayeslora.tasks.checking import is_missing

MOST_TEXTS = 2
"""Columns of texts that a network reads."""


def text_table(X: Any) -> Any:
    """Return texts as a table with a column of them or two; None of what is not text.

    Raises:
        ArgumentError: If it is one text, or empty, if some entries are not text, or there are more columns.
    """
    if isinstance(X, str):
        raise ArgumentError(f"X is one text, {X!r:.60}: put it in a list, [text].")
    if isinstance(X, list | tuple) and not X:
        raise ArgumentError("X has no examples: give at least one.")
    if hasattr(X, "columns"):
        table: Any = X
        values = X.to_numpy()
    else:
        array = X if isinstance(X, np.ndarray) else None
        if array is None and not hasattr(X, "dtype") and not hasattr(X, "to_numpy"):
            rows = X if isinstance(X, list | tuple) else ()
            entries = (each for row in rows for each in (row if isinstance(row, list | tuple) else [row]))
            if not isinstance(next((each for each in entries if not is_missing(each)), None), str):
                return None
        values = np.asarray(X, dtype=object) if array is None else array
        table = values = values[:, None] if values.ndim == 1 else values
    if values.dtype.kind not in "OUST" or values.ndim != 2 or not any(isinstance(v, str) for v in values.flat):
        return None
    for row, entries in enumerate(values):
        for value in entries:
            if not isinstance(value, str):
                raise ArgumentError(
                    f"X has texts, and {value!r} in row {row}: give one or two columns of texts, or numbers alone."
                )
    if values.shape[1] > MOST_TEXTS:
        raise ArgumentError(f"X has {values.shape[1]} columns of texts: give one, or two for pairs of texts.")
    return table


def rows_of(table: Any) -> list[Any]:
    """Return a table of texts as a list of texts, or of pairs of them."""
    columns = table.to_numpy().T if hasattr(table, "to_numpy") else table.T
    texts = [list(map(str, column)) for column in columns]
    return texts[0] if len(texts) == 1 else list(zip(*texts, strict=True))
