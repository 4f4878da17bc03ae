"""Data from files and tables, and their splits."""

import glob
import logging
import os
import re
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayeslora.contracts import ArgumentError
from bayeslora.data import classed, delimited, lines, sheets, tidying, written
from bayeslora.data.decoding import COMPRESSED, check_plain, decoded
from bayeslora.data.foreign import familiar
from bayeslora.data.packed import check_archive
from bayeslora.data.tabling import as_table
from bayeslora.paths import ADDRESS, check_place
from bayeslora.types import Data

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset, DatasetDict

logger = logging.getLogger(__name__)

KINDS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".conll": "words",
    ".conllu": "words",
    ".iob": "words",
    ".bio": "words",
    ".parquet": "parquet",
    ".feather": "arrow",
    ".arrow": "arrow",
    ".xlsx": "excel",
    ".xls": "excel",
    ".ods": "excel",
}
"""Endings of files, and what they hold."""

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Splits, and the words in names of files that say them."""


def opened(data: Any) -> Any:
    """Return what is read by a name, a path or a name on the hub; other data as they are."""
    return read(os.fspath(data)) if isinstance(data, str | os.PathLike) else data


def given(data: Data, *splits: str, name: str = "data") -> Data:
    """Return data that are given as a path, as several paths of files, or in splits, and others in a familiar form.

    Args:
        data: The data.
        splits: Names of splits, of which the first that is there is taken; none to leave them.
        name: What to call it in messages.

    Raises:
        ValueError: If a path is of nothing, or none of the splits is there.
    """
    if isinstance(data, os.PathLike) or (isinstance(data, str) and _is_path(data)):
        data = read(os.fspath(data))
    elif isinstance(data, list | tuple) and data and all(map(_is_file, data)):
        data = _together([Path(each) for each in data])
    elif isinstance(data, str):
        raise ArgumentError(
            f"{name}={str(data)!r:.100}: no such file or folder exists. Give the path of one; to pass a single text, "
            "put it in a list, [text]."
        )
    data = familiar(data, name)
    return split_of(data, *splits) if splits and _has_splits(data) else data


def _is_file(name: Any) -> bool:
    """Whether a value is the path of a file with a known ending."""
    if not isinstance(name, str | os.PathLike) or _ending(Path(name)) not in KINDS:
        return False
    return os.path.isfile(name)  # False, and not an error, of too long a name


def _is_path(name: str) -> bool:
    """Whether a text is the path of a folder or file, a pattern of some, or ends as a file's name does."""
    if "\n" in name or len(name) > 1000:
        return False
    if ADDRESS.match(name) and " " not in name:
        return True  # which is then said
    return os.path.exists(os.path.expanduser(name)) or _ending(Path(name)) in KINDS or bool(_matching(name))


def _matching(pattern: str) -> list[Path]:
    """Return the files that a pattern matches."""
    return sorted(map(Path, glob.glob(os.path.expanduser(pattern)))) if any(m in pattern for m in "*?[") else []


def _has_splits(data: Any) -> bool:
    """Whether data is a mapping from splits to tables: of `datasets`, of pandas, or from columns to lists."""
    return isinstance(data, Mapping) and bool(data) and all(map(_is_table, data.values()))


def _is_table(data: Any) -> bool:
    if isinstance(data, Mapping):  # of columns by name: pandas' `to_dict` has rows by number in each column
        return all(
            isinstance(name, str) and hasattr(values, "__len__") and not isinstance(values, str | Mapping)
            for name, values in data.items()
        )
    return hasattr(data, "column_names") or (hasattr(data, "columns") and hasattr(data, "iloc"))


def split_of(data: Mapping[str, Data], *names: str) -> Data:
    """Return the first of some splits that is there: by its name, by a word that says it (`dev`), or the only one.

    Raises:
        ValueError: If none is, or the only one is said to be another.
    """
    for name in names:
        if (found := _split(data, name)) is not None:
            return found
    others = [other for other in SPLITS if other not in names]
    if len(data) == 1 and not any(_split(data, other) is not None for other in others):
        return next(iter(data.values()))
    wanted = " or ".join(map(repr, names))
    raise ValueError(f"The data has no {wanted} split, only {', '.join(data)}: give the one to read, data[…].")


def _split(data: Mapping[str, Data], name: str) -> Data | None:
    """Return a split by its name, or else the only one whose name has a word that says it."""
    if name in data:
        return data[name]
    said = [each for each in data if {*re.split(r"[^a-z]+", str(each).casefold())} & {*SPLITS.get(name, ())}]
    return data[said[0]] if len(said) == 1 else None


def split(data: Data, name: str) -> Data:
    """Return a split of a `datasets.DatasetDict`, None if it has none of that name; any other data is all `train`.

    Raises:
        ValueError: If it has several splits, and none is `train`.
    """
    if _has_splits(data):
        return split_of(data, name) if name == "train" else _split(data, name)
    return data if name == "train" else None


def read(name: str) -> "DatasetDict":
    """Read a `datasets.DatasetDict` from a file, a folder of files, or the hub.

    A file is CSV, with commas, semicolons, tabs or bars between its columns, in UTF-8, UTF-16, an encoding that its
    letters tell, or Windows' Western one; JSON, or JSON lines; words with tags (CoNLL); Parquet, Feather or Arrow; or
    Excel, by pandas. Texts may be compressed. Files of a folder are put together by the splits in their names, and so
    are those that a pattern such as `part-*.csv` matches. Of Parquet in folders such as `label=good`, as Hive and Spark
    write it, the folders' names are a column, as they are of texts in folders by class, `train/pos/1.txt`.

    Raises:
        ValueError: If it is not there, is empty, has another ending, or cannot be read; the message says which row does
            not fit.
        ImportError: If pandas lacks the package for a spreadsheet.
    """
    try:
        return _read(name)
    except OSError as error:  # of a folder of somebody else's, for instance
        if not error.errno:
            raise
        at = f" ({os.fsdecode(error.filename)})" if error.filename else ""
        raise ValueError(f"data={name!r} cannot be read: {error.strerror}{at}.") from error


def _read(name: str) -> "DatasetDict":
    import datasets

    name = os.path.expanduser(name) if os.path.exists(os.path.expanduser(name)) else name
    path = Path(name)
    if not os.path.exists(path) and (found := _matching(name)):
        return _together(found)
    if os.path.isfile(path) and path.suffix.casefold() == ".zip" and _ending(path) not in KINDS:
        return _of_archive(path)
    check_place(name, "data", ", or a name on the hub")
    if path.is_file() and path.stat().st_size and KINDS.get(_ending(path)) == "json":
        return datasets.DatasetDict(written.tables(decoded(path), path))
    if path.is_file() and KINDS.get(_ending(path)) == "excel" and len(parts := sheets.splits(path, _word)) > 1:
        return datasets.DatasetDict({split: _table(sheets.first(path, sheet)) for split, sheet in parts.items()})
    if path.is_file():
        return datasets.DatasetDict({"train": _of_file(path)})
    if path.is_dir() and not any(path.iterdir()):
        raise ValueError(f"{name} is an empty folder: give one with data files, or a file.")
    is_saved = (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()
    if path.is_dir() and not is_saved:
        if files := _tables_in(path):
            return _together(files)
        if by_class := classed.tables(path, _word):
            return datasets.DatasetDict(by_class)
        if _is_partitioned(path):
            return datasets.DatasetDict({"train": _of_partitions(path)})
    try:
        if is_saved:
            saved = datasets.load_from_disk(name)
            return saved if isinstance(saved, datasets.DatasetDict) else datasets.DatasetDict({"train": saved})
        return datasets.load_dataset(name)
    except Exception as error:
        raise ValueError(_failed(name, path, error)) from error


def _of_archive(path: Path) -> "DatasetDict":
    """Read the files of an archive as those of a folder."""
    import datasets

    with tempfile.TemporaryDirectory() as folder:
        try:
            with zipfile.ZipFile(path) as packed:
                names = [name for name in packed.namelist() if _ending(Path(name)) in KINDS]
                names = [name for name in names if not name.startswith("__MACOSX")]
                check_archive(packed, names, path)
                files = [Path(packed.extract(name, folder)) for name in names]
        except (zipfile.BadZipFile, OSError, RuntimeError) as error:
            raise ValueError(f"{path} cannot be unpacked: {error}.") from error
        if not files:
            raise ValueError(f"{path} holds no file that ends in {', '.join(KINDS)}.")
        try:
            return datasets.DatasetDict(classed.tables(Path(folder), _word) or _together(files))
        except ValueError as error:
            raise ValueError(str(error).replace(folder, str(path))) from None


def _of_file(path: Path) -> "Dataset":
    """Read one file."""
    ending = _ending(path)
    with path.open("rb") as file:
        check_plain(file.read(1000), path, ending not in KINDS)
    if ending not in KINDS:
        raise ValueError(
            f"{path} ends in {path.suffix!r}; give a file that ends in {', '.join(KINDS)}, or one of these and "
            f"{', '.join(COMPRESSED)}."
        )
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty: give a file with a row for each example.")
    if KINDS[ending] in ("excel", "parquet", "arrow") and ending != path.suffix.casefold():
        raise ValueError(f"{path} is compressed, and only texts are read so: unpack it to a file {ending}.")
    if KINDS[ending] == "excel":
        return _table(sheets.first(path))
    if KINDS[ending] in ("parquet", "arrow"):
        return _of_arrow(path, KINDS[ending])
    text = decoded(path)
    if KINDS[ending] == "json" or written.is_json(text):
        return written.table(text, path)
    try:
        found = lines.words_with_tags(text, KINDS[ending] == "words")
    except ValueError as error:
        raise ValueError(f"{path}, {error}. Correct or remove it.") from None
    if found is not None:
        return as_table(found)
    text = tidying.tidied(text, path)
    if ending == ".txt" and not delimited.is_one(text):
        return as_table(lines.texts(text.split("\n")))
    return _table(delimited.table(text, path, "\t" if ending == ".tsv" else ","))


def _of_arrow(path: Path, kind: str) -> "Dataset":
    """Read a table of Parquet, or of Arrow as Feather and `datasets` write it."""
    import pyarrow as pa  # type: ignore[import-untyped]
    from datasets import Dataset, load_dataset
    from pyarrow import feather, parquet

    try:
        if kind == "parquet":
            count = parquet.ParquetFile(path).metadata.num_rows
            found = load_dataset(kind, data_files=str(path))["train"] if count else None
        else:
            with path.open("rb") as file:
                stream = file.read(6) != b"ARROW1" and path.suffix.casefold() == ".arrow"
            rows = pa.ipc.open_stream(path.read_bytes()).read_all() if stream else feather.read_table(path)
            found = Dataset(rows) if len(rows) else None
    except Exception as error:
        raise ValueError(_failed(str(path), path, error)) from error
    if found is None:
        raise ValueError(f"{path} has no rows: give a file with a row for each example.")
    return found


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


def _is_partitioned(folder: Path) -> bool:
    """Whether Parquet files lie in folders that say a column and its value, `label=good/part-0.parquet`."""
    files = [path.relative_to(folder).parts[:-1] for path in folder.rglob("*.parquet")]
    return bool(files) and all(parts and all(part.find("=") > 0 for part in parts) for parts in files)


def _of_partitions(folder: Path) -> "Dataset":
    """Read Parquet files with the columns that their folders say, which are numbers if all values are whole."""
    import pyarrow as pa
    from datasets import Dataset
    from pyarrow import dataset

    try:
        rows = dataset.dataset(folder, format="parquet", partitioning="hive").to_table()
    except (pa.ArrowInvalid, pa.ArrowTypeError, OSError) as error:
        raise ValueError(_failed(str(folder), folder, error)) from error
    if not len(rows):
        raise ValueError(f"{folder} has no rows: give files with a row for each example.")
    return Dataset(rows)


def _together(files: Sequence[Path]) -> "DatasetDict":
    """Return the rows of several files by the split that their names say; `train` if they say none.

    Raises:
        ValueError: If files of a split have other columns.
    """
    import datasets

    parts: dict[str, list[tuple[Path, Any]]] = {}
    if kept := [path for path in files if "submission" not in _words(path.name)]:  # else they are what was asked for
        if len(kept) < len(files):
            left_out = ", ".join(str(path) for path in files if path not in kept)
            logger.warning("%s: a form for predictions, by its name, which is left out.", left_out)
        files = kept
    for path in files:
        split = _word(path.name) or "train"
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


def _word(name: str) -> str | None:
    """Return the split that a word of a name says; None if none does."""
    return next((split for split, names in SPLITS.items() if _words(name) & {*names}), None)


def _words(name: str) -> set[str]:
    """Return the words of a name, in small letters."""
    return {*re.split(r"[^a-z]+", name.casefold())}


def _failed(name: str, path: Path, error: Exception) -> str:
    """Return what to say of data that could not be read."""
    reason = " ".join(str(error.__cause__ or error).split()).rstrip(".")
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
