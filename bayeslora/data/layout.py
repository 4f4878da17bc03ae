"""How a table of text is laid out: what stands between its columns, what is quoted, and whether a head names them."""

import csv
import io
import itertools
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bayeslora.data.columns import LABELS, NOT_INPUTS, USUAL, few_values
from bayeslora.tasks.choices import plain_name
from bayeslora.tasks.spelling import is_number
from bayeslora.tasks.words import TAGS, WORDS

logger = logging.getLogger(__name__)

UNIT = "\x1f"
"""What stands between columns in place of marks that few files have."""

SEPARATORS = f",;\t|{UNIT}"
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
        with _long_fields():
            reader = csv.reader(io.StringIO(self.text), strict=strict, delimiter=self.separator, **self._fields)
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
        how = {"sep": self.separator, "low_memory": False, "keep_default_na": False, "na_values": [""], **self._fields}
        if self.names is not None:
            how |= {"names": list(self.names), "header": 0 if self.has_head else None}
        return how

    @property
    def _fields(self) -> dict[str, Any]:
        """How fields are written, in the words that Python's reader and that of pandas share."""
        quoted = {"quotechar": self.quote} if self.quote else {"quoting": csv.QUOTE_NONE}
        return {"skipinitialspace": True, "escapechar": self.escape, **quoted}


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
    text = _without_notes(text, path)
    separator = separator or separator_of(text, usual)
    # A quotation mark after which no field can end has been escaped as MySQL does it.
    escape = "\\" if re.search(rf"\\\"(?![{re.escape(separator)}\r\n\"]|\Z)", text) else None
    if f"\\{separator}" in text and agreement(text, separator)[0] < 1 == agreement(text, separator, "\\")[0]:
        escape = "\\"  # before a mark that is a part of a text
    found = Layout(text, separator, _quote(text, separator, escape), escape)
    rows = found.first()
    if len(rows) < 2 or len(rows[0]) < 2:
        return found
    if (said := _looks_like_a_row(rows, path)) is not None:
        names = tuple(f"column {place}" for place in range(1, max(map(len, rows)) + 1))
        logger.warning(
            "%s: the first line looks like a row, as it has %r where others have the like: it is read as one, and the "
            "columns are called %s. If it names columns, call that one differently.",
            *(path, said, ", ".join(names[:3]) + (", …" if len(names) > 3 else "")),
        )
        return replace(found, names=names, has_head=False)
    return replace(found, text=_without_copies(found, path))


def separator_of(text: str, usual: str) -> str:
    """Return what stands between the columns: what parts the first rows as it parts the head, and that most often."""
    best: tuple[float, int, bool] = (0, 1, False)
    found = usual
    for mark in (usual, *SEPARATORS):
        share, width = agreement(text, mark)
        if width > 1 and (share, width, mark == usual) > best:
            best, found = (share, width, mark == usual), mark
    return found


def agreement(text: str, separator: str, escape: str | None = None) -> tuple[float, int]:
    """Return the share of the first rows that have as many columns as the head, and how many the head has."""
    head, *rows = Layout(text, separator, escape=escape).first(20) or [[]]
    while len(rows) > 1 and not any(rows[-1]):
        rows.pop()
    return sum(len(row) == len(head) for row in rows) / max(len(rows), 1), len(head)


def names_columns(row: Sequence[str]) -> bool:
    """Whether a row has a name that columns usually have, or no name for the first, as an index of pandas."""
    names = [plain_name(cell) for cell in row]
    known = {*LABELS, *USUAL, *TEXTS, *TAGS, *WORDS}
    return not names[0] or any(name in known or NOT_INPUTS.fullmatch(name) for name in filter(None, names))


def _looks_like_a_row(rows: Sequence[Sequence[str]], path: Path) -> str | None:
    """Return what shows that the first row does not name columns; None if it may.

    It is a number among the numbers below it, or a word that is also one of the few values of its column. Columns may
    be called by numbers in a row, or by the one class that is meant: then a warning says what could be wrong.
    """
    head, *body = rows
    if names_columns(head) or [*map(str.strip, head)] == [str(place) for place in range(len(head))]:
        return None
    if len({*head}) < len(head) - 1 or len(body) < 2:
        return None
    columns = [[row[place] for row in body if len(row) > place and row[place].strip()] for place in range(len(head))]
    both = [*zip(head, columns, strict=True)]
    pairs = [(cell, [*map(float, filter(is_number, values))]) for cell, values in both if is_number(cell)]
    above = [(cell, below) for cell, below in pairs if below and len(below) > 0.9 * len(columns[head.index(cell)])]
    numbers = [cell for cell, _ in above if not YEAR.fullmatch(cell)]
    words = [cell for cell, values in both if not is_number(cell) and cell in values and few_values([cell, *values])]
    if not numbers and not words:
        return None
    are_like = all(_is_among(float(cell), below) for cell, below in above if cell in numbers)
    if (numbers and are_like and not _count_on(numbers)) or (words and not any(_is_a_name(*each) for each in both)):
        return (numbers or words)[0]
    logger.warning(
        "%s: the first line has %r where others have the like: is it a row? It is read as the names of columns.",
        *(path, (numbers or words)[0]),
    )
    return None


def _is_among(number: float, others: Sequence[float]) -> bool:
    """Whether a number lies where others do, or nearby; whole numbers are the likelier to be names."""
    low, high = min(others), max(others)
    near = max(high - low, all(map(float.is_integer, others))) if number.is_integer() else 10 * (high - low)
    return low - near <= number <= high + near


def _count_on(cells: Sequence[str]) -> bool:
    """Whether cells are whole numbers that go on by one, as classes or places do."""
    first = cells[0]
    return len(cells) > 1 and first.isdecimal() and [*cells] == [str(int(first) + more) for more in range(len(cells))]


def _is_a_name(cell: str, values: Sequence[str]) -> bool:
    """Whether a cell is one word above texts of several."""
    return len(cell.split()) < 2 and 2 * sum(len(value.split()) > 1 for value in values) > len(values)


def _without_notes(text: str, path: Path) -> str:
    """Return a table with the notes above it blanked: first lines that begin with `#` or `//`, but for its head.

    They are notes if they have other columns than the table below them, or if usual names of columns are below them:
    nothing else is, or there are none in the notes. Texts may begin with `#`, too, as in `#metoo`: unless the names
    below are usual ones, a note has a space after its mark.
    """
    lines = text.split("\n")
    first = next((place for place, line in enumerate(lines) if line.strip() and not line.startswith(("#", "//"))), 0)
    notes = [line for line in lines[:first] if line.strip()]
    if not notes:
        return text
    rest = "\n".join(lines[first:])
    heads = {mark: next(iter(Layout(rest, mark).first(1)), []) for mark in SEPARATORS}
    columns = {mark: len(head) for mark, head in heads.items() if len(head) > 1 and agreement(rest, mark)[0] > 0}
    names = [mark for mark in columns if names_columns(heads[mark])]
    alike = [row for mark in columns for row in Layout("\n".join(notes), mark).first() if len(row) == columns[mark]]
    is_head = any(all(names_columns([cell]) for cell in heads[mark]) for mark in names)
    may_be_head = any(not names or names_columns([cell.lstrip("#/ ") for cell in row]) for row in alike)
    if not columns or (may_be_head and not is_head):
        return text
    if not names and not all(re.match(r"(#+|/{2,})(\s|$)", line) for line in notes):
        return text
    logger.warning(
        "%s: %d line(s) above the table are notes, such as %r, and are left out.", *(path, len(notes), notes[0][:40])
    )
    return "\n" * first + rest


def _without_copies(found: Layout, path: Path) -> str:
    """Return a table in which the head stands once: where files have been put together, it comes again."""
    lines = found.text.split("\n")
    first = next(place for place, line in enumerate(lines) if line.strip())
    head = lines[first].strip()
    copies = [place for place in range(first + 1, len(lines)) if lines[place].strip() == head]
    if not copies:
        return found.text
    within: set[int] = set()  # lines of a row that goes on in the next one
    before = 0
    with suppress(csv.Error):  # which is said where the rows are read
        for line_num, _ in found.rows():
            within.update(range(before, line_num - 1))
            before = line_num
    copies = [place for place in copies if place not in within]
    if not copies:
        return found.text
    logger.warning(
        "%s has its first line again, in %d line(s), the first is line %d: they are left out.",
        *(path, len(copies), copies[0] + 1),
    )
    for place in copies:
        lines[place] = ""
    return "\n".join(lines)


def _quote(text: str, separator: str, escape: str | None) -> str | None:
    """Return the quotation mark around fields; None if every line is a row only where marks are a part of the texts.

    Between tabs they are also a part of the texts if they would put lines together that are rows by themselves, or are
    not as a program writes them.
    """
    lines = [line for line in text.split("\n") if line.strip()]
    if '"' not in text:
        return "'" if any("'" in line for line in lines[1:]) and _has_single_marks(lines, separator) else '"'
    width = lines[0].count(separator)
    if not width or any(line.count(separator) != width for line in lines):
        return '"'
    plain = Layout(text, separator, escape=escape)
    try:
        is_one_each = sum(1 for _ in plain.rows()) == len(lines)
        if separator == "\t":
            return '"' if is_one_each and all(True for _ in plain.rows(strict=True)) else None
        return '"' if is_one_each or all(True for _ in plain.rows(strict=True)) else None
    except csv.Error as error:  # a mark that ends a field in its midst, or none that ends it
        return '"' if "unexpected end" in str(error) and separator != "\t" else None


def _has_single_marks(lines: Sequence[str], separator: str) -> bool:
    """Whether fields stand between single marks: all of a column, or those with a separator; texts have apostrophes."""
    apart = re.escape(separator)
    field = rf"( *'[^']*' *|[^'{apart}]*)"
    line_of_fields = re.compile(rf"{field}({apart}{field})*")
    if not all(line_of_fields.fullmatch(line.rstrip("\r")) for line in lines):
        return False
    widths = [len(row) for _, row in Layout("\n".join(lines), separator, "'").rows()]
    plain = [line.rstrip("\r").split(separator) for line in lines]
    if widths != [*map(len, plain)]:
        return min(widths) == widths[0]
    columns = [[row[place].strip() for row in plain[1:] if len(row) > place] for place in range(widths[0])]
    return any(len(cells) > 1 and all(cell.startswith("'") for cell in cells) for cells in columns)


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let Python's reader read long texts."""
    before = csv.field_size_limit(MOST)
    try:
        yield
    finally:
        csv.field_size_limit(before)
