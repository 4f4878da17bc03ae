"""What draws cost by the number of adapted blocks."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import bayeslora
from tests.helpers import batch, tiny_bert

INPUTS = batch(8, length=16)


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(x))


def test_a_row_for_every_depth_in_passes_of_the_model_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(call: Callable[[], Any], device: torch.device) -> float:
        with FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops()

    monkeypatch.setattr(sys.modules["bayeslora.prices"], "_seconds", work)
    model = tiny_bert(num_hidden_layers=2)
    state, before = torch.get_rng_state(), [*map(id, model.parameters())]
    table = bayeslora.prices(model, INPUTS, 4, price=3, rank=1, repeats=1)
    assert table.k.tolist() == [1, 2]
    for k, passes in zip(table.k, table.passes, strict=True):  # k blocks for every draw, and those below once
        assert 0.95 <= passes / ((2 - k + 4 * k) / 2) <= 1.15
    assert table.share.tolist() == pytest.approx([each / 4 for each in table.passes])
    assert table.within.tolist() == [True, False]
    assert [*map(id, model.parameters())] == before
    assert torch.equal(torch.get_rng_state(), state)


def test_networks_without_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="is not a list of blocks"):
        bayeslora.prices(Flat(), {"x": torch.ones(2, 4)}, repeats=1)


def test_arguments_are_checked() -> None:
    with pytest.raises(bayeslora.ArgumentError, match="num_draws=1"):
        bayeslora.prices(tiny_bert(), INPUTS, 1)
