"""Data from files and tables, and their splits."""

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayeslora.paths import check_place
from bayeslora.types import Data

if TYPE_CHECKING:
    import pandas as pd
    from datasets import DatasetDict

SEPARATORS = ",;\t|"
"""What may stand between the columns of a table of text."""

ENCODINGS = ("utf-8-sig", "cp1252", "latin-1")
"""Encodings of text, of which the first that fits is taken; the last fits everything."""

KINDS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".xlsx": "excel",
    ".xls": "excel",
}
"""Endings of files, and what they hold."""

PACKAGES = {".xlsx": "openpyxl", ".xls": "xlrd"}
"""What pandas reads spreadsheets with."""


def split(data: Data, name: str) -> Data:
    """Return a split of a `datasets.DatasetDict`, None if it has none of that name; any other data is all `train`."""
    if isinstance(data, Mapping) and data and all(hasattr(value, "column_names") for value in data.values()):
        if name == "train" and name not in data:
            raise ValueError(f"The data has no 'train' split, only {', '.join(data)}.")
        return data.get(name)
    return data if name == "train" else None


def whole(data: Data) -> Data:
    """Return what a file or folder holds, if data is the path of one; other data as they are.

    Raises:
        ValueError: If it holds several splits.
    """
    if not isinstance(data, os.PathLike) and not (isinstance(data, str) and os.path.exists(data)):
        return data
    splits = read(os.fspath(data))
    if len(splits) > 1:
        raise ValueError(f"{data} has the splits {', '.join(splits)}: give one of them.")
    return next(iter(splits.values()))


def read(name: str) -> "DatasetDict":
    """Read a `datasets.DatasetDict` from a file, a folder of files, or the hub.

    A file is CSV, with commas, semicolons, tabs or bars between its columns, in UTF-8 or Windows' Western encoding;
    JSON, or JSON lines; Parquet; or Excel, by pandas.

    Raises:
        ValueError: If it is not there, is empty, has another ending, or cannot be read; the message says which row does
            not fit.
        ImportError: If pandas lacks the package for a spreadsheet.
    """
    from datasets import load_dataset

    check_place(name, "data", ", or a name on the hub")
    path = Path(name)
    if path.is_file():
        ending = path.suffix.lower()
        if ending not in KINDS:
            raise ValueError(f"{name} ends in {path.suffix!r}; give a file that ends in {', '.join(KINDS)}.")
        if not path.stat().st_size:
            raise ValueError(f"{name} is empty: give a file with a row for each example.")
        if KINDS[ending] == "csv":
            return _splits(_read_csv(path))
        if KINDS[ending] == "excel":
            return _splits(_read_excel(path))
        if KINDS[ending] == "json":
            _check_json(path)
    elif path.is_dir() and not any(path.iterdir()):
        raise ValueError(f"{name} is an empty folder: give one with data files, or a file.")
    try:
        return load_dataset(KINDS[ending], data_files=name) if path.is_file() else load_dataset(name)
    except Exception as error:
        raise ValueError(_failed(name, path, error)) from error


def _failed(name: str, path: Path, error: Exception) -> str:
    """Return what to say of data that could not be read."""
    reason = " ".join(str(error.__cause__ or error).split())
    if "corresponds to no data" in reason:
        return f"{name} has no rows: give a file with a row for each example."
    if path.is_file():
        return f"{name} cannot be read as {path.suffix[1:]}: {reason[:300] or 'it has no rows'}."
    if path.is_dir():
        return f"{name} is a folder whose files cannot be read as data: {reason:.300}."
    return f"{name!r} is not a file or folder, and the hub does not have it: {reason:.300}."


def _splits(table: "pd.DataFrame") -> "DatasetDict":
    import datasets

    if not len(table):
        raise ValueError(f"{table.attrs['file']} has no rows: give a file with a row for each example.")
    columns: dict[str, Any] = {}
    for name in table.columns:
        values = table[name].astype(object).where(table[name].notna(), None).tolist()
        columns[str(name)] = values
    return datasets.DatasetDict({"train": datasets.Dataset.from_dict(columns)})


def _read_csv(path: Path) -> "pd.DataFrame":
    """Read a table of text, whatever stands between its columns, and in whichever of a few encodings."""
    import pandas as pd

    text = _decoded(path)
    separator = _separator(text, "\t" if path.suffix.lower() == ".tsv" else ",")
    if not text.strip():
        raise ValueError(f"{path} has no rows: give a file with a row for each example.")
    width = 0
    reader = csv.reader(io.StringIO(text), delimiter=separator)
    try:
        for row in reader:
            width = width or len(row)
            if len(row) > width:
                raise ValueError(
                    f"{path}, line {reader.line_num}: there are {len(row)} columns, and {width} in the head: "
                    f"{separator.join(row)!r:.80}. Put texts that hold {separator!r} in quotation marks."
                )
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}. Correct or remove that line.") from None
    # Words such as "NA" and "null" are texts like others; only an empty place is a missing value.
    try:
        table = pd.read_csv(io.StringIO(text), sep=separator, keep_default_na=False, na_values=[""], low_memory=False)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as {path.suffix[1:]}: {error}. Correct or remove that row.") from None
    table.attrs["file"] = str(path)
    return table


def _decoded(path: Path) -> str:
    content = path.read_bytes()
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16")
    for encoding in ENCODINGS:
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise AssertionError("the last encoding fits everything")


def _separator(text: str, usual: str) -> str:
    """Return what stands between the columns: what the head has the most of, outside quotation marks."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    counts = {mark: len(next(csv.reader([line], delimiter=mark), [])) - 1 for mark in SEPARATORS}
    best = max(counts.values())
    return usual if counts[usual] == best else next(mark for mark in SEPARATORS if counts[mark] == best)


def _read_excel(path: Path) -> "pd.DataFrame":
    import pandas as pd

    try:
        table = pd.read_excel(path, keep_default_na=False, na_values=[""])
    except ImportError:
        package = PACKAGES[path.suffix.lower()]
        raise ImportError(f"{path}: reading this file needs the package {package}: pip install {package}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not a spreadsheet that can be read: {error}") from None
    table.attrs["file"] = str(path)
    return table


def _check_json(path: Path) -> None:
    """Raise a ValueError that names the line of JSON lines which is not JSON."""
    import json

    text = _decoded(path).lstrip()
    if not text:
        raise ValueError(f"{path} has no rows: give a file with a row for each example.")
    if text[0] == "[" or (text[0] == "{" and "\n" in text and not text.splitlines()[0].rstrip().endswith("}")):
        try:
            json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} cannot be read as json: line {error.lineno}: {error.msg}. Correct it.") from None
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path} cannot be read as {path.suffix[1:]}: line {number}: {error.msg}. Correct or remove it."
                ) from None
