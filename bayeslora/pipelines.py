"""Text in, labels with their uncertainty out."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from bayeslora.contracts import Probability, checked
from bayeslora.display import Shown
from bayeslora.isolation import public
from bayeslora.loading import load
from bayeslora.posterior import Posterior
from bayeslora.tasks import words
from bayeslora.tasks.prediction import BasePrediction
from bayeslora.types import BatchSize, Data, Folder, ModelName, NumDraws, Seed

MADE = ("num_draws", "center", "approximation", "antithetic", "seed")
"""How held-out rows were predicted, which `abstain` needs rows to be, too."""

Record = dict[str, Any]
"""What is said of one input."""


class Pipeline(Shown):
    """Predicts what it is called with, as the pipelines of `transformers` do; made by `pipeline`.

    Attributes:
        posterior: The posterior.
        settings: How it predicts: arguments of `Posterior.predict`.
        risk: The error rate that answered inputs may have; None where nothing was decided.
    """

    def __init__(self, posterior: Posterior, settings: Mapping[str, Any], risk: float | None):
        self.posterior = posterior
        self.settings = dict(settings)
        self.risk = risk

    @checked()
    def __call__(self, inputs: Data) -> list[Record]:
        """Return a record for each input.

        Of classes it has `label`, its probability `score`, `entropy`, and its parts `aleatoric` and `epistemic`, in
        nats; after `Posterior.decide` also `abstain`, whether not to answer. Those of tokens say which they are of, by
        `example` and `position`. Of other kinds of labels it has what a row of `to_pandas` has.

        Args:
            inputs: A text, or one record such as `{"question": …, "context": …}`; a list or an iterator of texts, or of
                pairs of texts; or any data that `predict` takes.
        """
        inputs = list(inputs) if isinstance(inputs, Iterator) else inputs
        if isinstance(inputs, list) and not inputs:
            return []
        data, columns = self._data(inputs)
        prediction = self.posterior.predict(data, **self.settings, **columns)
        found = list(_records(prediction))
        if self.risk is not None and len(found) == len(prediction):
            for record, abstains in zip(found, prediction.abstain(self.risk), strict=True):
                record["abstain"] = bool(abstains)
        return found

    def _data(self, inputs: Any) -> tuple[Any, dict[str, Any]]:
        """Return data as `predict` takes it, and how its columns are called."""
        known = self.posterior.columns.text
        is_one = isinstance(inputs, str | tuple) or (
            isinstance(inputs, Mapping) and (words.is_row(inputs) or any(isinstance(v, str) for v in inputs.values()))
        )
        rows = [inputs] if is_one and self.posterior.tokenizer is not None else inputs
        if isinstance(rows, list) and all(isinstance(row, Mapping) and "text" in row for row in rows):
            rows = [(row["text"], row["text_pair"]) if "text_pair" in row else row["text"] for row in rows]
        if not isinstance(rows, list) or not all(isinstance(row, str | tuple | list) for row in rows):
            return (rows if is_one else inputs), {}
        if all(isinstance(row, str) for row in rows):
            return (rows, {}) if len(known) < 2 else (inputs, {})
        if any(isinstance(row, str) or len(row) != 2 or not all(isinstance(t, str) for t in row) for row in rows):
            return inputs, {}
        import pandas as pd

        names = known if len(known) == 2 else ("text", "text_pair")
        return pd.DataFrame([list(row) for row in rows], columns=list(names)), {"text": list(names)}

    def _shown(self) -> tuple[str, dict[str, str], None]:
        made = ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
        answers = {} if self.risk is None else {"answers": f"at a risk of {self.risk:g}"}
        return type(self).__name__, {**self.posterior._shown()[1], "predicts with": made, **answers}, None


def _records(prediction: BasePrediction) -> Iterator[Record]:
    """Yield what a prediction says of each row, in Python's own types."""
    for row in prediction.to_pandas().to_dict("records"):
        record = {str(name): getattr(value, "item", lambda own=value: own)() for name, value in row.items()}
        score = record.get(f"p({record.get('predicted')})")
        if score is None:
            yield record
            continue
        uncertainty = {name: record[name] for name in ("entropy", "aleatoric", "epistemic")}
        place: Record = {name: record[name] for name in ("example", "position") if name in record}
        yield {**place, "label": record["predicted"], "score": score, **uncertainty}


@public()
def pipeline(
    posterior: Posterior | Folder,
    model: nn.Module | ModelName | None = None,
    *,
    num_draws: NumDraws = 32,
    center: bool = False,
    seed: Seed = 0,
    batch_size: BatchSize = 64,
    risk: Probability = 0.05,
    download: bool = False,
) -> Pipeline:
    """Return a function from texts to calibrated labels, with their uncertainty, and whether not to answer.

    A posterior with held-out rows (`Posterior.decide`) is asked as those rows were: `num_draws`, `center` and `seed`
    are then theirs.

    Args:
        posterior: A posterior, its folder, or its name on the hub.
        model: The base model, as in `load`.
        num_draws: Draws of the weights.
        center: Whether to predict at the centre alone, at LoRA's cost.
        seed: Seed of the draws.
        batch_size: Examples per batch.
        risk: The error rate that answered inputs may have, where held-out rows can promise one.
        download: As in `load`.
    """
    found = load(posterior, model, download=download) if isinstance(posterior, str | os.PathLike) else posterior
    settings: Record = {"num_draws": num_draws, "center": center, "seed": seed}
    held_out = found.held_out
    if held_out is not None:
        settings = {name: held_out.made[name] for name in MADE if name in held_out.made}
    decides = held_out is not None and "wrong" in held_out.columns
    return Pipeline(found, {**settings, "batch_size": batch_size}, risk if decides else None)
