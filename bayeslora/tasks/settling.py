"""Whether draws have settled what is predicted."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bayeslora.metrics import FloatArray

QUANTILE = 0.95
"""Of Student's t, for the standard error of few averages of pairs, or of few draws of each component."""


class Component(NamedTuple):
    """Draws of one component of a mixture.

    Args:
        size: Number of draws.
        sampled: Whether others could have been drawn; members of a finite posterior are all there are.
    """

    size: int
    sampled: bool = True


def settled(
    draws: FloatArray,
    margins: FloatArray,
    tolerance: float,
    pairs: bool = False,
    components: Sequence[Component] = (),
    weights: FloatArray | None = None,
) -> np.ndarray:
    """Return whether draws have settled probabilities and the decisions by them, `[row]`.

    They have if the standard error of every probability is at most the tolerance, and every decision's margin is two
    standard errors from 0.

    Args:
        draws: Probabilities, `[draw, row, class]`.
        margins: What a decision goes by the sign of, `[draw, row, decision]`.
        tolerance: The largest standard error.
        pairs: Whether draws are antithetic.
        components: Whose draws they are, one after another, of a mixture.
        weights: Weights of the draws, `[draw]`; None if they are equal.
    """
    error, doubt = (standard_error(values, pairs, components, weights) for values in (draws, margins))
    mean = margins.mean(0) if weights is None else np.tensordot(weights, margins, axes=1)  # there may be no margin
    return np.asarray((error <= tolerance).all(-1) & (np.abs(mean) >= 2 * doubt).all(-1))


def standard_error(
    values: FloatArray, pairs: bool = False, components: Sequence[Component] = (), weights: FloatArray | None = None
) -> FloatArray:
    r"""Return the standard error of the mean over draws of values, `[draw, …]`.

    Draws of one component vary around the mean of that component: with its weight w and n of them, whose standard
    deviation is s, the variance of the mean is $\sum w^2 s^2 / n$. Of antithetic draws, two of a pair depend on each
    other, and only their averages do not. These, and draws of a component, are few, and the standard error is
    multiplied by the ratio of Student's 95 % quantile to the Normal's.
    """
    variance, freedom, first = np.zeros(values.shape[1:]), 0, 0
    for size, sampled in components or [Component(len(values))]:
        own = values[first : first + size]
        share = size / len(values) if weights is None else weights[first : first + size].sum()
        first += size
        if sampled:
            own = (own[0::2] + own[1::2]) / 2 if pairs else own
            variance = variance + share**2 * own.var(0, ddof=1) / len(own)
            freedom += len(own) - 1
    error: FloatArray = np.sqrt(variance)
    if freedom and (pairs or len(components) > 1):
        from scipy import stats

        error = error * float(stats.t.ppf(QUANTILE, freedom) / stats.norm.ppf(QUANTILE))
    return error
