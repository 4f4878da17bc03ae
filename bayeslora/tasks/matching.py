"""SQuAD's exact match and F1, of positions and of words."""

import string
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from bayeslora.metrics import FloatArray


def span_scores(predicted: np.ndarray, labels: ArrayLike) -> dict[str, float]:
    """Return exact match and F1 of the tokens of two spans, averaged over examples.

    They are SQuAD's, but on positions: articles and punctuation count, and the same words elsewhere do not.

    Args:
        predicted: First and last token, `[example, 2]`.
        labels: First and last token of the true span, `[example, 2]`.
    """
    labels = np.asarray(labels)
    first, last = np.maximum(predicted[:, 0], labels[:, 0]), np.minimum(predicted[:, 1], labels[:, 1])
    shared = np.maximum(last - first + 1, 0)
    sizes = (predicted[:, 1] - predicted[:, 0] + 1) + (labels[:, 1] - labels[:, 0] + 1)
    return {
        "exact_match": float((predicted == labels).all(-1).mean()),
        "f1": float((2 * shared / np.maximum(sizes, 1)).mean()),
    }


def answer_scores(predicted: Sequence[str], answers: Sequence[Sequence[str]]) -> tuple[np.ndarray, FloatArray]:
    """Return SQuAD's exact match and F1 on the words of each answer, the best over the right answers.

    Case, punctuation and articles do not count. The right answer to a question that has none is empty.

    Args:
        predicted: An answer per question.
        answers: The right answers, per question.

    Returns:
        Whether each matches, `[question]`; F1, `[question]`.

    References:
        Rajpurkar et al. (2016), [SQuAD](https://arxiv.org/abs/1606.05250), section 5.
    """
    exact, f1 = [], []
    for given, right in zip(predicted, answers, strict=True):
        words = _words(given)
        candidates = [_words(text) for text in right] or [[]]
        exact.append(words in candidates)
        f1.append(max(_f1(words, candidate) for candidate in candidates))
    return np.asarray(exact), np.asarray(f1)


def _words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation and articles."""
    kept = "".join(character for character in text.lower() if character not in string.punctuation)
    return [word for word in kept.split() if word not in ("a", "an", "the")]


def _f1(words: list[str], right: list[str]) -> float:
    """Return the F1 of two bags of words; an empty one matches only another empty one."""
    if not words or not right:
        return float(words == right)
    shared = (Counter(words) & Counter(right)).total()
    return 2 * shared / (len(words) + len(right))
