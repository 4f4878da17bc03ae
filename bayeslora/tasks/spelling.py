"""How classes are written: numbers as texts, several spellings of one name, and names in messages."""

import logging
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bayeslora.tasks.checking import REPAIR, rows_said
from bayeslora.tasks.labels import RawLabels

logger = logging.getLogger(__name__)

MOST_SHOWN = 8
"""Names of classes in a message."""

INVISIBLE = dict.fromkeys(map(ord, "\ufeff\u200b\u200e\u200f"))
"""Characters that are not seen: marks of byte order and of direction, and spaces without a width."""

FOR_MISSING = ("NA", "N/A", "#N/A", "NaN", "nan", "NULL", "null", "None", "-", "--", "?")
"""Words that may stand for a label that is missing; small letters of `none` are rather a class."""

TRUTHS = {
    **dict.fromkeys(("true", "yes", "t", "y", "1"), True),
    **dict.fromkeys(("false", "no", "f", "n", "0"), False),
}
"""Words for a truth value."""

WORDS_OF_TRUTH = ({"yes", "no", "y", "n"}, {"true", "false", "t", "f"})
"""Words that say the same as others of their kind, in any mixture."""

DATE = re.compile(r"(\d{4}([-/.])\d\d?\2\d\d?|\d\d?([-/.])\d\d?\3\d{4})([ T]+\d\d?:\d\d.*)?")
"""A day in numbers, perhaps with a time; its year has four digits, unlike a part of a version."""

FEW_ROWS = 20
"""Rows below which it says little that most have a class of their own."""


def missing(labels: RawLabels, rows: Sequence[int], at: Callable[[int], str] = str) -> ValueError:
    """The error about labels that are missing in some rows."""
    said = rows_said([int(at(row)) for row in rows])
    return ValueError(f"{labels.data}: the label in {labels.name!r} is missing in {said}. {REPAIR}.")


def shown(names: Sequence[str]) -> str:
    """Return names for a message, the first few of many."""
    rest = f", … ({len(names)} in all)" if len(names) > MOST_SHOWN else ""
    return ", ".join(map(repr, names[:MOST_SHOWN])) + rest


def name_of(value: Any) -> str:
    """Return what a number is called as a class."""
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    return str(int(value)) if value == int(value) else f"{value:.12g}"


def index_of(name: str) -> int | None:
    """Return a whole number that is written as a text, `1` or `1.0`; None if it is not one."""
    number = float(name) if is_number(name) else -1
    return int(number) if number >= 0 and number == int(number) else None


def truth_in(name: str) -> bool | None:
    """Return the truth value that a text says, such as `yes` or `1.0`; None if it says none."""
    return TRUTHS.get(str(index_of(name)) if is_number(name) else tidied(name).casefold())


def tidied(name: str) -> str:
    """Return a name in one of the ways in which Unicode writes it, with single spaces, and without invisible marks."""
    return " ".join(unicodedata.normalize("NFC", name).translate(INVISIBLE).split())


def spelled_once(labels: RawLabels, names: Sequence[str]) -> list[str]:
    """Return the distinct names, in order; those that differ in capitals, in spaces or in Unicode's forms are one.

    Numbers that are written in several ways are one, too, and so are `yes` and `y`, or `true` and `t`. The most common
    spelling is the name. Single letters stay apart, as in tables of handwriting. Names that are to stay apart can be
    declared, as categories are.

    Raises:
        ValueError: If all are dates.
    """
    counts = Counter(names)
    if counts and all(DATE.fullmatch(name.strip()) for name in counts):
        raise ValueError(
            f"{labels.data}: the labels in {labels.name!r} are dates, such as {names[0]!r:.60}: name another column, "
            "label=…, or give what is to be predicted of them, such as the weekday, or the number of days."
        )
    are_numbers = all(map(is_number, counts))
    folded = {tidied(name).casefold() for name in counts}
    are_truths = any(folded <= words and len({*map(truth_in, folded)}) == 2 for words in WORDS_OF_TRUTH)
    spellings: dict[Any, list[str]] = {}
    for name in sorted(counts, key=lambda name: (-counts[name], name)):
        short = tidied(name)
        key: Any = number_in(name) if are_numbers else short.casefold() if len(short) > 1 else short
        key = truth_in(name) if are_truths else key
        spellings.setdefault(key, []).append(name)
    several = {each[0].strip(): each for each in spellings.values() if len({*map(tidied, each)}) > 1}
    if several:
        logger.warning(
            "%s: labels in %r that differ in their spelling alone are one class: %s. Declare classes that are to stay "
            "apart, pandas.Categorical(labels).",
            *(labels.data, labels.name),
            "; ".join(f"{name!r} ({', '.join(map(repr, each))})" for name, each in [*several.items()][:MOST_SHOWN]),
        )
    _check_several(labels, counts)
    if odd := [name for name in counts if name.strip() in FOR_MISSING]:
        logger.warning(
            "%s: %d label(s) in %r are %r, which is read as a class of that name: if it says that the label is "
            "missing, remove such rows.",
            *(labels.data, counts[odd[0]], labels.name, odd[0]),
        )
    if len(spellings) > max(len(names) / 2, FEW_ROWS / 2) and len(names) >= FEW_ROWS:
        logger.warning(
            "%s: %d rows have %d different labels in %r, such as %r: is it a name of the row, or a text? If so, name "
            "another column, label=….",
            *(labels.data, len(names), len(spellings), labels.name, names[0][:40]),
        )
    return sorted(each[0].strip() for each in spellings.values())


def _check_several(labels: RawLabels, counts: Counter[str]) -> None:
    """Warn of names such as `joy;anger` where `joy` and `anger` are names, too."""
    for mark in "|;,":
        parts = {name: [part.strip() for part in name.split(mark)] for name in counts if mark in name}
        alone = {name.strip() for name in counts if mark not in name}
        if parts and all({*each} - {""} <= alone for each in parts.values()):
            logger.warning(
                "%s: labels in %r such as %r are classes of their own, though %s are classes, too: if a row may have "
                "several, say likelihood='multilabel'.",
                *(labels.data, labels.name, next(iter(parts)), " and ".join(map(repr, next(iter(parts.values()))))),
            )
            return


def check_order(labels: RawLabels, names: Sequence[str]) -> None:
    """Warn of declared names whose order is only that of the alphabet, as tools declare them that know no other."""
    are_words = all(len(tidied(name)) > 1 and not any(map(str.isdigit, name)) for name in names)
    if len(names) > 2 and are_words and [*names] == sorted(names):
        logger.warning(
            "%s: the order of the classes in %r is that of the alphabet, %s. If theirs is another, declare it, "
            "pandas.Categorical(labels, categories=[…], ordered=True).",
            *(labels.data, labels.name, " < ".join(names[:MOST_SHOWN])),
        )


def number_in(text: str) -> int | float:
    """Return the number that a text is; whole ones exactly, however many digits they have."""
    return int(text) if text.strip().removeprefix("-").isdecimal() else float(text)


def is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
