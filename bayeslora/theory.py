r"""The bounds of the LoRA Dropout paper.

Both contain $\kappa = \Lambda_{min} + 2 \lambda (2p - p^2)$: an entry of $\Delta W$ is dropped with probability
$2p - p^2$, so that the regulariser $\lambda E_d \lVert d \odot \Delta W \rVert^2$ on dropped entries adds
$2 \lambda (2p - p^2)$ to every eigenvalue of the loss's Hessian.

References:
    Lin et al. (2024), [LoRA Dropout](https://arxiv.org/abs/2404.09610), §4.
"""

import math
from typing import Annotated

from bayeslora.contracts import Count, Finite, NonNegative, Within, checked

Probability = Annotated[float, Within(at_least=0, at_most=1, noun="probability")]
Size = NonNegative
Risk = Annotated[float, Within(above=0, at_most=1, noun="probability")]


@checked()
def drop_rate(p: Probability) -> float:
    """Return the probability $2p - p^2$ that an entry of ΔW is zero: its column of `A` or row of `B` is dropped.

    Args:
        p: Dropout rate of the columns of `A` and of the rows of `B`, on [0, 1].

    Raises:
        ArgumentError: If p is not a probability.
    """
    return 2 * p - p**2


@checked()
def hypothesis_stability(
    p: Probability, regularization: Size, lipschitz: Size, num_examples: Count, curvature: Size
) -> float:
    r"""Bound the pointwise hypothesis stability, $\beta \le 2 \eta^2 / (\kappa n)$, of LoRA with dropout (Prop. 4.2).

    It is how much the loss of a training example may change, on average, if the example is left out of the data.
    It assumes that the loss is η-Lipschitz in ΔW, that training reaches a minimum of the regularised loss, that without
    an example this minimum stays close, and that the Hessian there is positive semi-definite.

    Args:
        p: Dropout rate, on [0, 1].
        regularization: λ ≥ 0, weight of the sparsity regulariser.
        lipschitz: η ≥ 0, Lipschitz constant of the loss.
        num_examples: n, training examples.
        curvature: $\Lambda_{min} \ge 0$, smallest eigenvalue of the loss's Hessian at the minimum.

    Returns:
        The bound, in the unit of the loss; infinite if there is neither curvature nor a regulariser at the minimum.

    Raises:
        ArgumentError: If an argument is out of its range.
    """
    return _ratio(2 * lipschitz**2, curvature + 2 * regularization * drop_rate(p)) / num_examples


@checked()
def generalization_bound(
    empirical_risk: Finite,
    p: Probability,
    regularization: Size,
    lipschitz: Size,
    loss_bound: Size,
    num_examples: Count,
    curvature: Size,
    delta: Risk = 0.05,
) -> float:
    r"""Bound the risk with probability 1 − δ over the training data (Theorem 4.4),

    $$R \le \hat R + \sqrt{\frac{C^2 + 24\, C \eta^2 / \kappa}{2 n \delta}}.$$

    It decreases in p on [0, 1] for λ > 0. It assumes what `hypothesis_stability` does, and a loss on [0, C].

    Args:
        empirical_risk: $\hat R$, mean loss of the training examples.
        p: Dropout rate, on [0, 1].
        regularization: λ ≥ 0, weight of the sparsity regulariser.
        lipschitz: η ≥ 0, Lipschitz constant of the loss.
        loss_bound: C ≥ 0, the largest loss of an example.
        num_examples: n, training examples.
        curvature: $\Lambda_{min} \ge 0$, smallest eigenvalue of the loss's Hessian at the minimum.
        delta: δ, probability with which the bound may fail, above 0 and at most 1.

    Returns:
        The bound, in the unit of the loss; infinite if there is neither curvature nor a regulariser at the minimum.

    Raises:
        ArgumentError: If an argument is out of its range.
    """
    # 24 C η² / κ is 12 C n β.
    stability = hypothesis_stability(p, regularization, lipschitz, num_examples, curvature)
    spread = loss_bound**2 + (12 * loss_bound * num_examples * stability if loss_bound else 0)
    return empirical_risk + math.sqrt(spread / (2 * num_examples * delta))


def _ratio(numerator: float, denominator: float) -> float:
    if denominator == 0:
        return math.inf if numerator else 0.0
    return numerator / denominator
