"""Check the arguments of a public call once, before anything is done: `checked`.

The annotations of a signature are its contract (`kinds`): a new argument is checked as soon as it is declared.
"""

import contextlib
import functools
import inspect
import math
import os
import reprlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar, cast

from bayeslora.contracts.kinds import (
    LARGEST,
    LARGEST_INTEGER,
    SCALARS,
    SMALLEST,
    fits,
    in_words,
    is_name,
    is_understood,
    made,
    plain,
    takes_instances,
    why_not,
    with_article,
)
from bayeslora.contracts.names import suggestions

F = TypeVar("F", bound=Callable[..., Any])

SHOWN = 80
"""Characters up to which a message shows a value that is not a number or a text."""

MOST_BITS = 10_000
"""Of a whole number that a message shows: Python writes none of more than 4,300 digits."""

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = SHOWN


class ArgumentError(ValueError, TypeError):
    """An argument that does not fit, whether in its kind or in its value; the message says what was given and fits."""


class Fields(NamedTuple):
    """What a call takes as further keywords.

    Args:
        names: Their names, and what each may be; what is not declared may be anything.
        whose: What has them, for messages.
        noun: What messages call one.
    """

    names: Mapping[str, Any]
    whose: str
    noun: str = "field"


def checked(
    fields: Callable[[Mapping[str, Any]], Fields | None] | None = None,
    noun: str = "argument",
    also: Callable[[dict[str, Any]], None] | None = None,
    like: Callable[..., Any] | None = None,
) -> Callable[[F], F]:
    """Return a decorator that checks a call's arguments against the annotations of the signature.

    Numbers of numpy, fractions and tensors without dimensions become Python's. A default always fits. Put it outside of
    every other decorator: a call that is refused has done nothing.

    Args:
        fields: For a function with further keywords: returns what they may be, given the other arguments.
        noun: What messages call an argument.
        also: Raises an `ArgumentError` where arguments do not fit each other, or changes them to what is meant.
        like: A function whose annotations count instead: that of an interface.

    Raises:
        ArgumentError: By the function, if an argument does not fit, is missing, or is not known.
    """

    def decorate(function: F) -> F:
        contract = Contract(function, fields, noun, also, like)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            bound = contract.admit(args, kwargs)
            return function(*bound.args, **bound.kwargs)

        call.__contract__ = contract  # type: ignore[attr-defined]
        return cast(F, call)

    return decorate


class Contract:
    """What the arguments of a function may be.

    Args:
        function: The function.
        fields: What further keywords may be.
        noun: What messages call an argument.
        also: Checks arguments together.
        like: A function whose annotations count instead.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        fields: Callable[..., Fields | None] | None = None,
        noun: str = "argument",
        also: Callable[..., None] | None = None,
        like: Callable[..., Any] | None = None,
    ):
        self.function = function
        self.fields = fields
        self.noun = noun
        self.also = also
        self.like = like or function

    @functools.cached_property
    def signature(self) -> inspect.Signature:
        """The signature."""
        return inspect.signature(self.function)

    @functools.cached_property
    def declared(self) -> dict[str, Any]:
        """The annotation of each argument, `self` left out; `Any` if it refers to a name that cannot be found."""
        names = getattr(inspect.unwrap(self.like), "__globals__", {})
        parameters = list(inspect.signature(self.like).parameters.values())
        parameters = parameters[self._is_method :]
        return {
            parameter.name: evaluated(parameter.annotation, names)
            for parameter in parameters
            if parameter.annotation is not parameter.empty
        }

    def admit(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> inspect.BoundArguments:
        """Return the arguments as the function takes them; raise an `ArgumentError` if one does not fit."""
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError:
            raise self._misfit(args, kwargs) from None
        parameters = self.signature.parameters
        further: tuple[str, dict[str, Any]] | None = None
        for name, value in bound.arguments.items():
            declaration, parameter = self.declared.get(name, Any), parameters[name]
            if parameter.kind is parameter.VAR_KEYWORD:
                further = name, value
            elif parameter.kind is parameter.VAR_POSITIONAL:
                bound.arguments[name] = tuple(self._fitting(name, item, declaration) for item in value)
            elif value is not parameter.default:
                bound.arguments[name] = self._fitting(name, value, declaration)
        if further is not None and self.fields is not None and (fields := self.fields(bound.arguments)) is not None:
            name, values = further
            refuse_unknown(values, fields, [known for known in parameters if known != name])
            bound.arguments[name] = {n: self._fitting(n, v, fields.names[n]) for n, v in values.items()}
        if self.also is not None:
            self.also(bound.arguments)
        return bound

    @property
    def _is_method(self) -> bool:
        return "." in self.function.__qualname__.rpartition("<locals>.")[2]

    def _called(self, args: tuple[Any, ...]) -> str:
        """The name under which a reader knows the function: an inherited method is the object's, not its parent's."""
        owner, dot, method = self.function.__qualname__.rpartition("<locals>.")[2].rpartition(".")
        if dot and args and args[0] is not None:
            owner = (args[0] if isinstance(args[0], type) else type(args[0])).__name__
        return owner if method == "__init__" else f"{owner}{dot}{method}"

    def _fitting(self, name: str, value: Any, declaration: Any) -> Any:
        return check_value(name, value, declaration, lambda: self._elsewhere(name, value, declaration))

    def _elsewhere(self, name: str, value: Any, declaration: Any) -> str:
        """Say which other argument takes a value, if it is of a kind that few do."""
        if value is None or isinstance(value, (*SCALARS, list, tuple, dict)):
            return ""
        if isinstance(value, bytes | bytearray):
            return " It is bytes: decode them, os.fsdecode(…)." if fits("text", declaration) else ""
        if isinstance(value, type):
            return f" Give an instance, {value.__name__}(…)." if takes_instances(declaration, value) else ""
        # So many things can hold data that nothing follows from that.
        kinds = {n: kind for n, kind in self.declared.items() if n not in (name, "data") and is_understood(kind)}
        others = [n for n, kind in kinds.items() if fits(value, kind)]
        return f" It is what {others[0]!r} takes: pass it by name, {others[0]}=…." if len(others) == 1 else ""

    def _misfit(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ArgumentError:
        """Say why arguments do not bind to the signature."""
        called = self._called(args)
        known = self.signature.parameters
        mine = [name for name in known if name in self.declared]
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
        if not takes_any and (unknown := [name for name in kwargs if name not in mine]):
            return unknown_names(unknown, Fields(dict.fromkeys(mine), called, self.noun))
        by_place = [n for n, p in known.items() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        if len(args) > len(by_place):
            most = len(by_place) - len(known) + len(mine)
            rest = [name for name in mine if name not in by_place]
            advice = f"name the others, such as {rest[0]}=…" if rest else "leave the others out"
            return ArgumentError(f"{called} takes {most} {self.noun}s by place, and more were given: {advice}.")
        if twice := [name for name in by_place[: len(args)] if name in kwargs]:
            return ArgumentError(f"{called} is given {twice[0]!r} twice, by place and by name: leave one out.")
        given = {*by_place[: len(args)], *kwargs}
        several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        needed = [n for n in mine if known[n].default is inspect.Parameter.empty and known[n].kind not in several]
        lacking = [n for n in needed if n not in given]
        what = f": give {in_words(self.declared[lacking[0]])}" if lacking else ""
        return ArgumentError(f"{called} needs {' and '.join(map(repr, lacking))}{what}.")


def check_value(name: str, value: Any, declaration: Any, advice: Callable[[], str] = str) -> Any:
    """Return a value, with its numbers as Python's; raise an `ArgumentError` unless it is what an annotation declares.

    Args:
        name: What has the value.
        value: The value.
        declaration: The annotation.
        advice: Returns what the message adds.
    """
    with contextlib.suppress(Exception):  # whatever a value of somebody else's raises
        value = plain(value, declaration)
    if fits(value, declaration):
        with contextlib.suppress(Exception):
            value = made(value, declaration)
        return value
    needed = in_words(declaration)
    try:
        large = f" Whole numbers have to be below {LARGEST_INTEGER + 1}." if is_too_large(value) else ""
        if isinstance(value, float) and math.isfinite(value) and value and not SMALLEST <= abs(value) <= LARGEST:
            large = f" Networks compute with numbers between {SMALLEST} and {LARGEST}."
        named = f" {why_not(value)}".rstrip() if "the path " in needed and is_name(value) else ""
        message = f"{shown(name, value)}: give {needed}.{large}{named}{advice()}"
    except Exception:  # of a value that raises errors when it is looked at
        message = f"{name} is {with_article(type(value).__name__)}: give {needed}."
    raise ArgumentError(message)


def is_too_large(value: Any) -> bool:
    """Return whether a value is a whole number that is larger than any argument may be."""
    return isinstance(value, int) and abs(value) > LARGEST_INTEGER


def check_arguments(function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Raise an `ArgumentError` where a checked function would, without calling it; None stands for `self`."""
    cast(Contract, function.__contract__).admit(args, kwargs)  # type: ignore[attr-defined]


def declared(function: Callable[..., Any]) -> dict[str, Any]:
    """Return what the arguments of a checked function may be."""
    return cast(Contract, function.__contract__).declared  # type: ignore[attr-defined]


def evaluated(annotation: Any, names: Mapping[str, Any]) -> Any:
    """Return an annotation that may be text; `Any` if it refers to a name that cannot be found."""
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, dict(names))
    except (NameError, AttributeError, SyntaxError, TypeError):  # a name that only type checkers know, for instance
        return Any


def shown(name: str, value: Any) -> str:
    """Return how a message begins that is about an argument's value: `epochs=-1`, or `data is a Dataset`."""
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        return f"{name} is a whole number of more than {MOST_BITS} bits"
    if value is None or isinstance(value, SCALARS):
        return f"{name}={_short.repr(value)}"
    if isinstance(value, type):
        return f"{name} is the class {value.__name__}"
    if isinstance(value, os.PathLike) and is_name(value):
        return f"{name}={_short.repr(os.fspath(value))}"
    try:
        text = repr(value)
    except Exception:  # somebody else's
        text = ""
    if not 0 < len(text) <= SHOWN or text.startswith("<") or "\n" in text:
        return f"{name} is {with_article(type(value).__name__)}"
    return f"{name}={text}"


def refuse_unknown(names: Iterable[str], fields: Fields, beside: Iterable[str] = ()) -> None:
    """Raise an `ArgumentError` that lists the fields there are, and the likeliest ones, if a name is not one of them.

    Args:
        names: The names.
        fields: What there is.
        beside: Further names that may have been meant: the arguments of the call.
    """
    if unknown := [name for name in names if name not in fields.names]:
        raise unknown_names(sorted(unknown), fields, beside)


def unknown_names(unknown: Iterable[str], fields: Fields, beside: Iterable[str] = ()) -> ArgumentError:
    """Return the error about names that are not fields."""
    unknown = list(unknown)
    has = f"its {fields.noun}s are: {', '.join(fields.names)}" if fields.names else f"it has no {fields.noun}s"
    meant = suggestions(unknown, [*fields.names, *beside])
    return ArgumentError(f"{fields.whose} has no {fields.noun} {', '.join(map(repr, unknown))}; {has}.{meant}")
