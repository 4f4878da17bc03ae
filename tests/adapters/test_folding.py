"""Draws that run as rows of one batch: where that is measured to be wrong, they run one by one."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bayeslora.adapters import AdaptedNetwork, Factors, Linearised, mapping
from bayeslora.adapters.folding import few_examples, moved
from bayeslora.methods import make_method
from bayeslora.program import Program
from bayeslora.tasks import Classification
from tests.architectures.plain import (
    FEATURES,
    OverRows,
    flattened,
    routed,
    sequence_first,
    shared_table,
    sorted_rows,
    standardised,
)
from tests.helpers import batch, tiny_bert, tiny_deberta, tiny_llama

DRAWS = 3


class SortedByLength(nn.Module):
    """Rows from the longest to the shortest and back, as before a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(60, 16)
        self.hidden = nn.Linear(16, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        order = attention_mask.sum(1).argsort(descending=True, stable=True)
        x = self.hidden(self.embed(input_ids[order]))[order.argsort()]
        return self.head((torch.tanh(x) * attention_mask[..., None]).sum(1))


class Experts(nn.Module):
    """Every row goes to one of two layers, by its first number."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(FEATURES, 8), nn.Linear(FEATURES, 8)])
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 8)
        for index, expert in enumerate(self.experts):
            rows = torch.nonzero((x[:, 0] > 0) == bool(index))[:, 0]
            if len(rows):
                h = h.index_add(0, rows, expert(x[rows]))
        return self.head(torch.tanh(h))


def network_of(model: nn.Module, **settings: Any) -> AdaptedNetwork:
    return AdaptedNetwork(model.double(), rank=2, **settings).eval()


def draws_of(network: AdaptedNetwork, num_draws: int = DRAWS) -> dict[str, Factors]:
    return {
        name: Factors(
            *(0.5 * torch.randn(num_draws, len(s), *shape, dtype=torch.float64) for shape in s.shapes.values())
        )
        for name, s in network.stacks.items()
    }


def apart(network: AdaptedNetwork, draws: dict[str, Factors], inputs: dict[str, Tensor]) -> Tensor:
    one = [{name: Factors(*(f[i] for f in value)) for name, value in draws.items()} for i in range(DRAWS)]
    return torch.stack([network(factors, inputs) for factors in one])


def inputs_of(size: int = 4, length: int = 7) -> dict[str, Tensor]:
    return {name: value for name, value in batch(size, length=length).items() if name != "labels"}


@pytest.mark.parametrize(
    ("between", "shape"),
    [
        *((between, (4, FEATURES)) for between in (standardised, sorted_rows, shared_table)),
        *((between, (4, 7, FEATURES)) for between in (routed, sequence_first, flattened)),
        (sequence_first, (4, 4 * DRAWS, FEATURES)),
    ],
)
def test_rows_that_do_not_stay_rows_run_one_by_one(between: Any, shape: tuple[int, ...]) -> None:
    network, x = network_of(OverRows(between)), {"x": torch.randn(shape, dtype=torch.float64)}
    draws = draws_of(network)
    with torch.no_grad():
        torch.testing.assert_close(network(draws, x), apart(network, draws, x))
    assert network.verdict is not None
    assert not network.verdict.holds


def from_eight(between: Any) -> Any:
    """What is in the way of rows that stay rows only from eight rows on."""
    return lambda x, layer: between(x, layer) if len(x) >= 8 else layer(x)


@pytest.mark.parametrize("between", [standardised, sorted_rows])
@pytest.mark.parametrize("training", [False, True])
def test_rows_that_are_mixed_only_where_they_are_many_are_noticed(between: Any, training: bool) -> None:
    network, x = network_of(OverRows(from_eight(between))), {"x": torch.randn(6, FEATURES, dtype=torch.float64)}
    draws = draws_of(network)
    with torch.no_grad():
        few = {"x": x["x"][:2]}
        torch.testing.assert_close(network(draws, few), apart(network, draws, few))
        expected = apart(network, draws, x)
    assert network.verdict.holds  # type: ignore[union-attr]
    with torch.set_grad_enabled(training):
        torch.testing.assert_close(network.train(training)(draws, x).detach(), expected)
    assert not network.verdict.holds  # type: ignore[union-attr]


def test_rows_that_stay_rows_are_confirmed_once() -> None:
    network = network_of(tiny_bert())
    draws, passes = draws_of(network), []
    network.folds(draws, inputs_of())
    network.model.register_forward_hook(lambda *_: passes.append(1))
    with torch.no_grad():
        for size in (4, 4, 7, 8, 8):  # times three draws: at 12 and at 24 rows
            network(draws, inputs_of(size))
    assert len(passes) == 5 + 2


class Rounded(nn.Module):
    """Numbers that depend on how many rows there are, as sums on an accelerator do; rows may also be mixed up."""

    def __init__(self, between: Any) -> None:
        super().__init__()
        self.inner = OverRows(between)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.inner(x)
        return logits * (1.02 if len(x) > 2 else 0.97)


def in_order(x: Tensor, layer: Any) -> Tensor:
    return layer(x)


@pytest.mark.parametrize(("between", "holds"), [(in_order, True), (sorted_rows, False), (standardised, False)])
def test_rounding_of_half_precision_is_told_from_mixed_up_rows(between: Any, holds: bool) -> None:
    network = AdaptedNetwork(Rounded(between).bfloat16(), rank=2).eval()
    draws = draws_of(network)
    network.folds(draws, {"x": torch.randn(4, FEATURES).bfloat16()})
    assert network.verdict is not None
    assert network.verdict.holds == holds, network.verdict.reason


def test_rows_sorted_by_length_are_noticed_on_examples_of_one_length() -> None:
    network = network_of(SortedByLength())
    draws, same = draws_of(network), inputs_of()
    assert not network.folds(draws, same)
    differ = same | {"attention_mask": torch.arange(7) < torch.tensor([[3], [7], [5], [6]])}
    with torch.no_grad():
        torch.testing.assert_close(network(draws, differ), apart(network, draws, differ))


@pytest.mark.parametrize("make", [tiny_bert, tiny_llama])
def test_a_network_that_keeps_its_rows_takes_one_pass_where_tokens_are_as_many(make: Any) -> None:
    network, x = network_of(make()), inputs_of(4, 4 * DRAWS)
    draws = draws_of(network)
    with torch.no_grad():
        network(draws, x)  # measures
        passes: list[int] = []
        network.model.register_forward_hook(lambda *_: passes.append(1))
        together = network(draws, x)
        assert len(passes) == 1
        torch.testing.assert_close(together, apart(network, draws, x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_draws_that_cannot_be_rows_are_mapped_in_one_pass(dtype: torch.dtype) -> None:
    network = AdaptedNetwork(tiny_deberta().to(dtype), rank=2).eval()
    draws = {
        name: Factors(*(torch.randn(DRAWS, len(s), *shape, dtype=network.dtype) for shape in s.shapes.values()))
        for name, s in network.stacks.items()
    }
    passes: list[int] = []
    with torch.no_grad():
        for size in (4, 1, 3):  # the first one measures
            inputs = inputs_of(size)
            expected = apart(network, draws, inputs)
            network(draws, inputs)
            with network.model.register_forward_hook(lambda *_: passes.append(1)):
                found = network(draws, inputs)
            assert len(passes) == 1
            passes.clear()
            few = torch.finfo(dtype).eps * 32 * expected.abs().max()
            torch.testing.assert_close(found, expected, rtol=0, atol=float(few))
            assert not torch.allclose(found[0], found[1], rtol=0, atol=float(few))
        with network.model.register_forward_hook(lambda *_: passes.append(1)):
            network(draws, inputs_of(16))  # a loop is faster there
        assert len(passes) == DRAWS


def branching(x: Tensor, layer: Any) -> Tensor:
    """A branch by all rows, which cannot be mapped."""
    x = standardised(x, layer)
    return x if bool(x.flatten()[0] > 0) else 2 * x


@pytest.mark.parametrize(("between", "mapped"), [(sequence_first, True), (standardised, True), (branching, False)])
def test_draws_are_mapped_or_run_one_by_one(between: Any, mapped: bool) -> None:
    network, x = network_of(OverRows(between)), {"x": torch.randn(4, 7, FEATURES, dtype=torch.float64)}
    draws = draws_of(network)
    with torch.no_grad():
        torch.testing.assert_close(network(draws, x), apart(network, draws, x))
    assert network.mapped == mapped


class Keeping(nn.Module):
    """Draws cannot be rows, and something is kept from one pass to the next."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(FEATURES, 8), nn.Linear(8, 3)
        self.kind, self.last, self.seen = kind, torch.zeros(8, dtype=torch.float64), []
        self.register_buffer("running", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x.transpose(0, 1)).mean(0)
        if self.kind == "attribute":
            h = h + self.last
            self.last = h.mean(0)
        elif self.kind == "list":
            h = h + sum(self.seen)
            self.seen.append(h.mean(0))
        else:
            self.running = self.running + h.mean(0)
            h = h - self.running
        return self.head(torch.tanh(h))


@pytest.mark.parametrize("kind", ["attribute", "list", "buffer"])
def test_mapped_draws_begin_with_what_a_network_kept_at_first(kind: str) -> None:
    network, x = network_of(Keeping(kind)), {"x": torch.randn(4, 7, FEATURES, dtype=torch.float64)}
    draws = draws_of(network)
    with torch.no_grad():
        expected = apart(network, draws, x)
        assert network.maps(draws, x)
        for together in (1, 2, None):
            torch.testing.assert_close(mapping.logits(network, draws, x, together), expected)
        torch.testing.assert_close(apart(network, draws, x), expected)


def many_branch(x: Tensor, layer: Any) -> Tensor:
    """A branch that cannot be mapped, which two examples do not reach."""
    return branching(x, layer) if len(x) > 2 else sequence_first(x, layer)


def test_a_branch_that_cannot_be_mapped_may_come_later() -> None:
    network, x = network_of(OverRows(many_branch)), {"x": torch.randn(4, 7, FEATURES, dtype=torch.float64)}
    draws = draws_of(network)
    with torch.no_grad():
        assert network.maps(draws, x)
        torch.testing.assert_close(network(draws, x), apart(network, draws, x))
    assert not network.mapped


def test_a_layer_that_was_not_reached_is_not_trusted() -> None:
    network = network_of(Experts())
    draws = draws_of(network)
    positive = torch.rand(4, FEATURES, dtype=torch.float64)
    assert network.folds(draws, {"x": positive})  # all rows go to one expert
    x = {"x": positive * torch.tensor([1.0, -1, 1, -1])[:, None]}
    with torch.no_grad():
        torch.testing.assert_close(network(draws, x), apart(network, draws, x))


def test_measuring_leaves_modes_and_layers_as_they_were() -> None:
    network = network_of(tiny_bert()).train()
    modes = {name: module.training for name, module in network.named_modules()}
    assert network.folds(draws_of(network), inputs_of())
    assert {name: module.training for name, module in network.named_modules()} == modes
    assert all(layer.slot.factors is None for name in network.stacks for layer in network.layers(name))
    assert all(layer.keeps_rows for name in network.stacks for layer in network.layers(name))


def test_measuring_draws_no_random_numbers() -> None:
    network = network_of(tiny_bert())
    draws, state = draws_of(network), torch.get_rng_state()
    network.folds(draws, inputs_of())
    assert torch.equal(state, torch.get_rng_state())


def test_a_network_that_fails_on_two_examples_runs_one_by_one() -> None:
    class Picky(OverRows):
        def forward(self, x: Tensor) -> Tensor:
            assert len(x) == 4
            return super().forward(x)

    network = network_of(Picky(lambda x, layer: layer(x)))
    draws, x = draws_of(network), {"x": torch.randn(4, FEATURES, dtype=torch.float64)}
    with torch.no_grad():
        torch.testing.assert_close(network(draws, x), apart(network, draws, x))


@pytest.mark.parametrize("length", [7, 8])
def test_sequences_first_are_not_checkpointed_with_as_many_tokens_as_rows(length: int) -> None:
    class Checkpointed(OverRows):
        gradient_checkpointing = True

    network = network_of(Checkpointed(sequence_first)).train()
    with pytest.raises(ValueError, match="activation checkpointing cannot repeat"):
        network(draws_of(network, 2), {"x": torch.randn(4, length, FEATURES, dtype=torch.float64)})


def test_a_network_without_rows_has_no_gradient_per_example() -> None:
    network = network_of(OverRows(flattened))
    program = Program(network, make_method("blob"), Classification(3)).eval()
    linear: Linearised = program.linearised({n: v[None] + 0.1 for n, v in program.centre().items()})
    with pytest.raises(ValueError, match="no gradient per example"):
        linear({"x": torch.randn(4, 7, FEATURES, dtype=torch.float64)})


def test_the_draws_that_are_compared_are_apart_whatever_the_factors() -> None:
    network = network_of(tiny_bert())
    zero = {name: Factors(*(0 * f[0] for f in value)) for name, value in draws_of(network).items()}
    for value in moved(network, zero, 2).values():
        for factor in value:
            assert factor.shape[0] == 2
            assert (factor[0] - factor[1]).abs().max() > 1e-2


def test_two_examples_are_the_shortest_and_the_longest() -> None:
    x = inputs_of()
    x["attention_mask"] = (torch.arange(7) < torch.tensor([[5], [7], [3], [6]])).long()
    assert few_examples(x)["attention_mask"].sum(1).tolist() == [3, 7]
    assert few_examples(inputs_of())["attention_mask"].sum(1).tolist() == [6, 7]
    assert len(few_examples(inputs_of(1))["input_ids"]) == 2
