"""BLoB and ScalaBL: how they start, and what they learn beyond LoRA."""

import math
from collections.abc import Callable

import pytest
import torch

from bayeslora import guides
from bayeslora.adapters import Stack
from bayeslora.methods import BLoB, ScalaBL
from bayeslora.program import Program
from tests.methods.conftest import randomise

Make = Callable[..., Program]


def count(program: Program) -> int:
    return sum(parameter.numel() for parameter in program.guide.parameters())


def test_spreads_start_small_and_squared(stack: Stack) -> None:
    guide = BLoB().stack_guide(stack)
    G = guide.sites["A"].sqrt_scale.detach()
    assert 0.05 / math.sqrt(2) <= float(G.min()) < float(G.max()) <= 0.05
    torch.testing.assert_close(guide.sites["A"]().stddev, G.square())
    omega = ScalaBL().stack_guide(stack).sites["g"]().stddev.detach()
    assert 0.0353 < float(omega.min()) < float(omega.max()) < 0.0501


def test_the_guides_say_which_of_their_parameters_are_spreads(stack: Stack) -> None:
    for method, spread in ((BLoB(), "sites.A.sqrt_scale"), (ScalaBL(), "sites.g.log_scale")):
        guide = method.stack_guide(stack)
        assert [id(p) for p in guides.spreads(guide)] == [id(guide.get_parameter(spread))]


def test_learned_numbers_beyond_lora(make_program: Make) -> None:
    lora = make_program("lora")
    layers = [(len(stack), stack) for stack in lora.stacks.values()]
    assert count(make_program("blob")) - count(lora) == sum(n * stack.rank * stack.d_in for n, stack in layers)
    assert count(make_program("scalabl")) - count(lora) == sum(2 * n * stack.rank for n, stack in layers)


def test_scales_stand_between_the_factors(make_program: Make) -> None:
    program = randomise(make_program("scalabl", double=True))
    draws = program.draw(3)
    for name, factors in program.network.scaled(program.factors_at(draws)).items():
        g, A, B = (draws[f"{name}.{site}"] for site in "gAB")
        torch.testing.assert_close(factors.B @ factors.A, 2 * B @ torch.diag_embed(g) @ A)


@pytest.mark.parametrize("method", [BLoB, ScalaBL])
@pytest.mark.parametrize("field", ["prior_scale", "temperature"])
def test_fields_out_of_range_say_what_fits(method: type, field: str) -> None:
    with pytest.raises(ValueError, match=f"{field}=0.0: give a positive finite number"):
        method(**{field: 0.0})
