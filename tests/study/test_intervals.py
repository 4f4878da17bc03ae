"""Intervals over seeds and test rows together."""

import math

import numpy as np
import pytest
from scipy import stats

from bayeslora.study.intervals import BLOCKS, Estimate, blocks, estimate, estimate_of_rows
from tests.helpers import FAILURE_RATE


def crossed(rng: np.random.Generator, seeds: int, rows: int, of_seeds: float, of_rows: float) -> np.ndarray:
    """A score whose mean is 0 in a population of seeds and rows."""
    between = of_seeds * rng.normal(size=(seeds, 1)) + of_rows * rng.normal(size=rows)
    return between + rng.normal(size=(seeds, rows))


def left_out(values: np.ndarray) -> np.ndarray:
    block = blocks(values.shape[1])
    return np.stack([values[:, block != number].mean(1) for number in range(block.max() + 1)], axis=1)


@pytest.mark.parametrize(("of_seeds", "of_rows"), [(0.0, 0.0), (0.5, 0.0), (0.0, 2.0), (0.3, 2.0)])
def test_intervals_contain_the_mean_as_often_as_they_say(of_seeds: float, of_rows: float) -> None:
    rng, number = np.random.default_rng(0), 400
    hits = {"blocks": 0, "rows": 0}
    for _ in range(number):
        values = crossed(rng, 5, 200, of_seeds, of_rows)
        hits["blocks"] += estimate(values.mean(1), left_out(values)).is_zero
        hits["rows"] += estimate_of_rows(values).is_zero
    for name, count in hits.items():  # wider than need be, never narrower
        assert stats.binom.cdf(count, number, 0.95) > FAILURE_RATE, f"{name}: {count / number}"


def test_ignoring_that_seeds_are_clusters_would_not_do() -> None:
    rng, hits = np.random.default_rng(0), 0
    for _ in range(200):
        values = crossed(rng, 5, 200, 0.5, 0.0).ravel()
        hits += abs(values.mean()) <= 1.96 * values.std() / len(values) ** 0.5
    assert stats.binom.cdf(hits, 200, 0.95) < FAILURE_RATE


def test_one_seed_has_the_interval_of_the_rows_and_one_block_that_of_the_seeds() -> None:
    rows = np.random.default_rng(1).normal(size=(1, BLOCKS))
    low, high = stats.t.interval(0.95, BLOCKS - 1, rows.mean(), stats.sem(rows[0]))
    for found in (estimate(rows.mean(1), left_out(rows)), estimate_of_rows(rows)):
        assert (found.value - found.half, found.value + found.half) == pytest.approx((low, high))
    seeds = np.array([1.0, 2.0, 4.0])
    low, high = stats.t.interval(0.95, 2, seeds.mean(), stats.sem(seeds))
    found = estimate(seeds)
    assert (found.value - found.half, found.value + found.half) == pytest.approx((low, high))


def test_what_is_not_known_is_not_told_from_zero() -> None:
    assert math.isnan(estimate(np.array([1.0])).half)
    assert estimate(np.array([1.0])).is_zero
    assert estimate(np.array([np.nan, 1.0]), np.full((2, 5), np.nan)).is_zero
    assert estimate(np.zeros(3), np.zeros((3, 4))) == Estimate(0.0, 0.0, 0.0)


def test_every_example_is_in_one_block_of_about_the_same_size() -> None:
    for size in (1, 7, 20, 1003):
        count = np.bincount(blocks(size))
        assert len(count) == min(size, BLOCKS)
        assert count.max() - count.min() <= 1
