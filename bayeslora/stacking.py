"""Weights of several predictive distributions in one mixture, by the densities that they give to held-out rows."""

import numpy as np

from bayeslora.metrics import FloatArray

SMALLEST = 1e-4
"""A weight below it is set to 0: its component need not be run."""


def stacking_weights(log_densities: FloatArray) -> FloatArray:
    r"""Return the weights w on the simplex that maximise $\sum_i \ln \sum_k w_k\, p_k(y_i)$, `[component]`.

    The objective is concave. Weights below 1e-4 become 0.

    Args:
        log_densities: $\ln p_k(y_i)$ of rows that no component was trained on, in nats, `[component, row]`.

    References:
        Yao et al. (2018), [Using Stacking to Average Bayesian Predictive Distributions](https://arxiv.org/abs/1704.02030).
    """
    from scipy.optimize import minimize

    count = len(log_densities)
    largest = log_densities.max(0)
    # A factor of each row's does not matter, nor does a row that is impossible to all.
    densities = np.exp(log_densities - np.where(np.isfinite(largest), largest, 0.0))

    def loss(weights: FloatArray) -> tuple[float, FloatArray]:
        mixed = np.maximum(weights @ densities, np.finfo(np.float64).tiny)
        return -float(np.log(mixed).mean()), -(densities / mixed).mean(1)

    found = minimize(
        loss,
        np.full(count, 1 / count),
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * count,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones_like(w)},
        options={"ftol": 1e-12, "maxiter": 1000},
    )
    weights = np.where(found.x < SMALLEST, 0.0, found.x)
    return weights / weights.sum()


def mixed(log_densities: FloatArray, weights: FloatArray) -> FloatArray:
    """Return the log-density of each row under the mixture, in nats, `[row]`."""
    from scipy.special import logsumexp

    return logsumexp(log_densities, axis=0, b=np.asarray(weights)[:, None])


def resampled(weights: FloatArray, count: int) -> np.ndarray:
    """Return indices in proportion to weights: systematic resampling, which for equal weights takes each as often."""
    return np.searchsorted(np.cumsum(weights), (np.arange(count) + 0.5) / count).clip(0, len(weights) - 1)
