"""Declarations of what the fields of a method may hold, and checks of them.

The annotation of a field is its declaration. `components: Count = 4` takes whole numbers of at least 1, and
`noise_ratio: NonNegative | Literal["auto"] = 4.0` takes a number of at least 0, or `"auto"`. Every method is checked
against its declarations when it is made. `describe` puts them into words, for messages and for help.
"""

import dataclasses
import inspect
import numbers
import sys
from collections.abc import Callable
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import numpy as np


@dataclasses.dataclass(frozen=True)
class Within:
    """The range of a number, as metadata of `Annotated`; no range contains NaN.

    Args:
        at_least: Lower bound, included in the range.
        above: Lower bound, excluded from it.
        at_most: Upper bound, included in the range.
        below: Upper bound, excluded from it.
        noun: What messages call the number.
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    noun: str = ""

    def holds(self, value: float) -> bool:
        """Return whether a number is in the range."""
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def describe(self, kind: Any) -> str:
        """Return the range in words, such as "a whole number of at least 1"."""
        noun = self.noun or ("whole number" if kind is int else "number")
        if self.above is not None and self.below is not None:
            return f"a {noun} between {self.above} and {self.below}"
        if self.above == 0 and self.at_most is None:
            return f"a positive {noun}"
        bounds = {
            "of at least": self.at_least,
            "above": self.above,
            "at most": self.at_most,
            "less than": self.below,
        }
        return f"a {noun} " + " and ".join(f"{word} {bound}" for word, bound in bounds.items() if bound is not None)


Count = Annotated[int, Within(at_least=1)]
Positive = Annotated[float, Within(above=0)]
NonNegative = Annotated[float, Within(at_least=0)]
StandardDeviation = Annotated[float, Within(above=0, noun="standard deviation")]
DropRate = Annotated[float, Within(at_least=0, below=1, noun="probability")]
Share = Annotated[float, Within(at_least=0, below=1)]
PartOfRun = Annotated[float, Within(above=0, at_most=1, noun="fraction of the run")]

KINDS: dict[Any, tuple[type, str]] = {
    bool: (bool, "True or False"),
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    str: (str, "text"),
    NoneType: (NoneType, "None"),
}
"""Annotation to the class whose instances fit, and how messages describe them."""


def check(method: Any) -> None:
    """Refuse values that do not fit their field's declaration; numpy's numbers become Python's.

    A default always fits, and so does any value of a field whose annotation is not understood here.

    Raises:
        ValueError: If a value does not fit; the message says what does.
    """
    declared = declarations(type(method))
    for field in dataclasses.fields(method):
        value, declaration = getattr(method, field.name), declared[field.name]
        if isinstance(value, np.generic):
            value = value.item()
            object.__setattr__(method, field.name, value)
        if value is not field.default and not fits(value, declaration):
            raise ValueError(f"{field.name}={value!r}: give {in_words(declaration)}.")


def describe(cls: type) -> dict[str, str]:
    """Return what each field of a method may hold, in words."""
    return {name: in_words(declaration) for name, declaration in declarations(cls).items()}


def declarations(cls: type) -> dict[str, Any]:
    """Return the annotation of each field of a dataclass; `Any` if it refers to a name that cannot be found."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        for name, annotation in inspect.get_annotations(base).items():
            found[name] = _evaluated(annotation, base) if isinstance(annotation, str) else annotation
    return {field.name: found.get(field.name, Any) for field in dataclasses.fields(cls)}


def _evaluated(annotation: str, cls: type) -> Any:
    module = sys.modules.get(cls.__module__)
    try:
        return eval(annotation, dict(vars(module)) if module else {})
    except (NameError, AttributeError, SyntaxError, TypeError):  # a name that only type checkers know, for instance
        return Any


def fits(value: Any, declaration: Any) -> bool:
    """Return whether a value is of the kind and in the range that an annotation declares."""
    if len(options := _options(declaration)) > 1:
        return any(fits(value, option) for option in options)
    if get_origin(declaration) is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(declaration))
    kind, *metadata = get_args(declaration) if get_origin(declaration) is Annotated else (declaration,)
    if metadata:
        ranges = [part for part in metadata if isinstance(part, Within)]
        return fits(value, kind) and all(part.holds(value) for part in ranges)
    known = next((classes for annotation, (classes, _) in KINDS.items() if annotation is kind), object)
    # True counts as a number in Python.
    return isinstance(value, known) and not (isinstance(value, bool) and kind in (int, float))


def in_words(declaration: Any) -> str:
    """Return what an annotation declares, such as "a number of at least 0, or 'auto'"."""
    *others, last = (words for option in _options(declaration) for words in _words(option))
    if not others:
        return last
    comma = "," if any(" " in words for words in others) else ""
    return f"{', '.join(others)}{comma} or {last}"


def _options(declaration: Any) -> list[Any]:
    """Return the alternatives of a union; any other annotation is the only one."""
    if get_origin(declaration) not in (Union, UnionType):
        return [declaration]
    return [option for part in get_args(declaration) for option in _options(part)]


def _words(option: Any) -> list[str]:
    if get_origin(option) is Literal:
        return [repr(choice) for choice in get_args(option)]
    if get_origin(option) is Annotated:
        kind, *metadata = get_args(option)
        return [part.describe(kind) for part in metadata if isinstance(part, Within)] or [in_words(kind)]
    if get_origin(option) is Callable:
        return ["a function"]
    known = next((words for annotation, (_, words) in KINDS.items() if annotation is option), None)
    return [known or str(getattr(option, "__name__", option))]
