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


def _inside(distribution: Any, values: torch.Tensor) -> torch.Tensor:
    """Return which values a distribution can give, of the batch's shape."""
    with contextlib.suppress(NotImplementedError):  # some do not say what they are distributions of
        return distribution.support.check(values.double())
    return torch.ones(values.shape[: values.dim() - distribution.event_dim], dtype=torch.bool)


def _log_prob(distribution: Any, values: torch.Tensor) -> torch.Tensor:
    """Return ln p(values): −∞ for what only other draws can give, as beyond the bounds of a uniform distribution."""
    drawn = distribution.sample()
    if drawn.is_floating_point() and not values.is_floating_point():
        values = values.to(drawn.dtype)  # torch's Bernoulli takes no whole numbers
    inside = _inside(distribution, values)
    if inside.all():
        return distribution.log_prob(values)
    fitting = torch.where(inside.reshape(*inside.shape, *[1] * distribution.event_dim), values, drawn.to(values.dtype))
    return distribution.log_prob(fitting).masked_fill(~inside, -torch.inf)


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
                log_probs = torch.stack([_log_prob(other, values) for other in self.distributions])
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
        values = torch.tensor(labels)
        inside = torch.stack([_inside(each, values) for each in self.distributions]).any(0).numpy()
        if not inside.all():
            first = labels[tuple(np.argwhere(~inside)[0])]
            raise ArgumentError(f"labels has {first}, which no {type(own).__name__} gives: give {own.support}.")
        return labels

    def log_likelihood(self, labels: np.ndarray) -> FloatArray:
        values = torch.tensor(labels)
        with seeded(0):
            return np.stack([_log_prob(each, values).numpy() for each in self.distributions])

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
