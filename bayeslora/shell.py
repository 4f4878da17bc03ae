"""What the command line needs beside the library: fields of methods as flags, places for outputs, tables in files."""

import dataclasses
import inspect
import io
import json
import math
import re
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text as RichText
from typer.core import TyperCommand

from bayeslora import contracts, filing, prediction
from bayeslora.data import split_of
from bayeslora.data.columns import class_names
from bayeslora.methods import METHODS, named, own_fields
from bayeslora.methods.fields import describe
from bayeslora.piping import STANDARD, as_text
from bayeslora.tasks.prediction import BasePrediction, names_of
from bayeslora.tasks.words import are_in
from bayeslora.types import Data
from bayeslora.wording import flags_of_command, warnings_said

if TYPE_CHECKING:
    import pandas as pd

console = Console(markup=False, emoji=False, highlight=False)  # what it shows is the user's: [b] and :smile: stay

NARROWEST = 8
"""Characters of a column with the probabilities of a class."""

WIDE = 100
"""Characters of a line that also has room for columns that the others imply."""

RISK, COVERAGE = 0.05, 0.9
"""What is promised where nothing is asked for."""

TABLES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".xlsx")
"""Endings of the tables that are written."""


class FitCommand(TyperCommand):
    """A command whose help ends with the fields of the method that the command line names."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta["words"] = list(args)  # parsing shows the help before it has read the method
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help, and the fields."""
        super().format_help(ctx, formatter)
        words = [part for word in ctx.meta.get("words", ()) for part in word.split("=", 1)]
        places = [place for place, word in enumerate(words[:-1]) if word == "--method"]
        name = words[places[-1] + 1] if places else "monteclora"
        if name not in METHODS:
            typer.echo(f"There is no method {name!r}. Methods: {', '.join(METHODS)}.")
            return
        typer.echo(f"Fields of {name} (of another method: --method NAME --help):\n")
        for field in fields_of(METHODS[name]):
            about = f"{field.flag}  {field.kind}; default: {field.default}"
            typer.echo(textwrap.fill(about, 79, initial_indent="  ", subsequent_indent=" " * 6, break_long_words=False))
            typer.echo(textwrap.fill(field.sentence, 79, initial_indent=" " * 6, subsequent_indent=" " * 6) + "\n")


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a method as a flag.

    Args:
        flag: The flag, `--prior-scale`; of a truth value, `--sparse/--no-sparse`.
        kind: What it may be.
        default: Its default, as the flag takes it.
        sentence: What it is.
    """

    flag: str
    kind: str
    default: str
    sentence: str


def fields_of(cls: Any) -> list[Field]:
    """Return the fields of a method, with the first sentence that the docstring has about each."""
    kinds, found = describe(cls), []
    for field in dataclasses.fields(cls):
        name = field.name.replace("_", "-")
        flag = f"--{name}/--no-{name}" if isinstance(field.default, bool) else f"--{name}"
        default = field.default if isinstance(field.default, str) else json.dumps(field.default, default=repr)
        found.append(Field(flag, kinds[field.name], default, _sentence(cls, field.name)))
    return found


def _sentence(cls: type, field: str) -> str:
    """Return the first sentence about a field in the docstring of the class, or of one that it derives from."""
    for each in cls.__mro__:
        arguments = inspect.cleandoc(each.__doc__ or "").partition("Args:\n")[2].split("\n\n")[0]
        entry = re.search(rf"^    {field}: (.*(?:\n {{8}}.*)*)", arguments, re.MULTILINE)
        if entry:
            text = " ".join(entry[1].split())
            return re.split(r"(?<=\.)\s+(?=[A-Z`])", text)[0]
    return ""


def method_fields(method: str, flags: Sequence[str]) -> dict[str, Any]:
    """Read fields of a method from flags: `--noise-ratio 2`, `--noise-ratio=2`, `--sparse`, `--no-sparse`.

    Values are read as JSON, and otherwise as text.
    """
    cls: Any = named(method)
    switches = {field.name for field in dataclasses.fields(cls) if isinstance(field.default, bool)}
    fields: dict[str, Any] = {}
    words = list(flags)
    while words:
        word, equals, value = words.pop(0).partition("=")
        name = word.removeprefix("--").replace("-", "_")
        if not word.startswith("--"):
            raise ValueError(f"Cannot read {' '.join(flags)!r}: give pairs, --field value.")
        if equals:
            fields[name] = json_or_text(value)
        elif name.removeprefix("no_") in switches and name.startswith("no_"):
            fields[name.removeprefix("no_")] = False
        elif name in switches and words[:1] not in (["true"], ["false"]):
            fields[name] = True
        elif words:
            fields[name] = json_or_text(words.pop(0))
        else:
            raise ValueError(f"Cannot read {' '.join(flags)!r}: give pairs, --field value.")
    contracts.refuse_unknown(fields, own_fields(cls), flags_of_command())
    return fields


def json_or_text(word: str) -> Any:
    """Return the value of a flag: a number, true, false, null, a list or a mapping as in JSON, and otherwise text."""
    try:
        return json.loads(word)
    except json.JSONDecodeError:
        return word


def check_output(
    output: Path | None, is_table: bool = False, flag: str = "--output", endings: Sequence[str] = (), read: Any = ()
) -> None:
    """Raise a ValueError unless an output can be written: a file with a known ending, or a folder.

    Args:
        output: The output, if any.
        is_table: Whether it is a table, with one of the endings of `TABLES`, or `-` for standard output.
        flag: The flag that names it.
        endings: Endings of a file that is no table; without any, it is a folder.
        read: Files that are read, and must not be replaced.
    """
    endings = TABLES if is_table else endings
    if output is None or (is_table and str(output) == STANDARD):
        return
    kind = f"file that ends in {', '.join(endings)}" if endings else "folder"
    if output.is_dir() if endings else output.exists() and not output.is_dir():
        raise ValueError(f"{flag} {output} is a {'folder' if endings else 'file'}: give a {kind}.")
    if endings and output.suffix.lower() not in endings:
        raise ValueError(f"{flag} {output} ends in {output.suffix!r}: give a {kind}.")
    if output.exists() and any(each and Path(each).exists() and output.samefile(each) for each in read):
        raise ValueError(f"{flag} {output} is read, and its other columns would be lost: give another file.")
    there = output if output.is_dir() else output.parent
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
        if output.is_file():
            output.open("ab").close()
    except OSError as error:
        raise ValueError(f"{flag} {output} cannot be written: {error.strerror} at {there}.") from None
    if is_table and output.suffix.lower() == ".xlsx":
        try:
            import openpyxl  # type: ignore[import-untyped,import-not-found,unused-ignore]  # noqa: F401
        except ImportError:
            raise ImportError(f"{flag} {output}: pip install openpyxl, or give a .csv file.") from None


def write_table(table: "pd.DataFrame", output: Path) -> None:
    """Write a table in the format of a file's name."""
    content: bytes | str
    match output.suffix.lower():
        case ".parquet":
            content = table.to_parquet(index=False)
        case ".xlsx":
            stream = io.BytesIO()
            table.to_excel(stream, index=False)
            content = stream.getvalue()
        case ending:
            content = as_text(table, ending)
    filing.write_file(output, content)


def print_table(frame: "pd.DataFrame", title: str, key: str) -> None:
    """Show a table, a line for each row: texts are cut to the width, and so is the number of classes."""
    room = max(console.width // NARROWEST, 1)
    classes = [column for column in frame.columns if column.startswith("p(")]
    left_out = classes[max(len(classes) - max(len(frame.columns) - room, 0), 2) :]
    spare = ["aleatoric", "position"] if console.width < WIDE or "example" in frame.columns else []
    frame = frame.drop(columns=[*left_out, *spare], errors="ignore")
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    digits = {column: 0 if column == "seconds" else 3 for column in frame.columns}
    shown = {
        column: [f"{value:.{digits[column]}f}" if isinstance(value, float) else str(value) for value in frame[column]]
        for column in frame.columns
    }
    is_text = {c: c != key and any(isinstance(value, str) for value in frame[c]) for c in frame.columns}
    widest = {column: max(map(len, cells), default=0) for column, cells in shown.items()}
    gives_way = {column: is_text[column] or column.startswith("p(") for column in frame.columns}
    whole = {column: max(width, len(column)) for column, width in widest.items()}
    least = sum(2 + (min(width, NARROWEST) if gives_way[column] else width) for column, width in whole.items())
    for column in frame.columns:
        name, is_number = column.replace("_", " "), column != key and not is_text[column]
        limit = NARROWEST if column.startswith("p(") else None
        if is_number and limit is None and least >= console.width:
            limit = max(widest[column], 4)  # numbers stay whole, and their heads give way, after texts
        table.add_column(
            RichText(name, no_wrap=limit is None or column.startswith("p("), overflow="ellipsis"),
            justify="right" if is_number else "left",
            no_wrap=not is_text[column],
            max_width=limit,
        )
    for row in zip(*shown.values(), strict=True):
        table.add_row(*(RichText(" ".join(value.split()), no_wrap=True, overflow="ellipsis") for value in row))
    console.print(table)
    if left_out:
        console.print(f"Left out, and in an --output: {len(left_out)} columns, {left_out[0]} to {left_out[-1]}.")


def as_json(scores: Mapping[str, float]) -> str:
    """Return scores as JSON; NaN, which JSON does not have, becomes null."""
    return json.dumps({name: None if math.isnan(value) else value for name, value in scores.items()}, indent=2)


def with_columns(table: "pd.DataFrame", rows: Any, names: Sequence[str | None]) -> "pd.DataFrame":
    """Return predictions with the data's own columns: the id first, others last.

    Predictions of words get the word's entry of a list, and what else there is about its row. A column that does not
    have one entry for each prediction is left out.

    Args:
        table: The predictions.
        rows: The data.
        names: The column that names the rows, and others; those that the data lacks are left out.
    """
    there = getattr(rows, "column_names", ())
    for name in dict.fromkeys(names):
        if name not in there or name in table.columns:
            continue
        values, classes = list(rows[name]), class_names(rows.features[name])
        if "example" in table.columns and are_in(there):  # there are never more predictions than words
            counts = np.bincount(table["example"], minlength=len(values)).tolist()
            values = [
                entry
                for count, value in zip(counts, values, strict=True)
                for entry in (value if isinstance(value, list) else [value] * count)
            ]
        if len(values) != len(table):
            continue
        if classes:
            values = [classes[value] if isinstance(value, int) and value >= 0 else value for value in values]
        table.insert(0 if name == names[0] else len(table.columns), name, values)
    return table


@contextmanager
def progress(doing: str, rows: Any, passes: int = 1) -> Iterator[None]:
    """Show how many rows have been predicted, in a terminal, beside the output."""
    total = passes * len(rows) if hasattr(rows, "__len__") else None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(doing, total=total)
        with prediction.watched(lambda count: bar.advance(task, count)):
            yield


def number_or_auto(value: str | int) -> int | str:
    """Read a number, or the word auto."""
    try:
        return value if value == "auto" else int(value)
    except ValueError:
        raise typer.BadParameter(f"{value!r} is neither a whole number nor 'auto'.") from None


def columns_named(text: list[str] | None, label: list[str] | None, id: str | None) -> dict[str, Any]:
    """Return the columns that are named as keywords of `fit`, `predict` and `evaluate`."""
    one = label[0] if label and len(label) == 1 else label or None
    return {"text": text or None, "label": one, "id": id}


def split_to_predict(data: Mapping[str, Data]) -> Data:
    """Return the split to predict: `test`, else `validation`, else `train`."""
    return split_of(data, "test", "validation", "train")


def held_out_of(data: Mapping[str, Data]) -> Data:
    """Return the split to learn decisions from: `validation`, else `test`, else `train`."""
    return split_of(data, "validation", "test", "train")


def with_decisions(
    table: "pd.DataFrame", predicted: BasePrediction, risk: float | None, coverage: float | None, by_default: bool
) -> "pd.DataFrame":
    """Return predictions with what is decided about them: `abstain`, and `set`, or `lower` and `upper`.

    Args:
        table: The predictions.
        predicted: The same, with held-out rows, if there are any.
        risk: Error rate of the rows that are answered.
        coverage: Share of the labels that are in their sets.
        by_default: Whether to decide what this kind of prediction can, at a risk of 0.05 and a coverage of 0.9, where
            neither is given.

    Raises:
        ValueError: If there are no held-out rows, or this kind of prediction knows no such decision.
    """
    columns = {} if predicted.held_out is None else predicted.held_out.columns
    has_sets = any(name.startswith("conformity/") for name in columns)
    if predicted.held_out is None and not (risk is None and coverage is None):
        given = "--coverage" if risk is None else "--risk"
        raise ValueError(f"{given} goes by held-out rows, and there are none: name labelled data, --decide FILE.")
    if by_default and risk is None and coverage is None:
        risk, coverage = RISK if "wrong" in columns else None, COVERAGE if has_sets else None
    with warnings_said():
        abstained = {} if risk is None else {"abstain": predicted.abstain(risk)}
        sets = None if coverage is None else predicted.sets(coverage)
    table = table.assign(**abstained)
    if sets is None:
        return table
    if sets.dtype != bool:
        return table.assign(lower=sets[:, 0], upper=sets[:, 1])
    names = np.asarray(names_of(getattr(predicted, "class_names", None), sets.shape[1]))
    return table.assign(set=[" | ".join(map(str, names[row])) for row in sets])
