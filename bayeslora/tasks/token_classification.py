"""A class per token."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from jaxtyping import Float
from pyro import poutine
from torch import Tensor, nn

from bayeslora import metrics
from bayeslora.metrics import FloatArray
from bayeslora.networks import answers, continues, is_a, vocabulary
from bayeslora.tasks import words
from bayeslora.tasks.base import Reader, check_classes, class_settings, precise
from bayeslora.tasks.classes import Classes, numbers_of_tokens, of_tokens
from bayeslora.tasks.classification import ClassProbabilities, OfClasses
from bayeslora.tasks.collecting import Outputs, Rows
from bayeslora.tasks.ends import NOT_OF_CLASSES
from bayeslora.tasks.labels import RawLabels
from bayeslora.tasks.prediction import BasePrediction, Names
from bayeslora.types import IGNORED, Batch, LabelColumn, LabelValues, TokenLogits

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset


logger = logging.getLogger(__name__)

NOTHING_OBSERVED = f"no label is observed, because all are {IGNORED}"
"""What is wrong with labels from which there is nothing to learn, and of which nothing can be scored."""


@dataclass(frozen=True, repr=False)
class TokenPrediction(ClassProbabilities):
    """Class probabilities of tokens: those of all examples, one after another, without padding.

    Args:
        draws: Probabilities per draw, `[draw, token, class]`.
        rows: Positions of the tokens.
        class_names: Names of the classes, or None.
        log_draws: Logarithms of `draws`, or None.
    """

    draws: Float[np.ndarray, "draw token class"]
    rows: Rows
    class_names: tuple[str, ...] | None = None
    log_draws: Float[np.ndarray, "draw token class"] | None = None

    def log_likelihood(self, labels: np.ndarray) -> FloatArray:
        return self.rows.by_example(self.row_log_likelihood(labels))

    def scores(self, labels: np.ndarray) -> dict[str, float]:
        """Return the scores of a `Prediction`, token by token; `nll` is per example, `nll_per_token` per token."""
        if not len(labels):
            raise ValueError(f"{NOTHING_OBSERVED}.")
        scores = metrics.classification_scores(self.probs, labels) | metrics.class_scores(self.probs, labels)
        per_token = self.mixture_nll(self.row_log_likelihood(labels))
        return scores | {"nll": self.mixture_nll(self.log_likelihood(labels)), "nll_per_token": per_token}

    def to_pandas(self) -> "pd.DataFrame":
        """Return a table with a row per token: example, position, predicted class, probabilities, uncertainties."""
        return self.rows.beside(super().to_pandas())


class Tokens(dist.TorchDistribution):
    r"""Independent categorical tokens as one event; a token of −100 is not observed.

    Args:
        logits: `[…, token, class]`.
        weights: Multiply the log-probabilities of tokens of each class, `[class]`; None for 1.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = False

    def __init__(self, logits: Tensor, weights: Tensor | None = None):
        self.logits = logits
        self.weights = weights
        super().__init__(logits.shape[:-2], logits.shape[-2:-1], validate_args=False)

    def token_log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of each token, 0 if it is not observed, `[…, token]`."""
        shape = torch.broadcast_shapes(value.shape, self.logits.shape[:-1])
        logits, value = self.logits.expand(*shape, -1), value.expand(shape)
        weights = None if self.weights is None else self.weights.to(logits)
        losses = F.cross_entropy(
            logits.flatten(0, -2), value.flatten(), weights, ignore_index=IGNORED, reduction="none"
        )
        return -losses.view(value.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.token_log_prob(value).sum(-1)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return dist.Categorical(logits=self.logits).sample(sample_shape)


class PerToken(OfClasses):
    r"""A class per token, independent given the logits, $\prod_t \mathrm{softmax}(f_t)_{y_t}$; −100 is not observed.

    Attributes:
        shift: How many tokens the logits of a label stand before it.
    """

    shift: ClassVar[int] = 0
    not_logits = NOT_OF_CLASSES

    def targets(self, labels: Tensor) -> Tensor:
        """Return the label that each position of the logits is about, `[batch, token]`; −100 if there is none."""
        if labels.dim() < 2:
            raise RuntimeError(
                "labels are those of tokens, [row, token], and the data has one for each row: leave it out, or "
                "choose another likelihood"
            )
        return F.pad(labels[:, self.shift :], (0, self.shift), value=IGNORED)

    def distribution(self, logits: TokenLogits) -> dist.Distribution:
        return Tokens(precise(logits))

    def observe(self, logits: TokenLogits, labels: Tensor) -> None:
        labels, size = self.targets(labels), len(labels)
        with pyro.plate("examples", size, dim=-1), poutine.scale(scale=1 / size):
            pyro.sample("labels", Tokens(precise(logits), self.token_weights), obs=labels)

    def log_prob(self, logits: TokenLogits, labels: Tensor) -> Tensor:
        return super().log_prob(logits, self.targets(labels))

    def check_labels(self, labels: LabelValues) -> None:
        check_classes(labels, self.num_classes, f"{self.name} (besides {IGNORED}, not observed)", IGNORED)

    def check_observed(self, data: str, rows: Any) -> None:
        """Raise a ValueError if labels are not of tokens, or none is of one that is predicted.

        Args:
            data: What to call the data.
            rows: Labels of all rows, `[row, token]` or a list for each row.
        """
        if not all(map(np.ndim, rows)):
            raise ValueError(f"{data}: there is a label for each row, and {self.name!r} needs one for each token.")
        counts = [int((np.asarray(row)[self.shift :] != IGNORED).sum()) for row in rows]
        if not any(counts):
            first = " or stand at the first token of a row, which nothing predicts" if self.shift else ""
            raise ValueError(
                f"{data}: {NOTHING_OBSERVED}{first}. Look at what makes them, such as a collator or template."
            )
        if not all(counts):
            logger.warning(
                "%s: %d of %d rows have no label that is observed, the first is row %d.",
                *(data, counts.count(0), len(counts), counts.index(0)),
            )

    def tokens(self, batch: Batch, logits: Tensor, labels: Tensor | None) -> Tensor:
        """Return the observed tokens; without labels, all tokens that are not padding."""
        if labels is not None:
            return labels != IGNORED
        mask = batch.get("attention_mask")
        return torch.ones(logits.shape[1:3], dtype=torch.bool) if mask is None else mask.cpu() != 0

    def predict(self, outputs: Outputs, temperature: float = 1.0, class_names: Names = None) -> BasePrediction:
        assert outputs.rows is not None
        probs, log_probs = (each(outputs.logits, temperature) for each in (metrics.softmax, metrics.log_softmax))
        return TokenPrediction(probs, outputs.rows, class_names, log_probs)


class TokenClassification(PerToken):
    """One class per token, such as the parts of a name; tokens labelled −100 are not observed.

    Labels: a class per token; −100 is not observed.
    Logits: `[batch, token, class]`.

    Args:
        num_classes: Number of classes.
    """

    name = "token_classification"
    labels_tokens = True
    weighs_classes = True
    auto_class: ClassVar[str] = "AutoModelForTokenClassification"

    def baseline(self, labels: LabelValues) -> float | None:
        rows: Any = labels
        tokens = np.concatenate([np.ravel(row) for row in rows])
        tokens = tokens[tokens != IGNORED]
        return metrics.frequency_nll(tokens) * len(tokens) / len(rows)

    @classmethod
    def suggested_by(cls, columns: Sequence[str], label: Any) -> bool:
        tagged = np.ndim(label) == 1 and np.asarray(label).dtype.kind != "f" and not words.are_texts(columns)
        return tagged or words.are_in(columns)

    @classmethod
    def is_of(cls, model: nn.Module) -> bool:
        return is_a(model, "TOKEN_CLASSIFICATION")

    @classmethod
    def classes(cls, labels: RawLabels, names: Sequence[str] | None, count: int | None) -> Classes | None:
        return of_tokens(labels, names, count)

    @classmethod
    def encode(cls, labels: RawLabels, classes: Classes | None) -> Any:
        return numbers_of_tokens(labels, classes)

    @classmethod
    def columns_read(cls, columns: Sequence[str]) -> dict[str, list[str]]:
        return {"words": [name for name in words.WORDS if name in columns][:1]}

    @classmethod
    def reads(cls, columns: Sequence[str], model: nn.Module) -> bool:
        return words.are_in(columns) and cls.is_of(model)

    @classmethod
    def read(cls, table: "Dataset", reader: Reader) -> tuple[list[dict[str, Any]], None]:
        # A prediction has a row for each word, and not for every token that the tokenizer makes of it.
        mark = not reader.with_labels
        return words.read(table, reader.needed_tokenizer(), reader.parameters, reader.name, mark), None

    def tokens(self, batch: Batch, logits: Tensor, labels: Tensor | None) -> Tensor:
        """Return the observed tokens; without labels, the first token of each word, or all that are not padding."""
        marks = batch.get("labels") if labels is None else None
        if marks is None:
            return super().tokens(batch, logits, labels)
        return torch.as_tensor(marks).cpu() != IGNORED

    @classmethod
    def fits(cls, model: nn.Module, logits: Tensor, labels: Tensor) -> bool:
        # Where there is a logit for each token of a vocabulary, labels may be tokens that have to be shifted, or not.
        writes = continues(model) or answers(model) or logits.shape[-1] == vocabulary(model)
        span = labels.shape[-1:] == (2,) and is_a(model, "QUESTION_ANSWERING")
        return is_per_token(logits, labels) and not writes and not span

    @classmethod
    def model_settings(cls, model: str, names: Sequence[str] | None, labels: LabelColumn | None) -> dict[str, Any]:
        return class_settings(model, names, labels)


def is_per_token(logits: Tensor, labels: Tensor) -> bool:
    """Return whether there is a whole number for each position of the logits, `[batch, token, class]`."""
    return logits.dim() == 3 and labels.shape == logits.shape[:2] and not labels.is_floating_point()
