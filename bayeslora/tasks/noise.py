"""Noise around a real number, and mixtures of it: quantiles, information, scores."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from bayeslora.metrics import FloatArray
from bayeslora.tasks.prediction import average


@dataclass(frozen=True)
class Noise:
    """Standard noise ε: Normal, or Student's t with `df` degrees of freedom, in units of its scale.

    Args:
        df: Degrees of freedom; infinite for Normal noise.
    """

    df: float = math.inf

    @property
    def _law(self) -> Any:
        from scipy import stats

        return stats.norm() if math.isinf(self.df) else stats.t(self.df)

    @property
    def variance(self) -> float:
        """1, or df / (df − 2)."""
        return float(self._law.var())

    @property
    def entropy(self) -> float:
        """Differential entropy in nats."""
        return float(self._law.entropy())

    def log_density(self, x: FloatArray) -> FloatArray:
        """Return the log-density ln p(x), in nats."""
        if math.isinf(self.df):
            return -0.5 * x**2 - 0.5 * math.log(2 * math.pi)
        constant = math.lgamma((self.df + 1) / 2) - math.lgamma(self.df / 2) - 0.5 * math.log(self.df * math.pi)
        return constant - (self.df + 1) / 2 * np.log1p(x**2 / self.df)

    def cdf(self, x: FloatArray) -> FloatArray:
        """Return P(ε ≤ x)."""
        from scipy import special

        return special.ndtr(x) if math.isinf(self.df) else special.stdtr(self.df, x)

    def quantile(self, q: float) -> float:
        """Return the q-quantile."""
        return float(self._law.ppf(q))

    def sample(self, shape: tuple[int, ...], seed: int | None) -> FloatArray:
        """Draw independent values."""
        return self._law.rvs(shape, random_state=np.random.default_rng(seed))

    def distance(self, x: FloatArray) -> FloatArray:
        """Return E|ε − x|, in closed form."""
        density = np.exp(self.log_density(x))
        weight = 1.0 if math.isinf(self.df) else (self.df + x**2) / (self.df - 1)
        return x * (2 * self.cdf(x) - 1) + 2 * weight * density

    @cached_property
    def nodes(self) -> tuple[FloatArray, FloatArray]:
        """Points and weights with Σ w g(t) = E g(ε): the trapezoid rule, which converges fast for analytic g.

        For Student's t the points are at sinh(x), x equally spaced, to reach into its tails.
        """
        if math.isinf(self.df):
            points = np.linspace(-9, 9, 65)
            jacobian = np.ones_like(points)
        else:
            x = np.linspace(-1, 1, 257) * math.asinh(-self.quantile(1e-16))
            points, jacobian = np.sinh(x), np.cosh(x)
        weights = np.exp(self.log_density(points)) * jacobian
        return points, weights / weights.sum()


def mixture_quantile(
    loc: FloatArray, scale: FloatArray, q: float, noise: Noise, weights: FloatArray | None = None
) -> FloatArray:
    """Return the q-quantile of the mixture over draws of loc + scale ε, `[example]`, by bisection.

    Args:
        loc: `[draw, example]`.
        scale: Scale of the noise, `[draw]`.
        q: Between 0 and 1.
        noise: ε.
        weights: Weights of the draws, `[draw]`; None for equal ones.
    """
    if not 0 < q < 1:
        raise ValueError(f"q={q!r}: give a probability between 0 and 1.")
    scale = scale[:, None]
    # The mixture's quantile lies between those of its members.
    ends = loc + scale * noise.quantile(q)
    lower, upper = ends.min(0), ends.max(0)
    for _ in range(60):
        middle = (lower + upper) / 2
        below = average(noise.cdf((middle - loc) / scale), weights) < q
        lower, upper = np.where(below, middle, lower), np.where(below, upper, middle)
    return (lower + upper) / 2


def mixture_information(
    loc: FloatArray, scale: FloatArray, noise: Noise, weights: FloatArray | None = None
) -> FloatArray:
    """Return the mutual information of a value and the draw it came from, in nats, `[example]`.

    Arguments are those of `mixture_quantile`. It is the mean over draws of the KL divergence from a draw's distribution
    to the mixture, by quadrature over the noise.
    """
    from scipy.special import logsumexp

    if len(loc) == 1:
        return np.zeros(loc.shape[1])
    points, node_weights = noise.nodes
    log_density = noise.log_density(points)[:, None] - np.log(scale)  # [node, from]
    shares = np.full(len(loc), 1 / len(loc)) if weights is None else weights
    information = np.empty(loc.shape[1])
    for example, centres in enumerate(loc.T):
        values = points[:, None] * scale + centres  # [node, from]
        densities = noise.log_density((values[..., None] - centres) / scale) - np.log(scale)  # [node, from, to]
        mixture = logsumexp(densities, axis=-1, b=shares)
        information[example] = node_weights @ ((log_density - mixture) @ shares)
    return np.maximum(information, 0)


def mixture_crps(
    loc: FloatArray, labels: ArrayLike, scale: FloatArray, noise: Noise, weights: FloatArray | None = None
) -> FloatArray:
    r"""Return the continuous ranked probability score of the mixture, $E|Y - y| - \tfrac12 E|Y - Y'|$, `[example]`.

    It is in units of the labels, and in closed form for Normal noise; for Student's t the second term is a
    one-dimensional quadrature.

    Args:
        loc: `[draw, example]`.
        labels: y, `[example]`.
        scale: Scale of the noise, `[draw]`.
        noise: ε.
        weights: Weights of the draws, `[draw]`; None for equal ones.

    References:
        Gneiting and Raftery (2007), Strictly Proper Scoring Rules, Prediction, and Estimation.
    """
    away = (np.asarray(labels, dtype=np.float64) - loc) / scale[:, None]
    to_label = average(scale[:, None] * noise.distance(away), weights)
    points, node_weights = noise.nodes
    shares = np.full(len(loc), 1 / len(loc)) if weights is None else weights
    both = np.hypot(scale[:, None], scale)  # of the difference of two that are Normal
    between = np.empty(loc.shape[1])
    for example, centres in enumerate(loc.T):
        apart = centres[:, None] - centres  # [from, to]
        if math.isinf(noise.df):
            distances = both * noise.distance(apart / both)
        else:
            moved = (points[:, None, None] * scale[:, None] + apart) / scale
            distances = scale * np.tensordot(node_weights, noise.distance(moved), axes=1)
        between[example] = shares @ distances @ shares
    return to_label - between / 2
