"""What the command line does with tables: decisions as columns, names of columns, formats."""

import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import bayeslora
from tests.test_strangers_files import as_typer_calls_them, base, run

__all__ = ["as_typer_calls_them", "base"]  # fixtures

WORDS = ["good film", "bad film", "very good", "very bad"] * 10


@pytest.fixture(scope="module")
def posterior(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A posterior that has learned nothing, of texts in `review` and labels in `verdict`."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = tmp_path_factory.mktemp("fitted")
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    table = frame("review", "verdict")
    settings = {"tokenizer": AutoTokenizer.from_pretrained(base), "epochs": 0, "rank": 2, "progress": False}
    bayeslora.fit(model, table, "blob", text="review", label="verdict", **settings).save(folder / "out")
    model.config.save_pretrained(folder / "out")
    return folder / "out"


def frame(text: str, label: str) -> pd.DataFrame:
    return pd.DataFrame({text: WORDS, label: ["yes", "no"] * 20})


def predicted(posterior: Path, base: Path, folder: Path, *flags: str, ending: str = "csv") -> tuple[Any, Path]:
    frame("review", "verdict").drop(columns="verdict").to_csv(folder / "new.csv", index=False)
    written = folder / f"out.{ending}"
    words = (posterior, folder / "new.csv", "--output", written, "--num-draws", "2", "--model", base)
    return run("predict", *words, *flags), written


def test_decisions_are_columns(posterior: Path, base: Path, tmp_path: Path) -> None:
    # Called otherwise than in the fit, which the flags say; the new rows' text is found by the fit's name.
    frame("review", "answer").to_csv(tmp_path / "held_out.csv", index=False)
    held_out = ("--decide", str(tmp_path / "held_out.csv"), "--label", "answer")
    done, written = predicted(posterior, base, tmp_path, *held_out)
    assert done.exit_code == 0, done.stderr
    assert "bayeslora: Nothing can be answered: the 40 held-out rows do not show" in " ".join(done.stderr.split())
    table = pd.read_csv(written)
    assert table["abstain"].all()
    assert {*table["set"]} <= {"no", "yes", "no | yes", ""}
    done, written = predicted(posterior, base, tmp_path, *held_out, "--coverage", "0.999")
    assert done.exit_code == 0, done.stderr
    assert {*pd.read_csv(written)["set"]} == {"no | yes"}
    assert "abstain" not in pd.read_csv(written)


def test_decisions_need_held_out_rows_and_shares(posterior: Path, base: Path, tmp_path: Path) -> None:
    done, written = predicted(posterior, base, tmp_path, "--risk", "0.1")
    assert done.exit_code == 2
    assert "--risk goes by held-out rows, and there are none: name labelled data, --decide FILE." in done.stderr
    done, written = predicted(posterior, base, tmp_path, "--coverage", "90")
    assert done.exit_code == 2
    assert "--coverage 90.0: give a probability between 0 and 1" in done.stderr
    assert not written.exists()


def test_saved_decisions_are_used(posterior: Path, base: Path, tmp_path: Path) -> None:
    table = frame("Text", "Answer")
    loaded = bayeslora.load(posterior, str(base))
    loaded.decide(table, 2, text="Text", label="Answer").save(tmp_path / "decided")
    done, written = predicted(tmp_path / "decided", base, tmp_path, "--coverage", "0.8")
    assert done.exit_code == 0, done.stderr
    assert "set" in pd.read_csv(written)
    calibrated = loaded.calibrate(table, 2, text="Text", label="Answer")
    assert calibrated.temperature == loaded.calibrate(frame("review", "verdict"), 2).temperature
    table.to_csv(tmp_path / "named.csv", index=False)
    words = (str(posterior), str(tmp_path / "named.csv"), "--output", str(tmp_path / "calibrated"), "--num-draws", "2")
    done = run("calibrate", *words, "--model", str(base), "--text", "Text", "--label", "Answer")
    assert done.exit_code == 0, done.stderr
    assert bayeslora.load(tmp_path / "calibrated", str(base)).temperature == calibrated.temperature


def test_spreadsheets_are_written(posterior: Path, base: Path, tmp_path: Path) -> None:
    pytest.importorskip("openpyxl")
    done, written = predicted(posterior, base, tmp_path, ending="xlsx")
    assert done.exit_code == 0, done.stderr
    table = pd.read_excel(written)
    assert table["review"].tolist() == WORDS
    assert {"predicted", "p(no)", "p(yes)", "entropy"} <= {*table.columns}


def test_a_spreadsheet_that_cannot_be_written_is_said_before_anything_is_computed(
    posterior: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    done, written = predicted(posterior, base, tmp_path, ending="xlsx")
    assert done.exit_code == 2
    assert f"--output {written}: pip install openpyxl, or give a .csv file." in " ".join(done.stderr.split())
    assert not written.exists()
