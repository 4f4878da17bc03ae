"""Sweeps: robustness over a grid, against numbers by hand."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bayeslora import ArgumentError, Sweep, fit, sweep
from bayeslora.study import runs
from tests.study.networks import DATA, TEST, network

GRID: dict[str, Any] = {"learning_rates": [3e-2, 1e-3], "batch_sizes": [16, 50], "num_draws": 2}
ABOUT = {"data": {"examples": 9}, "test": {"examples": 5}}


def swept(methods: Any = ("lora", "blob"), **settings: Any) -> Sweep:
    return sweep(network(), DATA, methods, test=TEST, **{**GRID, "rank": 2, "epochs": 1, **settings})


def made_up(nlls: dict[str, Sequence[float | None]], metric: str = "accuracy") -> Sweep:
    """A sweep with these NLLs, one for each learning rate; None for a fit that diverged."""
    found = []
    for name, values in nlls.items():
        for number, nll in enumerate(values):
            run: dict[str, Any] = {"names": [name], "seed": 0, "failed": "lost" if nll is None else None, "results": {}}
            run["cell"] = {"learning_rate": 10.0**-number, "batch_size": 8}
            if nll is not None:
                run["results"] = {name: {"scores": {"nll": nll, metric: 1 - nll / 10}}}
            found.append(run)
    return Sweep(found, [*nlls], ABOUT)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, Path]:
    store = tmp_path_factory.mktemp("store")
    return swept(store=store), store


def test_a_cell_is_what_fit_and_evaluate_find(whole: tuple[Sweep, Path]) -> None:
    found, _ = whole
    assert len(found.scores) == 2 * 2 * 2
    posterior = fit(network(), DATA, "blob", rank=2, epochs=1, learning_rate=1e-3, batch_size=50, progress=False)
    (value,) = (v for cell, v in found.values("blob").items() if cell[:2] == (1e-3, 50))
    assert value == pytest.approx(posterior.evaluate(TEST, 2)["nll"])
    text = found.to_markdown().splitlines()
    assert len({line.count("|") for line in text}) == 1
    assert "<table" in found._repr_html_()
    assert "learning rates  0.001, 0.03" in repr(found)


def test_numbers_are_those_by_hand() -> None:
    first, second = [0.5, 0.7, 0.9, 0.6, 0.8, 1.0, 0.4], [0.45, 0.6, 0.75, 0.58, 0.83, 0.7, 0.39]
    found = made_up({"lora": first, "mine": second})
    row = found.table.loc["mine"]
    assert row["intrinsic"] == pytest.approx(1 / 0.6)
    assert row["extrinsic"] == pytest.approx(0.94)
    assert row["nll_spread"] == pytest.approx(0.83 - 0.39)
    assert row["nll_iqr"] == pytest.approx(0.725 - 0.515)  # between the 2nd and 3rd, and the 5th and 6th of seven
    assert row["accuracy_spread"] == pytest.approx(0.044)
    # Differences −.05 −.1 −.15 −.02 +.03 −.3 −.01: ranks of the positive ones sum to 3, as 5 of 128 do at most.
    assert row["nll_difference"] == pytest.approx(-0.05)
    assert row["nll_p"] == pytest.approx(2 * 5 / 128)
    assert row["nll_p"] == pytest.approx(stats.wilcoxon(second, first).pvalue)
    assert found.verdict("mine").startswith("not to be told from lora: nll better in 6 of 7 cells, median difference")
    assert math.isnan(found.table.loc["lora", "nll_p"])
    assert found.table.loc["lora", "verdict"] == "what others are held against"


@pytest.mark.parametrize(("metric", "word"), [("nll", "better"), ("accuracy", "better")])
def test_a_method_that_is_better_everywhere_is_called_so(metric: str, word: str) -> None:
    better, worse = [0.5 + k / 10 for k in range(7)], [0.6 + k / 8 for k in range(7)]
    assert (
        made_up({"a": worse, "b": better}).verdict("b", metric).startswith(f"{word} than a: {metric} better in 7 of 7")
    )
    assert made_up({"a": better, "b": worse}).verdict("b", metric).startswith("worse than a")


def test_a_score_whose_small_values_are_good_is_read_so() -> None:
    found = made_up({"a": [0.5, None, 0.7], "b": [0.6, 0.5, 0.8]}, "rmse")
    assert found.main == "rmse"
    assert [*found.values("a", "rmse").values()].count(math.inf) == 1


def test_cells_are_paired_by_what_they_are_and_not_by_their_order() -> None:
    found = made_up({"a": [0.1, 0.2, 0.3], "b": [0.2, 0.3, 0.4]})
    mixed = Sweep([*reversed(found.runs)], found.methods, ABOUT)
    assert mixed.difference("b") == found.difference("b")
    assert found.difference("b").median == pytest.approx(0.1)
    fewer = Sweep(found.runs[:-1], found.methods, ABOUT)
    assert fewer.difference("b").cells == 2
    assert "of 2 cells, no p is below 0.5" in fewer.verdict("b")


def test_cells_that_are_lacking_are_named() -> None:
    whole = made_up({"a": [0.1, 0.2, 0.3], "b": [0.2, 0.3, 0.4]})
    assert whole.lacking("a") == whole.lacking("b") == []
    found = Sweep(whole.runs[1:-1], whole.methods, ABOUT)
    assert ([*map(str, found.lacking("a"))], found.difference("b").cells) == (
        ["learning rate 1, batch size 8, seed 0"],
        1,
    )
    words = "1 of 3 cells are lacking (learning rate 0.01, batch size 8, seed 0): its medians and spreads are not over"
    assert words in found.verdict("b")
    assert "1 of 3 cells are lacking" in repr(found).replace("\n", " ").replace("  ", "")


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_cell_that_fails_leaves_the_others(n_jobs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    methods = {"lora": "lora", "odd": {"method": "blob", "alpha": 3.0}, "blob": "blob"}
    grid: dict[str, Any] = {"learning_rates": [3e-2, 1e-3], "batch_sizes": [16], "store": tmp_path}
    made: list[str] = []

    def run(task: runs.Task, setting: runs.Setting) -> dict[str, Any]:
        made.extend(task.names)
        if task.names == ("odd",):
            raise MemoryError("no room")
        results = {task.names[0]: {"scores": {"nll": 1.0}, "temperature": 1.0, "left_out": {}, "parameters": 1}}
        return {**task.record(), "cell": task.cell, "results": results, "failed": None, "fit_seconds": 1.0}

    monkeypatch.setattr(runs, "run", run)
    with joblib.parallel_config("threading", n_jobs=n_jobs):
        with pytest.raises(MemoryError, match="no room") as error:
            swept(methods, **grid)
        words = r"This was the fit of odd with seed 0, learning rate 0\.0\d+, batch size 16; a store keeps the others\."
        assert re.fullmatch(words, error.value.__notes__[0])
        assert error.value.__notes__[1:] == ["1 more failed."]
        assert len([*tmp_path.glob("run-*.json")]) == 4
        made.clear()
        assert swept(["lora", "blob"], **grid).table["cells"].tolist() == [2, 2]
        assert not made
        # What fails before anything has ended is likely to be wrong for all.
        with pytest.raises(MemoryError):
            swept({"odd": methods["odd"]}, **{**grid, "learning_rates": [0.1 * each for each in range(1, 9)]})
        assert n_jobs > 1 or len(made) < 8  # threads may have begun with all of them


def test_a_cell_that_diverged_is_the_worst_and_is_named() -> None:
    nlls = {"a": [0.5, 0.6, 0.7, None], "b": [0.4, None, None, None], "c": [None] * 4, "d": [0.4, 0.5, 0.6, math.nan]}
    found = made_up(nlls)
    assert found.table["diverged"].tolist() == [1, 3, 4, 1]
    assert found.spread("a").median == pytest.approx(0.65)
    assert (found.spread("a").spread, found.table.loc["b", "intrinsic"]) == (math.inf, 0)
    assert found.spread("a", "accuracy").median == pytest.approx((0.93 + 0.94) / 2)
    assert found.table.loc["b", "extrinsic"] == -math.inf
    assert "3 of 4 cells diverged (learning rate 0.001, batch size 8, seed 0; learning rate 0.01" in found.verdict("b")
    assert found.verdict("c").endswith("; …)")
    # −.1, ∞, ∞, and 0 where both diverged: ranks 1, 2.5, 2.5
    apart = found.difference("b")
    assert (apart.better, apart.cells, apart.sign, apart.median) == (1, 4, 1, math.inf)
    assert apart.p == pytest.approx(stats.wilcoxon([-0.1, 9, 9, 0]).pvalue)
    assert "∞" in found.to_markdown()
    axes = found.plot().axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == [
        *("a (1 diverged)", "b (3 diverged)", "d (1 diverged)")
    ]
    assert found.scores["diverged"].sum() == 9


def test_a_fit_that_diverges_is_one_cell_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "bayeslora.study")
    found = swept(["lora"], learning_rates=[1e30, 1e-3], batch_sizes=[16], epochs=4)
    assert [str(cell) for cell in found.diverged("lora")] == ["learning rate 1e+30, batch size 16, seed 0"]
    assert math.isfinite(min(found.values("lora").values()))
    assert "1 of 2: lora, learning rate 1e+30, batch size 16, seed 0, failed: " in caplog.text
    assert math.isinf(found.table.loc["lora", "nll_spread"])


def test_a_sweep_that_is_killed_goes_on_and_its_grid_may_grow(
    whole: tuple[Sweep, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, store = whole
    made, run = [], runs.run

    def counted(*arguments: Any) -> dict[str, Any]:
        made.append(arguments[0].cell)
        return run(*arguments)

    monkeypatch.setattr(runs, "run", counted)
    pd.testing.assert_frame_equal(swept(store=store).table, expected.table)
    assert not made
    for path in sorted(store.glob("run-*.json"))[:2]:  # as if it had been killed before these, and while writing one
        path.unlink() if made else path.write_text(path.read_text()[:40])
    pd.testing.assert_frame_equal(swept(store=store).table, expected.table)
    assert len(made) == 2
    wider = swept(store=store, learning_rates=[3e-2, 1e-3, 1e-4], batch_sizes=[16])
    assert made[2:] == [{"learning_rate": 1e-4, "batch_size": 16}] * 2
    assert wider.table["cells"].tolist() == [3, 3]
    assert json.loads((store / "study.json").read_text())["study"] == "sweep"
    with pytest.raises(ValueError, match="holds the runs of another study: alpha None, now 4"):
        swept(store=store, alpha=4)


def test_a_temperature_is_one_more_method_and_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    held_out = (TEST[0][:9], TEST[1][:9])
    settings: dict[str, Any] = {"batch_sizes": [16], "seeds": [3], "validation": held_out, "store": tmp_path}
    found = swept(["lora", "lora + temperature"], learning_rates=[0.01], **settings)
    assert found.methods == ["lora", "lora + temperature"]
    assert len(found.runs) == 1  # one fit is scored twice
    assert found.values("lora", "accuracy") == found.values("lora + temperature", "accuracy")
    assert found.values("lora") != found.values("lora + temperature")
    again = swept(["lora", "lora + temperature"], learning_rates=[np.float64(0.01)], **settings)
    assert len([*tmp_path.glob("run-*.json")]) == 1
    pd.testing.assert_frame_equal(again.table, found.table)


@pytest.mark.parametrize(
    ("methods", "settings", "message"),
    [
        ([], {}, "methods=[]: give one at least"),
        (["blob", "blob"], {}, "'blob' is in it twice"),
        ({"a": {"method": "lora", "learning_rate": 1.0}}, {}, "'a' sets learning_rate, which the sweep varies"),
        (["lora"], {"learning_rates": []}, "learning_rates=[]: give one at least"),
        (["lora"], {"learning_rates": [0.1, 0.1]}, "learning_rates=[0.1, 0.1]: give one at least, and each once"),
        (["lora"], {"learning_rates": [-1.0]}, "learning_rates"),
        (["lora"], {"batch_sizes": [0]}, "batch_sizes"),
        (["lora"], {"batch_sizes": 8}, "batch_sizes=8"),
        (["lora"], {"learning_rate": 0.1}, "Did you mean 'learning_rates' instead of 'learning_rate'?"),
        (["lora"], {"folds": 2}, "sweep has no argument 'folds'"),
        (["lora"], {"seeds": [1, 1]}, "seeds=[1, 1]: give one at least"),
        (["lora"], {"test": None}, "test=None: data has no split 'test'"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_fitted(
    methods: Any, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArgumentError) as error:
        sweep(network(), DATA, methods, **{"test": TEST, **GRID, "epochs": 0, **settings})
    assert message in str(error.value)


def test_unknown_methods_and_scores_are_refused() -> None:
    found = made_up({"a": [0.5]})
    with pytest.raises(ArgumentError, match="method='b': the sweep has a"):
        found.verdict("b")
    with pytest.raises(ArgumentError, match="metric='bric': the sweep has nll, accuracy"):
        found.spread("a", "bric")
