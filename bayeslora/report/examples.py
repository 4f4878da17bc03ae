"""The examples that say most, and why the model is sure of them or not."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from bayeslora.data import given
from bayeslora.decisions import Familiar
from bayeslora.report.findings import wrong_of
from bayeslora.report.page import Section, Table, number
from bayeslora.study import rows
from bayeslora.tasks.prediction import BasePrediction, names_of

LONGEST = 280
"""Characters of an input that are shown."""

EPISTEMIC = 1 / 3
"""Share of the uncertainty from which on it is called epistemic."""

PROSE = ("input", "why", "nearest familiar examples")
"""Columns that hold sentences."""

SURE = 0.1
"""Entropy in nats below which draws are called sure."""


class Nearest(NamedTuple):
    """The familiar examples that lie nearest to others, in the features of the output layer.

    Args:
        inputs: Returns the text of a familiar example.
        labels: Their labels, as texts; None if there are none.
        features: Features of familiar examples, `[example, feature]`.
        precision: Inverse of their covariance.
        own: Features of the test examples.
    """

    inputs: Callable[[int], str]
    labels: Sequence[str] | None
    features: np.ndarray
    precision: np.ndarray
    own: np.ndarray

    def of(self, example: int, count: int = 2) -> str:
        """Return the nearest familiar examples of a test example, with their labels."""
        apart = self.features - self.own[example]
        distance = np.einsum("nf,fg,ng->n", apart, self.precision, apart, optimize=True)
        shown = [int(place) for place in np.argsort(distance, kind="stable")[:count]]
        parts = [f"{self.inputs(k)}" + ("" if self.labels is None else f" → {self.labels[k]}") for k in shown]
        return "; ".join(parts)

    @classmethod
    def made(
        cls, inputs: Callable[[int], str], labels: Sequence[str] | None, features: np.ndarray, own: np.ndarray
    ) -> "Nearest":
        """Estimate the covariance of features."""
        return cls(inputs, labels, features, Familiar.of(features).precision, own)


def section(
    prediction: BasePrediction,
    labels: np.ndarray | None,
    inputs: Callable[[int], str],
    count: int,
    nearest: Nearest | None = None,
) -> Section:
    """Return the least and the most certain rows, and those that are wrong though certain.

    Args:
        prediction: The predictions.
        labels: Their labels, if they are known.
        inputs: Returns the text of an example.
        count: Rows of each.
        nearest: Finds familiar examples, if there are any.
    """
    wrong = None if labels is None else wrong_of(prediction, labels)
    order = np.argsort(prediction.entropy, kind="stable")
    found = Section("Examples, and why")
    found.says.append(
        "Uncertainty is aleatoric where draws of the adapters agree that several labels are likely: the example itself "
        "does not say. It is epistemic where they disagree: labels of such examples would tell."
    )
    chosen = {"Least certain": order[::-1][:count], "Most certain": order[:count]}
    if wrong is not None and wrong.any():
        chosen["Certain, and wrong: look at their labels first"] = order[wrong[order]][:count]
    table = prediction.to_pandas()
    for caption, which in chosen.items():
        columns = ["input", *(["label"] if labels is not None else []), "predicted", "entropy", "epistemic", "why"]
        columns += ["nearest familiar examples"] if nearest is not None else []
        cells = [_row(prediction, labels, inputs, nearest, table, int(row)) for row in which]
        texts = tuple(place for place, name in enumerate(columns) if name not in ("entropy", "epistemic"))
        prose = tuple(columns.index(name) for name in PROSE if name in columns)
        found.tables.append(Table(caption, columns, cells, texts, prose))
    return found


def _row(
    prediction: BasePrediction,
    labels: np.ndarray | None,
    inputs: Callable[[int], str],
    nearest: Nearest | None,
    table: Any,
    row: int,
) -> list[str]:
    positions = getattr(prediction, "rows", None)
    example = row if positions is None else int(positions.example[row])
    shown = inputs(example) + ("" if positions is None else f" (token {int(positions.position[row])})")
    cells = [shown]
    if labels is not None:
        cells.append(label_text(prediction, labels[row]))
    cells += [_predicted(prediction, table, row), f"{prediction.entropy[row]:.3f}", f"{prediction.epistemic[row]:.3f}"]
    cells.append(why(prediction, row))
    return cells if nearest is None else [*cells, nearest.of(example)]


def label_text(prediction: BasePrediction, label: Any) -> str:
    """Return a label by its name."""
    names = getattr(prediction, "class_names", None)
    values = np.asarray(label)
    if names is not None and values.ndim == 0 and values.dtype.kind in "iu" and 0 <= int(values) < len(names):
        return str(names[int(values)])
    if values.ndim == 1 and getattr(prediction, "log_odds", None) is not None:
        known = names_of(names, len(values))
        return ", ".join(known[place] for place in np.flatnonzero(values > 0.5)) or "none"
    return number(values.item()) if values.ndim == 0 else str(values.tolist())


def _predicted(prediction: BasePrediction, table: Any, row: int) -> str:
    interval = getattr(prediction, "variance", None)
    if interval is not None:
        return f"{number(np.ravel(prediction.predicted)[row])} ± {number(np.sqrt(interval[row]), 2)}"
    value = table["predicted"].iloc[row] if "predicted" in table else prediction.predicted[row]
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    probs = getattr(prediction, "probs", None)
    if isinstance(probs, np.ndarray) and probs.ndim == 2:
        return f"{value} ({probs[row].max():.2f})"
    return str(value)


def why(prediction: BasePrediction, row: int) -> str:
    """Say in words where the uncertainty of a row comes from."""
    draws = np.asarray(prediction.draws)
    entropy, epistemic = float(prediction.entropy[row]), float(prediction.epistemic[row])
    variance, part = getattr(prediction, "variance", None), getattr(prediction, "epistemic_variance", None)
    if variance is not None and part is not None:
        share = float(part[row] / variance[row])
        of = draws[:, row]
        noise = number(np.sqrt(variance[row] - part[row]), 2)
        said = f"draws say {number(np.min(of), 3)} to {number(np.max(of), 3)}, with a noise of {noise}"
        return f"{_word(share)}: {said}"
    probs = getattr(prediction, "probs", None)
    if not (isinstance(probs, np.ndarray) and probs.ndim == 2 and draws.ndim == 3) or len(probs[row]) < 2:
        return _word(epistemic / entropy) if entropy > SURE else "sure"
    if getattr(prediction, "log_odds", None) is not None or probs[row].sum() > 1.001:
        return _word(epistemic / entropy) if entropy > SURE else "sure of every label"
    names = names_of(getattr(prediction, "class_names", None), probs.shape[1])
    if entropy <= SURE:
        return f"all draws are sure: at least {draws[:, row].max(-1).min():.2f} for one class"
    votes = np.bincount(draws[:, row].argmax(-1), minlength=probs.shape[1])
    first, second = np.argsort(-probs[row], kind="stable")[:2]
    if epistemic / entropy >= EPISTEMIC:
        order = np.argsort(-votes, kind="stable")[:3]
        said = ", ".join(f"{votes[c]} say {names[c]}" for c in order if votes[c])
        return f"epistemic: of {len(draws)} draws, {said}"
    between = f"between {names[first]} ({probs[row, first]:.2f}) and {names[second]} ({probs[row, second]:.2f})"
    return f"aleatoric: draws agree that it is {between}"


def _word(share: float) -> str:
    return f"{'epistemic' if share >= EPISTEMIC else 'aleatoric'} ({share:.0%} epistemic)"


def texts_of(data: Any, posterior: Any, source: Any) -> Callable[[int], str]:
    """Return a function from the number of an example to what it shows of its inputs: texts, or numbers."""
    known = posterior.columns
    if isinstance(data, str | os.PathLike):
        data = given(data, "test", "validation", "train")

    def shown(example: int) -> str:
        try:
            return _short(_text(data, known, posterior.tokenizer, source, example))
        except Exception:  # inputs of somebody else's making: a page is worth more than their texts
            return f"example {example}"

    return shown


def _text(data: Any, known: Any, tokenizer: Any, source: Any, example: int) -> str:
    inputs = data[0] if isinstance(data, tuple) and len(data) == 2 and not isinstance(data[0], str) else data
    columns = inputs if isinstance(inputs, Mapping) else getattr(inputs, "column_names", getattr(inputs, "columns", ()))
    names = [name for name in known.text if name in columns]
    if names:
        row = rows.take(inputs, [example])
        return " / ".join(str(next(iter(row[name]))) for name in names)
    value = inputs[example] if isinstance(inputs, list | Dataset) else None
    if isinstance(value, Mapping) and known.text and all(isinstance(value.get(name), str) for name in known.text):
        return " / ".join(value[name] for name in known.text)
    if isinstance(value, str) or (isinstance(value, tuple | list) and all(isinstance(each, str) for each in value)):
        return value if isinstance(value, str) else " / ".join(value)
    row = source.dataset[example]
    if tokenizer is not None and "input_ids" in row:
        ids = list(row["input_ids"])
        text = str(tokenizer.decode(ids, skip_special_tokens=True))
        return text if text.strip() else str(tokenizer.decode(ids))  # of unknown words alone
    numbers = {name: np.asarray(each) for name, each in row.items() if name not in ("labels", "attention_mask")}
    return "; ".join(f"{name}: {np.array2string(each.ravel()[:8], precision=3)}" for name, each in numbers.items())


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
