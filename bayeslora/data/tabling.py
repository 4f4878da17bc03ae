"""Tables of `datasets` made of columns of any values, and those of others put into a form that can be read."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bayeslora.contracts import ArgumentError
from bayeslora.tasks.checking import is_missing
from bayeslora.tasks.labels import written_lists

if TYPE_CHECKING:
    import datasets

FORMATS = ("pandas", "polars", "arrow", "numpy")
"""Formats in which a table gives its texts as something else than texts, or lists of them."""

MOST_COLUMNS = 20_000
"""Of a table: so many take minutes."""


def check_width(name: str, count: int) -> None:
    """Raise an `ArgumentError` if a table has far too many columns."""
    if count > MOST_COLUMNS:
        raise ArgumentError(
            f"{name} has {count:,} columns, more than {MOST_COLUMNS:,}: leave out those that are not needed, or give "
            "numbers as arrays, (inputs, labels)."
        )


def as_table(columns: Mapping[str, Any], name: str = "data") -> "datasets.Dataset":
    """Make a table. What is of mixed types, or of one that a table cannot hold, becomes texts; written lists lists.

    Lists of such values become lists of texts. Half a character, as of an emoji that was cut, becomes a mark.

    Args:
        columns: The columns.
        name: What to call the data in messages.

    Raises:
        ArgumentError: If a column has lists in some rows, and in others has not, or there are far too many columns.
    """
    check_width(name, len(columns))
    import datasets
    import pyarrow as pa  # type: ignore[import-untyped]

    # How Arrow and Python say that values are of several types, of none that a table has, or too large.
    refusals = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError, UnicodeEncodeError)
    columns = {key: written_lists(values) or values for key, values in columns.items()}
    try:
        return datasets.Dataset.from_dict(columns)
    except refusals:

        def fits(values: Any) -> bool:
            try:
                return bool(pa.array(list(values)).type is not None)
            except refusals:
                return False

        held = {key: values if fits(values) else [_text(value) for value in values] for key, values in columns.items()}
        for key, values in held.items():
            _check_lists(key, values, name)
        return datasets.Dataset.from_dict(held)


def _check_lists(column: str, values: Any, name: str) -> None:
    given = [(row, isinstance(value, list | tuple)) for row, value in enumerate(values) if value is not None]
    odd = next((row for row, is_list in given if is_list != given[0][1]), None)
    if odd is not None:
        first, kinds = given[0][0], ("a list", "something else")
        raise ArgumentError(
            f"{name}: {column!r} is {kinds[not given[0][1]]} in row {first} and {kinds[given[0][1]]} in row {odd}, "
            f"{values[odd]!r:.60}: give the same in all rows."
        )


def _text(value: Any) -> Any:
    if value is None or (is_missing(value) and not isinstance(value, list | tuple)):
        return None
    if isinstance(value, list | tuple):
        return [_text(each) if not isinstance(each, list | tuple | Mapping) else _whole(str(each)) for each in value]
    return _whole(str(value))


def _whole(text: str) -> str:
    """Return a text in which half of a character, of those that UTF-16 writes as two, is a mark."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def plain_table(table: "datasets.Dataset") -> "datasets.Dataset":
    """Return a table that gives texts as texts, whatever its format; columns of bytes in UTF-8 are texts, too."""
    kind = getattr(table, "format", {}).get("type")
    table = table.with_format(None) if kind in FORMATS else table
    for name, feature in (table.features or {}).items():
        if getattr(feature, "dtype", "") in ("binary", "large_binary"):
            values = [each and each.decode("utf-8", "replace") for each in table.with_format(None)[name]]
            table = table.remove_columns(name).add_column(name, values)
    return table
