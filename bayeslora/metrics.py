"""Metrics of probabilities against labels, in numpy.

Everywhere, `probs` is `[example, class]` and sums to one, `draws` is `[draw, example, class]`, `labels` is `[example]`.
Log-losses and entropies are in nats.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.floating]

NUM_BINS = 15
"""Bins of the calibration error and the reliability diagram: equal width, on [0, 1]."""


def accuracy(probs: ArrayLike, labels: ArrayLike) -> float:
    """Share of examples whose most probable class is their label."""
    return float((np.asarray(probs).argmax(-1) == np.asarray(labels)).mean())


def nll(probs: ArrayLike, labels: ArrayLike) -> float:
    """Negative log-likelihood per example, −mean ln p(label)."""
    return float(nll_per_example(probs, labels).mean())


def nll_per_example(probs: ArrayLike, labels: ArrayLike) -> FloatArray:
    """−ln p(label), `[example]`. A probability of exactly 0 counts as the smallest positive number."""
    probs = np.asarray(probs, dtype=np.float64)
    chosen = np.take_along_axis(probs, np.asarray(labels)[:, None], axis=-1)[:, 0]
    return -np.log(np.maximum(chosen, np.finfo(np.float64).tiny))


def brier(probs: ArrayLike, labels: ArrayLike) -> float:
    """Brier score, mean Σ_c (p_c − 1[c = label])²: between 0 and 2, the sum over *all* classes."""
    from sklearn.metrics import brier_score_loss

    probs = np.asarray(probs, dtype=np.float64)
    return float(brier_score_loss(labels, probs, labels=np.arange(probs.shape[-1]), scale_by_half=False))


def reliability(probs: ArrayLike, labels: ArrayLike, num_bins: int = NUM_BINS) -> dict[str, FloatArray]:
    """Confidence against accuracy, in equal-width bins of the top-class probability on [0, 1].

    Returns:
        `edges` `[bin + 1]`; `count`, and mean `confidence` and `accuracy` `[bin]`, which are NaN in empty bins.
    """
    probs = np.asarray(probs, dtype=np.float64)
    confidence = probs.max(-1)
    correct = (probs.argmax(-1) == np.asarray(labels)).astype(np.float64)
    edges = np.linspace(0, 1, num_bins + 1)
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


def ece(probs: ArrayLike, labels: ArrayLike, num_bins: int = NUM_BINS) -> float:
    """Expected calibration error: Σ_bins (count / n) |accuracy − confidence| of the top class.

    References:
        Guo et al. (2017), [On Calibration of Modern Neural Networks](https://arxiv.org/abs/1706.04599).
    """
    bins = reliability(probs, labels, num_bins)
    gap = np.nan_to_num(np.abs(bins["accuracy"] - bins["confidence"]))
    return float((bins["count"] * gap).sum() / bins["count"].sum())


def entropy(probs: ArrayLike) -> FloatArray:
    """Entropy −Σ_c p_c ln p_c over the last axis."""
    from scipy.special import entr

    return entr(np.asarray(probs, dtype=np.float64)).sum(-1)


def relative_entropy(probs: ArrayLike, reference: ArrayLike) -> FloatArray:
    """KL divergence Σ_c p_c ln(p_c / q_c) over the last axis; the two broadcast."""
    from scipy.special import rel_entr

    return rel_entr(np.asarray(probs, dtype=np.float64), np.asarray(reference, dtype=np.float64)).sum(-1)


def majority_rate(labels: ArrayLike) -> float:
    """Share of the most frequent label: the accuracy of always giving it."""
    return float(np.unique(np.asarray(labels), return_counts=True)[1].max() / np.asarray(labels).size)


def auroc(scores_inside: ArrayLike, scores_outside: ArrayLike) -> float:
    """Probability that an outside example scores higher than an inside one: area under the ROC curve."""
    from sklearn.metrics import roc_auc_score

    inside, outside = np.asarray(scores_inside), np.asarray(scores_outside)
    truth = np.concatenate([np.zeros(len(inside)), np.ones(len(outside))])
    return float(roc_auc_score(truth, np.concatenate([inside, outside])))


def classification_scores(probs: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Accuracy, NLL, ECE (15 bins) and Brier score."""
    return {
        "accuracy": accuracy(probs, labels),
        "nll": nll(probs, labels),
        "ece": ece(probs, labels),
        "brier": brier(probs, labels),
    }


def softmax(logits: ArrayLike, temperature: float = 1.0) -> FloatArray:
    """Probabilities from logits, the last axis summing to one, at a temperature."""
    from scipy.special import softmax as scipy_softmax

    return scipy_softmax(np.asarray(logits, dtype=np.float64) / temperature, axis=-1)


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    r"""The temperature T that minimises the NLL of the mean over draws of $\mathrm{softmax}(f_s / T)$.

    Args:
        logits: $f$, `[draw, example, class]`; one draw gives plain temperature scaling.
        labels: `[example]`.

    Returns:
        T, between 0.05 and 20.

    References:
        Guo et al. (2017), [On Calibration of Modern Neural Networks](https://arxiv.org/abs/1706.04599).
    """
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return nll(softmax(logits, np.exp(log_temperature)).mean(0), labels)

    # With many draws the loss may have more than one valley: look at a grid first.
    grid = np.linspace(np.log(0.05), np.log(20), 25)
    best = int(np.argmin([loss(value) for value in grid]))
    bounds = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))
