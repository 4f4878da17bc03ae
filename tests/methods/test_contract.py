"""What every method in `METHODS` promises."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from bayeslora.contracts import ArgumentError, fits
from bayeslora.methods import METHODS, Method, PerStackMethod, make_method
from bayeslora.methods.fields import declarations
from bayeslora.methods.point import LoRA
from bayeslora.program import Program
from bayeslora.registry import register
from bayeslora.testing import MethodContract
from tests.helpers import batch
from tests.methods.conftest import VARIANTS


class TestContract(MethodContract):
    """Each method with its defaults, and variants with other sites."""

    @pytest.fixture(autouse=True, params=VARIANTS)
    def choose(self, request: pytest.FixtureRequest) -> None:
        name, fields = VARIANTS[request.param]
        self.method = make_method(name, **fields)


def test_fields_are_set_by_name_and_unknown_ones_are_listed(method: Method) -> None:
    with pytest.raises(TypeError, match=r"has no field 'nonsense'; (its fields are|it has no fields)"):
        make_method(method.name, nonsense=1)
    with pytest.raises(TypeError, match="has no field 'nonsense'"):
        make_method(method, nonsense=1)


@pytest.mark.parametrize("name", METHODS)
def test_whole_numbers_do_where_any_number_fits(name: str, make_program: Callable[..., Program]) -> None:
    for field in dataclasses.fields(METHODS[name]):
        if isinstance(field.default, float) and fits(1, declarations(METHODS[name])[field.name]):
            try:
                chosen = make_method(name, **{field.name: 1})
            except ArgumentError:  # fields that do not go together
                continue
            loss = make_program(chosen)(**batch()).loss
            assert bool(loss.isfinite()), field.name


def test_every_method_stands_in_the_documentation() -> None:
    root = Path(__file__).parents[2]
    pages = [(root / page).read_text() for page in ("README.md", "docs/methods/index.md")]
    assert [name for name in METHODS if not all(f"`{name}`" in page for page in pages)] == []


def test_unknown_methods_list_those_there_are() -> None:
    with pytest.raises(ValueError, match=f"method='nonsense' is not known. Methods: {', '.join(METHODS)}"):
        make_method("nonsense")


def test_register_adds_a_method_and_refuses_what_is_none() -> None:
    class Mine(LoRA):
        name = "mine"

    class Thief(LoRA):
        name = "monteclora"

    class Nameless(PerStackMethod):
        stack_prior = LoRA.stack_prior
        stack_guide = LoRA.stack_guide

    try:
        assert register(Mine) is Mine
        assert register(Mine) is Mine  # again is no error
        assert isinstance(make_method("mine"), Mine)
    finally:
        METHODS.pop("mine", None)
    with pytest.raises(ValueError, match="'monteclora' belongs to MonteCLoRA"):
        register(Thief)
    with pytest.raises(TypeError, match="needs a class attribute `name`"):
        register(Nameless)
    with pytest.raises(TypeError, match="is not a method or a likelihood"):
        register(PerStackMethod)
