"""Probabilities of logits, of their mixtures over draws, and the temperature that fits them."""

from collections.abc import Callable

import numpy as np

from bayeslora.contracts import Scale, checked
from bayeslora.contracts.arrays import Draws, Finite, Logits, Numbers, check_labels
from bayeslora.metrics.arrays import FloatArray

LOWEST, HIGHEST = 0.05, 20.0
"""Temperatures between which the best one is looked for."""


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
    grid = np.linspace(np.log(LOWEST), np.log(HIGHEST), 25)
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
