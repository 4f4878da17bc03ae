"""Everything shown is run: the examples, as a user starts them."""

import difflib
import os
import runpy
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import pandas as pd
import pytest

import bayeslora
from tests.helpers import tiny_bert
from tests.test_data import tiny_tokenizer

FOLDER = Path(__file__).parent.parent / "examples"


Run = Callable[..., str]


@pytest.fixture
def run(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Run]:
    """Runs a script as if it was started with words, and returns what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    known = dict(bayeslora.METHODS)

    def started(path: Path, *words: str) -> str:
        monkeypatch.setattr(sys, "argv", [str(path), *words])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            runpy.run_path(str(path), run_name="__main__")
        return capsys.readouterr().out

    yield started
    bayeslora.METHODS.clear()
    bayeslora.METHODS.update(known)


SCRIPTS = (FOLDER / "trainer_script.py", FOLDER / "trainer_script_bayeslora.py")
NEED_DATA = {FOLDER / "glue.py", FOLDER / "question_answering.py"}
LIGHTNING = FOLDER / "lightning_loop.py"
SMALL = {
    "instructions": "--pretraining 1 --epochs 1 --draws 2",
    "images": "--shots 2 --pretraining 1 --epochs 1 --test 30",
    "language_model": "--pretraining 2 --train 16 --test 2 --epochs 1",
    "text_classification": "--train 32 --test 16 --epochs 1",
}
"""Options that make an example quick; the others are."""


@pytest.mark.parametrize(
    "path", sorted(set(FOLDER.glob("*.py")) - NEED_DATA - {LIGHTNING, *SCRIPTS}), ids=lambda path: path.stem
)
def test_example_runs(path: Path, run: Run) -> None:
    assert run(path, *SMALL.get(path.stem, "").split())


@pytest.mark.slow
def test_lightning_example_runs() -> None:
    pytest.importorskip("lightning")
    done = subprocess.run([sys.executable, str(LIGHTNING)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "p(positive)" in done.stdout


@pytest.mark.parametrize("task", ["mrpc", *(pytest.param(task, marks=pytest.mark.slow) for task in ("stsb", "boolq"))])
def test_glue_example(tmp_path: Path, task: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    # In the form of the published files; what `BAYESLORA_DATA` names may hold any part of them.
    words = ["a joy", "splendid", "awful", "dreadful"] * 10
    columns = {
        "mrpc": {"sentence1": words, "sentence2": words[::-1], "label": [1, 1, 0, 0] * 10, "idx": range(40)},
        "stsb": {"sentence1": words, "sentence2": words[::-1], "label": [4.5, 3.0, 2.9, 0.0] * 10, "idx": range(40)},
        "boolq": {"question": words, "passage": [None] * 40, "idx": range(40), "label": [1, 1, 0, 0] * 10},
    }[task]
    folder = tmp_path / ("super_glue" if task == "boolq" else "glue") / task
    folder.mkdir(parents=True)
    pd.DataFrame(columns).to_parquet(folder / "train.parquet")
    counts = ("--train", "16", "--held-out", "8", "--test", "16", "--epochs", "1", "--num-draws", "2")
    monkeypatch.setenv("BAYESLORA_DATA", str(tmp_path))
    printed = run(FOLDER / "glue.py", task, *counts)
    assert all(name in printed for name in ("majority", "lora + temperature", "monteclora + temperature"))


def test_question_answering_example(tmp_path: Path, run: Run) -> None:
    context = "The cathedral was begun in 1163 and completed in 1345."
    rows = {
        "question": ["When was it begun?", "When was it completed?"] * 6,
        "context": [context] * 12,
        "answers": [{"text": ["1163"], "answer_start": [27]}, {"text": ["1345"], "answer_start": [49]}] * 6,
    }
    for split in ("train", "validation"):
        pd.DataFrame(rows).to_parquet(tmp_path / f"{split}.parquet")
    counts = ("--train", "12", "--test", "6", "--epochs", "1", "--num-draws", "2")
    printed = run(FOLDER / "question_answering.py", "--data", str(tmp_path), *counts)
    assert all(name in printed for name in ("exact_match", "monteclora", "Least sure"))


@pytest.mark.filterwarnings("ignore")
def test_the_trainers_script_and_its_twin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in (tiny_bert(2), tiny_tokenizer()):
        part.save_pretrained(tmp_path / "model")
    for path in SCRIPTS:
        words = ("--model", tmp_path / "model", "--train", "16", "--output-dir", tmp_path / path.stem)
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, words)])
        runpy.run_path(str(path), run_name="__main__")
        *log, accuracy = capsys.readouterr().out.splitlines()
        assert 0 <= float(accuracy) <= 1
        assert sum("eval_accuracy" in line for line in log) >= 4  # it stops at the third that is no better
    one, other = ([*path.read_text().splitlines()] for path in SCRIPTS)
    changed = [line for line in difflib.ndiff(one, other) if line[0] in "+-"]
    assert len(changed) <= 30
    assert bayeslora.load(tmp_path / SCRIPTS[1].stem, tiny_bert(2)).class_names == ("negative", "positive")


def test_the_documentation_shows_every_example() -> None:
    pages = "".join(path.read_text() for path in FOLDER.parent.glob("docs/*.md"))
    assert [path.name for path in FOLDER.glob("*.py") if f'--8<-- "examples/{path.name}"' not in pages] == []


REAL_DATA = Path(os.environ.get("BAYESLORA_DATA", "/nonexistent")) / "glue" / "mrpc" / "train.parquet"


@pytest.mark.skipif(not REAL_DATA.is_file(), reason="BAYESLORA_DATA names no folder with glue/mrpc")
def test_glue_example_reads_the_published_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    glue = runpy.run_path(str(FOLDER / "glue.py"), run_name="glue")
    data = glue["read"]("mrpc")
    task = glue["split"](data, 0, 500, 500, 1500)
    assert [len(each) for each in (task.train, task.held_out, task.test)] == [500, 500, 1500]
    assert sum(data["label"]) == 2474
    assert len({*task.train["sentence1"]} & {*task.test["sentence1"]}) < 50
