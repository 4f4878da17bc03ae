"""PEFT folders of strangers: read, or refused in a sentence; no pattern, link or number of theirs does any harm."""

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bayeslora.interop import from_peft_folder
from bayeslora.interop.peft_files import CONFIG, WEIGHTS, Patterns
from bayeslora.serving import AdapterEnsemble
from tests.helpers import tiny_bert

SLOW = "(([a-z.0-9]+)+)+[^a-z.0-9]"
"""A pattern that takes Python's own engine years for a name of a layer."""


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["query", "value"], task_type="SEQ_CLS")
    peft.get_peft_model(tiny_bert(), config).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "adapter"))


def read(folder: Path) -> Any:
    """Read an adapter, and let PEFT build it."""
    found = from_peft_folder(folder, tiny_bert())
    assert found.reference is not None
    return found, found.reference()


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / CONFIG).read_text())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 0}, "r=0: give a whole number of at least 1."),
        ({"r": True}, "r=True: give a whole number"),
        ({"r": 2.0}, "r=2.0: give a whole number"),
        ({"lora_alpha": 1e300}, "lora_alpha=1e+300: give a number of at least"),
        ({"lora_dropout": 7}, "lora_dropout=7: give a number of at least 0 and at most 1."),
        ({"use_rslora": "yes"}, "use_rslora='yes': give True or False"),
        ({"fan_in_fan_out": "x"}, "fan_in_fan_out='x': give True or False"),
        ({"target_modules": [1, 2]}, "target_modules=[1, 2]: give text"),
        ({"target_modules": 3}, "target_modules=3: give text"),
        ({"modules_to_save": 3}, "modules_to_save=3: give"),
        ({"modules_to_save": [SLOW]}, "in its modules_to_save: give names of modules."),
        ({"layers_pattern": [SLOW], "layers_to_transform": [0]}, "in its layers_pattern: give names of modules."),
        ({"base_model_name_or_path": 3}, "base_model_name_or_path=3: give text"),
        ({"task_type": ["EVIL"]}, "task_type=['EVIL']: give text"),
        ({"rank_pattern": {"query": 10**30}}, "rank_pattern={'query': 1"),
        (
            {"rank_pattern": {f"(a{number})": 2 for number in range(2000)}},
            "more than 1000 patterns in its rank_pattern",
        ),
        ({"alpha_pattern": {"(": 2}}, "'(' in its alpha_pattern, which is not a regular expression"),
    ],
)
def test_fields_that_do_not_fit_are_named(folder: Path, settings: dict[str, Any], message: str) -> None:
    (folder / CONFIG).write_text(json.dumps(config_of(folder) | settings))
    with pytest.raises(ValueError, match=re.escape(message)):
        read(folder)


def test_no_pattern_of_theirs_takes_long(folder: Path) -> None:
    config = config_of(folder)
    for field in ("rank_pattern", "alpha_pattern"):
        (folder / CONFIG).write_text(json.dumps(config | {field: {SLOW: 2, **{f"a{n}": 3 for n in range(2_000)}}}))
        found, built = read(folder)
        assert set(found.ranks.values()) == {2}
        assert built is not None
    (folder / CONFIG).write_text(json.dumps(config | {"exclude_modules": SLOW, "target_modules": r".*\.(query|value)"}))
    assert sum("lora_A" in name for name, _ in read(folder)[1].named_parameters()) == 4
    patterns = Patterns("field", {"(x+x+)+y": 1})
    patterns.left = 0.0  # as after a name that has taken all the time
    with pytest.raises(ValueError, match=r"'\(x\+x\+\)\+y' in its field, which takes too long to match"):
        patterns.of("x")


def test_patterns_mean_what_they_mean_to_peft() -> None:
    from peft.utils.other import get_pattern_key

    written = {r"layer\.0\.query": 1, "^a.query": 2, "query": 3, r"b\..*": 4, "a-b": 5, "v.*e": 6, "query2": 7}
    patterns = Patterns("field", written)
    for name in (
        "x.layer.0.query",
        "layer.0.query",
        "a.query",
        "c.a.query",
        "b.c",
        "x.a-b",
        "value",
        "xquery",
        "query",
    ):
        assert patterns.of(name) == written.get(get_pattern_key(list(written), name)), name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 10**5, "nested too deeply"),
        ('{"a":' * 10**5, "nested too deeply"),
        ("[" + "[]," * 10**5 + "0]", "too many values"),
        ('{"r": 9, "r": 2}', "an entry stands twice"),
        ('{"r": NaN}', "it holds NaN"),
        (f'{{"a": "{"x" * 2**20}"}}', "larger than 1 MiB"),
        ("null", "it is None"),
    ],
)
def test_a_configuration_that_is_no_mapping_of_json(folder: Path, text: str, message: str) -> None:
    (folder / CONFIG).write_text(text)
    with pytest.raises(ValueError, match=rf"^{CONFIG} in .* is not a configuration of PEFT's: .*{message}"):
        read(folder)


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
@pytest.mark.parametrize("kind", ["a link", "a link that leads to itself", "a pipe", "a folder", "a device"])
def test_files_are_plain_ones(folder: Path, file: str, kind: str) -> None:
    path = folder / file
    aside = path.rename(folder.parent / file)
    if kind == "a link that leads to itself":
        path.symlink_to(path)
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    else:
        path.symlink_to(aside if kind == "a link" else "/dev/zero")
    with pytest.raises(ValueError, match=rf"^{file} in .*: it is {'a link' if kind == 'a device' else kind}"):
        read(folder)


TENSORS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "NaN": (lambda value: value * torch.nan, "holds numbers that are not finite"),
    "beyond belief": (lambda value: value * 0 + 1e37, "holds numbers that are not finite, or beyond belief"),
    "whole": (lambda value: value.long(), r"is of type torch\.int64"),
    "complex": (lambda value: value.to(torch.complex64), r"is of type torch\.complex64"),
    "eight bits": (lambda value: value.to(torch.float8_e4m3fn), r"is of type torch\.float8_e4m3fn"),
    "no rank": (lambda value: value[:0], "its weights there have rank 0"),
    "wide": (lambda value: torch.cat([value, value], 1), r"from 64 to 32 features, and the layer .* \(32, 32\)"),
    "a number": (lambda value: value.sum(), "its weights there have rank 0"),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_that_are_none_of_an_adapter(folder: Path, kind: str) -> None:
    state = {name: value.clone() for name, value in load_file(folder / WEIGHTS).items()}
    name = next(name for name in state if "lora_A" in name)
    change, message = TENSORS[kind]
    state[name] = change(state[name])
    save_file(state, folder / WEIGHTS)
    with pytest.raises(ValueError, match=message):
        read(folder)


@pytest.mark.parametrize(("factor", "other"), [("lora_A", "B"), ("lora_B", "A")])
def test_a_layer_without_one_of_its_factors_is_named(folder: Path, factor: str, other: str) -> None:
    state = load_file(folder / WEIGHTS)
    del state[next(name for name in state if factor in name)]
    save_file(state, folder / WEIGHTS)
    with pytest.raises(ValueError, match=rf"^Layer 'bert\..*' of the PEFT adapter has {other}; LowRank has A, B in"):
        read(folder)


@pytest.mark.parametrize("ranks", [1, 4])
def test_both_factors_have_one_rank(folder: Path, ranks: int) -> None:
    state = load_file(folder / WEIGHTS)
    name = next(name for name in state if "lora_B" in name)
    save_file(state | {name: torch.zeros(len(state[name]), ranks)}, folder / WEIGHTS)
    with pytest.raises(ValueError, match=rf"has an A of rank 2 and a B of rank {ranks}: it is damaged"):
        from_peft_folder(folder, tiny_bert())


def test_magnitudes_are_one_for_each_feature(tmp_path: Path) -> None:
    config = peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS", use_dora=True)
    peft.get_peft_model(tiny_bert(), config).save_pretrained(tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    name = next(name for name in state if "magnitude" in name)
    save_file(state | {name: torch.ones(64)}, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=r"has magnitudes of shape \(64,\) for 32 features: it is damaged"):
        from_peft_folder(tmp_path, tiny_bert())


@pytest.mark.parametrize("settings", [{"layers_pattern": ["layer"]}, {"task_type": "OTHER"}])
def test_what_peft_does_not_take_is_said_of_the_folder(folder: Path, settings: dict[str, Any]) -> None:
    (folder / CONFIG).write_text(json.dumps(config_of(folder) | settings))
    with pytest.raises(ValueError, match=rf"^PEFT cannot read the adapter in {re.escape(str(folder))}: .*[^.]\.$"):
        read(folder)


@pytest.mark.parametrize("prefix", ["", "base_model.model."])
def test_names_that_mean_the_same_are_refused(folder: Path, prefix: str) -> None:
    state = load_file(folder / WEIGHTS)
    name = next(name for name in state if "lora_A" in name)
    other = prefix + name.removeprefix("base_model.model.").replace(
        "lora_A.", "lora_A.default." if prefix else "lora_A."
    )
    save_file(state | {other: state[name] + 1}, folder / WEIGHTS)
    with pytest.raises(ValueError, match="twice, by another spelling"):
        read(folder)


class Attack:
    """What a pickle can do."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(self.path),)


@pytest.mark.parametrize("instead", [True, False])
def test_pickles_beside_are_not_opened(folder: Path, tmp_path: Path, instead: bool) -> None:
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Attack(str(tmp_path / "canary"))))
    if instead:
        (folder / WEIGHTS).unlink()
        with pytest.raises(ValueError, match=r"adapter_model\.bin, a pickle, which can run code"):
            read(folder)
    else:
        read(folder)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"draws": ["draw-0", "draw-0"], "temperature": 1}', "stands twice"),
        ('{"draws": ["draw-0"], "temperature": 0}', "not a positive number"),
        ('{"draws": ["draw-0"], "temperature": Infinity}', "not a positive number"),
        ('{"draws": ["draw-1"], "temperature": 1}', "names 'draw-1', which is not a draw"),
        ("[" * 10**5, "nested too deeply"),
    ],
)
def test_served_draws_are_a_strangers_too(pristine: Path, tmp_path: Path, content: str, message: str) -> None:
    shutil.copytree(pristine, tmp_path / "draw-0")
    (tmp_path / "draw-1").symlink_to(tmp_path / "draw-0")
    (tmp_path / "draws.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        AdapterEnsemble.from_folder(tiny_bert(), tmp_path)


def test_served_draws_are_read_as_adapters_are(pristine: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pristine, tmp_path / "draw-0"))
    (folder / CONFIG).write_text(json.dumps(config_of(folder) | {"target_modules": SLOW, "rank_pattern": {"(": 1}}))
    with pytest.raises(ValueError, match="not a regular expression"):
        AdapterEnsemble.from_folder(tiny_bert(), tmp_path)
