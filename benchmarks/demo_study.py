"""The demo over seeds: runs what is missing, and writes docs/results.md, the README's table and figure.

Run with `make study`. Each seed draws its own words and starts its own adapters and head. Its predictions are stored in
benchmarks/results/demo as soon as it ends, so that an interrupted study goes on where it stopped.
"""

import argparse
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bayeslora import demo, metrics, plots

ROOT = Path(__file__).resolve().parent.parent
STORE = ROOT / "benchmarks" / "results" / "demo"
LORA, SCALED, DRAWS = "LoRA", "LoRA, temperature", f"MonteCLoRA, {demo.NUM_DRAWS} draws"
# The goals, as ratios of NLL and ECE and a difference of accuracies.
GOALS = [
    ("NLL", LORA, "nll", "≤ 0.75 ×"),
    ("ECE", LORA, "ece", "≤ 0.65 ×"),
    ("accuracy", LORA, "accuracy", "≥ −0.005"),
    ("NLL", SCALED, "nll", "≤ 0.97 ×"),
]


def complete(
    store: Path, names: Sequence[str], wanted: Iterable[tuple[Any, ...]], run: Callable[..., dict[str, Any]]
) -> list[dict[str, Any]]:
    """Run what a file of JSON lines lacks, each a line of it as it ends, and return all lines.

    Args:
        store: The file.
        names: The entries of a line that tell it from others.
        wanted: Their values, which are also the arguments of `run`.
        run: Returns a line.
    """
    done = [json.loads(line) for line in store.read_text().splitlines()] if store.exists() else []
    known = {tuple(line[name] for name in names) for line in done}
    for key in wanted:
        if key not in known:
            done.append(run(*key))
            with store.open("a") as file:
                file.write(json.dumps(done[-1]) + "\n")
            print(done[-1], flush=True)
    return done


def run_seed(seed: int) -> None:
    """Run the demo and store labels, probabilities of the positive class, and seconds."""
    result = demo.run(seed)
    record = {
        "labels": result.words.test["label"].tolist(),
        "rows": {
            row.name: {
                "test": row.test.probs[:, 1].round(6).tolist(),
                "unfamiliar": row.unfamiliar.probs[:, 1].round(6).tolist(),
                "seconds": round(row.seconds, 1),
            }
            for row in result.rows
        },
    }
    STORE.mkdir(parents=True, exist_ok=True)
    (STORE / f"seed-{seed}.json").write_text(json.dumps(record) + "\n")


def draw_reliability(record: dict) -> None:
    """Draw the README's figure from a stored seed."""
    rows, labels = record["rows"], record["labels"]
    curves = {
        name: metrics.reliability(probabilities(rows[name]["test"]), labels, adaptive=True) for name in (LORA, DRAWS)
    }
    (ROOT / "docs" / "images").mkdir(exist_ok=True)
    plots.reliability(curves).savefig(ROOT / "docs" / "images" / "reliability.png", dpi=110)


def probabilities(positive: list[float]) -> np.ndarray:
    """`[example, class]` from the probability of the positive class."""
    p = np.asarray(positive)
    return np.stack([1 - p, p], axis=-1)


def logits(probs: np.ndarray) -> np.ndarray:
    """Log-probabilities, which are logits: one pass over the examples serves every temperature."""
    return np.log(np.maximum(probs, np.finfo(float).tiny))


def table(record: dict) -> pd.DataFrame:
    """One seed's table."""
    labels = np.asarray(record["labels"])
    return pd.DataFrame(
        {
            "method": name,
            "majority": metrics.majority_rate(labels),
            **metrics.classification_scores(probabilities(row["test"]), labels),
            "AUROC unfamiliar": metrics.auroc(
                *(metrics.entropy(probabilities(row[part])) for part in ("test", "unfamiliar"))
            ),
            "seconds": row["seconds"],
        }
        for name, row in record["rows"].items()
    )


def intervals(records: list[dict], num_resamples: int = 2000) -> pd.DataFrame:
    """Each goal with its 95 % bootstrap interval: seeds are resampled, and within each seed its test words."""
    generator = np.random.default_rng(0)

    def values(resample: bool) -> list[float]:
        seeds = generator.integers(len(records), size=len(records)) if resample else range(len(records))
        scores: dict[str, list[dict[str, float]]] = {LORA: [], SCALED: [], DRAWS: []}
        for seed in seeds:
            labels = np.asarray(records[seed]["labels"])
            words = generator.integers(len(labels), size=len(labels)) if resample else np.arange(len(labels))
            for name, rows in scores.items():
                probs = probabilities(records[seed]["rows"][name]["test"])[words]
                rows.append(
                    {
                        "nll": metrics.nll(probs, labels[words]),
                        "ece": metrics.ece(probs, labels[words]),
                        "accuracy": metrics.accuracy(probs, labels[words]),
                    }
                )
        mean = {name: pd.DataFrame(rows).mean() for name, rows in scores.items()}
        return [
            mean[DRAWS][metric] - mean[peer][metric]
            if metric == "accuracy"
            else mean[DRAWS][metric] / mean[peer][metric]
            for _, peer, metric, _ in GOALS
        ]

    point = values(resample=False)
    low, high = np.quantile([values(resample=True) for _ in range(num_resamples)], [0.025, 0.975], axis=0)
    limits = [float(re.sub("[^0-9.−]", "", goal).replace("−", "-")) for *_, goal in GOALS]
    met = [
        p >= limit if m == "accuracy" else p <= limit
        for p, limit, (_, _, m, _) in zip(point, limits, GOALS, strict=True)
    ]
    return pd.DataFrame(
        {
            "draws against": [peer for _, peer, _, _ in GOALS],
            "metric": [f"{name}, {'difference' if m == 'accuracy' else 'ratio'}" for name, _, m, _ in GOALS],
            "found": point,
            "95 % interval": [f"{a:.3f} to {b:.3f}" for a, b in zip(low, high, strict=True)],
            "goal": [goal for *_, goal in GOALS],
            "": ["met" if yes else "missed" for yes in met],
        }
    )


def markdown(frame: pd.DataFrame) -> str:
    """A table in Markdown, numbers to three digits and seconds to none."""
    rows = [
        [
            f"{value:.0f}" if name == "seconds" else f"{value:.3f}" if isinstance(value, float) else str(value)
            for name, value in row.items()
        ]
        for row in frame.to_dict("records")
    ]
    rule = ["---" if frame[name].dtype.kind not in "fi" else "---:" for name in frame.columns]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [list(frame.columns), rule, *rows])


def write_docs(records: list[dict]) -> None:
    """docs/results.md between its markers, and the README's table."""
    tables = [table(record) for record in records]
    mean = pd.concat(tables).groupby("method", sort=False).mean(numeric_only=True).reset_index()
    spread = pd.concat(tables).groupby("method", sort=False)["nll"].std().to_numpy()
    mean.insert(4, "sd of nll over seeds", spread)
    first = tables[0]
    fill(ROOT / "docs" / "results.md", "demo-mean", markdown(mean))
    fill(ROOT / "docs" / "results.md", "demo-goals", markdown(intervals(records)))
    fill(ROOT / "README.md", "demo-table", markdown(first))


def fill(path: Path, marker: str, text: str) -> None:
    """Put text between `<!-- marker -->` and `<!-- /marker -->`."""
    content = path.read_text()
    pattern = f"(<!-- {marker} -->).*?(<!-- /{marker} -->)"
    assert re.search(pattern, content, flags=re.DOTALL), f"{path.name} has no marker {marker}"
    path.write_text(re.sub(pattern, lambda m: f"{m[1]}\n\n{text}\n\n{m[2]}", content, flags=re.DOTALL))


def main() -> None:
    """Run the missing seeds, then write the documents."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    for seed in seeds:
        if not (STORE / f"seed-{seed}.json").exists():
            run_seed(seed)
        print(f"seed {seed}", flush=True)
        record = json.loads((STORE / f"seed-{seed}.json").read_text())
        print(table(record).round(3).to_string(index=False), flush=True)
    records = [json.loads((STORE / f"seed-{seed}.json").read_text()) for seed in seeds]
    print(intervals(records).to_string(index=False))
    write_docs(records)
    draw_reliability(records[0])


if __name__ == "__main__":
    main()
