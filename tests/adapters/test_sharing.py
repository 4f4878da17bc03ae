"""What draws have in common runs once: found in any network, and never at the price of other logits."""

import copy
import queue
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bayeslora.adapters import AdaptedNetwork, Factors, Shared
from bayeslora.adapters.rows import num_rows
from bayeslora.adapters.sharing import differing
from bayeslora.adapters.stack import draws_at
from bayeslora.methods import make_method
from bayeslora.prediction import chunks
from bayeslora.program import Program
from bayeslora.tasks import Classification
from tests.adapters.test_folding import apart, draws_of, inputs_of, network_of
from tests.architectures.plain import FEATURES, OverRows, flattened, sequence_first
from tests.helpers import tiny_bert, tiny_deberta, tiny_gpt2, tiny_llama

DRAWS, SIZE = 3, 4


class InPlace(nn.Module):
    """Adds to what a module has returned, as residual networks do."""

    def __init__(self, also_before: bool) -> None:
        super().__init__()
        self.also_before = also_before
        self.first, self.second = nn.Linear(FEATURES, 16), nn.Linear(16, 16)
        self.third, self.head = nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if self.also_before:
            h += 1
        h = self.second(h)
        change = self.third(h)
        h += change
        return self.head(torch.tanh(h))


class Counting(nn.Module):
    """Returns something else at every call, by what is not a part of it."""

    calls: queue.SimpleQueue[int] = queue.SimpleQueue()

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(FEATURES, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.calls.put(1)
        return self.head(torch.tanh(self.second(self.first(x * (1 + self.calls.qsize() % 3)))))


class Twice(nn.Module):
    """Calls one layer before and after the adapted one, and once within another module."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(16, 16)
        self.block = nn.Sequential(nn.Linear(FEATURES, 16), self.shared, nn.Tanh())
        self.last, self.head = nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.shared(self.block(x)))
        return self.head(self.shared(torch.tanh(self.last(h))))


class Layers(nn.Module):
    """Three layers and a head, for networks that call them in their own way."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(FEATURES, 16), nn.Linear(16, 16)
        self.third, self.head = nn.Linear(16, 16), nn.Linear(16, 3)


class WritesBelow(Layers):
    """Writes into what is used again above before the layer whose factors differ."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h += torch.tanh(self.second(h))
        return self.head(torch.tanh(self.third(torch.tanh(h))) + h)


class WritesIntoInputs(Layers):
    def forward(self, x: Tensor) -> Tensor:
        x.sub_(1).mul_(2)
        return self.head(torch.tanh(self.third(torch.tanh(self.second(self.first(x))))))


class ByKeyword(Layers):
    """Calls its layers by the name that their argument has in torch."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(input=torch.tanh(self.third(input=torch.tanh(self.second(input=self.first(input=x))))))


class Forward(Layers):
    """Calls a layer's `forward` itself, which runs no hooks, beside the layer."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        h = torch.tanh(self.second.forward(h) + self.second(torch.tanh(h)))
        return self.head(torch.tanh(self.third(h)))


class Catching(Layers):
    """Goes another way if anything fails."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.second(torch.tanh(self.first(x))))
        try:
            h = torch.tanh(self.third(h))
        except Exception:
            h = 0 * h
        return self.head(h)


class Keeps(nn.Module):
    """Keeps what the network reads from it later."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.kept = nn.Linear(FEATURES, 16), torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        self.kept = self.layer(x)
        return torch.tanh(self.kept)


class Kept(Layers):
    """Reads what a module below has kept; its draws run one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.first: Any = Keeps()

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.third(self.second(self.first(x)).transpose(0, 1)))
        return self.head((h.transpose(0, 1) + self.first.kept).mean(1))


def some(network: AdaptedNetwork, layers: str) -> dict[str, Factors]:
    """Draws that differ only in the layers whose names have a part."""
    draws = draws_of(network, DRAWS)
    for name, stack in network.stacks.items():
        same = torch.tensor([layers not in layer for layer in stack.layer_names])
        for factor in draws[name]:
            factor[:, same] = factor[:1, same]
    return draws


def rows(module: nn.Module) -> list[int]:
    """Rows of each call of a module from now on."""
    seen: list[int] = []
    forward = module.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        seen.append(len(next(iter((*args, *kwargs.values())))))
        return forward(*args, **kwargs)

    module.forward = counted
    return seen


def together(network: AdaptedNetwork, draws: Any, inputs: dict[str, Tensor], most: int = 2048) -> tuple[Tensor, bool]:
    """The logits of all draws, and whether they shared anything."""
    with torch.inference_mode(), Shared(network, draws).over(inputs, most) as number:
        found = torch.cat(list(chunks(network, draws, inputs, DRAWS, number)))
    return found, number is not None


@pytest.mark.parametrize(
    ("make", "last", "below"),
    [
        (tiny_bert, "layer.1.", "bert.encoder.layer.0"),
        (tiny_bert, "layer.1.output", "bert.encoder.layer.1.attention"),
        (tiny_llama, "layers.1.", "model.layers.0"),
        (tiny_llama, "layers.1.mlp", "model.layers.1.self_attn"),
        (tiny_gpt2, "h.1.", "transformer.h.0"),
    ],
)
@pytest.mark.parametrize("most", [1, 2048])
def test_what_lies_below_the_draws_differences_runs_once(make: Any, last: str, below: str, most: int) -> None:
    network = network_of(make())
    draws, inputs = some(network, last), inputs_of(SIZE)
    expected = apart(network, draws, inputs)
    together(network, draws, inputs)  # measures
    seen = rows(network.model.get_submodule(below))
    found, shares = together(network, draws, inputs_of(SIZE, 9), most)
    assert shares
    assert seen == [SIZE]
    torch.testing.assert_close(together(network, draws, inputs)[0], expected)
    torch.testing.assert_close(found, apart(network, draws, inputs_of(SIZE, 9)))


def test_a_network_that_shares_is_as_before() -> None:
    network = network_of(tiny_bert())
    draws, inputs = some(network, "layer.1."), inputs_of()
    expected = apart(network, draws, inputs)
    together(network, draws, inputs)
    modules = list(network.modules())
    assert not any("forward" in vars(module) for module in modules)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)
    torch.testing.assert_close(copy.deepcopy(network)(draws, inputs), expected)


@pytest.mark.parametrize("make", [tiny_bert, tiny_deberta])
def test_draws_that_differ_from_the_start_share_nothing_and_measure_nothing(make: Callable[[], nn.Module]) -> None:
    network = network_of(make())
    draws, inputs = draws_of(network), inputs_of()
    found, shares = together(network, draws, inputs)
    assert not shares
    torch.testing.assert_close(found, apart(network, draws, inputs))
    passes: list[int] = []
    network.model.register_forward_hook(lambda *_: passes.append(1))
    together(network, draws, inputs)
    assert len(passes) == 1


@pytest.mark.parametrize("also_before", [False, True])
def test_a_network_may_write_into_what_its_modules_return(also_before: bool) -> None:
    network, x = network_of(InPlace(also_before)), {"x": torch.randn(SIZE, FEATURES, dtype=torch.float64)}
    draws = some(network, "third")
    for most in (1, 2048):
        found, shares = together(network, draws, x, most)
        assert shares
        torch.testing.assert_close(found, apart(network, draws, x))


@pytest.mark.parametrize("make", [WritesBelow, WritesIntoInputs, ByKeyword, Forward, Catching, Kept])
def test_draws_have_the_logits_of_passes_of_their_own(make: Callable[[], nn.Module]) -> None:
    network = network_of(make(), exclude="second")
    draws, plain = some(network, "third"), copy.deepcopy(network)
    for most in (1, 2048):
        for size, length in ((SIZE, 5), (1, 2), (3, 7)):
            x = torch.randn(size, length, FEATURES, dtype=torch.float64)
            expected = [plain(draws_at(draws, index), {"x": x.clone()}) for index in range(DRAWS)]
            found, shares = together(network, draws, {"x": x.clone()}, most)
            assert shares
            torch.testing.assert_close(found, torch.stack(expected).detach())


def test_hooks_that_come_later_count() -> None:
    network = network_of(InPlace(False))
    draws, x = some(network, "third"), {"x": torch.randn(SIZE, FEATURES, dtype=torch.float64)}
    before, _ = together(network, draws, x)
    network.model.second.register_forward_hook(lambda module, args, output: 2 * output)  # type: ignore[union-attr]
    found, shares = together(network, draws, x)
    assert shares
    torch.testing.assert_close(found, apart(network, draws, x))
    assert not torch.allclose(found, before)


def test_inputs_without_rows_may_come_first() -> None:
    inputs = {"table": torch.randn(9, 4), "x": torch.randn(3, 9, 4), "labels": torch.zeros(3)}
    assert num_rows(inputs) == 3
    assert num_rows({"table": torch.randn(9), "x": torch.randn(3, 9, 4)}) == 3
    assert num_rows({"x": torch.randn(3), "scale": torch.tensor(2.0)}) == 3


@pytest.mark.parametrize("between", [sequence_first, flattened])
def test_networks_whose_draws_run_one_by_one_share_too(between: Any) -> None:
    network = network_of(nn.Sequential(nn.Linear(FEATURES, FEATURES), OverRows(between)))
    x = {"input": torch.randn(SIZE, 7, FEATURES, dtype=torch.float64)}
    draws = some(network, "1.")
    expected = apart(network, draws, x)
    together(network, draws, x)
    seen, passes = rows(network.model[0]), rows(network.model[1])  # type: ignore[index]
    found, shares = together(network, draws, x)
    assert shares
    assert seen == [SIZE]
    assert len(passes) == 2  # one is mapped: not on two examples with the outputs of all, which would fail
    torch.testing.assert_close(found, expected)


def test_calls_are_told_apart() -> None:
    network, x = network_of(Twice(), exclude="shared"), {"x": torch.randn(SIZE, FEATURES, dtype=torch.float64)}
    draws = some(network, "last")
    found, shares = together(network, draws, x)
    assert shares
    torch.testing.assert_close(found, apart(network, draws, x))


def test_a_network_that_is_not_a_function_of_its_inputs_shares_nothing(caplog: pytest.LogCaptureFixture) -> None:
    network, x = network_of(Counting()), {"x": torch.randn(SIZE, FEATURES, dtype=torch.float64)}
    with caplog.at_level("INFO", "bayeslora"):
        assert not together(network, some(network, "second"), x)[1]
    assert "shares no part" in caplog.text


def test_the_body_runs_once_if_only_the_head_is_random() -> None:
    model = tiny_bert().double()
    method = make_method("laplace", last_layer=True)
    network = AdaptedNetwork(model, method.family, rank=2, head_family=method.head_family)
    program = Program(network, method, Classification(3)).eval()
    sites = {name: value.expand(DRAWS, *value.shape).clone() for name, value in program.centre().items()}
    torch.manual_seed(0)
    for name, value in sites.items():
        if name.startswith("head_"):
            value += torch.randn_like(value)
    with torch.no_grad():
        draws = program.factors_at(sites)
    inputs = inputs_of(SIZE)
    expected = torch.stack([program.logits({n: v[i] for n, v in sites.items()}, inputs) for i in range(DRAWS)]).detach()
    together(network, draws, inputs)
    seen = rows(network.model.bert.embeddings.LayerNorm)  # type: ignore[union-attr,operator]
    found, shares = together(network, draws, inputs)
    assert shares
    assert seen == [SIZE]
    torch.testing.assert_close(found, expected)


def test_two_draws_are_enough_to_differ() -> None:
    network = network_of(tiny_bert())
    draws = {name: Factors(*(factor[:2] for factor in value)) for name, value in some(network, "layer.1.").items()}
    found = differing(network, draws)
    for name, stack in network.stacks.items():
        assert found[name].tolist() == ["layer.1." in layer for layer in stack.layer_names]
