"""Every public signature: what users call, by the name they call it by."""

import inspect
from collections.abc import Callable
from typing import Any

import bayeslora
from bayeslora import METHODS, Posterior

PREDICTIONS = tuple(
    cls for name, cls in vars(bayeslora).items() if name.endswith("Prediction") and inspect.isclass(cls)
)


def public() -> dict[str, Callable[..., Any]]:
    """Name to function or method; properties, which take no arguments, are left out."""
    named = {name: getattr(bayeslora, name) for name in bayeslora.__all__}
    found = {name: value for name, value in named.items() if inspect.isfunction(value)}
    for cls in (Posterior,):
        methods = inspect.getmembers(cls, inspect.isfunction)
        found |= {f"{cls.__name__}.{name}": value for name, value in methods if name[0] != "_"}
    found |= {f"METHODS[{name!r}]": cls.__init__ for name, cls in METHODS.items()}
    return found
