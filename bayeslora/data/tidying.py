"""Tables of text as tools print them, turned into lines of fields: rulers, odd separators, lines within marks."""

import csv
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from bayeslora.data.columns import LABELS, USUAL
from bayeslora.data.layout import SEPARATORS, TEXTS, UNIT, Layout, agreement
from bayeslora.tasks.choices import plain_name
from bayeslora.tasks.words import TAGS, WORDS

logger = logging.getLogger(__name__)

RULER = re.compile(r"[\s|+:=-]*-{2,}[\s|+:=-]*")
"""A line below the head, or around the table, of tables in Markdown and of those that databases print."""

COUNTED = re.compile(r"\s*\(?\d+ rows?( in set)?.*\)?\s*")
"""A line below a table that says how many rows it has."""

ODD = ("|||", "||", ":::", "::", "\\t", "\x01", "^", "~", ":", " {2,}")
"""What stands between columns here and there, as patterns for a run of spaces, and otherwise as it is."""

QUOTED = re.compile(r'"(?:[^"]|"")*"')
"""A text between quotation marks."""

MOST_ABOVE = 10
"""Lines that may stand above a table."""


def tidied(text: str, path: Path) -> str:
    """Return a table of text whose lines are rows, with a usual mark between its columns; other texts as they are.

    These are taken care of: lines that end in several ways, tables in Markdown and those that databases print, rare
    marks between columns, rows that stand between quotation marks as a whole, and lines above the names of the columns.
    What is read only by such a guess has names that columns usually have, and all its rows have as many columns.

    Args:
        text: The text.
        path: Its file, for messages.
    """
    for step in (_with_one_end, _without_rulers, _without_marks, _with_usual_marks):
        text = step(text)
    return _without_title(text, path, path.suffix.casefold() == ".txt")


def are_names(cells: Sequence[str], all_of_them: bool = False) -> bool:
    """Whether cells are names of columns, all different and short, one of which, or all, columns usually have."""
    known = {*LABELS, *USUAL, *TEXTS, *TAGS, *WORDS}
    names = [plain_name(cell) for cell in cells]
    are_short = all(name and len(name) < 40 for name in names) and len({*names}) == len(names) > 1
    return are_short and (all if all_of_them else any)(name in known for name in names)


def _filled(text: str) -> list[str]:
    """Return the lines that are not blank."""
    return [line for line in text.split("\n") if line.strip()]


def _with_one_end(text: str) -> str:
    """Return a table whose lines end in one way, if all its rows have as many columns then."""
    if not re.search(r"\r(?!\n)", text):
        return text
    plain = re.sub(rf"({QUOTED.pattern})|\r\n?", lambda found: found[1] or "\n", text)
    for mark in SEPARATORS:
        try:
            widths = {len(row) for _, row in Layout(plain, mark).rows()}
        except csv.Error:
            continue
        if len(widths) == 1 and widths != {1}:
            return plain
    return text


def _without_rulers(text: str) -> str:
    """Return the rows of a table between rulers, with bars between the columns."""
    lines = text.split("\n")
    filled = [place for place, line in enumerate(lines) if line.strip()][:3]
    rulers = [place for place in filled if RULER.fullmatch(lines[place])]
    head = next((place for place in filled if place not in rulers), None)
    if not rulers or head is None or "|" not in lines[head] or rulers[-1] < head:
        return text

    def row(line: str) -> str:
        if RULER.fullmatch(line) or COUNTED.fullmatch(line):
            return ""
        line = line.strip()
        ends = line.startswith("|") and line.endswith("|")
        return "|".join(cell.strip() for cell in (line[1:-1] if ends else line).split("|"))

    return "\n".join(map(row, lines))


def _without_marks(text: str) -> str:
    """Return the rows that stand between quotation marks as a whole."""
    lines = _filled(text)
    if not lines or not all(QUOTED.fullmatch(line.strip()) for line in lines):
        return text
    plain = "\n".join(line.strip()[1:-1].replace('""', '"') for line in lines)
    share, width = max((agreement(plain, mark) for mark in SEPARATORS), key=lambda each: (each[0] == 1, each[1]))
    head = next((cells for mark in SEPARATORS if len(cells := lines[0].strip()[1:-1].split(mark)) == width), [])
    return plain if share == 1 and are_names(head) else text


def _with_usual_marks(text: str) -> str:
    """Return the rows of a table with an odd mark between its columns, with a usual one."""
    lines = _filled(text)
    if len(lines) < 2 or UNIT in text or any(are_names(next(iter(Layout(lines[0], m).first(1)), [])) for m in ",;\t"):
        return text
    for mark in ODD:
        by = re.compile(mark if mark == " {2,}" else re.escape(mark))
        head = by.split(lines[0].strip())
        if are_names(head, mark in (":", " {2,}")) and {len(by.split(line.strip())) for line in lines} == {len(head)}:
            return "\n".join(by.sub(UNIT, line.strip()) for line in text.split("\n"))
    return text


def _without_title(text: str, path: Path, all_of_them: bool) -> str:
    """Return a table without the lines above the names of its columns, which have a single cell."""
    lines = text.split("\n")
    filled = [place for place, line in enumerate(lines[:100]) if line.strip()][: MOST_ABOVE + 1]
    for count, place in enumerate(filled[1:], 1):
        first = "\n".join(lines[place : place + 100])
        for mark in SEPARATORS:
            head = next(iter(Layout(first, mark).first(1)), [])
            if not are_names(head, all_of_them) or agreement(first, mark) != (1.0, len(head)):
                continue
            if lines[filled[0]].strip(' "').startswith("sep="):
                return text
            above = [next(iter(Layout(lines[each], mark).first(1)), []) for each in filled[:count]]
            if all(len(cells) in (1, len(head)) and sum(map(bool, map(str.strip, cells))) == 1 for cells in above):
                logger.warning(
                    "%s: %d line(s) above the names of the columns, %s, are left out, such as %r.",
                    *(path, count, ", ".join(map(str.strip, head)), lines[filled[0]].strip()[:60]),
                )
                return "\n" * place + "\n".join(lines[place:])
    return text
