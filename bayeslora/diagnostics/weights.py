"""Importance weights of a guide's draws against the target that it claims: k-hat, and leaving one out."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from bayeslora.adapters import split_site
from bayeslora.contracts import ArgumentError
from bayeslora.data import Weight
from bayeslora.diagnostics.densities import Densities, NoDensityError, densities, draw_with_latents
from bayeslora.display import Shown
from bayeslora.metrics import FloatArray
from bayeslora.prediction import labelled
from bayeslora.types import Data, Sites
from bayeslora.weights import ClassWeights, as_in_fit, of_another_fit

GOOD_K = 0.5
"""k-hat below which the variance of the weights is finite."""

LARGEST_K = 0.7
"""k-hat above which no practical number of draws lets weights correct anything."""

TOLERATED_WIDTH = 1.2
"""By which factor a guide may be wider or narrower than its target."""

EQUAL = 1e-6
"""Standard deviation of log-weights below which they count as equal: what is left is rounding."""

TIES = 5
"""Draws that share the largest weight, from which on weights have an upper end that draws reach, and no tail."""

MISFIT = 1.63
"""Kolmogorov's distance of a tail from its Pareto distribution, times the root of its length, at a level of 1 %."""

SHORTEST = 20
"""Draws that a tail needs."""

WORTH = 0.8
"""Efficiency from which on draws can be taken for those of the posterior where weights have no tail to go by."""

FARTHEST = 100
"""Times too narrow up to which a width is a number: beyond, it is not known apart from none at all."""

WHAT = {
    "points": "is one network or several, not draws of a distribution",
    "noise": "is noise around a point, which a field, a search, the optimiser's path or another posterior made as loud "
    "as it is",
}


def psis(log_weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    r"""Smooth the largest weights, and estimate the shape k of their tail.

    The tail is the largest $\min(S / 5, 3 \sqrt S)$ of S weights. Of few random numbers the weights are a smooth
    function that may be flat where that tail begins, so that no Pareto distribution describes it; its shape is then a
    large number that means nothing. Where the tail's k is above 0.5 and its fit is rejected, half of it is tried.

    Args:
        log_weights: `[…, draw]`.

    Returns:
        Logarithms of smoothed weights that sum to one, `[…, draw]`, and k-hat, `[…]`: 0 where weights are equal, −∞
        where draws share the largest one, as those of discrete sites do, and NaN where no tail can be fitted.

    References:
        Vehtari et al. (2024), [Pareto smoothed importance sampling](https://arxiv.org/abs/1507.02646).
    """
    rows = log_weights.reshape(-1, log_weights.shape[-1])
    spread = rows.std(-1)
    # What differs by rounding counts as equal, in single precision, too.
    ends = (rows >= rows.max(-1, keepdims=True) - (EQUAL + 1e-3 * spread)[:, None]).sum(-1) >= TIES
    smoothed, k, fits = _smoothed(rows, 1)
    shorter = 4
    while (again := ~fits & ~ends & (spread >= EQUAL)).any() and _tail(rows.shape[-1], shorter) >= SHORTEST:
        smoothed[again], k[again], fits[again] = _smoothed(rows[again], shorter)
        shorter *= 4
    k = np.where(spread < EQUAL, 0.0, np.where(ends, -math.inf, np.where(fits, k, math.nan)))
    normal = rows - np.logaddexp.reduce(rows, axis=-1, keepdims=True)
    smoothed = np.where(np.isfinite(k)[:, None] & (spread >= EQUAL)[:, None], smoothed, normal)
    return smoothed.reshape(log_weights.shape), k.reshape(log_weights.shape[:-1])


def _smoothed(rows: FloatArray, shorter: int) -> tuple[FloatArray, FloatArray, np.ndarray]:
    """Return smoothed log-weights, k-hats, and whether those above 0.5 are of tails that are Pareto distributed.

    Args:
        rows: Log-weights, `[row, draw]`.
        shorter: By the root of which the tail is divided.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # arviz announces its own next version
        import arviz as az

    if hasattr(az, "psislw"):
        found, k = az.psislw(rows.copy(), shorter)
    else:  # arviz 1.x
        from arviz_stats.base import array_stats

        found, k = array_stats.psislw(-rows, shorter)
    smoothed, k = (np.array(each, dtype=np.float64) for each in (found, k))
    length = _tail(rows.shape[-1], shorter)
    fits = np.ones(len(rows), dtype=bool)
    for row in np.flatnonzero(~(k < GOOD_K)):
        order = rows[row].argsort()
        tail, pareto = (each[row][order] - each[row][order[0]] for each in (rows, smoothed))
        tail, pareto = tail[-length:], pareto[-length:]
        below = pareto < tail[-1]  # smoothed weights are cut off at the largest
        apart = np.abs(np.searchsorted(tail, pareto) - np.arange(length) - 0.5)[below].max(initial=0.0)
        fits[row] = np.isfinite(k[row]) and apart < MISFIT * math.sqrt(length)
    return smoothed, k, fits


def _tail(num_draws: int, shorter: int) -> int:
    """Return how many weights are a tail."""
    return math.ceil(min(num_draws / 5, 3 * math.sqrt(num_draws / shorter)))


def largest_k(num_draws: int) -> float:
    """Return the k-hat up to which so many draws suffice, $\\min(1 - 1 / \\log_{10} S, 0.7)$."""
    return min(1 - 1 / math.log10(num_draws), LARGEST_K) if num_draws > 1 else -math.inf


def too_few(num_draws: int) -> str:
    """Say that so many draws are too few for a verdict."""
    return f"Not known: {num_draws} draws are too few to see how heavy a tail is. Ask for 1000."


@dataclass(frozen=True, repr=False)
class KHat(Shown):
    r"""How near a guide q is to the target that it claims, $p(z)\, p(y \mid z)^{1/T}$, by the weights of its draws.

    Args:
        khat: Shape of the upper tail of the weights. Below 0.5 they have a finite variance. NaN or −∞ where they have
            no tail (`psis`).
        by_stack: The same of each stack's sites alone, all others at the centre.
        width: How many times as wide as its target q is: the root of the slope of the target's log-density on that of
            q, over draws. It is 1 where the ELBO is largest over the scale of q, and below it if q is too narrow; NaN
            where all draws have the same density, as masks at a rate of ½ do.
        width_error: Standard error of it.
        efficiency: Effective share of the draws, $1 / (S \sum_s w_s^2)$.
        num_draws: S.
        temperature: T of the target.
    """

    khat: float
    by_stack: Mapping[str, float]
    width: float
    width_error: float
    efficiency: float
    num_draws: int
    temperature: float

    def __float__(self) -> float:
        return self.khat

    @property
    def is_known(self) -> bool:
        """Whether there are draws enough for a verdict: more than ten."""
        return largest_k(self.num_draws) > 0

    @property
    def too_wide(self) -> bool:
        """Whether the guide is wider than its target by more than 1.2."""
        return self.is_known and self.width - 3 * self.width_error > TOLERATED_WIDTH

    @property
    def too_narrow(self) -> bool:
        """Whether it is narrower by more than that."""
        return self.is_known and self.width + 3 * self.width_error < 1 / TOLERATED_WIDTH

    @property
    def good(self) -> bool:
        """Whether draws can be taken for those of the posterior."""
        near = self.khat < GOOD_K if math.isfinite(self.khat) else self.efficiency >= WORTH
        return self.is_known and near and not (self.too_wide or self.too_narrow)

    @property
    def verdict(self) -> str:
        """What to make of it, in words."""
        if not self.is_known:
            return too_few(self.num_draws)
        has_tail = math.isfinite(self.khat)
        k = f"k-hat is {self.khat:.2f}" if has_tail else f"draws are worth {self.efficiency:.0%} of as many from it"
        if self.too_wide or self.too_narrow:
            how = "wide" if self.too_wide else "narrow"
            by = self.width if self.too_wide else 1 / max(self.width, 1e-9)
            times = f"{by:.2f}" if by <= FARTHEST else f"more than {FARTHEST}"
            return f"Not the posterior it claims: the guide is {times} times too {how} ({k})."
        if not has_tail:
            why = "draws share the largest weight" if self.khat < 0 else "no Pareto distribution fits the weights' tail"
            verdict = "The posterior it claims" if self.good else "Not the posterior it claims"
            return f"{verdict}, as far as {self.num_draws} draws can tell: {k}. There is no k-hat: {why}."
        if self.khat >= largest_k(self.num_draws):
            known = {name: k for name, k in self.by_stack.items() if math.isfinite(k)}
            worst = max(known, key=lambda name: known[name], default="")
            where = f", and {known[worst]:.2f} in {worst}" if len(known) > 1 else ""
            return (
                f"Not the posterior it claims: {k}{where}, and above {largest_k(self.num_draws):.2f} the guide misses "
                "parts of it. Intervals of its draws are not those of the posterior."
            )
        if self.khat >= GOOD_K:
            return f"Near the posterior it claims: {k}. Weights correct what is left, as loo does."
        return f"The posterior it claims, as far as {self.num_draws} draws can tell: {k}."

    def _shown(self) -> tuple[str, dict[str, str], None]:
        facts = {
            "verdict": self.verdict,
            "k-hat": _number(self.khat),
            **{f"  {name}": _number(k) for name, k in self.by_stack.items() if len(self.by_stack) > 1},
            "width": f"{self.width:.3f} ± {self.width_error:.3f}" if math.isfinite(self.width) else "not known",
            "efficiency": f"{self.efficiency:.1%} of {self.num_draws} draws",
            "temperature": f"{self.temperature:.3g}",
        }
        return type(self).__name__, facts, None


@dataclass(frozen=True, repr=False)
class LeaveOneOut(Shown):
    """How well each training example is predicted by the posterior of the others.

    Args:
        pointwise: ln p(label of i given the others), `[example]`, in nats.
        pareto_k: Shape of the tail of each example's weights, `[example]`.
        p_loo: By how much the fit to the examples themselves is better, in nats: the effective number of parameters.
        num_draws: Draws of the guide.
    """

    pointwise: FloatArray
    pareto_k: FloatArray
    p_loo: float
    num_draws: int

    @property
    def elpd(self) -> float:
        """Expected log predictive density of as many new examples, in nats; the larger, the better."""
        return float(self.pointwise.sum())

    @property
    def se(self) -> float:
        """Standard error of `elpd`; NaN for one example, which says nothing of others."""
        count = len(self.pointwise)
        return float(self.pointwise.std(ddof=1) * math.sqrt(count)) if count > 1 else math.nan

    @property
    def bad(self) -> int:
        """Number of examples whose term is not to be trusted."""
        return int((~(self.pareto_k <= largest_k(self.num_draws))).sum())

    @property
    def good(self) -> bool:
        """Whether every term is to be trusted."""
        return self.bad == 0

    @property
    def verdict(self) -> str:
        """What to make of it, in words."""
        count = len(self.pointwise)
        if largest_k(self.num_draws) <= 0:
            return too_few(self.num_draws)
        if self.good:
            return f"To be trusted: no example's k is above {largest_k(self.num_draws):.2f}."
        return (
            f"Not to be trusted: k is above {largest_k(self.num_draws):.2f} for {self.bad} of {count} examples. The "
            "guide is too far from the posterior without them; use the elpd of K folds, fit(folds=K)."
        )

    def _shown(self) -> tuple[str, dict[str, str], None]:
        error = f" ± {self.se:.2f}" if math.isfinite(self.se) else ""
        facts = {
            "verdict": self.verdict,
            "elpd": f"{self.elpd:.2f}{error} nats, {self.elpd / len(self.pointwise):.3f} per example",
            "p_loo": f"{self.p_loo:.2f}",
            "largest k": f"{self.pareto_k.max():.2f}",
        }
        return type(self).__name__, facts, None


class Weighed:
    """Draws of a posterior with their log-weights against the target it claims.

    Args:
        posterior: The posterior.
        data: The training data.
        counted: `weight` and `class_weights` of the fit.
        num_draws: Number of draws.
        approximation: How the likelihood is computed; None for the method's default.
        seed: Seed of the draws.
        batch_size: Examples per batch.

    Raises:
        ValueError: If the method claims no posterior, or has no densities; if there is one draw alone; or if rows had
            weights and are given none.
    """

    def __init__(
        self,
        posterior: Any,
        data: Data,
        counted: tuple[Weight | None, ClassWeights | None],
        num_draws: int,
        approximation: str | None,
        seed: int | None,
        batch_size: int,
    ):
        self.posterior, self.program = posterior, posterior.program
        refuse(self.program.method)
        if num_draws < 2:
            raise ArgumentError(f"num_draws={num_draws}: weights are those of draws beside each other: ask for 1000.")
        self.how = (seed, batch_size, approximation)
        self.source, self.counted = as_in_fit(posterior, data, *counted)
        self.sites, latents = draw_with_latents(self.program, num_draws, seed)
        try:
            self.found = densities(self.program, self.sites, latents)
        except NoDensityError as error:
            raise ValueError(f"{self.program.method.name!r} has no such weights. {error} {INSTEAD}") from None
        if (other := of_another_fit(posterior, self.source)) is not None:
            warnings.warn(f"The data has {other}: weights are about the training data.", stacklevel=6)

    def terms(self, sites: Sites) -> tuple[FloatArray, FloatArray]:
        """Return log-likelihoods of every example at sites, `[draw, example]`, as the fit saw them and as predicted."""
        outputs, labels = labelled(self.program, self.source, sites, *self.how)
        seen = self.counted.terms(self.program.likelihood.predict(outputs), labels)
        return seen, self.posterior._prediction(outputs).log_likelihood(labels)

    def log_weights(self, found: Densities, terms: FloatArray) -> FloatArray:
        """Return ln p(z) + ln p(y | z) / T − ln q(z), `[draw]`, given likelihoods as the fit saw them."""
        return terms.sum(1) / found.temperature - _numpy(found.divergence)


INSTEAD = "Judge it by predictions of rows it has not seen: evaluate on held-out data, or the folds of fit(folds=K)."


def refuse(method: Any) -> None:
    """Raise a ValueError unless a method claims to approximate a posterior."""
    if method.claims != "posterior":
        raise ValueError(
            f"{method.name!r} {WHAT[method.claims]}: there is no posterior it could be compared with. {INSTEAD}"
        )


def khat(weighed: Weighed) -> KHat:
    """Return the k-hat of all sites and of each stack's, and how wide the guide is."""
    found, num_draws = weighed.found, len(next(iter(weighed.sites.values())))
    log_weights = weighed.log_weights(found, weighed.terms(weighed.sites)[0])
    smoothed, k = psis(log_weights)
    centre = {name: value.expand(num_draws, *value.shape) for name, value in weighed.program.centre().items()}
    random = [name for name in weighed.program.stacks if found.of_stack(name).log_guide]
    by_stack = {random[0]: float(k)} if len(random) == 1 else {}
    for stack in random if len(random) > 1 else ():
        own = {n: weighed.sites[n] if split_site(n)[0] == stack else value for n, value in centre.items()}
        by_stack[stack] = float(psis(weighed.log_weights(found.of_stack(stack), weighed.terms(own)[0]))[1])
    width, error = _width(_numpy(sum(found.log_guide.values())), log_weights)
    efficiency = float(1 / (num_draws * np.exp(2 * smoothed).sum()))
    return KHat(float(k), by_stack, width, error, efficiency, num_draws, found.temperature)


def _width(log_guide: FloatArray, log_weights: FloatArray) -> tuple[float, float]:
    """Return the root of the slope of the target's log-density on the guide's, and its standard error."""
    if log_guide.std() < EQUAL:
        return math.nan, math.nan
    x, y = log_guide - log_guide.mean(), log_weights - log_weights.mean()
    excess = float((x * y).sum() / (x * x).sum())
    error = float(np.sqrt(((x * (y - excess * x)) ** 2).sum()) / (x * x).sum())
    width = math.sqrt(max(1 + excess, 0.0))
    return width, error / (2 * max(width, 0.1))


def leave_one_out(weighed: Weighed) -> LeaveOneOut:
    """Return the predictive density of every example, given the others."""
    counted, predicted = weighed.terms(weighed.sites)
    predicted = predicted.T
    log_weights = weighed.log_weights(weighed.found, counted)
    smoothed, k = psis(log_weights - counted.T / weighed.found.temperature)
    pointwise = np.logaddexp.reduce(smoothed + predicted, axis=-1)
    fit = np.logaddexp.reduce(psis(log_weights)[0] + predicted, axis=-1)
    result = LeaveOneOut(pointwise, k, float((fit - pointwise).sum()), len(counted))
    if not result.good:
        warnings.warn(result.verdict, stacklevel=6)
    return result


def _number(k: float) -> str:
    return f"{k:.3f}" if math.isfinite(k) else "none: there is no tail"


def _numpy(value: Tensor | Any) -> FloatArray:
    return np.asarray(value, dtype=np.float64)
