"""Posteriors and predictions say what they are, in 80 columns and as HTML."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from rich.cells import cell_len
from rich.console import Console

import bayeslora
from bayeslora import (
    MultiLabelPrediction,
    ObservationPrediction,
    Prediction,
    RegressionPrediction,
    TokenPrediction,
    shell,
)
from bayeslora.display import as_html, as_text, table_text
from bayeslora.tasks.collecting import Rows
from tests.helpers import tiny_bert, tokens
from tests.methods.conftest import NO_DROPOUT

PROBS = np.random.default_rng(0).dirichlet(np.ones(3), (2, 7))
LONG = tuple(f"a rather long name of class {index}" for index in range(60))
REAL = torch.distributions.Normal(torch.zeros(7), torch.ones(7))

PREDICTIONS: dict[str, Any] = {
    "classes": lambda: Prediction(PROBS, ("good", "bad", "ugly")),
    "many classes": lambda: Prediction(np.random.default_rng(0).dirichlet(np.ones(60), (2, 7)), LONG),
    "labels": lambda: MultiLabelPrediction(PROBS),
    "numbers": lambda: RegressionPrediction(PROBS[..., 0], 0.5),
    "tokens": lambda: TokenPrediction(PROBS, Rows(np.arange(7), np.zeros(7, int), 7)),
    "observations": lambda: ObservationPrediction([REAL, REAL]),
    "nothing": lambda: Prediction(PROBS[:, :0]),
}


@pytest.mark.parametrize("name", PREDICTIONS)
def test_a_prediction_shows_its_kind_its_uncertainty_and_its_first_rows(name: str) -> None:
    prediction = PREDICTIONS[name]()
    text, html = repr(prediction), prediction._repr_html_()
    assert max(map(len, text.splitlines())) <= 80
    assert text.startswith(type(prediction).__name__)
    assert f"{type(prediction).__name__}</strong>" in html
    if name != "nothing":
        mean = prediction.entropy.mean(), prediction.aleatoric.mean(), prediction.epistemic.mean()
        said = "{:.3f} nats = {:.3f} aleatoric + {:.3f} epistemic".format(*mean)
        assert said in text
        assert said in html
        value = prediction.to_pandas()["predicted"][4]
        assert (f"{value:.3f}" if isinstance(value, float) else str(value)[:20]) in text.splitlines()[-1]
        assert html.count("<tr") >= 5
    if name == "classes":
        assert "3: good, bad, ugly" in text
        assert "p(ugly)" in text


def test_wide_letters_take_two_columns() -> None:
    names = ("とても良い映画でした", "很差 的 电影", "👍 great", "ok" * 60)
    prediction = Prediction(np.random.default_rng(0).dirichlet(np.ones(4), (3, 6)), names)
    lines = repr(prediction).splitlines()
    assert max(map(cell_len, lines)) <= 80
    assert len({*map(cell_len, lines[-3:])}) == 1  # columns end below each other
    text = as_text("Title", {"classes": "とても、" * 40 + "良い", "words": "x " * 80 + "é"})
    assert max(map(cell_len, text.splitlines())) <= 80
    assert "".join(text.split()).count("とても") == 40
    assert text.count("x") == 80


@pytest.fixture(scope="module")
def posterior() -> bayeslora.Posterior:
    settings: dict[str, Any] = {"epochs": 3, "validation": tokens(20, seed=1), "progress": False, "rank": 4}
    return bayeslora.fit(tiny_bert(**NO_DROPOUT), tokens(), "monteclora", components=8, **settings)


def test_a_posterior_shows_what_was_fitted_and_how_it_went(posterior: bayeslora.Posterior) -> None:
    history, counts = posterior.history, posterior.summary()
    last = history[history["epoch"] > history["epoch"].iloc[-1] - 1]["nll"].mean()
    shown = dict(line.strip().split("  ", 1) for line in repr(posterior).splitlines()[1:] if line.strip()[0].isalpha())
    assert shown["method"].strip() == "monteclora, components=8"
    assert shown["network"].strip() == "BertForSequenceClassification"
    assert shown["layers"].strip().startswith("12 adapted, rank 4: ")
    assert f"{counts['adapters']:,} numbers in adapters" in shown["learned"]
    assert f"n = 48, {len(history)} steps, 3 epochs, NLL {last:.3f} nats in the last" in shown["fit"]
    assert f"{history['validation_nll'].iloc[-1]:.3f}" in repr(posterior)
    assert shown["state"].strip() == "finished"
    assert "decides by" not in shown
    assert "temperature" not in shown


def test_a_posterior_shows_what_was_done_to_it(posterior: bayeslora.Posterior) -> None:
    changed = posterior.calibrate(tokens(), num_draws=2).decide(tokens(30), num_draws=2)
    changed.class_names, changed.state = ("<b>", "good", "ugly"), "interrupted at step 3"
    for shown in (repr(changed), changed._repr_html_()):
        for part in (f"{changed.temperature:.3f}", "30 held-out rows", "not finished: interrupted at step 3", "good"):
            assert part in shown
    assert "&lt;b&gt;" in changed._repr_html_()
    assert "<b>" not in changed._repr_html_()


@pytest.mark.parametrize("method", bayeslora.METHODS)
def test_every_method_is_shown_before_any_step(method: str) -> None:
    if method == "autoguide":
        pytest.skip("needs a prior of the user's own")
    fitted = bayeslora.fit(tiny_bert(), tokens(), method, epochs=0, progress=False)
    assert f"method   {method}" in repr(fitted)
    assert max(map(len, repr(fitted).splitlines())) <= 80


@pytest.mark.parametrize("columns", [1, 8, 60])
def test_tables_fit_into_80_columns(columns: int) -> None:
    table = pd.DataFrame({f"column {index}": ["x" * 90, "y"] for index in range(columns)})
    lines = table_text(table).splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) >= 3


def test_numbers_of_a_table_in_the_shell_are_shown_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("majority", "accuracy", "nll", "ece", "ece_floor", "brier", "auroc_unfamiliar")
    row = {"method": "MonteCLoRA, 16 draws", **dict.fromkeys(names, 0.562), "seconds": 43.0}
    monkeypatch.setattr(shell, "console", Console(width=80))
    shell.print_table(pd.DataFrame([row, row]), "Scores", "method")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split() for line in lines if "MonteCLoRA" in line] == [
        ["MonteCLoRA,", "16", "draws", *["0.562"] * len(names), "43"]
    ] * 2


def test_texts_of_a_table_in_the_shell_give_way_before_heads(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"example": "a long text " * 12, "predicted": "positive", "entropy": 0.6, "epistemic": 0.1}
    monkeypatch.setattr(shell, "console", Console(width=80))
    shell.print_table(pd.DataFrame([row, row]), "Predictions", "row")
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    for whole in ("predicted", "entropy", "epistemic", "0.600", "0.100"):
        assert whole in printed


def test_facts_without_a_place_to_break_are_cut() -> None:
    text = as_text("T" * 100, {"name": "x" * 300, "short": "y"})
    assert max(map(len, text.splitlines())) <= 80
    assert "y" in text
    assert "x" * 300 in as_html("T", {"name": "x" * 300})
