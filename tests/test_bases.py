"""Base models: which weights and which configuration a saved posterior needs, and what belongs to another."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import nn

import bayeslora
from bayeslora import bases
from bayeslora.adapters import AdaptedNetwork
from tests.helpers import tiny_bert, tokens
from tests.test_data import tiny_tokenizer

DATA = tokens(8)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder with a BERT that has neither pooler nor head."""
    folder = tmp_path / "base"
    tiny_bert().save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "pooler" not in name and "classifier" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    tiny_tokenizer().save_pretrained(folder)
    return folder


def fitted(model: Any, data: Any = DATA, **settings: Any) -> bayeslora.Posterior:
    return bayeslora.fit(model, data, "lora", rank=2, epochs=0, progress=False, **settings)


def named(folder: Path) -> Any:
    from datasets import Dataset

    inputs, labels = DATA
    columns = {name: value.tolist() for name, value in inputs.items()} | {"labels": labels.tolist()}
    return str(folder), Dataset.from_dict(columns)


def assert_same(one: bayeslora.Posterior, other: bayeslora.Posterior) -> None:
    np.testing.assert_allclose(one.predict(DATA).probs, other.predict(DATA).probs, rtol=1e-5)


def test_weights_that_the_checkpoint_lacks_are_saved(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    posterior = fitted(*named(checkpoint), head="classifier")
    assert posterior.network.new == ["bert.pooler.dense.bias", "bert.pooler.dense.weight"]
    assert "2 frozen parameters are not in the model's checkpoint, such as 'bert.pooler.dense.bias'" in caplog.text
    posterior.save(tmp_path / "saved")
    assert_same(bayeslora.load(tmp_path / "saved"), posterior)
    # Onto a base whose pooler is another one, which stays as it is.
    other = hf.AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=3)
    before = other.bert.pooler.dense.weight.clone()
    again = bayeslora.load(tmp_path / "saved", model=other)
    assert_same(again, posterior)
    torch.testing.assert_close(other.bert.pooler.dense.weight, before, rtol=0, atol=0)
    again.save(tmp_path / "twice")
    assert_same(bayeslora.load(tmp_path / "twice"), posterior)
    with torch.no_grad():
        logits = again.merge()(**DATA[0]).logits
    np.testing.assert_allclose(logits.softmax(-1), posterior.predict(DATA, center=True).probs, rtol=1e-5)


def assert_new_words_come_back(checkpoint: Path, name: str, folder: Path) -> None:
    model = hf.AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=3)
    assert model.name_or_path == str(checkpoint)
    model.name_or_path = name
    model.resize_token_embeddings(70)
    posterior = fitted(model)
    assert posterior.network.new == ["bert.embeddings.word_embeddings.weight"]
    assert set(posterior.network.head_names) == {"classifier", "bert.pooler"}
    posterior.save(folder)
    assert_same(bayeslora.load(folder), posterior)


def test_a_model_from_a_folder_is_compared_with_it(checkpoint: Path, tmp_path: Path) -> None:
    assert_new_words_come_back(checkpoint, str(checkpoint), tmp_path / "saved")
    small = hf.AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=3)
    with pytest.raises(ValueError, match=r"'bert.embeddings.word_embeddings.weight' is \(70, 32\), and the model has"):
        bayeslora.load(tmp_path / "saved", model=small)


def test_a_model_from_the_hubs_cache_is_compared_with_it(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "hub" / "models--somebody--model"
    shutil.copytree(checkpoint, repository / "snapshots" / "0123")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert_new_words_come_back(checkpoint, "somebody/model", tmp_path / "saved")


@pytest.mark.parametrize("method", ["lora", "laplace"])
def test_modules_that_the_checkpoint_lacks_are_trained_with_the_head(
    checkpoint: Path, tmp_path: Path, method: str
) -> None:
    model = hf.AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=3)
    before = model.bert.pooler.dense.weight.clone()
    posterior = bayeslora.fit(model, DATA, method, rank=2, epochs=2, learning_rate=0.01, progress=False)
    assert posterior.network.head_names == ("classifier", "bert.pooler")
    assert posterior.network.output_name == "classifier"
    torch.testing.assert_close(model.bert.pooler.dense.weight, before, rtol=0, atol=0)
    merged = posterior.merge()
    assert not torch.equal(merged.bert.pooler.dense.weight, before)
    np.testing.assert_allclose(
        merged(**DATA[0]).logits.detach().softmax(-1),
        posterior.predict(DATA, center=True, approximation="draws").probs,
        rtol=1e-5,
    )
    posterior.save(tmp_path / "saved")
    assert_same(bayeslora.load(tmp_path / "saved"), posterior)
    # A fit that starts there has the same pooler, and so has PEFT's own model.
    again = bayeslora.fit(model, DATA, "lora", init=posterior, epochs=0, progress=False)
    np.testing.assert_allclose(
        again.predict(DATA, center=True).probs, posterior.predict(DATA, center=True).probs, rtol=1e-5
    )
    posterior.export_peft(tmp_path / "peft")
    peft = pytest.importorskip("peft")
    read = peft.PeftModel.from_pretrained(tiny_bert(), tmp_path / "peft").eval()
    torch.testing.assert_close(
        read.base_model.model.bert.pooler.modules_to_save["default"].dense.weight, merged.bert.pooler.dense.weight
    )


def test_a_layer_that_the_checkpoint_lacks_is_trained_and_not_adapted(tmp_path: Path) -> None:
    tiny_bert().save_pretrained(tmp_path)
    model = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path, num_hidden_layers=3)
    posterior = fitted(model)
    assert posterior.network.head_names == ("classifier", "bert.encoder.layer.2")
    assert not any("layer.2" in name for stack in posterior.network.stacks.values() for name in stack.layer_names)
    assert fitted(model, head="classifier").network.head_names == ("classifier",)


def test_a_resumed_fit_has_the_weights_that_its_checkpoint_lacked(checkpoint: Path, tmp_path: Path) -> None:
    def fit(seed: int, **settings: Any) -> bayeslora.Posterior:
        torch.manual_seed(seed)  # of the pooler
        model = hf.AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=3)
        settings = {"rank": 2, "epochs": 2, "head": "classifier", "progress": False} | settings
        return bayeslora.fit(model, DATA, "lora", output_dir=tmp_path / "out", **settings)

    whole = fit(0)
    shutil.rmtree(tmp_path / "out" / "checkpoint-2")
    resumed = fit(1, resume=True)
    for name in whole.network.new:
        own, its = (dict(each.network.model.named_parameters())[name] for each in (resumed, whole))
        torch.testing.assert_close(own, its, rtol=0, atol=0)
    for name, value in whole.guide.state_dict().items():
        torch.testing.assert_close(resumed.guide.state_dict()[name], value, rtol=0, atol=0)
    assert_same(resumed, whole)
    assert_same(bayeslora.load(tmp_path / "out"), whole)


def test_a_whole_checkpoint_lacks_nothing(tmp_path: Path) -> None:
    tiny_bert().save_pretrained(tmp_path)
    assert bases.lacked_by_checkpoint(hf.AutoModelForSequenceClassification.from_pretrained(tmp_path)) == set()
    hf.AutoModel.from_pretrained(tmp_path).save_pretrained(tmp_path / "body")  # without the prefix
    model = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "body")
    assert bases.lacked_by_checkpoint(model) == {"classifier.weight", "classifier.bias"}
    assert bases.lacked_by_checkpoint(nn.Linear(2, 2)) == set()


@pytest.mark.parametrize(
    "name", ["bert.pooler.dense.weight", "bert.embeddings.LayerNorm.weight", "bert.encoder.layer.0.output.dense.bias"]
)
def test_other_frozen_weights_are_another_base(name: str, tmp_path: Path) -> None:
    fitted(tiny_bert()).save(tmp_path)
    other = tiny_bert()
    bayeslora.load(tmp_path, model=other)
    bayeslora.load(tmp_path, model=tiny_bert().half())
    with torch.no_grad():
        other.get_parameter(name).add_(0.1)
    with pytest.raises(ValueError, match=f"1 of 39 frozen parameters differ, the first is '{name}'"):
        bayeslora.load(tmp_path, model=other)
    with pytest.raises(ValueError, match="another base model"):
        bayeslora.load(tmp_path, model=tiny_bert(num_hidden_layers=3))


def test_running_statistics_belong_to_the_base() -> None:
    model = nn.Sequential()
    model.add_module("body", nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    model.add_module("head", nn.Linear(4, 2))
    network = AdaptedNetwork(model, rank=2)
    saved = bases.fingerprint(network)
    bases.check(network, saved)
    bases.check(network, None)
    network.model.body[1].running_mean += 1
    with pytest.raises(ValueError, match=r"'body.1.running_mean'"):
        bases.check(network, saved)


SETTINGS = {"hidden_act": "relu", "max_position_embeddings": 20, "problem_type": "single_label_classification"}


def test_a_configuration_of_ones_own_is_kept(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = hf.AutoModelForSequenceClassification.from_pretrained(
        checkpoint, num_labels=5, ignore_mismatched_sizes=True, **SETTINGS
    )
    posterior = fitted(model)
    posterior.save(tmp_path / "saved")
    record = json.loads((tmp_path / "saved" / "bayeslora.json").read_text())
    assert record["base"]["config"] == SETTINGS | {"num_labels": 5}
    again = bayeslora.load(tmp_path / "saved")
    assert {name: getattr(again.network.model.config, name) for name in SETTINGS} == SETTINGS
    assert_same(again, posterior)
    caplog.clear()
    bayeslora.load(tmp_path / "saved", model=model)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    model.config.hidden_act = "gelu"
    bayeslora.load(tmp_path / "saved", model=model)
    assert "not that of the fit: hidden_act is 'gelu' and was 'relu'" in caplog.text


def test_a_record_sets_fields_of_the_configuration_and_nothing_else(tmp_path: Path) -> None:
    model = tiny_bert()
    model.save_pretrained(tmp_path)
    record = {
        "auto_map": {"AutoModel": "evil.py"},
        "_name_or_path": "x",
        "quantization_config": {},
        "trust_remote_code": True,
        "revision": "evil",
        "hidden_act": "relu",
    }
    config = bases.configured(type(model), tmp_path, record, 2, {})
    assert (config.hidden_act, config.num_labels) == ("relu", 2)
    assert not any(hasattr(config, name) for name in ("auto_map", "quantization_config", "trust_remote_code"))
    with pytest.raises(ValueError, match="asks for a model that is far larger than the checkpoint"):
        bases.configured(type(model), tmp_path, {"vocab_size": 10**8}, 2, {})
