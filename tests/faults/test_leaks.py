"""What calls leave behind: nothing of the last step, no change of the caller's state, and nothing that grows."""

import gc
import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor, nn
from transformers import TrainerCallback

import bayeslora
from bayeslora import METHODS, Posterior
from bayeslora.watching import RECORDED
from tests.helpers import tiny_bert, tokens

pytestmark = pytest.mark.filterwarnings("ignore:.* stands here twice, because arviz")

DATA = tokens(8)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
HOOKS += ("_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")


def fit(model: nn.Module, method: str = "lora", **settings: Any) -> Posterior:
    return bayeslora.fit(
        model, DATA, method, **({"rank": 2, "epochs": 1, "batch_size": 8, "progress": False} | settings)
    )


def tensors() -> list[Tensor]:
    """All tensors of the process that Python can reach."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of objects that warn when they are asked for their class
        return [each for each in gc.get_objects() if issubclass(type(each), Tensor)]


def of_model(model: nn.Module) -> dict[str, Any]:
    """What a call could change of the model that it is given."""
    modules = dict(model.named_modules())
    return {
        "modules": {name: (id(module), type(module), module.training) for name, module in modules.items()},
        "hooks": {name: [len(getattr(module, kind)) for kind in HOOKS] for name, module in modules.items()},
        "tensors": {
            name: (
                id(value),
                value.dtype,
                value.device,
                value.requires_grad,
                value.grad,
                value.detach().clone().numpy(),
            )
            for name, value in model.state_dict(keep_vars=True).items()
        },
        "config": model.config.to_dict(),  # type: ignore[operator, union-attr]
    }


def of_process() -> dict[str, Any]:
    """What a call could change of the process that it runs in."""
    names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] in LOGGERS]
    loggers = {name: logging.getLogger(name) for name in [*names, *LOGGERS]} | {"": logging.getLogger()}
    return {
        "logging": {name: (each.level, list(each.handlers), each.disabled) for name, each in loggers.items()},
        "warnings": list(warnings.filters),
        # Not Python's own: the checks of types that run in the tests draw from it.
        "random": (np.random.get_state()[1:], torch.get_rng_state().numpy(), torch.initial_seed()),  # noqa: NPY002
        "torch": (
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.get_float32_matmul_precision(),
            torch.is_anomaly_enabled(),
        ),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "environment": dict(os.environ),
        "folder": os.getcwd(),
    }


LOGGERS = ("bayeslora", "transformers", "datasets", "accelerate", "peft", "pyro", "torch")


def assert_unchanged(before: dict[str, Any], after: dict[str, Any]) -> None:
    for what, was in before.items():
        np.testing.assert_equal(after[what], was, err_msg=what)


def open_files() -> int:
    return psutil.Process().num_fds() if hasattr(psutil.Process(), "num_fds") else psutil.Process().num_handles()


@pytest.fixture(scope="module", autouse=True)
def imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Libraries that are imported at their first use set up loggers and variables then, and make many objects."""
    posterior = fit(tiny_bert())
    posterior.evaluate(DATA, 2)
    posterior.to_arviz(DATA, 2)
    posterior.save(folder := tmp_path_factory.mktemp("imported"))
    bayeslora.load(folder, tiny_bert())
    del posterior
    gc.collect()
    gc.freeze()


@pytest.mark.parametrize("method", METHODS)
def test_calls_release_the_last_step_and_leave_the_callers_state(method: str, tmp_path: Path) -> None:
    model = tiny_bert().train()  # with modes of one's own
    model.bert.pooler.eval()  # type: ignore[union-attr, operator]
    of_before, was = of_model(model), of_process()
    posterior = fit(model, method)
    assert_unchanged(of_before, of_model(model))
    assert_unchanged(was, of_process())
    program = posterior.program

    def assert_released(call: str) -> None:
        network = program.network
        bound = [n for n in network.stacks for layer in network.layers(n) if layer.slot.factors is not None]
        assert not bound, f"{call} leaves factors bound to layers of {bound}"
        graphs = [tuple(value.shape) for value in tensors() if value.grad_fn is not None]
        assert not graphs, f"{call} leaves parts of a graph, of shapes {graphs}"
        assert not [name for name, parameter in program.named_parameters() if parameter.grad is not None]
        assert not any(module.training for module in program.modules())

    assert_released("fit")
    posterior.save(tmp_path)
    calls: dict[str, Callable[[], Any]] = {
        "predict": lambda: posterior.predict(DATA, 3),
        "evaluate": lambda: posterior.evaluate(DATA, 3),
        "to_arviz": lambda: posterior.to_arviz(DATA, 3),
        "load": lambda: bayeslora.load(tmp_path, model),
    }
    posterior.predict(DATA, 3)  # measures whether draws can be folded
    hooks = of_model(program.network.model)["hooks"]
    was = of_process()
    for name, call in calls.items():
        call()
        assert_released(name)
        assert of_model(program.network.model)["hooks"] == hooks
        assert_unchanged(of_before, of_model(model))
        assert_unchanged(was, of_process())


class Watch:
    """Samples what would grow if something was kept: the process's memory, tensors, open files, threads and hooks.

    Args:
        model: A model whose hooks are counted.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.counts: list[dict[str, int]] = []
        self.memory: list[int] = []

    def sample(self) -> None:
        hooks = of_model(self.model)["hooks"]
        self.counts.append(
            {
                "tensors": len(tensors()),
                "open files": open_files(),
                "threads": threading.active_count(),
                "hooks": sum(map(sum, hooks.values())),
            }
        )
        self.memory.append(psutil.Process().memory_info().rss)

    def assert_flat(self, times: int, most: float) -> None:
        """Nothing grows after the first half of the samples.

        Args:
            times: How often the work was done between the first and the last sample.
            most: Bytes by which the memory may grow each time: far less than what each time makes.
        """
        half = len(self.counts) // 2
        assert self.counts[half:] == [self.counts[half]] * len(self.counts[half:])
        at = np.linspace(0, times, len(self.memory))[half:]
        slope = float(np.polyfit(at, self.memory[half:], 1)[0])
        print(f"{slope:.0f} bytes each time")
        assert slope < most, f"memory grows by {slope:.0f} bytes each time: {self.memory}"


class AtSteps(TrainerCallback):
    """Calls a function every so many steps."""

    def __init__(self, call: Callable[[], None], every: int):
        self.call, self.every = call, every

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.global_step % self.every == 0:
            self.call()


LONG = pytest.mark.slow


@pytest.mark.parametrize("steps", [150, pytest.param(2000, marks=LONG)])
def test_steps_of_a_fit_keep_nothing(steps: int) -> None:
    model, batch = tiny_bert(), 8
    watch = Watch(model)
    assert RECORDED == 50
    fit(model, epochs=steps, batch_size=batch, callbacks=[AtSteps(watch.sample, RECORDED)])
    assert len(watch.counts) == steps // RECORDED
    watch.assert_flat(steps, most=1000 if steps > 150 else 20_000)


@pytest.mark.parametrize("predictions", [60, pytest.param(2000, marks=LONG)])
def test_predictions_keep_nothing(predictions: int) -> None:
    posterior = fit(tiny_bert(), "monteclora")
    watch = Watch(posterior.network.model)
    for index in range(predictions):
        posterior.predict(DATA, 4, seed=index)
        if index % (predictions // 10) == 0:
            watch.sample()
    watch.assert_flat(predictions, most=1000 if predictions > 60 else 20_000)


@pytest.mark.parametrize("rounds", [8, pytest.param(100, marks=LONG)])
def test_rounds_of_fit_save_and_load_keep_nothing(rounds: int, tmp_path: Path) -> None:
    model = tiny_bert()
    watch = Watch(model)
    for _ in range(rounds):
        fit(model, "monteclora", output_dir=tmp_path).save(tmp_path / "own")
        bayeslora.load(tmp_path / "own", model).predict(DATA, 4)
        watch.sample()
    watch.assert_flat(rounds, most=50_000 if rounds > 8 else 1_000_000)
