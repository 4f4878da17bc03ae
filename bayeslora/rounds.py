"""As many draws as each example needs."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from bayeslora.data import Source
from bayeslora.drawing import Drawn
from bayeslora.isolation import seeded
from bayeslora.prediction import Part, run_parts
from bayeslora.tasks.collecting import Outputs
from bayeslora.tasks.prediction import BasePrediction
from bayeslora.tasks.settling import Component

FEWEST = 8
"""Draws before the first look at them: the spread of fewer is often small by luck."""

FEWEST_IN_PAIRS = 4
"""The same of antithetic draws, whose pairs are nearer to the limit, and are judged by Student's t."""

MOST = 32
"""Draws after which no example gets more."""

TOLERANCE = 0.02
"""The largest standard error, by the draws, of a probability that counts as settled; of a number, P(y ≤ t)."""


def ends(components: int = 1, pairs: bool = False) -> tuple[int, ...]:
    """Return how many draws each component of a mixture has after each round, twice as many as after the one before.

    Each has as many, at least two draws or two pairs: one says nothing about its spread.
    """
    found = [FEWEST_IN_PAIRS if pairs else max(2, math.ceil(FEWEST / components))]
    while found[-1] * components < MOST:
        found.append(2 * found[-1])
    return tuple(found)


def predict(
    parts: Sequence[Part],
    source: Source,
    ends: Sequence[int],
    finished: Callable[[Any, Sequence[int]], BasePrediction],
    seed: int | None,
    batch_size: int,
    pairs: bool = False,
    weights: np.ndarray | None = None,
) -> tuple[Any, np.ndarray]:
    """Run rounds of draws, each on the examples that those before have not settled; see `BasePrediction.settled`.

    An example is settled when all of its rows are. Draws of one that needed fewer are repeated, which leaves every
    average over them as it is.

    Args:
        parts: The program, or those of a mixture's components, with as many draws each as the last of `ends`; members
            of a finite posterior, and a linearised network, run once.
        source: The data.
        ends: Draws of each part after each round.
        finished: Makes the prediction of outputs and of how many draws each part has.
        seed: Seed of a loader that shuffles.
        batch_size: Examples per batch.
        pairs: Whether draws are antithetic, and their averages tell how settled an example is.
        weights: Weights of all draws, `[draw]`; None if they are equal.

    Returns:
        The outputs at all draws, and how many of them each row used, `[row]`.

    Raises:
        ValueError: If this kind of prediction does not say when it is settled.
    """
    sampled, sizes = [_is_sampled(part) for part in parts], [part.num_draws for part in parts]

    def run(some: Sequence[Part], examples: np.ndarray | None = None, weights: np.ndarray | None = None) -> Any:
        rows, context = source, source.context
        if examples is not None:
            rows, context = source.take(np.flatnonzero(examples).tolist()), context and context.take(examples)
        with seeded(seed):  # a loader that shuffles
            return run_parts(some, rows.batches_by_length(batch_size), rows.with_labels, context, weights)

    def settled(found: Any, sizes: Sequence[int], pairs: bool = False) -> np.ndarray:
        components = [*map(Component, sizes, sampled)]
        says = finished(found, sizes).settled(TOLERANCE, pairs, components) if isinstance(found, Outputs) else None
        if says is None:
            raise ValueError(
                "num_draws='auto' is for predictions that say when they are settled, as those of classes, numbers, "
                "tokens and spans do: give a number of draws."
            )
        return says

    if not any(sampled) or source.dataset is None or source.is_stream:  # which no part can be taken of
        found = run(parts, weights=weights)
        return found, np.full(len(finished(found, sizes)), sum(sizes))
    if len(source) > batch_size:  # refuse what never says so before many examples have been run
        two = [_between(part, 0, min(2, part.num_draws)) for part in parts]
        settled(run(two, np.arange(len(source)) == 0), [part.num_draws for part in two])
    firsts = np.cumsum([0, *sizes[:-1]])
    whole: Any = None
    left = np.ones(len(source), bool)
    for start, end in itertools.pairwise([0, *ends]):
        done = [start if drawn else size * (start > 0) for size, drawn in zip(sizes, sampled, strict=True)]
        upto = [end if drawn else size for size, drawn in zip(sizes, sampled, strict=True)]
        new = [_between(part, *each) for part, *each in zip(parts, done, upto, strict=True) if each[0] < each[1]]
        found = run(new, left if start else None)
        if whole is None:
            settled(found, upto, pairs)
            whole = Outputs(np.zeros((sum(sizes), *found.logits.shape[1:])), found.labels, found.rows, found.context)
            example = np.arange(len(source)) if found.rows is None else found.rows.example
            used = np.zeros(len(example), int)
        rows = np.flatnonzero(left[example])
        likelihood = parts[0].program.likelihood
        whole.logits[np.ix_(_numbers(firsts, done, upto), rows)] = likelihood.alike([whole.logits, found.logits])[1]
        seen = _numbers(firsts, [0] * len(parts), upto)
        used[rows] = len(seen)
        says = settled(_part(whole, seen, rows, left), upto, pairs)
        left = np.isin(np.arange(len(source)), example[rows[~says]])
        if not left.any():
            break
    for first, size, drawn in zip(firsts, sizes, sampled, strict=True):
        for end in ends[:-1] if drawn else ():
            of_these = np.flatnonzero(used == sum(end if one else n for n, one in zip(sizes, sampled, strict=True)))
            whole.logits[first : first + size, of_these] = np.tile(
                whole.logits[first : first + end, of_these], (size // end, *[1] * (whole.logits.ndim - 1))
            )
    return whole, used


def _is_sampled(part: Part) -> bool:
    return not part.linear and not part.program.method.num_draws(part.program.guide)


def _between(part: Part, start: int, end: int) -> Part:
    """Return a part with some of its draws."""
    sites = part.sites.kept if isinstance(part.sites, Drawn) else part.sites
    assert sites is not None  # as few as the rounds have are kept
    return part._replace(sites={name: value[start:end] for name, value in sites.items()}, num_draws=end - start)


def _numbers(firsts: Iterable[int], starts: Iterable[int], ends: Iterable[int]) -> np.ndarray:
    """Return the numbers, among all draws, of some of each part, `[draw]`."""
    return np.concatenate([first + np.arange(*each) for first, *each in zip(firsts, starts, ends, strict=True)])


def _part(whole: Outputs, draws: np.ndarray, rows: np.ndarray, examples: np.ndarray) -> Outputs:
    """Return the outputs at some draws for some rows, those of examples `[example]` of truth values."""
    context = None if whole.context is None else whole.context.take(examples)
    of_tokens = None if whole.rows is None else whole.rows.take(examples)
    return Outputs(whole.logits[np.ix_(draws, rows)], None, of_tokens, context)
