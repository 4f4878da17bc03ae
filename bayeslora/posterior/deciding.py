"""What a posterior learns from held-out rows: a temperature, and what to decide by."""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Literal, TypeVar

import numpy as np

from bayeslora import metrics
from bayeslora.data import Columns
from bayeslora.isolation import public
from bayeslora.posterior.predicting import Predicting, check_pairs
from bayeslora.prediction import best_temperature, distance
from bayeslora.types import Approximation, BatchSize, Data, NumDraws, Seed

logger = logging.getLogger(__name__)

P = TypeVar("P", bound=Predicting)
"""The same class comes back."""


class Deciding(Predicting):
    """Calibrates, decides and measures how familiar inputs are."""

    @public()
    def calibrate(
        self: P,
        validation: Data,
        num_draws: NumDraws = 32,
        *,
        approximation: Approximation | None = None,
        seed: Seed | None = 0,
        batch_size: BatchSize = 64,
        text: str | Sequence[str] | None = None,
        label: str | Sequence[str] | None = None,
        id: str | None = None,
    ) -> P:
        """Return a new posterior whose logits are divided by the temperature that fits held-out data best.

        The temperature T minimises the NLL of the mean over draws of softmax(logits / T): probabilities remain the
        average of the draws' probabilities, and entropy the sum of its two parts. This posterior is not changed. The
        labelled data are rows that the fit has not seen; the other arguments are those of `predict`.

        Raises:
            ValueError: If the likelihood has no logits that a temperature could divide.

        References:
            Guo et al. (2017), [On Calibration of Modern Neural Networks](https://arxiv.org/abs/1706.04599).
        """
        likelihood = self._likelihood
        if not likelihood.has_temperature:
            raise ValueError(f"The likelihood {likelihood.name!r} has no temperature: there is nothing to calibrate.")
        source = self._source(validation, Columns.asked(text, label, id), name="validation")
        found, labels = self._labelled(source, num_draws, seed, batch_size, approximation=approximation)
        temperature = best_temperature(partial(self._prediction, found), labels)
        if not metrics.LOWEST * 1.01 < temperature < metrics.HIGHEST / 1.01:
            logger.warning(
                "The temperature is %.3g, as far as it may go: the %d held-out label(s) do not bound it, because they "
                "are all predicted right, or as badly as by chance. Calibrate on more rows.",
                *(temperature, len(labels)),
            )
        return self._at_temperature(temperature)

    @public()
    def decide(
        self: P,
        validation: Data,
        num_draws: NumDraws | Literal["auto"] = 32,
        *,
        center: bool = False,
        approximation: Approximation | None = None,
        antithetic: bool | None = None,
        seed: Seed = 0,
        batch_size: BatchSize = 64,
        text: str | Sequence[str] | None = None,
        label: str | Sequence[str] | None = None,
        id: str | None = None,
    ) -> P:
        """Keep what is predicted for held-out rows, so that predictions from now on can `abstain` and give `sets`.

        Predict with the same arguments: what is promised holds for the same draws. `calibrate` first, on other rows.
        The rows are labelled, the fit has not seen them, and new rows will be like them. Returns this posterior; raises
        a ValueError if this kind of label knows no such decisions.
        """
        check_pairs(center, antithetic)
        source = self._source(validation, Columns.asked(text, label, id), name="validation")
        source.check_labels()
        outputs, made, _ = self._outputs(source, num_draws, seed, batch_size, center, approximation, antithetic)
        self.held_out = self._prediction(outputs).decided_by(None, made).as_held_out(outputs.labels)
        return self

    @public()
    def distance(self, data: Data, familiar: Data, *, batch_size: BatchSize = 64) -> np.ndarray:
        """Return how far inputs are from familiar ones: Mahalanobis distances of features at the centre, `[example]`.

        Features are the inputs of the network's output layer, which has to be linear. The distance is that to the
        nearest mean of a class of `familiar`, data such as those of the fit, in standard deviations of features around
        their class's mean; if that has no classes, to the mean of all. Padding and the labels of `data` do not count.
        """
        return distance(
            self.program, self._source(data, with_labels=False), self._source(familiar, name="familiar"), batch_size
        )
