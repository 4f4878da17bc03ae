"""The command line: once in a process of its own, as a user starts it; otherwise within this one."""

import dataclasses
import json
import math
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import typer
from torch import nn
from typer.main import get_command
from typer.testing import CliRunner, Result

import bayeslora
from bayeslora.cli import app, as_json
from bayeslora.data import Columns, read
from bayeslora.divergence import DivergedError
from bayeslora.failing import NotSavedError
from bayeslora.methods import METHODS
from bayeslora.piping import columns_beside
from bayeslora.shell import check_output, fields_of, method_fields, with_columns, write_table
from bayeslora.stopping import Terminated
from bayeslora.wording import errors, with_flags
from tests.test_strangers_files import as_typer_calls_them

__all__ = ["as_typer_calls_them"]  # a fixture


def run(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def process(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bayeslora.cli", *words], capture_output=True, text=True, check=False, timeout=600
    )


def test_fit_predict_and_evaluate(encoder: Path, tmp_path: Path) -> None:
    data = tmp_path / "words.csv"
    rows = [("good", 1), ("awful", 0), ("splendid", 1), ("dreadful", 0)] * 4
    pd.DataFrame(rows, columns=["text", "label"]).to_csv(data, index=False)
    out = tmp_path / "out"
    fitted = process(
        *("fit", "--model", str(encoder), "--data", str(data), "--output", str(out), "--targets", "attention"),
        *("--exclude", "key", "--head", "classifier"),
        *("--epochs", "1", "--components", "2", "--noise-ratio=1.5"),
    )
    assert fitted.returncode == 0, fitted.stderr
    assert "Saved in" in fitted.stdout
    fields = json.loads((out / "bayeslora.json").read_text())["method"]["fields"]
    assert (fields["components"], fields["noise_ratio"]) == (2, 1.5)
    network = json.loads((out / "bayeslora.json").read_text())["network"]
    assert {name.rpartition(".")[2] for name in network["targets"]} == {"query", "value"}
    assert network["head"] == ["classifier"]
    assert "head         'classifier', trained" in fitted.stderr

    table = tmp_path / "predictions.csv"
    predicted = run("predict", str(out), str(data), "--num-draws", "auto", "--output", str(table))
    assert predicted.exit_code == 0, predicted.stderr
    written = pd.read_csv(table)
    columns = {"predicted", "p(0)", "p(1)", "entropy", "aleatoric", "epistemic", "draws", "text", "label"}
    assert columns == set(written.columns)
    assert list(zip(written["text"], written["label"], strict=True)) == rows

    calibrated = run("calibrate", str(out), str(data), "--output", str(tmp_path / "calibrated"), "--num-draws", "2")
    assert calibrated.exit_code == 0, calibrated.stderr
    assert json.loads((tmp_path / "calibrated" / "bayeslora.json").read_text())["temperature"] != 1
    merged = run("merge", str(out), "--output", str(tmp_path / "merged"))
    assert merged.exit_code == 0, merged.stderr
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in (tmp_path / "merged").iterdir()}
    exported = run("export", str(out), "--output", str(tmp_path / "peft"), "--num-draws", "2")
    assert exported.exit_code == 0, exported.stderr
    assert "2 PEFT adapters" in exported.stdout
    assert (tmp_path / "peft" / "draw-1" / "adapter_config.json").is_file()

    evaluated = run("evaluate", str(out), str(data), "--num-draws", "2")
    assert evaluated.exit_code == 0, evaluated.stderr
    assert {"accuracy", "nll", "ece", "ece_floor", "brier", "center_nll"} <= set(json.loads(evaluated.stdout))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method", "nonsense"], f"--method 'nonsense' is not known. Methods: {', '.join(METHODS)}"),
        (["--nonsense", "1"], "MonteCLoRA has no field 'nonsense'; its fields are: components"),
        (["--df", "nonsense"], "--df 'nonsense': give 'features', 'rank', a positive finite number, or inf"),
        (["--batch-size", "0"], "bayeslora: --batch-size 0: give a whole number of at least 1"),
        (["--folds", "1"], "bayeslora: --folds 1: give a whole number of at least 2"),
    ],
)
def test_errors_are_one_line(encoder: Path, tmp_path: Path, flags: list[str], message: str) -> None:
    data = tmp_path / "words.csv"
    data.write_text("text,label\ngood,1\nbad,0\n")
    failed = run("fit", "--model", str(encoder), "--data", str(data), "--output", str(tmp_path / "out"), *flags)
    assert failed.exit_code == 2
    assert message in " ".join(failed.stderr.split())
    assert "Traceback" not in failed.stderr


def test_a_missing_posterior_says_so(tmp_path: Path) -> None:
    data = tmp_path / "words.csv"
    data.write_text("text,label\ngood,1\n")
    failed = run("evaluate", str(tmp_path), str(data))
    assert failed.exit_code == 2
    assert "holds no posterior" in failed.stderr


def test_every_command_has_help() -> None:
    for command in ("demo", "fit", "predict", "evaluate", "calibrate", "merge", "export"):
        assert run(command, "--help").exit_code == 0


def test_scores_that_are_no_number_are_null() -> None:
    assert json.loads(as_json({"nll": 0.5, "auroc_errors": math.nan})) == {"nll": 0.5, "auroc_errors": None}


def test_flags_are_read_as_json() -> None:
    fields = method_fields("monteclora", ["--noise-ratio", "2", "--cooperative=false", "--df", "rank"])
    assert fields == {"noise_ratio": 2, "cooperative": False, "df": "rank"}
    with pytest.raises(ValueError, match="give pairs, --field value"):
        method_fields("monteclora", ["--noise-ratio"])


def test_truth_values_are_switches() -> None:
    fields = method_fields("monteclora", ["--sparse", "--no-cooperative", "--components", "3"])
    assert fields == {"sparse": True, "cooperative": False, "components": 3}
    assert method_fields("monteclora", ["--components", "3", "--sparse"]) == {"sparse": True, "components": 3}
    with pytest.raises(ValueError, match="no field 'no_components'"):
        method_fields("monteclora", ["--no-components", "3"])


@pytest.mark.parametrize("method", METHODS)
def test_every_field_of_every_method_is_described(method: str) -> None:
    cls: Any = METHODS[method]
    described = fields_of(cls)
    assert [field.flag.split("/")[0][2:].replace("-", "_") for field in described] == [
        field.name for field in dataclasses.fields(cls)
    ]
    assert all(field.sentence and field.kind for field in described)


def test_help_lists_the_fields_of_the_method_that_is_named() -> None:
    shown = run("fit", "--method", "laplace", "--help").stdout
    assert "Fields of laplace" in shown
    assert "--last-layer/--no-last-layer" in shown
    assert "--prior-precision" in shown


def test_the_help_fits_80_columns() -> None:
    shown = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["fit", "--method", "monteclora", "--help"]).stdout
    assert max(map(len, shown.splitlines())) <= 80


def test_a_flag_that_is_not_one_may_be_another_of_fit(tmp_path: Path) -> None:
    done = run("fit", "--model", "nowhere", "--data", "none.csv", "--output", str(tmp_path / "out"), "--seeds", "3")
    assert done.exit_code == 2
    assert "Did you mean 'seed' instead of 'seeds'?" in done.stderr
    flags = ["--model", "nowhere", "--data", "none.csv", "--output", str(tmp_path / "out")]
    done = run("fit", *flags, "--shots", str(tmp_path / "none.csv"))
    assert done.exit_code == 2


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("name it, label='stars', or text=['a', 'b'].", "name it, --label 'stars', or --text 'a' --text 'b'."),
        (
            "Train for more epochs (epochs=…) or (num_classes=2).",
            "Train for more epochs (--epochs …) or (num_classes=2).",
        ),
        ("refit=False is for folds=…: give both.", "--no-refit is for --folds …: give both."),
        ("with post_hoc=True: pass them, fit(…, init=…).", "with --post-hoc: pass them, --init …."),
        (
            "head='x' is no module: name one, or none, head=().",
            "--head 'x' is no module: name one, or none, --head ''.",
        ),
        ("class_weights={'spam': 5}; load(…, method=x)", "--class-weights {'spam': 5}; --method x"),
        ("ClassLabel(names=['a'])), LoRA(rank=3), label=…, tokenizer=….", None),
        ("pass likelihood=….", "pass --likelihood …."),
        ("Row 3 is 'text=[sic]'; text=[sic, 1].", "Row 3 is 'text=[sic]'; text=[sic, 1]."),  # a user's own words
    ],
)
def test_messages_name_the_flag_in_place_of_the_keyword(
    message: str, shown: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = (
        get_command(app)
        .commands["fit"]
        .make_context("fit", ["--model", "m", "--data", "d", "--output", "o", "--post-hoc"])
    )
    monkeypatch.setattr("bayeslora.wording._current_context", lambda: context)
    expected = message.replace("label=…", "--label …") if shown is None else shown
    assert with_flags(message) == expected


def test_the_version_is_printed() -> None:
    assert run("--version").stdout == f"bayeslora {bayeslora.__version__}\n"


def test_the_package_is_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["bayeslora", "--version"])
    with pytest.raises(SystemExit) as exit:
        runpy.run_module("bayeslora", run_name="__main__")
    assert exit.value.code == 0
    assert capsys.readouterr().out == f"bayeslora {bayeslora.__version__}\n"


@pytest.mark.parametrize("ending", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_tables_have_the_format_of_their_name(ending: str, tmp_path: Path) -> None:
    table = pd.DataFrame({"text": ["né", "b,\tc"], "p": [0.25, 0.5]})
    path = tmp_path / "new" / f"table.{ending}"
    check_output(path, is_table=True)
    write_table(table, path)
    readers: dict[str, Any] = {
        "csv": pd.read_csv,
        "tsv": lambda path: pd.read_csv(path, sep="\t"),
        "json": pd.read_json,
        "jsonl": lambda path: pd.read_json(path, lines=True),
        "parquet": pd.read_parquet,
    }
    pd.testing.assert_frame_equal(readers[ending](path), table, check_dtype=False)


@pytest.mark.parametrize("ending", ["csv", "json", "jsonl", "parquet"])
def test_what_is_written_can_be_read_again(ending: str, tmp_path: Path) -> None:
    columns = {
        "key": ["2024-01-31", "2024-02-01"],
        "predicted": [("joy", "anger"), ()],
        "p(joy)": [1.2345678901234e-12, 0.1234567890123],
    }
    path = tmp_path / f"table.{ending}"
    write_table(pd.DataFrame(columns).assign(key=pd.to_datetime(columns["key"])), path)
    table = read(str(path))["train"].to_dict()
    assert table["predicted"] == [["joy", "anger"], []]
    assert table["p(joy)"] == pytest.approx(columns["p(joy)"], rel=0, abs=1e-15)
    assert [str(key)[:10] for key in table["key"]] == columns["key"]


def test_columns_of_the_data_stay_beside_their_predictions() -> None:
    features = datasets.Features({"key": datasets.Value("string"), "y": datasets.ClassLabel(names=["no", "yes"])})
    rows = datasets.Dataset.from_dict({"key": ["a", "b"], "y": [1, -1]}, features=features)
    table = with_columns(pd.DataFrame({"predicted": [0, 1]}), rows, ["key", "text", "y", None])
    assert list(table.columns) == ["key", "predicted", "y"]
    assert table["y"].tolist() == ["yes", -1]
    assert list(with_columns(pd.DataFrame({"token": [0, 1, 2]}), rows, ["key"]).columns) == ["token"]


def test_words_stay_beside_their_predictions() -> None:
    tags = datasets.Sequence(datasets.ClassLabel(names=["O", "B"]))
    features = datasets.Features(
        {"nr": datasets.Value("int64"), "tokens": datasets.Sequence(datasets.Value("string")), "ner": tags}
    )
    rows = datasets.Dataset.from_dict({"nr": [7, 9], "tokens": [["a", "film"], ["b"]], "ner": [[0, 1], [0]]}, features)
    names = columns_beside(rows, Columns(label="ner"), None, None, None)
    table = with_columns(pd.DataFrame({"example": [0, 0, 1], "predicted": ["O", "O", "B"]}), rows, names)
    assert table["nr"].tolist() == [7, 7, 9]
    assert table["tokens"].tolist() == ["a", "film", "b"]
    assert table["ner"].tolist() == ["O", "B", "O"]
    cut = with_columns(pd.DataFrame({"example": [0, 1]}), rows, names)  # of words that the network does not reach
    assert list(cut.columns) == ["nr", "example"]


def test_outputs_are_tried_before_anything_is_computed(encoder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for output, message in [
        (tmp_path / "file" / "out", "cannot be written"),
        (tmp_path / "file", "is a file: give a folder"),
    ]:
        with pytest.raises(ValueError, match=message):
            check_output(output)
    with pytest.raises(ValueError, match=r"ends in '\.pdf': give a file that ends in \.csv"):
        check_output(tmp_path / "out.pdf", is_table=True)
    (tmp_path / "out.csv").mkdir()
    with pytest.raises(ValueError, match="is a folder: give a file"):
        check_output(tmp_path / "out.csv", is_table=True)
    data, link = tmp_path / "data.csv", tmp_path / "link.csv"
    data.write_text("text,note\na film,mine\n")
    link.symlink_to(data)
    for command in (["out", str(data)], ["out", "other.csv", "--decide", str(data)]):
        refused = run("predict", *command, "--output", str(link))
        assert refused.exit_code == 2
        assert "link.csv is read, and its other columns would be lost" in refused.stderr
    words = ["fit", "--model", str(encoder), "--data", "nowhere.csv", "--output", str(tmp_path / "file")]
    refused = run(*words)
    assert refused.exit_code == 2
    assert "is a file: give a folder" in refused.stderr


def test_an_error_that_nobody_expected_is_one_line_with_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as exit, errors():
        raise RuntimeError("two\nlines")
    assert exit.value.exit_code == 1
    assert capsys.readouterr().err == "bayeslora: RuntimeError: two lines\n"


def test_predictions_report_their_progress() -> None:
    from bayeslora.prediction import watched

    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    posterior = bayeslora.fit(network, (x, [0, 1] * 5), "lora", rank=1, epochs=0, progress=False)
    counts: list[int] = []
    with watched(counts.append):
        posterior.predict(x, 2, batch_size=4)
    posterior.predict(x, 2)
    assert counts == [4, 4, 2]


def diverged(message: str) -> DivergedError:
    """The error, without the posterior that belongs to it."""
    error = DivergedError.__new__(DivergedError)
    error.args = (message,)
    return error


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (
            KeyboardInterrupt(),
            130,
            "bayeslora: Interrupted. The posterior, interrupted at step 5 of 6, is saved in out.",
        ),
        (
            Terminated(15),
            143,
            "bayeslora: Ended by SIGTERM. The posterior, interrupted at step 5 of 6, is saved in out.",
        ),
        (NotSavedError("out could not be written: No space left on device."), 1, "bayeslora: out could not be written"),
        (diverged("Training stopped at step 6."), 1, "bayeslora: Training stopped at step 6. The posterior, "),
    ],
)
def test_what_breaks_a_command_off_is_one_line_with_the_folder(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if not isinstance(error, OSError):
        error.add_note("The posterior, interrupted at step 5 of 6, is saved in out.")
    with pytest.raises(typer.Exit) as exit, errors():
        raise error
    assert exit.value.exit_code == status
    written = capsys.readouterr().err
    assert written.startswith(line)
    assert written.count("\n") == 1
