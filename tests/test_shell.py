"""What the command line does with tables: decisions as columns, names of columns, formats."""

import gzip
import io
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console
from typer.testing import CliRunner

import bayeslora
from bayeslora import shell
from bayeslora.cli import app
from bayeslora.piping import ending
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


KEYS = [f"k{number}" for number in range(len(WORDS))]
TABLE = pd.DataFrame({"key": KEYS, "review": WORDS})


def parquet(table: pd.DataFrame) -> bytes:
    stream = io.BytesIO()
    table.to_parquet(stream, index=False)
    return stream.getvalue()


CONTENTS = {
    ".jsonl": TABLE.to_json(orient="records", lines=True).encode(),
    ".json of columns": TABLE.to_json().encode(),
    ".txt": "\n".join(WORDS).encode(),
    ".tsv.gz": gzip.compress(TABLE.to_csv(index=False, sep="\t").encode("utf-8-sig")),
    ".parquet": parquet(TABLE),
}
"""The same rows, as they may come by a pipe."""


@pytest.mark.parametrize("kind", CONTENTS)
def test_standard_input_and_output(kind: str, posterior: Path, base: Path) -> None:
    words = ["predict", str(posterior), "-", "--output", "-", "--num-draws", "2", "--model", str(base)]
    done = CliRunner().invoke(app, words, input=CONTENTS[kind], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    read: Any = (
        pd.read_json(io.StringIO(done.stdout), lines=True) if "json" in kind else pd.read_csv(io.StringIO(done.stdout))
    )
    expected = bayeslora.load(posterior, base).predict(WORDS, 2).to_pandas()
    pd.testing.assert_frame_equal(read[expected.columns], expected, check_dtype=False, rtol=1e-5)
    # What names the rows comes first, also if nobody named it; of texts alone, there is nothing.
    assert read.columns[0] == ("predicted" if kind == ".txt" else "key")
    assert read["text" if kind == ".txt" else "review"].tolist() == WORDS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"  \n", "standard input is empty: give rows"),
        (b"a,b\nx,y\nx,y,z\n", "standard input, line 3: there are 3 columns"),
    ],
)
def test_what_is_wrong_with_standard_input_is_said(content: bytes, message: str, posterior: Path, base: Path) -> None:
    done = CliRunner().invoke(app, ["evaluate", str(posterior), "-", "--model", str(base)], input=content)
    assert done.exit_code == 2
    assert f"bayeslora: {message}" in done.stderr


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b'{"text": "a"}', ".jsonl"),
        (b'{"tokens": ["a", "b"], "tags": [1, 2]}', ".jsonl"),
        (b'{"train": [{"text": "a"}]}', ".json"),
        (b'{"data": [{"text": "a"}]}', ".json"),
        (b'{"text": "a"', ".jsonl"),  # of which the message about a bad line is the right one
        (b"{curly},b\nx,y", ".txt"),
        (b"[text],label\nx,y", ".txt"),
    ],
)
def test_what_standard_input_holds_is_seen_by_its_beginning(content: bytes, found: str) -> None:
    assert ending(content) == found


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


def test_a_table_that_is_shown_has_a_line_for_each_row(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    screen = Console(file=shown, width=80, markup=False, emoji=False)
    monkeypatch.setattr(shell, "console", screen)
    probabilities = {f"p(c{number})": [0.1, 0.2] for number in range(50)}
    entropies = {"entropy": [0.1, 0.2], "aleatoric": [0.1, 0.2], "epistemic": [0.0, 0.0]}
    texts = {"text": ["[/b] :+1: two\nlines " * 20, "b"], "label": ["c1", "c2"]}
    table = pd.DataFrame({"id": ["r1", "r2"], "predicted": ["c1", "c2"], **probabilities, **entropies, **texts})
    shell.print_table(table, "[/b]", "predicted")
    lines = shown.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[:2] for line in lines if "0.200" in line] == [["r2", "c2"]]
    assert sum("[/b] :+1:" in line for line in lines) == 1
    assert lines[-1] == "Left out, and in an --output: 47 columns, p(c3) to p(c49)."
