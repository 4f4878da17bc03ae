"""Scores of probabilities against labels, in numpy, and of numbers against numbers."""

import math

import numpy as np

from bayeslora.contracts import checked
from bayeslora.contracts.arrays import Finite, Numbers, Probabilities, check_labels, check_lengths
from bayeslora.metrics.arrays import FloatArray
from bayeslora.metrics.calibration import adaptive_ece, classwise_ece, ece, ece_floor
from bayeslora.metrics.uncertainty import aurc, auroc_errors, entropy


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
    probs = np.asarray(probs, dtype=np.float64)
    truth = np.asarray(labels)[:, None] == np.arange(probs.shape[-1])
    return float(((truth - probs) ** 2).sum(-1).mean())


@checked()
def majority_rate(labels: Finite) -> float:
    """Return the share of the most frequent label, the accuracy of always predicting it."""
    return float(np.unique(np.asarray(labels), return_counts=True)[1].max() / np.asarray(labels).size)


@checked()
def frequency_nll(labels: Finite) -> float:
    """Return the NLL per label, in nats, of predicting each class with its frequency: the frequencies' entropy."""
    counts = np.unique(np.asarray(labels), return_counts=True)[1]
    return float(entropy(counts[None] / counts.sum()).sum())


@checked(also=check_labels)
def classification_scores(probs: Probabilities, labels: Finite) -> dict[str, float]:
    """Return accuracy, NLL, ECE (15 bins) and its floor (`ece_floor`), and Brier score."""
    return {
        "accuracy": accuracy(probs, labels),
        "nll": nll(probs, labels),
        "ece": ece(probs, labels),
        "ece_floor": ece_floor(probs),
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


@checked(also=check_lengths)
def regression_scores(mean: Numbers, labels: Numbers) -> dict[str, float]:
    """Return root mean square and mean absolute error in units of the labels; Pearson and Spearman correlation.

    A correlation is NaN if all predictions are equal up to the rounding of single precision, or all labels are equal.
    """
    from scipy import stats

    mean, labels = np.asarray(mean, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    rounding = 2 * np.finfo(np.float32).eps * np.abs(mean).max()
    varied = len(mean) > 1 and np.ptp(mean) > rounding and np.ptp(labels) > 0
    return {
        "rmse": float(np.sqrt(np.mean((mean - labels) ** 2))),
        "mae": float(np.mean(np.abs(mean - labels))),
        "pearson": float(stats.pearsonr(mean, labels).statistic) if varied else math.nan,
        "spearman": float(stats.spearmanr(mean, labels).statistic) if varied else math.nan,
    }
