"""Fits that are killed, interrupted or diverge, and what goes on from there."""

import errno
import itertools
import json
import logging
import os
import pickle
import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset
from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments

import bayeslora
from bayeslora import checkpoints, claiming, stopping, storage
from bayeslora.failing import NotSavedError
from bayeslora.posterior import Posterior
from bayeslora.trainer import DivergedError
from tests.faults import processes

LONG = pytest.mark.slow

Learned = tuple[dict[str, Tensor], dict[str, list[float]]]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.1), nn.Linear(4, 4), nn.Linear(4, 2))


def rows(num_examples: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    x = torch.randn(num_examples, 3, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, 0] > 0).long()


def fit(folder: Path | None, method: str = "monteclora", data: Any = None, **settings: Any) -> Posterior:
    """A fit of six steps, with a checkpoint after every three."""
    settings = {"rank": 1, "epochs": 2, "batch_size": 4, "learning_rate": 0.01, "progress": False} | settings
    if method == "monteclora":
        settings.setdefault("components", 2)
    return bayeslora.fit(network(), rows() if data is None else data, method, output_dir=folder, **settings)


def learned(posterior: Posterior) -> Learned:
    return storage.state(posterior.program), posterior.history.to_dict("list")


def resumed(folder: Path, **settings: Any) -> Learned:
    return learned(fit(folder, resume=True, **settings))


def assert_same(one: Learned, other: Learned) -> None:
    assert one[0].keys() == other[0].keys()
    assert all(torch.equal(one[0][name], value) for name, value in other[0].items())
    assert one[1].keys() == other[1].keys()
    assert all(np.array_equal(one[1][name], column, equal_nan=True) for name, column in other[1].items())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Learned:
    """What a fit that nothing interrupts learns, read back from where it was saved."""
    folder = tmp_path_factory.mktemp("whole")
    posterior = fit(folder, validation=rows(seed=1))
    result = learned(bayeslora.load(folder, network()))
    assert_same(result, learned(posterior))
    return result


def job(folder: Path) -> Learned:
    """A fit as it is started by whoever has to reckon with being killed."""
    return resumed(folder, validation=rows(seed=1))


class Stop(Exception):
    """What a test stops a fit with."""


class Raise(TrainerCallback):
    """Raises an exception between a step and the next."""

    def __init__(self, step: int, error: BaseException):
        self.step, self.error = step, error

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.global_step == self.step:
            raise self.error


# Killed


def operations_of(work: Callable[[Path], Any], folder: Path) -> int:
    count = processes.count_operations(partial(work, folder))
    shutil.rmtree(folder)
    return count


def check_killed(work: Callable[[Path], Any], folder: Path, operation: int, whole: Learned) -> None:
    """A fit killed at an operation goes on to what it would have been, and leaves only whole posteriors."""
    processes.kill_at(partial(work, folder), operation)
    for found in (folder, *checkpoints.in_order(folder)):
        if (found / storage.MANIFEST).exists():
            bayeslora.load(found, network())
    assert_same(processes.run(partial(job, folder)), whole)
    assert_same(learned(bayeslora.load(folder, network())), whole)
    shutil.rmtree(folder)


def test_a_fit_killed_at_operations_all_over_it_resumes_to_the_same_bits(whole: Learned, tmp_path: Path) -> None:
    count = operations_of(job, tmp_path / "out")
    for operation in np.unique(np.linspace(0, count - 1, 6).round()).astype(int).tolist():
        check_killed(job, tmp_path / "out", operation, whole)


@pytest.mark.slow
def test_a_fit_killed_at_any_operation_resumes_to_the_same_bits(whole: Learned, tmp_path: Path) -> None:
    for operation in range(operations_of(job, tmp_path / "out")):
        check_killed(job, tmp_path / "out", operation, whole)


@pytest.mark.slow
def test_a_resumed_fit_killed_at_any_operation_resumes_to_the_same_bits(whole: Learned, tmp_path: Path) -> None:
    start = tmp_path / "start"
    with pytest.raises(Stop):
        fit(start, validation=rows(seed=1), callbacks=[Raise(5, Stop())])
    assert [path.name for path in checkpoints.in_order(start)] == ["checkpoint-3"]

    def work(folder: Path) -> None:
        job(folder)

    shutil.copytree(start, tmp_path / "out")
    count = operations_of(work, tmp_path / "out")
    for operation in range(count):
        shutil.copytree(start, tmp_path / "out")
        check_killed(work, tmp_path / "out", operation, whole)


@pytest.mark.slow
def test_a_fit_that_removes_older_checkpoints_killed_at_any_operation_resumes(tmp_path: Path) -> None:
    def work(folder: Path) -> Learned:
        args = TrainingArguments(
            str(folder),
            num_train_epochs=1,
            per_device_train_batch_size=4,
            save_strategy="steps",
            save_steps=1,
            save_total_limit=1,
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        return resumed(folder, args=args)

    out = tmp_path / "out"
    whole = processes.run(partial(work, out))
    assert [path.name for path in checkpoints.in_order(out)] == ["checkpoint-3"]
    shutil.rmtree(out)
    count, after_first = operations_of(work, out), 0
    for operation in range(count):
        processes.kill_at(partial(work, out), operation)
        whole_ones = [path for path in checkpoints.in_order(out) if checkpoints.missing(path) == []]
        after_first += bool(whole_ones)
        assert whole_ones or not after_first, "the only whole checkpoint was removed"
        assert_same(processes.run(partial(work, out)), whole)
        shutil.rmtree(out)
    assert after_first > count / 2


@pytest.mark.slow
def test_a_fit_killed_at_any_time_resumes_to_the_same_bits(whole: Learned, tmp_path: Path) -> None:
    chance = random.Random(0)
    start = time.perf_counter()
    processes.run(partial(job, tmp_path / "timed"))
    lasts = time.perf_counter() - start
    out, kills = tmp_path / "out", 0
    while kills < 200:
        # A job that is killed again and again, as on a machine that is lent.
        while processes.kill_after(partial(job, out), chance.uniform(0, 1.2 * lasts)):
            kills += 1
        assert_same(learned(bayeslora.load(out, network())), whole)
        shutil.rmtree(out)


@pytest.mark.parametrize("method", ["lora", "laplace", "swag", "deep_ensemble"])
def test_a_fit_killed_after_its_last_checkpoint_gives_the_same_bits(tmp_path: Path, method: str) -> None:
    settings: dict[str, Any] = {"method": method, "validation": rows(seed=1)}
    expected = learned(fit(tmp_path / "whole", **settings))
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "cut" / storage.MANIFEST).unlink()
    assert_same(resumed(tmp_path / "cut", **settings), expected)


# The best, and stopping early


class Worse(TrainerCallback):
    """Lets every evaluation be worse than the one before."""

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **others: Any) -> None:
        metrics["eval_loss"] = float(state.global_step)


def stopping_job(folder: Path, resume: bool | str = True, **settings: Any) -> Learned:
    """A fit that gets worse from its second epoch on, is stopped after two more, and ends with the best."""
    settings = {"epochs": 9, "validation": rows(seed=1), "resume": resume} | settings
    callbacks = [Worse(), EarlyStoppingCallback(2), *settings.pop("callbacks", ())]
    return learned(fit(folder, callbacks=callbacks, **settings))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Learned]:
    folder = tmp_path_factory.mktemp("stopped")
    return folder, stopping_job(folder)


@pytest.mark.parametrize("left", [3, 6, 9])
def test_a_fit_that_stops_early_resumes_to_the_same_bits(
    stopped: tuple[Path, Learned], tmp_path: Path, left: int
) -> None:
    """From after each of its epochs, the last of which is the one that it stops after."""
    whole = stopped[1]
    assert len(whole[1]["step"]) == 9
    out = Path(shutil.copytree(stopped[0], tmp_path / "elsewhere"))  # where the best has another path
    (out / storage.MANIFEST).unlink()
    for checkpoint in checkpoints.in_order(out):
        if checkpoints.step(checkpoint) > left:
            shutil.rmtree(checkpoint)
    assert_same(stopping_job(out), whole)


def test_a_best_checkpoint_that_is_gone_is_said_before_training(
    stopped: tuple[Path, Learned], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = Path(shutil.copytree(stopped[0], tmp_path / "out"))
    shutil.rmtree(out / "checkpoint-3")
    with pytest.raises(checkpoints.Unresumable, match="checkpoint-9: the best so far, checkpoint-3, is not there, or"):
        stopping_job(out)
    stopping_job(out, "anyway")
    assert "checkpoint-9 anyway: the best so far, checkpoint-3, is not there, or not whole." in caplog.text


# Several fits


def cross_fit(folder: Path | None, method: str = "lora", **settings: Any) -> Posterior:
    """Two members of two steps each, and a refit, with a checkpoint after each epoch."""
    few = {"folds": 2, "refit": True, "epochs": 1, "batch_size": 3, "data": rows(8)}
    return fit(folder, method, **few | settings)


def cross_job(folder: Path) -> Learned:
    return learned(cross_fit(folder, resume=True))


@pytest.fixture(scope="module")
def crossed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Learned]:
    folder = tmp_path_factory.mktemp("crossed")
    posterior = cross_fit(folder)
    assert_same(learned(bayeslora.load(folder, network())), learned(posterior))
    return folder, learned(posterior)


@pytest.mark.parametrize("moments", [3, pytest.param(None, marks=pytest.mark.slow)])
def test_a_killed_cross_fit_resumes_to_the_same_bits(
    crossed: tuple[Path, Learned], tmp_path: Path, moments: int | None
) -> None:
    out = tmp_path / "out"
    count = operations_of(cross_job, out)
    for operation in range(count) if moments is None else np.linspace(1, count - 1, moments).astype(int).tolist():
        processes.kill_at(partial(cross_job, out), operation)
        assert_same(processes.run(partial(cross_job, out)), crossed[1])
        assert_same(learned(bayeslora.load(out, network())), crossed[1])
        shutil.rmtree(out)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"folds": 4}, "folds 2, now 4"),
        ({"refit": False}, "refit True, now False"),
        ({"seed": 1}, "seed 0, now 1"),
        ({"data": rows(8, seed=1)}, "rows of data '[0-9a-f]{16}', now '"),
        ({"method": "bitfit"}, "method 'lora', now 'bitfit'"),
        ({"folds": None, "refit": None}, "folds 2, now None"),
        ({"method": "mc_dropout", "p": "auto", "folds": None, "refit": None, "validation": rows(8)}, "method 'lora'"),
    ],
)
def test_several_fits_resume_as_what_they_are(
    crossed: tuple[Path, Learned], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=rf"Cannot resume in .*it holds another fit \(.*{message}"):
        cross_fit(crossed[0], **settings, resume=True)


def test_one_fit_does_not_resume_as_several(ended: Path) -> None:
    with pytest.raises(ValueError, match=r"it holds another fit \(folds None, now 2\)"):
        cross_fit(ended, resume=True)


def test_new_fits_move_all_that_earlier_ones_have_left(crossed: tuple[Path, Learned], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(crossed[0], out)
    other = learned(cross_fit(tmp_path / "other", seed=1))
    with pytest.raises(Stop):
        cross_fit(out, seed=1, callbacks=[Raise(1, Stop())])  # in its first member: none of the second is left
    assert {path.name for path in (out / "earlier-1").iterdir()} == {"fold-0", "fold-1", "refit", "several.json"}
    assert_same(learned(cross_fit(out, seed=1, resume=True)), other)
    fit(out)
    assert not (out / "several.json").exists()
    assert_same(cross_job(out / "earlier-1"), crossed[1])


# Which checkpoint


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """The folder of a fit that has two whole checkpoints, after steps 3 and 6, and ended."""
    fit(tmp_path / "out", validation=rows(seed=1))
    return tmp_path / "out"


def spoil(checkpoint: Path, how: str) -> None:
    if how == "not complete":
        (checkpoint / checkpoints.COMPLETE).unlink()
    elif how == "no state of the Trainer":
        (checkpoint / "trainer_state.json").unlink()
    elif how == "half an optimizer":
        path = checkpoint / "optimizer.pt"
        path.write_bytes(path.read_bytes()[:100])
    elif how == "a bit of the optimizer":
        path = checkpoint / "optimizer.pt"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif how == "no tensors":
        next(checkpoint.glob("posterior-*")).unlink()
    else:
        (checkpoint / checkpoints.COMPLETE).write_text("{")


@pytest.mark.parametrize(
    "how",
    [
        "not complete",
        "no state of the Trainer",
        "half an optimizer",
        "a bit of the optimizer",
        "no tensors",
        "half a record",
    ],
)
def test_the_newest_whole_checkpoint_is_taken_and_the_others_are_named(
    finished: Path, whole: Learned, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(finished / "checkpoint-6", how)
    with caplog.at_level(logging.INFO, "bayeslora"):
        assert_same(job(finished), whole)
    assert f"Passed over in {finished}, as their writing or removing was interrupted, or a file " in caplog.text
    assert "changed: checkpoint-6." in caplog.text
    assert f"Resuming from {finished / 'checkpoint-3'}." in caplog.text
    assert checkpoints.missing(finished / "checkpoint-6") == []


ODD: dict[str, Callable[[Path], Any]] = {
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a link": lambda path: path.symlink_to(path.parents[2] / "outside" / "optimizer.pt"),
    "a link to nowhere": lambda path: path.symlink_to("nowhere"),
}


@pytest.mark.parametrize("name", ["optimizer.pt", checkpoints.COMPLETE, storage.MANIFEST])
@pytest.mark.parametrize("kind", ODD)
def test_what_stands_in_the_place_of_a_checkpoints_files_is_neither_read_nor_written_to(
    finished: Path, whole: Learned, name: str, kind: str
) -> None:
    outside = finished.parent / "outside"
    outside.mkdir()
    (outside / "optimizer.pt").write_text("mine")
    checkpoint = finished / "checkpoint-6"
    (checkpoint / name).unlink()
    ODD[kind](checkpoint / name)
    if name == "optimizer.pt":  # its size, as somebody else's record has it
        record = json.loads((checkpoint / checkpoints.COMPLETE).read_text())
        record["files"][name] = os.stat(checkpoint / name).st_size if (checkpoint / name).exists() else 0
        (checkpoint / checkpoints.COMPLETE).write_text(json.dumps(record))
    assert_same(job(finished), whole)
    assert (outside / "optimizer.pt").read_text() == "mine"
    assert checkpoints.missing(checkpoint, reads=True) == []


def test_a_checkpoint_that_is_a_link_is_replaced_and_not_written_to(finished: Path, whole: Learned) -> None:
    outside = (finished / "checkpoint-6").rename(finished.parent / "outside")
    (finished / "checkpoint-6").symlink_to(outside)
    spoil(outside, "not complete")
    there = sorted(outside.iterdir())
    assert_same(job(finished), whole)
    assert sorted(outside.iterdir()) == there
    assert checkpoints.missing(finished / "checkpoint-6") == []
    assert not (finished / "checkpoint-6").is_symlink()


def test_where_no_checkpoint_is_whole_the_fit_starts_anew(
    finished: Path, whole: Learned, caplog: pytest.LogCaptureFixture
) -> None:
    for checkpoint in checkpoints.in_order(finished):
        spoil(checkpoint, "not complete")
    with caplog.at_level(logging.INFO, "bayeslora"):
        assert_same(job(finished), whole)
    assert "or a file changed: checkpoint-6, checkpoint-3." in caplog.text
    assert "Resuming from the start: there is no whole checkpoint yet." in caplog.text
    assert [path.name for path in checkpoints.in_order(finished / "earlier-1")] == ["checkpoint-6", "checkpoint-3"]


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_state_that_is_missing_is_refused_or_warned_of(
    finished: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(finished / "checkpoint-6")
    (finished / "checkpoint-3" / name).unlink()
    with pytest.raises(ValueError, match=rf"checkpoint-3: it has no {name}, without which the fit will not be what"):
        job(finished)
    posterior = fit(finished, validation=rows(seed=1), resume="anyway")
    assert posterior.history["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert f"anyway: it has no {name}, without which the fit will not be what it would have been." in caplog.text


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("optimizer.pt", {"state": {}}, "a state in it lacks 'param_groups'"),
        ("optimizer.pt", [1], "list indices must be integers"),
        ("optimizer.pt", {"state": Stop}, "a state in it holds more than numbers, which could run code"),
        ("scheduler.pt", {}, "a state in it lacks 'lr_lambdas'"),
        ("rng_state.pth", {}, "a state in it lacks 'python'"),
        ("rng_state.pth", torch.zeros(3), "too many indices for tensor"),
        ("optimizer.pt", b"", "a state in it ends too early"),
        ("optimizer.pt", slice(0, -7), ""),
        ("trainer_state.json", {"epoch": 1.0}, "its trainer_state.json is of step None"),
        ("trainer_state.json", b"{", "its trainer_state.json cannot be read"),
        (
            "trainer_state.json",
            {"global_step": 3, "best_model_checkpoint": 2.5},
            "its trainer_state.json has best_model_checkpoint=2.5",
        ),
    ],
)
def test_states_that_somebody_else_wrote_are_refused_of_the_checkpoint(
    tmp_path: Path, file: str, content: Any, message: str
) -> None:
    with pytest.raises(Stop):
        fit(tmp_path, callbacks=[Raise(5, Stop())])
    path = tmp_path / "checkpoint-3" / file
    written = path.read_bytes()
    path.unlink()
    if isinstance(content, bytes | slice):
        path.write_bytes(content if isinstance(content, bytes) else written[content])
    elif file.endswith(".json"):
        path.write_text(json.dumps(content))
    else:
        torch.save(content, path)
    checkpoints.complete(path.parent, json.loads((path.parent / checkpoints.COMPLETE).read_text())["fit"])
    with pytest.raises(checkpoints.Unresumable, match=rf"^Cannot resume from {path.parent}: {re.escape(message)}"):
        fit(tmp_path, resume=True)


def edit(checkpoint: Path, file: str, change: Callable[[Any], Any]) -> None:
    """Change a state in a checkpoint, and sign the checkpoint anew."""
    path = checkpoint / file
    if file.endswith(".json"):
        path.write_text(json.dumps(change(json.loads(path.read_text()))))
    else:
        torch.save(change(torch.load(path, weights_only=True)), path)
    checkpoints.complete(checkpoint, json.loads((checkpoint / checkpoints.COMPLETE).read_text())["fit"])


def without(name: str) -> Callable[[Any], Any]:
    return lambda state: {key: value for key, value in state.items() if key != name}


def grouped(**changes: Any) -> Callable[[Any], Any]:
    return lambda state: state | {"param_groups": [group | changes for group in state["param_groups"]]}


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("scheduler.pt", without("last_epoch"), "its schedule is of step 0"),
        ("scheduler.pt", lambda state: state | {"last_epoch": 1}, "its schedule is of step 1"),
        ("scheduler.pt", lambda state: state | {"base_lrs": [9.0] * 2}, "its schedule has base_lrs=[9.0, 9.0], and"),
        ("scheduler.pt", without("_last_lr"), "its schedule has the rates [0.01, 0.01], where"),
        ("scheduler.pt", lambda state: state | {"_last_lr": [0.1] * 2}, "its schedule has the rates [0.1, 0.1], where"),
        ("optimizer.pt", grouped(lr=9.0), "its optimizer has the rates [9.0, 9.0], where"),
        ("optimizer.pt", grouped(betas=(0.1, 0.2)), "its optimizer has betas=(0.1, 0.2), and this fit's has (0.9, 0."),
        (
            "trainer_state.json",
            lambda state: state | {"a": 1},
            "its trainer_state.json has 'a', which the Trainer",
        ),
        ("trainer_state.json", lambda state: state | {"train_batch_size": 0.5}, "json has train_batch_size=0.5"),
        ("trainer_state.json", lambda state: state | {"log_history": 3}, "its trainer_state.json has log_history=3"),
    ],
)
def test_states_of_another_fit_are_refused_by_name(
    tmp_path: Path, file: str, change: Callable[[Any], Any], message: str
) -> None:
    with pytest.raises(Stop):
        fit(tmp_path, callbacks=[Raise(5, Stop())])
    edit(tmp_path / "checkpoint-3", file, change)
    with pytest.raises(checkpoints.Unresumable, match=rf"^Cannot resume from .*checkpoint-3: .*{re.escape(message)}"):
        fit(tmp_path, resume=True)


def test_when_to_save_and_to_log_is_not_the_checkpoints_to_say(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        fit(tmp_path, callbacks=[Raise(5, Stop())])
    odd = {"save_steps": 0, "logging_steps": 0, "eval_steps": "a", "max_steps": -1, "train_batch_size": 9}
    edit(tmp_path / "checkpoint-3", "trainer_state.json", lambda state: state | odd)
    assert_same(resumed(tmp_path), learned(fit(None)))


def test_checkpoints_without_states_are_refused(tmp_path: Path) -> None:
    args = TrainingArguments(
        str(tmp_path),
        max_steps=2,
        save_steps=1,
        save_only_model=True,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    fit(tmp_path, args=args)
    with pytest.raises(ValueError, match=r"it has no scheduler\.pt, rng_state\.pth, optimizer\.pt, without which"):
        fit(tmp_path, args=args, resume=True)


# Of which fit


class Rows(Dataset):
    """Rows that are computed one by one."""

    def __init__(self, data: tuple[Tensor, Tensor], noise: float = 0.0):
        self.data, self.noise = data, noise

    def __len__(self) -> int:
        return len(self.data[1])

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = (column[index] for column in self.data)
        return x + self.noise * torch.randn(3), y


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "seed": ({"seed": 1}, "seed 0, now 1"),
    "epochs": ({"epochs": 1}, r"epochs 2(\.0)?, now 1"),
    "batch size": ({"batch_size": 6}, "batch_size 4, now 6"),
    "learning rate": ({"learning_rate": 0.1}, "learning_rate 0.01, now 0.1"),
    "particles": ({"num_particles": 2}, "num_particles 1, now 2"),
    "method": ({"method": "lora"}, "method 'monteclora', now 'lora'"),
    "a field": ({"components": 3}, "components 2, now 3"),
    "likelihood": (
        {"likelihood": "multilabel", "data": (rows()[0], torch.eye(2)[rows()[1]])},
        "likelihood 'classification', now 'multilabel'",
    ),
    "rank": ({"rank": 2}, "rank 1, now 2"),
    "alpha": ({"alpha": 8}, "alpha 16.0, now 8.0"),
    "targets": ({"targets": ["0"]}, r"targets 2 entries with '2', now 1 entries"),
    "fewer examples": ({"data": rows(8)}, "examples of data 12, now 8"),
    "other rows": ({"data": (rows()[0].flip(0), rows()[1])}, "rows of data '[0-9a-f]{16}', now '[0-9a-f]{16}'"),
    "other labels": ({"data": (rows()[0], 1 - rows()[1])}, "all labels of data '[0-9a-f]{16}', now '[0-9a-f]{16}'"),
    "other columns": (
        {"data": Rows(tuple(c.double() if c.is_floating_point() else c.int() for c in rows()))},
        "columns of data {'input': 'float32, 1 dimensions', 'labels': .*}, now {'input': 'float64",
    ),
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ended")
    fit(folder)
    return folder


@pytest.mark.parametrize("change", CHANGES)
def test_a_checkpoint_of_another_fit_is_refused_with_both_values(ended: Path, change: str) -> None:
    settings, message = CHANGES[change]
    with pytest.raises(ValueError, match=r"it is a checkpoint of another fit \(.*" + message):
        fit(ended, **{**settings, "resume": True})


@pytest.mark.parametrize("change", ["seed", "epochs", "learning rate", "other rows"])
def test_anyway_goes_on_with_another_fit(
    ended: Path, tmp_path: Path, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(ended, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "checkpoint-6")
    settings, _ = CHANGES[change]
    posterior = fit(tmp_path / "out", **{**settings, "resume": "anyway"})
    steps = 3 if change == "epochs" else 6
    assert posterior.history["step"].tolist() == [*range(1, steps + 1)]
    assert "anyway: it is a checkpoint of another fit" in caplog.text


def test_anyway_cannot_put_a_state_into_other_layers(ended: Path) -> None:
    with pytest.raises(ValueError, match=r"Cannot resume from .*has to be of"):
        fit(ended, rank=2, resume="anyway")


@pytest.mark.parametrize(("field", "value"), [("lr_scheduler_kwargs", {"num_cycles": 2}), ("optim_args", "a=1")])
def test_what_schedulers_and_optimisers_are_told_is_part_of_a_fit(field: str, value: Any) -> None:
    posterior = Posterior(fit(None, epochs=0).program).record()
    source = bayeslora.data.Source(rows(), network())
    plain, told = (
        checkpoints.fit_record(posterior, source, None, TrainingArguments(report_to=[], **given))
        for given in ({}, {field: value})
    )
    assert checkpoints.differences(plain, told) == [f"{field} None, now {value!r}"]


def changed(change: str) -> nn.Module:
    """The same network but for one thing, which no few numbers of its weights show."""
    made = network()
    with torch.no_grad():
        if change == "one weight":
            made[2].weight[1, 2] += 0.5
        elif change == "all weights":
            made[0].weight += 1
        elif change == "dropout":
            made[1].p = 0.5
        elif change == "double":
            made = made.double()
        else:
            made[3].weight += 0.5  # the head, which the checkpoint brings
    return made


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("all weights", "weights of the base model '[0-9a-f]{16}', now"),
        ("one weight", "weights of the base model '[0-9a-f]{16}', now"),
        ("dropout", "modules of the base model '[0-9a-f]{16}', now"),
        ("double", r"number type of the base model 1 entries with 'float32', now 1 entries with 'float64'"),
        ("head", None),
    ],
)
def test_another_base_is_refused(ended: Path, change: str, message: str | None) -> None:
    settings: dict[str, Any] = {"components": 2, "rank": 1, "epochs": 2, "batch_size": 4, "learning_rate": 0.01}
    settings |= {"progress": False, "output_dir": ended, "resume": True}
    data = tuple(column.double() if change == "double" and column.is_floating_point() else column for column in rows())
    if message is None:
        assert_same(learned(bayeslora.fit(changed(change), data, "monteclora", **settings)), learned(fit(None)))
    else:
        with pytest.raises(ValueError, match=r"it is a checkpoint of another fit \(.*" + message):
            bayeslora.fit(changed(change), data, "monteclora", **settings)
    if change == "all weights":
        with pytest.raises(ValueError, match=r"Cannot resume from .*belongs to another base model"):
            bayeslora.fit(changed(change), data, "monteclora", **settings | {"resume": "anyway"})


def test_a_checkpoint_is_of_the_adapters_it_started_from(tmp_path: Path) -> None:
    first, second = fit(None, "lora", epochs=1), fit(None, "lora", epochs=1, seed=1)
    first.save(tmp_path / "first")
    fit(tmp_path / "out", "lora", init=first)
    assert_same(
        resumed(tmp_path / "out", method="lora", init=tmp_path / "first"), learned(fit(None, "lora", init=first))
    )
    for init, now in ((second, "'[0-9a-f]{16}'"), (None, "None")):
        with pytest.raises(
            ValueError, match=rf"it is a checkpoint of another fit \(init '[0-9a-f]{{16}}', now {now}\)"
        ):
            fit(tmp_path / "out", "lora", init=init, resume=True)


def test_resume_is_true_false_or_anyway(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="resume='yes': give True or False, or 'anyway'"):
        fit(tmp_path, resume="yes")


class Stream(IterableDataset):
    """The same rows, in their order."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(zip(*rows(), strict=True))


def loader() -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(Rows(rows()), batch_size=4, shuffle=True)


FORMS: dict[str, Callable[[], dict[str, Any]]] = {
    "a dataset": lambda: {"data": Rows(rows())},
    "random rows": lambda: {"data": Rows(rows(), noise=0.1)},
    "a loader": lambda: {"data": loader()},
    "a stream": lambda: {"data": Stream(), "num_examples": 12},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_data_is_known_again(tmp_path: Path, form: str) -> None:
    def settings() -> dict[str, Any]:
        return FORMS[form]()

    expected = learned(fit(tmp_path / "whole", **settings()))
    with pytest.raises(Stop):
        fit(tmp_path / "cut", **settings(), callbacks=[Raise(4, Stop())])
    assert_same(resumed(tmp_path / "cut", **settings()), expected)


def test_the_same_data_in_another_form_is_the_same(ended: Path) -> None:
    assert_same(resumed(ended, data=Rows(rows())), learned(bayeslora.load(ended, network())))


def test_other_rows_of_a_dataset_are_noticed(tmp_path: Path) -> None:
    fit(tmp_path, data=Rows(rows()))
    with pytest.raises(ValueError, match=r"another fit \(rows of data"):
        fit(tmp_path, data=Rows(rows(seed=3)), resume=True)


def test_a_new_fit_moves_the_checkpoints_of_an_earlier_one(
    finished: Path, whole: Learned, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "bayeslora"):
        fit(finished, seed=1, validation=rows(seed=1))
    earlier = finished / "earlier-1"
    assert f"in {finished} (checkpoint-6, checkpoint-3) are now in {earlier}." in caplog.text
    assert [path.name for path in checkpoints.in_order(earlier)] == ["checkpoint-6", "checkpoint-3"]
    fit(finished, seed=2, validation=rows(seed=1))
    assert (finished / "earlier-2" / "checkpoint-6").is_dir()
    # They can still be gone on with.
    shutil.rmtree(earlier / "checkpoint-6")
    assert_same(job(earlier), whole)


# Several at once


def test_two_fits_do_not_share_a_folder(tmp_path: Path) -> None:
    """A second one, of another process or of this one's, is refused while the first is at work; kills leave it free."""
    said: list[str] = []

    class Second(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if state.global_step == 1:
                for run in (processes.run, lambda work: work()):
                    with pytest.raises((ValueError, processes.Failed)) as raised:
                        run(lambda: fit(tmp_path, seed=1))
                    said.append(str(raised.value))

    fit(tmp_path, callbacks=[Second()])
    assert "a fit of another process is at work in it" in said[0]
    assert "a fit of another thread is at work in it" in said[1]
    assert not (tmp_path / claiming.LOCK).exists()
    (tmp_path / claiming.LOCK).touch()
    assert fit(tmp_path, epochs=0).state is None


def test_refusals_leave_no_file_open(tmp_path: Path) -> None:
    def lowest() -> int:
        os.close(handle := os.open(tmp_path, os.O_RDONLY))
        return handle

    with claiming.claimed(tmp_path):
        before = lowest()
        with pytest.raises(ValueError, match="another thread"), claiming.claimed(tmp_path):
            pass
        assert lowest() == before
    with claiming.claimed(tmp_path):
        pass


def test_files_that_the_system_numbers_anew_each_time_are_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = itertools.count()
    monkeypatch.setattr(claiming, "_key", lambda file: (0, 0, next(numbers)))
    with claiming.claimed(tmp_path):
        pass


def test_a_callback_that_goes_elsewhere_does_not_move_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Goes(TrainerCallback):
        def on_train_begin(self, *args: Any, **others: Any) -> None:
            os.chdir(tmp_path / "elsewhere")

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    fit(Path("out"), epochs=1, callbacks=[Goes()])
    assert {path.name for path in tmp_path.iterdir()} == {"elsewhere", "out"}
    assert [path.name for path in checkpoints.in_order(tmp_path / "out")] == ["checkpoint-3"]
    assert not [*(tmp_path / "elsewhere").iterdir()]


# Interrupted and diverged


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (KeyboardInterrupt(), "interrupted at step 5 of 6"),
        (Stop("out of memory"), "interrupted by Stop at step 5 of 6"),
    ],
)
def test_an_interrupted_fit_is_saved_as_what_it_is(
    tmp_path: Path, error: BaseException, state: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(type(error)) as raised:
        fit(tmp_path, callbacks=[Raise(5, error)])
    assert raised.value.__notes__ == [f"The posterior, {state}, is saved in {tmp_path}."]
    caplog.clear()
    posterior = bayeslora.load(tmp_path, network())
    assert f"The posterior in {tmp_path} is of a fit that was not finished: {state}." in caplog.text
    assert posterior.state == state
    assert posterior.calibrate(rows()).state == state
    assert posterior.history["step"].tolist() == [1, 2, 3, 4, 5]
    start = learned(fit(None, epochs=0))[0]
    assert any(not torch.equal(value, start[name]) for name, value in learned(posterior)[0].items())
    # It goes on from its checkpoint, to a posterior that is finished.
    assert_same(resumed(tmp_path), learned(fit(None)))
    assert bayeslora.load(tmp_path, network()).state is None


class Tell(TrainerCallback):
    """Sends this process a signal after a step."""

    def __init__(self, step: int, number: int):
        self.step, self.number = step, number

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), self.number)


def heard(folder: Path | None, number: int, callbacks: list[TrainerCallback]) -> tuple[str, Any]:
    """What a fit that a signal comes in ends by, with the handler after it; for a process of its own."""
    try:
        fit(folder, callbacks=[Tell(5, number), *callbacks])
        ended = "by itself"
    except BaseException as error:
        ended = f"by {type(error).__name__} {getattr(error, 'code', '')}"
    return ended, signal.getsignal(number)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(n, marks=pytest.mark.slow) for n in stopping.SIGNALS[1:])]
)
def test_a_fit_that_is_told_to_end_is_saved_as_one_that_is_interrupted(number: int, tmp_path: Path) -> None:
    """The signal comes a second time while the posterior is saved."""

    def work() -> tuple[str, Any]:
        signal.signal(number, signal.SIG_DFL)  # under nohup, SIGHUP is ignored
        save = Posterior.save

        def told_again(posterior: Posterior, folder: Path) -> None:
            if posterior.state is not None:
                os.kill(os.getpid(), number)
            save(posterior, folder)

        with patch.object(Posterior, "save", told_again):
            return heard(tmp_path, number, [])

    assert processes.run(work) == (f"by Terminated {128 + number}", signal.SIG_DFL)
    name = signal.Signals(number).name
    assert bayeslora.load(tmp_path, network()).state == f"interrupted by {name} at step 5 of 6"


def test_what_ended_a_fit_can_be_told_to_another_process() -> None:
    ended = pickle.loads(pickle.dumps(stopping.Terminated(signal.SIGTERM)))
    assert (ended.signal, ended.code) == ("SIGTERM", 128 + signal.SIGTERM)


def test_signals_that_somebody_else_handles_are_left_to_them(tmp_path: Path) -> None:
    def handled() -> tuple[str, Any]:
        told: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
        ended, after = heard(tmp_path / "own", signal.SIGTERM, [])
        after(0, None)
        return ended, told

    def threaded() -> Any:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(fit, tmp_path / "thread").result().state

    assert processes.run(handled) == ("by itself", [signal.SIGTERM, 0])
    assert processes.run(threaded) is None
    # There is nothing to save here: the signal ends the process, as everywhere.
    pid, pipe = processes.fork(lambda: heard(None, signal.SIGTERM, []))
    os.close(pipe)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGTERM


def test_a_finished_posterior_does_not_give_way_to_an_unfinished_one(tmp_path: Path) -> None:
    expected = learned(fit(tmp_path))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt) as raised:
            fit(tmp_path, seed=1, callbacks=[Raise(5, KeyboardInterrupt())])
        assert f"saved in {tmp_path / 'unfinished'}." in raised.value.__notes__[0]
        assert_same(learned(bayeslora.load(tmp_path, network())), expected)
        assert bayeslora.load(tmp_path / "unfinished", network()).state == "interrupted at step 5 of 6"


def test_nothing_is_saved_where_nothing_was_learned_or_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "out", callbacks=[Raise(1, KeyboardInterrupt())])
    assert not (tmp_path / "out" / storage.MANIFEST).exists()
    with pytest.raises(KeyboardInterrupt):
        fit(None, callbacks=[Raise(5, KeyboardInterrupt())])
    assert {path.name for path in tmp_path.iterdir()} <= {"out"}


def overflowing() -> tuple[Tensor, Tensor]:
    x, y = rows()
    x[:] = x[:1]
    x[5] = 3e38  # finite, so that it passes the check of the inputs
    return x, y


def in_order(folder: Path, **settings: Any) -> TrainingArguments:
    settings = {"num_train_epochs": 1, "save_strategy": "no", "learning_rate": 0.01} | settings
    return TrainingArguments(
        str(folder),
        per_device_train_batch_size=1,
        train_sampling_strategy="sequential",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **settings,
    )


def in_two(folder: Path) -> TrainingArguments:
    """Batches of two, which batch normalisation needs."""
    args = in_order(folder)
    args.per_device_train_batch_size = 2
    return args


def test_a_diverged_fit_is_saved_as_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"Training stopped at step 6 ") as raised:
        fit(tmp_path, data=overflowing(), args=in_order(tmp_path))
    assert raised.value.__notes__ == [f"The posterior, diverged at step 6 of 12, is saved in {tmp_path}."]
    posterior = bayeslora.load(tmp_path, network())
    assert posterior.state == "diverged at step 6 of 12"
    assert_same(learned(posterior), learned(raised.value.posterior))
    assert np.isfinite(posterior.predict(rows()[0]).probs).all()


class Ready(nn.Module):
    """Two layers of which batch normalisation is a part of the head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(3, 4)
        self.classifier = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.body(x))


def test_running_statistics_are_those_of_the_last_good_state(tmp_path: Path) -> None:
    x, y = rows()
    x[5] = 3e38
    model = Ready()
    with torch.no_grad():
        model.body.weight.fill_(1.0)  # the sum of three of them overflows
    args = in_two(tmp_path)
    with pytest.raises(DivergedError) as raised:
        bayeslora.fit(model, (x, y), "lora", rank=1, targets=["body"], args=args)
    state = storage.state(raised.value.posterior.program)
    assert any(name.endswith("running_var") for name in state)
    assert all(bool(value.isfinite().all()) for value in state.values() if value.is_floating_point())


class Runaway(nn.Module):
    """A network whose outputs, and with them the loss, are as large as its inputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.classifier = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.body(x))


@pytest.mark.parametrize(("size", "stops"), [(1e12, True), (1e5, False)])
def test_a_loss_that_runs_away_is_noticed_though_it_is_finite(tmp_path: Path, size: float, stops: bool) -> None:
    x, y = rows()
    y[5] = Runaway()(x[5]).argmin()
    x[5] *= size
    settings: dict[str, Any] = {"rank": 1, "args": in_order(tmp_path, max_grad_norm=1e-9)}
    if not stops:
        bayeslora.fit(Runaway(), (x, y), "lora", **settings)
        return
    message = r"stopped at step 6 .*the loss is [\d.e+]+, from [\d.]+ at the start.*Lower the learning rate"
    with pytest.raises(DivergedError, match=message):
        bayeslora.fit(Runaway(), (x, y), "lora", **settings)


def test_an_elbo_that_runs_away_downwards_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bayeslora.program import Output, Program

    forward, calls = Program.forward, []

    def falling(self: Program, **batch: Any) -> Output:
        output = forward(self, **batch)
        calls.append(0)
        return Output(output.loss - (1e24 if len(calls) == 4 else 0), output.logits)

    monkeypatch.setattr(Program, "forward", falling)
    with pytest.raises(DivergedError, match=r"stopped at step 4 .*the loss is -1e\+24, from [\d.]+ at the start"):
        fit(tmp_path)


def test_a_last_step_that_spoils_the_posterior_is_noticed(tmp_path: Path) -> None:
    class Spoil(TrainerCallback):
        def on_optimizer_step(
            self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **others: Any
        ) -> None:
            if state.global_step == 5:
                with torch.no_grad():
                    optimizer.param_groups[0]["params"][0].fill_(torch.nan)

    with pytest.raises(DivergedError, match=r"The last step, 6, made learned parameters NaN") as raised:
        fit(tmp_path, callbacks=[Spoil()])
    assert bayeslora.load(tmp_path, network()).state == "diverged at step 6 of 6"
    assert np.isfinite(raised.value.posterior.predict(rows()[0]).probs).all()


def test_weights_that_are_nan_are_found_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bayeslora.trainer.ProgramTrainer.train", lambda *_, **__: pytest.fail("training started"))
    model = network()
    with torch.no_grad():
        model[0].weight[1, 2] = torch.nan
    with pytest.raises(ValueError, match=r"1 of the model's 6 parameters are NaN in places \('0\.weight'\)"):
        bayeslora.fit(model, rows(), "lora", rank=1)


def test_inputs_that_are_nan_are_named_and_the_learning_rate_is_not() -> None:
    x, y = rows()
    x[5] = torch.nan
    with pytest.raises(ValueError, match=r"'input' is NaN or infinite in 1 row\(s\), the first is row 5\.") as raised:
        fit(None, data=Rows((x, y)))
    assert "learning rate" not in str(raised.value)


def test_the_first_loss_is_not_blamed_on_the_learning_rate(tmp_path: Path) -> None:
    class Spoil(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
            with torch.no_grad():
                model.network.model[-1].weight.fill_(3e38)

    with pytest.raises(DivergedError, match=r"at step 1 .*No step was made before it, so it is not the learning rate"):
        fit(tmp_path, callbacks=[Spoil()])


# A full disk


def test_a_checkpoint_that_does_not_fit_the_disk_is_one_sentence(tmp_path: Path) -> None:
    import resource

    out = tmp_path / "out"
    messages = []
    for limit in (0, 2000, 6000):

        def work(limit: int = limit) -> str:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

            class Fill(TrainerCallback):
                def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
                    if state.global_step == 5:
                        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

            with pytest.raises(NotSavedError) as error:
                fit(out, callbacks=[Fill()])
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            return str(error.value)

        messages.append(processes.run(work))
        assert [path.name for path in checkpoints.in_order(out)] == ["checkpoint-3"]
        assert_same(resumed(out), learned(fit(None)))
        shutil.rmtree(out)
    for message in messages:
        assert "\n" not in message
        assert " could not be written: " in message
        assert str(out / "checkpoint-6") in message


def test_a_fit_that_cannot_be_saved_at_its_end_is_in_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = Posterior.save

    def full(self: Posterior, folder: Any) -> None:
        if Path(folder) == tmp_path:
            raise NotSavedError("No space left on device")
        save(self, folder)

    monkeypatch.setattr(Posterior, "save", full)
    with pytest.raises(NotSavedError, match="resume=True goes on from the last checkpoint") as error:
        fit(tmp_path)
    monkeypatch.undo()
    assert_same(learned(error.value.posterior), learned(fit(None)))
    assert_same(resumed(tmp_path), learned(fit(None)))


def test_earlier_checkpoints_that_cannot_be_moved_or_removed_are_said_or_stay(
    ended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(ended, tmp_path / "out"))

    def refused(*args: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", refused)
        with pytest.raises(NotSavedError, match=r"cannot be moved to earlier-1 in it: Operation not permitted\. Give"):
            fit(out)
    assert not (out / "earlier-1").exists()
    monkeypatch.setattr(checkpoints, "remove", refused)
    checkpoints.rotate(out, 1, None)
    assert [path.name for path in checkpoints.in_order(out)] == ["checkpoint-6", "checkpoint-3"]


@pytest.mark.parametrize(("name", "make"), [("checkpoint-7", Path.touch), (storage.MANIFEST, Path.mkdir)])
def test_what_stands_where_a_fit_writes_is_found_before_it(name: str, make: Any, tmp_path: Path) -> None:
    make(tmp_path / name)
    kind = "file" if make is Path.touch else "folder"
    with pytest.raises(NotSavedError, match=rf"has a {kind} called '{name}', and a fit writes .* move it away"):
        bayeslora.fit(network(), "nowhere.csv", output_dir=tmp_path)


def test_the_marker_of_a_checkpoint_is_plain_json(ended: Path) -> None:
    record = json.loads((ended / "checkpoint-3" / checkpoints.COMPLETE).read_text())
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", storage.MANIFEST} <= {
        *record["files"]
    }
    assert record["fit"]["seed"] == 0
    assert os.path.getsize(ended / "checkpoint-3" / checkpoints.COMPLETE) < 10_000
