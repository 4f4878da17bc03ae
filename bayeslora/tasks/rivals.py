"""Spans that compete to be the answer, and whether draws have settled which of them is."""

from collections.abc import Callable, Sequence

import numpy as np

from bayeslora.metrics import FloatArray
from bayeslora.tasks.settling import Component, settled

RIVALS = 8
"""The next most probable spans of a row, from which the most probable has to stand apart."""


def settled_spans(
    draws: FloatArray,
    spans: Callable[[int], FloatArray],
    tolerance: float,
    pairs: bool,
    components: Sequence[Component],
    weights: FloatArray | None,
) -> tuple[np.ndarray, FloatArray]:
    """Return whether each row is settled, `[row]`, and the probability of its best span under each draw, `[draw, row]`.

    It is if the probabilities of all ends and of the best span are, and that this is above its `RIVALS`.

    Args:
        draws: Probabilities of each position to be the first and to be the last, `[draw, row, position, 2]`.
        spans: Gives a row's probabilities of all spans, `[position, position]`.
        tolerance: The largest standard error.
        pairs: Whether draws are antithetic.
        components: Whose draws they are, of a mixture.
        weights: Weights of the draws, `[draw]`; None if they are equal.
    """
    best: FloatArray = np.zeros(draws.shape[:2])
    found = np.zeros(draws.shape[1], bool)
    for row in range(draws.shape[1]):
        of_row = spans(row)
        order = np.argsort(-of_row, axis=None, kind="stable")[: RIVALS + 1]
        first, last = np.unravel_index(order, of_row.shape)
        probs = draws[:, row, first, 0] * draws[:, row, last, 1]
        best[:, row] = probs[:, 0]
        known = np.concatenate([draws[:, row].reshape(len(draws), -1), probs[:, :1]], -1)
        found[row] = settled(known, probs[:, :1] - probs[:, 1:], tolerance, pairs, components, weights)
    return found, best


def settled_answer(
    options: FloatArray, texts: Sequence[str], pairs: bool, components: Sequence[Component], weights: FloatArray | None
) -> bool:
    """Return whether the most probable of several answers, `[draw, answer]`, is above all that read otherwise."""
    best = int(np.average(options, 0, weights).argmax())
    others = [number for number, text in enumerate(texts) if text != texts[best]]
    margins = options[:, [best]] - options[:, others]
    return bool(settled(np.zeros((len(options), 0)), margins, 0.0, pairs, components, weights))
