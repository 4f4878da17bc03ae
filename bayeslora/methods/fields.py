"""Declarations of what the fields of a method may hold, and checks of them.

The annotation of a field is its declaration (`contracts.kinds`). `components: Count = 4` takes whole numbers of at
least 1, and `noise_ratio: NonNegative | Literal["auto"] = 4.0` takes a finite number of at least 0, or `"auto"`. Every
method is checked against its declarations when it is made. `describe` puts them into words, for messages and for help.
"""

import dataclasses
import inspect
import sys
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from bayeslora.contracts import (
    Count,
    DropRate,
    Few,
    NonNegative,
    PartOfRun,
    Positive,
    Share,
    StandardDeviation,
    Unbounded,
    Within,
    check_value,
    evaluated,
    in_words,
)

if TYPE_CHECKING:  # what computes with it has a number: `dialling` puts one in the place of "auto"
    PositiveOrAuto: TypeAlias = float
else:
    PositiveOrAuto: TypeAlias = Positive | Literal["auto"]

__all__ = [
    "Count",
    "DropRate",
    "Few",
    "NonNegative",
    "PartOfRun",
    "Positive",
    "PositiveOrAuto",
    "Share",
    "StandardDeviation",
    "Unbounded",
    "Within",
    "check",
    "declarations",
    "describe",
]


def check(method: Any) -> None:
    """Refuse values that do not fit their field's declaration; numpy's numbers become Python's.

    A default always fits, and so does any value of a field whose annotation is not understood here.

    Raises:
        ArgumentError: If a value does not fit; the message says what does.
    """
    declared = declarations(type(method))
    for field in dataclasses.fields(method):
        value = getattr(method, field.name)
        if value is not field.default:
            object.__setattr__(method, field.name, check_value(field.name, value, declared[field.name]))


def describe(cls: type) -> dict[str, str]:
    """Return what each field of a method may hold, in words."""
    return {name: in_words(declaration) for name, declaration in declarations(cls).items()}


def declarations(cls: type) -> dict[str, Any]:
    """Return the annotation of each field of a dataclass; `Any` if it refers to a name that cannot be found."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        names = vars(sys.modules[base.__module__]) if base.__module__ in sys.modules else {}
        found |= {name: evaluated(annotation, names) for name, annotation in inspect.get_annotations(base).items()}
    return {field.name: found.get(field.name, Any) for field in dataclasses.fields(cls)}
