"""Data from files and tables, and their splits."""

import csv
import glob
import importlib
import io
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayeslora.data import written
from bayeslora.data.columns import few_values
from bayeslora.data.plain import as_table
from bayeslora.paths import check_place
from bayeslora.types import Data

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset, DatasetDict

logger = logging.getLogger(__name__)

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

COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".xz": "lzma", ".zip": "zipfile"}
"""Endings of compressed files, after that of what they hold, and the modules that unpack them."""

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Splits, and the words in names of files that say them."""

PACKAGES = {".xlsx": "openpyxl", ".xls": "xlrd"}
"""What pandas reads spreadsheets with."""


def opened(data: Any) -> Any:
    """Return what is read by a name, a path or a name on the hub; other data as they are."""
    return read(os.fspath(data)) if isinstance(data, str | os.PathLike) else data


def given(data: Data, *splits: str) -> Data:
    """Return data that are given as a path, as several paths of files, or in splits; others as they are.

    Args:
        data: The data.
        splits: Names of splits, of which the first that is there is taken.
    """
    if isinstance(data, os.PathLike) or (isinstance(data, str) and (_is_file(data) or Path(data).is_dir())):
        data = read(os.fspath(data))
    elif isinstance(data, list | tuple) and data and all(map(_is_file, data)):
        data = _together([Path(each) for each in data])
    if not _has_splits(data):
        return data
    return next((data[name] for name in splits if name in data), data)


def _is_file(name: Any) -> bool:
    """Whether a value is the path of a file with a known ending."""
    if not isinstance(name, str | os.PathLike) or _ending(Path(name)) not in KINDS:
        return False
    try:
        return Path(name).is_file()
    except (OSError, ValueError):
        return False


def _has_splits(data: Any) -> bool:
    return isinstance(data, Mapping) and bool(data) and all(hasattr(value, "column_names") for value in data.values())


def split(data: Data, name: str) -> Data:
    """Return a split of a `datasets.DatasetDict`, None if it has none of that name; any other data is all `train`."""
    if _has_splits(data):
        if name == "train" and name not in data:
            raise ValueError(f"The data has no 'train' split, only {', '.join(data)}.")
        return data.get(name)
    return data if name == "train" else None


def read(name: str) -> "DatasetDict":
    """Read a `datasets.DatasetDict` from a file, a folder of files, or the hub.

    A file is CSV, with commas, semicolons, tabs or bars between its columns, in UTF-8, UTF-16 or Windows' Western
    encoding; JSON, or JSON lines; Parquet; or Excel, by pandas. All but the last two may be compressed. Files of a
    folder are put together by the splits in their names, and so are those that a pattern such as `part-*.csv` matches.

    Raises:
        ValueError: If it is not there, is empty, has another ending, or cannot be read; the message says which row does
            not fit.
        ImportError: If pandas lacks the package for a spreadsheet.
    """
    import datasets

    name = os.path.expanduser(name) if Path(name).expanduser().exists() else name
    path = Path(name)
    pattern = os.path.expanduser(name) if any(mark in name for mark in "*?[") and not path.exists() else ""
    if found := sorted(map(Path, glob.glob(pattern))):
        return _together(found)
    check_place(name, "data", ", or a name on the hub")
    if path.is_file():
        return datasets.DatasetDict({"train": _of_file(path)})
    if path.is_dir() and not any(path.iterdir()):
        raise ValueError(f"{name} is an empty folder: give one with data files, or a file.")
    if path.is_dir() and (files := _tables_in(path)):
        return _together(files)
    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            saved = datasets.load_from_disk(name)
            return saved if isinstance(saved, datasets.DatasetDict) else datasets.DatasetDict({"train": saved})
        return datasets.load_dataset(name)
    except Exception as error:
        raise ValueError(_failed(name, path, error)) from error


def _of_file(path: Path) -> "Dataset":
    """Read one file."""
    from datasets import load_dataset

    ending = _ending(path)
    if ending not in KINDS:
        raise ValueError(
            f"{path} ends in {path.suffix!r}; give a file that ends in {', '.join(KINDS)}, or one of these and "
            f"{', '.join(COMPRESSED)}."
        )
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty: give a file with a row for each example.")
    if KINDS[ending] == "csv":
        return _table(_read_csv(path))
    if KINDS[ending] == "excel":
        return _table(_read_excel(path))
    if KINDS[ending] == "json":
        return written.table(_decoded(path), path)
    try:
        return load_dataset(KINDS[ending], data_files=str(path))["train"]
    except Exception as error:
        raise ValueError(_failed(str(path), path, error)) from error


def _ending(path: Path) -> str:
    """Return the ending of a file's name, in small letters, without that of a compressed file."""
    path = Path(path.name.casefold())
    return Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix


def _tables_in(folder: Path) -> list[Path]:
    """Return the files of a folder that are read one by one; none if it is laid out for `datasets` to read."""
    entries = [path for path in sorted(folder.iterdir()) if not path.name.startswith((".", "_"))]
    about = ("README", "LICENSE", "LICENCE", "CHANGELOG", "NOTICE", "REQUIREMENTS")
    entries = [path for path in entries if path.name.split(".")[0].upper() not in about]
    are_tables = all(path.is_file() and _ending(path) in KINDS for path in entries)
    card = folder / "README.md"
    has_card = card.is_file() and card.read_text(encoding="utf-8", errors="replace").startswith("---")
    return entries if are_tables and not has_card else []


def _together(files: Sequence[Path]) -> "DatasetDict":
    """Return the rows of several files by the split that their names say; `train` if they say none.

    Raises:
        ValueError: If files of a split have other columns.
    """
    import datasets

    parts: dict[str, list[tuple[Path, Any]]] = {}
    for path in files:
        words = {*re.split(r"[^a-z]+", path.name.casefold())}
        split = next((split for split, names in SPLITS.items() if words & {*names}), "train")
        parts.setdefault(split, []).append((path, _of_file(path)))
    found = {}
    for split, tables in parts.items():
        (first, one), *others = tables
        for path, table in others:
            if {*table.column_names} != {*one.column_names}:
                raise ValueError(
                    f"{path} has columns {', '.join(table.column_names)}, and {first} has "
                    f"{', '.join(one.column_names)}: give files with the same columns."
                )
        rows = {name: [value for _, table in tables for value in table[name]] for name in one.column_names}
        found[split] = as_table(rows) if others else one
    return datasets.DatasetDict(found)


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


def _table(table: "pd.DataFrame") -> "Dataset":
    if not len(table):
        raise ValueError(f"{table.attrs['file']} has no rows: give a file with a row for each example.")
    columns = {}
    for name in table.columns:
        columns[str(name)] = table[name].astype(object).where(table[name].notna(), None).tolist()
    return as_table(columns)


def _read_csv(path: Path) -> "pd.DataFrame":
    """Read a table of text, whatever stands between its columns, and in whichever of a few encodings."""
    import pandas as pd

    text = _decoded(path)
    separator = None
    if declared := re.match(r"\ufeff?\"?sep=(.)\"?\s*\n", text):  # which is for Excel
        separator, text = declared[1], text[declared.end() :]
    separator = separator or _separator(text, "\t" if _ending(path) == ".tsv" else ",")
    if not text.strip():
        raise ValueError(f"{path} has no rows: give a file with a row for each example.")
    width = 0
    reader = csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True)
    try:
        for row in reader:
            width = width or len(row)
            if len(row) > width:
                line = text.split("\n")[reader.line_num - 1].strip()
                raise ValueError(
                    f"{path}, line {reader.line_num}: there are {len(row)} columns, and {width} in the head: "
                    f"{line!r:.80}. Put texts that hold {separator!r} in quotation marks."
                )
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}. Correct or remove that line.") from None
    # Words such as "NA" and "null" are texts like others; only an empty place is a missing value.
    how = {"sep": separator, "keep_default_na": False, "na_values": [""], "low_memory": False, "skipinitialspace": True}
    try:
        table = pd.read_csv(io.StringIO(text), **how)
        if separator != ",":  # then commas may stand for points
            other = pd.read_csv(io.StringIO(text), **how, decimal=",")
            for place, name in enumerate(table.columns):
                if not pd.api.types.is_numeric_dtype(table[name]) and pd.api.types.is_numeric_dtype(other[name]):
                    table.isetitem(place, other[name])
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as {path.suffix[1:]}: {error}. Correct or remove that row.") from None
    table.columns = table.columns.map(lambda name: str(name).strip())
    for name in table.columns:
        if few_values(table[name].tolist()) and (table[name] == name).any():
            logger.warning(
                "%s: the first line has %r, which is also a value of its column: is it a row? It has to name columns.",
                *(path, name),
            )
    table.attrs["file"] = str(path)
    return table


def _content(path: Path) -> bytes:
    """Return what a file holds, unpacked if it is compressed."""
    content, ending = path.read_bytes(), path.suffix.casefold()
    if ending not in COMPRESSED:
        return content
    module = importlib.import_module(COMPRESSED[ending])
    try:
        if ending != ".zip":
            return bytes(module.decompress(content))
        with module.ZipFile(io.BytesIO(content)) as packed:
            names = [name for name in packed.namelist() if not name.startswith("__MACOSX") and not name.endswith("/")]
            unpacked = {name: packed.read(name) for name in names[:2]}
    except Exception as error:  # each module has its own, and zlib's, too
        raise ValueError(f"{path} cannot be unpacked: {error}.") from error
    if len(names) != 1:
        raise ValueError(f"{path} holds {len(names)} files: give one that holds a single one, or unpack it.")
    return bytes(unpacked[names[0]])


def _decoded(path: Path) -> str:
    """Return the text of a file, whose lines end in `\\n`."""
    text = _text(_content(path))
    return text if "\n" in text else text.replace("\r", "\n")


def _text(content: bytes) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", "replace")
    head = content[:200]
    for encoding, first in (("utf-16-le", 1), ("utf-16-be", 0)):  # without its mark: every other byte of a letter is 0
        if len(head) > 3 and head[first::2].count(0) > len(head) / 4 and not head[1 - first :: 2].count(0):
            return content.decode(encoding, "replace")
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
