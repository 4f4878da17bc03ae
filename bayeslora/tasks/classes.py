"""The classes of labels as people have them, and the numbers that a network knows them by."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from bayeslora.tasks.amounts import in_order
from bayeslora.tasks.labels import RawLabels
from bayeslora.tasks.spelling import (
    check_order,
    index_of,
    is_number,
    missing,
    name_of,
    shown,
    spelled_once,
    tidied,
    truth_in,
)
from bayeslora.types import IGNORED

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Classes:
    """The classes that a fit knows, in the order of the network's outputs.

    Args:
        names: Their names.
        by_index: Whether whole numbers in the data are places in this order; otherwise they are names.
    """

    names: tuple[str, ...]
    by_index: bool = True

    @cached_property
    def _places(self) -> dict[str, int]:
        places: dict[str, int] = {}
        folded = [tidied(name).casefold() for name in self.names]
        for index, name in enumerate(folded):
            if folded.count(name) == 1:
                places[name] = index
        return places | {name: index for index, name in enumerate(self.names)}

    @cached_property
    def _values(self) -> dict[float, int]:
        """Places by number, if the names are different numbers."""
        if not all(map(is_number, self.names)):
            return {}
        values = {float(name): index for index, name in enumerate(self.names)}
        return values if len(values) == len(self.names) else {}

    @cached_property
    def _truths(self) -> dict[bool | None, int]:
        """Places by truth value, if the names are two words for one."""
        truths: dict[bool | None, int] = {truth_in(name): index for index, name in enumerate(self.names)}
        return truths if len(self.names) == 2 and {*truths} == {True, False} else {}

    def place(self, name: str) -> int | None:
        """Return the place of a class, None if there is none; case matters where two names differ in nothing else.

        Numbers are compared as such: 1, 1.0 and 01 are one. Of two truth values, `yes`, `True` and `1` are one.
        """
        for spelling in (name, name.strip(), tidied(name).casefold()):
            if (found := self._places.get(spelling)) is not None:
                return found
        number = self._values.get(float(name)) if self._values and is_number(name) else None
        return number if number is not None else self._truths.get(truth_in(name))

    def numbers(self, labels: RawLabels, at: Callable[[int], str] = str) -> Any:
        """Return the numbers of labels, one for each; numbers that are places already are returned as they are.

        Args:
            labels: One label for each example.
            at: Row of a label, for messages.

        Raises:
            ValueError: If a label is missing, or is of no class that is known; it names the label and its row.
        """
        names = labels.named()
        if names is None:
            values = labels.plain
            if self.by_index:
                return values if values.dtype.kind == "b" else whole(labels, at)
            names = [name_of(value) for value in (values if values.dtype.kind == "b" else whole(labels, at, True))]
        numbers = np.empty(len(names), np.int64)
        places: dict[str | None, int | None] = {}
        for row, name in enumerate(names):
            if name not in places:
                places[name] = None if name is None else self._number(name)
            number = places[name]
            if number is None:
                raise self._unknown(labels, row, name, at)
            numbers[row] = number
        return numbers

    def _number(self, name: str) -> int | None:
        place = self.place(name)
        if place is None and self.by_index and (index := index_of(name)) is not None and index < len(self.names):
            return index
        return place

    def _unknown(self, labels: RawLabels, row: int, name: str | None, at: Callable[[int], str]) -> ValueError:
        where = f"{labels.data}, row {at(row)}"
        if name is None or name.strip() == "":
            return missing(
                labels, [row for row, name in enumerate(labels.named() or ()) if not (name or "").strip()], at
            )
        return ValueError(
            f"{where}: the label {name!r} in {labels.name!r} is not among the {len(self.names)} classes of the fit, "
            f"{shown(self.names)}. Rename it, or remove such rows."
        )


def whole(labels: RawLabels, at: Callable[[int], str] = str, others: bool = False) -> Any:
    """Return whole numbers that are written as others (1.0) as whole numbers; leave what is not whole.

    Args:
        labels: One number for each example.
        at: Row of a label, for messages.
        others: Whether there may be others among them.

    Raises:
        ValueError: If one is missing, and the rest are whole.
    """
    values = labels.plain
    if not isinstance(values, np.ndarray) or values.dtype.kind != "f" or values.ndim != 1:
        return values
    if not labels.are_whole:
        return values
    empty = np.flatnonzero(~np.isfinite(values)).tolist()
    if empty:
        raise missing(labels, empty, at)
    return values.astype(np.int64)


def of_one(labels: RawLabels, names: Sequence[str] | None, count: int | None, ordered: bool = False) -> Classes | None:
    """Return the classes of labels of which every example has one; None if they are numbers from 0 without names.

    Args:
        labels: The labels of the training data.
        names: The names that the model has for its outputs, if it has any.
        count: The number of its outputs, if that is fixed.
        ordered: Whether the order of the classes matters.

    Raises:
        ValueError: If a label is missing, there is one class only, or the order of ordered classes is not known.
    """
    own, by_index = _own(labels, count, ordered)
    if own is None:
        values = labels.plain
        unseen = len(labels) == 0
        fits = unseen or (values.dtype.kind in "iu" and values.min() >= 0 and values.max() < len(names or ()))
        return Classes(tuple(names), not _are_named(values, names)) if names and fits else None
    if isinstance(labels.plain, np.ndarray) and labels.plain.dtype.kind == "b" and names and len(names) == 2:
        places = [Classes(tuple(names)).place(name) for name in own]
        return Classes(tuple(names), {*places} != {0, 1} or places == [0, 1])
    classes = in_order_of(Classes(own, by_index), names, count)
    if len(classes.names) == 1:
        raise ValueError(
            f"{labels.data}: all labels in {labels.name!r} are {classes.names[0]!r}, and there have to be two classes: "
            "add rows of others, or declare those that there are, pandas.Categorical(labels, categories=[…])."
        )
    return classes


def _are_named(values: Any, names: Sequence[str]) -> bool:
    """Whether whole numbers are names of outputs, and go by these: a model may call them 2, 0, 1."""
    known = {float(name) for name in names} if all(map(is_number, names)) else set()
    return len(values) > 0 and {*map(float, np.unique(values))} <= known


def numbers_of_one(labels: RawLabels, classes: Classes | None) -> Any:
    """Return the numbers of labels of which every example has one.

    Numbers and truth values that are places already are returned as they are.

    Args:
        labels: The labels.
        classes: The classes of the fit; None if its labels were numbers from 0.

    Raises:
        ValueError: If a label is missing, or is of no class that is known; it names the label and its row.
    """
    labels = labels.one_place()
    values = labels.plain
    lists = enumerate(values) if isinstance(values, list) else ()
    several = [row for row, value in lists if isinstance(value, list) and len(value) != 1]
    if several:
        raise ValueError(
            f"{labels.data}, row {several[0]}: the labels in {labels.name!r} are {values[several[0]]!r:.80}, and a "
            "row of the fit has one class: remove such rows, or fit with likelihood='multilabel'."
        )
    if classes is not None:
        return classes.numbers(labels)
    if isinstance(values, np.ndarray):
        numbers = whole(labels)
        return labels.values if numbers is values else numbers
    numbers = [{"true": 1, "false": 0}.get(str(value).strip().casefold(), index_of(str(value))) for value in values]
    for row, value in enumerate(values):
        if numbers[row] is None:
            raise ValueError(
                f"{labels.data}, row {row}: the label in {labels.name!r} is {value!r}, and those of the fit were whole "
                "numbers from 0. Number the classes as they were, or remove such rows."
            )
    return np.asarray(numbers)


def in_order_of(classes: Classes, names: Sequence[str] | None, count: int | None) -> Classes:
    """Return classes in the order in which the model has them, if it has all of their names.

    Args:
        classes: The classes of the data.
        names: The names of the model's outputs, if it has any.
        count: The number of its outputs, if that is fixed.
    """
    if not names:
        return classes
    model = Classes(tuple(names))
    places = [model.place(name) for name in classes.names]
    if None not in places and len({*places}) == len(places):
        spelled = list(names)
        for place, name in zip(places, classes.names, strict=True):
            spelled[place or 0] = name
        same = places == [*range(len(places))]
        return Classes(tuple(spelled), classes.by_index and same)
    if len(names) == len(classes.names):
        logger.warning(
            "The model calls its outputs %s, and the data have the classes %s: they are taken in this order, and the "
            "model's head starts from what it has learned for others. If they are the same, rename the labels.",
            *(shown(names), shown(classes.names)),
        )
    return classes


def _own(labels: RawLabels, count: int | None, ordered: bool) -> tuple[tuple[str, ...] | None, bool]:
    """Return the names of the classes that the data has, and whether whole numbers are places among them."""
    values = labels.plain
    if (odd := labels.odd()) is not None:
        raise ValueError(
            f"{labels.data}, row {odd[0]}: the label in {labels.name!r} is {odd[1]!r:.60}, of type "
            f"{type(odd[1]).__name__}: labels are texts, numbers or truth values. Turn them into texts if they "
            "are classes, or name another column, label=…."
        )
    if labels.names is not None:
        used = {name for name in labels.named() or () if name is not None}
        fewer = tuple(name for name in labels.names if name in used)
        if count is not None and len(labels.names) != count == len(fewer):
            return fewer, False
        if ordered:
            check_order(labels, labels.names)
        return labels.names, isinstance(values, np.ndarray) or not values  # those of a stream are not read yet
    if len(labels) == 0:
        return None, True
    if isinstance(values, list):
        return _of_texts(labels, ordered), False
    if values.dtype.kind == "b":
        return ("False", "True"), True
    numbers = whole(labels)
    if numbers.ndim != 1 or len(numbers) == 0:
        return None, True
    if numbers.dtype.kind == "f":
        distinct = np.unique(numbers[np.isfinite(numbers)])
        return (
            (tuple(map(name_of, distinct)), False)
            if ordered and len(distinct) == len({*numbers.tolist()})
            else (None, True)
        )
    distinct = np.unique(numbers)
    low, high = int(distinct[0]), int(distinct[-1])
    dense = high - low < 2 * len(distinct)
    if low >= 0 and (high < count if count is not None else low == 0 and dense):
        return None, True
    if low > 0 and dense and (ordered or low == 1) and count in (None, high - low + 1):
        return tuple(str(number) for number in range(low, high + 1)), False
    if count in (None, len(distinct)):
        return tuple(map(str, distinct.tolist())), False
    return None, True


def _of_texts(labels: RawLabels, ordered: bool) -> tuple[str, ...]:
    """Return the distinct texts among labels in the order of the numbers in them, or else in that of the alphabet."""
    names = labels.named() or []
    empty = [row for row, name in enumerate(names) if not (name or "").strip()]
    if empty:
        raise missing(labels, empty)
    distinct = spelled_once(labels, [str(name) for name in names])
    if all(is_number(name) for name in distinct):
        return tuple(sorted(distinct, key=float))
    if (by_amount := in_order(distinct)) is not None:
        return tuple(by_amount)
    if ordered:
        raise ValueError(
            f"{labels.data}: the labels in {labels.name!r} are texts, {shown(distinct)}, and ordered classes need an "
            "order: number them, or declare it, pandas.Categorical(labels, categories=[…], ordered=True)."
        )
    return tuple(distinct)


def of_several(labels: RawLabels, names: Sequence[str] | None, count: int | None) -> Classes | None:
    """Return the classes of labels of which every example has any number; None if they are rows without names.

    The arguments are those of `of_one`.
    """
    labels = labels.several()
    if labels.are_rows and (labels.names is None or len(labels.names) == labels.plain.shape[1]):
        if labels.names is not None:
            return in_order_of(Classes(labels.names), names, count)
        return Classes(tuple(names)) if names and len(names) == labels.plain.shape[1] else None
    if not labels.are_lists and labels.names is None:
        return None
    if labels.names is not None:
        return in_order_of(Classes(labels.names), names, count)
    if isinstance(labels.plain, np.ndarray) and labels.plain.dtype.kind == "f":
        return None
    flat, *_ = labels.flat()
    if isinstance(flat.plain, list) and len(flat):
        return in_order_of(Classes(_of_texts(flat, False), False), names, count)
    highest = int(np.max(flat.plain)) + 1 if len(flat) else 0
    if names and highest <= len(names):
        return Classes(tuple(names))
    return Classes(tuple(str(number) for number in range(max(highest, count or 2))))


def rows_of_several(labels: RawLabels, classes: Classes | None) -> Any:
    """Return a row of 0 and 1 for each example, from lists of names or numbers; rows are returned in the fit's order.

    Raises:
        ValueError: If a label is of no class that is known; it names the label and its row.
    """
    labels = labels.several()
    if classes is None or (not labels.are_lists and not labels.are_rows):
        return labels.values
    size = len(classes.names)
    if labels.are_rows and (labels.plain.shape[1] == size or labels.names is not None) and not _declared(labels):
        if labels.names is None or labels.names == classes.names:
            return labels.values
        matrix = np.zeros((len(labels), size), np.int64)
        for column, name in enumerate(labels.names):
            place, values = classes.place(name), labels.plain[:, column]
            if place is not None:
                matrix[:, place] = values
            elif values.any():
                raise classes._unknown(labels, int(np.flatnonzero(values)[0]), name, str)
        return matrix
    if isinstance(labels.plain, np.ndarray) and labels.plain.dtype.kind == "f":
        return labels.values
    flat, rows, _ = labels.flat()
    matrix = np.zeros((len(labels), size), np.int64)
    if len(flat):
        numbers = np.asarray(classes.numbers(flat, lambda position: str(rows[position])))
        if numbers.min() < 0 or numbers.max() >= size:
            at = int(np.flatnonzero((numbers < 0) | (numbers >= size))[0])
            raise classes._unknown(labels, rows[at], str(numbers[at]), str)
        matrix[rows, numbers] = 1
    return matrix


def _declared(labels: RawLabels) -> bool:
    """Whether equally long lists of 0 and 1 are of places among the declared names, and not a row with one for each."""
    return labels.names is not None and labels.plain.shape[1] != len(labels.names)


def of_tokens(labels: RawLabels, names: Sequence[str] | None, count: int | None) -> Classes | None:
    """Return the classes of labels of which every token has one; the arguments are those of `of_one`."""
    flat, _ = _observed(labels)
    return of_one(flat, names, count) if len(flat) or labels.names else None


def numbers_of_tokens(labels: RawLabels, classes: Classes | None) -> Any:
    """Return the numbers of labels of which every token has one; −100 stays."""
    are_places = classes is None or (classes.by_index and labels.names is None)
    if are_places and not labels.are_named:
        return labels.values
    flat, rows = _observed(labels)
    if classes is None or not len(flat):
        return labels.values
    numbers = iter(np.asarray(classes.numbers(flat, lambda position: str(rows[position]))).tolist())
    return [[IGNORED if _is_ignored(label) else int(next(numbers)) for label in each] for each in labels.plain]


def _observed(labels: RawLabels) -> tuple[RawLabels, list[int]]:
    flat, rows, _ = labels.flat() if labels.are_lists else (replace(labels, values=[]), [], [])
    seen = [place for place, label in enumerate(flat.values) if not _is_ignored(label)]
    return replace(flat, values=[flat.values[place] for place in seen]), [rows[place] for place in seen]


def _is_ignored(label: Any) -> bool:
    return not isinstance(label, str) and bool(label == IGNORED)
