"""Objects with a state of their own that no attribute shows: Python's iterators, and generators of random numbers."""

import contextlib
import copy
import pickle
import random
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

RANDOM = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)
"""Generators of random numbers."""


def counts(value: Any, training: bool = False) -> bool:
    """Whether a value is such an object, of which a copy can take its place.

    In training, random numbers go on, as those of the global state do.
    """
    if isinstance(value, RANDOM):
        return not training and not isinstance(value, random.SystemRandom)
    is_pythons = type(value).__module__ in ("builtins", "itertools")
    return is_pythons and isinstance(value, Iterator) and _state(value) is not None and not hides(value)


def hides(value: Any) -> bool:
    """Return whether a value is an iterator that cannot be copied, such as a generator, or an iterator over one.

    `itertools.pairwise` cannot be copied either, nor, from Python 3.14 on, can any other iterator of `itertools`.
    """
    if isinstance(value, types.GeneratorType):
        return True
    if type(value).__module__ not in ("builtins", "itertools") or not isinstance(value, Iterator):
        return False
    with contextlib.suppress(TypeError):
        return any(map(hides, _parts(value.__reduce__()[1:])))
    return True


def _parts(state: Any) -> Iterator[Any]:
    for part in state:
        if isinstance(part, tuple):
            yield from _parts(part)
        else:
            yield part


class GeneratorMovedError(TypeError):
    """A pass would move on a generator, which cannot be put back."""


class Unmoved:
    """Stands in the place of an iterator that hides its state: an error says so before it is moved on.

    Args:
        name: Of the network.
    """

    def __init__(self, name: str):
        self.name = name

    def __iter__(self) -> "Unmoved":
        return self

    def __next__(self) -> Any:
        raise GeneratorMovedError(
            f"A pass through the {self.name} moves on a generator, or another iterator, that cannot be put back: "
            "predictions would depend on those before. Make it in `forward`, or keep its values in a list."
        )

    send = __next__


def copied(value: Any) -> Any:
    """Return an object that goes on as the value would, and does not move it."""
    if isinstance(value, RANDOM):
        return copy.deepcopy(value)
    kind, args, *state = value.__reduce__()
    made = kind(*(copied(arg) if counts(arg) else arg for arg in args))
    if state and state[0] is not None:
        made.__setstate__(_own(state[0]))
    return made


def is_as(value: Any, other: Any) -> bool:
    """Whether two such objects would go on in the same way."""
    return _state(value) == _state(other)


def _own(state: Any) -> Any:
    """The state of an iterator, without what it would share: `itertools.cycle` adds to a list of what it has seen."""
    if isinstance(state, tuple):
        return tuple(map(_own, state))
    return copied(state) if counts(state) else [*state] if isinstance(state, list) else state


def _state(value: Any) -> Any:
    """Return what can be compared of a state; None if it cannot be seen."""
    if isinstance(value, torch.Generator):
        return bytes(value.get_state().numpy())
    if isinstance(value, RANDOM):
        return pickle.dumps(value)
    with contextlib.suppress(TypeError):  # a file, say, or what a function yields
        kind, *parts = value.__reduce__()
        return kind.__name__, _comparable(tuple(parts))
    return None


def _comparable(part: Any) -> Any:
    if isinstance(part, tuple):
        return tuple(map(_comparable, part))
    if isinstance(part, list):
        return len(part)
    if isinstance(part, Iterator):
        return _state(part)
    return part if isinstance(part, int | float | str | range | None) else id(part)
