"""A task head that a method takes in: stacks of its own, in the forward pass, on disk, merged, and as a start."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor, nn

import bayeslora
from bayeslora import guides, interop, priors
from bayeslora.adapters import AdaptedNetwork, Affine, Stack
from bayeslora.methods import METHODS, PerStackMethod
from bayeslora.registry import register
from tests.helpers import batch, tiny_bert, tiny_llama, tokens

SETTINGS = {"epochs": 2, "learning_rate": 5e-3, "targets": "attention", "progress": False}


@dataclass(frozen=True)
class WithHead(PerStackMethod):
    """A Gaussian over every factor, those of the head included."""

    name = "with_head"
    head_family = Affine()

    def stack_prior(self, stack: Stack) -> Any:
        with stack.layers:
            sites = {
                name: pyro.sample(f"{stack.name}.{name}", priors.normal(shape, 1.0))
                for name, shape in stack.shapes.items()
            }
        return stack.family.factors(**sites)

    def stack_guide(self, stack: Stack) -> nn.Module:
        return guides.Sites(
            stack,
            scale=1e-4,
            **{name: guides.Normal(value, 0.1) for name, value in stack.initial()._asdict().items()},
        )


@pytest.fixture
def with_head() -> Any:
    yield register(WithHead)
    METHODS.pop("with_head")


class Head(nn.Module):
    """Two layers of different shapes, the second without a bias, and a LayerNorm between them."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(8, 6)
        self.norm = nn.LayerNorm(6)
        self.out = nn.Linear(6, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(torch.tanh(self.dense(x))))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
        self.head = Head()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def factors_of(network: AdaptedNetwork, *draws: int) -> dict[str, Any]:
    return {
        name: stack.family.factors(*(0.3 * torch.randn(*draws, len(stack), *s) for s in stack.shapes.values()))
        for name, stack in network.stacks.items()
    }


def test_the_heads_linear_layers_are_stacks_after_the_bodys() -> None:
    network = AdaptedNetwork(Network(), rank=2, num_examples=7, head_family=Affine())
    assert list(network.stacks) == ["5x8", "8x8", "head_8x6", "head_6x3"]
    assert [stack.in_head for stack in network.stacks.values()] == [False, False, True, True]
    assert network.stacks["head_6x3"].layer_names == ("head.out",)
    assert network.stacks["head_6x3"].shapes == {"weight": (3, 6), "bias": (3,)}
    # The head is not counted, whichever stack is asked.
    assert {stack.num_layers for stack in network.stacks.values()} == {network.stacks.num_layers} == {3}
    assert {stack.num_examples for stack in network.stacks.values()} == {7}
    learned = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert learned == ["model.head.norm.weight", "model.head.norm.bias"]


def test_without_a_head_family_there_are_no_such_stacks() -> None:
    assert list(AdaptedNetwork(Network(), rank=2).stacks) == ["5x8", "8x8"]


def test_ranks_and_targets_do_not_look_at_the_head() -> None:
    network = AdaptedNetwork(tiny_bert(num_labels=2), targets="query", rank=4, head_family=Affine())
    assert {name: stack.rank for name, stack in network.stacks.items()} == {"32x32": 4, "head_32x2": 2}


def test_the_head_as_it_came_is_left_alone_and_keeps_its_names() -> None:
    model = Network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    network = AdaptedNetwork(model, rank=2, head_family=Affine())
    state = network.head_state()
    assert state.keys() == {name for name in before if name.startswith("head.")}
    assert all(torch.equal(value, before[name]) for name, value in state.items())
    network.load_head({name: value + 1 for name, value in state.items()})
    assert all(torch.equal(value, before[name] + 1) for name, value in network.head_state().items())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("make", [Network, tiny_bert, tiny_llama])
def test_draws_together_are_draws_apart_and_merged_networks(make: Any) -> None:
    network = AdaptedNetwork(make(), rank=2, head_family=Affine()).eval()
    x = {"x": torch.randn(4, 5)} if make is Network else batch(4)
    x.pop("labels", None)
    factors = factors_of(network, 3)
    with torch.no_grad():
        together = network(factors, x)
        for draw in range(3):
            one = {name: type(value)(*(f[draw] for f in value)) for name, value in factors.items()}
            apart = network(one, x)
            torch.testing.assert_close(together[draw], apart, rtol=1e-4, atol=1e-5)
            merged = interop.merge(network, one)(**x)
            torch.testing.assert_close(apart, getattr(merged, "logits", merged), rtol=1e-4, atol=1e-5)
        head = {name: value for name, value in factors.items() if network.stacks[name].in_head}
        without = network(factors | {name: type(f)(*(0 * v for v in f)) for name, f in head.items()}, x)
    assert not torch.allclose(together, without, atol=1e-2)  # the head's factors do something


def test_norms_are_those_of_weight_and_bias_together() -> None:
    network = AdaptedNetwork(Network(), rank=2, head_family=Affine())
    one, other = (factors_of(network, 2)["head_6x3"] for _ in range(2))
    both = torch.cat([one.weight - other.weight, (one.bias - other.bias)[..., None]], dim=-1)
    norm = Affine().difference_norm(one, other)
    assert norm.shape == (2, 1)
    torch.testing.assert_close(norm, both.norm(dim=(-2, -1)))
    torch.testing.assert_close(Affine().difference_norm(one).square(), sum(f.square().flatten(2).sum(2) for f in one))


def test_a_fit_learns_the_head_draws_it_saves_it_and_merges_it(with_head: Any, tmp_path: Path) -> None:
    posterior = bayeslora.fit(tiny_bert(), tokens(), "with_head", **SETTINGS)
    learned = [name for name, _ in posterior.program.trainable()]
    assert all(name.startswith("guide.") for name in learned)
    assert sum("head_32x3" in name for name in learned) == 4
    assert bool((posterior.guide["head_32x3"].sites["weight"].loc != 0).any())
    test = tokens(10, seed=3)
    prediction = posterior.predict(test, 4)
    assert prediction.draws.std(0).max() > 0
    assert posterior.draw(5)["head_32x3.bias"].shape == (5, 1, 3)

    posterior.save(tmp_path)
    other = tiny_bert()
    torch.nn.init.normal_(other.classifier.weight)  # a head that is initialised anew at every load
    loaded = bayeslora.load(tmp_path, other)
    assert (loaded.predict(test, 4).draws == prediction.draws).all()

    with torch.no_grad():
        merged = torch.softmax(posterior.merge()(**test[0]).logits, -1)
    torch.testing.assert_close(merged.double(), torch.tensor(posterior.predict(test, center=True).probs))
    groups = posterior.to_arviz(test, 6, raw=True)
    assert groups.posterior["delta_norm_head_32x3"].shape == (1, 6, 1)
    assert groups.posterior["weight_head_32x3"].shape == (1, 6, 1, 3, 32)


def test_trained_heads_are_taken_over_both_ways(with_head: Any) -> None:
    test = tokens(10, seed=3)[0]
    first = bayeslora.fit(tiny_bert(), tokens(), "with_head", **SETTINGS)
    still = SETTINGS | {"learning_rate": 1e-12, "epochs": 1}
    lora = bayeslora.fit(tiny_bert(), tokens(), "lora", init=first, **still)
    back = bayeslora.fit(tiny_bert(), tokens(), "with_head", init=lora, **still)
    centres = [torch.tensor(p.predict(test, center=True).probs) for p in (first, lora, back)]
    torch.testing.assert_close(centres[1], centres[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(centres[2], centres[0], rtol=1e-4, atol=1e-5)
    assert bool((back.guide["head_32x3"].sites["weight"].loc.abs() < 1e-6).all())


class Converting(nn.Linear):
    """A layer that saves its numbers in another precision, as converters of checkpoints do."""

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        return {name: value.float() for name, value in super().state_dict(*args, **kwargs).items()}


def test_a_head_whose_state_dict_gives_copies_is_saved_and_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, labels = torch.randn(6, 12).double(), torch.arange(6) % 3
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), Converting(16, 3)).double()
    posterior = bayeslora.fit(model, ({"input": x}, labels), "lora", epochs=1, rank=2, progress=False)
    with torch.no_grad():
        posterior.network.model[2].weight.mul_(2)
    posterior.save(tmp_path)
    again = bayeslora.load(tmp_path, model)
    assert torch.equal(again.network.model[2].weight, posterior.network.model[2].weight)
    assert (again.predict({"input": x}).probs == posterior.predict({"input": x}).probs).all()
