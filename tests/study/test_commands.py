"""`bayeslora compare | sweep | report` on a model in a folder."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

import bayeslora
from bayeslora import commands
from bayeslora.cli import app
from tests.helpers import tiny_bert
from tests.test_data import tiny_tokenizer

WORDS = [("good", "yes"), ("awful", "no"), ("good film", "yes"), ("bad film", "no")]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A model, and labels to learn from and to test."""
    monkeypatch.setattr(commands, "quiet", lambda: None)  # it is for a whole process
    tiny_bert(2).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    for name, number in (("train", 5), ("test", 3)):
        pd.DataFrame(WORDS * number, columns=["text", "label"]).to_csv(tmp_path / f"{name}.csv", index=False)
    return {
        name: str(tmp_path / path) for name, path in {"model": "model", "data": "train.csv", "test": "test.csv"}.items()
    }


def flags(given: dict[str, Any]) -> list[str]:
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def run(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def test_compare(files: dict[str, str], tmp_path: Path) -> None:
    more = {"method": "blob", "seeds": 1, "epochs": 1, "rank": 2, "num-draws": 2, "store": tmp_path / "runs"}
    found = run("compare", *flags({**files, **more, "page": tmp_path / "new" / "page.html"}))
    assert found.exit_code == 0, found.output
    rows = [line.split("|")[1].strip() for line in found.stdout.splitlines()[-3:]]
    assert rows == ["lora", "lora + temperature", "blob"]
    assert "</html>" in (tmp_path / "new" / "page.html").read_text()
    assert len([*(tmp_path / "runs").glob("run-*.json")]) == 3
    refused = run("compare", *flags({**files, **more, "page": tmp_path}))
    assert refused.exit_code == 2
    assert "is a folder: give a file that ends in .html" in " ".join(refused.output.split())


def test_sweep(files: dict[str, str], tmp_path: Path) -> None:
    grid = ["--learning-rate", "0.01", "--learning-rate", "1e-3", "--batch-size", "8", "--method", "blob"]
    more = {"method": "lora", "epochs": 1, "rank": 2, "num-draws": 2, "store": tmp_path / "runs"}
    words = ["sweep", *flags({**files, **more}), *grid]
    found = run(*words, "--figure", str(tmp_path / "new" / "boxes.png"))
    assert found.exit_code == 0, found.output
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in found.stdout.splitlines()[-2:]]
    assert rows == [["lora", "2"], ["blob", "2"]]
    assert (tmp_path / "new" / "boxes.png").stat().st_size > 1000
    assert len([*(tmp_path / "runs").glob("run-*.json")]) == 4
    refused = run(*words, "--figure", "boxes.doc")
    assert refused.exit_code == 2
    assert "--figure boxes.doc ends in '.doc': give a file that ends in .png" in " ".join(refused.output.split())


def test_report(files: dict[str, str], tmp_path: Path) -> None:
    settings: dict[str, Any] = {"rank": 2, "epochs": 1, "progress": False}
    bayeslora.fit(files["model"], files["data"], "blob", **settings).save(tmp_path / "out")
    page = tmp_path / "new" / "report.html"
    found = run(
        *("report", str(tmp_path / "out"), files["test"], "--output", str(page), "--familiar", files["data"]),
        *("--num-draws", "2"),
    )
    assert found.exit_code == 0, found.output
    assert f"Written to {page}." in " ".join(found.stdout.split())
    assert "good film" in page.read_text()
    refused = run("report", str(tmp_path / "out"), files["test"], "--output", str(tmp_path / "report"))
    assert refused.exit_code == 2
    assert "ends in '': give a file that ends in .html" in " ".join(refused.output.split())
