"""Hook of mkdocs: fold the long tables of the results, so that sentences and figures are seen first."""

import re
from typing import Any

SHORT = 8
"""Rows of a table that stays open."""

TABLE = re.compile(r"<table>.*?</table>", re.DOTALL)


def folded(match: re.Match[str]) -> str:
    """Return a long table behind a line that opens it."""
    rows = match[0].count("<tr>") - 1
    return f"<details><summary>Table of {rows} rows</summary>{match[0]}</details>" if rows > SHORT else match[0]


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Fold the tables of the page of results."""
    return TABLE.sub(folded, html) if page.file.src_uri == "results.md" else html
