"""Standard input as data, and standard output as a place for a table: `bayeslora predict FOLDER - --output -`."""

import gzip
import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bayeslora.data import Columns, read
from bayeslora.data.columns import is_text
from bayeslora.data.written import LISTS
from bayeslora.tasks.words import WORDS

if TYPE_CHECKING:
    import pandas as pd
    from datasets import DatasetDict

STANDARD = "-"
"""What stands for standard input, and for standard output, among names of files."""

WHERE = "standard input"
"""What messages call it."""


class Piped(NamedTuple):
    """Data that were read by a name.

    Args:
        splits: What was read.
        ending: The ending of the file's name, such as `.csv`; of standard input, what it would be.
    """

    splits: "DatasetDict"
    ending: str


def read_named(name: str) -> "DatasetDict":
    """Read data by the name of a file, folder or pattern, or on the hub; `-` is standard input. See `piped`."""
    return piped(name).splits


def piped(name: str) -> Piped:
    """Read data, and note of which kind they are.

    Standard input may hold what a file may: JSON or JSON lines, a table with commas, semicolons, tabs or bars, words
    with tags, a text on each line, Parquet, Arrow or a spreadsheet. Which of these it is, its beginning says.

    Raises:
        ValueError: As `data.read` does; or if standard input is empty.
    """
    if name != STANDARD:
        return Piped(read(name), Path(name).suffix.lower())
    content = getattr(sys.stdin, "buffer", sys.stdin).read()
    content = content.encode() if isinstance(content, str) else content
    if not content.strip():
        raise ValueError(f"{WHERE} is empty: give rows, such as `bayeslora predict FOLDER - < new.csv`.")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"input{ending(content)}"
        path.write_bytes(content)
        try:
            return Piped(read(str(path)), path.suffix)
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), WHERE)) from None


def ending(content: bytes) -> str:
    """Return the ending that a file with some content would have: `.txt` of anything that is written in lines."""
    if content.startswith(b"PAR1"):
        return ".parquet"
    if content.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return ".arrow"
    if content.startswith(b"PK\x03\x04") and b"[Content_Types].xml" in content:
        return ".xlsx"
    if content.startswith(b"\x1f\x8b"):
        content = gzip.decompress(content)
    text = content.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text.startswith((b"{", b"[")):
        return ".txt"
    try:
        first, _ = json.JSONDecoder().raw_decode(text.decode("utf-8", "replace"))
    except json.JSONDecodeError:
        # With quotation marks it is meant to be one; a bracket alone may begin a column's name.
        return ".jsonl" if re.match(rb"\{\s*\"", text) else ".txt"
    if isinstance(first, list) or {*LISTS, "train"} & {*first}:
        return ".json"
    return ".json" if all(isinstance(value, dict) for value in first.values()) else ".jsonl"


NAMES = re.compile(
    r"[a-z]?id|idx|index|key|uuid|guid|nr|no\.?|number|row|.+[_ ](id|idx|index)|(?-i:.*[a-z](Id|ID))", re.IGNORECASE
)
"""Columns that name the rows, if they have a value of its own for each."""


def columns_beside(
    rows: Any, known: Columns, text: Sequence[str] | None, label: Sequence[str] | None, id: str | None
) -> list[str | None]:
    """Return the columns of data that stay beside their predictions: what names the rows, then texts and labels.

    Args:
        rows: The data.
        known: The columns of the fit.
        text: The texts that are named; None for those of the fit or, without them, all.
        label: The labels that are named; None for those of the fit.
        id: The column that names the rows; None for that of the fit or, without it, the first that is called so.
    """
    there = getattr(rows, "column_names", ())
    texts = text or known.text
    if not {*texts} & {*there}:
        features = rows.features
        words = [name for name in there if name in WORDS]
        texts = words or [name for name in there if is_text(features[name]) and not NAMES.fullmatch(name)]
    row = id or (known.id if known.id in there else None)
    if row is None:
        row = next((name for name in there if NAMES.fullmatch(name) and _differ(rows[name])), None)
    return [row, *texts, *(label or known.labels), known.label]


def _differ(values: Sequence[Any]) -> bool:
    """Whether no value is missing, or there twice."""
    values = list(values)
    return all(isinstance(value, str | int) for value in values) and len({*values}) == len(values)


def as_text(table: "pd.DataFrame", ending: str) -> str:
    """Return a table as a file with an ending of text has it: JSON, JSON lines, TSV, or else CSV.

    In JSON, numbers have 15 decimals, and dates are those of ISO 8601; in CSV, several labels are a list, which can be
    read again.
    """
    if ending in (".json", ".jsonl"):
        shape: dict[str, Any] = {"lines": True} if ending == ".jsonl" else {"indent": 1}
        how = {"orient": "records", "force_ascii": False, "double_precision": 15, "date_format": "iso"}
        return str(table.to_json(**how, **shape))
    if "predicted" in table.columns and any(isinstance(value, tuple) for value in table["predicted"]):
        table = table.assign(predicted=[*map(list, table["predicted"])])
    return str(table.to_csv(index=False, sep="\t" if ending == ".tsv" else ","))


def write_out(table: "pd.DataFrame", ending: str) -> None:
    """Write a table to standard output, in the format of the data if that is one of lines, and otherwise as CSV.

    Whoever reads it may stop early.

    Args:
        table: The table.
        ending: The ending of the data's name.
    """
    try:
        sys.stdout.write(as_text(table, ".jsonl" if ending in (".json", ".ndjson") else ending))
        sys.stdout.flush()
    except BrokenPipeError:  # as of `head`; Python would complain about it again at its exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
