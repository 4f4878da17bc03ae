"""What one pass over the first examples shows: layers that can be adapted, the task head, and what a fit says."""

import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import bayeslora
from bayeslora import trying
from bayeslora.adapters import AdaptedNetwork, choose_targets
from bayeslora.adapters.folding import moved
from bayeslora.adapters.gradients import let_inputs_have_gradients, reached
from bayeslora.adapters.inspection import heads, inspect, uncovered
from bayeslora.program import Program
from bayeslora.showing import narrating
from tests.architectures.plain import Cosine, NeverCalled, Scaled, Texts, Turned, Unused, Wrapping
from tests.helpers import tiny_bert, tiny_gpt2, tiny_llama, tokens

SETTINGS: dict[str, Any] = {"epochs": 0, "progress": False}


class Block(nn.Module):
    """A body with a layer of some kind in its middle, and an output layer of some name."""

    def __init__(self, middle: nn.Module, name: str = "head"):
        super().__init__()
        self.first = nn.Linear(12, 16)
        self.middle = middle
        self.name = name
        self.add_module(name, nn.Linear(16, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.get_submodule(self.name)(torch.tanh(self.middle(torch.tanh(self.first(x)))))


class WithTuple(nn.Linear):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), None


class WithScale(nn.Linear):
    def forward(self, x: Tensor, scale: float) -> Any:
        return scale * super().forward(x)


class Unpacks(Block):
    def forward(self, x: Tensor) -> Tensor:
        middle = self.middle(torch.tanh(self.first(x)), *([1.0] if isinstance(self.middle, WithScale) else []))
        return self.head(torch.tanh(middle[0] if isinstance(middle, tuple) else middle))


class Quantised(nn.Module):
    """A layer that keeps whole numbers and a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features = self.out_features = 16
        self.register_buffer("weight", torch.randint(-8, 8, (16, 16), dtype=torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, 0.1 * self.weight.to(x.dtype))


class Through(Block):
    """A layer of complex numbers."""

    def to(self, dtype: torch.dtype) -> "Through":  # type: ignore[override]
        self.first.to(dtype), self.head.to(dtype)
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(torch.exp(1j * self.first(x).float())).abs().to(x.dtype))


class CallsTwice(nn.Linear):
    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x) + super().__call__(x)


class Packed(nn.Linear):
    """A layer whose weight is a function, as that of torch.ao's quantised layers."""

    def __init__(self, *sizes: int):
        super().__init__(*sizes)
        packed = self._parameters.pop("weight")
        self.weight: Any = lambda: packed

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight().to(x.dtype), self.bias)


def hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_pre_hook(lambda module, args, kwargs: ((args[0] + 1,), kwargs), with_kwargs=True)
    return layer


class OneBiasEach(nn.Linear):
    """A layer of an ensemble, as TabM's: one weight, and a bias for each of two members, which share the rows."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features)
        self.bias = nn.Parameter(torch.randn(2, out_features))

    def forward(self, x: Tensor) -> Tensor:
        return (F.linear(x, self.weight).unflatten(0, (2, -1)) + self.bias[:, None]).flatten(0, 1)


class AlsoRead(Block):
    """A layer that is called, and whose weight turns its output back."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        return self.head(torch.tanh(self.middle(x)) @ self.middle.weight)


def x_of(*shape: int) -> dict[str, Tensor]:
    return {"x": torch.randn(shape or (2, 12), generator=torch.Generator().manual_seed(0))}


def data_of(size: int = 8) -> tuple[dict[str, Tensor], Tensor]:
    return x_of(size, 12), torch.arange(size) % 3


def texts_of(size: int = 8) -> tuple[dict[str, Tensor], Tensor]:
    return {"input_ids": torch.randint(60, (size, 5), generator=torch.Generator().manual_seed(0))}, data_of(size)[1]


@contextmanager
def unconfigured() -> Iterator[None]:
    """Logging as in a program that has not set it up; pytest does, before each test."""
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, []
    try:
        yield
    finally:
        root.handlers = handlers


# Layers that are not what they look like


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Block(Cosine(16, 16)), "not the product"),
        (lambda: Block(Scaled(16, 16)), "not the product"),
        (lambda: Block(Turned(16, 16)), "not the product"),
        (lambda: Block(Wrapping(16, 16)), "not the product"),
        (lambda: Unpacks(WithTuple(16, 16)), "returns a tuple"),
        (lambda: Unpacks(WithScale(16, 16)), "other arguments"),
        (lambda: AlsoRead(nn.Linear(16, 16)), "also read"),
        (lambda: Block(CallsTwice(16, 16)), "a __call__ of its own"),
        (lambda: Block(hooked(nn.Linear(16, 16))), "a hook of its own changes its input"),
        (lambda: Block(Packed(16, 16)), "its weights are packed"),
        (lambda: Block(OneBiasEach(16, 16)), "its bias is [2, 16], not [16]"),
        (lambda: Through(nn.Linear(16, 16, dtype=torch.complex64)), "its numbers are complex"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_layer_that_is_not_its_product_is_found(make: Any, reason: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    seen = inspect(make().to(dtype), {"x": x_of()["x"].to(dtype)})
    assert list(seen.unfit) == ["middle"]
    assert reason in seen.unfit["middle"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [tiny_bert, tiny_gpt2, tiny_llama])
def test_plain_and_transposed_layers_are_what_they_look_like(make: Any, dtype: torch.dtype) -> None:
    seen = inspect(make().to(dtype), {**tokens(2)[0], "labels": torch.zeros(2)})
    assert not seen.unfit
    assert set(seen.uncalled) <= {"bert.pooler.dense"}


def test_a_layer_whose_first_input_is_zero_is_looked_at_again() -> None:
    class Twice(Block):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(self.first(x))
            return self.head(torch.tanh(self.middle(torch.zeros_like(x)) + self.middle(x)))

    assert list(inspect(Twice(Scaled(16, 16)), x_of()).unfit) == ["middle"]


def test_weights_of_eight_bits_are_not_merged_to_rounding() -> None:
    class Small(Cosine):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight.to(x.dtype))

    model = Block(Small(16, 16))
    model.middle.weight = nn.Parameter(model.middle.weight.to(torch.float8_e4m3fn), requires_grad=False)
    posterior = bayeslora.fit(model, data_of(), "lora", epochs=0, progress=False)
    assert "middle" in {name for stack in posterior.network.stacks.values() for name in stack.layer_names}
    with pytest.raises(ValueError, match=r"'middle' is quantised \(torch.float8_e4m3fn\)"):
        posterior.merge()


def test_layers_that_keep_their_weights_under_other_names_are_adapted_and_saved(tmp_path: Path) -> None:
    class Hidden(nn.Module):
        in_features = out_features = 16

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("qweight", torch.randint(-8, 8, (16, 16), dtype=torch.int8))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, 0.1 * self.qweight.to(x.dtype))

    model = Block(Hidden())
    posterior = bayeslora.fit(model, data_of(), "lora", epochs=0, progress=False)
    assert {name for stack in posterior.network.stacks.values() for name in stack.layer_names} == {"first", "middle"}
    posterior.save(tmp_path)
    expected = posterior.predict(data_of(), center=True).probs
    assert (bayeslora.load(tmp_path, model).predict(data_of(), center=True).probs == expected).all()
    with pytest.raises(ValueError, match=r"Layer 'middle', a Hidden, has no tensor .weight. of its own"):
        posterior.merge()
    with pytest.raises(ValueError, match=r"Hidden holds quantised weights \(packed\)"):
        bayeslora.fit(model, data_of(), "dora", epochs=0, progress=False)


class Shrinks(Block):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.middle.weight.mul_(0.5)
        return super().forward(x)


class Clamps(Block):
    def forward(self, x: Tensor) -> Tensor:
        self.middle.weight.data.clamp_(-0.1, 0.1)
        return super().forward(x)


def test_a_network_that_always_changes_its_weights_is_refused_and_left_as_it_was() -> None:
    model = Shrinks(nn.Linear(16, 16))
    before = model.middle.weight.detach().clone()
    with pytest.raises(ValueError, match=r"Every pass through the Shrinks changes its own weights, such as 'middle.w"):
        bayeslora.fit(model, data_of(), **SETTINGS)
    torch.testing.assert_close(model.middle.weight.detach(), before, rtol=0, atol=0)
    assert inspect(Clamps(nn.Linear(16, 16)), x_of()).logits.shape == (2, 3)


def test_layers_on_ragged_rows_are_not_compared() -> None:
    class Ragged(Block):
        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.first(x))
            rows = torch.nested.nested_tensor([h, h[:1]], layout=torch.jagged)
            return self.head(self.middle(rows).unbind()[0])

    assert not inspect(Ragged(nn.Linear(16, 16)), x_of()).unfit


def test_quantised_layers_are_not_compared() -> None:
    assert not inspect(Block(Quantised()), x_of()).unfit


def test_a_weight_that_the_parent_reads_is_found_and_an_unused_layer_is_not() -> None:
    read, unused = inspect(NeverCalled(), x_of()), inspect(Unused(), x_of())
    assert list(read.unfit) == ["qkv"]
    assert "without a call" in read.unfit["qkv"]
    assert (dict(unused.unfit), unused.uncalled) == ({}, ("qkv",))


def test_a_computed_weight_that_the_parent_reads_is_found() -> None:
    model = NeverCalled()
    parametrizations.weight_norm(model.qkv)
    assert "without a call" in inspect(model, x_of()).unfit["qkv"]
    assert not inspect(Block(parametrizations.weight_norm(nn.Linear(16, 16))), x_of()).unfit


def test_torchs_encoder_layers_are_called_where_its_fused_kernel_would_read_them() -> None:
    model = Texts()
    before = [layer.activation_relu_or_gelu for layer in model.encoder.layers]
    seen = inspect(model.eval(), {"input_ids": torch.randint(3, 50, (2, 7))})
    assert not seen.unfit
    assert not seen.uncalled
    assert [layer.activation_relu_or_gelu for layer in model.encoder.layers] == before != [0, 0]


def test_a_tied_weight_is_read_by_its_other_owner() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(60, 16)
            self.hidden = nn.Linear(16, 16)
            self.out = nn.Linear(16, 60, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.hidden(self.embed(x)))

    model = Tied()
    seen = inspect(model, {"x": torch.randint(60, (2, 5))})
    assert not seen.unfit
    assert heads(model, seen) == ()  # an output embedding is pre-trained


def test_inspecting_leaves_the_model_as_it_was() -> None:
    model = tiny_bert().train()
    modes = [module.training for module in model.modules()]
    inspect(model, tokens(2)[0])
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_operators_that_cannot_be_watched_are_run_without(monkeypatch: pytest.MonkeyPatch) -> None:
    from bayeslora.adapters import inspection

    def refuses(*_: Any, **__: Any) -> Any:
        raise NotImplementedError

    monkeypatch.setattr(inspection.Reads, "__torch_dispatch__", refuses)
    assert list(inspect(Block(Scaled(16, 16)), x_of()).unfit) == ["middle"]


def test_layers_that_cannot_be_adapted_are_left_out_and_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "bayeslora"):
        posterior = bayeslora.fit(NeverCalled(), data_of(), "lora", **SETTINGS)
    assert [stack.layer_names for stack in posterior.network.stacks.values()] == [("first",)]
    assert "1 of 2 layers are left without an adapter" in caplog.text
    assert "'qkv'" in caplog.text


@pytest.mark.parametrize("targets", ["qkv", ["qkv"], ["first", "qkv"], "q.*"])
def test_layers_that_cannot_be_adapted_are_refused_where_they_are_named(targets: Any) -> None:
    with pytest.raises(ValueError, match=r"targets='q\S*' match no layer that can be adapted.*without a call.*'qkv'"):
        bayeslora.fit(NeverCalled(), data_of(), "lora", targets=targets, **SETTINGS)


def test_no_layer_that_can_be_adapted_is_an_error() -> None:
    class Alone(NeverCalled):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Identity()
            self.qkv = nn.Linear(12, 16, bias=False)

    with pytest.raises(ValueError, match="targets='all-linear' match no layer that can be adapted"):
        bayeslora.fit(Alone(), data_of(), "lora", **SETTINGS)


def test_laplace_fits_where_a_weight_is_read() -> None:
    posterior = bayeslora.fit(NeverCalled(), data_of(), "laplace", epochs=1, progress=False)
    assert posterior.predict(data_of()[0], 3).draws.shape == (3, 8, 3)


# The task head


class TwoOutputs(nn.Module):
    """Mean and log-variance, each by a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(12, 16)
        self.mu, self.sigma = nn.Linear(16, 1), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.body(x))
        return torch.cat([self.mu(h), self.sigma(h)], -1)


class Heads(TwoOutputs):
    """The mean of two heads."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.body(x))
        return (self.mu(h) + self.sigma(h)) / 2


class NormedHeads(TwoOutputs):
    """The sum of two heads that each begin with a norm, as CrossViT's and LeViT's."""

    def __init__(self) -> None:
        super().__init__()
        self.mu, self.sigma = (nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 3)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.body(x))
        return self.mu(h) + self.sigma(h)


class Ends(Block):
    """What an output layer gives, and something after it."""

    def __init__(self, name: str, end: Any):
        super().__init__(nn.Linear(16, 16), name)
        self.end = end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(super().forward(x))


class Hidden(Block):
    """A network whose hidden layer has the name of a head."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(16, 16), "out")
        self.fc, self.middle = self.middle, nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.fc(torch.tanh(self.first(x)))))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        *((lambda name=name: Block(nn.Linear(16, 16), name), (name,)) for name in ("out", "linear", "fc2", "head")),
        (lambda: nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 3)), ("2",)),
        (lambda: nn.Sequential(nn.Sequential(nn.Linear(12, 16)), nn.Sequential(nn.Tanh(), nn.Linear(16, 3))), ("1.1",)),
        (TwoOutputs, ("mu", "sigma")),
        (Heads, ("mu", "sigma")),
        (NormedHeads, ("mu.1", "sigma.1")),
        (Hidden, ("out",)),
        (lambda: Ends("out", nn.LogSoftmax(-1)), ("out",)),
        (lambda: Ends("out", lambda y: 2 * y), ("out",)),
        (lambda: Ends("out", nn.LayerNorm(3)), ("out", "end")),
        (lambda: Ends("out", lambda y: y[:, 0]), ("out",)),
        (lambda: Block(nn.Linear(16, 16), "output"), ("output",)),
    ],
)
def test_the_head_is_what_makes_the_logits(make: Any, expected: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    model = make()
    inputs = {"input": x_of()["x"]} if isinstance(model, nn.Sequential) else x_of()
    assert heads(model, inspect(model, inputs)) == expected


def test_a_head_with_the_shape_of_token_types_is_a_head() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = tiny_bert().bert
            self.out = nn.Linear(32, 2)

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.out(self.encoder(input_ids).last_hidden_state[:, 0])

    model = Around().eval()
    assert model.encoder.embeddings.token_type_embeddings.weight.shape == model.out.weight.shape
    assert heads(model, inspect(model, {"input_ids": tokens(2)[0]["input_ids"]})) == ("out",)


@pytest.mark.parametrize("make", [tiny_bert, tiny_llama, tiny_gpt2])
def test_the_head_of_a_pre_trained_body_is_what_stands_outside_it(make: Any) -> None:
    model = make()
    expected = AdaptedNetwork(model).head_names
    assert heads(model, inspect(model, tokens(2)[0])) == expected != ()


def test_the_head_that_was_found_is_trained_saved_and_merged(tmp_path: Any) -> None:
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))
    data = {"input": data_of()[0]["x"]}, data_of()[1]
    posterior = bayeslora.fit(model, data, "blob", epochs=2, learning_rate=0.01, progress=False)
    assert posterior.network.head_names == ("4",)
    assert (posterior.network.model[4].weight != model[4].weight).any()
    expected = posterior.predict(data[0], 4).draws
    posterior.save(tmp_path)
    assert (bayeslora.load(tmp_path, model).predict(data[0], 4).draws == expected).all()
    merged = torch.softmax(posterior.merge()(**data[0]), -1).detach()
    torch.testing.assert_close(merged.double(), torch.tensor(posterior.predict(data[0], center=True).probs))
    again = bayeslora.fit(model, data, "lora", init=posterior, **SETTINGS)
    assert again.network.head_names == ("4",)
    torch.testing.assert_close(again.network.model[4].weight, posterior.network.model[4].weight)


@pytest.mark.parametrize(
    ("head", "trained"), [("middle", ("middle",)), (["middle", "head"], ("middle", "head")), ((), ())]
)
def test_the_head_can_be_named(head: Any, trained: tuple[str, ...], tmp_path: Any) -> None:
    model = Block(nn.Linear(16, 16))
    posterior = bayeslora.fit(model, data_of(), "lora", head=head, **SETTINGS)
    assert posterior.network.head_names == trained
    learned = {name.split(".")[1] for name, p in posterior.network.named_parameters() if p.requires_grad}
    assert learned == set(trained)
    adapted = [name for stack in posterior.network.stacks.values() for name in stack.layer_names]
    assert set(adapted) == {"first", "middle", "head"} - set(trained)
    posterior.save(tmp_path)
    assert bayeslora.load(tmp_path, model).network.head_names == trained
    assert bayeslora.fit(model, data_of(), "lora", init=posterior, **SETTINGS).network.head_names == trained


def test_a_head_that_does_not_exist_suggests_one() -> None:
    with pytest.raises(
        ValueError, match=r"head='haed' is not the full name.*: did you mean 'head'\?.*'middle', 'head'"
    ):
        bayeslora.fit(Block(nn.Linear(16, 16)), data_of(), "lora", head="haed", **SETTINGS)


# Gradients


class Detached(Block):
    """A part of the body that is run without a graph."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = torch.tanh(self.first(x))
        return self.head(torch.tanh(self.middle(x)[..., :16]))


class NoGraph(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.middle(torch.tanh(self.first(x)))).detach())


class Reversible(torch.autograd.Function):
    """A layer that runs again in the backward pass, by which it gets its gradient, as in Reformer."""

    @staticmethod
    def forward(context: Any, x: Tensor, layer: nn.Module) -> Tensor:
        context.layer = layer
        context.save_for_backward(x)
        with torch.no_grad():
            return x + torch.tanh(layer(x))

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        (x,) = context.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (x + torch.tanh(context.layer(x))).backward(gradient, retain_graph=True)
        return x.grad, None


class Reformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(60, 16)
        self.hidden = nn.Linear(16, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(Reversible.apply(self.embed(input_ids), self.hidden).mean(1))


class Checkpointed(Block):
    """Re-entrant activation checkpointing, in training alone."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.head(checkpoint(lambda x: torch.tanh(self.middle(self.first(x))), x, use_reentrant=True))
        return self.head(torch.tanh(self.middle(self.first(x))))


def test_reentrant_checkpoints_are_trained() -> None:
    posterior = bayeslora.fit(Checkpointed(nn.Linear(16, 16)), data_of(), "lora", epochs=1, progress=False)
    program = posterior.program.train()
    program(**data_of()[0], labels=data_of()[1]).loss.backward()
    gradients = [parameter.grad for parameter in program.guide.parameters()]
    assert gradients
    assert all(gradient is not None and bool(gradient.any()) for gradient in gradients)


def test_the_first_step_shows_who_gets_a_gradient_without_a_pass_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[str] = []
    whole = trying.check

    def check(program: Program, *others: Any) -> bool:
        passes.append(type(program.network.model).__name__)
        return whole(program, *others)

    monkeypatch.setattr(trying, "check", check)
    for method in ("lora", "monteclora", "deep_ensemble"):
        bayeslora.fit(Block(nn.Linear(16, 16)), data_of(), method, rank=2, epochs=1, progress=False)
    assert passes == []
    for model, data in ((Detached(nn.Linear(16, 16)), data_of()), (Reformer(), texts_of())):  # it has to be found out
        bayeslora.fit(model, data, "lora", epochs=1, progress=False)
    assert passes == ["Detached", "Reformer"]


def test_a_first_step_that_is_made_anew_draws_the_same_numbers() -> None:
    """As if embeddings had had a gradient from the start."""
    found = []
    for given in (False, True):
        torch.manual_seed(0)
        model = Reformer()
        if given:
            let_inputs_have_gradients(model)
        found.append(bayeslora.fit(model, texts_of(), "blob", epochs=2, progress=False).guide.state_dict())
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


@pytest.mark.parametrize("method", ["lora", "blob"])  # a divergence has a gradient, whatever the network does
@pytest.mark.parametrize("epochs", [0, 1])
@pytest.mark.parametrize("head", ["head", ()])
def test_adapters_without_any_gradient_are_refused(method: str, epochs: int, head: Any) -> None:
    settings = {"head": head, "targets": ["first", "middle"], "epochs": epochs, "progress": False}
    with pytest.raises(ValueError, match=r"None of the 2 adapters gets a gradient.*NoGraph"):
        bayeslora.fit(NoGraph(nn.Linear(16, 16)), data_of(), method, **settings)


@pytest.mark.parametrize("method", ["lora", "monteclora"])
def test_a_head_that_starts_at_zero_is_no_reason_to_refuse_a_fit(method: str) -> None:
    """No gradient passes it before its own first step."""
    for epochs in (0, 3):
        model = tiny_bert()
        torch.nn.init.zeros_(model.classifier.weight)
        torch.nn.init.zeros_(model.classifier.bias)
        posterior = bayeslora.fit(model, tokens(), method, rank=2, epochs=epochs, progress=False)
        assert bool(posterior.network.head_state()["classifier.weight"].any()) is (epochs > 0)
        moved = [value for name, value in posterior.draw(1, seed=0).items() if name.endswith("B")]
        assert all(bool(value.any()) is (epochs > 0) for value in moved)
    with pytest.raises(ValueError, match="None of the 6 adapters gets a gradient"):  # and the head takes no step
        bayeslora.fit(model, tokens(), method, head=(), targets="attention", rank=2, epochs=1, progress=False)


@pytest.mark.parametrize("epochs", [0, 1])
def test_layers_without_a_gradient_are_named(caplog: pytest.LogCaptureFixture, epochs: int) -> None:
    with caplog.at_level(logging.INFO, "bayeslora"):
        bayeslora.fit(Detached(nn.Linear(16, 16)), data_of(), "lora", epochs=epochs, progress=False)
        bayeslora.fit(Unused(), data_of(), "lora", epochs=epochs, progress=False)
    assert re.findall(r"no gradient +from the first examples, at (.*)", caplog.text) == ["'first'", "'qkv'"]


class OneWay(torch.autograd.Function):
    """An operator without a gradient, as those of quantised layers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> None:
        return None


def test_an_operator_may_return_no_gradient(caplog: pytest.LogCaptureFixture) -> None:
    class Stopping(Block):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.middle(OneWay.apply(torch.tanh(self.first(x))))))

    with caplog.at_level(logging.INFO, "bayeslora"):
        bayeslora.fit(Stopping(nn.Linear(16, 16)), data_of(), "lora", epochs=1, progress=False)
    assert re.findall(r"no gradient +from the first examples, at (.*)", caplog.text) == ["'first'"]


@pytest.mark.parametrize("method", sorted(set(bayeslora.METHODS) - {"distilled", "houlsby", "pfeiffer"}))
def test_every_method_fits_where_no_gradient_reaches_a_layer(method: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of methods that want more data
        posterior = bayeslora.fit(Detached(nn.Linear(16, 24)), data_of(), method, epochs=2, progress=False)
    assert np.isfinite(posterior.predict(data_of(), num_draws=2).probs).all()


class WritesBack(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x += self.middle(x)
        return self.head(x)


@pytest.mark.parametrize("method", ["lora", "laplace"])
def test_a_network_that_writes_into_the_input_of_a_layer_is_told_to_make_a_new_one(method: str) -> None:
    with pytest.raises(ValueError, match=r"WritesBack writes into a tensor .* x = x \+ y instead of x \+= y"):
        bayeslora.fit(WritesBack(nn.Linear(16, 16)), data_of(), method, epochs=1, progress=False)


class InTraining(nn.Linear):
    """A layer with another weight in training, as with DropConnect."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, 0.5 * self.weight if self.training else self.weight, self.bias)


@pytest.mark.parametrize("method", ["lora", "monteclora", "dora"])
def test_layers_that_compute_something_else_in_training_are_named(
    method: str, caplog: pytest.LogCaptureFixture
) -> None:
    for middle in (InTraining(16, 16), nn.Sequential(nn.Dropout(0.5), nn.Linear(16, 16), nn.Dropout(0.5))):
        bayeslora.fit(Block(middle), data_of(), method, rank=2, epochs=1, progress=False)
    said = re.findall(r"In training, the output of some layers is not the product .* another at (.*)\.", caplog.text)
    assert said == ["'middle'"]


def test_reversible_layers_are_trained() -> None:
    inputs = {"input_ids": torch.randint(60, (8, 5))}
    posterior = bayeslora.fit(Reformer(), (inputs, torch.arange(8) % 3), "lora", epochs=1, progress=False)
    program = posterior.program.train()
    program(**inputs, labels=torch.arange(8) % 3).loss.backward()
    gradients = {name: parameter.grad for name, parameter in program.guide.named_parameters()}
    assert all(gradient is not None and bool(gradient.any()) for gradient in gradients.values())


def test_looking_for_gradients_leaves_everything_as_it_was() -> None:
    network = AdaptedNetwork(tiny_bert(), rank=2).train()
    head = network.model.get_submodule("classifier")
    head.weight.grad = torch.ones_like(head.weight)
    factors = {n: s.initial() for n, s in network.stacks.items()}
    inputs, state = tokens(2)[0], torch.get_rng_state()
    for training in (False, True):
        draws = moved(network, factors, None)
        found = reached(network, draws, lambda leaves: network(leaves, inputs), training)
        assert len(found) == 12
    assert torch.equal(torch.get_rng_state(), state)
    assert (head.weight.grad == 1).all()
    assert head.bias.grad is None
    assert network.training
    assert all(layer.slot.factors is None for name in network.stacks for layer in network.layers(name))


# Ranks, exclusions, typing errors


def test_the_default_rank_fits_itself_to_narrow_layers(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))
    data = {"input": torch.randn(8, 3)}, torch.arange(8) % 3
    with caplog.at_level(logging.INFO, "bayeslora"):
        posterior = bayeslora.fit(model, data, "lora", **SETTINGS)
        assert {stack.layer_names: stack.rank for stack in posterior.network.stacks.values()} == {("0",): 3, ("2",): 8}
        adalora = bayeslora.fit(model, data, "adalora", epochs=1, progress=False).network.stacks
    assert all(stack.rank <= min(stack.d_in, stack.d_out) for stack in adalora.values())
    assert "rank 3 at '0'" in caplog.text
    for rank in (8, {"0": 8}):
        with pytest.raises(ValueError, match="does not fit layer '0', which is 3 to 16 features"):
            bayeslora.fit(model, data, "lora", rank=rank, **SETTINGS)
    partly = bayeslora.fit(model, data, "lora", rank={"2": 4}, **SETTINGS).network.stacks
    assert [stack.rank for stack in partly.values()] == [3, 4]


@pytest.mark.parametrize("what", ["rank", "alpha"])
def test_a_misspelt_layer_is_an_error_that_suggests_its_name(what: str) -> None:
    with pytest.raises(ValueError, match=rf"{what}={{'qeury': …}} names no linear layer: did you mean 'query'\?"):
        AdaptedNetwork(tiny_bert(), **{what: {"qeury": 4}})
    with pytest.raises(ValueError, match=r"did you mean 'self.query'\?"):
        AdaptedNetwork(tiny_bert(), **{what: {"selv.query": 4}})


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        ("query", {"key", "value", "dense"}),
        (["query", "dense"], {"key", "value"}),
        (r".*attention.*", {"dense"}),
        ("bert.encoder.layer.0.attention.self.query", {"query", "key", "value", "dense"}),
    ],
)
def test_excluded_layers_are_left_out(exclude: Any, left: set[str]) -> None:
    every = choose_targets(tiny_bert(), "all-linear")
    names = choose_targets(tiny_bert(), "all-linear", exclude=exclude)
    assert {name.rpartition(".")[2] for name in names} == left
    assert len(names) < len(every)
    fitted = bayeslora.fit(tiny_bert(), tokens(8), "lora", exclude=exclude, **SETTINGS)
    assert sorted(n for s in fitted.network.stacks.values() for n in s.layer_names) == sorted(names)


def test_excluding_what_does_not_exist_or_everything_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"exclude='qeury' matches no linear layer: did you mean 'query'\?"):
        choose_targets(tiny_bert(), "all-linear", exclude=["key", "qeury"])
    with pytest.raises(ValueError, match=r"exclude='\.\*' leaves none of the 2 layers"):
        choose_targets(tiny_bert(), "query", exclude=".*")
    with pytest.raises(ValueError, match="matches no linear layer"):
        choose_targets(tiny_bert(), "query", exclude="layer.[0")


# What is not adapted, and what is said


def test_matrices_without_an_adapter_are_found() -> None:
    model = Texts()
    sizes = uncovered(model, choose_targets(model, "all-linear"), ("head",))
    assert sizes == {f"encoder.layers.{i}.self_attn.{n}": size for i in (0, 1) for n, size in
                     (("in_proj_weight", 48 * 16), ("out_proj.weight", 16 * 16))}  # fmt: skip


def test_a_fit_says_what_it_inferred(caplog: pytest.LogCaptureFixture) -> None:
    data = {"input_ids": torch.randint(3, 50, (8, 7))}, torch.arange(8) % 3
    with caplog.at_level(logging.INFO, "bayeslora"):
        bayeslora.fit(Texts(), data, "monteclora", **SETTINGS)
    said = next(record.getMessage() for record in caplog.records if record.name == "bayeslora.fitting")
    lines = [re.sub(r"\s+", " ", line.strip()) for line in said.splitlines()]
    assert lines[:5] == [
        "Texts, monteclora, 8 examples",
        "labels classification (num_classes=3), from input_ids",
        "head 'head', trained",
        "adapted 4 layers: 'encoder.layers.*.linear1' ×2, 'encoder.layers.*.linear2' ×2",
        "rank 8",
    ]
    assert lines[5].startswith("not adapted 'encoder.layers.*.self_attn.in_proj_weight' ×2 (")


def test_the_log_is_shown_once_where_logging_is_not_set_up(capsys: Any) -> None:
    logger = logging.getLogger("bayeslora")
    with unconfigured():
        bayeslora.fit(Block(nn.Linear(16, 16)), data_of(), "lora", epochs=0)
        assert capsys.readouterr().err.count("Block, lora, 8 examples") == 1
        assert (logger.handlers, logger.level) == ([], logging.NOTSET)
        bayeslora.fit(Block(nn.Linear(16, 16)), data_of(), "lora", epochs=0, progress=False)
        assert "Block, lora" not in capsys.readouterr().err


def test_the_log_is_the_users_where_it_is_set_up(capsys: Any) -> None:
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("bayeslora").addHandler(handler)
    try:
        with unconfigured():
            bayeslora.fit(Block(nn.Linear(16, 16)), data_of(), "lora", epochs=0)
    finally:
        logging.getLogger("bayeslora").removeHandler(handler)
    assert not said  # at the level of the root logger, which is WARNING
    assert "Block, lora" not in capsys.readouterr().err


def test_two_fits_at_once_share_what_shows_the_log(capsys: Any) -> None:
    logger = logging.getLogger("bayeslora")
    with unconfigured():
        with narrating(True):
            with narrating(True):
                logger.info("inner")
            logger.info("outer")
            with narrating(False):
                pass
            logger.info("still")
        logger.info("after")
    assert capsys.readouterr().err.split() == ["inner", "outer", "still"]


def test_a_study_says_what_its_fits_have_in_common_once(capsys: Any) -> None:
    with unconfigured(), narrating(True, once=True):
        for number in range(2):
            for said in ("same", f"run {number}"):
                logging.getLogger("bayeslora").info(said)
    assert capsys.readouterr().err.splitlines() == ["same", "run 0", "run 1"]


@pytest.mark.parametrize("gone", [True, False])
def test_a_program_without_a_stream_for_errors_can_fit(gone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr("sys.stderr", None if gone else stream)
    with unconfigured():
        bayeslora.fit(Block(nn.Linear(16, 16)), data_of(), "lora", epochs=1)
