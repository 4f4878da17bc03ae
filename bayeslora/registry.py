"""Registration of your own methods and kinds of labels."""

import inspect
from typing import Annotated, Any, TypeAlias, TypeVar

from bayeslora.contracts import ArgumentError, Kind, checked
from bayeslora.methods import METHODS, Method, guarded
from bayeslora.tasks import LIKELIHOODS, Likelihood

T = TypeVar("T", bound=type)

Registered: TypeAlias = Annotated[T, Kind("a class derived from Method or Likelihood", lambda value: True)]
"""Anything: `register` says what a class lacks."""


@checked()
def register(cls: Registered[T]) -> T:
    """Add a method or a likelihood of your own to `METHODS` or `LIKELIHOODS`; usable as a class decorator.

    Its `name` is its key: `fit(method=name)` or `fit(likelihood=name)` find it, and so does `load`.

    Raises:
        TypeError: If the class is not a concrete method or likelihood with a `name` of its own.
        ValueError: If another class has the name.
    """
    table: dict[str, Any] | None = None
    if inspect.isclass(cls) and not inspect.isabstract(cls):
        table = METHODS if issubclass(cls, Method) else LIKELIHOODS if issubclass(cls, Likelihood) else None
    if table is None:
        raise ArgumentError(
            f"cls={cls!r} is not a method or a likelihood: derive from Method or PerStackMethod and write its prior "
            "and guide; or from Likelihood, and write its distribution."
        )
    name = vars(cls).get("name")
    if not isinstance(name, str):
        where = "METHODS" if table is METHODS else "LIKELIHOODS"
        raise ArgumentError(f"{cls.__name__} needs a class attribute `name` of its own, its key in {where}.")
    taken = table.get(name)
    if taken is not None and taken is not cls:
        raise ArgumentError(f"The name {name!r} belongs to {taken.__name__}: choose another.")
    table[name] = guarded(cls) if table is METHODS else cls
    return cls
