"""Layers that stand in a network several times, and layers whose weight is computed from others."""

import copy
import functools
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import bayeslora
from bayeslora.adapters import AdaptedNetwork
from bayeslora.interop import merge

SIZE = 6


class Listed(nn.Module):
    """One layer under three names, and a block under two."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, SIZE)
        self.layers = nn.ModuleList([nn.Linear(SIZE, SIZE)] * 3)
        block = nn.Sequential(nn.Linear(SIZE, SIZE), nn.Tanh())
        self.up, self.down = block, block
        self.head = nn.Linear(SIZE, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = x + layer(x).tanh()
        return self.head(self.down(self.up(x)))


class TwoParts(nn.Module):
    """One layer in two parts of the network, the second of which is named last."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Sequential(nn.Linear(5, SIZE), nn.Linear(SIZE, SIZE), nn.Tanh())
        self.late = nn.ModuleDict({"again": self.early[1]})
        self.head = nn.Linear(SIZE, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.late["again"](self.early(x)).tanh())


class Kept(nn.Module):
    """Layers that the network calls by a list and a mapping of its own, and by an attribute that is no child."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(5, SIZE), nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE)
        self.head = nn.Linear(SIZE, 3)
        self.steps = {"first": [self.one, self.two]}
        object.__setattr__(self, "last", self.three)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.steps["first"]:
            x = layer(x).tanh()
        return self.head(self.last(x).tanh())


class Remembering(nn.Linear):
    """A layer with a hook that is a method of its own, and keeps something there."""

    def __init__(self) -> None:
        super().__init__(SIZE, SIZE)
        self.seen = 0
        self.register_forward_pre_hook(self.see)

    def see(self, module: nn.Module, args: Any) -> None:
        self.seen += 1

    def forward(self, x: Tensor) -> Tensor:
        assert self.seen
        return super().forward(x)


class Held(nn.Module):
    """Layers that the network calls by objects, sets, the keys of a table, methods and functions of some arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.layers = nn.Linear(5, SIZE), nn.ModuleList(nn.Linear(SIZE, SIZE) for _ in range(4))
        self.layers.append(Remembering())
        self.head = nn.Linear(SIZE, 3)
        a, b, c, d, e = self.layers
        self.held = types.SimpleNamespace(first=self.one, rest=(frozenset([a]), {b: 2.0}))
        self.calls = [c.__call__, functools.partial(d), functools.partial(lambda layer, x: layer(x), e)]

    def forward(self, x: Tensor) -> Tensor:
        x = self.held.first(x).tanh()
        for each in self.held.rest:
            x = sum(layer(x) for layer in each).tanh()  # type: ignore[union-attr]
        for call in self.calls:
            x = call(x).tanh()
        return self.head(x)


class SharedHead(TwoParts):
    """A task head with one layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(SIZE, SIZE), nn.Tanh(), nn.Linear(SIZE, SIZE), nn.Linear(SIZE, 3))
        self.head[2] = self.head[0]


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    return {"x": torch.randn(4, 5, dtype=torch.float64)}


def adapted(model: nn.Module, **settings: Any) -> AdaptedNetwork:
    return AdaptedNetwork(model.double().eval(), rank=2, **settings).eval()


def factors_of(network: AdaptedNetwork) -> dict[str, Any]:
    return {
        name: type(stack.initial())(*(torch.randn_like(f, dtype=torch.float64) / 2 for f in stack.initial()))
        for name, stack in network.stacks.items()
    }


@pytest.mark.parametrize("make", [Listed, TwoParts, Kept, Held, SharedHead])
def test_every_use_of_a_layer_is_adapted_and_merged(make: Callable[[], nn.Module], inputs: dict[str, Tensor]) -> None:
    model = make()
    network = adapted(model)
    factors = factors_of(network)
    # The same change by hand, in the weights, which all uses share.
    expected = copy.deepcopy(model)
    for name, stack in network.stacks.items():
        delta = stack.family.delta(network.scaled(factors)[name])
        for layer, change in zip(stack.layer_names, delta, strict=True):
            expected.get_submodule(layer).weight.data += change
    with torch.no_grad():
        torch.testing.assert_close(network(factors, inputs), expected(**inputs))
        merged = merge(network, factors)
        torch.testing.assert_close(merged(**inputs), expected(**inputs))
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    assert [name for name, _ in merged.named_modules(remove_duplicate=False)] == names
    assert len(list(merged.modules())) == len(list(model.modules()))  # still one layer


@pytest.mark.parametrize("targets", ["again", ["late.again"], r"late\..*"])
def test_a_layer_is_chosen_and_ranked_by_any_of_its_names(targets: Any) -> None:
    network = AdaptedNetwork(TwoParts(), targets=targets, rank={"again": 3, "early.1": 3})
    assert [(stack.layer_names, stack.rank) for stack in network.stacks.values()] == [(("early.1",), 3)]
    assert next(iter(AdaptedNetwork(TwoParts(), targets=targets, rank={"again": 4}).stacks.values())).rank == 4


@pytest.mark.parametrize(("make", "method"), [(Listed, "lora"), (SharedHead, "lora"), (SharedHead, "deep_ensemble")])
def test_shared_layers_are_saved_and_not_exported(
    make: Callable[[], nn.Module], method: str, inputs: dict[str, Tensor], tmp_path: Path
) -> None:
    model = make().double()
    data = (inputs["x"], torch.arange(4) % 3)
    posterior = bayeslora.fit(model, data, method, rank=2, epochs=2, progress=False)
    posterior.save(tmp_path / "saved")
    again = bayeslora.load(tmp_path / "saved", model=model)
    assert (again.predict(data).probs == posterior.predict(data).probs).all()
    with torch.no_grad():
        merged = posterior.merge()(**inputs).softmax(-1)
    torch.testing.assert_close(merged, torch.as_tensor(posterior.predict(data, center=True).probs))
    with pytest.raises(ValueError, match=r"one layer under \d: "):
        posterior.export_peft(tmp_path / "peft")


def old(norm: str) -> Callable[[nn.Module], nn.Module]:
    """One of the norms by hooks, which PyTorch advises against."""

    def normed(layer: nn.Module) -> nn.Module:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return getattr(nn.utils, norm)(layer)

    return normed


def half_pruned(layer: nn.Module) -> nn.Module:
    prune.l1_unstructured(layer, "bias", amount=0.5)
    return prune.l1_unstructured(layer, "weight", amount=0.5)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def doubled(layer: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, "bias", Doubled())
    return parametrize.register_parametrization(layer, "weight", Doubled())


NORMS = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "old weight_norm": old("weight_norm"),
    "old spectral_norm": old("spectral_norm"),
    "pruned": half_pruned,
    "of one's own": doubled,
}


@pytest.fixture(params=NORMS)
def normed(request: pytest.FixtureRequest) -> nn.Module:
    make = NORMS[request.param]
    body = nn.Sequential(nn.Linear(5, SIZE), make(nn.Linear(SIZE, SIZE)), nn.Tanh(), make(nn.Linear(SIZE, SIZE)))
    model = nn.Sequential()
    model.add_module("body", body)
    model.add_module("head", nn.Linear(SIZE, 3))
    return model.double()


@pytest.mark.parametrize("method", ["lora", "dora", "bitfit"])
def test_computed_weights_are_copied_saved_and_merged(normed: nn.Module, method: str, tmp_path: Path) -> None:
    x = torch.randn(4, 5, dtype=torch.float64)
    before = normed.eval()(x).detach()
    data = (x, torch.arange(4) % 3)
    posterior = bayeslora.fit(normed, data, method, rank=2, epochs=2, learning_rate=0.1, progress=False)
    expected = posterior.predict(data, center=True).probs
    copied = copy.deepcopy(posterior.program).eval()
    with torch.no_grad():
        torch.testing.assert_close(copied.logits(copied.centre(), {"input": x}).softmax(-1), torch.as_tensor(expected))
        merged = posterior.merge()
        torch.testing.assert_close(merged(x).softmax(-1), torch.as_tensor(expected))
        assert not any(parametrize.is_parametrized(module) for module in merged.modules())
    merged.load_state_dict(copy.deepcopy(merged).state_dict())
    posterior.save(tmp_path)
    again = bayeslora.load(tmp_path, model=normed)
    assert (again.predict(data, center=True).probs == expected).all()
    torch.testing.assert_close(normed(x).detach(), before, rtol=0, atol=0)  # the user's own still works


def test_the_state_of_norms_is_the_bases_in_training(normed: nn.Module) -> None:
    network = AdaptedNetwork(normed, rank=2).train()
    before = {name: value.clone() for name, value in network.model.named_buffers()}
    network(factors_of(network), {"input": torch.randn(4, 5).double()})
    for name, value in network.model.named_buffers():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_looking_at_a_weight_does_not_move_it() -> None:
    model = nn.Sequential(nn.Linear(4, 6), parametrizations.spectral_norm(nn.Linear(6, 6)), nn.Linear(6, 3)).train()
    network = AdaptedNetwork(model, rank=2, head=())
    before = {name: value.clone() for name, value in network.model.named_buffers()}
    assert before
    assert [base.weight for stack in network.stacks.values() for base in network.bases(stack.name)]
    for name, value in network.model.named_buffers():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_pefts_export_says_that_it_does_not_reach_a_parametrised_layer(tmp_path: Path) -> None:
    model = nn.Sequential()
    model.add_module("body", parametrizations.weight_norm(nn.Linear(5, SIZE)))
    model.add_module("head", nn.Linear(SIZE, 3))
    posterior = bayeslora.fit(model, (torch.randn(4, 5), torch.arange(4) % 3), "lora", rank=2, epochs=0, progress=False)
    with pytest.raises(ValueError, match="'body', whose weight is parametrised"):
        posterior.export_peft(tmp_path)
