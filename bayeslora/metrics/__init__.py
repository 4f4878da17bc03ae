"""Metrics of probabilities against labels, in numpy.

Everywhere, `probs` is `[example, class]` and sums to one, `draws` is `[draw, example, class]`, `labels` is `[example]`.
Log-losses and entropies are in nats.
"""

from bayeslora.metrics.arrays import FloatArray
from bayeslora.metrics.calibration import NUM_BINS, adaptive_ece, classwise_ece, ece, ece_floor, reliability
from bayeslora.metrics.logits import (
    HIGHEST,
    LOWEST,
    best_temperature,
    chosen,
    fit_temperature,
    log_sigmoid,
    log_softmax,
    mixture_nll,
    sigmoid,
    softmax,
)
from bayeslora.metrics.scores import (
    accuracy,
    brier,
    class_scores,
    classification_scores,
    frequency_nll,
    majority_rate,
    nll,
    nll_per_example,
    regression_scores,
)
from bayeslora.metrics.uncertainty import (
    aurc,
    auroc,
    auroc_errors,
    entropy,
    fpr95,
    relative_entropy,
    risk_coverage,
    unfamiliarity,
)

__all__ = [
    "HIGHEST",
    "LOWEST",
    "NUM_BINS",
    "FloatArray",
    "accuracy",
    "adaptive_ece",
    "aurc",
    "auroc",
    "auroc_errors",
    "best_temperature",
    "brier",
    "chosen",
    "class_scores",
    "classification_scores",
    "classwise_ece",
    "ece",
    "ece_floor",
    "entropy",
    "fit_temperature",
    "fpr95",
    "frequency_nll",
    "log_sigmoid",
    "log_softmax",
    "majority_rate",
    "mixture_nll",
    "nll",
    "nll_per_example",
    "regression_scores",
    "relative_entropy",
    "reliability",
    "risk_coverage",
    "sigmoid",
    "softmax",
    "unfamiliarity",
]
