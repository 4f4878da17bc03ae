"""Networks whose copies do not compute what they do, or that make layers as they run."""

import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bayeslora
from bayeslora.adapters.repeats import NotCopiedError
from tests.architectures.families import classes, noise


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def middle(self, x: Tensor) -> Tensor:
        return self.second(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.middle(torch.tanh(self.first(x)))))


class Closure(Body):
    """A hook that keeps a layer's output in the network that it was made for."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, Tensor] = {}
        self.first.register_forward_hook(lambda module, args, output: self.kept.update(first=output))

    def middle(self, x: Tensor) -> Tensor:
        return self.second(x) + self.kept["first"]


class Method(Closure):
    """The same by a method, of which a copy has its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first._forward_hooks.clear()
        self.first.register_forward_hook(self.keep)

    def keep(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.kept["first"] = output


class ById(Body):
    """A table by the id of modules."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = {id(self.second): 2.0}

    def middle(self, x: Tensor) -> Tensor:
        return self.scales.get(id(self.second), 1.0) * self.second(x)


class ByFunction(Body):
    """A function that is defined where the network is, and calls a layer of it."""

    def __init__(self, layer: str) -> None:
        super().__init__()
        self.function = lambda x: getattr(self, layer)(x)
        self.layer = layer

    def middle(self, x: Tensor) -> Tensor:
        return self.function(x) if self.layer == "second" else super().middle(x)

    def forward(self, x: Tensor) -> Tensor:
        if self.layer == "head":
            return self.function(torch.tanh(self.middle(torch.tanh(self.first(x)))))
        return super().forward(x)


def patched() -> nn.Module:
    """A network whose `forward` was replaced by a function that calls the one before."""
    model = Body()
    before = model.forward
    model.forward = lambda x: 2 * before(x)  # type: ignore[method-assign]
    return model


class ByMethod(Body):
    """The same by methods and their like, of which a copy has its own."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = {"first": self.start, "second": functools.partial(Body.middle, self)}

    def start(self, x: Tensor) -> Tensor:
        return torch.tanh(self.first(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.steps["second"](self.steps["first"](x))))


class Keeping(nn.Module):
    """A layer that keeps its output in a table, or adds what is kept there to its own."""

    def __init__(self, table: dict[str, Tensor], reads: bool) -> None:
        super().__init__()
        self.table, self.reads, self.layer = table, reads, nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        if self.reads:
            return x + self.table["kept"]
        self.table["kept"] = x
        return x


class Jointly(Body):
    """Two modules that hold one table, in which one leaves something for the other."""

    def __init__(self) -> None:
        super().__init__()
        table: dict[str, Tensor] = {}
        self.second = nn.Sequential(Keeping(table, False), nn.Tanh(), Keeping(table, True))  # type: ignore[assignment]


class ByName(Body):
    """A network that names the inputs of its layers."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(input=torch.tanh(self.second(input=torch.tanh(self.first(input=x)))))


class Late(Body):
    """A layer that the first pass makes."""

    def __init__(self) -> None:
        super().__init__()
        self.late = None

    def middle(self, x: Tensor) -> Tensor:
        if self.late is None:
            self.late = nn.Linear(x.shape[-1], 16, dtype=x.dtype)
        return self.second(torch.tanh(self.late(x)))


class Stacked(Body):
    """An ensemble of layers that are called as one, as PyTorch's tutorial has it."""

    def __init__(self) -> None:
        super().__init__()
        self.members = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

    def middle(self, x: Tensor) -> Tensor:
        weights, _ = torch.func.stack_module_state(list(self.members))
        of_each = torch.vmap(lambda own: torch.func.functional_call(self.members[0], own, (x,)))(weights)
        return self.second(of_each.mean(0))


def fitted(model: nn.Module, method: str = "lora", **settings: Any) -> bayeslora.Posterior:
    data = {"x": noise(6, 12)}, classes(6)
    return bayeslora.fit(model.double(), data, method, **{"epochs": 1, "rank": 2, "progress": False} | settings)


@pytest.mark.parametrize(
    ("make", "what"), [(Closure, "Closure, .* fails, by KeyError: 'first'"), (ById, "ById, .* gives other logits")]
)
@pytest.mark.parametrize("has_run", [False, True])
def test_a_copy_that_is_not_the_network_is_refused(make: Any, what: str, has_run: bool) -> None:
    model = make().double()
    if has_run:
        model(noise(6, 12) + 1)
        what = what.replace("fails, by KeyError: 'first'", "")
    for _ in range(2):  # what the first fit left behind is not taken for the copy's own
        with pytest.raises(NotCopiedError, match=f"A copy of the {what}"):
            fitted(model)


@pytest.mark.parametrize(
    ("make", "layers"),
    [
        (lambda: ByFunction("second"), "'second'"),
        (lambda: ByFunction("head"), "'head'"),
        (patched, "'first', 'head', 'second'"),
    ],
)
def test_a_copy_that_computes_with_layers_of_the_model_itself_is_refused(make: Any, layers: str) -> None:
    model = make()
    with pytest.raises(NotCopiedError, match=f"computes with the model's own {layers}, which nothing would train"):
        fitted(model)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("method", ["lora", "laplace"])
def test_inputs_of_layers_may_be_named(method: str) -> None:
    plain, named = (fitted(make(), method=method) for make in (Body, ByName))
    x = noise(5, 12)
    assert {name for stack in named.network.stacks.values() for name in stack.layer_names} >= {"first", "second"}
    np.testing.assert_array_equal(named.predict({"x": x}).probs, plain.predict({"x": x}).probs)
    probs = named.merge()(x).softmax(-1).detach()
    np.testing.assert_allclose(named.predict({"x": x}, center=True).probs, probs, atol=1e-12)


@pytest.mark.parametrize("make", [Method, Stacked, ByMethod, Jointly])
def test_networks_that_are_as_their_copies(make: Any) -> None:
    model, x = make().double(), noise(5, 12)
    model(x)  # which keeps a tensor with a graph
    posterior = fitted(model, epochs=0)
    given = posterior.predict({"x": x}, center=True).probs
    assert torch.allclose(torch.as_tensor(given), model(x).softmax(-1), rtol=0, atol=1e-9)


def test_a_network_that_makes_its_layers_in_its_first_pass_is_to_be_run_once() -> None:
    model = Late()
    with pytest.raises(ValueError, match=r"The Late makes 'late.weight' in its first pass, of random numbers. Run it"):
        fitted(model)
    assert model.late is None
    assert "late" not in dict(model.named_children())
    model(noise(2, 12))
    posterior = fitted(model)
    assert "late" in {name for stack in posterior.network.stacks.values() for name in stack.layer_names}
