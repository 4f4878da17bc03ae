"""Which base model is read, and when one is fetched."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers

import bayeslora
from bayeslora import saving
from bayeslora.loading import load_model
from bayeslora.posterior import Posterior
from bayeslora.tasks import Classification
from tests.helpers import tiny_bert, tokens
from tests.test_data import tiny_tokenizer


@pytest.fixture(scope="module")
def posterior() -> Posterior:
    return bayeslora.fit(tiny_bert(), tokens(), "lora", rank=2, epochs=1, progress=False)


def saved(posterior: Posterior, folder: Path, name: str, its_class: str = "BertForSequenceClassification") -> Path:
    """Save a posterior, as one of a base of that name."""
    posterior.save(folder)
    record = json.loads((folder / "bayeslora.json").read_text())
    record |= {"base": {"class": its_class, "name": name}}
    (folder / "bayeslora.json").write_text(json.dumps(saving.signed(record)))
    return folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The arguments that models are loaded with, by name; they are the right base."""
    calls: list[Any] = []

    def from_pretrained(name: str, **settings: Any) -> Any:
        calls.append((name, settings))
        return tiny_bert()

    monkeypatch.setattr(transformers.BertForSequenceClassification, "from_pretrained", from_pretrained)
    return calls


def test_a_base_on_the_hub_is_not_fetched(posterior: Posterior, tmp_path: Path) -> None:
    saved(posterior, tmp_path, "somebody/model")
    script = """
import sys
asked = []
sys.addaudithook(lambda event, args: asked.append(args) if event in ("socket.getaddrinfo", "socket.connect") else None)
import bayeslora
try:
    bayeslora.load(sys.argv[1])
except ValueError as error:
    print(len(asked), error)
"""
    # Not offline: nothing but `load` itself keeps from asking.
    settings = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    run = [sys.executable, "-c", script, str(tmp_path)]
    out = subprocess.run(run, capture_output=True, text=True, check=True, timeout=600, env=settings).stdout
    assert out.startswith(f"0 The posterior in {tmp_path} names the base model 'somebody/model', and there are no ")
    assert out.endswith("pass model=…, or download=True if that is its name on the hub.\n")


def test_a_base_on_the_hub_is_fetched_on_request(posterior: Posterior, tmp_path: Path, asked: list[Any]) -> None:
    saved(posterior, tmp_path, "somebody/model")
    loaded = bayeslora.load(tmp_path, download=True)
    assert torch.equal(loaded.draw(1)["32x32.A"], posterior.draw(1)["32x32.A"])
    settings = {"trust_remote_code": False, "num_labels": 3, "use_safetensors": True, "local_files_only": False}
    settings["ignore_mismatched_sizes"] = True
    assert asked == [("somebody/model", settings)]


@pytest.mark.parametrize("where", ["cache", "folder"])
def test_a_base_on_this_machine_is_read(
    posterior: Posterior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    repository = tmp_path / "hub" / "models--somebody--model"
    snapshot = repository / "snapshots" / "0123"
    tiny_bert().save_pretrained(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    name = "somebody/model" if where == "cache" else str(snapshot)
    loaded = bayeslora.load(saved(posterior, tmp_path / "posterior", name))
    assert torch.equal(loaded.draw(1)["32x32.A"], posterior.draw(1)["32x32.A"])
    assert loaded.record()["base"]["name"] == name


def test_a_base_that_the_user_names_is_read_without_code(
    posterior: Posterior, tmp_path: Path, asked: list[Any]
) -> None:
    saved(posterior, tmp_path, "somebody/model")
    bayeslora.load(tmp_path, "my/model")
    settings = {"trust_remote_code": False, "num_labels": 3, "ignore_mismatched_sizes": True}
    assert asked == [("my/model", settings)]


@pytest.mark.parametrize("holds", ["nothing", "pickles"])
def test_a_folder_without_safetensors_is_not_a_base(posterior: Posterior, tmp_path: Path, holds: str) -> None:
    base = tmp_path / "base"
    base.mkdir()
    if holds == "pickles":
        tiny_bert().config.save_pretrained(base)
        torch.save(tiny_bert().state_dict(), base / "pytorch_model.bin")
    folder = saved(posterior, tmp_path / "posterior", str(base))
    with pytest.raises(ValueError, match=r"names the base model '.*base', and there are no config\.json and"):
        bayeslora.load(folder, download=True)


@pytest.mark.parametrize(
    "name", ["//host/share", r"\\host\share", "/etc", "/etc/passwd", "../base", "a/b/c", "a" * 5000, "a\0"]
)
def test_no_other_place_that_the_record_names_is_read(posterior: Posterior, tmp_path: Path, name: str) -> None:
    folder = saved(posterior, tmp_path, name)
    with pytest.raises(ValueError, match=r"and there are no config\.json and safetensors of it on this machine"):
        bayeslora.load(folder)


@pytest.mark.parametrize("its_class", ["pipeline", "AutoModel", "Trainer", "__class__", "os", "models", "BertConfig"])
def test_a_class_that_is_not_a_models(posterior: Posterior, tmp_path: Path, its_class: str) -> None:
    folder = saved(posterior, tmp_path, "somebody/model", its_class)
    with pytest.raises(ValueError, match="does not name a base model that can be loaded: pass model=…"):
        bayeslora.load(folder, download=True)


def test_a_base_with_more_outputs_than_were_trained(posterior: Posterior, tmp_path: Path, asked: list[Any]) -> None:
    folder = saved(posterior, tmp_path, "somebody/model")
    record = json.loads((folder / "bayeslora.json").read_text())
    record["likelihood"]["config"]["num_classes"] = 10**6
    (folder / "bayeslora.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="there are 1000000 classes, and a head for fewer"):
        bayeslora.load(folder, download=True)
    assert not asked


def test_a_fit_by_name_runs_no_code_of_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def loading(found: Any) -> Any:
        return lambda name, **settings: asked.append(settings["trust_remote_code"]) or found

    found = tiny_bert(), {"missing_keys": [], "mismatched_keys": []}
    monkeypatch.setattr(transformers.AutoModelForSequenceClassification, "from_pretrained", loading(found))
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", loading(tiny_tokenizer()))
    load_model("somebody/model", None, Classification, ["text"], ["a", "b", "c"], None)
    assert asked == [False, False]
