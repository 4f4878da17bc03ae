"""Comparisons: every method on the same labels, killed or not, with differences that are paired."""

import json
import math
import os
import random
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest

from bayeslora import ArgumentError, Comparison, compare, fit, metrics
from bayeslora.methods import BLoB
from bayeslora.study import runs
from bayeslora.study.intervals import blocks
from bayeslora.tasks.collecting import Outputs, Rows
from tests.faults import processes
from tests.study.networks import DATA, FEW, TEST, network


def comparison(methods: Any = ("blob",), **settings: Any) -> Comparison:
    return compare(network(), DATA, methods, **{"test": TEST, "seeds": 2, "num_draws": 3, **FEW, **settings})


def of_seed_0(found: Comparison) -> Comparison:
    return Comparison([run for run in found.runs if run["seed"] == 0], found.methods, found.about)


def timeless(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop(columns="seconds")


@pytest.fixture(scope="module")
def whole() -> Comparison:
    return comparison()


def test_the_table_has_lora_with_and_without_a_temperature_and_what_is_asked_for(whole: Comparison) -> None:
    table = whole.table
    assert list(table.index) == ["lora", "lora + temperature", "blob"]
    assert {"nll", "±nll", "ece", "ece_floor", "brier", "accuracy", "auroc_errors", "majority"} <= {*table.columns}
    assert (table["seeds"] == 2).all()
    assert table.loc["blob", "majority"] == metrics.majority_rate(TEST[1])
    assert "elpd" not in table  # without folds
    text = whole.to_markdown().splitlines()
    assert len(text) == 5
    assert len({line.count("|") for line in text}) == 1
    assert f"{table.loc['blob', 'nll']:.3f} ± {table.loc['blob', '±nll']:.3f}" in text[-1]
    assert "<table" in whole._repr_html_()
    assert "baseline     lora + temperature" in repr(whole)
    assert "seeds            nll" in repr(whole)  # what there is no room for is left out from the right


def test_scores_are_those_of_evaluate_at_the_same_seed(whole: Comparison) -> None:
    posterior = fit(network(), DATA, "blob", seed=1, progress=False, **FEW)
    expected = posterior.evaluate(TEST, 3, seed=1)
    found = whole.results("blob")[1]["scores"]
    assert found == pytest.approx({name: expected[name] for name in found})
    assert whole.scores.query("method == 'blob' and seed == 1")["nll"].item() == found["nll"]


def test_the_temperature_comes_out_of_the_same_labels(whole: Comparison) -> None:
    train, held_out, _ = runs.divided(DATA, 1, {})
    assert (len(train[0]), len(held_out[0])) == (45, 5)
    assert sorted([*train[0][:, 0], *held_out[0][:, 0]]) == sorted(DATA[0][:, 0])
    posterior = fit(network(), train, "lora", seed=1, progress=False, **FEW).calibrate(held_out, 3, seed=1)
    assert whole.results("lora + temperature")[1]["temperature"] == posterior.temperature
    assert whole.results("lora + temperature")[1]["scores"]["nll"] == pytest.approx(posterior.evaluate(TEST, 3)["nll"])


def test_differences_are_paired_by_seed_and_row(whole: Comparison) -> None:
    difference = whole.difference("blob", "brier", against="lora")
    means = [whole.estimate(name, "brier").value for name in ("blob", "lora")]
    assert difference.value == pytest.approx(means[0] - means[1])
    itself = whole.difference("blob", "ece", against="blob")
    assert (itself.value, itself.half) == (0, 0)


def test_scores_without_a_block_are_those_of_the_other_rows(whole: Comparison) -> None:
    posterior = fit(network(), DATA, "blob", seed=0, progress=False, **FEW)
    kept = blocks(len(TEST[1])) != 7
    expected = posterior.evaluate((TEST[0][kept], TEST[1][kept]), 3, seed=0)
    found = whole.results("blob")[0]["left_out"]
    for name in ("nll", "ece", "auroc_errors"):
        assert len(found[name]) == 12
        assert found[name][7] == pytest.approx(expected[name], nan_ok=True)


def test_a_comparison_that_is_killed_twice_ends_with_the_same_table(
    whole: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    made, run = [], runs.run

    def killed_third(*arguments: Any) -> dict[str, Any]:
        if len(made) in (1, 3):  # in the middle of its second run, and of its third
            made.append(None)
            raise Killed
        made.append(run(*arguments))
        return made[-1]

    monkeypatch.setattr(runs, "run", killed_third)
    for _ in range(2):
        with pytest.raises(Killed):
            comparison(store=tmp_path, seeds=1)
    (tmp_path / ".run-0.json.123").write_text('{"half')  # what a killed write leaves
    resumed = comparison(store=tmp_path, seeds=1)
    assert len(made) == 3 + 2  # no run is made twice
    pd.testing.assert_frame_equal(timeless(resumed.table), timeless(of_seed_0(whole).table))
    again = comparison(store=tmp_path, seeds=1)
    assert len(made) == 5
    pd.testing.assert_frame_equal(again.table, resumed.table)


@pytest.mark.slow
def test_six_methods_of_three_seeds_that_are_killed_five_times_end_with_the_table_of_the_unkilled(
    tmp_path: Path,
) -> None:
    moments = random.Random(0)
    methods = ["monteclora", "blob", "ivon", "lora_dropout", "laplace", "deep_ensemble"]

    def work(store: Path | None) -> pd.DataFrame:
        return timeless(comparison(methods, seeds=3, store=store).table)

    expected = processes.run(partial(work, None))
    for _ in range(5):
        ready = len([*tmp_path.glob("run-*.json")]) + moments.randint(1, 4)  # of 24
        pid, pipe = processes.fork(partial(work, tmp_path))
        while len([*tmp_path.glob("run-*.json")]) < ready and os.waitpid(pid, os.WNOHANG) == (0, 0):
            time.sleep(0.01)
        time.sleep(moments.random() / 4)
        os.kill(pid, signal.SIGKILL)
        assert processes.result_of(pid, pipe) is None
    before = {path.name: path.read_bytes() for path in tmp_path.glob("run-*.json")}
    assert 5 <= len(before) < 24
    pd.testing.assert_frame_equal(processes.run(partial(work, tmp_path)), expected)
    assert all((tmp_path / name).read_bytes() == content for name, content in before.items())  # no run is made twice


def test_two_workers_give_the_same_table(whole: Comparison) -> None:
    with joblib.parallel_config(backend="threading", n_jobs=2):
        threads = comparison(seeds=1)
    pd.testing.assert_frame_equal(timeless(threads.table), timeless(of_seed_0(whole).table))


@pytest.mark.slow
def test_two_dask_workers_give_the_same_table(whole: Comparison) -> None:
    distributed = pytest.importorskip("dask.distributed")
    client = distributed.Client(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with client, joblib.parallel_config(backend="dask"):
        found = comparison()
    pd.testing.assert_frame_equal(timeless(found.table), timeless(whole.table))


@pytest.mark.slow
def test_two_processes_give_the_same_table(whole: Comparison) -> None:
    pd.testing.assert_frame_equal(timeless(comparison(n_jobs=2).table), timeless(whole.table))


def test_a_store_of_another_comparison_is_refused_by_what_differs(tmp_path: Path) -> None:
    nothing: dict[str, Any] = {"epochs": 0, "seeds": 1, "store": tmp_path}
    comparison(["lora"], **nothing)
    comparison(["blob"], **nothing)  # methods may be added
    with pytest.raises(ValueError, match=r"holds the runs of another study: alpha None, now 4\. Give another"):
        comparison(["lora"], **nothing, alpha=4)
    with pytest.raises(ValueError, match=r"test \{'examples': 12, 'digest': '\w+'\}, now \{'examples': 10"):
        comparison(["lora"], **nothing | {"test": (TEST[0][:10], TEST[1][:10])})
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        comparison(["lora"], **nothing)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"has no study\.json, but other files, such as 'thesis\.tex'"):
        comparison(["lora"], **nothing | {"store": other})


def test_a_run_that_is_not_whole_is_made_anew(tmp_path: Path) -> None:
    nothing: dict[str, Any] = {"epochs": 0, "seeds": 1, "store": tmp_path}
    first = comparison(["lora"], **nothing)
    path = next(path for path in tmp_path.glob("run-*.json") if "lora" in json.loads(path.read_text())["results"])
    changed = json.loads(path.read_text())
    changed["results"]["lora"]["scores"]["nll"] += 1
    for content in (path.read_text()[:50], json.dumps(changed)):
        path.write_text(content)
        pd.testing.assert_frame_equal(timeless(comparison(["lora"], **nothing).table), timeless(first.table))
        assert json.loads(path.read_text())["results"]


def test_with_held_out_labels_one_fit_is_scored_with_its_temperature_and_without() -> None:
    found = comparison({"loud": BLoB(init_root=0.1)}, validation=(TEST[0][:9], TEST[1][:9]), seeds=[3])
    assert [tuple(run["results"]) for run in found.runs] == [("lora", "lora + temperature"), ("loud",)]
    lora, tempered = (found.results(name)[3] for name in ("lora", "lora + temperature"))
    assert lora["temperature"] == 1
    assert tempered["temperature"] != 1
    assert lora["scores"]["accuracy"] == tempered["scores"]["accuracy"]


def test_folds_give_every_method_an_elpd_and_a_paired_difference() -> None:
    found = comparison(["blob"], folds=2, seeds=2, epochs=0)
    rows = {name: np.array([found.results(name)[seed]["elpd"] for seed in (0, 1)]) for name in found.methods[1:]}
    assert all(each.shape == (2, 50) for each in rows.values())
    table = found.table
    assert table.loc["blob", "elpd"] == pytest.approx(rows["blob"].mean())
    apart = rows["blob"] - rows["lora + temperature"]
    assert table.loc["blob", "elpd_difference"] == pytest.approx(apart.mean())
    variance = apart.mean(1).var(ddof=1) / 2 + apart.mean(0).var(ddof=1) / 50
    assert table.loc["blob", "se_elpd_difference"] == pytest.approx(variance**0.5)
    assert math.isnan(table.loc["lora", "elpd"])
    assert table.loc["blob", "parameters"] > 2 * table.loc["lora", "parameters"]  # two members


def test_labels_without_a_temperature_are_compared_with_lora() -> None:
    data, test = ((x, x[:, 0] / 3) for x in (DATA[0], TEST[0]))
    found = compare(network(1), data, ["blob"], test=test, seeds=1, num_draws=2, **FEW)
    assert found.baseline == "lora"
    assert list(found.table.index) == ["lora", "blob"]
    assert {"nll", "rmse", "crps"} <= {*found.table.columns}


def test_a_fit_that_diverges_is_noted_and_the_others_go_on() -> None:
    methods = {"wild": {"method": "lora", "learning_rate": 1e30}}
    found = comparison(methods, seeds=1, epochs=4)
    assert found.verdict("wild") == "not known; 1 of 1 fits diverged"
    assert found.table.loc["lora", "nll"] > 0
    assert math.isnan(found.table.loc["wild", "nll"])


def test_a_fit_that_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="targets") as error:
        comparison({"nowhere": {"method": "blob", "targets": ["nowhere"]}}, seeds=[7], epochs=0, store=tmp_path)
    assert error.value.__notes__ == ["This was the fit of nowhere with seed 7; a store keeps the others."]


@pytest.mark.parametrize(
    ("methods", "settings", "message"),
    [
        ([], {}, "methods=[]: give one at least"),
        (["blob", "blob"], {}, "'blob' is in it twice"),
        (["blobb"], {}, "method='blobb' is not known"),
        ([3], {}, "methods=[3]: give"),
        ({"mine": {"learning_rate": 1.0}}, {}, "does not say which: give {'method': …}"),
        ({"lora": "blob"}, {}, "'lora' is LoRA, which is always in it"),
        ({"mine": {"method": "blob", "learning_rate": -1}}, {}, "learning_rate=-1: give a positive"),
        (["blob"], {"test": None}, "test=None: data has no split 'test'"),
        (["blob"], {"seeds": 0}, "seeds=0: give a whole number of at least 1"),
        (["blob"], {"seeds": [1, 1]}, "seeds=[1, 1]: give one at least, and each once"),
        (["blob"], {"output_dir": "a"}, "compare has no argument 'output_dir'"),
        (["blob"], {"learning_rte": 1}, "Did you mean 'learning_rate'"),
        (["blob + temperature"], {"folds": 2}, "every method has a temperature: leave out that of"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_fitted(
    methods: Any, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArgumentError) as error:
        comparison(methods, **settings)
    assert message in str(error.value)


def test_outputs_of_some_examples_keep_their_tokens() -> None:
    rows = Rows(np.array([0, 0, 1, 3]), np.array([1, 2, 0, 4]), 4)
    outputs = Outputs(np.arange(8.0).reshape(2, 4, 1), np.array([5, 6, 7, 8]), rows)
    part = outputs.take(np.array([True, False, True, True]))
    assert part is not None
    assert part.rows is not None
    assert part.labels is not None
    assert part.labels.tolist() == [5, 6, 8]
    assert part.logits[:, :, 0].tolist() == [[0, 1, 3], [4, 5, 7]]
    assert (part.rows.example.tolist(), part.rows.position.tolist(), part.rows.num_examples) == (
        [0, 0, 2],
        [1, 2, 4],
        3,
    )
    assert Outputs(outputs.logits, None, context="windows").take(np.ones(4, bool)) is None
