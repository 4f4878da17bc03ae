"""Posteriors on the hub, with a stand-in for it, and pipelines."""

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import yaml

import bayeslora
from bayeslora import Posterior, hub
from tests.helpers import tiny_bert
from tests.tasks.cases import model
from tests.tasks.templates import byte_tokenizer
from tests.test_data import tiny_tokenizer

TEXTS = ["good", "bad", "good good", "bad bad", "good bad", "bad good"] * 4
LABELS = ["yes", "no", "yes", "no", "yes", "no"] * 4
SETTINGS: dict[str, Any] = {"rank": 2, "epochs": 0, "progress": False}


@pytest.fixture(scope="module")
def posterior() -> Posterior:
    return bayeslora.fit(tiny_bert(2), (TEXTS, LABELS), "blob", tokenizer=tiny_tokenizer(), **SETTINGS)


class Api:
    """A hub in a folder."""

    place: Path
    calls: list[tuple[str, dict[str, Any]]]

    def __init__(self, **settings: Any): ...

    def create_repo(self, repo_id: str, **settings: Any) -> str:
        self.calls.append(("create_repo", {"repo_id": repo_id, **settings}))
        return f"https://hub/{repo_id}"

    def create_branch(self, repo_id: str, **settings: Any) -> None:
        self.calls.append(("create_branch", settings))

    def upload_folder(self, *, repo_id: str, folder_path: Path, **settings: Any) -> None:
        self.calls.append(("upload_folder", settings))
        shutil.copytree(folder_path, self.place / repo_id, dirs_exist_ok=True)


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in: what is pushed, and what was asked for."""
    Api.place, Api.calls = tmp_path / "hub", []
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)

    def snapshot(repo_id: str, revision: Any = None, allow_patterns: Any = None) -> str:
        Api.calls.append(("snapshot_download", {"revision": revision}))
        target = tmp_path / "cache" / repo_id
        files = [path for path in (Api.place / repo_id).rglob("*") if path.is_file()]
        names = {path.relative_to(Api.place / repo_id).as_posix(): path for path in files}
        for name in huggingface_hub.utils.filter_repo_objects(names, allow_patterns=allow_patterns):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(names[name], target / name)
        return str(target)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    return tmp_path


def test_what_is_pushed_is_what_is_loaded(posterior: Posterior, there: Path) -> None:
    address = posterior.push_to_hub("user/name", test=(TEXTS, LABELS), private=True, revision="draft")
    assert address == "https://hub/user/name"
    kinds = [name for name, _ in Api.calls]
    assert kinds == ["create_repo", "create_branch", "upload_folder"]
    assert Api.calls[0][1]["private"] is True
    assert Api.calls[2][1]["revision"] == "draft"
    pushed = {path.name for path in (Api.place / "user/name").iterdir()}
    assert {"README.md", "reliability.png", "bayeslora.json"} <= pushed
    expected = posterior.predict(TEXTS).probs
    for found in (
        bayeslora.load("user/name", tiny_bert(2), download=True, revision="draft"),
        Posterior.from_pretrained("user/name", tiny_bert(2)),
        bayeslora.load(shutil.copytree(Api.place / "user/name", there / "copy"), tiny_bert(2)),
    ):
        assert isinstance(found, Posterior)
        np.testing.assert_allclose(found.predict(TEXTS).probs, expected, rtol=1e-5)
    assert [settings["revision"] for name, settings in Api.calls if name == "snapshot_download"] == ["draft", None]
    assert not (there / "cache/user/name/README.md").exists()  # nothing but the posterior is fetched


def test_nothing_is_fetched_unasked(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"user/name holds no posterior.*load\(…, download=True\)"):
        bayeslora.load("user/name", tiny_bert(2))
    assert Api.calls == []
    with pytest.raises(FileNotFoundError, match="there is no bayeslora"):
        bayeslora.load(there / "nowhere", tiny_bert(2), download=True)
    assert Api.calls == []


def test_a_copy_in_the_cache_is_loaded(posterior: Posterior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    posterior.save(tmp_path)
    cached = str(tmp_path / "bayeslora.json")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file, revision=None: cached)
    assert bayeslora.load("user/name", tiny_bert(2)).record() == posterior.record()


def test_the_card_says_what_it_is(posterior: Posterior) -> None:
    text = posterior.card("user/name", test=(TEXTS, LABELS), metrics={"f1 of mine": 0.5}, intended_use="Reviews.")
    _, header, body = text.split("---\n", 2)
    about = yaml.safe_load(header)
    assert about["library_name"] == "bayeslora"
    assert about["pipeline_tag"] == "text-classification"
    assert "base_model" not in about
    for part in ("`blob`", "n = 24", "Reviews\\.", "yes", "| f1 of mine | 0.5000 |  |"):
        assert part.replace("\\.", ".") in body.replace("\\", ""), part
    scores = posterior.evaluate((TEXTS, LABELS))
    assert f"| nll | {scores['nll']:.4f} | " in body
    (row,) = [line for line in body.splitlines() if line.startswith("| nll |")]
    low, high = map(float, row.split("|")[3].split(" to "))
    assert low < scores["nll"] < high


def test_the_card_of_several_labels_has_the_intervals_of_its_own_scores(there: Path) -> None:
    several = [["x", "y"], ["y"], ["x"], ["x", "y"], ["y"], ["x"]] * 4
    fitted = bayeslora.fit(tiny_bert(2), (TEXTS, several), tokenizer=tiny_tokenizer(), **SETTINGS)
    # One of the two labels is wrong in every second row, and the other one is right.
    labels = fitted.predict(TEXTS).probs > 0.5
    labels[::2, 0] ^= True
    test = TEXTS, [[name for name, is_on in zip(["x", "y"], row, strict=True) if is_on] for row in labels]
    fitted.push_to_hub("user/several", test=test)
    rows = (Api.place / "user/several/README.md").read_text().splitlines()
    cells = {row.split("|")[1].strip(" ").replace("\\", ""): row.split("|")[2:4] for row in rows if row.count("|") == 4}
    scores = fitted.evaluate(test)
    assert (scores["exact_match"], scores["accuracy"]) == (0.5, 0.75)
    assert cells["accuracy"] == [f" {scores['accuracy']:.4f} ", "  "]
    for name in ("exact_match", "nll"):
        low, high = map(float, cells[name][1].split(" to "))
        assert low < scores[name] < high


def test_a_card_escapes_what_users_wrote(posterior: Posterior) -> None:
    evil = "<script>alert(1)</script> | [x](javascript:1) `\n---\n# Head"
    record = {**posterior.record(), "base": {"class": "X", "name": evil}}
    text = hub.card(record, {"labels": evil}, "X", "user/name", {evil: hub.Measured(1.0)}, evil)
    header, body = text.split("---\n", 2)[1:]
    assert yaml.safe_load(header)["library_name"] == "bayeslora"
    assert "<script>" not in body
    assert "\n# Head" not in body
    assert "](javascript" not in body
    assert sum(line.startswith("---") for line in body.splitlines()) == 0


def test_a_pipeline_answers_like_those_of_transformers(posterior: Posterior, tmp_path: Path) -> None:
    posterior.save(tmp_path)
    ask = bayeslora.pipeline(tmp_path, tiny_bert(2), num_draws=4)
    (one,) = ask("good")
    assert one.keys() == {"label", "score", "entropy", "aleatoric", "epistemic"}
    assert one["label"] in ("yes", "no")
    assert type(one["score"]) is float
    probs = posterior.predict(["good", "bad"], 4)
    many = ask(["good", "bad"])
    assert [record["score"] for record in many] == pytest.approx(probs.probs.max(1).tolist(), rel=1e-5)
    assert [record["epistemic"] for record in many] == pytest.approx(probs.epistemic.tolist(), abs=1e-5)
    assert ask([]) == []
    for same in ({"text": "good"}, [{"text": "good"}], (text for text in ["good"])):
        assert ask(same) == [one]
    assert "num_draws=4" in repr(ask)


def test_a_pipeline_abstains_where_held_out_rows_decide(posterior: Posterior, tmp_path: Path) -> None:
    posterior.decide((TEXTS * 4, LABELS * 4), 8, seed=3).save(tmp_path)
    posterior.held_out = None
    ask = bayeslora.pipeline(tmp_path, tiny_bert(2), risk=0.99)
    assert ask.settings["num_draws"] == 8
    assert ask.settings["seed"] == 3
    assert [record["abstain"] for record in ask(["good", "bad"])] == [False, False]


def test_a_pipeline_of_pairs_and_of_numbers() -> None:
    import pandas as pd

    table = pd.DataFrame({"first": TEXTS, "second": TEXTS[::-1], "label": LABELS})
    pairs = bayeslora.fit(tiny_bert(2), table, "blob", tokenizer=tiny_tokenizer(), **SETTINGS)
    ask = bayeslora.pipeline(pairs, num_draws=2)
    expected = pairs.predict(table.head(2), 2).probs.max(1).tolist()
    given = list(zip(TEXTS[:2], TEXTS[::-1][:2], strict=True))
    assert [record["score"] for record in ask(given)] == pytest.approx(expected, rel=1e-5)
    assert ask(given[0]) == ask(given[:1])
    assert ask([{"text": a, "text_pair": b} for a, b in given]) == ask(given)
    settings = SETTINGS | {"tokenizer": tiny_tokenizer(), "likelihood": "regression"}
    numbers = bayeslora.fit(tiny_bert(1), (TEXTS, np.linspace(0, 1, 24)), "blob", **settings)
    (record,) = bayeslora.pipeline(numbers, num_draws=2)("good")
    assert {"predicted", "entropy", "aleatoric", "epistemic"} <= record.keys()


def test_a_pipeline_says_which_token_it_means_and_takes_one_record() -> None:
    rows = [{"tokens": ["a", "good", "one"], "ner_tags": ["O", "PRAISE", "O"]}, {"tokens": ["bad"], "ner_tags": ["O"]}]
    settings: Any = SETTINGS | {"tokenizer": byte_tokenizer(model_max_length=30)}
    network = model("Bert", "ForTokenClassification", num_labels=2, vocab_size=300)()
    tags = bayeslora.fit(network, rows, "blob", **settings)
    assert tags.class_names == ("O", "PRAISE")
    ask = bayeslora.pipeline(tags, num_draws=2)
    assert [(record["example"], record["position"]) for record in ask(rows)] == [(0, 0), (0, 1), (0, 5), (1, 0)]
    assert [record["position"] for record in ask(rows[0])] == [0, 1, 5]
    with pytest.raises(ValueError, match="'tokens' holds texts, such as 'a': give the list of words"):
        tags.predict({"tokens": ["a", "good"]})
    network = model("Bert", "ForQuestionAnswering", vocab_size=300)()
    asked = {"question": "Where?", "context": "In Rome."}
    found = [{**asked, "answers": {"text": ["Rome"], "answer_start": [3]}}]
    answers = bayeslora.pipeline(bayeslora.fit(network, found, "blob", **settings), num_draws=2)
    assert answers(asked) == answers([asked])
