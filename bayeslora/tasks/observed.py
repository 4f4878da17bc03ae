"""The prediction of a likelihood of the user's own: any distribution of the labels."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from bayeslora.contracts import ArgumentError
from bayeslora.contracts.arrays import fitting_labels
from bayeslora.isolation import seeded
from bayeslora.metrics import FloatArray
from bayeslora.tasks.prediction import BasePrediction, uncertainty

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class ObservationPrediction(BasePrediction):
    """Labels under any distribution, one for each draw. Entropies are Monte Carlo estimates.

    Args:
        distributions: The labels' distribution at each draw, batch shape `[example]`.
        num_samples: Samples per draw for the entropies.
    """

    per_draw: ClassVar[tuple[str, ...]] = ("distributions",)
    distributions: Sequence[Any]
    num_samples: int = 64

    @cached_property
    def draws(self) -> FloatArray:
        """Mean of the labels at each draw, `[draw, example, …]`."""
        return np.stack([each.mean.numpy() for each in self.distributions])

    @property
    def predicted(self) -> FloatArray:
        """Mean of the labels, `[example, …]`."""
        return self.average(self.draws)

    @cached_property
    def _estimates(self) -> tuple[FloatArray, FloatArray]:
        """Aleatoric and epistemic, from the same samples."""
        aleatoric, epistemic = [], []
        number = len(self.distributions)
        shares = np.full(number, 1 / number) if self.weights is None else self.weights
        log_shares = torch.as_tensor(np.log(np.maximum(shares, np.finfo(np.float64).tiny)))
        with seeded(0):
            for own in self.distributions:
                values = own.sample((self.num_samples,))
                log_probs = torch.stack([other.log_prob(values) for other in self.distributions])
                mixture = (log_probs + log_shares.view(-1, *[1] * (log_probs.dim() - 1))).logsumexp(0)
                aleatoric.append(-own.log_prob(values).mean(0).numpy())
                epistemic.append((own.log_prob(values) - mixture).mean(0).numpy())
        return self.average(np.stack(aleatoric)), np.maximum(self.average(np.stack(epistemic)), 0)

    @property
    def aleatoric(self) -> FloatArray:
        return self._estimates[0]

    @property
    def epistemic(self) -> FloatArray:
        return self._estimates[1]

    def _fitting(self, labels: np.ndarray) -> np.ndarray:
        own = self.distributions[0]
        labels = fitting_labels(labels, (*own.batch_shape, *own.event_shape), "what was observed")
        with contextlib.suppress(NotImplementedError):  # some do not say what they are distributions of
            inside = own.support.check(torch.as_tensor(labels).double()).numpy()
            if not inside.all():
                first = labels[tuple(np.argwhere(~inside)[0])]
                raise ArgumentError(f"labels has {first}, which no {type(own).__name__} gives: give {own.support}.")
        return labels

    def log_likelihood(self, labels: np.ndarray) -> FloatArray:
        return np.stack([each.log_prob(torch.as_tensor(labels)).numpy() for each in self.distributions])

    def sample(self, seed: int | None = 0) -> np.ndarray:
        with seeded(seed):
            return np.stack([each.sample().numpy() for each in self.distributions])

    def scores(self, labels: np.ndarray) -> dict[str, float]:
        """Return the NLL."""
        return {"nll": self.mixture_nll(self.log_likelihood(labels))}

    def to_pandas(self) -> "pd.DataFrame":
        """Return a table with a row per example: the mean, in a column per label, and the three uncertainties."""
        import pandas as pd

        mean = self.predicted.reshape(len(self), -1)
        names = ["predicted"] if mean.shape[1] == 1 else [f"predicted({i})" for i in range(mean.shape[1])]
        return pd.DataFrame(dict(zip(names, mean.T, strict=True)) | uncertainty(self))
