"""Tables that are written as JSON: a row for each line, or a document in one of the shapes that tools write."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayeslora.data.mistaken import check_lengths
from bayeslora.data.tabling import as_table

if TYPE_CHECKING:
    from datasets import Dataset

LISTS = ("data", "rows", "records", "examples", "items")
"""Keys of a document under which its rows may stand."""


BETWEEN = re.compile(r"[\s,\x1e]*")
"""What may stand between the documents of a file: line ends, and what tools write beside them."""


def tables(text: str, path: Path) -> dict[str, "Dataset"]:
    """Return the tables of JSON documents by their splits: `train` alone, unless a document has others as its keys.

    Raises:
        ValueError: If one has no rows, or the text is not JSON; it names the line.
    """
    documents = _documents(text, path)
    first = documents[0] if documents else []
    if len(documents) == 1 and isinstance(first, Mapping) and _are_splits(first):
        return {name: _table(_rows(rows, path), path) for name, rows in first.items()}
    is_lines = bool({".jsonl", ".ndjson"} & {*map(str.casefold, path.suffixes)})
    is_row = is_lines and "\n" not in text.strip() and isinstance(first, Mapping)
    return {"train": _table(_rows(first, path) if len(documents) == 1 and not is_row else documents, path)}


def is_json(text: str) -> bool:
    """Whether a text is records or columns in JSON, whatever its file is called: its first line is, or all of it."""
    first = text.lstrip("\ufeff \t\n")
    if not re.match(r"\[?\s*\{\s*\"", first):
        return False
    for part in (first.partition("\n")[0], first):
        try:
            found = json.loads(part)
        except (ValueError, RecursionError):  # it is not, or nobody can read it
            continue
        return bool(found)
    return False


def table(text: str, path: Path) -> "Dataset":
    """Return the table of JSON documents; a ValueError as in `tables`, or if there are several."""
    found = tables(text, path)
    if len(found) > 1:
        raise ValueError(f"{path} has several tables, {', '.join(found)}: give it by itself, or a file for each.")
    return next(iter(found.values()))


def _table(rows: Sequence[Any], path: Path) -> "Dataset":
    if rows and all(isinstance(row, str) for row in rows):
        rows = [{"text": row} for row in rows]
    odd = next((number for number, row in enumerate(rows) if not isinstance(row, Mapping)), None)
    names = {} if odd is not None else dict.fromkeys(name for row in rows for name in row)
    if not names:
        what = "has no rows" if odd is None else f"has {str(rows[odd])!r:.60} in row {odd}"
        raise ValueError(f"{path} {what}: give a list of records, {{column: value}}, or a line for each.")
    return as_table({str(name): [row.get(name) for row in rows] for name in names})


def _documents(text: str, path: Path) -> list[Any]:
    """Return the documents that stand one after another: one for all rows, or one for each, on a line or several."""
    documents: list[Any] = []
    decoder, place = json.JSONDecoder(), len(text) - len(text.lstrip())
    text = text.rstrip()
    while place < len(text):
        try:
            document, place = decoder.raw_decode(text, place)
        except json.JSONDecodeError as error:
            advice = "Correct or remove it" if documents else "Correct it"
            raise ValueError(
                f"{path} cannot be read as {path.suffix[1:]}: line {error.lineno}: {error.msg}. {advice}."
            ) from None
        except RecursionError:
            raise ValueError(f"{path} cannot be read as {path.suffix[1:]}: it is nested too deeply.") from None
        except ValueError:  # how Python refuses thousands of digits
            raise ValueError(f"{path} cannot be read as {path.suffix[1:]}: a number has too many digits.") from None
        documents.append(document)
        between = BETWEEN.match(text, place)
        place = between.end() if between else place
    return documents


def _are_splits(document: Mapping[str, Any]) -> bool:
    """Whether the keys of a document are splits, one of them `train`, with rows in each."""
    words = {"train", "training", "validation", "valid", "val", "dev", "test", "testing"}

    def are_rows(rows: Any) -> bool:
        """Whether they are records, or columns."""
        if isinstance(rows, Mapping):
            return bool(rows) and all(isinstance(column, list) for column in rows.values())
        return isinstance(rows, list) and bool(rows) and isinstance(rows[0], Mapping)

    return all(map(are_rows, document.values())) and "train" in document and {*document} <= words


def _rows(document: Any, name: Any = "data") -> list[Any]:
    """Return the rows of a document: a list of records, columns, records by name, or any of these below a key.

    Raises:
        ArgumentError: If columns differ in length.
    """
    if not isinstance(document, Mapping):
        return list(document) if isinstance(document, list) else [document]
    values = list(document.values())
    if {"columns", "data"} <= {*document} and isinstance(document["data"], list):  # pandas, orient="split"
        return [dict(zip(document["columns"], row, strict=True)) for row in document["data"]]
    below = next((document[key] for key in LISTS if isinstance(document.get(key), list)), None)
    if below and all(isinstance(row, Mapping) and "paragraphs" in row for row in below):
        return _questions(below)
    if below is not None and all(isinstance(row, Mapping) for row in below):
        return list(below)
    if values and all(isinstance(value, Mapping) for value in values):
        keys = list(values[0])
        if all(list(value) == keys for value in values) and all(str(key).isdecimal() for key in keys):
            return [{name: column[key] for name, column in document.items()} for key in keys]  # pandas' own orientation
        return values
    if len(values) > 1 and all(isinstance(value, list) for value in values):
        check_lengths(document, str(name))
        return [dict(zip(document, row, strict=True)) for row in zip(*values, strict=True)]
    return [document]


def records(data: Any) -> Any:
    """Return a mapping in a form of pandas' `to_dict` as a list of its records, and other data as they are."""
    if not isinstance(data, Mapping) or not data:
        return data
    if {"index", "columns", "data"} <= {*data} and isinstance(data["data"], list):
        return _rows(data) if all(isinstance(row, list) for row in data["data"]) else data
    first = next(iter(data.values()))
    are_cells = isinstance(first, Mapping) and not any(isinstance(each, list | Mapping) for each in first.values())
    if type(data) is not dict or not are_cells or not all(isinstance(each, Mapping) for each in data.values()):
        return data
    by_row = all(isinstance(key, int) for key in data)
    rows = _rows(data)
    same = all(isinstance(row, Mapping) for row in rows)
    return rows if same and (by_row or all(isinstance(key, int) for key in first)) else data


def _questions(articles: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the questions of SQuAD's own files: articles with paragraphs, and these with questions, as records."""
    rows: list[dict[str, Any]] = []
    for article in articles:
        for paragraph in article["paragraphs"]:
            for each in paragraph["qas"]:
                row = {"id": each.get("id"), "title": article.get("title")}
                row |= {"context": paragraph["context"], "question": each["question"]}
                if "answers" in each:
                    places = {name: [answer[name] for answer in each["answers"]] for name in ("text", "answer_start")}
                    row["answers"] = places
                rows.append(row)
    return rows
