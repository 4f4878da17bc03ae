"""What is known of a run: whatever its result depends on, so that no stored one is taken for another's."""

import copy
import functools
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from bayeslora import hashing
from bayeslora.methods import AutoGuide, BLoB
from bayeslora.study import runs
from bayeslora.study.store import Store
from bayeslora.tasks import Observation
from tests.helpers import tiny_bert
from tests.study.networks import DATA, TEST, network

TEXTS = np.array(["a"] * 2000, dtype=object)


class Scaled(nn.Module):
    """A network whose attributes, its function and a buffer that is not saved say what it computes."""

    def __init__(self, factor: float = 1.0, act: Any = torch.tanh, shift: float = 0.0):
        super().__init__()
        self.inner, self.factor, self.act = network(), factor, act
        self.register_buffer("shift", torch.tensor(shift), persistent=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.act(self.inner(input)) * self.factor + self.shift


class Own(BLoB):
    """A method of the user's own."""

    def after_step(self, program: Any, step: int) -> None:
        """Do one thing."""
        program.step = step


class Other(BLoB):
    """The same, edited."""

    __qualname__ = "Own"

    def after_step(self, program: Any, step: int) -> None:
        """Do one thing."""
        program.step = step + 1


class RowByRow(torch.utils.data.Dataset):
    """Rows that are computed one by one."""

    def __init__(self, changed: int | None = None):
        self.changed = changed

    def __len__(self) -> int:
        return 50

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"input": DATA[0][row] + (row == self.changed), "labels": int(DATA[1][row])}


def edited(name: str) -> Callable[[Any], Any]:
    return {"a": lambda logits: logits * 2, "b": lambda logits: logits * 3}[name]


PAIRS: dict[str, tuple[Any, Any]] = {
    "attribute": ({"model": Scaled()}, {"model": Scaled(2.0)}),
    "function": ({"model": Scaled()}, {"model": Scaled(act=torch.relu)}),
    "buffer": ({"model": Scaled()}, {"model": Scaled(shift=1.0)}),
    "code": ({"model": Scaled(act=edited("a"))}, {"model": Scaled(act=edited("b"))}),
    "configuration": ({"model": tiny_bert()}, {"model": tiny_bert(hidden_act="relu")}),
    "row": ({"data": RowByRow()}, {"data": RowByRow(7)}),
    "texts": ({"data": TEXTS}, {"data": np.append(TEXTS[1:], "b")}),
    "image": ({"data": [Image.new("L", (2, 2))]}, {"data": [Image.new("L", (2, 2), 1)]}),
    "likelihood": ({"likelihood": Observation(edited("a"))}, {"likelihood": Observation(edited("b"))}),
    "partial": ({"likelihood": partial(edited, "a")}, {"likelihood": partial(edited, "b")}),
    "method": ({"method": AutoGuide(prior_program=edited("a"))}, {"method": AutoGuide(prior_program=edited("b"))}),
    "class": ({"method": Own()}, {"method": Other()}),
}


@pytest.mark.parametrize("name", PAIRS)
def test_whatever_a_run_depends_on_is_in_its_record(name: str) -> None:
    def record(given: Any) -> Any:
        setting = runs.Setting(given.get("model", "name"), given.get("data"), None).record()
        settings = {name: value for name, value in given.items() if name == "likelihood"}
        return [setting, runs.Task(("a",), (False,), given.get("method", BLoB()), settings, 0).record()]

    first, second = PAIRS[name]
    assert record(first) == record(first) == record(copy.deepcopy(first))
    assert record(first) != record(second)


@pytest.mark.slow
def test_hashes_are_the_same_in_every_process() -> None:
    value = "[{'b', 'a', 'c'}, {3: frozenset({'x', 'y'})}, lambda x, y=2: {x, 'z'}, range(3), object()]"
    code = f"import runpy; print(runpy.run_path({hashing.__file__!r})['hashed']({value}))"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    again = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert again.stdout.strip() == hashing.hashed(eval(value))


def test_functions_may_refer_to_each_other_without_end() -> None:
    def chained(last: Callable[[], Any]) -> Callable[[], Any]:
        def link() -> Any:
            return last()

        return link

    def chain(first: Callable[[], Any]) -> Callable[[], Any]:
        return functools.reduce(lambda last, _: chained(last), range(3000), first)

    assert hashing.hashed(chain(lambda: 1)) == hashing.hashed(chain(lambda: 1))
    assert hashing.hashed(chain(lambda: 1)) != hashing.hashed(chain(lambda: 2))


@pytest.mark.parametrize(
    ("folder", "installed"),
    [("home/.local/lib/python3.11/site-packages", True), ("usr/lib/python3/dist-packages", True), ("home/work", False)],
)
def test_what_is_installed_is_known_by_its_name_wherever_it_is(
    folder: str, installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's and a system's packages lie in other folders than an environment's."""

    def record(code: str) -> str:
        library = ModuleType(f"library in {folder}")
        library.__file__ = f"/{folder}/library.py"
        exec(code, vars(library))
        monkeypatch.setitem(sys.modules, library.__name__, library)
        return hashing.hashed(library.act)

    assert (record("def act(x): return x") == record("def act(x): return -x")) == installed


def test_a_folder_of_a_model_is_known_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = runs.model_record(str(tmp_path))
    assert runs.model_record(tmp_path) == before
    (tmp_path / "config.json").write_text("{ }")
    assert runs.model_record(tmp_path) != before


def test_the_version_is_in_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = runs.Setting(network(), DATA, TEST)
    Store(tmp_path, setting.record())
    monkeypatch.setattr("bayeslora.__version__", "9.9")
    with pytest.raises(ValueError, match=r"another study: version '[\d.]+', now '9\.9'"):
        Store(tmp_path, setting.record())
