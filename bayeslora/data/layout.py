"""How a table of text is laid out: what stands between its columns, what is quoted, and whether a head names them."""

import csv
import io
import itertools
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bayeslora.data.columns import LABELS, NOT_INPUTS, USUAL, few_values
from bayeslora.tasks.choices import plain_name
from bayeslora.tasks.spelling import is_number
from bayeslora.tasks.words import TAGS, WORDS

logger = logging.getLogger(__name__)

SEPARATORS = ",;\t|"
"""What may stand between the columns of a table of text."""

TEXTS = (
    *("text", "texts", "sentence", "sentence1", "sentence2", "premise", "hypothesis", "question", "answer", "title"),
    *("review", "comment", "tweet", "message", "content", "body", "document", "prompt", "input", "name"),
)
"""Names of columns of texts, by which a line is seen to name columns."""

YEAR = re.compile(r"(1[89]|20)\d\d")
"""A number that names a column above numbers."""

LOOKED_AT = 200
"""Rows by which a layout is judged."""

MOST = 1 << 30
"""Characters of the longest field, which Python's reader otherwise takes for an error from 131,072 on."""


@dataclass(frozen=True)
class Layout:
    """How a table of text is laid out.

    Args:
        text: The table; lines that are none of it are empty.
        separator: What stands between the columns.
        quote: The quotation mark around fields; None if marks are a part of the texts.
        escape: What stands before a quotation mark that is a part of a field; None if it is written twice.
        names: The names of the columns, if not the first line has them as they are.
        has_head: Whether the first line names columns.
    """

    text: str
    separator: str
    quote: str | None = '"'
    escape: str | None = None
    names: tuple[str, ...] | None = None
    has_head: bool = True

    def rows(self, strict: bool = False) -> Iterator[tuple[int, list[str]]]:
        """Yield the rows with the line that each ends on, without empty lines; a `csv.Error` if one cannot be read."""
        quoted: dict[str, Any] = {"quotechar": self.quote} if self.quote else {"quoting": csv.QUOTE_NONE}
        how: dict[str, Any] = {"delimiter": self.separator, "skipinitialspace": True, "escapechar": self.escape}
        with _long_fields():
            reader = csv.reader(io.StringIO(self.text), strict=strict, **how, **quoted)
            for row in reader:
                if row:
                    yield reader.line_num, row

    def first(self, count: int = LOOKED_AT) -> list[list[str]]:
        """Return the first rows, as far as they can be read."""
        rows: list[list[str]] = []
        with suppress(csv.Error):
            rows.extend(row for _, row in itertools.islice(self.rows(), count))
        return rows

    def for_pandas(self) -> dict[str, Any]:
        """Return how `pandas.read_csv` reads the table; words such as "NA" are texts, and only empty places missing."""
        quoted: dict[str, Any] = {"quotechar": self.quote} if self.quote else {"quoting": csv.QUOTE_NONE}
        how: dict[str, Any] = {
            "sep": self.separator,
            "escapechar": self.escape,
            "low_memory": False,
            "skipinitialspace": True,
        }
        how |= {"keep_default_na": False, "na_values": [""], **quoted}
        if self.names is not None:
            how |= {"names": list(self.names), "header": 0 if self.has_head else None}
        return how


def layout(text: str, path: Path, usual: str) -> Layout:
    """Return how a table is laid out.

    Args:
        text: The table.
        path: Its file, for messages.
        usual: What stands between the columns if the head has nothing else.
    """
    separator = None
    if declared := re.match(r"\ufeff?\"?sep=(.)\"?\s*\n", text):  # which is for Excel
        separator, text = declared[1], "\n" + text[declared.end() :]
    text = _without_notes(text)
    separator = separator or separator_of(text, usual)
    # A quotation mark after which no field can end has been escaped as MySQL does it.
    escape = "\\" if re.search(rf"\\\"(?![{re.escape(separator)}\r\n\"]|\Z)", text) else None
    found = Layout(text, separator, _quote(text, separator), escape)
    rows = found.first()
    if len(rows) < 2 or len(rows[0]) < 2:
        return found
    if (said := _looks_like_a_row(rows)) is not None:
        names = tuple(f"column {place}" for place in range(1, max(map(len, rows)) + 1))
        logger.warning(
            "%s: the first line looks like a row, as it has %r where others have the like: it is read as one, and the "
            "columns are called %s. If it names columns, call that one differently.",
            *(path, said, ", ".join(names[:3]) + (", …" if len(names) > 3 else "")),
        )
        return Layout(text, separator, found.quote, escape, names, has_head=False)
    text = _without_copies(text, path)
    return Layout(text, separator, found.quote, escape)


def separator_of(text: str, usual: str) -> str:
    """Return what stands between the columns: what parts the first rows as it parts the head, and that most often."""
    best: tuple[float, int, bool] = (0, 1, False)
    found = usual
    for mark in (usual, *SEPARATORS):
        share, width = agreement(text, mark)
        if width > 1 and (share, width, mark == usual) > best:
            best, found = (share, width, mark == usual), mark
    return found


def agreement(text: str, separator: str) -> tuple[float, int]:
    """Return the share of the first rows that have as many columns as the head, and how many the head has."""
    head, *rows = Layout(text, separator).first(20) or [[]]
    while len(rows) > 1 and not any(rows[-1]):
        rows.pop()
    return sum(len(row) == len(head) for row in rows) / max(len(rows), 1), len(head)


def names_columns(row: Sequence[str]) -> bool:
    """Whether a row has a name that columns usually have, or no name for one, as an index of pandas."""
    names = [plain_name(cell) for cell in row]
    known = {*LABELS, *USUAL, *TEXTS, *TAGS, *WORDS}
    return any(not name or name in known or NOT_INPUTS.fullmatch(name) for name in names)


def _looks_like_a_row(rows: Sequence[Sequence[str]]) -> str | None:
    """Return what shows that the first row does not name columns; None if it may.

    It is a number above numbers, or a word that is also one of the few values of its column.
    """
    head, *body = rows
    if names_columns(head) or [*map(str.strip, head)] == [str(place) for place in range(len(head))]:
        return None
    if len({*head}) < len(head) - 1 or len(body) < 2:
        return None
    for place, cell in enumerate(head):
        values = [row[place] for row in body if len(row) > place and row[place].strip()]
        is_amount = is_number(cell) and not YEAR.fullmatch(cell)
        if is_amount and values and sum(map(is_number, values)) > 0.9 * len(values):
            return cell
        if not is_number(cell) and cell in values and few_values([cell, *values]):
            return cell
    return None


def _without_notes(text: str) -> str:
    """Return a table whose first lines, if they begin with `#` and are no head, are empty."""
    lines = text.split("\n")
    first = next((place for place, line in enumerate(lines) if line.strip() and not line.startswith("#")), 0)
    notes = [line for line in lines[:first] if line.strip()]
    widths = [max(line.count(mark) for mark in SEPARATORS) for line in (*notes, lines[first])]
    if notes and all(width != widths[-1] for width in widths[:-1]) and widths[-1]:
        return "\n" * first + "\n".join(lines[first:])
    return text


def _without_copies(text: str, path: Path) -> str:
    """Return a table in which the head stands once: where files have been put together, it comes again."""
    lines = text.split("\n")
    first = next(place for place, line in enumerate(lines) if line.strip())
    head = lines[first].strip()
    copies = [place for place in range(first + 1, len(lines)) if lines[place].strip() == head]
    if not copies:
        return text
    logger.warning(
        "%s has its first line again, in %d line(s), the first is line %d: they are left out.",
        *(path, len(copies), copies[0] + 1),
    )
    for place in copies:
        lines[place] = ""
    return "\n".join(lines)


def _quote(text: str, separator: str) -> str | None:
    """Return the quotation mark around fields; None if every line is a row only where marks are a part of the texts."""
    lines = [line for line in text.split("\n") if line.strip()]
    if '"' not in text:
        part = rf"\s*('[^']*'|[^'{re.escape(separator)}]*)\s*"
        row = re.compile(rf"{part}({re.escape(separator)}{part})*")
        body = lines[1:LOOKED_AT]
        return "'" if any("'" in line for line in body) and all(map(row.fullmatch, body)) else '"'
    width = lines[0].count(separator)
    if not width or any(line.count(separator) != width for line in lines):
        return '"'
    plain = Layout(text, separator)
    try:
        if sum(1 for _ in plain.rows()) == len(lines):
            return '"'
        return '"' if all(True for _ in plain.rows(strict=True)) else None
    except csv.Error as error:  # a mark that ends a field in its midst, or none that ends it
        return '"' if "unexpected end" in str(error) and separator != "\t" else None


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let Python's reader read long texts."""
    before = csv.field_size_limit(MOST)
    try:
        yield
    finally:
        csv.field_size_limit(before)
