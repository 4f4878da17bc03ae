"""How uncertain a prediction is, and whether that tells errors and unfamiliar inputs."""

import math
from collections.abc import Mapping

import numpy as np

from bayeslora.contracts import checked
from bayeslora.contracts.arrays import Finite, Numbers, check_broadcast, check_lengths
from bayeslora.metrics.arrays import FloatArray


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
def auroc(scores_inside: Finite, scores_outside: Finite) -> float:
    """Return the probability that an outside example scores higher than an inside one: area under the ROC curve."""
    from sklearn.metrics import roc_auc_score

    inside, outside = np.ravel(np.asarray(scores_inside)), np.ravel(np.asarray(scores_outside))
    truth = np.repeat([0.0, 1.0], [len(inside), len(outside)])
    return float(roc_auc_score(truth, np.concatenate([inside, outside])))


@checked()
def fpr95(scores_inside: Finite, scores_outside: Finite) -> float:
    """Return the share of outside examples that pass for inside ones where 95 % of the inside ones do.

    A higher score means less familiar. The threshold is the lowest that at least 95 % of the inside scores do not
    exceed; a score equal to it passes. Between 0 and 1, lower is better; an uninformative score has 0.95.

    References:
        Liang et al. (2018), [ODIN](https://arxiv.org/abs/1706.02690), whose "positive" is an inside example.
    """
    inside, outside = np.sort(np.ravel(np.asarray(scores_inside))), np.ravel(np.asarray(scores_outside))
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
