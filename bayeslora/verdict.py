"""Whether a fit has learned anything: its training NLL against that of the labels' own frequencies."""

import logging
import math

import numpy as np

from bayeslora.tasks import Likelihood
from bayeslora.types import History, LabelValues

logger = logging.getLogger(__name__)

FEWEST_STEPS = 8
"""Steps below which a training NLL is too rough to be judged."""


def has_learned(history: History, likelihood: Likelihood, labels: LabelValues | None) -> bool | None:
    """Return whether the training NLL is below that of the labels' frequencies by more than its standard error.

    The training NLL is the mean over the steps of the last epoch, and over 8 at least, with the noise of training. If
    it is not below, a warning says so, and what to change.

    Args:
        history: Columns by step: `epoch` and `nll`.
        likelihood: The likelihood.
        labels: Labels of the training data, if they are known.

    Returns:
        None if it cannot be said: there were too few steps, or this kind of label has no such baseline.
    """
    nll, epoch = np.asarray(history.get("nll", ())), np.asarray(history.get("epoch", ()))
    baseline = None if labels is None or len(np.asarray(labels, dtype=object)) == 0 else likelihood.baseline(labels)
    if baseline is None or len(nll) < FEWEST_STEPS:
        return None
    first = int(np.searchsorted(epoch, epoch[-1] - 1, side="right"))
    last = nll[min(first, len(nll) - FEWEST_STEPS) :]
    mean, error = float(last.mean()), float(last.std(ddof=1)) / math.sqrt(len(last))
    if mean < baseline - error:
        return True
    logger.warning(
        "This fit has not learned to tell its training examples apart: their NLL is %.3f ± %.3f nats per example, that "
        "of a prediction which is the same for all %.3f. Train for more epochs (epochs=…) or at another rate "
        "(learning_rate=…), with less noise if the method has any, and check that inputs and labels belong together.",
        mean,
        error,
        baseline,
    )
    return False
