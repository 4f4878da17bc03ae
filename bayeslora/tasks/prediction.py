"""What every prediction offers: a mixture over draws of the weights, its uncertainties and its scores."""

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import numpy as np
import torch

from bayeslora import metrics
from bayeslora.contracts import Kind, checked
from bayeslora.isolation import seeded
from bayeslora.metrics import FloatArray
from bayeslora.types import Seed

if TYPE_CHECKING:
    import pandas as pd


if TYPE_CHECKING:
    LabelArray: TypeAlias = np.ndarray
else:
    _labels = Kind("an array of labels, np.asarray(…)", lambda v: isinstance(v, np.ndarray) and v.dtype.kind in "biuf")
    LabelArray: TypeAlias = Annotated[Any, _labels]


class BasePrediction(abc.ABC):
    """The predictive distribution of the labels: an equal mixture over draws of the weights, row by row.

    A row is an example, or a token of one. Entropies are in nats.

    Attributes:
        draws: What each draw predicts, `[draw, row, …]`.
    """

    draws: Any

    def __init_subclass__(cls, **settings: Any) -> None:
        """Check the arguments of every kind of prediction against what they are declared here."""
        super().__init_subclass__(**settings)
        for name in ("log_likelihood", "row_log_likelihood", "sample", "scores", "to_pandas"):
            if name in vars(cls):
                setattr(cls, name, checked(like=getattr(BasePrediction, name))(vars(cls)[name]))

    @property
    @abc.abstractmethod
    def predicted(self) -> np.ndarray:
        """The single label to predict if one has to be chosen, `[row, …]`."""

    @property
    @abc.abstractmethod
    def aleatoric(self) -> FloatArray:
        """Entropy per draw, averaged, in nats, `[row]`: what would remain if the weights were known."""

    @property
    @abc.abstractmethod
    def epistemic(self) -> FloatArray:
        """Mutual information of label and weights in nats, `[row]`: entropy − aleatoric, 0 for one draw."""

    @property
    def entropy(self) -> FloatArray:
        """Entropy of the mixture in nats, `[row]`: all uncertainty about the label."""
        return self.aleatoric + self.epistemic

    @abc.abstractmethod
    def log_likelihood(self, labels: LabelArray) -> FloatArray:
        """Return the log-likelihood ln p(labels) under every draw in nats, `[draw, example]`."""

    def row_log_likelihood(self, labels: LabelArray) -> FloatArray:
        """Return the log-likelihood of each row in nats, `[draw, row]`: of each token, if rows are tokens."""
        return self.log_likelihood(labels)

    @abc.abstractmethod
    def sample(self, seed: Seed | None = 0) -> np.ndarray:
        """Draw one label per draw of the weights and row from the predictive distribution, `[draw, row, …]`."""

    @abc.abstractmethod
    def scores(self, labels: LabelArray) -> dict[str, float]:
        """Return the metrics of the task; `nll` is in nats per example."""

    @abc.abstractmethod
    def to_pandas(self) -> "pd.DataFrame":
        """Return a table with a row per row of the prediction."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.draws.shape[1]


@dataclass(frozen=True)
class ObservationPrediction(BasePrediction):
    """Labels under any distribution, one for each draw. Entropies are Monte Carlo estimates.

    Args:
        distributions: The labels' distribution at each draw, batch shape `[example]`.
        num_samples: Samples per draw for the entropies.
    """

    distributions: Sequence[Any]
    num_samples: int = 64

    @cached_property
    def draws(self) -> FloatArray:
        """Mean of the labels at each draw, `[draw, example, …]`."""
        return np.stack([each.mean.numpy() for each in self.distributions])

    @property
    def predicted(self) -> FloatArray:
        """Mean of the labels, `[example, …]`."""
        return self.draws.mean(0)

    @cached_property
    def _estimates(self) -> tuple[FloatArray, FloatArray]:
        """Aleatoric and epistemic, from the same samples."""
        aleatoric, epistemic = [], []
        with seeded(0):
            for own in self.distributions:
                values = own.sample((self.num_samples,))
                log_probs = torch.stack([other.log_prob(values) for other in self.distributions])
                mixture = log_probs.logsumexp(0) - math.log(len(self.distributions))
                aleatoric.append(-own.log_prob(values).mean(0).numpy())
                epistemic.append((own.log_prob(values) - mixture).mean(0).numpy())
        return np.mean(aleatoric, axis=0), np.maximum(np.mean(epistemic, axis=0), 0)

    @property
    def aleatoric(self) -> FloatArray:
        return self._estimates[0]

    @property
    def epistemic(self) -> FloatArray:
        return self._estimates[1]

    def log_likelihood(self, labels: np.ndarray) -> FloatArray:
        return np.stack([each.log_prob(torch.as_tensor(labels)).numpy() for each in self.distributions])

    def sample(self, seed: int | None = 0) -> np.ndarray:
        with seeded(seed):
            return np.stack([each.sample().numpy() for each in self.distributions])

    def scores(self, labels: np.ndarray) -> dict[str, float]:
        """Return the NLL."""
        return {"nll": metrics.mixture_nll(self.log_likelihood(labels))}

    def to_pandas(self) -> "pd.DataFrame":
        """Return a table with a row per example: the mean, in a column per label, and the three uncertainties."""
        import pandas as pd

        mean = self.predicted.reshape(len(self), -1)
        names = ["predicted"] if mean.shape[1] == 1 else [f"predicted({i})" for i in range(mean.shape[1])]
        return pd.DataFrame(dict(zip(names, mean.T, strict=True)) | uncertainty(self))


Names = tuple[str, ...] | None
"""Names of the classes, if they are known."""


def uncertainty(prediction: BasePrediction) -> dict[str, FloatArray]:
    """Return the three uncertainties of a prediction as columns of a table."""
    return {name: getattr(prediction, name) for name in ("entropy", "aleatoric", "epistemic")}


def names_of(class_names: Names, count: int) -> tuple[str, ...]:
    """Return the names of the classes, or their numbers if they have none."""
    return class_names or tuple(str(index) for index in range(count))


def sample_classes(probs: FloatArray, seed: int | None) -> np.ndarray:
    """Draw classes by inverting the distribution function over the last axis, which is removed."""
    uniform = np.random.default_rng(seed).random((*probs.shape[:-1], 1))
    return np.minimum((probs.cumsum(-1) < uniform).sum(-1), probs.shape[-1] - 1)
