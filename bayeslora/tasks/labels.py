"""Labels as people have them."""

import ast
import numbers
import re
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from typing import Any

import numpy as np
import torch

from bayeslora.tasks.checking import check_present

PLAIN = {
    str,
    bool,
    int,
    float,
    type(None),
    list,
    tuple,
    np.str_,
    np.ndarray,
    torch.Tensor,
    np.int64,
    np.float64,
    np.bool_,
}
"""Types of labels that are read as they are."""


@dataclass(frozen=True)
class RawLabels:
    """Labels of several examples as the data has them: numbers, truth values, texts, or a list or row of these.

    Args:
        values: One entry for each example.
        name: The column that they stand in.
        names: The names of the classes, if the data declares them: of a `ClassLabel`, of categories, or of the columns
            that each are a class.
        data: What to call the data in messages.
    """

    values: Any
    name: str = "labels"
    names: tuple[str, ...] | None = None
    data: str = "data"

    def __post_init__(self) -> None:
        """Turn what only says a label in other words into plain values: bytes, members of an `Enum`, written lists."""
        values = self.values
        if isinstance(values, np.ndarray) and values.dtype.kind in "OUS":
            values = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
        elif not isinstance(values, list | tuple):
            return
        if {*map(type, values)} - PLAIN:
            values = [_plain(value) for value in values]
        values = written_lists(values) or values
        if values is not self.values:
            object.__setattr__(self, "values", values)

    @cached_property
    def plain(self) -> Any:
        """The values as an array of numbers or truth values, if they are; otherwise as a list of plain values."""
        values = self.values
        if isinstance(values, torch.Tensor):
            return values.detach().cpu().numpy() if values.dtype != torch.bfloat16 else values.float().cpu().numpy()
        if isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
            return values
        items = [_plain(value) for value in values]
        types = {type(item) for item in items}
        if types and types <= {bool, int, float, type(None)} and types != {type(None)}:
            if types == {bool}:
                return np.asarray(items)
            numbers = items if types <= {bool, int} else [np.nan if item is None else float(item) for item in items]
            found = np.asarray(numbers)
            return found if found.dtype.kind in "biuf" else [str(item) for item in items]  # beyond 64 bits
        if types == {list} and len({len(item) for item in items}) == 1:
            array = (
                np.asarray(items) if not any(isinstance(v, str | list) or v is None for i in items for v in i) else None
            )
            if array is not None and array.dtype.kind in "biuf":
                return array
        return items

    @property
    def are_numbers(self) -> bool:
        """Whether there is one number for each example, or a row of them of the same length."""
        return isinstance(self.plain, np.ndarray) and self.plain.dtype.kind in "iuf"

    @property
    def are_named(self) -> bool:
        """Whether any label is a text, or is missing."""
        values = self.plain
        return isinstance(values, list) and any(
            value is None
            or isinstance(value, str)
            or (isinstance(value, list) and any(isinstance(v, str) for v in value))
            for value in values
        )

    @property
    def are_lists(self) -> bool:
        """Whether there are several labels for each example."""
        return len(self) > 0 and np.ndim(self.plain[0]) == 1

    @property
    def are_whole(self) -> bool:
        """Whether all are whole numbers, one for each example, some of which may be missing."""
        values = self.plain
        if not self.are_numbers or values.ndim != 1 or len(values) == 0:
            return False
        known = values[np.isfinite(values)] if values.dtype.kind == "f" else values
        return len(known) > 0 and bool((known == np.round(known)).all())

    @property
    def are_whole_floats(self) -> bool:
        """Whether all are whole numbers, and are written as numbers that need not be: 0.0 and 1.0."""
        return self.are_whole and self.plain.dtype.kind == "f"

    @property
    def are_rows(self) -> bool:
        """Whether there is a row of 0 and 1 for each example, all of the same length."""
        values = self.plain
        is_matrix = isinstance(values, np.ndarray) and values.ndim == 2 and values.dtype.kind in "biuf"
        return is_matrix and bool(np.isin(values, (0, 1)).all())

    @property
    def are_one_hot(self) -> bool:
        """Whether there is a row for each example that is 1 in one place, not always the same, and 0 elsewhere."""
        if not self.are_rows or self.plain.shape[1] < 2:
            return False
        return bool((self.plain.sum(1) == 1).all()) and len(self) > 1 and int((self.plain.sum(0) > 0).sum()) > 1

    @property
    def are_one_each(self) -> bool:
        """Whether there is a list of one text for each example."""
        values = self.plain
        return isinstance(values, list) and all(
            isinstance(each, list) and len(each) == 1 and isinstance(each[0], str) for each in values
        )

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.values)

    def __getitem__(self, row: int) -> Any:
        """Return the label of an example, as plain Python has it."""
        return _plain(self.plain[row])

    @property
    def are_column(self) -> bool:
        """Whether there is one whole number or truth value for each example, in a row of its own."""
        values = self.plain
        return (
            isinstance(values, np.ndarray) and values.ndim == 2 and values.shape[1] == 1 and values.dtype.kind in "biu"
        )

    @property
    def are_real_column(self) -> bool:
        """Whether there is one real number for each example, in a row of its own; 0 and 1 alone are something else."""
        values = self.plain
        is_matrix = isinstance(values, np.ndarray) and values.ndim == 2 and values.dtype.kind == "f"
        return is_matrix and values.shape[1] == 1 and not self.are_rows

    def several(self) -> "RawLabels":
        """Return texts that each name several labels as lists, and other labels as they are."""
        lists = split_lists(self.values) if isinstance(self.plain, list) else None
        return self if lists is None else replace(self, values=lists)

    def odd(self) -> tuple[int, Any] | None:
        """Return the row and the value of a label that is neither text, number nor truth value; None if all are."""
        values = self.plain if isinstance(self.plain, list) else ()
        known = (str, bool, int, float, list, type(None))
        return next(((row, value) for row, value in enumerate(values) if not isinstance(value, known)), None)

    def one_place(self) -> "RawLabels":
        """Return rows that are 1 in one place as that place, lists of one text as the text, and others as they are."""
        if self.are_one_each:
            return replace(self, values=[each[0] for each in self.plain])
        if self.are_column:
            return replace(self, values=self.plain[:, 0])
        one = self.are_rows and self.plain.shape[1] > 1 and bool((self.plain.sum(1) == 1).all())
        return replace(self, values=self.plain.argmax(1)) if one else self

    def flat(self) -> tuple["RawLabels", list[int], list[int]]:
        """Return the labels of all examples one after another, where each stands, and how many an example has."""
        check_present("data", self.plain)
        lists = [each.tolist() if isinstance(each, np.ndarray) else list(each) for each in self.plain]
        items = [item for each in lists for item in each]
        return replace(self, values=items), [row for row, each in enumerate(lists) for _ in each], [*map(len, lists)]

    def named(self) -> list[str | None] | None:
        """Return the name of every label, None where it is missing; None if labels are numbers without names."""
        values = self.plain
        if self.names is not None and not isinstance(values, list):
            return [self.names[int(v)] if v == v and 0 <= v < len(self.names) else None for v in values]
        if isinstance(values, list):
            return [None if value is None or value != value else str(value) for value in values]
        return None


def _plain(value: Any) -> Any:
    """Return a label as plain Python has it; None for each of the ways in which one is missing."""
    if isinstance(value, Enum):
        return value.name if not isinstance(value, int) else int(value)
    if isinstance(value, str | bool | int) or value is None:
        return str(value) if isinstance(value, str) else value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.generic | np.ndarray | torch.Tensor):
        return value if isinstance(value, np.datetime64 | np.timedelta64) else _plain(value.tolist())
    if isinstance(value, set | frozenset):
        return sorted((_plain(each) for each in value), key=str)
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return value
    if isinstance(value, numbers.Real) or type(value).__name__ == "Decimal":
        return int(value) if value == int(value) else float(value)
    return None if type(value).__name__ in ("NAType", "NaTType") else value


LIST = re.compile(r"\s*(?:\[.*\]|\(.*,.*\)|\(\)|(?:frozenset\()?\{.*\}\)?|(?:frozen)?set\(\))\s*", re.DOTALL)
"""How a list, a tuple or a set begins and ends that has been written as a text, as pandas writes them to CSV."""

QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
"""An entry in quotation marks."""

BARE = re.compile(r"['\"\w]\s+['\"\w]")
"""Two entries without a comma between them, as NumPy writes arrays."""


ARRAY = re.compile(r"\s*\[\s*(?:[+-]?\d+(?:\.\d*)?(?:e[+-]?\d+)?\s*)*\]\s*")
"""An array of numbers as NumPy writes it, with spaces between them."""


def _number(text: str) -> int | float:
    return float(text) if {*text} & {*".e"} else int(text)


def _read(text: str) -> Any:
    """Return the list that a text is, also if it is written as a tuple or a set; other values as Python reads them."""
    text = text.removeprefix("frozenset(").removesuffix(")") if text.startswith("frozenset({") else text
    if text in ("set()", "frozenset()", "{}"):
        return []
    found = ast.literal_eval(text)
    return sorted(found, key=str) if isinstance(found, set) else list(found) if isinstance(found, tuple) else found


def written_lists(values: Any) -> list[Any] | None:
    """Return lists that are written as texts, `"['joy', 'anger']"`, as lists; None if not all values are some.

    What is missing stays missing.
    """
    known = [value for value in values if value is not None and not (isinstance(value, float) and value != value)]
    if not known or not all(isinstance(value, str) and LIST.fullmatch(value) for value in known):
        return None
    if all(ARRAY.fullmatch(value) for value in known) and any(" " in value.strip("[] \n") for value in known):
        return [
            [_number(each) for each in value.strip(" []\n").split()] if isinstance(value, str) else value
            for value in values
        ]
    try:
        lists = {value: _read(value.strip()) for value in dict.fromkeys(known)}
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if any(not isinstance(each, list) or BARE.search(QUOTED.sub("''", text)) for text, each in lists.items()):
        return None
    return [lists.get(value) if isinstance(value, str) else value for value in values]


def split_lists(values: Any) -> list[Any] | None:
    """Return texts that name several labels, `"joy, anger"`, as lists; None if they are not all texts.

    Between the labels stands a bar, a semicolon or a comma, the first of these that any text has. An empty or missing
    text names none.
    """
    if not any(isinstance(value, str) for value in values):
        return None
    if not all(value is None or value != value or isinstance(value, str) for value in values):
        return None
    texts = [value if isinstance(value, str) else "" for value in values]
    mark = next((mark for mark in "|;," if any(mark in text for text in texts)), ",")
    return [[part.strip() for part in text.split(mark) if part.strip()] for text in texts]
