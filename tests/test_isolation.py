"""Calls in several threads, the caller's Pyro handlers, and random states."""

import ast
import contextlib
import copy
import dataclasses
import functools
import inspect
import itertools
import os
import queue
import random
import signal
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.poutine.runtime import _DIM_ALLOCATOR, _ENUM_ALLOCATOR, _PYRO_STACK
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerCallback, TrainingArguments

import bayeslora
from bayeslora import Posterior, isolation
from bayeslora.adapters import AdaptedNetwork
from bayeslora.isolation import exclusive, isolated, seeded
from bayeslora.methods import make_method
from bayeslora.program import Program
from bayeslora.tasks import CausalLM, Classification
from tests.helpers import tiny_bert, tokens
from tests.methods.conftest import NO_DROPOUT, randomise
from tests.tasks.cases import model

PATIENCE = 300
"""Seconds after which a thread that waits is taken to wait for ever."""


def untrained(method: str = "monteclora", **fields: Any) -> Posterior:
    """A posterior over a tiny BERT that no training has made, its adapters far from doing nothing."""
    chosen = make_method(method, **fields)
    network = AdaptedNetwork(tiny_bert(**NO_DROPOUT).double(), chosen.family, rank=4, alpha=8, num_examples=48)
    return Posterior(randomise(Program(network, chosen, Classification(3))).eval())


def writer() -> Posterior:
    """A posterior over a tiny causal language model."""
    llama, chosen = model("Llama", "ForCausalLM", eos_token_id=1, pad_token_id=0)().double(), make_method("monteclora")
    network = AdaptedNetwork(llama, chosen.family, rank=4, alpha=8, num_examples=10)
    return Posterior(randomise(Program(network, chosen, CausalLM(60))).eval())


@functools.cache
def base() -> nn.Module:
    """The network of all fits, made once: its weights are drawn from the random state of whoever makes it."""
    return tiny_bert().double()


def fit(method: Any = "monteclora", **settings: Any) -> Posterior:
    settings = {"rank": 2, "epochs": 2, "learning_rate": 1e-2, "progress": False} | settings
    return bayeslora.fit(base(), tokens(), method, **settings)


def arguments(folder: Path, **settings: Any) -> TrainingArguments:
    quiet = {"report_to": [], "disable_tqdm": True, "save_strategy": "no", "dataloader_pin_memory": False}
    return TrainingArguments(str(folder), **quiet, **settings)


def arrays(result: Any) -> list[np.ndarray]:
    """All numbers of a result."""
    if isinstance(result, torch.Tensor):
        return [result.detach().numpy()]
    if isinstance(result, dict):
        return [array for name in sorted(result) for array in arrays(result[name])]
    if isinstance(result, Posterior):
        history = result.history
        learned = dict(result.program.trainable())
        return [history.to_numpy(float), *arrays(learned), np.array(result.temperature)]
    if isinstance(result, nn.Module):
        return arrays(dict(result.state_dict()))
    if dataclasses.is_dataclass(result):
        values = [getattr(result, field.name) for field in dataclasses.fields(result)]
        return [value for value in values if isinstance(value, np.ndarray)]
    if hasattr(result, "log_likelihood"):  # arviz groups
        return [result.posterior[name].to_numpy() for name in sorted(result.posterior.data_vars)]
    return [np.asarray(result)]


def same(one: Any, other: Any) -> bool:
    pairs = zip(arrays(one), arrays(other), strict=True)
    return all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in pairs)


def mixed_calls() -> dict[str, Callable[[], Any]]:
    """Calls on four posteriors, two of them over networks of the same weights."""
    inputs, labels = tokens(12)
    data = (inputs, labels)
    first, second, text = untrained(), untrained("blob"), writer()
    flat = fit("laplace", epochs=1, prior_precision=1.0)
    prompts = [[5, 9, 21, 8], [7, 30], [11, 12, 13]]
    return {
        "draws": lambda: first.predict(inputs, num_draws=4, seed=1),
        "other draws": lambda: second.predict(inputs, num_draws=3, seed=2),
        "draws on one": lambda: second.predict(inputs, num_draws=2, seed=3, batch_size=5),
        "centre": lambda: first.predict(inputs, center=True),
        "other centre": lambda: second.predict(inputs, center=True),
        "scores": lambda: second.evaluate(data, num_draws=3),
        "sites": lambda: first.draw(4, seed=5),
        "linear": lambda: flat.predict(inputs, num_draws=4),
        "linear scores": lambda: flat.evaluate(data, num_draws=4),
        "calibrated": lambda: first.calibrate(data, num_draws=3),
        "arviz": lambda: first.to_arviz(data, num_draws=4),
        "merged": lambda: second.merge(),
        "texts": lambda: text.generate(prompts, num_draws=2, max_new_tokens=4, do_sample=True, seed=4),
        "one text": lambda: text.generate(prompts, num_draws=2, average=True, max_new_tokens=4, do_sample=True),
        "token probabilities": lambda: text.predict({"input_ids": inputs["input_ids"], "labels": inputs["input_ids"]}),
    }


def in_threads(calls: dict[str, Callable[[], Any]], num_threads: int, num_calls: int) -> tuple[int, list[str]]:
    """How many calls in threads were right, and what was wrong with the others."""
    expected = {name: call() for name, call in calls.items()}
    start, right, wrong = threading.Barrier(num_threads), [], []

    def work(thread: int) -> None:
        order = random.Random(thread)
        names = [order.choice(list(calls)) for _ in range(num_calls)]
        start.wait()
        for name in names:
            try:
                (right if same(calls[name](), expected[name]) else wrong).append(name)
            except Exception as error:
                wrong.append(f"{name}: {error!r}")

    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(work, range(num_threads)))
    return len(right), wrong


# Threads


def test_calls_in_threads_give_what_serial_calls_give() -> None:
    right, wrong = in_threads(mixed_calls(), num_threads=8, num_calls=8)
    assert (right, wrong) == (8 * 8, [])


def test_fits_in_threads_give_what_serial_fits_give() -> None:
    fits: list[Callable[[], Posterior]] = [
        lambda: fit("monteclora", seed=1, validation=tokens(20, seed=1)),
        lambda: fit("blob", seed=2, batch_size=8),
    ]
    expected = [each() for each in fits]
    with ThreadPoolExecutor(2) as pool:
        fitted = list(pool.map(lambda each: each(), fits))
    assert [same(*pair) for pair in zip(fitted, expected, strict=True)] == [True, True]


class StopOn(TrainerCallback):
    """Ends a run at the step at which an event has come about, and says when the run has begun."""

    def __init__(self, event: threading.Event, begun: threading.Event | None = None):
        self.event = event
        self.begun = begun or threading.Event()
        self.steps = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.begun.set()

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.steps = state.global_step
        control.should_training_stop = self.event.is_set()


class StopAfter(TrainerCallback):
    """Ends a run after a number of steps."""

    def __init__(self, steps: int):
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        control.should_training_stop = state.global_step >= self.steps


@pytest.mark.parametrize("accumulation", [1, 2])
def test_predictions_are_served_while_a_fit_goes_on(accumulation: int, tmp_path: Path) -> None:
    fitted, (inputs, _) = untrained(), tokens(12)
    expected = [fitted.predict(inputs, num_draws=3, seed=seed) for seed in range(5)]

    def long() -> TrainingArguments:
        return arguments(tmp_path, num_train_epochs=10_000, gradient_accumulation_steps=accumulation)

    served = StopOn(threading.Event())
    with ThreadPoolExecutor(1) as pool:
        fitting = pool.submit(fit, args=long(), callbacks=[served])
        assert served.begun.wait(PATIENCE)
        served_predictions = [fitted.predict(inputs, num_draws=3, seed=seed) for seed in range(5)]
        assert not fitting.done()
        served.event.set()
        result = fitting.result(PATIENCE)
    assert all(same(*pair) for pair in zip(served_predictions, expected, strict=True))
    assert served.steps < 1000
    assert same(result, fit(args=long(), callbacks=[StopAfter(served.steps)]))


def test_predictions_are_served_while_a_method_goes_over_the_data() -> None:
    fitted, (inputs, _) = untrained(), tokens(12)
    expected = fitted.predict(inputs, num_draws=3)
    begun, served = threading.Event(), threading.Event()

    @dataclasses.dataclass(frozen=True)
    class Reader(bayeslora.methods.LoRA):
        name = "reader"

        def refine(self, program: Any, guide: nn.Module, train: Any, validation: Any) -> nn.Module:
            for _ in range(10_000):
                for _ in train:
                    begun.set()
                if served.is_set():
                    return guide
            raise AssertionError("The prediction had to wait.")

    with ThreadPoolExecutor(1) as pool:
        fitting = pool.submit(fit, Reader(), epochs=0)
        assert begun.wait(PATIENCE)
        prediction = fitted.predict(inputs, num_draws=3)
        served.set()
        fitting.result(PATIENCE)
    assert same(prediction, expected)


def test_a_loop_of_ones_own_in_another_thread_keeps_its_losses() -> None:
    fitted, program, (inputs, labels) = untrained(), untrained("blob").program.train(), tokens(12)
    stop = threading.Event()

    def losses() -> list[float]:
        return [program(**inputs, labels=labels).logits.sum().item() for _ in range(5)]

    def predict() -> None:
        while not stop.is_set():
            fitted.predict(inputs, num_draws=2)

    with seeded(3):
        expected = losses()
    with ThreadPoolExecutor(1) as pool:
        predicting, found = pool.submit(predict), []
        try:
            for _ in range(4):
                with exclusive(), seeded(3):
                    found.append(losses())
                program(**inputs, labels=labels).loss.backward()
        finally:
            stop.set()
        predicting.result(PATIENCE)
    assert found == [expected] * 4


def test_training_arguments_may_be_made_while_a_fit_goes_on(tmp_path: Path) -> None:
    class Make(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            arguments(tmp_path)

    assert same(fit(callbacks=[Make()]), fit())


def test_a_copy_is_not_made_in_the_middle_of_a_call() -> None:
    text, within = writer(), threading.Event()

    def wait(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        within.set()
        time.sleep(0.05)  # time for a copy of the network as it is now, with the hooks of its draws' average
        return scores

    def generate(posterior: Posterior, **settings: Any) -> Any:
        return posterior.generate([[5, 9, 21]], num_draws=2, average=True, max_new_tokens=4, **settings)

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(generate, text, logits_processor=[wait])
        assert within.wait(PATIENCE)
        other = copy.deepcopy(text)
        writing.result(PATIENCE)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in other.network.modules())
    assert same(generate(other), generate(text))


def test_one_process_trains_on_one_device(tmp_path: Path) -> None:
    several, one = (arguments(tmp_path, num_train_epochs=1) for _ in range(2))
    several._n_gpu = 2
    assert same(fit(args=several), fit(args=one))


# The caller's handlers


@contextlib.contextmanager
def both(*contexts: Any) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


@contextlib.contextmanager
def conversions() -> Iterator[None]:
    """Both ways in which PyTorch gives a module that is moved or cast other parameters."""
    setters = (
        torch.__future__.set_overwrite_module_params_on_conversion,
        torch.__future__.set_swap_module_params_on_conversion,
    )
    try:
        for setter in setters:
            setter(True)
        yield
    finally:
        for setter in setters:
            setter(False)


@contextlib.contextmanager
def coarse() -> Iterator[None]:
    """A coarse default type."""
    try:
        torch.set_default_dtype(torch.bfloat16)
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def settings_of_torch() -> list[Any]:
    """What is set for whatever PyTorch computes."""
    future = torch.__future__
    return [
        *(torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype()),
        *(torch.get_default_device(), torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()),
        *(future.get_overwrite_module_params_on_conversion(), future.get_swap_module_params_on_conversion()),
    ]


CONTEXTS: dict[str, Callable[[], Any]] = {
    "plate": lambda: pyro.plate("examples", 7),
    "plate to the left": lambda: pyro.plate("examples", 7, dim=-2),
    "scale": lambda: poutine.scale(scale=3.0),
    "mask": lambda: poutine.mask(mask=False),
    "trace": poutine.trace,
    "block": poutine.block,
    "condition": lambda: poutine.condition(data={"32x32.B": torch.ones(()), "labels": torch.ones(())}),
    "reparam": lambda: poutine.reparam(config=lambda site: None),
    "validation": lambda: pyro.validation_enabled(True),
    "no validation": lambda: pyro.validation_enabled(False),
    # Pyro's own context manager would set it to what Pyro's setting is.
    "no validation of PyTorch's": lambda: pyro.settings.context(validate_distributions_torch=False),
    "enumeration": lambda: poutine.enum(first_available_dim=-1),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "several": lambda: both(
        *(pyro.plate("examples", 7), poutine.scale(scale=2.0), poutine.trace(), conversions(), coarse()),
    ),
}


@pytest.fixture(scope="module")
def calls() -> dict[str, Callable[[], Any]]:
    inputs, labels = tokens(12)
    fitted, flat = untrained(), fit("laplace", epochs=1, prior_precision=1.0)
    return {
        "predict": lambda: fitted.predict(inputs, num_draws=3),
        "linear": lambda: flat.predict(inputs, num_draws=3),
        "evaluate": lambda: fitted.evaluate((inputs, labels), num_draws=3),
        "draw": lambda: fitted.draw(3),
        "to_arviz": lambda: fitted.to_arviz((inputs, labels), num_draws=3),
        "merge": fitted.merge,
        "fit": lambda: fit(epochs=1),
        "fit laplace": lambda: fit("laplace", epochs=1),
    }


@pytest.fixture(scope="module")
def results(calls: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    return {name: call() for name, call in calls.items()}


SHORT = ("predict", "linear", "draw")
"""Calls that take no time: in every context. The others, in one of each kind; in all by `make test-all`."""

OF_EACH_KIND = ("several", "condition", "enumeration", "no validation of PyTorch's", "inference_mode")


@pytest.mark.parametrize(
    ("context", "names"),
    [
        *(pytest.param(context, SHORT, id=context) for context in CONTEXTS if context not in OF_EACH_KIND),
        *(
            pytest.param(context, None, id=f"{context}, all", marks=() if context in OF_EACH_KIND else pytest.mark.slow)
            for context in CONTEXTS
        ),
    ],
)
def test_handlers_of_the_caller_change_nothing_and_see_nothing(
    context: str, names: tuple[str, ...] | None, calls: dict[str, Callable[[], Any]], results: dict[str, Any]
) -> None:
    with poutine.trace() as seen, CONTEXTS[context]():
        before = list(_PYRO_STACK), list(_DIM_ALLOCATOR._stack), pyro.settings.get(), settings_of_torch()
        different = [name for name in names or calls if not same(calls[name](), results[name])]
        assert (list(_PYRO_STACK), list(_DIM_ALLOCATOR._stack), pyro.settings.get(), settings_of_torch()) == before
        pyro.sample("own", dist.Normal(0.0, 1.0))
    assert different == []
    assert set(seen.trace.nodes) <= {"own", "examples", "_INPUT", "_RETURN"}


class Seeing(nn.Module):
    """A network that notes what is set during its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        SEEN.put((torch.is_autocast_enabled("cpu"), torch.get_default_dtype()))
        return self.head(self.body(x.to(self.body.weight.dtype)).tanh())


SEEN: queue.SimpleQueue[Any] = queue.SimpleQueue()
"""It belongs to more than a network: what passes keep elsewhere is put back."""


def seen() -> set[Any]:
    return {SEEN.get() for _ in range(SEEN.qsize())}


def test_passes_see_what_is_set_outside_and_autocast_keeps_no_weights() -> None:
    torch.manual_seed(0)
    network, x = Seeing(), torch.randn(8, 4)
    data, found = (x, torch.arange(8) % 3), []
    for cache in (True, False):  # which keeps what weights were cast to until the context ends
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cache):
            before = settings_of_torch()
            posterior = bayeslora.fit(network, data, "blob", rank=2, epochs=3, learning_rate=0.1, progress=False)
            assert settings_of_torch() == before
            found.append(posterior.predict(x, num_draws=3).draws)
            found.append(posterior.merge()(x).detach().float().numpy())
        assert seen() == {(True, torch.float32)}
    assert all(same(*pair) for pair in zip(found[:2], found[2:], strict=True))
    torch.set_default_dtype(torch.float16)
    try:
        expected = posterior.predict(x, num_draws=3).draws
        assert not same(expected, found[0])
        with torch.device("xla:0"):  # where nothing could be made; this network makes nothing
            assert same(posterior.predict(x, num_draws=3).draws, expected)
    finally:
        torch.set_default_dtype(torch.float32)
    assert seen() == {(False, torch.float16)}


def test_a_default_device_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr(torch, "get_default_device", absent)
    with pytest.raises(ValueError, match=r"default device is not there: Torch not compiled.*Leave it, torch\.set_def"):
        isolated()(print)()


def test_operations_may_be_counted() -> None:
    posterior, text, data = untrained("lora"), writer(), tokens(4)
    calls: list[Callable[[], Any]] = [
        *(lambda: posterior.predict(data[0]), lambda: posterior.evaluate(data), lambda: fit("tfb", epochs=1)),
        lambda: text.generate([[5, 9, 21]], center=True, max_new_tokens=2),
    ]
    for call in calls:
        expected = call()
        with FlopCounterMode(display=False) as counter:
            assert same(call(), expected)
        assert counter.get_total_flops() > 0


def test_a_mode_without_numbers_is_refused() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    posterior, (inputs, _) = untrained(), tokens(4)
    for mode in (FakeTensorMode(), FakeTensorMode(allow_non_fake_inputs=True)):
        with mode, pytest.raises(ValueError, match="A FakeTensorMode is active"):
            posterior.predict(inputs)


def test_enumeration_within_a_call_leaves_the_callers_dimensions() -> None:
    with poutine.enum(first_available_dim=-3):
        before = dict(vars(_ENUM_ALLOCATOR))
        with isolated(), poutine.enum(first_available_dim=-8):
            assert vars(_ENUM_ALLOCATOR) != before
        assert vars(_ENUM_ALLOCATOR) == before


def test_calls_within_a_program_are_not_part_of_it() -> None:
    fitted, (inputs, _) = untrained(), tokens(12)
    expected = fitted.predict(inputs, num_draws=3)

    def program() -> Any:
        with pyro.plate("examples", 12):
            pyro.sample("x", dist.Normal(0.0, 1.0))
            prediction = fitted.predict(inputs, num_draws=3)
            pyro.sample("y", dist.Normal(0.0, 1.0))
        return prediction

    trace = poutine.trace(program).get_trace()
    assert same(trace.nodes["_RETURN"]["value"], expected)
    assert [name for name, site in trace.nodes.items() if site["type"] == "sample"] == ["examples", "x", "y"]
    assert trace.nodes["y"]["value"].shape == (12,)


def test_a_program_in_another_thread_is_told_to_wait_its_turn() -> None:
    def program() -> torch.Tensor:
        return pyro.sample("x", dist.Normal(torch.zeros(3), 1.0))

    def alone() -> torch.Tensor:
        with exclusive():
            return poutine.trace(program).get_trace().nodes["x"]["value"]

    with ThreadPoolExecutor(1) as pool:
        with isolated(), poutine.trace() as ours:
            refused = pool.submit(program)
            with pytest.raises(RuntimeError, match=r"'x' ran while .*exclusive\(\)"):
                refused.result(PATIENCE)
            waiting = pool.submit(alone)
            with pytest.raises(TimeoutError):
                waiting.result(0.05)
            pyro.sample("y", dist.Normal(0.0, 1.0))
        assert waiting.result(PATIENCE).shape == (3,)
    assert [name for name, site in ours.trace.nodes.items() if site["type"] == "sample"] == ["y"]


# Random states


def states() -> list[Any]:
    """Random states of numpy and PyTorch; Python's moves on with every check of types, which looks at random items."""
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002
    return [numpy["state"]["key"].tolist(), numpy["state"]["pos"], torch.get_rng_state().tolist()]


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_a_seed_that_is_refused_leaves_random_states_alone(seed: int) -> None:
    before = random.getstate(), states()
    with pytest.raises((RuntimeError, ValueError), match="unpack"), seeded(seed):
        pass
    assert (random.getstate(), states()) == before


def test_without_a_seed_a_prediction_moves_the_callers_state_on_also_while_a_fit_goes_on() -> None:
    fitted, (inputs, _) = untrained(), tokens(12)
    base()  # or it would be made, and seed PyTorch, in the fit's thread

    def predictions() -> list[Any]:
        return [fitted.predict(inputs, num_draws=3, seed=None) for _ in range(5)]

    torch.manual_seed(5)
    expected, after = predictions(), states()
    assert not same(*expected[:2])
    torch.manual_seed(5)
    served = StopOn(threading.Event())
    with ThreadPoolExecutor(1) as pool:
        fitting = pool.submit(fit, epochs=10_000, callbacks=[served])
        assert served.begun.wait(PATIENCE)
        found = predictions()
        served.event.set()
        result = fitting.result(PATIENCE)
    assert all(same(*pair) for pair in zip(found, expected, strict=True))
    assert states() == after
    assert same(result, fit(epochs=10_000, callbacks=[StopAfter(served.steps)]))


# Turns


class Call(TrainerCallback):
    """Calls something at the end of every step."""

    def __init__(self, call: Callable[[], Any]):
        self.call = call
        self.results: list[Any] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.results.append(self.call())


def test_callbacks_may_predict_and_fit() -> None:
    fitted, (inputs, _) = untrained(), tokens(12)
    plain = fit("blob", epochs=1)
    predict, again = Call(lambda: fitted.predict(inputs, num_draws=3)), Call(lambda: fit("blob", epochs=1))
    assert same(fit(callbacks=[predict, again]), fit())
    assert all(same(result, fitted.predict(inputs, num_draws=3)) for result in predict.results)
    assert all(same(result, plain) for result in again.results)


def interrupt() -> None:
    raise KeyboardInterrupt


def in_another_thread(call: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result(PATIENCE)


def test_an_interrupted_fit_leaves_everything_to_others() -> None:
    fitted, (inputs, _) = untrained(), tokens(12)
    expected = fitted.predict(inputs, num_draws=3)
    with poutine.scale(scale=2.0):
        before, stack = states(), list(_PYRO_STACK)
        with pytest.raises(KeyboardInterrupt):
            fit(callbacks=[Call(interrupt)])
        assert (states(), list(_PYRO_STACK)) == (before, stack)
        assert same(in_another_thread(lambda: fitted.predict(inputs, num_draws=3)), expected)


def test_a_fit_that_is_interrupted_while_it_gives_way_has_its_turn_to_clear_up(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted, (inputs, _) = untrained(), tokens(12)
    expected = fitted.predict(inputs, num_draws=3)
    acquire, refusals = isolation._acquire, iter([KeyboardInterrupt])

    def interrupted() -> None:
        if threading.current_thread() is threading.main_thread() and isolation._waiting:
            for error in refusals:
                raise error
        acquire()

    begun = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        predicting = pool.submit(lambda: begun.wait(PATIENCE) and fitted.predict(inputs, num_draws=3))
        before = states()

        class Begin(TrainerCallback):
            def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
                monkeypatch.setattr(isolation, "_acquire", interrupted)
                begun.set()

        with pytest.raises(KeyboardInterrupt):
            fit(epochs=10_000, callbacks=[Begin()])
        assert same(predicting.result(PATIENCE), expected)
    assert states() == before
    assert isolation._turn is None
    assert same(in_another_thread(lambda: fitted.predict(inputs, num_draws=3)), expected)


def test_nothing_gives_way_within_another_call() -> None:
    entered = threading.Event()

    def enter() -> None:
        with exclusive():
            entered.set()

    with ThreadPoolExecutor(1) as pool:
        with exclusive():
            waiting = pool.submit(enter)
            until(lambda: isolation._waiting)
            with exclusive():
                isolation.give_way()
                assert not entered.is_set()
            isolation.give_way()
            assert entered.is_set()
        waiting.result(PATIENCE)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork is not available.")
@pytest.mark.parametrize("own", [True, False], ids=["within a call", "beside a call"])
def test_a_forked_process_has_its_own_turns(own: bool) -> None:
    fitted, (inputs, _) = untrained(), tokens(12)
    expected = fitted.predict(inputs, num_draws=3)
    before = states()

    def child() -> int:
        """0 where the child process predicts as its parent does, and has the random states that it should."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            torch.set_num_threads(1)  # OpenMP's other threads are not forked
            right = own or (states() == before and not _PYRO_STACK)
            os._exit(0 if right and same(fitted.predict(inputs, num_draws=3), expected) else 1)
        end = time.monotonic() + PATIENCE
        while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
            if time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        return ended[1]

    with exclusive(), seeded(7):
        assert (child() if own else in_another_thread(child)) == 0


READERS = {"summary", "record"}
"""Public methods of a posterior that run nothing, and draw nothing."""


def test_every_public_method_takes_its_turn() -> None:
    parts = [part for part in Posterior.__mro__ if part.__module__.startswith("bayeslora.posterior")]
    bodies = [ast.parse(textwrap.dedent(inspect.getsource(part))).body[0].body for part in parts]
    assert len(parts) > 1
    for node in itertools.chain(*bodies):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            decorators = {ast.unparse(each).partition("(")[0] for each in node.decorator_list}
            assert decorators & {"public", "property", "classmethod"} or node.name in READERS, (
                f"Decorate {node.name} @public()"
            )
