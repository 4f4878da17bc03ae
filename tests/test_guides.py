"""Which parameters of a guide are spreads: what its modules say, and what their names say where they do not."""

from collections.abc import Iterator

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from bayeslora import guides
from bayeslora.adapters import Stack


@pytest.fixture
def stack() -> Stack:
    """Two layers of 6 → 5 features at rank 3."""
    return Stack("6x5", ("first", "second"), 6, 5, 3, scaling=(2.0, 3.0), num_layers=2, num_examples=10)


def found(guide: nn.Module) -> set[str]:
    spreads = {id(parameter) for parameter in guides.spreads(guide)}
    return {name for name, parameter in guide.named_parameters() if id(parameter) in spreads}


class Plain(guides.Site):
    """A site that does not say which of its parameters are spreads."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(2, 3))
        self.log_width = nn.Parameter(torch.zeros(2, 3))

    def forward(self) -> dist.Distribution:
        return dist.Normal(self.loc, self.log_width.exp()).to_event(1)


class Declared(Plain):
    """A site that does."""

    def __init__(self) -> None:
        super().__init__()
        self.width = nn.Parameter(torch.ones(2, 3))

    def spreads(self) -> Iterator[nn.Parameter]:
        yield self.width


def test_sites_say_which_of_their_parameters_are_spreads_and_their_own_names_say_nothing(stack: Stack) -> None:
    normal = guides.Normal(torch.zeros(2, 3), 0.1)
    sites = guides.Sites(stack, scale_A=normal, log_B=guides.Point(torch.zeros(2, 3)), cov_C=Plain(), D=Declared())
    assert found(guides.PerStack({"scale_stack": sites})) == {
        "scale_stack.sites.scale_A.log_scale",
        "scale_stack.sites.cov_C.log_width",
        "scale_stack.sites.D.width",
    }


def test_a_guide_that_says_nothing_is_read_by_the_names_of_its_parameters() -> None:
    guide = nn.Module()
    for name in ("loc", "log_scale", "sqrt_G", "scale_tril", "cov_factor", "logits"):
        guide.register_parameter(name, nn.Parameter(torch.zeros(2)))
    guide.scale_of = nn.Linear(2, 2)  # the name of a module says nothing of its weights
    assert found(nn.ModuleList([guide])) == {"0.log_scale", "0.sqrt_G", "0.scale_tril", "0.cov_factor"}
