"""The checks of types and shapes that run in the tests refuse what they should."""

import gc
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float
from torch import Tensor

from bayeslora.contracts.names import suggestions
from tests.typecheck import checked

Pairs = Mapping[str, Float[Tensor, "row column"]]


@checked
def product(a: Float[Tensor, "row inner"], b: Float[Tensor, "inner column"], *, wrong: bool = False) -> Pairs:
    result = a @ b
    return {"product": result[0] if wrong else result}


@checked
def same(a: Float[Tensor, " row"], times: "int" = 1) -> Float[Tensor, " row"]:
    return a.repeat(times)


@checked
def halved(number: float, by: "OnlyForTypeCheckers" = 2) -> float:  # noqa: F821
    return number / by


@checked
def numbers(count: int) -> Iterator[int]:
    yield from range(count)


@checked
@dataclass
class Point:
    x: float
    y: float = 0.0


def test_what_fits_passes() -> None:
    assert product(torch.ones(2, 3), torch.ones(3, 4))["product"].shape == (2, 4)
    assert product(torch.ones(3, 2), torch.ones(2, 5))["product"].shape == (3, 5)  # other lengths in another call
    assert same(torch.ones(3)).shape == (3,)
    assert halved(1) == halved(1.0, by=2) == 0.5
    assert [*numbers(np.int64(2))] == [0, 1]
    assert Point(1).x == 1


def test_what_does_not_fit_is_refused() -> None:
    for call in (
        lambda: product(torch.ones(2, 3), torch.ones(4, 4)),  # an axis with two lengths
        lambda: product(torch.ones(2, 3), torch.ones(3)),
        lambda: product(torch.ones(2, 3), torch.ones(3, 4), wrong=True),
        lambda: product(torch.ones(2, 3).long(), torch.ones(3, 4)),
        lambda: same(torch.ones(3), times=2),  # between an argument and the result
        lambda: same(torch.ones(3), times=1.5),
        lambda: halved("1"),
        lambda: [*numbers(2.0)],
        lambda: Point("1"),
    ):
        with pytest.raises(BeartypeCallHintViolation):
            call()


def test_nested_functions_are_checked_each_for_itself() -> None:
    def adder(number: int, kind: type = int) -> Any:
        @checked
        def add(value: kind, *, times: int = number) -> kind:  # type: ignore[valid-type]
            return value + times * number  # type: ignore[attr-defined]

        return add

    one, two, real = adder(1), adder(2), adder(2, float)
    assert (one(1), two(1), two(1, times=3)) == (2, 5, 7)
    assert (one.__name__, one.__wrapped__.__closure__[0].cell_contents) == ("add", 1)
    assert real(0.5) == 4.5
    for call in (lambda: one("1"), lambda: two(0.5), lambda: two(1, times="2"), lambda: real("1")):
        with pytest.raises(BeartypeCallHintViolation):
            call()


def test_nothing_of_a_call_is_kept_by_the_check_of_a_function_in_it() -> None:
    class Thing:
        pass

    def holder(thing: Thing) -> Any:
        @checked
        def held(number: int) -> bool:
            return thing is not None and number > 0

        return held

    thing = Thing()
    seen = weakref.ref(thing)
    assert holder(thing)(1)
    del thing
    gc.collect()
    assert seen() is None


def test_the_librarys_own_functions_are_checked() -> None:
    with pytest.raises(BeartypeCallHintViolation):
        suggestions(1, 2)
