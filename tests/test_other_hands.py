"""What other people's networks, arguments and data look like: each works, or is refused in a sentence."""

import contextvars
import copy
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rich.console
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import TrainingArguments

import bayeslora
from bayeslora.adapters import running
from tests.helpers import tiny_bert, tokens

DATA = tokens(8)
INPUTS, CLASSES = DATA
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def fitted(model: Any, data: Any = DATA, method: str = "lora", **settings: Any) -> bayeslora.Posterior:
    settings = {"rank": 2, "epochs": 1, "learning_rate": 1e-2, "progress": False, **settings}
    return bayeslora.fit(model, data, method, **settings)


class Rows(nn.Module):
    """A network that returns its logits in some form."""

    def __init__(self, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 3)
        self.form = form

    def forward(self, x: Tensor) -> Any:
        return self.form(self.head(self.body(x).tanh()))


def rows_of(form: Callable[[Tensor], Any]) -> nn.Module:
    torch.manual_seed(0)
    return Rows(form)


NUMBERS = (torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3)


class Positional(Rows):
    def forward(self, *args: Tensor) -> Tensor:
        return super().forward(*args)


class AnyName(Rows):
    def forward(self, **inputs: Tensor) -> Tensor:
        return super().forward(inputs["x"])


# What a network returns.

FORMS: dict[str, Callable[[Tensor], Any]] = {
    "ordered mapping": lambda logits: OrderedDict(hidden=logits.exp(), logits=logits),
    "mapping": lambda logits: {"logits": logits, "hidden": logits.exp()},
    "tuple with nothing": lambda logits: (logits, None),
    "loss first": lambda logits: (logits.sum(), logits),
    "list": lambda logits: [logits],
}


@pytest.mark.parametrize("form", FORMS)
def test_logits_are_found_in_what_a_network_returns(form: str) -> None:
    plain, wrapped = (fitted(rows_of(f), NUMBERS) for f in (lambda logits: logits, FORMS[form]))
    np.testing.assert_array_equal(plain.predict(NUMBERS).probs, wrapped.predict(NUMBERS).probs)


HOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "before, by place": lambda model: model.register_forward_pre_hook(lambda module, args: (3 * args[0],)),
    "before, by name": lambda model: model.register_forward_pre_hook(
        lambda module, args, kwargs: (tuple(3 * x for x in args), {name: 3 * x for name, x in kwargs.items()}),
        with_kwargs=True,
    ),
    "after": lambda model: model.register_forward_hook(lambda module, args, output: output + args[0][:, :3]),
}


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("method", ["monteclora", "laplace"])
def test_hooks_of_the_network_itself_see_its_inputs(hook: str, method: str) -> None:
    model, x = rows_of(lambda logits: logits).double(), NUMBERS[0].double()
    HOOKS[hook](model)
    posterior = fitted(model, (x, NUMBERS[1]), method, epochs=0)
    probs = model(x).softmax(-1).detach()
    np.testing.assert_allclose(posterior.predict(x, center=True).probs, probs, rtol=1e-9)
    posterior = fitted(model, (x, NUMBERS[1]), method)
    probs = posterior.merge()(x).softmax(-1).detach()
    np.testing.assert_allclose(posterior.predict(x, center=True).probs, probs, rtol=1e-9)
    several, one_by_one = (posterior.predict(x, num_draws=3, seed=0, batch_size=size).draws for size in (8, 1))
    np.testing.assert_allclose(one_by_one, several, rtol=1e-9)


def test_a_network_that_is_coarse_by_itself_is_merged() -> None:
    class Coarse(Rows):
        @torch.autocast("cpu", torch.bfloat16)
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).float()

    torch.manual_seed(0)
    posterior = fitted(Coarse(lambda logits: logits), NUMBERS, learning_rate=0.1, epochs=4)
    merged = posterior.merge()(NUMBERS[0]).softmax(-1).detach()
    np.testing.assert_allclose(posterior.predict(NUMBERS[0], center=True).probs, merged, atol=2e-2)


class Bent(Rows):
    """A network that takes a way of its own through its layers."""

    def through(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).tanh())


class Mapped(Bent):
    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(self.through)(x)


class Energy(Bent):
    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.through(x).square().sum(), x, create_graph=True)
        return slope[:, :3]


class Slope(Bent):
    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(torch.func.grad(lambda row: self.through(row).square().sum()))(x)[:, :3]


class Blocks(Bent):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = checkpoint(lambda x: x + self.body(x)[..., :4].tanh(), x, use_reentrant=True)
        return self.head(self.body(x))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # of re-entrant checkpoints
@pytest.mark.parametrize(
    ("kind", "inference"), [(Mapped, False), (Mapped, True), (Energy, False), (Slope, False), (Blocks, False)]
)
def test_networks_of_torch_func_autograd_and_checkpoints(kind: Any, inference: bool) -> None:
    with torch.inference_mode(inference):
        torch.manual_seed(0)
        model, x = kind(None).double(), NUMBERS[0].double()
    posterior = fitted(
        model, (x, NUMBERS[1]), "blob", num_particles=2, targets="body", head=() if kind in (Energy, Slope) else None
    )
    draws = posterior.draw(3, seed=1)
    factors = posterior.program.factors_at(draws)["4x6"]
    network, given = posterior.network, posterior.predict(x, num_draws=3, seed=1).draws
    for index in range(3):
        plain = kind(None).double()
        plain.load_state_dict({**model.state_dict(), **network.head_state()})
        with torch.no_grad():
            plain.body.weight += network.scaling("4x6") * factors.B[index, 0] @ factors.A[index, 0]
        np.testing.assert_allclose(given[index], plain(x.clone()).softmax(-1).detach(), rtol=1e-9)


def test_where_inference_mode_forgets_functional_gradients_networks_run_outside_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(running, "functions_differentiate_in_inference_mode", lambda: False)

    class Forgetful(Slope):
        """As `torch.func.grad` is in PyTorch 2.11."""

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (not torch.is_inference_mode_enabled())

    torch.manual_seed(0)
    posterior = fitted(Forgetful(None).double(), (NUMBERS[0].double(), NUMBERS[1]), targets="body", head=())
    found = posterior.predict(NUMBERS[0].double(), num_draws=3).draws
    assert (found.std(-1) > 1e-3).all()


def test_inputs_may_know_how_they_were_made() -> None:
    features = nn.Linear(4, 4)(NUMBERS[0])
    posterior = fitted(rows_of(lambda logits: logits), (features, NUMBERS[1]))
    np.testing.assert_array_equal(
        copy.deepcopy(posterior).predict(features).probs, posterior.predict(features.detach()).probs
    )


def test_a_layer_without_a_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'0\.weight' has no shape yet.*Run the model once on a batch"):
        fitted(nn.Sequential(nn.LazyLinear(6), nn.Linear(6, 3)), NUMBERS)


def test_what_has_no_numbers_is_refused() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
        with pytest.raises(ValueError, match=r"default device is 'meta'.*before calling"):
            fitted(rows_of(lambda logits: logits), NUMBERS)
    with pytest.raises(ValueError, match=r"4 of the model's 4 parameters have no weights, .*'0.weight': the model was"):
        fitted(model, NUMBERS)
    model[0] = nn.Linear(4, 6)
    with pytest.raises(ValueError, match=r"2 of the model's 4 parameters have no weights, the first is '1.weight'"):
        fitted(model, NUMBERS)


def test_what_cannot_be_copied_or_has_no_parameters_is_refused() -> None:
    model = rows_of(lambda logits: logits)
    model.body.steps = (step for step in range(9))  # type: ignore[union-attr,assignment]
    with pytest.raises(TypeError, match=r"The network cannot be copied, for its 'body.steps': cannot pickle 'gen"):
        fitted(model, NUMBERS)
    with pytest.raises(ValueError, match=r"The Sequential has no parameters: nothing could be adapted"):
        fitted(nn.Sequential(nn.Flatten()), NUMBERS)


KEPT_WITH_OTHERS = {
    "module": lambda: np,
    "lock": threading.Lock,
    "variable": lambda: contextvars.ContextVar("own"),
    "console": lambda: rich.console.Console(),
    "in a list": lambda: [SimpleNamespace(lock=threading.RLock())],
}


@pytest.mark.parametrize("name", KEPT_WITH_OTHERS)
def test_what_there_is_no_copy_of_is_shared(name: str) -> None:
    model, plain = rows_of(lambda logits: logits), rows_of(lambda logits: logits)
    model.body.kept = kept = KEPT_WITH_OTHERS[name]()  # type: ignore[union-attr,assignment]
    posteriors = [fitted(each, NUMBERS) for each in (model, plain)]
    draws = [p.predict(NUMBERS[0], num_draws=2, seed=0).draws for p in (*posteriors, copy.deepcopy(posteriors[0]))]
    np.testing.assert_array_equal(*draws[:2])
    np.testing.assert_array_equal(*draws[1:])
    assert model.body.kept is kept


def test_outputs_that_are_not_about_the_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'classification' does not fit outputs \(3, 2\) and labels \(2,\): The size"):
        fitted(rows_of(lambda logits: logits.T), NUMBERS)


@pytest.mark.parametrize(
    ("form", "returned"),
    [
        (lambda logits: (logits, logits), r"a tuple with 2 tensors, and which of them has the logits is not known"),
        (lambda logits: {"output": logits}, "dict, in which there are no logits"),
        (lambda logits: None, "NoneType, in which there are no logits"),
        (lambda logits: logits.argmax(-1), r"torch.int64 numbers: real ones, the logits, are needed"),
    ],
)
def test_what_has_no_logits_is_refused(form: Callable[[Tensor], Any], returned: str) -> None:
    with pytest.raises(TypeError, match=rf"The network returned {returned}"):
        fitted(rows_of(form), NUMBERS)


class ByMode(Rows):
    """A network that returns its logits in some form in one mode alone."""

    def __init__(self, form: Callable[[Tensor], Any], training: bool) -> None:
        super().__init__(form)
        self.mode = training

    def forward(self, x: Tensor) -> Any:
        logits = self.head(self.body(x).tanh())
        return self.form(logits) if self.training is self.mode else logits


def test_what_a_network_returns_in_training_alone_is_said_to_be_of_training() -> None:
    fitted(ByMode(lambda logits: (logits, logits.square().mean()), training=True), NUMBERS)
    start = "In training mode, unlike in evaluation mode, the network returned"
    with pytest.raises(TypeError, match=f"{start} a tuple with 2 tensors, and which"):
        fitted(ByMode(lambda logits: (logits, logits + 1), training=True), NUMBERS)
    with pytest.raises(TypeError, match=f"{start} dict, in which there are no logits"):
        fitted(ByMode(lambda logits: {"out": logits}, training=True), NUMBERS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_probabilities_are_not_taken_for_logits_without_a_word(
    dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    model = ByMode(lambda logits: logits.softmax(-1), training=False).to(dtype)
    fitted(model, (NUMBERS[0].to(dtype), NUMBERS[1]), epochs=0)
    said = "ByMode returns what looks like probabilities, which sum to 1 in every row"
    assert said in caplog.text
    caplog.clear()
    for form in (lambda logits: logits.log_softmax(-1), lambda logits: logits.abs()):
        fitted(rows_of(form), NUMBERS, epochs=0)
    assert "probabilities" not in caplog.text


MULTIPLE = (torch.eye(3)[NUMBERS[1]] + torch.eye(3)[0]).clamp(max=1)


@pytest.mark.parametrize(
    ("form", "labels", "kind", "what"),
    [
        (torch.sigmoid, MULTIPLE, None, "probabilities, as a sigmoid makes them"),
        (
            lambda f: torch.cat([f[:, :2].sigmoid(), f[:, 2:].sigmoid()], 1),
            MULTIPLE,
            None,
            "probabilities",
        ),
        (
            lambda f: f[:, :1].sigmoid(),
            NUMBERS[1][:, None].clamp(max=1),
            None,
            "probabilities, as a sigmoid makes them",
        ),
        (lambda f: f.log_softmax(-1), MULTIPLE, None, "logarithms of probabilities, as a log-softmax"),
        (nn.functional.logsigmoid, MULTIPLE, None, "logarithms of probabilities, as a log-sigmoid"),
        (torch.sigmoid, NUMBERS[1], None, "probabilities, as a sigmoid makes them"),
        (lambda f: f.relu_(), NUMBERS[1], None, "numbers that are never negative, as a ReLU makes them"),
        (lambda f: f.tanh().double(), NUMBERS[1], None, "numbers between −1 and 1, as tanh makes them"),
        (lambda f: f[:, :1].sigmoid(), NUMBERS[1], "ordinal", "probabilities, as a sigmoid makes them"),
        (lambda f: nn.functional.softplus(f[:, :1]), NUMBERS[1], "ordinal", None),
        (lambda f: f.log_softmax(-1), NUMBERS[1], None, None),
        (lambda f: 30 * (f / 30).tanh(), NUMBERS[1], None, None),
        (lambda f: f.sigmoid().logit(), NUMBERS[1], None, None),
        (lambda f: f[:, :1].sigmoid(), 0.5 * NUMBERS[0][:, 0], None, None),
    ],
)
def test_what_a_likelihood_does_itself_is_noticed_at_the_end_of_a_network(
    form: Any, labels: Tensor, kind: str | None, what: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    fitted(rows_of(form), (NUMBERS[0], labels), epochs=0, likelihood=kind)
    said = [record.getMessage() for record in caplog.records if "looks like" in record.getMessage()]
    assert [what in each for each in said] == ([] if what is None else [True])


@pytest.mark.parametrize(("labels", "given", "times"), [(1.0, None, 1), (2.0, None, 0), (1.0, "regression", 0)])
def test_labels_that_may_be_yes_and_no_are_not_silently_real_numbers(
    labels: float, given: str | None, times: int, caplog: pytest.LogCaptureFixture
) -> None:
    zeros_and_ones = (NUMBERS[0][:, 0] > 0).double() * labels
    fitted(rows_of(lambda f: f[:, :1]), (NUMBERS[0], zeros_and_ones), epochs=0, likelihood=given)
    assert caplog.text.count("are 0.0 or 1.0, and are read as real numbers. If the one output of") == times


def test_inputs_without_names() -> None:
    with pytest.raises(TypeError, match=r"Positional.forward names no inputs: give its arguments names"):
        fitted(Positional(lambda logits: logits), NUMBERS)
    with pytest.raises(ValueError, match=r"AnyName.forward takes inputs of any name: give \(inputs, labels\) with a"):
        fitted(AnyName(lambda logits: logits), NUMBERS)
    torch.manual_seed(0)
    posterior = fitted(AnyName(lambda logits: logits), ({"x": NUMBERS[0]}, NUMBERS[1]))
    assert posterior.predict({"x": NUMBERS[0]}).probs.shape == (8, 3)


@pytest.mark.parametrize("make", [torch.jit.script, lambda model: torch.jit.trace(model, NUMBERS[0])])
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_is_refused(make: Callable[[nn.Module], nn.Module]) -> None:
    with pytest.raises(
        TypeError, match=r"a program of TorchScript, .*: give the torch.nn.Module that it was made from"
    ):
        fitted(make(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))), NUMBERS)
    with pytest.raises(TypeError, match=r"'0' in the Sequential is a program of TorchScript"):
        fitted(nn.Sequential(make(nn.Linear(4, 6)), nn.Linear(6, 3)), NUMBERS)


class Merging(nn.Linear):
    """As loralib's: in evaluation mode, an adapter of its own is a part of the weight."""

    def __init__(self, merges: bool = True) -> None:
        super().__init__(4, 6)
        self.A, self.B = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.randn(6, 2))
        self.merges, self.merged = merges, False

    def train(self, mode: bool = True) -> "Merging":
        super().train(mode)
        if self.merges and self.merged == mode:
            self.weight.data += (-1 if mode else 1) * self.B @ self.A
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.merged else super().forward(x) + x @ self.A.T @ self.B.T


@pytest.mark.parametrize("mode", [False, True])
def test_modes_that_write_to_weights_are_refused_and_the_model_is_left_as_it_was(mode: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Merging(), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 3)).double().train(mode)
    x = torch.randn(8, 4, dtype=torch.float64)
    before = model(x)
    with pytest.raises(ValueError, match=r"The Merging's own train\(\) writes to its weights, such as 'weight'"):
        fitted(model, (x, NUMBERS[1]))
    assert all(module.training == mode for module in model.modules())
    torch.testing.assert_close(model(x), before)
    torch.testing.assert_close(model.train(not mode)(x), before)
    frozen = nn.Sequential(Merging(merges=False), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 3)).double()
    assert fitted(frozen, (x, NUMBERS[1])).network.stacks
    frozen[0].weight.data[0, 0] = torch.nan  # which is not equal to itself
    with pytest.raises(ValueError, match=r"parameters are NaN in places"):
        fitted(frozen, (x, NUMBERS[1]))


# What is around a network.


def compiled_within(model: Any) -> nn.Module:
    layer = model.bert.encoder.layer
    layer[0] = torch.compile(layer[0], backend="eager")
    layer[1].intermediate.dense = torch.compile(layer[1].intermediate.dense, backend="eager")
    return model


def with_forward(model: nn.Module, forward: Any) -> nn.Module:
    model.forward = forward
    return model


AROUND: dict[str, Callable[[nn.Module], nn.Module]] = {
    "torch.compile": lambda model: torch.compile(model, backend="eager"),
    "DataParallel": nn.DataParallel,
    "parts compiled": lambda model: compiled_within(model),
    "forward compiled": lambda model: with_forward(model, torch.compile(model.forward, backend="eager")),
    "both": lambda model: torch.compile(nn.DataParallel(model), backend="eager"),
}


@pytest.mark.parametrize("around", AROUND)
def test_what_is_around_a_network_is_taken_off(around: str, tmp_path: Path) -> None:
    expected = fitted(tiny_bert()).predict(DATA).probs
    posterior = fitted(AROUND[around](tiny_bert()))
    assert posterior.network.head_names == ("classifier",)
    np.testing.assert_array_equal(posterior.predict(DATA).probs, expected)
    posterior.save(tmp_path)
    again = bayeslora.load(tmp_path, model=AROUND[around](tiny_bert()))
    np.testing.assert_array_equal(again.predict(DATA).probs, expected)


def test_a_network_compiled_in_place_works() -> None:
    model = tiny_bert()
    model.compile(backend="eager")
    np.testing.assert_array_equal(fitted(model).predict(DATA).probs, fitted(tiny_bert()).predict(DATA).probs)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_that_the_user_set_keeps_the_gradients(reentrant: bool) -> None:
    model = tiny_bert(**NO_DROPOUT).double()
    expected = fitted(model, epochs=2).predict(DATA).probs
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    np.testing.assert_allclose(fitted(model, epochs=2).predict(DATA).probs, expected, rtol=1e-9)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_that_arguments_set_keeps_the_gradients(reentrant: bool, tmp_path: Path) -> None:
    model = tiny_bert(**NO_DROPOUT).double()
    probs = []
    for settings in (
        {},
        {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": reentrant}},
    ):
        posterior = fitted(model, args=arguments(tmp_path, **settings))
        probs.append(posterior.predict(DATA).probs)
    np.testing.assert_allclose(*probs, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["lora", "monteclora", "dora"])
def test_a_base_in_half_precision(dtype: torch.dtype, method: str, tmp_path: Path) -> None:
    model = tiny_bert().to(dtype)
    posterior = fitted(model, method=method)
    assert {parameter.dtype for parameter in posterior.guide.parameters()} == {torch.float32}
    assert bool(np.isfinite(posterior.evaluate(DATA)["nll"]))
    merged = posterior.merge()
    assert merged.dtype == dtype
    with torch.no_grad():
        probs = merged(**INPUTS).logits.float().softmax(-1)
    np.testing.assert_allclose(probs, posterior.predict(DATA, center=True).probs, atol=0.05)
    posterior.save(tmp_path)
    again = bayeslora.load(tmp_path, model=model)
    np.testing.assert_array_equal(again.predict(DATA).probs, posterior.predict(DATA).probs)


# What arguments are.


def arguments(folder: Path, **settings: Any) -> TrainingArguments:
    plain = {"num_train_epochs": 1, "report_to": [], "disable_tqdm": True, "save_strategy": "no", "use_cpu": True}
    return TrainingArguments(output_dir=str(folder), dataloader_pin_memory=False, **plain, **settings)


@pytest.mark.parametrize(
    ("settings", "fits"),
    [
        ({"seed": -1}, "a whole number of at least 0 and at most 4294967295"),
        ({"seed": 2**64}, "a whole number of at least 0 and at most 4294967295"),
        ({"seed": True}, "a whole number"),
        ({"data_seed": -1}, "a whole number of at least 0"),
        ({"data_seed": "3"}, "a whole number of at least 0"),
        ({"num_train_epochs": -1}, "a finite number of at least 0"),
        ({"num_train_epochs": float("nan")}, "a finite number of at least 0"),
        ({"max_steps": -7}, "-1 or a whole number of at least 1"),
        ({"max_steps": 0}, "-1 or a whole number of at least 1"),
        ({"save_total_limit": 1.5}, "a whole number, or None"),
        ({"per_device_train_batch_size": 0}, "a whole number of at least 1"),
        ({"per_device_eval_batch_size": 2.5}, "a whole number of at least 1"),
        ({"gradient_accumulation_steps": 0}, "a whole number of at least 1"),
        ({"learning_rate": "1e-3"}, "a finite number of at least 0"),
        ({"max_grad_norm": float("nan")}, "a finite number of at least 0"),
        ({"adam_beta1": 2.0}, "a number of at least 0 and less than 1"),
        ({"dataloader_num_workers": -1}, "a whole number of at least 0"),
    ],
)
def test_training_arguments_are_checked_before_training(settings: dict[str, Any], fits: str, tmp_path: Path) -> None:
    ((name, value),) = settings.items()
    given = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, **settings)
    with pytest.raises(bayeslora.ArgumentError, match=re.escape(f"args.{name}={value!r}: give {fits}")):
        bayeslora.fit(tiny_bert(), tokens(), args=given)


@pytest.mark.parametrize(
    "settings",
    [
        {"label_smoothing_factor": 0.1},
        {"neftune_noise_alpha": 5.0},
        {"use_liger_kernel": True},
        {"push_to_hub": True, "hub_token": ""},
    ],
)
def test_what_a_fit_would_not_do_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    name = next(iter(settings))
    with pytest.raises(ValueError, match=rf"{name}={settings[name]}.*Set it to"):
        fitted(tiny_bert(), args=arguments(tmp_path, **settings))


def test_sharded_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # accelerate would run plain DDP on processes of a CPU, and not say so.
    with pytest.raises(ValueError, match=r"^FSDP is asked for.*Leave it out: torchrun without it trains with DDP"):
        fitted(tiny_bert(), args=arguments(tmp_path, fsdp=True))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # as `accelerate launch --use_fsdp` has it
    with pytest.raises(ValueError, match=r"^FSDP is asked for"):
        fitted(tiny_bert(), args=arguments(tmp_path))


def test_numbers_may_be_numpys(tmp_path: Path) -> None:
    whole = {"rank": 2, "epochs": 1, "batch_size": 4, "seed": 3, "num_particles": 2}
    real = {"alpha": 4.0, "learning_rate": 0.01}
    plain = fitted(tiny_bert(), method="monteclora", components=2, **whole, **real)
    numpys = {name: np.int64(value) for name, value in whole.items()} | {n: np.float64(v) for n, v in real.items()}
    given = fitted(tiny_bert(), method="monteclora", components=np.int64(2), **numpys)
    predicted = plain.predict(DATA, num_draws=4, seed=1, batch_size=4).draws
    np.testing.assert_array_equal(
        given.predict(DATA, num_draws=np.int64(4), seed=np.int64(1), batch_size=np.int64(4)).draws, predicted
    )
    given.save(tmp_path)
    again = bayeslora.load(tmp_path, model=tiny_bert())
    np.testing.assert_array_equal(again.predict(DATA, num_draws=4, seed=1).draws, predicted)
    ranks = {"query": np.int64(2), "key": np.int32(3)}
    stacks = fitted(tiny_bert(), rank=ranks, targets=["query", "key"], epochs=0).network.stacks
    assert sorted(stack.rank for stack in stacks.values()) == [2, 3]


# What labels and tables are.


ARRAYS: dict[str, Callable[[np.ndarray], Any]] = {
    "bytes of another machine": lambda x: x.astype(">f4"),
    "backwards": lambda x: x[::-1].copy()[::-1],
    "not to be written to": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
    "nothing masked": lambda x: np.ma.masked_array(x, mask=np.zeros(x.shape)),
    "sparse": lambda x: torch.from_numpy(x).to_sparse(),
    "sparse rows": lambda x: torch.from_numpy(x).to_sparse_csr(),
}


@pytest.fixture(scope="module")
def on_numbers() -> bayeslora.Posterior:
    return fitted(rows_of(lambda logits: logits), NUMBERS, epochs=0)


@pytest.mark.parametrize("form", ARRAYS)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_arrays_of_any_make_are_their_numbers(form: str, on_numbers: bayeslora.Posterior) -> None:
    x, labels = NUMBERS[0].numpy(), NUMBERS[1].numpy()
    expected, scores = on_numbers.predict(x).probs, on_numbers.evaluate(NUMBERS)
    given = ARRAYS[form](x)
    np.testing.assert_array_equal(on_numbers.predict(given).probs, expected)
    assert on_numbers.evaluate(({"x": given}, labels.astype(">i8")[::-1].copy()[::-1])) == pytest.approx(
        scores, nan_ok=True
    )


def test_arrays_without_some_of_their_numbers_are_refused(on_numbers: bayeslora.Posterior) -> None:
    x = NUMBERS[0]
    masked = np.ma.masked_array(x.numpy(), mask=x.numpy() > 1)
    for given in (masked, {"x": masked}, (masked, NUMBERS[1]), ({"x": masked}, NUMBERS[1])):
        with pytest.raises(bayeslora.ArgumentError, match=r"of 32 numbers of a masked array are masked"):
            on_numbers.predict(given)
    with pytest.raises(bayeslora.ArgumentError, match="rows of a nested tensor differ in length: pad them"):
        on_numbers.predict(torch.nested.nested_tensor([x[0], x[1]], layout=torch.jagged))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32])
@pytest.mark.parametrize("convert", [lambda labels: labels, lambda labels: labels.numpy()], ids=["torch", "numpy"])
def test_labels_may_be_any_whole_numbers(dtype: torch.dtype, convert: Callable[[Tensor], Any]) -> None:
    labels = CLASSES > 0 if dtype is torch.bool else CLASSES
    size = 2 if dtype is torch.bool else 3
    expected = fitted(tiny_bert(size), (INPUTS, labels.long())).evaluate((INPUTS, labels.long()))
    data = (INPUTS, convert(labels.to(dtype)))
    assert fitted(tiny_bert(size), data).evaluate(data) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32])
def test_labels_of_tokens_may_be_any_whole_numbers(dtype: torch.dtype) -> None:
    from tests.architectures.tiny import tiny_model

    for name in ("BertForTokenClassification", "GPT2LMHeadModel"):
        ids = INPUTS["input_ids"]
        labels = ids % 2 if name.startswith("Bert") else ids.clone()
        labels[0, 0] = -100
        scores = [
            fitted(tiny_model(name), (INPUTS, each), epochs=0).evaluate((INPUTS, each))
            for each in (labels, labels.to(dtype))
        ]
        assert scores[0] == pytest.approx(scores[1], nan_ok=True)


@pytest.mark.parametrize("form", ["torch", "numpy", None])
def test_tables_may_have_a_format(form: str | None) -> None:
    columns = {name: value.tolist() for name, value in INPUTS.items()}
    table = Dataset.from_dict(columns | {"label": CLASSES.tolist()}).with_format(form)
    expected = fitted(tiny_bert()).evaluate(DATA)
    assert fitted(tiny_bert(), table, validation=table).evaluate(table) == pytest.approx(expected, nan_ok=True)
    truths = Dataset.from_dict(columns | {"label": (CLASSES > 0).tolist()}).with_format(form)
    assert fitted(tiny_bert(2), truths).predict(truths).probs.shape == (8, 2)
