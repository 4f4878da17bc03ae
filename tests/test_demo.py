"""The demo on a handful of words: its splits, its rows, and what it writes."""

from pathlib import Path

import numpy as np
import pytest

import bayeslora
from bayeslora import demo


def test_lexicon_is_split_without_overlap() -> None:
    words = demo.lexicon(seed=1)
    parts = [words.train, words.held_out, words.test]
    assert [len(part) for part in parts] == [300, 200, 1000]
    assert len({word for part in parts for word in part["text"]}) == 1500
    assert not set(words.unfamiliar["text"]) & {word for part in parts for word in part["text"]}
    assert {":-)", "rotflmao"} <= set(words.unfamiliar["text"])
    for part in (*parts, words.unfamiliar):
        assert ((part["mean"] > 0) == part["label"]).all()
        assert {len(ratings) for ratings in part["ratings"]} == {10}
    assert not words.train["text"].equals(demo.lexicon(seed=2).train["text"])


def test_demo_makes_its_table_and_files(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"NUM_TRAIN": 12, "NUM_HELD_OUT": 8, "NUM_TEST": 20, "NUM_DRAWS": 2}.items():
        monkeypatch.setattr(demo, name, value)
    monkeypatch.setitem(demo.SETTINGS, "epochs", 2)
    lexicon = demo.lexicon

    def short(seed: int) -> demo.Words:
        words = lexicon(seed)
        return demo.Words(words.train, words.held_out, words.test, words.unfamiliar.head(10))

    monkeypatch.setattr(demo, "lexicon", short)
    result = demo.run(seed=0)
    table = result.table()
    assert list(table["method"]) == [
        "LoRA",
        "LoRA, best epoch",
        "LoRA, temperature",
        "MonteCLoRA, centre",
        "MonteCLoRA, 2 draws",
    ]
    assert list(table.columns[1:]) == [
        *("majority", "accuracy", "nll", "ece", "ece_floor", "brier", "auroc_unfamiliar", "seconds")
    ]
    assert np.isfinite(table.iloc[:, 1:].to_numpy()).all()
    assert len(result.rows[-1].test.draws) == 2
    surest = result.least_sure(20)
    assert surest["entropy"].is_monotonic_decreasing
    demo.write(result, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("posterior", "arviz.nc", "reliability.png", "table.csv", "least-sure.csv")
    }
    restored = bayeslora.load(tmp_path / "posterior")
    assert restored.predict(["good"]).class_names == ("negative", "positive")
