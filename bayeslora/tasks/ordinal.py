r"""One of several ordered classes per example, such as stars."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from bayeslora import metrics
from bayeslora.contracts import ClassCount, Finite, checked
from bayeslora.metrics import FloatArray
from bayeslora.tasks.base import Likelihood, check_classes, precise
from bayeslora.tasks.classes import Classes, numbers_of_one, of_one
from bayeslora.tasks.classification import Prediction
from bayeslora.tasks.collecting import Outputs
from bayeslora.tasks.labels import RawLabels
from bayeslora.tasks.prediction import BasePrediction, Names
from bayeslora.types import Batch, LabelColumn, LabelValues, RealLogits, Tokenizer


@dataclass(frozen=True, repr=False)
class OrdinalPrediction(Prediction):
    """Probabilities of ordered classes, `S` draws of them, for `N` examples and `C` classes.

    Args:
        draws: Probabilities per draw, `[draw, example, class]`.
        class_names: Names of the classes in their order, or None.
    """

    @cached_property
    def median(self) -> np.ndarray:
        """The median class, `[example]`: the one with the least expected absolute error."""
        return (self.probs.cumsum(-1) < 0.5).sum(-1)

    def scores(self, labels: np.ndarray) -> dict[str, float]:
        """Return the scores of a `Prediction`; `mae` and quadratic kappa of the median; the ranked probability score.

        `mae` is in classes. `rps` is between 0 and C − 1; lower is better. Kappa is 1 if all are right, and 0 if they
        agree no better than by chance.
        """
        from sklearn.metrics import cohen_kappa_score

        several = len({*self.median.tolist(), *np.asarray(labels).tolist()}) > 1
        kappa = cohen_kappa_score(labels, self.median, weights="quadratic") if several else 1.0
        return super().scores(labels) | {
            "mae": float(np.abs(self.median - labels).mean()),
            "rps": float(ranked_probability_score(self.probs, labels).mean()),
            "quadratic_kappa": float(kappa),
        }


class Ordinal(Likelihood):
    r"""One of several ordered classes per example, by cumulative logits: $P(y \le k) = \sigma(c_k - f)$.

    The cut points $c_0 < c_1 < \dots < c_{C-2}$ are learned: the first one, and the logarithms of the distances from
    each to the next. They start where $f = 0$ gives the frequencies of the classes.

    Labels: a whole number from 0, in the order of the classes.
    Logits: `[batch, 1]`.

    Args:
        num_classes: Number of classes C, at least 2.
        cut_points: Where the cut points start, increasing, C − 1 of them; None for equal frequencies.

    References:
        McCullagh (1980), Regression Models for Ordinal Data.
    """

    name = "ordinal"
    weighs_classes = True
    not_logits = frozenset({"sigmoid", "tanh", "softmax", "log_softmax"})  # cut points may all be positive

    @checked()
    def __init__(self, num_classes: ClassCount, cut_points: Sequence[Finite] | None = None):
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes={num_classes}: give at least two ordered classes.")
        self.num_classes = num_classes
        shares = np.arange(1, num_classes) / num_classes
        cuts = np.log(shares / (1 - shares)) if cut_points is None else np.asarray(cut_points, dtype=np.float64)
        if cuts.shape != (num_classes - 1,) or not (np.diff(cuts) > 0).all() or not np.isfinite(cuts).all():
            raise ValueError(
                f"cut_points={cut_points!r}: give {num_classes - 1} finite numbers, one fewer than classes, in order."
            )
        self.first = nn.Parameter(torch.tensor(float(cuts[0])))
        self.log_increments = nn.Parameter(torch.as_tensor(np.log(np.diff(cuts)), dtype=torch.get_default_dtype()))

    @property
    def cut_points(self) -> Float[Tensor, " cut"]:
        """The cut points, increasing."""
        return torch.cat([self.first[None], self.first + self.log_increments.exp().cumsum(0)])

    @classmethod
    def fitting(cls, logits: Tensor, labels: LabelValues, tokenizer: Tokenizer | None = None) -> "Ordinal":
        values = np.asarray(labels)
        if values.dtype.kind not in "iub" or values.ndim != 1 or len(values) == 0 or values.min() < 0:
            raise ValueError(
                f"Labels are {values.dtype} of shape {values.shape}; ordered classes are whole numbers from 0, one per "
                "example."
            )
        counts = np.bincount(values, minlength=2) + 0.5  # a class without examples gets a place, too
        below = counts.cumsum()[:-1] / counts.sum()
        return cls(len(counts), np.log(below / (1 - below)).tolist())

    @classmethod
    def classes(cls, labels: RawLabels, names: Sequence[str] | None, count: int | None) -> Classes | None:
        return of_one(labels.one_place(), None, None, ordered=True)

    @classmethod
    def encode(cls, labels: RawLabels, classes: Classes | None) -> Any:
        return numbers_of_one(labels, classes)

    @property
    def num_labels(self) -> int | None:
        return 1

    @classmethod
    def model_settings(cls, model: str, names: Sequence[str] | None, labels: LabelColumn | None) -> dict[str, Any]:
        return {"num_labels": 1}

    def select(self, logits: Tensor, batch: Batch) -> RealLogits:
        if logits.shape[-1] != 1:
            raise ValueError(
                f"Ordered classes need one output per example, [batch, 1], and the network returns "
                f"{tuple(logits.shape)}: load it with num_labels=1."
            )
        return precise(logits.squeeze(-1))

    def log_probs(self, logits: RealLogits) -> Float[Tensor, "*draw batch class"]:
        """Return the log-probability of each class."""
        cuts = self.cut_points.to(logits) - logits[..., None]
        upper = nn.functional.pad(cuts, (0, 1), value=math.inf)
        lower = nn.functional.pad(cuts, (1, 0), value=-math.inf)
        # σ(u) − σ(l) = σ(u) σ(−l) (1 − e^(l − u)), without a difference of two numbers near 1.
        between = torch.log(-torch.expm1(lower - upper))
        return logsigmoid(upper) + logsigmoid(-lower) + between

    def distribution(self, logits: RealLogits) -> dist.Distribution:
        return dist.Categorical(logits=self.log_probs(logits))

    @torch.no_grad()
    def for_metrics(self, logits: RealLogits, labels: Tensor) -> tuple[Any, Any]:
        return self.log_probs(logits), labels  # whose largest is the class: f alone says nothing without cut points

    def check_labels(self, labels: LabelValues) -> None:
        check_classes(labels, self.num_classes, "ordinal regression")

    def baseline(self, labels: LabelValues) -> float | None:
        return metrics.frequency_nll(np.asarray(labels))

    def config(self) -> dict[str, Any]:
        return {"num_classes": self.num_classes}

    def latent(self, prediction: OrdinalPrediction) -> tuple[FloatArray, FloatArray]:
        r"""Return $f = c_k - \mathrm{logit}\, P(y \le k)$, on average over k, those that tell most about it first."""
        cuts = self.cut_points.detach().cpu().double().numpy()

        def logits(probs: FloatArray) -> FloatArray:
            below = np.clip(probs.cumsum(-1)[..., :-1], 1e-12, 1 - 1e-12)
            weights = below * (1 - below)
            return ((cuts - np.log(below / (1 - below))) * weights).sum(-1) / weights.sum(-1)

        return logits(prediction.draws), logits(prediction.probs)

    def predict(self, outputs: Outputs, temperature: float = 1.0, class_names: Names = None) -> BasePrediction:
        # The temperature flattens the classes' distribution. Dividing c − f by it would move everything to both ends.
        with torch.no_grad():
            log_probs = self.log_probs(torch.as_tensor(outputs.logits)).numpy()
        flattened = metrics.log_softmax(log_probs, temperature)
        return OrdinalPrediction(metrics.softmax(log_probs, temperature), class_names, flattened)


def ranked_probability_score(probs: FloatArray, labels: np.ndarray) -> FloatArray:
    r"""Return the ranked probability score $\sum_{k < C - 1} (P(y \le k) - 1[y \le k])^2$, `[example]`.

    It is between 0 and C − 1; lower is better.

    Args:
        probs: `[example, class]`.
        labels: `[example]`.

    References:
        Epstein (1969), A Scoring System for Probability Forecasts of Ranked Categories.
    """
    probs = np.asarray(probs, dtype=np.float64)
    reached = np.arange(probs.shape[-1]) >= np.asarray(labels)[:, None]
    return ((probs.cumsum(-1) - reached) ** 2)[:, :-1].sum(-1)
