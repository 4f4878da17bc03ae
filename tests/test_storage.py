"""Posteriors on disk: what comes back, what is refused, and what a crash leaves."""

import copy
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import bayeslora
from bayeslora import saving, storage
from bayeslora.adapters import AdaptedNetwork
from bayeslora.failing import NotSavedError
from bayeslora.posterior import Posterior
from tests.helpers import tiny_bert, tokens
from tests.test_data import LABELS, TEXTS, tiny_tokenizer


def fitted(model: nn.Module | None = None, method: str = "monteclora", **settings: Any) -> Posterior:
    settings = {"rank": 2, "epochs": 1, "learning_rate": 1e-2, "progress": False} | settings
    return bayeslora.fit(model or tiny_bert(), tokens(), method, **settings)


@pytest.fixture(scope="module")
def posterior() -> Posterior:
    return fitted(components=3, noise_ratio=2.0)


def edit(folder: Path, **entries: Any) -> None:
    manifest = folder / storage.MANIFEST
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | entries))


def tensor_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.safetensors"))


def assert_same_draws(one: Posterior, other: Posterior) -> None:
    draws, others = one.draw(3, seed=5), other.draw(3, seed=5)
    assert draws.keys() == others.keys()
    assert all(torch.equal(draws[name], others[name]) for name in draws)


# What comes back


def test_a_fresh_process_draws_and_predicts_the_same_bits(posterior: Posterior, tmp_path: Path) -> None:
    posterior.save(tmp_path)
    script = f"""
import sys
import numpy as np, torch
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import bayeslora
from tests.helpers import tiny_bert, tokens
torch.set_num_threads(1)
folder = sys.argv[1]
posterior = bayeslora.load(folder, tiny_bert())
draws = {{name: value.numpy() for name, value in posterior.draw(3, seed=5).items()}}
np.savez(folder + "/out.npz", predicted=posterior.predict(tokens()[0], num_draws=3).draws, **draws)
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, timeout=600)
    with np.load(tmp_path / "out.npz") as out:
        for name, value in posterior.draw(3, seed=5).items():
            assert np.array_equal(out[name], value.numpy()), name
        assert np.array_equal(out["predicted"], posterior.predict(tokens()[0], num_draws=3).draws)


def test_history_temperature_names_and_tokenizer_survive(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    table = datasets.Dataset.from_dict({"text": TEXTS, "label": LABELS}, features=features)
    posterior = bayeslora.fit(
        tiny_bert(num_labels=2),
        table,
        validation=table,
        tokenizer=tiny_tokenizer(),
        rank=2,
        epochs=2,
        batch_size=2,
        num_particles=2,
        progress=False,
    ).calibrate(table)
    posterior.save(tmp_path)
    loaded = bayeslora.load(tmp_path, tiny_bert(num_labels=2))
    assert loaded.history.equals(posterior.history)
    assert loaded.history["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert loaded.temperature == posterior.temperature != 1.0
    assert loaded.class_names == ("no", "yes")
    assert loaded.program.elbo.num_particles == 2
    assert np.array_equal(loaded.predict(TEXTS).draws, posterior.predict(TEXTS).draws)


def test_the_head_is_saved_and_restored(posterior: Posterior, tmp_path: Path) -> None:
    posterior.save(tmp_path)
    trained = posterior.network.head_state()["classifier.weight"]
    assert not torch.equal(trained, tiny_bert().classifier.weight)
    loaded = bayeslora.load(tmp_path, tiny_bert())
    assert torch.equal(loaded.network.head_state()["classifier.weight"], trained)


def test_a_network_with_batch_normalisation_predicts_the_same_bits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    x = torch.randn(64, 6) + 3
    posterior = bayeslora.fit(network, (x, (x[:, 0] > 3).long()), rank=2, epochs=2, progress=False)
    posterior.save(tmp_path)
    assert np.array_equal(bayeslora.load(tmp_path, network).predict(x).draws, posterior.predict(x).draws)


def test_ranks_scaling_and_targets_survive(tmp_path: Path) -> None:
    posterior = fitted(method="lora", targets="attention", rank={"query": 2, "key": 4}, alpha={"value": 2.0})
    posterior.save(tmp_path)
    loaded = bayeslora.load(tmp_path, tiny_bert())
    assert {n: s.layer_names for n, s in loaded.network.stacks.items()} == {
        n: s.layer_names for n, s in posterior.network.stacks.items()
    }
    assert {n: s.rank for n, s in loaded.network.stacks.items()} == {"32x32r2": 2, "32x32r4": 4, "32x32r8": 8}
    for name in loaded.network.stacks:
        assert torch.equal(loaded.network.scaling(name), posterior.network.scaling(name))
    assert loaded.network.stacks.num_examples == 48
    assert_same_draws(posterior, loaded)


def test_the_record_is_plain_json_and_holds_the_methods_fields(posterior: Posterior, tmp_path: Path) -> None:
    posterior.save(tmp_path)
    record = json.loads((tmp_path / "bayeslora.json").read_text())
    assert record["format"] == 1
    assert record["method"]["name"] == "monteclora"
    assert record["method"]["fields"] | {"components": 3, "noise_ratio": 2.0} == record["method"]["fields"]
    assert set(record["method"]["fields"]) == set(posterior.method.__dataclass_fields__)  # defaults too
    assert record["likelihood"] == {
        "name": "classification",
        "class": "Classification",
        "config": {"num_classes": 3},
    }
    assert record["base"]["class"] == "BertForSequenceClassification"
    assert record["temperature"] == 1.0
    assert bayeslora.load(tmp_path, tiny_bert()).method == posterior.method


def test_no_pickle_and_no_base_weights_in_the_folder(posterior: Posterior, tmp_path: Path) -> None:
    posterior.save(tmp_path)
    files = {path.name for path in tmp_path.rglob("*")}
    assert files == {"bayeslora.json", *tensor_files(tmp_path)}
    (name,) = tensor_files(tmp_path)
    assert {key.split("/")[0] for key in load_file(tmp_path / name)} == {
        "guide",
        "head",
        "fingerprint",
        "base_fingerprint",
        "history",
    }


def test_loading_leaves_the_callers_random_state_and_model(posterior: Posterior, tmp_path: Path) -> None:
    posterior.save(tmp_path)
    model = tiny_bert()
    before, weight = torch.get_rng_state(), model.classifier.weight.detach().clone()
    bayeslora.load(tmp_path, model)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(model.classifier.weight, weight)


def test_a_half_precision_base_of_the_same_weights_loads(posterior: Posterior, tmp_path: Path) -> None:
    posterior.save(tmp_path)
    loaded = bayeslora.load(tmp_path, tiny_bert().bfloat16())
    assert_same_draws(posterior, loaded)
    # bfloat16 keeps 8 bits of every activation.
    x = tokens()[0]
    np.testing.assert_allclose(loaded.predict(x, 4).probs, posterior.predict(x, 4).probs, atol=0.02)


def test_the_base_is_found_by_its_name(tmp_path: Path) -> None:
    tiny_bert().save_pretrained(tmp_path / "base")
    model = type(tiny_bert()).from_pretrained(tmp_path / "base")
    posterior = fitted(model)
    posterior.save(tmp_path / "posterior")
    assert_same_draws(posterior, bayeslora.load(tmp_path / "posterior"))
    assert_same_draws(posterior, bayeslora.load(tmp_path / "posterior", str(tmp_path / "base")))


def test_the_fingerprint_reaches_the_last_weight_of_a_large_layer() -> None:
    # More weights than single precision has whole numbers; on the meta device, they take no memory.
    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense = nn.Linear(4096, 11008, bias=False, device="meta")

    indices = []

    class Recorder(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            if function is torch.linspace:
                indices.append(result.long())
            return result

    network = AdaptedNetwork(Large(), rank=1)
    with Recorder(), pytest.raises(NotImplementedError):  # a meta tensor has no values to copy out
        storage.fingerprint(network)
    assert int(indices[0][-1]) == 4096 * 11008 - 1


# Changed after it was saved


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 2.0},
        {"num_particles": 7},
        {"class_names": ["a", "b", "c"]},
        {"state": "of another hand"},
        {"weighted": True},
        {"digest": "0123456789abcdef"},
    ],
)
def test_a_record_that_was_changed_is_refused(posterior: Posterior, tmp_path: Path, change: dict[str, Any]) -> None:
    posterior.save(tmp_path)
    edit(tmp_path, **change)
    what = r"holds a damaged posterior: bayeslora\.json: it does not have its own digest: it was changed after it was "
    with pytest.raises(ValueError, match=what):
        bayeslora.load(tmp_path, tiny_bert())


def test_a_record_written_in_another_way_or_without_a_digest_loads(posterior: Posterior, tmp_path: Path) -> None:
    posterior.save(tmp_path)
    manifest = tmp_path / storage.MANIFEST
    record = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(record, sort_keys=True, separators=(",", ":")))
    assert_same_draws(posterior, bayeslora.load(tmp_path, tiny_bert()))
    del record["digest"]  # as in earlier versions
    manifest.write_text(json.dumps(record | {"temperature": 2.0}))
    assert bayeslora.load(tmp_path, tiny_bert()).temperature == 2.0


def test_the_base_model_may_move(posterior: Posterior, tmp_path: Path) -> None:
    posterior.save(tmp_path / "posterior")
    tiny_bert().save_pretrained(tmp_path / "base")
    base = json.loads((tmp_path / "posterior" / storage.MANIFEST).read_text())["base"]
    edit(tmp_path / "posterior", base=base | {"name": str(tmp_path / "base")})
    assert_same_draws(posterior, bayeslora.load(tmp_path / "posterior"))


def test_a_tokenizer_that_was_changed_is_refused(posterior: Posterior, tmp_path: Path) -> None:
    Posterior(posterior.program, tokenizer=tiny_tokenizer()).save(tmp_path)
    (folder,) = tmp_path.glob("tokenizer-*")
    (folder / ".DS_Store").touch()  # a system's own
    assert bayeslora.load(tmp_path, tiny_bert()).tokenizer is not None
    vocabulary = folder / "tokenizer.json"
    text = vocabulary.read_text()
    one, other = '"good"', '"bad"'
    assert one in text
    assert other in text
    vocabulary.write_text(text.replace(one, "HERE").replace(other, one).replace("HERE", other))
    with pytest.raises(ValueError, match=rf"{folder.name}: its files are not those it is named after: they were "):
        bayeslora.load(tmp_path, tiny_bert())


# Replacing a posterior


def test_a_crash_while_saving_leaves_the_old_posterior(
    posterior: Posterior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    posterior.save(tmp_path)
    newer = fitted(components=3, noise_ratio=2.0, seed=1)
    staged = saving._staged

    def crash(path: Path, content: bytes) -> Any:
        if path.name != storage.MANIFEST:
            return staged(path, content)
        assert len(tensor_files(tmp_path)) == 2  # the new tensors stand beside the old
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(saving, "_staged", crash)
        with pytest.raises(KeyboardInterrupt):
            newer.save(tmp_path)
    assert len(tensor_files(tmp_path)) == 1
    assert_same_draws(posterior, bayeslora.load(tmp_path, tiny_bert()))

    newer.save(tmp_path)
    assert_same_draws(newer, bayeslora.load(tmp_path, tiny_bert()))


def test_a_write_that_breaks_off_is_never_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")
    monkeypatch.setattr(saving.os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        saving.write(target, b"new")
    assert target.read_bytes() == b"old"


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e19])
def test_what_could_not_be_loaded_is_not_saved_in_place_of_what_can(
    posterior: Posterior, tmp_path: Path, bad: float
) -> None:
    posterior.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    broken = copy.deepcopy(posterior)
    next(iter(broken.guide.parameters())).data.view(-1)[0] = bad
    with pytest.raises(NotSavedError, match=r"could not be loaded again: 'guide/.* beyond belief.* scaled"):
        broken.save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_record_that_could_not_be_loaded_is_not_saved(posterior: Posterior, tmp_path: Path) -> None:
    broken = copy.copy(posterior)
    broken.temperature = math.nan
    with pytest.raises(NotSavedError, match="could not be loaded again: it holds NaN"):
        broken.save(tmp_path)
    assert not [*tmp_path.iterdir()]


def test_a_mixture_with_a_part_that_could_not_be_loaded_is_not_saved(posterior: Posterior, tmp_path: Path) -> None:
    broken = copy.deepcopy(posterior)
    next(iter(broken.guide.parameters())).data.view(-1)[0] = math.nan
    with pytest.raises(NotSavedError, match="could not be loaded again: 'guide/"):
        bayeslora.Mixture([posterior, broken]).save(tmp_path)
    assert not [*tmp_path.iterdir()]


def test_stale_tensor_files_are_removed(posterior: Posterior, tmp_path: Path) -> None:
    posterior.save(tmp_path)
    old = tensor_files(tmp_path)
    posterior.calibrate(tokens()).save(tmp_path)  # the same tensors under another record
    assert tensor_files(tmp_path) == old
    fitted(seed=1).save(tmp_path)
    assert len(tensor_files(tmp_path)) == 1
    assert tensor_files(tmp_path) != old


def test_an_earlier_posteriors_tokenizer_is_not_taken_over(posterior: Posterior, tmp_path: Path) -> None:
    Posterior(posterior.program, tokenizer=tiny_tokenizer()).save(tmp_path)
    assert bayeslora.load(tmp_path, tiny_bert()).tokenizer is not None
    posterior.save(tmp_path)
    assert bayeslora.load(tmp_path, tiny_bert()).tokenizer is None


# What is refused


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere holds no posterior: there is no bayeslora\.json in it"):
        bayeslora.load(tmp_path / "nowhere", tiny_bert())


@pytest.mark.parametrize("damage", ["tensors cut", "tensors gone", "record cut", "record empty", "record of a list"])
def test_a_damaged_posterior(posterior: Posterior, tmp_path: Path, damage: str) -> None:
    posterior.save(tmp_path)
    tensors, record = tmp_path / tensor_files(tmp_path)[0], tmp_path / storage.MANIFEST
    if damage == "tensors cut":
        tensors.write_bytes(tensors.read_bytes()[:-100])
    elif damage == "tensors gone":
        tensors.unlink()
    else:
        content = {"record cut": record.read_text()[:-30], "record empty": "{}", "record of a list": "[]"}[damage]
        record.write_text(content)
    with pytest.raises(ValueError, match="holds a damaged posterior"):
        bayeslora.load(tmp_path, tiny_bert())


def test_an_unknown_format(posterior: Posterior, tmp_path: Path) -> None:
    posterior.save(tmp_path)
    edit(tmp_path, format=99)
    with pytest.raises(ValueError, match="has format 99; this version of bayeslora reads format 1"):
        bayeslora.load(tmp_path, tiny_bert())


def test_an_unknown_method(posterior: Posterior, tmp_path: Path) -> None:
    posterior.save(tmp_path)
    edit(tmp_path, method={"name": "mine", "fields": {}})
    with pytest.raises(ValueError, match=r"of method 'mine', .* bayeslora\.register first\. Known: .*monteclora"):
        bayeslora.load(tmp_path, tiny_bert())


def test_a_base_model_of_other_weights(posterior: Posterior, tmp_path: Path) -> None:
    posterior.save(tmp_path)
    other = tiny_bert()
    with torch.no_grad():
        other.bert.encoder.layer[0].attention.self.query.weight.mul_(1.5)
    with pytest.raises(ValueError, match="another base model: the weights of 1 of 12 adapted layers differ"):
        bayeslora.load(tmp_path, other)


@pytest.mark.parametrize("settings", [{"hidden_size": 48}, {"num_hidden_layers": 1}])
def test_a_base_model_of_another_shape(posterior: Posterior, tmp_path: Path, settings: dict[str, int]) -> None:
    posterior.save(tmp_path)
    with pytest.raises(ValueError, match="another base model"):
        bayeslora.load(tmp_path, tiny_bert(**settings))


def test_a_head_of_another_size(posterior: Posterior, tmp_path: Path) -> None:
    posterior.save(tmp_path)
    with pytest.raises(ValueError, match=r"same class and num_labels as for the fit"):
        bayeslora.load(tmp_path, tiny_bert(num_labels=5))


def test_no_base_model_to_be_found(posterior: Posterior, tmp_path: Path) -> None:
    posterior.save(tmp_path)
    with pytest.raises(ValueError, match=r"pass model=… \(it was a BertForSequenceClassification\)"):
        bayeslora.load(tmp_path)


class Somewhere:
    """A path that is neither text nor pathlib's."""

    def __init__(self, path: Path):
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


def test_any_path_is_the_path_that_it_stands_for(tmp_path: Path) -> None:
    x = torch.randn(8, 3)
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    where = Somewhere(tmp_path / "out")
    posterior = bayeslora.fit(
        network, (x, (x[:, 0] > 0).long()), "lora", rank=1, epochs=0, output_dir=where, progress=False
    )
    assert storage.is_finished(tmp_path / "out")
    assert torch.equal(bayeslora.load(where, network).draw(1)["3x4.A"], posterior.draw(1)["3x4.A"])


def test_a_tilde_is_the_home_folder_unless_one_is_called_so(
    posterior: Posterior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    posterior.save("~/saved")
    assert (tmp_path / "home" / "saved" / storage.MANIFEST).is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    (tmp_path / "home" / "saved").rename(tmp_path / "~")
    assert bayeslora.load(Path("~"), tiny_bert()).method == posterior.method


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        (b"saved", r"folder=b'saved': give the path of a folder\. It is bytes: decode them"),
        (Path("n" * 256), r"folder='n+\.\.\.n+': give the path of a folder\. It is too long: .* at most 255"),
        ("caf\udce9", r"folder='caf\\udce9': give the path of a folder\. It is not UTF-8"),
    ],
)
def test_names_that_no_folder_can_have(posterior: Posterior, folder: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        posterior.save(folder)


@pytest.mark.parametrize("kind", ["a file", "a link to nothing", "a link to itself"])
def test_what_is_not_a_folder(posterior: Posterior, tmp_path: Path, kind: str) -> None:
    there = tmp_path / "there"
    if kind == "a file":
        there.touch()
    else:
        there.symlink_to("nothing" if kind == "a link to nothing" else "there")
    with pytest.raises(OSError, match="there could not be written: it is not a folder"):
        posterior.save(there)


def test_what_a_hash_finds_after_the_rest_is_built_is_said(tmp_path: Path) -> None:
    x = torch.randn(8, 3)
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    bayeslora.fit(network, (x, (x[:, 0] > 0).long()), "lora", rank=1, epochs=0, progress=False).save(tmp_path)
    path = next(tmp_path.glob("posterior-*"))
    content = bytearray(path.read_bytes())
    content[-3] ^= 1  # a number that is as good as the one before
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"holds a damaged posterior: {path.name}: its content is not the one it is"):
        bayeslora.load(tmp_path, network)
