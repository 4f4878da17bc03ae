"""Kinds and ranges of values, as annotations declare them: whether a value fits, and what does, in words.

`Count` is a whole number of at least 1, `NonNegative | Literal["auto"]` a finite number of at least 0, or `"auto"`.
Beside numbers with a range, text, `True` or `False` and None, there are lists and mappings of them, functions, classes
and their instances; what no class says is a `Kind`.
"""

import collections.abc
import dataclasses
import math
import numbers
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import numpy as np
from torch import Tensor, nn

LARGEST_INTEGER = 2**63 - 1
"""No whole number is larger, which PyTorch, NumPy and files could not hold."""

SMALLEST, LARGEST = 1.2e-38, 3.4e38
"""Between these are the positive numbers that single precision holds, in which most networks compute."""

LONGEST_RANGE = 10**6
"""A range of more numbers is refused without looking at each: `range(10**12)` takes no memory, and hours."""


def is_endless(value: Any) -> bool:
    """Whether a value is a range of more numbers than can be looked at; it need not have a length."""
    return isinstance(value, range) and bool(value[LONGEST_RANGE:])


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
        """Return whether a number is in the range, of finite ones in single precision."""
        if self.below == math.inf and (abs(value) > LARGEST or (self.above == 0 and value < SMALLEST)):
            return False
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def describe(self, kind: Any) -> str:
        """Return the range in words, such as "a whole number of at least 1"."""
        noun = self.noun or ("whole number" if kind is int else "number")
        if self.below == math.inf:
            finite = dataclasses.replace(self, below=None, noun=f"finite {noun}")
            return f"a finite {noun}" if self.above == -math.inf else finite.describe(kind)
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


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a value is where no class says it, as metadata of `Annotated`.

    Args:
        words: What messages call it, after "give".
        holds: Whether a value is one.
        made: What the call gets in place of a value; None for the value itself.
    """

    words: str
    holds: Callable[[Any], bool]
    made: Callable[[Any], Any] | None = None


Count = Annotated[int, Within(at_least=1)]
Positive = Annotated[float, Within(above=0, below=math.inf)]
NonNegative = Annotated[float, Within(at_least=0, below=math.inf)]
StandardDeviation = Annotated[float, Within(above=0, below=math.inf, noun="standard deviation")]
DropRate = Annotated[float, Within(at_least=0, below=1, noun="probability")]
Share = Annotated[float, Within(at_least=0, below=1)]
Probability = Annotated[float, Within(above=0, below=1, noun="probability")]
PartOfRun = Annotated[float, Within(above=0, at_most=1, noun="fraction of the run")]
Finite = Annotated[float, Within(above=-math.inf, below=math.inf)]
Scale = Positive
Weight = NonNegative
Natural = Annotated[int, Within(at_least=0)]
Few = Annotated[int, Within(at_least=1, at_most=10_000)]
"""Of what takes memory for each: members, components, snapshots."""
Unbounded = Annotated[float, Kind("inf", lambda value: bool(value == math.inf))]
"""For a limit that there need not be."""
ClassCount = Annotated[int, Within(at_least=1, at_most=2**24)]
Freedom = Annotated[float, Within(above=2, below=math.inf)]
"""Degrees of freedom with which a variance is finite."""

LONGEST_NAME, LONGEST_PATH = 255, 4096
"""Bytes of a file's name, and of a path: systems refuse what is longer, in errors of their own."""

KINDS: dict[Any, tuple[type, str]] = {
    bool: (bool, "True or False"),
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    str: (str, "text"),
    NoneType: (NoneType, "None"),
    nn.Module: (nn.Module, "a torch.nn.Module"),
}
"""Annotation to the class whose instances fit, and how messages describe them."""

SCALARS = (bool, int, float, str)

LISTS = (list, tuple, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)

MAPPINGS = (dict, collections.abc.Mapping)


def name_instances(cls: type, words: str) -> None:
    """Let messages call the instances of a class by these words."""
    KINDS[cls] = (cls, words)


def fits(value: Any, declaration: Any) -> bool:
    """Return whether a value is of the kind and in the range that an annotation declares.

    Whatever the annotation says that is not understood here, the value fits. A value that raises an error when it is
    looked at, whatever error, does not.
    """
    try:
        return _fits(value, declaration)
    except Exception:
        return False


def _fits(value: Any, declaration: Any) -> bool:
    options = _options(declaration)
    if len(options) > 1:
        return any(fits(value, option) for option in options)
    origin, parts = get_origin(declaration), get_args(declaration)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in parts)
    if origin is Annotated:
        return _fits(value, parts[0]) and all(part.holds(value) for part in parts[1:] if _says(part))
    if origin in MAPPINGS:
        return isinstance(value, Mapping) and all(_fits(k, parts[0]) and _fits(v, parts[1]) for k, v in value.items())
    if origin in LISTS:
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            return False
        if is_endless(value):
            return False
        if origin is tuple and parts[-1] is not Ellipsis:
            return len(value) == len(parts) and all(map(_fits, value, parts))
        return all(_fits(item, parts[0]) for item in value)
    if origin is collections.abc.Callable:
        return callable(value)
    if origin is type:
        return isinstance(value, type) and (not isinstance(parts[0], type) or issubclass(value, parts[0]))
    return _is_a(value, KINDS[declaration][0] if declaration in KINDS else origin or declaration, declaration)


def _is_a(value: Any, cls: Any, declaration: Any) -> bool:
    number: Any = value
    if not isinstance(cls, type) or cls is Any:
        return True
    if isinstance(value, bool):
        return declaration not in (int, float) and isinstance(value, cls)  # True counts as a number in Python
    try:
        if declaration is int:
            return isinstance(value, cls) and abs(number) <= LARGEST_INTEGER
        if declaration is float and isinstance(value, cls):
            float(number)
        # A class has the methods that a protocol asks of instances.
        return isinstance(value, cls) and not (isinstance(value, type) and cls is not type)
    except OverflowError:
        return False
    except TypeError:  # a protocol that is for type checkers alone
        return True


def takes_instances(declaration: Any, cls: type) -> bool:
    """Return whether an annotation names a class that another derives from."""
    return any(isinstance(option, type) and issubclass(cls, option) for option in _options(declaration))


def is_understood(declaration: Any) -> bool:
    """Return whether an annotation says anything about a value that can be checked."""
    origin, parts = get_origin(declaration), get_args(declaration)
    if origin is Annotated:
        return is_understood(parts[0]) or any(map(_says, parts[1:]))
    if origin in (Union, UnionType):
        return all(map(is_understood, parts))
    return origin is not None or (isinstance(declaration, type) and declaration not in (Any, object))


def plain(value: Any, declaration: Any) -> Any:
    """Return a value with the numbers of numpy, fractions and tensors without dimensions as Python's.

    Only where a number or text is declared: data stay as they are.
    """
    if value is None or type(value) in SCALARS or not _has_scalars(declaration):
        return value
    if isinstance(value, Mapping):
        part = next((get_args(o)[1] for o in _options(declaration) if get_origin(o) in MAPPINGS), Any)
        return {plain(key, str): plain(entry, part) for key, entry in value.items()} if part is not Any else value
    items = next((o for o in _options(declaration) if get_origin(o) in LISTS), None)
    if items is not None and isinstance(value, np.ndarray) and value.ndim == 1:
        return value.tolist()
    if items is not None and isinstance(value, list | tuple):
        changed = [plain(item, get_args(items)[0]) for item in value]
        return value if all(map(operator.is_, changed, value)) else changed
    return _number(value)


def made(value: Any, declaration: Any) -> Any:
    """Return what a call gets in place of a value that fits: a path in full, for instance."""
    if isinstance(value, str | os.PathLike):
        for option in _options(declaration):
            for part in get_args(option)[1:] if get_origin(option) is Annotated else ():
                if isinstance(part, Kind) and part.made is not None and fits(value, option):
                    return part.made(value)
    return value


def _number(value: Any) -> Any:
    try:
        if isinstance(value, np.generic | np.ndarray | Tensor) and value.ndim == 0:
            value = value.item()
        if isinstance(value, numbers.Integral) and not isinstance(value, int):
            return int(value)
        if isinstance(value, numbers.Real) and not isinstance(value, int | float):
            return float(value)
    except (RuntimeError, OverflowError):  # a tensor without values, a fraction that no float holds
        pass
    return value


def _has_scalars(declaration: Any) -> bool:
    if declaration in SCALARS or get_origin(declaration) is Literal:
        return True
    parts = get_args(declaration)
    if get_origin(declaration) is Annotated:
        return _has_scalars(parts[0])
    return get_origin(declaration) in (Union, UnionType, *LISTS, *MAPPINGS) and any(map(_has_scalars, parts))


def in_words(declaration: Any) -> str:
    """Return what an annotation declares, such as "a number of at least 0, or 'auto'"."""
    *others, last = dict.fromkeys(words for option in _options(declaration) for words in _words(option))
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
    origin, parts = get_origin(option), get_args(option)
    if origin is Literal:
        return [repr(choice) for choice in parts]
    if origin is Annotated:
        kind, *metadata = parts
        said = [part.words if isinstance(part, Kind) else part.describe(kind) for part in metadata if _says(part)]
        return said[-1:] or [in_words(kind)]
    if origin is collections.abc.Callable:
        return ["a function"]
    if origin in MAPPINGS:
        return [f"a mapping from {in_words(parts[0])} to {in_words(parts[1])}"]
    if origin in LISTS:
        return [f"a list, each {in_words(parts[0])}"]
    if origin is type:
        return [f"a class derived from {parts[0].__name__}" if isinstance(parts[0], type) else "a class"]
    if option in KINDS:
        return [KINDS[option][1]]
    name = str(getattr(option, "__name__", option))
    return [with_article(name) if isinstance(option, type) else name]


def with_article(noun: str) -> str:
    """Return a noun with its article: "an AutoGuide"."""
    return f"{'an' if noun[:1].upper() in {*'AEIO'} else 'a'} {noun}"


def _says(part: Any) -> bool:
    return isinstance(part, Within | Kind)


def is_name(value: Any) -> bool:
    """Return whether a value is a text, or a path, that a system can be asked for: it may be too long for a file's."""
    try:
        name = os.fspath(value)
        return isinstance(name, str) and bool(name) and b"\0" not in os.fsencode(name)
    except Exception:  # it is not one, or whatever a path of somebody else's raises
        return False


def is_path(value: Any) -> bool:
    """Return whether a value can be the name of a file or folder."""
    return is_name(value) and not why_not(value)


def why_not(name: str | os.PathLike[str]) -> str:
    """Return, in a sentence, what keeps a name from being that of a file or folder; nothing if it may be."""
    try:
        content = os.fspath(name).encode()
    except UnicodeEncodeError:  # on Linux a name may be any bytes
        return "It is not UTF-8, which libraries that read and write there ask for."
    if len(content) < LONGEST_PATH and all(len(part) <= LONGEST_NAME for part in content.split(os.sep.encode())):
        return ""
    return f"It is too long: a path has fewer than {LONGEST_PATH} bytes, and a name in it at most {LONGEST_NAME}."


def expanded(value: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Return a path with the folder that `~` or `~name` at its beginning stands for, unless it is there as it is."""
    name = os.fspath(value)
    return value if not name.startswith("~") or os.path.lexists(name) else os.path.expanduser(name)


def derives_from(*names: str) -> Callable[[Any], bool]:
    """Return a test whether a value is, or is an instance of, a class with one of these full names or derived from it.

    It imports nothing: whoever has an instance has imported its class.
    """

    def holds(value: Any) -> bool:
        classes = value.__mro__ if isinstance(value, type) else type(value).__mro__
        return any(f"{cls.__module__.partition('.')[0]}.{cls.__name__}" in names for cls in classes)

    return holds


def instance_of(name: str) -> Callable[[Any], bool]:
    """Return a test whether a value is an instance of a class with this full name, or of one derived from it."""
    derives = derives_from(name)
    return lambda value: not isinstance(value, type) and derives(value)
