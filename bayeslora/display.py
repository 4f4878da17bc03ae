"""What notebooks and prompts show of a posterior or a prediction: a title, facts, and the first rows of a table."""

import abc
import html
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

SHOWN_CLASSES = 10
"""Classes whose names are listed."""

WIDEST = 24
"""Characters of a column of text."""

WIDTH = 80
"""Columns of text that every line fits into."""


class Shown(abc.ABC):
    """What is shown at a prompt as text and in a notebook as HTML."""

    @abc.abstractmethod
    def _shown(self) -> "tuple[str, Mapping[str, str], pd.DataFrame | None]":
        """Return a title, facts by name, and the first rows of a table, if there is one."""

    def __repr__(self) -> str:
        return as_text(*self._shown())

    def _repr_html_(self) -> str:
        return as_html(*self._shown())


def as_text(title: str, facts: Mapping[str, str], table: "pd.DataFrame | None" = None) -> str:
    """Return lines of at most 80 columns: the title, a line or more a fact, and the table."""
    widest = max(map(len, facts), default=0)
    lines = [title]
    for name, fact in facts.items():
        start = f"  {name:<{widest}}  "
        lines += wrapped(fact, WIDTH, start)
    if table is not None and len(table):
        lines += ["", *textwrap.indent(table_text(table, WIDTH - 2), "  ").splitlines()]
    return "\n".join(cut(line, WIDTH) for line in lines)


def wrapped(text: str, width: int, start: str) -> list[str]:
    """Return lines of at most so many columns; Chinese, Japanese and Korean letters, and emoji, take two each."""
    if text.isascii():
        return textwrap.wrap(text, width, initial_indent=start, subsequent_indent=" " * len(start))
    from rich.cells import cell_len, chop_cells

    room, lines = width - len(start), [""]
    for word in text.split():
        for part in chop_cells(word, room):
            longer = f"{lines[-1]} {part}" if lines[-1] else part
            lines = [*lines[:-1], longer] if cell_len(longer) <= room else [*lines, part]
    return [f"{' ' * len(start) if number else start}{line}" for number, line in enumerate(lines)]


def cut(text: str, width: int) -> str:
    """Return a text that is not wider than so many columns, with an ellipsis in place of the rest."""
    if text.isascii() and len(text) <= width:
        return text
    from rich.cells import cell_len, set_cell_size

    return text if cell_len(text) <= width else f"{set_cell_size(text, width - 1).rstrip()}…"


def as_html(title: str, facts: Mapping[str, str], table: "pd.DataFrame | None" = None) -> str:
    """Return the same as HTML, with everything in it escaped."""
    rows = "".join(
        f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
        f"<td style='text-align:left'>{html.escape(fact)}</td></tr>"
        for name, fact in facts.items()
    )
    shown = "" if table is None or not len(table) else table.to_html(float_format=_number, border=0, max_cols=30)
    return f"<div><strong>{html.escape(title)}</strong><table>{rows}</table>{shown}</div>"


def table_text(table: "pd.DataFrame", width: int = WIDTH) -> str:
    """Return a table as text, with as many columns as fit; those in the middle give way to dots."""
    import pandas as pd
    from rich.cells import cell_len

    short = table.rename(columns=_short).apply(
        lambda column: column if column.dtype.kind in "biuf" else column.map(_short)
    )
    for columns in range(len(table.columns), 0, -1):
        with pd.option_context("display.unicode.east_asian_width", True):
            text = short.to_string(max_cols=columns, float_format=_number)
        if max(map(cell_len, text.splitlines())) <= width:
            break
    return text


def first_columns(table: "pd.DataFrame", width: int = WIDTH - 2) -> "pd.DataFrame":
    """Return as many of a table's columns, from the first on, as fit into so many columns of text."""
    for columns in range(len(table.columns), 1, -1):
        if "..." not in table_text(table.iloc[:, :columns], width).splitlines()[0]:
            return table.iloc[:, :columns]
    return table.iloc[:, :1]


def markdown(table: "pd.DataFrame") -> str:
    """Return a table of texts as Markdown, its index first; bars and line ends in it are kept from ending a cell."""
    rows = [[str(table.index.name or ""), *map(str, table.columns)]]
    rows += [[str(name), *map(str, row)] for name, row in zip(table.index, table.to_numpy(dtype=object), strict=True)]
    lines = ["| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "| --- |" + " ---: |" * len(table.columns), *lines[1:]])


def _short(value: object) -> str:
    return cut(" ".join(str(value).split()), WIDEST)


def _number(value: Any) -> str:
    return f"{float(value):.3f}"
