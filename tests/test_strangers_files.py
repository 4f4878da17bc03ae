"""Five files that a stranger might bring, through the command line, with no flag beyond the paths where that can do."""

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import bayeslora
from bayeslora.cli import app
from bayeslora.data import read
from tests.tasks.cases import model
from tests.test_data import tiny_tokenizer

TEXTS = ["good film", "bad", "very good good film", "bad, bad film", "good", "film", "very very bad", "very good"]
WORDS = ["great", "bad", "great", "bad", "fair", "fair", "bad", "great"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-trained body without a head."""
    folder = tmp_path_factory.mktemp("base")
    model("Bert", "Model")().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def as_typer_calls_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Typer hands its commands another class of contexts than they declare, which the tests' type checks refuse."""
    for command in app.registered_commands:
        monkeypatch.setattr(command, "callback", inspect.unwrap(command.callback))  # type: ignore[arg-type]


def run(*words: Any) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


def fitted(base: Path, data: Path, folder: Path, *flags: str) -> Any:
    return run("fit", "--model", base, "--data", data, "--output", folder, "--method", "lora", "--epochs", "1", *flags)


def through(base: Path, data: Path, folder: Path, *flags: str, test: Path | None = None) -> tuple[pd.DataFrame, Any]:
    """Fit, predict and evaluate; return the predictions, and the scores."""
    found = fitted(base, data, folder, *flags)
    assert found.exit_code == 0, found.output
    table = folder / "predictions.csv"
    predicted = run("predict", folder, test or data, "--num-draws", "2", "--output", table)
    assert predicted.exit_code == 0, predicted.output
    evaluated = run("evaluate", folder, data, "--num-draws", "2")
    assert evaluated.exit_code == 0, evaluated.output
    return pd.read_csv(table), json.loads(evaluated.stdout)


def test_strings(base: Path, tmp_path: Path) -> None:
    data = tmp_path / "reviews.csv"
    pd.DataFrame({"id": range(8), "review": TEXTS, "sentiment": WORDS, "label_text": WORDS}).to_csv(data)
    table, scores = through(base, data, tmp_path / "out")
    probs = table[["p(bad)", "p(fair)", "p(great)"]].to_numpy()
    right = probs[range(8), [["bad", "fair", "great"].index(word) for word in WORDS]]
    assert scores["nll"] == pytest.approx(-np.log(right).mean(), abs=1e-6)
    assert scores["accuracy"] == (table["predicted"] == WORDS).mean()
    posterior = bayeslora.load(tmp_path / "out")
    assert (posterior.columns.text, posterior.columns.label) == (("review",), "sentiment")


def test_semicolons_and_latin_1(base: Path, tmp_path: Path) -> None:
    data = tmp_path / "avis.csv"
    rows = [f'{i};"{text}; très";{word}é' for i, (text, word) in enumerate(zip(TEXTS, WORDS, strict=True))]
    data.write_bytes("\r\n".join(["nº;texte;label", *rows]).encode("latin-1"))
    assert read(str(data))["train"]["texte"][0] == "good film; très"
    table, scores = through(base, data, tmp_path / "out")
    assert list(table.columns[1:4]) == ["p(badé)", "p(fairé)", "p(greaté)"]
    assert scores["accuracy"] == (table["predicted"] == [f"{word}é" for word in WORDS]).mean()


def test_stars_as_real_numbers(base: Path, tmp_path: Path) -> None:
    data = tmp_path / "stars.csv"
    stars = [5.0, 1.0, 4.0, 2.0, 3.0, 3.0, 1.0, 5.0]
    pd.DataFrame({"text": TEXTS, "stars": stars}).to_csv(data, index=False)
    refused = fitted(base, data, tmp_path / "out")
    assert refused.exit_code == 2
    line = refused.output.strip().splitlines()[-1]
    assert line.startswith("bayeslora: data: the labels in 'stars' are whole numbers written as real ones (5.0, 1.0,")
    assert all(f"'{way}'" in line for way in ("classification", "ordinal", "regression"))
    table, scores = through(base, data, tmp_path / "out", "--likelihood", "ordinal")
    assert list(table.columns[1:6]) == [f"p({star})" for star in range(1, 6)]
    right = table[[f"p({star})" for star in range(1, 6)]].to_numpy()[range(8), np.asarray(stars, int) - 1]
    assert scores["nll"] == pytest.approx(-np.log(right).mean(), abs=1e-6)


def test_words_with_tags(base: Path, tmp_path: Path) -> None:
    data = tmp_path / "names.jsonl"
    rows = [
        {"tokens": text.split(), "ner_tags": ["B-X" if w == "film" else "O" for w in text.split()]} for text in TEXTS
    ]
    data.write_text("\n".join(map(json.dumps, rows)))
    table, scores = through(base, data, tmp_path / "out")
    tags = [tag for row in rows for tag in row["ner_tags"]]
    assert scores["accuracy"] == (table["predicted"] == tags).mean()


def test_a_test_file_without_labels(base: Path, tmp_path: Path) -> None:
    data, test = tmp_path / "train.tsv", tmp_path / "test.tsv"
    pd.DataFrame({"key": range(8), "sentence": TEXTS, "label": WORDS}).to_csv(data, sep="\t", index=False)
    pd.DataFrame({"sentence": TEXTS, "key": range(8)}).to_csv(test, sep="\t", index=False)
    table, _ = through(base, data, tmp_path / "out", "--id", "key", test=test)
    again = run("predict", tmp_path / "out", data, "--num-draws", "2", "--output", tmp_path / "again.csv")
    assert again.exit_code == 0
    written = pd.read_csv(tmp_path / "again.csv")
    assert written.pop("label").tolist() == WORDS
    pd.testing.assert_frame_equal(table, written)
    assert table.columns[0] == "key"
    failed = run("evaluate", tmp_path / "out", test)
    assert failed.exit_code == 2
    assert "has no labels" in failed.output


# Files


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
def test_tables_of_text(separator: str, encoding: str, tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": ["naïve, “quoted”; a|b", "two\nlines"], "label": ["NA", "null"], "n": [1, 2]})
    frame.to_csv(tmp_path / "data.csv", sep=separator, encoding=encoding, index=False)
    table = read(str(tmp_path / "data.csv"))["train"]
    assert table.to_dict() == frame.to_dict("list")


def test_a_bad_row_is_named(tmp_path: Path) -> None:
    data = tmp_path / "data.csv"
    data.write_text("text,label\ngood,1\nbad, really bad,0\n")
    with pytest.raises(ValueError, match=r"csv, line 3: there are 3 columns, and 2 in the head: 'bad, really bad,0'"):
        read(str(data))
    data.write_text("")
    with pytest.raises(ValueError, match=r"data\.csv is empty"):
        read(str(data))
    data.write_text("text,label\n")
    with pytest.raises(ValueError, match=r"data\.csv has no rows"):
        read(str(data))
    lines = tmp_path / "data.jsonl"
    lines.write_text('{"text": "good", "label": 1}\n{"text": "bad" "label": 0}\n')
    with pytest.raises(ValueError, match=r"data\.jsonl cannot be read as jsonl: line 2: "):
        read(str(lines))


def test_a_spreadsheet_says_which_package_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data.xlsx"
    data.write_bytes(b"PK")
    frame = pd.DataFrame({"text": ["good", None], "label": [1, 0]})
    monkeypatch.setattr(pd, "read_excel", lambda *_, **__: frame)
    assert read(str(data))["train"].to_dict() == {"text": ["good", None], "label": [1, 0]}

    def missing(*_: Any, **__: Any) -> None:
        raise ImportError("Missing optional dependency 'openpyxl'.")

    monkeypatch.setattr(pd, "read_excel", missing)
    failed = run("evaluate", tmp_path, data)
    assert failed.exit_code == 2
    with pytest.raises(ImportError, match=r"data\.xlsx: reading this file needs the package openpyxl: pip install"):
        read(str(data))
