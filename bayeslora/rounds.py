"""As many draws as each example needs."""

from collections.abc import Callable
from typing import Any

import numpy as np

from bayeslora.data import Source
from bayeslora.prediction import run
from bayeslora.program import Program
from bayeslora.tasks.collecting import Outputs
from bayeslora.tasks.prediction import BasePrediction
from bayeslora.types import Sites

ROUNDS = (8, 16, 32)
"""Draws after each round; each number divides the last one. The spread of fewer than 8 is often small by luck."""

PAIRED = (4, *ROUNDS)
"""The same of antithetic draws, whose pairs are nearer to the limit, and are judged by Student's t."""

TOLERANCE = 0.02
"""The largest standard error, by the draws, of a probability that counts as settled; of a number, P(y ≤ t)."""


def predict(
    program: Program,
    source: Source,
    sites: Sites,
    seed: int | None,
    batch_size: int,
    approximation: str,
    finished: Callable[[Any], BasePrediction],
    antithetic: bool = False,
) -> tuple[Outputs, np.ndarray]:
    """Run rounds of draws, each on the examples that those before have not settled; see `BasePrediction.settled`.

    Draws of an example that needed fewer are repeated, which leaves every average over them as it is.

    Args:
        program: The program.
        source: The data.
        sites: Draws, `[draw, layer, …]`, as many as the last of `ROUNDS`.
        seed: Seed of a loader that shuffles.
        batch_size: Examples per batch.
        approximation: `"draws"` or `"linear"`.
        finished: Makes the prediction of outputs.
        antithetic: Whether draws are in pairs, whose averages tell how settled an example is.

    Returns:
        The outputs at as many draws, and how many of them each example used, `[example]`.

    Raises:
        ValueError: If this kind of prediction does not say when it is settled.
    """
    most = len(next(iter(sites.values())))
    divides = source.dataset is not None and not source.is_stream  # into parts
    if most != ROUNDS[-1] or approximation == "linear" or not divides:  # members of a finite posterior, or one pass
        found = run(program, source, sites, seed, batch_size, approximation)
        return found, np.full(len(finished(found)), most)
    if len(source) > batch_size:  # refuse what never says so before many examples have been run
        two = {name: value[:2] for name, value in sites.items()}
        _settled(finished, run(program, source.take([0]), two, seed, 1, approximation))
    left, start, used = np.arange(len(source)), 0, np.zeros(len(source), int)
    logits: Any = None
    whole: Any = None
    rounds = PAIRED if antithetic else ROUNDS
    for end in rounds:
        part = source if end == rounds[0] else source.take(left.tolist())
        own = {name: value[start:end] for name, value in sites.items()}
        found = run(program, part, own, seed, batch_size, approximation)
        _settled(finished, found)
        if logits is None:
            whole = found
            logits = np.zeros((most, *found.logits.shape[1:]))
        logits[start:end, left] = found.logits
        used[left] = end
        seen = Outputs(logits[:end, left], None, found.rows, found.context)
        left, start = left[~_settled(finished, seen, antithetic)], end
        if not len(left):
            break
    for end in rounds[:-1]:
        logits[:, used == end] = np.tile(logits[:end, used == end], (most // end, *[1] * (logits.ndim - 1)))
    return Outputs(logits, whole.labels, whole.rows, whole.context), used


def _settled(finished: Callable[[Any], BasePrediction], found: Any, pairs: bool = False) -> np.ndarray:
    says = isinstance(found, Outputs) and found.rows is None
    settled = finished(found).settled(TOLERANCE, pairs) if says else None
    if settled is None:
        raise ValueError(
            "num_draws='auto' is for predictions of one row per example that say when they are settled, as those of "
            "classes and of numbers do: give a number of draws."
        )
    return settled
