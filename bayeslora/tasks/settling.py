"""Whether draws have settled what is predicted."""

import math

import numpy as np

from bayeslora.metrics import FloatArray

QUANTILE = 0.95
"""Of Student's t, for the standard error of few averages of pairs."""


def settled(draws: FloatArray, margins: FloatArray, tolerance: float, pairs: bool = False) -> np.ndarray:
    """Return whether draws have settled probabilities and the decisions by them, `[row]`.

    They have if the standard error of every probability is at most the tolerance, and every decision's margin is two
    standard errors from 0.

    Args:
        draws: Probabilities, `[draw, row, class]`.
        margins: What a decision goes by the sign of, `[draw, row, decision]`.
        tolerance: The largest standard error.
        pairs: Whether draws are antithetic: two of a pair depend on each other, and only their averages do not. These
            are few, and their standard errors are multiplied by the ratio of Student's 95 % quantile to the Normal's.
    """
    factor = 1.0
    if pairs:
        from scipy import stats

        draws, margins = ((values[0::2] + values[1::2]) / 2 for values in (draws, margins))
        factor = float(stats.t.ppf(QUANTILE, len(draws) - 1) / stats.norm.ppf(QUANTILE))
    error, doubt = (factor * values.std(0, ddof=1) / math.sqrt(len(values)) for values in (draws, margins))
    return (error <= tolerance).all(-1) & (np.abs(margins.mean(0)) >= 2 * doubt).all(-1)
