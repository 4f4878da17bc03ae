"""Tables of text: CSV, whatever stands between its columns."""

import csv
import io
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayeslora.data.columns import few_values

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

SEPARATORS = ",;\t|"
"""What may stand between the columns of a table of text."""

NOT_THERE = ("NA", "N/A", "NaN", "nan", "NULL", "null", "None", "#N/A", "-")
"""Words that stand for a missing value among numbers; among texts they are texts."""

WITH_COMMA = re.compile(r"[+-]?\d{1,3}(\.\d{3})+(,\d+)?|[+-]?\d+(,\d+)?")
"""A number in which points part the thousands, and a comma the decimals."""

THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?")
"""A number in which commas part the thousands."""


def table(text: str, path: Path, usual: str) -> "pd.DataFrame":
    """Return a table of text, whatever stands between its columns.

    Args:
        text: The text.
        path: The file, for messages.
        usual: What stands between the columns if the head has nothing else.

    Raises:
        ValueError: If it has no rows, or a line does not fit; it names the line.
    """
    import pandas as pd

    separator = None
    if declared := re.match(r"\ufeff?\"?sep=(.)\"?\s*\n", text):  # which is for Excel
        separator, text = declared[1], text[declared.end() :]
    separator = separator or _separator(text, usual)
    if not text.strip():
        raise ValueError(f"{path} has no rows: give a file with a row for each example.")
    # A quotation mark after which no field can end has been escaped as MySQL does it.
    escape = "\\" if re.search(rf"\\\"(?![{re.escape(separator)}\r\n\"]|\Z)", text) else None
    head, last = _check(text, path, separator, escape)
    # Words such as "NA" and "null" are texts like others; only an empty place is a missing value.
    how: dict[str, Any] = {"sep": separator, "escapechar": escape, "low_memory": False, "skipinitialspace": True}
    how |= {"keep_default_na": False, "na_values": [""]}
    try:
        found = pd.read_csv(io.StringIO(text), **how)
        other = found if separator == "," else pd.read_csv(io.StringIO(text), **how, decimal=",")
    except ValueError as error:
        said = f"{path} cannot be read as {path.suffix[1:]}: {error}. Correct or remove that row."
        if "EOF inside string" in str(error):
            said = f"{path}, line {last}: a quotation mark is opened, and not closed. Close it, or write it twice."
        raise ValueError(said) from None
    for place, name in enumerate(found.columns):
        if not pd.api.types.is_numeric_dtype(found[name]):
            is_read = pd.api.types.is_numeric_dtype(other[name])
            numbers = other[name] if is_read else _numbers(found[name], separator != ",")
            if numbers is not None:
                found.isetitem(place, numbers)
    found.columns = found.columns.map(lambda name: str(name).strip())
    if twice := [name for name in dict.fromkeys(head) if name and head.count(name) > 1]:
        logger.warning(
            "%s has several columns %s: they are called %s, and so on. Name the ones to read.",
            *(path, ", ".join(map(repr, twice)), ", ".join(f"{twice[0]}{end}" for end in ("", ".1"))),
        )
    for name in found.columns:
        if few_values(found[name].tolist()) and (found[name] == name).any():
            logger.warning(
                "%s: the first line has %r, which is also a value of its column: is it a row? It has to name columns.",
                *(path, name),
            )
    found = without_end(found)
    found.attrs["file"] = str(path)
    return found


def without_end(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return a table without the rows at its end that have no value at all, as spreadsheets leave them."""
    filled = table.notna().any(axis=1).to_numpy().nonzero()[0]
    return table.iloc[: filled[-1] + 1 if len(filled) else 0]


def is_one(text: str) -> bool:
    """Whether a text without an ending that says so is a table: its first two rows have the same columns.

    A single word at its head names the only column.
    """
    rows = [line for line in text.split("\n") if line.strip()][:2]
    separator = _separator(text, ",")
    first, *second = (len(next(csv.reader([row], delimiter=separator))) for row in rows or [""])
    return first == second[0] if first > 1 and second else first > 1 or len(rows[0].split() if rows else []) < 2


def _check(text: str, path: Path, separator: str, escape: str | None) -> tuple[list[str], int]:
    """Raise a ValueError if a row has more columns than the head; return the head, and the line of the last row."""
    head: list[str] = []
    reader = csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True, escapechar=escape)
    start = before = 1
    try:
        for row in reader:
            start, before = before, reader.line_num + 1
            head = head or [name.strip() for name in row]
            if len(row) > len(head):
                line = text.split("\n")[reader.line_num - 1].strip()
                advice = f"Put texts that hold {separator!r} in quotation marks."
                if len(head) == 1:
                    advice = "Remove what stands above the names of the columns; or " + advice[0].lower() + advice[1:]
                raise ValueError(
                    f"{path}, line {reader.line_num}: there are {len(row)} columns, and {len(head)} in the head: "
                    f"{line!r:.80}. {advice}"
                )
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}. Correct or remove that line.") from None
    return head, start


def _numbers(column: Any, with_comma: bool) -> Any:
    """Return a column of texts as numbers, if all but words for a missing value are some; None if they are not.

    Args:
        column: The column.
        with_comma: Whether a comma is before the decimals, and points part the thousands; otherwise commas do so.
    """
    import pandas as pd

    texts = [None if value in NOT_THERE else value for value in column.astype(object).where(column.notna(), None)]
    known = [value for value in texts if value is not None]
    if not known or not all(isinstance(value, str) for value in known):
        return None
    if with_comma and all(map(WITH_COMMA.fullmatch, known)):
        return pd.Series(
            [each and float(each.replace(".", "").replace(",", ".")) for each in texts], column.index, float
        )
    apart = any(map(THOUSANDS.fullmatch, known))
    plain = [value and (value.replace(",", "") if THOUSANDS.fullmatch(value) else value) for value in texts]
    if not apart and len(known) == column.notna().sum():
        return None  # pandas has tried
    try:
        return pd.to_numeric(pd.Series(plain, index=column.index))
    except (ValueError, TypeError):
        return None


def _separator(text: str, usual: str) -> str:
    """Return what stands between the columns: what the head has the most of, outside quotation marks."""
    line = next((line for line in text.split("\n") if line.strip()), "").rstrip("\r")
    counts = {mark: len(next(csv.reader([line], delimiter=mark), [])) - 1 for mark in SEPARATORS}
    best = max(counts.values())
    return usual if counts[usual] == best else next(mark for mark in SEPARATORS if counts[mark] == best)
