"""Labels as people have them."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from bayeslora.tasks.checking import check_present


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
            return np.asarray(numbers)
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

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.values)

    def __getitem__(self, row: int) -> Any:
        """Return the label of an example, as plain Python has it."""
        return _plain(self.plain[row])

    def one_place(self) -> "RawLabels":
        """Return rows that are 1 in one place as the numbers of that place, and other labels as they are."""
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
    if isinstance(value, str | bool | int) or value is None:
        return str(value) if isinstance(value, str) else value
    if isinstance(value, np.generic | np.ndarray | torch.Tensor):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return value
    return None if type(value).__name__ in ("NAType", "NaTType") else value
