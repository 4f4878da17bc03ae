"""Tables of text: CSV, whatever stands between its columns."""

import csv
import io
import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayeslora.data.columns import NOT_INPUTS
from bayeslora.data.layout import Layout, agreement, layout, names_columns, separator_of
from bayeslora.data.tabling import check_width
from bayeslora.tasks.spelling import INVISIBLE

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

NOT_THERE = ("NA", "N/A", "NaN", "nan", "NULL", "null", "None", "#N/A", "-")
"""Words that stand for a missing value among numbers; among texts they are texts."""

WITH_COMMA = re.compile(r"[+-]?\d{1,3}(\.\d{3})+(,\d+)?|[+-]?\d+(,\d+)?")
"""A number in which points part the thousands, and a comma the decimals."""

THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?")
"""A number in which commas part the thousands."""

CODE = re.compile(r"0\d+")
"""A code, as of a place or an item: a number would be written without the zeros before it."""

WHOLE = re.compile(r"[+-]?\d+")
"""A whole number."""

FORMULA = re.compile(r'="([^"]|"")*"')
"""A text that is written as a formula."""

MOST_AGREE = 0.5
"""Share of the first rows that have to have as many columns as the head, for a text to be a table."""


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

    found_layout = layout(text, path, usual)
    if not found_layout.text.strip():
        raise ValueError(f"{path} has no rows: give a file with a row for each example.")
    how, head, last = _check(found_layout, path)
    check_width(str(path), len(head))
    separator, text = how.separator, how.text
    try:
        found = pd.read_csv(io.StringIO(text), **how.for_pandas())
        other = found if separator == "," else pd.read_csv(io.StringIO(text), **how.for_pandas(), decimal=",")
    except ValueError as error:
        said = f"{path} cannot be read as {path.suffix[1:]}: {error}. Correct or remove that row."
        if "EOF inside string" in str(error):
            said = f"{path}, line {last}: a quotation mark is opened, and not closed. Close it, or write it twice."
        raise ValueError(said) from None
    written = _as_written(found, how)
    for place, values in written.items():
        found.isetitem(place, values)
    for place, name in enumerate(found.columns):
        if place not in written and not pd.api.types.is_numeric_dtype(found[name]):
            is_read = pd.api.types.is_numeric_dtype(other[name])
            numbers = other[name] if is_read else _numbers(found[name], separator != ",")
            if numbers is not None:
                found.isetitem(place, numbers)
    for place, name in enumerate(found.columns):
        if (texts := _without_formulas(found[name])) is not None:
            found.isetitem(place, texts)
    found.columns = found.columns.map(lambda name: str(name).translate(INVISIBLE).strip())
    if twice := [name for name, count in Counter(head).items() if name and count > 1]:
        logger.warning(
            "%s has several columns %s: they are called %s, and so on. Name the ones to read.",
            *(path, ", ".join(map(repr, twice)), ", ".join(f"{twice[0]}{end}" for end in ("", ".1"))),
        )
    found = without_end(found)
    found.attrs["file"] = str(path)
    return found


def _as_written(table: "pd.DataFrame", how: Layout) -> dict[int, Any]:
    """Return columns that pandas takes for other numbers than are written, by their places.

    These are codes such as 007, but in a table of nothing but numbers, and whole numbers beside an empty place, which
    it rounds as it makes them real ones.
    """
    import pandas as pd

    kinds = [dtype.kind for dtype in table.dtypes]
    are_all = all(kind in "iuf" for kind in kinds)
    has_codes = re.search(r"(?<![\d.])0\d", how.text) is not None
    asked = [
        place
        for place, (name, kind) in enumerate(zip(table.columns, kinds, strict=True))
        if (kind == "f" and table[name].isna().any())
        or (has_codes and kind in "iuf" and (not are_all or NOT_INPUTS.fullmatch(str(name))))
    ]
    if not asked:
        return {}
    written = pd.read_csv(io.StringIO(how.text), **how.for_pandas(), usecols=asked, dtype=str)
    found: dict[int, Any] = {}
    for place, name in zip(asked, written.columns, strict=True):
        texts = written[name].str.strip()
        known = texts.dropna()
        if any(map(CODE.fullmatch, known)) and all(map(str.isdecimal, known)):
            if not are_all or NOT_INPUTS.fullmatch(str(name)):
                found[place] = texts
        elif len(known) and kinds[place] == "f" and all(map(WHOLE.fullmatch, known)):
            numbers = [int(text) if isinstance(text, str) else None for text in texts]
            fit = all(-(2**63) <= number < 2**63 for number in numbers if number is not None)
            found[place] = pd.Series(numbers, texts.index, "Int64") if fit else texts
    return found


def without_end(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return a table without the rows at its end that have no value at all, as spreadsheets leave them."""
    filled = table.notna().any(axis=1).to_numpy().nonzero()[0]
    return table.iloc[: filled[-1] + 1 if len(filled) else 0]


def is_one(text: str) -> bool:
    """Whether a text without an ending that says so is a table: most of its first rows have the columns of its head.

    A head of nothing but usual names of columns is one, whatever follows; a single word names the only column. Where
    some rows differ, a head of several words is rather a sentence with a comma.
    """
    separator = separator_of(text, ",")
    share, width = agreement(text, separator)
    head, *_ = Layout(text, separator).first(1) or [[""]]
    if width < 2:
        return len(text.strip().partition("\n")[0].split()) < 2
    if all(names_columns([cell]) and cell for cell in head):
        return True
    is_prose = any(re.search(r"[.!?]\s*$", cell) for cell in head)
    is_clear = share == 1 or names_columns(head) or not any(" " in cell for cell in head)
    return share > 0 and share >= MOST_AGREE and not is_prose and is_clear


def _check(found: Layout, path: Path) -> tuple[Layout, list[str], int]:
    """Return how a table is laid out with names for all of its columns, its head, and the line of the last row.

    Places after the last column may be empty, and before the first one there may be the number of the row, as R writes
    it, where the head has nothing.

    Raises:
        ValueError: If a row has more columns than the head; it names the line.
    """
    head: list[str] = []
    start = before = 1
    widest, numbered, count = 0, True, 0
    long: ValueError | None = None
    try:
        for line_num, row in found.rows():
            start, before = before, line_num + 1
            if not head:
                head = [name.translate(INVISIBLE).strip() for name in found.names or row]
                continue
            count += 1
            numbered = numbered and len(row) == len(head) + 1 and row[0].strip() in (str(count), str(count - 1))
            widest = max(widest, len(row))
            if long is None and len(row) > len(head) and any(map(str.strip, row[len(head) :])):
                long = _too_long(found, path, line_num, row, len(head))
    except csv.Error as error:
        reason = "a line ends in the midst of it (\\r)" if "new-line" in str(error) else error
        raise ValueError(f"{path}, line {before}: {reason}. Correct or remove that line.") from None
    if numbered and count > 1:
        logger.warning("%s: the first column, which has no name, has the numbers of the rows: it is left out.", path)
        return replace(found, names=tuple(_once(["Unnamed: 0", *head]))), head, start
    if long is not None:
        raise long
    if widest > len(head):
        names = [*head, *(f"Unnamed: {place}" for place in range(len(head), widest))]
        return replace(found, names=tuple(_once(names))), head, start
    return found, head, start


def _too_long(found: Layout, path: Path, line_num: int, row: Sequence[str], width: int) -> ValueError:
    """The error about a row with more columns than the head."""
    line = found.text.split("\n")[line_num - 1].strip()
    advice = f'Put texts that hold {found.separator!r} in quotation marks (").'
    if width == 1:
        advice = "Remove what stands above the names of the columns; or " + advice[0].lower() + advice[1:]
    return ValueError(
        f"{path}, line {line_num}: there are {len(row)} columns, and {width} in the head: {line!r:.80}. {advice}"
    )


def _once(names: Sequence[str]) -> list[str]:
    """Return names of which each is there once, called as pandas calls them: `a`, `a.1`."""
    names = [name or f"Unnamed: {place}" for place, name in enumerate(names)]
    return [f"{name}.{before}" if (before := names[:place].count(name)) else name for place, name in enumerate(names)]


def _without_formulas(column: Any) -> Any:
    """Return texts that are written as formulas, `="007"`, so that Excel leaves them as they are; None of others."""
    known = column.dropna()
    if not len(known) or not all(isinstance(value, str) and FORMULA.fullmatch(value) for value in known):
        return None
    return column.map(lambda value: value[2:-1].replace('""', '"'), na_action="ignore")


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
