"""Ensembles: members are what they would be alone, and draws are members, each once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bayeslora
from bayeslora.data import OwnOrders
from bayeslora.guides import last_steps
from bayeslora.interop import from_program
from bayeslora.methods import CheckpointEnsemble, make_method
from bayeslora.posterior import Posterior
from bayeslora.program import Program
from tests.helpers import batch, tiny_bert, tokens
from tests.methods.conftest import randomise

Make = Callable[..., Program]

SETTINGS: dict[str, Any] = {"epochs": 2, "learning_rate": 1e-2, "rank": 2, "progress": False}


def fit(method: str, **settings: Any) -> Posterior:
    return bayeslora.fit(tiny_bert().double(), tokens(), method, **SETTINGS | settings)


def test_an_ensemble_of_one_is_lora() -> None:
    # The same start, order of the data and dropout. Its head is W0 + Δ, added in the layer: equal up to rounding.
    lora, ensemble = fit("lora"), fit("deep_ensemble", members=1)
    own, expected = from_program(ensemble.program), from_program(lora.program)
    for name, factors in expected.factors.items():
        torch.testing.assert_close(own.factors[name].A, factors.A, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(own.factors[name].B, factors.B, rtol=1e-6, atol=1e-8)
    for name, value in expected.head.items():
        torch.testing.assert_close(own.head[name], value, rtol=1e-6, atol=1e-8)
    inputs, _ = tokens(5)
    assert np.allclose(ensemble.predict(inputs).draws, lora.predict(inputs).draws, atol=1e-7)


def test_members_on_their_own_rows_have_the_gradients_they_have_alone(make_program: Make) -> None:
    ensemble = randomise(make_program("deep_ensemble", double=True, members=3))
    inputs = batch(6)
    output = ensemble(**inputs, rows_by_draw=True)
    output.loss.backward()
    assert output.logits.shape == (3, 2, 3)
    losses = []
    for member in range(3):
        alone = make_program("deep_ensemble", double=True, members=1)
        state = {name: value[member : member + 1] for name, value in ensemble.guide.state_dict().items()}
        alone.guide.load_state_dict(state)
        rows = {name: value[2 * member : 2 * member + 2] for name, value in inputs.items()}
        result = alone(**rows)
        result.loss.backward()
        losses.append(result.loss)
        torch.testing.assert_close(output.logits[member], result.logits)
        own = dict(alone.guide.named_parameters())
        for name, parameter in ensemble.guide.named_parameters():
            torch.testing.assert_close(3 * parameter.grad[member], own[name].grad[0])
    torch.testing.assert_close(output.loss, torch.stack(losses).mean())


def test_draws_are_the_members_in_order_and_the_centre_is_the_last(make_program: Make) -> None:
    program = randomise(make_program("deep_ensemble", members=3)).eval()
    draws = Posterior(program).draw(32)
    for name, value in draws.items():
        stack, factor = name.split(".")
        assert torch.equal(value, program.guide[stack].sites[factor].loc)
        assert torch.equal(program.centre()[name], value[-1])


def test_members_start_apart_and_the_last_one_at_the_models_head(make_program: Make) -> None:
    program = make_program("deep_ensemble", members=3)
    change = program.guide["head_32x3"].sites["weight"].loc.detach()
    base = program.stacks["head_32x3"].measured["W0"]
    assert not change[2].any()
    heads = [(base + change[member]).flatten() for member in range(3)]
    for index, head in enumerate(heads):
        torch.testing.assert_close(head.sort().values, heads[2].sort().values)
        assert not any(torch.equal(head, other) for other in heads[:index])
    A = program.guide["32x32"].sites["A"].loc
    assert not torch.equal(A[0], A[1])
    same = make_program("deep_ensemble", members=3, fresh_heads=False).guide["head_32x3"].sites["weight"].loc
    assert not same.any()


@pytest.mark.parametrize("name", ["deep_ensemble", "checkpoint_ensemble"])
def test_all_members_start_from_what_was_trained(name: str) -> None:
    lora = fit("lora")
    ensemble = fit(name, init=lora, members=2, learning_rate=1e-30)
    inputs, _ = tokens(5)
    expected = lora.predict(inputs).draws
    assert np.allclose(ensemble.predict(inputs).draws, np.concatenate([expected, expected]), atol=1e-9)


def test_every_reader_gets_every_row_once_in_an_order_of_its_own() -> None:
    torch.manual_seed(0)
    data = OwnOrders([{"row": row} for row in range(30)], 3)
    columns = list(zip(*([part["row"] for part in data[index]] for index in range(30)), strict=True))
    assert columns[0] == tuple(range(30))
    assert [sorted(column) for column in columns] == [list(range(30))] * 3
    assert len(set(columns)) == 3


def test_training_gives_each_member_a_batch_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    forward = Program.forward

    def spy(self: Program, *, rows_by_draw: bool = False, **inputs: Any) -> Any:
        assert rows_by_draw
        seen.append(inputs["input_ids"])
        return forward(self, rows_by_draw=rows_by_draw, **inputs)

    monkeypatch.setattr(Program, "forward", spy)
    posterior = bayeslora.fit(
        tiny_bert(), tokens(), "deep_ensemble", members=2, batch_size=16, **SETTINGS | {"epochs": 1}
    )
    assert [len(ids) for ids in seen] == [32] * 3
    rows = {tuple(row) for row in tokens()[0]["input_ids"].tolist()}
    for half in (slice(0, 16), slice(16, 32)):  # a whole pass over the data each
        assert {tuple(row) for ids in seen for row in ids[half].tolist()} == rows
    assert all({*map(tuple, ids[:16].tolist())} != {*map(tuple, ids[16:].tolist())} for ids in seen)
    assert posterior.history["nll"].iloc[-1] > 0


def test_ensembles_say_how_many_particles_they_have(make_program: Make) -> None:
    with pytest.raises(ValueError, match="num_particles=2: 'deep_ensemble' has one particle per member, 3"):
        fit("deep_ensemble", num_particles=2)
    with pytest.raises(ValueError, match="members=0: give a whole number of at least 1"):
        make_method("deep_ensemble", members=0)
    with pytest.raises(ValueError, match="last_part=0: give a fraction of the run"):
        make_method("checkpoint_ensemble", last_part=0)


def test_checkpoints_are_spread_over_the_last_part() -> None:
    assert last_steps(80, 4, 0.5) == {50, 60, 70, 80}
    assert last_steps(3, 5, 1.0) == {1, 2, 3}


def test_a_checkpoint_ensemble_keeps_what_lora_was(tmp_path: Path) -> None:
    kept: list[dict[str, torch.Tensor]] = []
    after_step = CheckpointEnsemble.after_step

    class Watched(CheckpointEnsemble):
        def after_step(self, program: Any, step: int) -> None:
            after_step(self, program, step)
            kept.append({name: p.detach().clone() for name, p in program.guide.named_parameters()})

    posterior = bayeslora.fit(tiny_bert(), tokens(), Watched(members=3), **SETTINGS)
    assert len(kept) == 6
    draws = posterior.draw(32)
    for name, value in draws.items():
        stack, factor = name.split(".")
        steps = [kept[step - 1][f"{stack}.sites.{factor}.loc"] for step in (4, 5, 6)]
        assert torch.equal(value, torch.stack(steps))
        assert torch.equal(posterior.program.centre()[name], steps[-1])
    assert draws["head_32x3.weight"].shape == (3, 1, 3, 32)


@pytest.mark.parametrize("name", ["deep_ensemble", "checkpoint_ensemble"])
def test_ensembles_survive_the_disk_and_can_be_calibrated(name: str, tmp_path: Path) -> None:
    posterior = bayeslora.fit(tiny_bert(), tokens(), name, members=2, **SETTINGS | {"epochs": 1})
    posterior.save(tmp_path)
    loaded = bayeslora.load(tmp_path, tiny_bert())
    inputs, _ = tokens(5)
    expected = posterior.predict(inputs).draws
    assert expected.shape == (2, 5, 3)
    assert np.array_equal(loaded.predict(inputs).draws, expected)
    assert posterior.calibrate(tokens()).predict(inputs).draws.shape == (2, 5, 3)
