"""Whether a fit has learned anything, and whether its loss and its spreads have come to rest."""

import logging
import math
from typing import Any

import numpy as np

from bayeslora.tasks import Likelihood
from bayeslora.types import IGNORED, History, LabelValues

logger = logging.getLogger(__name__)

FEWEST_STEPS = 8
"""Steps below which a training NLL is too rough to be judged."""

LAST_PART = 0.1
"""The part of a fit, its last, in which the training NLL must not fall any more."""

FALL = 0.01
"""Nats per example that it may fall there."""

UNSETTLED = 0.25
"""Mean distance of spreads from their optimum, as a part of the precision, above which they have not come to rest."""


def have_settled(distance: float | None) -> bool | None:
    """Return whether learned spreads are near the optimum of the objective; a warning says if they are not.

    Args:
        distance: The mean of P σ² − 1 at the end of the fit, with 1/σ² the precision of a number and P what prior and
            data ask for (`natural.distance`).

    Returns:
        None if there are none.
    """
    if distance is None:
        return None
    if abs(distance) <= UNSETTLED:
        return True
    logger.warning(
        "The spreads have not come to rest: at the end of the fit, prior and data ask for %.2f times their precision. "
        "Train for more epochs (epochs=…), or raise spread_rate.",
        max(1 + distance, 0.0),
    )
    return False


def has_learned(history: History, likelihood: Likelihood, labels: LabelValues | None) -> bool | None:
    """Return whether the training NLL is below that of the labels' frequencies by more than its standard error.

    The training NLL is the mean over the steps of the last epoch, and over 8 at least, with the noise of training. If
    it is not below, a warning says so, and what to change; another one says if it is 0 at every step.

    Args:
        history: Columns by step: `epoch` and `nll`.
        likelihood: The likelihood.
        labels: Labels of the training data, an entry for each row, if they are known.

    Returns:
        None if it cannot be said: there were too few steps, this kind of label has no such baseline, or all labels are
        the same.
    """
    nll, epoch = np.asarray(history.get("nll", ())), np.asarray(history.get("epoch", ()))
    if len(nll) and not nll.any():  # of labels that a collator or stream makes, which are not looked at before
        logger.warning(
            "This fit has learned nothing: the NLL is 0 at every step, as where all labels are %d, and so not observed."
            " Look at what makes them, such as a collator or template.",
            IGNORED,
        )
        return False
    rows: Any = labels
    if labels is None or all(np.array_equal(row, rows[0]) for row in rows):  # there is nothing to tell apart
        return None
    baseline = likelihood.baseline(labels)
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


def still_falls(history: History) -> bool | None:
    """Return whether the training NLL still falls in the last tenth of a fit, by more than its noise.

    The fall is that of a line through the NLLs of these steps. It counts if it is three times its standard error, and
    more than 0.01 nats per example; a warning then says so.

    Args:
        history: Columns by step: `nll`.

    Returns:
        None if it cannot be said: the last tenth has fewer than 8 steps.
    """
    nll = np.asarray(history.get("nll", ()), dtype=np.float64)
    last = nll[len(nll) - int(len(nll) * LAST_PART) :]
    if len(last) < FEWEST_STEPS or not np.isfinite(last).all():
        return None
    x = np.linspace(-0.5, 0.5, len(last))
    slope = float(x @ last / (x @ x))
    rest = last - last.mean() - slope * x
    error = math.sqrt(float(rest @ rest) / (len(last) - 2) / float(x @ x))
    if -slope <= max(3 * error, FALL):
        return False
    logger.warning(
        "The training NLL still falls: by %.3f ± %.3f nats per example in the last tenth of this fit. Train for more "
        "epochs (epochs=…).",
        -slope,
        error,
    )
    return True
