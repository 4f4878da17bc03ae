"""Metrics of probabilities against labels, in numpy.

Everywhere, `probs` is `[example, class]` and sums to one, `draws` is `[draw, example, class]`, `labels` is `[example]`.
Log-losses and entropies are in nats.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from bayeslora.contracts import Count, Scale, checked
from bayeslora.contracts.arrays import (
    Draws,
    Finite,
    Logits,
    Numbers,
    Probabilities,
    check_broadcast,
    check_labels,
    check_lengths,
)
from bayeslora.types import Seed

FloatArray = NDArray[np.floating]


NUM_BINS = 15
"""Bins of the calibration error and the reliability diagram: equal width, on [0, 1]."""


@checked(also=check_labels)
def accuracy(probs: Probabilities, labels: Finite) -> float:
    """Return the share of examples whose most probable class is their label."""
    return float((np.asarray(probs).argmax(-1) == np.asarray(labels)).mean())


@checked(also=check_labels)
def nll(probs: Probabilities, labels: Finite) -> float:
    """Return the negative log-likelihood per example, −mean ln p(label)."""
    return float(nll_per_example(probs, labels).mean())


@checked(also=check_labels)
def nll_per_example(probs: Probabilities, labels: Finite) -> FloatArray:
    """Return −ln p(label), `[example]`; a probability of exactly 0 counts as the smallest positive number."""
    probs = np.asarray(probs, dtype=np.float64)
    chosen = np.take_along_axis(probs, np.asarray(labels)[:, None], axis=-1)[:, 0]
    return -np.log(np.maximum(chosen, np.finfo(np.float64).tiny))


@checked(also=check_labels)
def brier(probs: Probabilities, labels: Finite) -> float:
    """Return the Brier score, mean Σ_c (p_c − 1[c = label])²: between 0 and 2, with the sum over *all* classes."""
    from sklearn.metrics import brier_score_loss

    probs = np.asarray(probs, dtype=np.float64)
    return float(brier_score_loss(labels, probs, labels=np.arange(probs.shape[-1]), scale_by_half=False))


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
    """Return the ECE that these predictions would have on average if they were perfectly calibrated.

    An ECE near this floor is as good as 0. Whether a top class is right is drawn by its probability, several times.
    """
    confidence, generator = np.asarray(probs, dtype=np.float64).max(-1), np.random.default_rng(seed)
    index = np.searchsorted(np.linspace(0, 1, num_bins + 1), confidence, side="left")
    drawn = ((generator.random(len(confidence)) < confidence) - confidence for _ in range(num_samples))
    return float(np.mean([np.abs(np.bincount(index, gaps)).sum() for gaps in drawn])) / len(confidence)


@checked()
def entropy(probs: Numbers) -> FloatArray:
    """Return the entropy −Σ_c p_c ln p_c over the last axis."""
    from scipy.special import entr

    return entr(np.asarray(probs, dtype=np.float64)).sum(-1)


@checked(also=check_broadcast)
def relative_entropy(probs: Numbers, reference: Numbers) -> FloatArray:
    """Return the KL divergence Σ_c p_c ln(p_c / q_c) over the last axis; p and q broadcast."""
    from scipy.special import rel_entr

    terms = rel_entr(np.asarray(probs, dtype=np.float64), np.asarray(reference, dtype=np.float64))
    return np.maximum(terms.sum(-1), 0)  # rounding can make it negative


@checked()
def majority_rate(labels: Finite) -> float:
    """Return the share of the most frequent label, the accuracy of always predicting it."""
    return float(np.unique(np.asarray(labels), return_counts=True)[1].max() / np.asarray(labels).size)


@checked()
def frequency_nll(labels: Finite) -> float:
    """Return the NLL per label, in nats, of predicting each class with its frequency: the frequencies' entropy."""
    counts = np.unique(np.asarray(labels), return_counts=True)[1]
    return float(entropy(counts[None] / counts.sum()).sum())


@checked()
def auroc(scores_inside: Finite, scores_outside: Finite) -> float:
    """Return the probability that an outside example scores higher than an inside one: area under the ROC curve."""
    from sklearn.metrics import roc_auc_score

    truth = np.repeat([0.0, 1.0], [np.size(scores_inside), np.size(scores_outside)])
    return float(roc_auc_score(truth, np.concatenate([scores_inside, scores_outside])))


@checked()
def fpr95(scores_inside: Finite, scores_outside: Finite) -> float:
    """Return the share of outside examples that pass for inside ones where 95 % of the inside ones do.

    A higher score means less familiar. The threshold is the lowest that at least 95 % of the inside scores do not
    exceed; a score equal to it passes. Between 0 and 1, lower is better; an uninformative score has 0.95.

    References:
        Liang et al. (2018), [ODIN](https://arxiv.org/abs/1706.02690), whose "positive" is an inside example.
    """
    inside, outside = np.sort(np.asarray(scores_inside)), np.asarray(scores_outside)
    threshold = inside[-(-95 * len(inside) // 100) - 1]
    return float((outside <= threshold).mean())


@checked()
def unfamiliarity(inside: Mapping[str, Finite], outside: Mapping[str, Finite]) -> dict[str, dict[str, float]]:
    """Return how well each score distinguishes unfamiliar inputs: its `auroc` and `fpr95`, by the score's name.

    Args:
        inside: Name to scores of inputs like those of the fit, `[example]`; higher means less familiar.
        outside: The same names to scores of unfamiliar inputs, `[example]`.

    Raises:
        ValueError: If the names differ.
    """
    if inside.keys() != outside.keys():
        raise ValueError(f"inside has the scores {', '.join(inside)}, outside {', '.join(outside)}: give the same.")
    return {
        name: {"auroc": auroc(inside[name], outside[name]), "fpr95": fpr95(inside[name], outside[name])}
        for name in inside
    }


@checked(also=check_lengths)
def auroc_errors(uncertainty: Finite, wrong: Finite) -> float:
    """Return the probability that a wrong prediction is more uncertain than a right one.

    It is NaN if all predictions are right, or all wrong.

    Args:
        uncertainty: Any score that orders the examples, such as the entropy, `[example]`.
        wrong: Whether the prediction is wrong, `[example]`.
    """
    uncertainty, wrong = np.asarray(uncertainty), np.asarray(wrong, dtype=bool)
    return math.nan if wrong.all() or not wrong.any() else auroc(uncertainty[~wrong], uncertainty[wrong])


@checked(also=check_lengths)
def risk_coverage(uncertainty: Finite, wrong: Finite) -> dict[str, FloatArray]:
    """Return the error rate of the i least uncertain examples, for every i.

    The order of equally uncertain examples is arbitrary: the risk is its expectation over their orders.

    Args:
        uncertainty: Any score that orders the examples, such as the entropy, `[example]`.
        wrong: Whether the prediction is wrong, `[example]`.

    Returns:
        `coverage`, the share i / n that is answered, and `risk`, the share of it that is wrong, `[example]` each.

    References:
        Geifman and El-Yaniv (2017), [Selective Classification](https://arxiv.org/abs/1705.08500).
    """
    _, group = np.unique(np.asarray(uncertainty), return_inverse=True)  # group numbers in the order of the values
    rate = np.bincount(group, np.asarray(wrong, dtype=np.float64)) / np.bincount(group)
    answered = np.arange(1, len(group) + 1)
    return {"coverage": answered / len(group), "risk": np.cumsum(rate[np.sort(group)]) / answered}


@checked(also=check_lengths)
def aurc(uncertainty: Finite, wrong: Finite) -> float:
    """Return the area under the risk–coverage curve, the risk averaged over all coverages.

    Arguments are those of `risk_coverage`. The area is between 0 and 1, lower is better; with an uninformative
    uncertainty it is the error rate.

    References:
        Geifman et al. (2018), [Bias-Reduced Uncertainty Estimation](https://arxiv.org/abs/1805.08206).
    """
    return float(risk_coverage(uncertainty, wrong)["risk"].mean())


@checked(also=check_labels)
def classification_scores(probs: Probabilities, labels: Finite) -> dict[str, float]:
    """Return accuracy, NLL, ECE (15 bins) and Brier score."""
    return {
        "accuracy": accuracy(probs, labels),
        "nll": nll(probs, labels),
        "ece": ece(probs, labels),
        "brier": brier(probs, labels),
    }


@checked(also=check_labels)
def class_scores(probs: Probabilities, labels: Finite) -> dict[str, float]:
    """Return macro F1, Matthews correlation, adaptive and classwise ECE, and how well entropy predicts errors.

    Macro F1 is over the classes that occur, predicted or true. Entropy is judged by the AUROC of errors (NaN if all are
    right, or all wrong) and by the area under the risk–coverage curve.
    """
    from sklearn.metrics import f1_score, matthews_corrcoef

    predicted = np.asarray(probs).argmax(-1)
    uncertainty, wrong = entropy(probs), predicted != np.asarray(labels)
    several = len(np.unique(np.concatenate([predicted, np.asarray(labels)]))) > 1
    return {
        "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0)),
        "matthews": float(matthews_corrcoef(labels, predicted)) if several else 0.0,
        "adaptive_ece": adaptive_ece(probs, labels),
        "classwise_ece": classwise_ece(probs, labels),
        "auroc_errors": auroc_errors(uncertainty, wrong),
        "aurc": aurc(uncertainty, wrong),
    }


@checked(also=check_labels)
def adaptive_ece(probs: Probabilities, labels: Finite, num_bins: Count = NUM_BINS) -> float:
    """Return the calibration error of the top class in bins of equal count instead of equal width.

    References:
        Nixon et al. (2019), [Measuring Calibration in Deep Learning](https://arxiv.org/abs/1904.01685).
    """
    probs = np.asarray(probs, dtype=np.float64)
    gaps = ((probs.argmax(-1) == np.asarray(labels)) - probs.max(-1))[np.argsort(probs.max(-1), kind="stable")]
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


@checked()
def sigmoid(logits: Numbers) -> FloatArray:
    """Return 1 / (1 + exp(−logits))."""
    from scipy.special import expit

    return expit(np.asarray(logits, dtype=np.float64))


@checked()
def softmax(logits: Numbers, temperature: Scale = 1.0) -> FloatArray:
    """Return the probabilities of logits at a temperature; the last axis sums to one."""
    from scipy.special import softmax as scipy_softmax

    return scipy_softmax(np.asarray(logits, dtype=np.float64) / temperature, axis=-1)


@checked()
def log_softmax(logits: Numbers, temperature: Scale = 1.0) -> FloatArray:
    """Return the logarithms of `softmax`, which stay finite where a probability is too small for a number."""
    from scipy.special import log_softmax as scipy_log_softmax

    return scipy_log_softmax(np.asarray(logits, dtype=np.float64) / temperature, axis=-1)


@checked()
def log_sigmoid(logits: Numbers) -> FloatArray:
    """Return the logarithms of `sigmoid`."""
    from scipy.special import log_expit

    return log_expit(np.asarray(logits, dtype=np.float64))


@checked(also=check_labels)
def chosen(values: Draws, labels: Finite) -> FloatArray:
    """Return the entry of each row that belongs to its label, `[…, example, class]` to `[…, example]`."""
    values = np.asarray(values)
    labels = np.asarray(labels).reshape(*[1] * (values.ndim - 2), -1, 1)
    return np.take_along_axis(values, labels, axis=-1)[..., 0]


@checked(also=check_labels)
def fit_temperature(logits: Logits, labels: Finite) -> float:
    r"""Find the temperature T that minimises the NLL of the mean over draws of $\mathrm{softmax}(f_s / T)$.

    Args:
        logits: $f$, `[draw, example, class]`; one draw gives plain temperature scaling.
        labels: `[example]`.

    Returns:
        T, between 0.05 and 20.

    References:
        Guo et al. (2017), [On Calibration of Modern Neural Networks](https://arxiv.org/abs/1706.04599).
    """
    return best_temperature(lambda temperature: mixture_nll(chosen(log_softmax(logits, temperature), labels)))


@checked()
def best_temperature(loss: Callable[[float], float]) -> float:
    """Find the temperature between 0.05 and 20 at which a loss is lowest."""
    from scipy.optimize import minimize_scalar

    # With many draws the loss may have several minima: search a grid first.
    grid = np.linspace(np.log(0.05), np.log(20), 25)
    best = int(np.argmin([loss(float(np.exp(value))) for value in grid]))
    bounds = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
    return float(np.exp(minimize_scalar(lambda value: loss(float(np.exp(value))), bounds=bounds, method="bounded").x))


@checked()
def mixture_nll(log_likelihood: Draws) -> float:
    r"""Return the NLL per example of an equal mixture over draws, $-\mathrm{mean}_n \ln \frac1S \sum_s p_s(y_n)$.

    Args:
        log_likelihood: $\ln p_s(y_n)$ of everything observed of an example, `[draw, example]`.
    """
    from scipy.special import logsumexp

    values = np.asarray(log_likelihood, dtype=np.float64)
    return float(np.log(len(values)) - logsumexp(values, axis=0).mean())


@checked(also=check_lengths)
def regression_scores(mean: Numbers, labels: Numbers) -> dict[str, float]:
    """Return root mean square and mean absolute error in units of the labels; Pearson and Spearman correlation.

    A correlation is NaN if all predictions or all labels are equal.
    """
    from scipy import stats

    mean, labels = np.asarray(mean, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    varied = len(mean) > 1 and np.ptp(mean) > 0 and np.ptp(labels) > 0
    return {
        "rmse": float(np.sqrt(np.mean((mean - labels) ** 2))),
        "mae": float(np.mean(np.abs(mean - labels))),
        "pearson": float(stats.pearsonr(mean, labels).statistic) if varied else math.nan,
        "spearman": float(stats.spearmanr(mean, labels).statistic) if varied else math.nan,
    }
