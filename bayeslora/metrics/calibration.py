"""Confidence held against accuracy: reliability diagrams, calibration errors, and what chance makes of them."""

import numpy as np

from bayeslora.contracts import Count, checked
from bayeslora.contracts.arrays import Finite, Probabilities, check_labels
from bayeslora.metrics.arrays import FloatArray
from bayeslora.types import Seed

NUM_BINS = 15
"""Bins of the calibration error and the reliability diagram: equal width, on [0, 1]."""


@checked(also=check_labels)
def reliability(
    probs: Probabilities, labels: Finite, num_bins: Count = NUM_BINS, adaptive: bool = False
) -> dict[str, FloatArray]:
    """Compare confidence with accuracy, in equal-width bins of the top-class probability on [0, 1].

    Args:
        probs: `[example, class]`.
        labels: The classes, `[example]`.
        num_bins: Number of bins.
        adaptive: Whether to divide bins further at the quantiles of the confidence k / `num_bins`, so that none holds
            more than that share of the examples, ties apart: the top bin often holds most.

    Returns:
        `edges` `[bin + 1]`; `count`, and mean `confidence` and `accuracy` `[bin]`, which are NaN in empty bins.
    """
    probs = np.asarray(probs, dtype=np.float64)
    confidence = probs.max(-1)
    correct = (probs.argmax(-1) == np.asarray(labels)).astype(np.float64)
    edges = np.linspace(0, 1, num_bins + 1)
    if adaptive:
        edges = np.union1d(edges, np.quantile(confidence, edges[1:-1]))
        num_bins = len(edges) - 1
    # Bins are (lower, upper]: a confidence of 1 belongs to the last.
    index = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, num_bins - 1)
    count = np.bincount(index, minlength=num_bins).astype(np.float64)
    with np.errstate(invalid="ignore"):
        return {
            "edges": edges,
            "count": count,
            "confidence": np.bincount(index, confidence, num_bins) / count,
            "accuracy": np.bincount(index, correct, num_bins) / count,
        }


@checked(also=check_labels)
def ece(probs: Probabilities, labels: Finite, num_bins: Count = NUM_BINS) -> float:
    """Return the expected calibration error, Σ_bins (count / n) |accuracy − confidence| of the top class.

    References:
        Guo et al. (2017), [On Calibration of Modern Neural Networks](https://arxiv.org/abs/1706.04599).
    """
    bins = reliability(probs, labels, num_bins)
    return float(np.nansum(bins["count"] * np.abs(bins["accuracy"] - bins["confidence"])) / bins["count"].sum())


@checked()
def ece_floor(probs: Probabilities, num_bins: Count = NUM_BINS, num_samples: Count = 200, seed: Seed = 0) -> float:
    r"""Return the ECE that these predictions would have on average if they were perfectly calibrated.

    With $c_i$ the confidence of example i of n, its top-class probability, and independent $z_i \sim
    \mathrm{Bernoulli}(c_i)$,

    $$\mathbb{E} \sum_{\mathrm{bins}\ b} \frac1n \Big| \sum_{i \in b} (z_i - c_i) \Big|.$$

    An ECE near this floor is as good as 0. The floor falls as $1 / \sqrt n$.

    Args:
        probs: `[example, class]`.
        num_bins: Number of equal-width bins, as for `ece`.
        num_samples: How often all $z_i$ are drawn.
        seed: Of these draws.
    """
    confidence = np.sort(np.asarray(probs, dtype=np.float64).max(-1))  # the order of examples must not matter
    generator = np.random.default_rng(seed)
    index = np.searchsorted(np.linspace(0, 1, num_bins + 1), confidence, side="left")
    drawn = ((generator.random(len(confidence)) < confidence) - confidence for _ in range(num_samples))
    return float(np.mean([np.abs(np.bincount(index, gaps)).sum() for gaps in drawn])) / len(confidence)


@checked(also=check_labels)
def adaptive_ece(probs: Probabilities, labels: Finite, num_bins: Count = NUM_BINS) -> float:
    """Return the calibration error of the top class in bins of equal count instead of equal width.

    The order of equally confident examples is arbitrary: each counts as their mean.

    References:
        Nixon et al. (2019), [Measuring Calibration in Deep Learning](https://arxiv.org/abs/1904.01685).
    """
    probs = np.asarray(probs, dtype=np.float64)
    confidence, group = np.unique(probs.max(-1), return_inverse=True)  # group numbers in the order of the values
    accuracy = np.bincount(group, probs.argmax(-1) == np.asarray(labels)) / np.bincount(group)
    gaps = (accuracy - confidence)[np.sort(group)]
    return float(sum(abs(part.sum()) for part in np.array_split(gaps, min(num_bins, len(gaps)))) / len(gaps))


@checked(also=check_labels)
def classwise_ece(probs: Probabilities, labels: Finite, num_bins: Count = NUM_BINS) -> float:
    """Return the calibration error of each class's probability, in equal-width bins on [0, 1], averaged over classes.

    References:
        Kull et al. (2019), [Beyond Temperature Scaling](https://arxiv.org/abs/1910.12656).
    """
    probs, labels = np.asarray(probs, dtype=np.float64), np.asarray(labels)
    index = np.clip(np.ceil(probs * num_bins).astype(int) - 1, 0, num_bins - 1)
    gaps = [
        np.abs(np.bincount(index[:, c], (labels == c) - probs[:, c], num_bins)).sum() / len(labels)
        for c in range(probs.shape[-1])
    ]
    return float(np.mean(gaps))
