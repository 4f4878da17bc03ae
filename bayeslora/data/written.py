"""Tables that are written as JSON: a row for each line, or a document in one of the shapes that tools write."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayeslora.data.plain import as_table

if TYPE_CHECKING:
    from datasets import Dataset

LISTS = ("data", "rows", "records", "examples", "items")
"""Keys of a document under which its rows may stand."""


def table(text: str, path: Path) -> "Dataset":
    """Return the table of a JSON document, or of JSON lines.

    Raises:
        ValueError: If it has no rows, or is not JSON; it names the line.
    """
    text = text.strip()
    if not text:
        raise ValueError(f"{path} has no rows: give a file with a row for each example.")
    is_whole = text[0] == "[" or (text[0] == "{" and "\n" in text and not text.splitlines()[0].rstrip().endswith("}"))
    is_lines = bool({".jsonl", ".ndjson"} & {*map(str.casefold, path.suffixes)})
    if is_whole and not (is_lines and text[0] == "["):
        rows = _rows(_read(text, path, None))
    else:
        lines = [_read(line, path, number) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        rows = _rows(lines[0]) if len(lines) == 1 and not is_lines else lines
    odd = next((number for number, row in enumerate(rows) if not isinstance(row, Mapping)), None)
    if not rows or odd is not None:
        what = "has no rows" if odd is None else f"has {str(rows[odd])!r:.60} in row {odd}"
        raise ValueError(f"{path} {what}: give a list of records, {{column: value}}, or a line for each.")
    names = dict.fromkeys(name for row in rows for name in row)
    return as_table({str(name): [row.get(name) for row in rows] for name in names})


def _read(text: str, path: Path, line: int | None) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where, advice = (
            (f"line {error.lineno}", "Correct it") if line is None else (f"line {line}", "Correct or remove it")
        )
        raise ValueError(f"{path} cannot be read as {path.suffix[1:]}: {where}: {error.msg}. {advice}.") from None


def _rows(document: Any) -> list[Any]:
    """Return the rows of a document: a list of records, columns, records by name, or any of these below a key."""
    if not isinstance(document, Mapping):
        return list(document) if isinstance(document, list) else [document]
    values = list(document.values())
    if {"columns", "data"} <= {*document} and isinstance(document["data"], list):  # pandas, orient="split"
        return [dict(zip(document["columns"], row, strict=True)) for row in document["data"]]
    below = next((document[key] for key in LISTS if isinstance(document.get(key), list)), None)
    if below is not None and all(isinstance(row, Mapping) for row in below):
        return list(below)
    if values and all(isinstance(value, Mapping) for value in values):
        keys = list(values[0])
        if all(list(value) == keys for value in values) and all(str(key).isdecimal() for key in keys):
            return [{name: column[key] for name, column in document.items()} for key in keys]  # pandas' own orientation
        return values
    if len(values) > 1 and all(isinstance(value, list) for value in values) and len({*map(len, values)}) == 1:
        return [dict(zip(document, row, strict=True)) for row in zip(*values, strict=True)]
    return [document]
