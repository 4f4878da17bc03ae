"""Intervals of scores, and of their differences, over seeds and test rows together.

A score is known for every seed, and once more for every seed without each of several blocks of test examples, which are
the same for all seeds and all methods. Seeds are clusters: their number, not that of seeds times rows, is what an
interval has to go by.
"""

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from bayeslora.metrics import FloatArray

BLOCKS = 20
"""Blocks of test examples that are left out one after another."""

LEVEL = 0.95
"""Probability with which an interval is to contain what it estimates."""

Block: TypeAlias = np.ndarray
"""The block of each test example, `[example]`."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, with half the width of its interval.

    Args:
        value: The mean.
        half: Half of the width; NaN where nothing is known about it.
        se: The standard error.
    """

    value: float
    half: float
    se: float

    @property
    def is_zero(self) -> bool:
        """Whether the interval contains 0; so does one that is not known."""
        return not abs(self.value) > self.half


def blocks(num_examples: int) -> Block:
    """Return the block of each example: every twentieth example is in the same one."""
    return np.arange(num_examples) % min(BLOCKS, num_examples)


def estimate(values: FloatArray, left_out: FloatArray | None = None) -> Estimate:
    r"""Estimate the mean of a score over seeds, in a population of seeds and test rows.

    With $s_k$ the score of seed k of K, and $\bar s_{-g}$ the mean over seeds without block g of G,

    $$\mathrm{se}^2 = \frac1K \mathrm{Var}_k(s_k) + \frac{G - 1}{G} \sum_g (\bar s_{-g} - \bar s_{-\cdot})^2,$$

    the variances from seeds and, by the jackknife, from rows. What seeds and rows have in common is in both: the
    interval is rather too wide. It is Student's, with Satterthwaite's degrees of freedom of a sum of variances.

    Args:
        values: The score of each seed, `[seed]`.
        left_out: The same without each block, `[seed, block]`; None if that is not known. The interval then says
            nothing about other test rows.

    References:
        Satterthwaite (1946), An Approximate Distribution of Estimates of Variance Components; Miller (1974), The
        Jackknife; Owen (2007), [The Pigeonhole Bootstrap](https://arxiv.org/abs/0712.1111).
    """
    parts = []
    if len(values) > 1:
        parts.append((float(np.var(values, ddof=1)) / len(values), len(values) - 1))
    if left_out is not None and left_out.shape[1] > 1:
        mean, size = left_out.mean(0), left_out.shape[1]
        parts.append((float(np.square(mean - mean.mean()).sum()) * (size - 1) / size, size - 1))
    return student(float(np.mean(values)), parts)


def unless_constant(found: Estimate) -> Estimate:
    """Return a score's mean without its interval where that has no width.

    A score that is the same for every seed and without any block, such as an accuracy of 1, says nothing about how far
    it may be from its mean.
    """
    return found if found.half else Estimate(found.value, math.nan, math.nan)


def estimate_of_rows(rows: FloatArray) -> Estimate:
    """Estimate the mean over seeds and rows of numbers, `[seed, row]`, as `estimate` does; every row is a block."""
    parts = []
    if len(rows) > 1:
        parts.append((float(np.var(rows.mean(1), ddof=1)) / len(rows), len(rows) - 1))
    if rows.shape[1] > 1:
        parts.append((float(np.var(rows.mean(0), ddof=1)) / rows.shape[1], rows.shape[1] - 1))
    return student(float(rows.mean()), parts)


def student(value: float, parts: list[tuple[float, int]]) -> Estimate:
    """Return a mean with Student's interval.

    Args:
        value: The mean.
        parts: Variances that add to its own, each with its degrees of freedom.
    """
    from scipy.stats import t

    variance = sum(part for part, _ in parts)
    if not parts or not math.isfinite(variance):
        return Estimate(value, math.nan, math.nan)
    if variance == 0:
        return Estimate(value, 0.0, 0.0)
    freedom = variance**2 / sum(part**2 / df for part, df in parts)
    return Estimate(value, float(t.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(variance), math.sqrt(variance))
