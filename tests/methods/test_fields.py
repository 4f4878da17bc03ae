"""What fields may hold is declared beside them, checked when a method is made, and said in words."""

import dataclasses
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from torch import nn

from bayeslora.contracts import fits
from bayeslora.methods import METHODS, AdaLoRA, BLoB, LoRA, LoRADropout, Method, MonteCLoRA, PerStackMethod
from bayeslora.methods.fields import Count, DropRate, PartOfRun, Positive, Within, declarations, describe


class Sketch(PerStackMethod):
    """A method without a model, for its fields."""

    def stack_prior(self, stack: Any) -> Any: ...

    def stack_guide(self, stack: Any) -> nn.Module:
        return nn.Identity()


def make(method: Callable[[], Method], **fields: Any) -> Any:
    """A method with other values of its fields, past the type check that the tests put on every constructor."""
    made = method()
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    made.__post_init__()
    return made


@pytest.mark.parametrize(
    ("method", "fields", "message"),
    [
        (MonteCLoRA, {"components": 1.5}, "components=1.5: give a whole number of at least 1 and at most 10000."),
        (MonteCLoRA, {"components": True}, "components=True: give a whole number of at least 1 and at most 10000."),
        (MonteCLoRA, {"components": math.nan}, "components=nan: give a whole number of at least 1 and at most 10000."),
        (MonteCLoRA, {"components": None}, "components=None: give a whole number of at least 1 and at most 10000."),
        (MonteCLoRA, {"temperature": "warm"}, "temperature='warm': give a positive finite number."),
        (MonteCLoRA, {"temperature": math.nan}, "temperature=nan: give a positive finite number."),
        (MonteCLoRA, {"noise_ratio": "loud"}, "noise_ratio='loud': give a finite number of at least 0, or 'auto'."),
        (MonteCLoRA, {"noise_ratio": True}, "noise_ratio=True: give a finite number of at least 0, or 'auto'."),
        (MonteCLoRA, {"sample_scale": math.inf}, "sample_scale=inf: give a finite number of at least 0, or None."),
        (
            MonteCLoRA,
            {"concentration": 1e308},
            "concentration=1e+308: give a positive finite number. Networks compute with numbers between 1.2e-38 and "
            "3.4e+38.",
        ),
        (MonteCLoRA, {"df": -math.inf}, "df=-inf: give 'features', 'rank', a positive finite number, or inf."),
        (MonteCLoRA, {"df": "rows"}, "df='rows': give 'features', 'rank', a positive finite number, or inf."),
        (MonteCLoRA, {"cooperative": 1}, "cooperative=1: give True or False."),
        (MonteCLoRA, {"base": "houlsby"}, "base='houlsby': give 'lora', 'full', 'dora' or 'adalora'."),
        (MonteCLoRA, {"objective": None}, "objective=None: give 'paper' or 'elbo'."),
        (BLoB, {"guide_learning_rate": -0.1}, "guide_learning_rate=-0.1: give a finite number of at least 0, or None."),
        (LoRA, {"prior_scale": [1]}, "prior_scale=[1]: give a positive finite standard deviation, or None."),
        (LoRADropout, {"prior_p": 1.0}, "prior_p=1.0: give a probability between 0 and 1."),
        (AdaLoRA, {"warmup": 1}, "warmup=1: give a number of at least 0 and less than 1."),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_what_does(
    method: type[Method], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make(method, **fields)


def test_numbers_of_numpy_are_taken_and_become_pythons() -> None:
    method = make(MonteCLoRA, components=np.int64(3), temperature=np.float32(0.5), sparse=np.bool_(True))
    assert (method.components, method.temperature, method.sparse) == (3, 0.5, True)
    assert json.loads(json.dumps(method.record()))["components"] == 3
    with pytest.raises(ValueError, match=r"components=2\.0: give a whole number"):
        make(MonteCLoRA, components=np.float64(2.0))


def test_whole_numbers_are_numbers_and_stay_as_they_were_given() -> None:
    assert repr(MonteCLoRA(noise_ratio=2).record()["noise_ratio"]) == "2"


@pytest.mark.parametrize("name", METHODS)
def test_every_field_of_every_method_says_what_it_takes(name: str) -> None:
    declared, words = declarations(METHODS[name]), describe(METHODS[name])
    defaults = {field.name: field.default for field in dataclasses.fields(METHODS[name])}  # type: ignore[arg-type]
    assert declared.keys() == words.keys() == defaults.keys()
    for field, declaration in declared.items():
        assert declaration is not Any, field
        assert fits(defaults[field], declaration), field
        assert words[field]


@pytest.mark.parametrize(
    ("declaration", "inside", "outside", "words"),
    [
        (Count, [1, 7], [0, 1.0, "1"], "a whole number of at least 1"),
        (Positive, [1e-9, 3], [0, -1.0, math.nan, math.inf, 1e39, 1e-46], "a positive finite number"),
        (DropRate, [0, 0.99], [1, -1e-9], "a probability of at least 0 and less than 1"),
        (PartOfRun, [1, 1e-9], [0, 1.1], "a fraction of the run above 0 and at most 1"),
        (int, [0, -3], [0.5, False], "a whole number"),
        (Literal[1, "one"], [1, "one"], [True, 1.0, "two"], "1 or 'one'"),
        (Annotated[float | None, Within(at_least=2)], [2, 3.5], [1], "a number of at least 2"),
        (bool | None, [True, None], [1, "True"], "True or False, or None"),
        (Callable[..., Any] | None, [len, None], ["anything"], "a function, or None"),
        (list[int] | None, [[1, 2], (), None], ["12", [1.5], 3], "a list, each a whole number, or None"),
        (dict[str, Count], [{}, {"a": 1}], [[1], {"a": 0}], "a mapping from text to a whole number of at least 1"),
        (nn.Module | str, [nn.Identity(), "name"], [nn.Identity, 3], "a torch.nn.Module, or text"),
    ],
)
def test_ranges(declaration: Any, inside: list[Any], outside: list[Any], words: str) -> None:
    assert all(fits(value, declaration) for value in inside)
    assert not any(fits(value, declaration) for value in outside)
    assert describe(dataclasses.make_dataclass("Made", [("field", declaration)])) == {"field": words}


def test_a_method_of_ones_own_that_declares_nothing_takes_anything() -> None:
    @dataclass(frozen=True)
    class Mine(Sketch):
        widths: list[int] = dataclasses.field(default_factory=list)
        start: float = None  # type: ignore[assignment]
        other: "OnlyTheTypeCheckerKnows" = 3  # type: ignore[name-defined]  # noqa: F821
        call: Callable[..., Any] | str = len

    assert Mine().start is None
    assert make(Mine, widths=(1, 2), other="thing", call=print).other == "thing"
    with pytest.raises(ValueError, match=r"start='x': give a number"):
        make(Mine, start="x")


def test_a_subclass_of_a_method_keeps_its_declarations_and_adds_its_own() -> None:
    @dataclass(frozen=True)
    class Mine(MonteCLoRA):
        extra: "Unknown" = 0  # type: ignore[name-defined]  # noqa: F821
        sides: "Count" = 6

    with pytest.raises(ValueError, match="components=0: give a whole number of at least 1"):
        Mine(components=0)
    with pytest.raises(ValueError, match="temperature=0: give a positive finite number"):
        Mine(temperature=0, extra=1)
    with pytest.raises(ValueError, match="sides=0: give a whole number of at least 1"):
        make(Mine, sides=0)
