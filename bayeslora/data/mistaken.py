"""Forms of data that are easily mistaken for others, refused in a sentence."""

from collections.abc import Mapping, Sequence
from typing import Any

from bayeslora.contracts import ArgumentError
from bayeslora.data.beside import columns_of
from bayeslora.data.columns import LABELS


def check_pair(data: tuple[Any, Any], name: str) -> None:
    """Raise an `ArgumentError` if a pair is of two tables, as of training and test data, or of rows in two orders."""
    first, second = ([*map(str, columns_of(each) or ())] for each in data)
    if len(first) > 1 and first == second:
        raise ArgumentError(
            f"{name} is two tables with the same columns, {', '.join(first)}, and a pair is (inputs, labels): give the "
            "first alone, and the other to validation=… or evaluate(…)."
        )
    # As of `sample` or `sort_values` on one of two columns: pandas would put them together by their index.
    index: Any = getattr(data[0], "index", None)
    other: Any = getattr(data[1], "index", None)
    if not hasattr(index, "equals") or not hasattr(other, "equals") or index.equals(other) or len(index) != len(other):
        return
    if index.is_unique and other.is_unique and index.isin(other).all():
        row = int((index != other).argmax())
        raise ArgumentError(
            f"{name}: inputs and labels have the same index in two orders, {index[row]!r} and {other[row]!r} in row "
            f"{row}: give labels.loc[inputs.index] if the index says which belong together, or labels.to_numpy() if "
            "their places do."
        )


def check_labels(table: Any, name: str) -> None:
    """Raise an `ArgumentError` if a table of labels has columns that cannot each be a class."""
    kinds = {str(column): getattr(dtype, "kind", "O") for column, dtype in table.dtypes.items()}
    if any(kind not in "biuf" for kind in kinds.values()):
        raise ArgumentError(
            f"{name}: the labels are a table with columns {', '.join(kinds)}: give the one with the labels, or columns "
            "of 0 and 1, one for each class."
        )


def check_rows(rows: Sequence[Any], name: str) -> None:
    """Raise an `ArgumentError` if rows are tables, lists of many texts, as columns are, or mappings in mappings."""
    first = rows[0]
    if hasattr(first, "columns") or hasattr(first, "column_names"):
        raise ArgumentError(
            f"{name} is a list of {len(rows)} tables, and one is needed: put them together, pandas.concat(…) or "
            "datasets.concatenate_datasets(…), or give one."
        )
    if isinstance(first, Mapping):
        others = [key for key in first if key not in LABELS]
        if others and all(isinstance(first[key], Mapping) for key in others):
            raise ArgumentError(f"{name}: {others[0]!r} is a mapping in row 0: take what is to be read out of it.")
    elif isinstance(first, list | tuple) and len(first) > 3 and all(isinstance(each, str) for each in first):
        raise ArgumentError(
            f"{name} is {len(rows)} lists of texts, the first of {len(first)}: give (texts, labels), a tuple of two; "
            "or, for each row, a text, a pair of texts, or either with its label."
        )


def check_lengths(columns: Mapping[str, Sequence[Any]], name: str) -> None:
    """Raise an `ArgumentError` if columns differ in length."""
    lengths = {str(key): len(values) for key, values in columns.items()}
    if len({*lengths.values()}) > 1:
        said = ", ".join(f"{key!r} {length}" for key, length in lengths.items())
        raise ArgumentError(f"{name}: columns differ in length, {said}: give each a value for every row.")
