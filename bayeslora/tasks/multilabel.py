r"""Any of several labels per example."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyro.distributions as dist
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor, nn

from bayeslora import metrics
from bayeslora.contracts import Probability, checked
from bayeslora.contracts.arrays import fitting_labels
from bayeslora.metrics import FloatArray
from bayeslora.networks import solves
from bayeslora.tasks import words
from bayeslora.tasks.base import class_settings, precise
from bayeslora.tasks.classes import Classes, of_several, rows_of_several
from bayeslora.tasks.classification import Classification, OfClasses
from bayeslora.tasks.collecting import Outputs
from bayeslora.tasks.ends import NOT_LOGITS
from bayeslora.tasks.labels import RawLabels
from bayeslora.tasks.prediction import BasePrediction, Names, names_of, uncertainty
from bayeslora.tasks.settling import Component, settled
from bayeslora.types import LabelColumn, LabelValues, Logits

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class MultiLabelPrediction(BasePrediction):
    """Probabilities that each label applies.

    Entropies are sums over an example's labels: `aleatoric` is that of all labels together, `entropy` and `epistemic`
    are the sums of the labels' own (information that labels share through the draws is counted for each of them).

    Args:
        draws: Probabilities per draw, `[draw, example, label]`.
        class_names: Names of the labels, or None.
        log_odds: ln p / (1 − p) per draw, `[draw, example, label]`; None if only the probabilities are known.
    """

    per_draw: ClassVar[tuple[str, ...]] = ("draws", "log_odds")
    draws: Float[np.ndarray, "draw example label"]
    class_names: tuple[str, ...] | None = None
    log_odds: Float[np.ndarray, "draw example label"] | None = None

    @cached_property
    def probs(self) -> FloatArray:
        """Probabilities averaged over draws, `[example, label]`."""
        return self.average(self.draws)

    @property
    def predicted(self) -> np.ndarray:
        """Whether each label is more probable than not, `[example, label]`."""
        return self.probs > 0.5

    @cached_property
    def aleatoric(self) -> FloatArray:
        """Entropy per draw, averaged, in nats, `[example]`."""
        return self.average(metrics.entropy(_both(self.draws)).sum(-1))

    @cached_property
    def epistemic(self) -> FloatArray:
        """Mutual information of each label and the weights in nats, summed over labels, `[example]`."""
        return self.average(metrics.relative_entropy(_both(self.draws), _both(self.probs)).sum(-1))

    def _fitting(self, labels: np.ndarray) -> np.ndarray:
        return fitting_labels(labels, self.draws.shape[1:], "which labels apply, 0 or 1,", 1)

    def log_likelihood(self, labels: np.ndarray) -> FloatArray:
        applies = np.asarray(labels) > 0.5
        if self.log_odds is not None:
            return metrics.log_sigmoid(np.where(applies, self.log_odds, -self.log_odds)).sum(-1)
        chosen = np.where(applies, self.draws, 1 - self.draws)
        return np.log(np.maximum(chosen, np.finfo(np.float64).tiny)).sum(-1)

    def _settled(self, tolerance: float, pairs: bool, components: Sequence[Component]) -> np.ndarray:
        """Return whether all probabilities, and which labels apply, are settled, `[example]`."""
        return settled(self.draws, self.draws - 0.5, tolerance, pairs, components, self.weights)

    def wrong(self, labels: np.ndarray) -> np.ndarray:
        """Return whether any label of an example is wrong, `[example]`."""
        return (self.predicted != (np.asarray(labels) > 0.5)).any(-1)

    def conformity(self, labels: np.ndarray) -> dict[str, FloatArray]:
        return {"least": 1 - np.where(np.asarray(labels) > 0.5, self.probs, 1.0).min(-1)}

    @checked()
    def sets(self, coverage: Probability = 0.9) -> np.ndarray:
        """Return the labels that may apply, `[example, label]`, True for those in the set of an example.

        All labels that apply are among them with probability `coverage` at least, on average over the rows of
        `Posterior.decide` and new ones. The score of an example is 1 − the probability of the least probable of its
        labels, 0 if it has none.

        Raises:
            ValueError: If there are no held-out rows, or they were predicted otherwise.
        """
        return 1 - self.probs <= self._largest_score(coverage, "least")

    def sample(self, seed: int | None = 0) -> np.ndarray:
        return (np.random.default_rng(seed).random(self.draws.shape) < self.draws).astype(np.int64)

    def _statistics(self, labels: np.ndarray, observed: np.ndarray) -> dict[str, FloatArray]:
        """Frequencies of the labels, and mean and sd of how many an example has."""
        applies = labels > 0.5
        names, counts = names_of(self.class_names, labels.shape[-1]), applies.sum(-1)
        each = {f"frequency of {name}": applies[..., index].mean(-1) for index, name in enumerate(names)}
        return {**each, "mean number": counts.mean(-1), "sd of the number": counts.std(-1)}

    def scores(self, labels: np.ndarray) -> dict[str, float]:
        """Return the NLL of an example's labels together; accuracy and Brier score per label, exact match, macro F1."""
        return {
            "nll": self.mixture_nll(self.log_likelihood(labels)),
            **multilabel_scores(self.probs, labels),
        }

    def to_pandas(self) -> "pd.DataFrame":
        """Return a table with a row per example: names of its labels, a probability per label, and uncertainties."""
        import pandas as pd

        names = np.asarray(names_of(self.class_names, self.probs.shape[-1]))
        columns: dict[str, Any] = {"predicted": [tuple(map(str, names[row])) for row in self.predicted]}
        columns |= {f"p({name})": self.probs[:, index] for index, name in enumerate(names)}
        return pd.DataFrame(columns | uncertainty(self))


def _both(probs: FloatArray) -> FloatArray:
    """Stack the probabilities of yes and no along a new last axis."""
    return np.stack([probs, 1 - probs], axis=-1)


class MultiLabel(OfClasses):
    r"""Any of several labels per example, independent given the logits: $p(y_j = 1) = 1 / (1 + e^{-f_j})$.

    Labels: a row of 0 and 1.
    Logits: `[batch, label]`.

    Args:
        num_classes: Number of labels.
    """

    name = "multilabel"
    one_of = Classification
    not_logits = frozenset(NOT_LOGITS)

    def distribution(self, logits: Logits) -> dist.Distribution:
        return dist.Bernoulli(logits=precise(logits)).to_event(1)

    def observe(self, logits: Logits, labels: Tensor) -> None:
        super().observe(logits, labels.to(precise(logits).dtype))

    def log_prob(self, logits: Logits, labels: Tensor) -> Tensor:
        return super().log_prob(logits, labels.to(precise(logits).dtype))

    def check_labels(self, labels: LabelValues) -> None:
        values = np.asarray(labels)
        if values.ndim != 2 or values.shape[-1] != self.num_classes or not np.isin(values, (0, 1)).all():
            raise ValueError(
                f"Labels of shape {values.shape} do not fit {self.num_classes} labels per example: give a row of "
                f"{self.num_classes} numbers, 0 or 1, for each. Real numbers have a likelihood if there is one for "
                "each example, labels of shape [example]; for several, give your own, likelihood=…."
            )

    def baseline(self, labels: LabelValues) -> float | None:
        return sum(metrics.frequency_nll(column) for column in np.asarray(labels).T)

    @classmethod
    def classes(cls, labels: RawLabels, names: Sequence[str] | None, count: int | None) -> Classes | None:
        return of_several(labels, names, count)

    @classmethod
    def encode(cls, labels: RawLabels, classes: Classes | None) -> Any:
        return rows_of_several(labels, classes)

    @classmethod
    def suggested_by(cls, columns: Sequence[str], label: Any) -> bool:
        return np.ndim(label) == 1 and (np.asarray(label).dtype.kind == "f" or words.are_texts(columns))

    @classmethod
    def fits(cls, model: nn.Module, logits: Tensor, labels: Tensor) -> bool:
        return logits.dim() == 2 and labels.shape == logits.shape and not solves(model, "regression")

    @classmethod
    def model_settings(cls, model: str, names: Sequence[str] | None, labels: LabelColumn | None) -> dict[str, Any]:
        if not names and labels is not None and len(labels) > 0 and not isinstance(labels[0], str):
            return {"num_labels": len(labels[0])}
        return class_settings(model, names, labels)

    def latent(self, prediction: MultiLabelPrediction) -> tuple[FloatArray, FloatArray]:
        tiny = np.finfo(np.float64).tiny

        def log_odds(probs: FloatArray) -> FloatArray:
            return np.log(np.maximum(probs, tiny)) - np.log(np.maximum(1 - probs, np.finfo(np.float64).eps))

        draws = log_odds(prediction.draws) if prediction.log_odds is None else prediction.log_odds
        return draws, log_odds(prediction.probs)

    def predict(self, outputs: Outputs, temperature: float = 1.0, class_names: Names = None) -> BasePrediction:
        log_odds = outputs.logits / temperature
        return MultiLabelPrediction(metrics.sigmoid(log_odds), class_names, log_odds)


def multilabel_scores(probs: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Return the share of right labels and of examples with all labels right, macro F1 at 0.5, mean (p − y)² per label.

    Args:
        probs: `[example, label]`.
        labels: 0 or 1, `[example, label]`.
    """
    from sklearn.metrics import f1_score

    probs, labels = np.asarray(probs, dtype=np.float64), np.asarray(labels).astype(int)
    right = (probs > 0.5) == labels
    return {
        "accuracy": float(right.mean()),
        "exact_match": float(right.all(-1).mean()),
        "macro_f1": float(f1_score(labels, (probs > 0.5).astype(int), average="macro", zero_division=0)),
        "brier": float(((probs - labels) ** 2).mean()),
    }
