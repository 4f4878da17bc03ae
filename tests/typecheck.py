"""The checks of types and shapes while the tests run: as the type checker does, they take an int for a float.

Where an int is asked for, they take NumPy's, too: users have them, and the library takes them.
"""

import dataclasses
import functools
import inspect
import typing
from types import CellType, CodeType, FunctionType
from typing import Any, NamedTuple

import jaxtyping
import numpy as np
from beartype import BeartypeConf, FrozenDict, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True, hint_overrides=FrozenDict({int: int | np.integer})))

_jaxtyped = jaxtyping.jaxtyped


def install(package: str) -> None:
    """Check every call of a package's functions from now on; call it before the package is imported.

    jaxtyping's own decorator binds the arguments of a call to its signature and checks them twice, which took a third
    of the tests' time: the names of axes need no more than a scope of their own, and most functions have no axes.
    """
    jaxtyping.jaxtyped = lambda *, typechecker: checked  # what the import hook decorates functions and classes with
    jaxtyping.install_import_hook(package, f"{__name__}.check")


def checked(decorated: Any) -> Any:
    """Check a function's calls, or those of a dataclass's `__init__`."""
    if not inspect.isclass(decorated):
        return _function(decorated)
    if dataclasses.is_dataclass(decorated) and "__init__" in vars(decorated):
        decorated.__init__ = _function(decorated.__init__)
    return decorated


class _Made(NamedTuple):
    """What beartype made of a function: `wrapper` is the function itself where nothing is declared."""

    written: dict[str, Any]
    wrapper: Any
    has_axes: bool


_nested: dict[CodeType, _Made] = {}
"""What was made of functions that are defined anew in every call of another."""


def _function(function: Any) -> Any:
    if "<locals>" in function.__qualname__:
        made = _nested.get(function.__code__)
        if made is None or made.written != function.__annotations__:
            made = _nested[function.__code__] = _made(_hollow(function))
        result = _around(made.wrapper, function)
    else:
        made = _made(function)
        result = made.wrapper
    if not made.has_axes:
        return result

    @functools.wraps(result)
    def scoped(*args: Any, **kwargs: Any) -> Any:
        with _jaxtyped("context"):  # an axis has one length in a call
            return result(*args, **kwargs)

    return scoped


def _made(function: Any) -> _Made:
    written = function.__annotations__
    hints = {name: _evaluated(hint, function.__globals__) for name, hint in written.items()}
    try:
        function.__annotations__ = hints
        wrapper = check(function)
    finally:
        function.__annotations__ = written
    wrapper.__annotations__ = written
    return _Made(written, wrapper, any(map(_has_axes, hints.values())))


def _hollow(function: Any) -> Any:
    """Return a function without what it has taken from the call that it was defined in, so that nothing stays alive."""
    cells = tuple(CellType() for _ in function.__closure__ or ())
    hollow = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, cells)
    hollow.__kwdefaults__ = function.__kwdefaults__
    functools.update_wrapper(hollow, function)
    del hollow.__wrapped__  # it would stay alive
    return hollow


def _around(wrapper: Any, function: Any) -> Any:
    """Return beartype's wrapper of a function with the same code around this one: to make one takes a millisecond."""
    defaults = wrapper.__kwdefaults__ or {}
    if "__beartype_func" not in defaults:  # nothing is declared, or another version of beartype
        return _made(function).wrapper
    result = FunctionType(wrapper.__code__, wrapper.__globals__, wrapper.__name__, wrapper.__defaults__)
    result.__kwdefaults__ = defaults | {"__beartype_func": function}
    vars(result).update(vars(wrapper))
    return functools.update_wrapper(result, function)


def _evaluated(hint: Any, names: dict[str, Any]) -> Any:
    """Return an annotation that may hold text; `Any` if it refers to a name that only type checkers know."""
    try:
        return typing.get_type_hints(_Holder(hint), names, include_extras=True)["value"]
    except Exception:
        return Any


class _Holder:
    """An annotation where `get_type_hints` looks for them."""

    def __init__(self, hint: Any):
        self.__annotations__ = {"value": hint}


def _has_axes(hint: Any) -> bool:
    if isinstance(hint, list):  # the arguments of a callable
        return any(map(_has_axes, hint))
    is_array = inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray)
    return is_array or any(map(_has_axes, typing.get_args(hint)))
