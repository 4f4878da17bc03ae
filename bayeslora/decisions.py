"""Decisions from predictions, with what can be promised about them: abstention, conformal sets, costs, distances.

Thresholds come from held-out rows, which `Posterior.decide` reads. A promise holds for new rows that could as well have
been among the held-out ones (they are exchangeable), predicted by the same draws.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bayeslora.contracts import ArgumentError, Probability, checked
from bayeslora.contracts.arrays import Finite, Numbers, check_lengths

ALIKE = 5e-6
"""Relative difference up to which scores are equal: those of equal rows vary with the rows beside them in a batch."""

NUM_STARTS = 3
"""Thresholds at which the search for the largest one starts; each has a third of the error probability."""


@checked(also=check_lengths)
def selective_threshold(uncertainty: Finite, wrong: Finite, risk: Probability, confidence: Probability = 0.9) -> float:
    r"""Return the largest threshold t below which predictions may be answered: their error rate is at most `risk`.

    With probability `confidence` over the held-out rows, $P(\text{wrong} \mid u < t) \le$ `risk` for new rows. This is
    exact for a finite number of rows, provided that the error rate of the answered rows, as a function of t, rises
    through `risk` once; it does if errors become more frequent with uncertainty.

    Thresholds are tried in the order of the held-out uncertainties. Among the m rows below one, the number of errors is
    binomial; where the risk is above `risk`, $P(\mathrm{Bin}(m, \text{risk}) \le \text{errors})$ is a p-value. The
    search goes on as long as that is at most the error probability 1 − `confidence`, and ends at the first threshold
    where it is not (Learn then Test with a fixed sequence). There are three starts with a third of the error
    probability each, which a search that arrives at the next start takes along (the fallback procedure): at the fewest
    rows that could pass without an error, at all rows, and at their geometric mean.

    Args:
        uncertainty: A score of the held-out rows, `[row]`; higher is less certain.
        wrong: Whether their predictions are wrong, `[row]`.
        risk: The error rate that the answered rows may have.
        confidence: Probability that they keep it.

    Returns:
        t, to be compared by `u < t`; infinite if all rows may be answered, −∞ if none may.

    References:
        Angelopoulos et al. (2021), [Learn then Test](https://arxiv.org/abs/2110.01052); Geifman and El-Yaniv (2017),
        [Selective Classification](https://arxiv.org/abs/1705.08500); Wiens (2003), A fixed sequence Bonferroni
        procedure for testing multiple endpoints.
    """
    from scipy.stats import binom

    order = np.argsort(uncertainty, kind="stable")
    values = np.append(np.asarray(uncertainty, dtype=np.float64)[order], np.inf)
    below = np.searchsorted(values, values, side="left")  # rows strictly below each threshold
    errors = np.append(0, np.cumsum(np.asarray(wrong, dtype=np.int64)[order]))[below]
    p_values = binom.cdf(errors, below, risk)
    starts = _starts(len(order), risk, 1 - confidence)
    threshold, level, waiting = -math.inf, 0.0, 0
    for index, p_value in enumerate(p_values):
        waiting += index in starts
        if waiting and below[index] == index:  # equal uncertainties are answered together: a start waits for their end
            level, waiting = level + waiting * (1 - confidence) / len(starts), 0
        if level and p_value <= level:
            threshold = float(values[index])
        else:
            level = 0.0
    return threshold


@checked()
def fewest_rows(risk: Probability, confidence: Probability) -> int:
    """Return how many rows without an error it takes to promise that the risk is at most `risk`."""
    return math.ceil(math.log(1 - confidence) / math.log1p(-risk))


def _starts(num_rows: int, risk: float, error: float) -> set[int]:
    """Return numbers of rows at which the search for a threshold starts."""
    fewest = fewest_rows(risk, 1 - error / NUM_STARTS)
    if num_rows < fewest:
        return {num_rows}
    return {*np.rint(np.geomspace(fewest, num_rows, NUM_STARTS)).astype(int).tolist()}


@checked()
def conformal_quantile(scores: Finite, coverage: Probability) -> float:
    r"""Return the $\lceil (n + 1) c \rceil$-th smallest of n held-out scores; infinite if n is smaller than that.

    The score of a new row is at most that with probability c at least, on average over held-out rows, and at most
    $c + 1/(n + 1)$ if no scores are equal.

    Args:
        scores: How badly the held-out labels fit their predictions, `[row]`.
        coverage: c.

    References:
        Vovk et al. (2005), Algorithmic Learning in a Random World; Angelopoulos and Bates (2021), [A Gentle
        Introduction](https://arxiv.org/abs/2107.07511).
    """
    scores = np.sort(np.asarray(scores, dtype=np.float64))
    place = math.ceil((len(scores) + 1) * coverage * (1 - 1e-12))  # (9 + 1) · 0.9 is 9, whatever it is in floats
    return float(scores[place - 1]) if place <= len(scores) else math.inf


@checked()
def conformal_scores(probs: Numbers) -> dict[str, np.ndarray]:
    r"""Return how badly each class fits a prediction, `[row, class]`, by the name of the conformal score.

    * `lac` is $1 - p_y$: its sets are the smallest on average.
    * `aps` is $\sum_{c: p_c \ge p_y} p_c$, the probability of y and of all classes more probable: its sets are
      larger where the prediction is uncertain, and their coverage is more even.

    Args:
        probs: `[row, class]`.

    References:
        Sadinle et al. (2019), [Least Ambiguous Set-Valued Classifiers](https://arxiv.org/abs/1609.00451); Romano et al.
        (2020), [Classification with Valid and Adaptive Coverage](https://arxiv.org/abs/2006.02544), without their
        randomisation.
    """
    probs = np.asarray(probs, dtype=np.float64)
    order = np.argsort(-probs, axis=-1, kind="stable")
    ordered = np.take_along_axis(probs, order, axis=-1)
    # Equally probable classes have the sum up to the last of them; sums do not fall from one class to the next.
    is_last = np.diff(ordered, axis=-1, append=-1) < 0
    total = np.where(is_last, np.cumsum(ordered, axis=-1), np.inf)
    total = np.minimum.accumulate(total[..., ::-1], axis=-1)[..., ::-1]
    aps = np.empty_like(probs)
    np.put_along_axis(aps, order, total, axis=-1)
    return {"lac": 1 - probs, "aps": aps}


def _check_costs(arguments: Mapping[str, Any]) -> None:
    probs, costs = np.shape(arguments["probs"]), np.shape(arguments["costs"])
    if len(probs) != 2 or len(costs) != 2 or costs[0] != probs[1]:
        raise ArgumentError(
            f"costs has shape {costs}, and probs {probs}: give a row for each class that may be true, and "
            "a column for each action."
        )


@checked(also=_check_costs)
def expected_costs(probs: Numbers, costs: Finite) -> np.ndarray:
    r"""Return the expected cost of each action, $\sum_c p_c k_{ca}$, `[row, action]`.

    Args:
        probs: `[row, class]`.
        costs: $k_{ca}$, the cost of action a if class c is true, `[class, action]`. Actions may be the classes: 1 minus
            the identity makes the cost an error's.
    """
    return np.asarray(probs, dtype=np.float64) @ np.asarray(costs, dtype=np.float64)


@dataclass(frozen=True)
class Familiar:
    r"""Features of familiar inputs: a mean per class and one covariance, for Mahalanobis distances.

    Args:
        means: `[class, feature]`.
        precision: Inverse of the covariance, `[feature, feature]`.

    References:
        Lee et al. (2018), [A Simple Unified Framework](https://arxiv.org/abs/1807.03888); Ledoit and Wolf (2004), whose
        shrinkage keeps the covariance invertible where rows are few.
    """

    means: np.ndarray
    precision: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray, labels: np.ndarray | None = None) -> "Familiar":
        """Estimate it from features, `[row, feature]`, and their classes, `[row]`; None for one class.

        Where no two rows of a class differ, the covariance is the identity.
        """
        from sklearn.covariance import LedoitWolf

        features = np.asarray(features, dtype=np.float64)
        _, which = np.unique(np.zeros(len(features)) if labels is None else labels, return_inverse=True)
        means = np.stack([features[which == index].mean(0) for index in range(which.max() + 1)])
        within = features - means[which]
        if not within.any():  # as of one row of each class: nothing says how features vary
            return cls(means, np.eye(features.shape[1]))
        unit = within.std(0)
        unit = np.where(unit > 0, unit, 1.0)  # shrinkage towards a multiple of the identity needs one unit for all
        return cls(means, LedoitWolf(assume_centered=True).fit(within / unit).get_precision() / np.outer(unit, unit))

    def distance(self, features: np.ndarray) -> np.ndarray:
        r"""Return $\min_c \sqrt{(h - \mu_c)^T \Sigma^{-1} (h - \mu_c)}$ of features h, `[row]`."""
        apart = np.asarray(features, dtype=np.float64)[:, None] - self.means
        return np.sqrt(np.maximum(np.einsum("ncf,fg,ncg->nc", apart, self.precision, apart, optimize=True), 0).min(-1))


@dataclass(frozen=True)
class HeldOut:
    """What was predicted for held-out rows, and how that fitted their labels: what thresholds are made from.

    Args:
        columns: Name to numbers, `[row]`: `wrong`, whether the prediction is; `uncertainty/…`, a score that orders the
            rows; `conformity/…`, how badly the label fits the prediction.
        made: How the predictions were made: arguments of `Posterior.predict` that count.
    """

    columns: Mapping[str, np.ndarray]
    made: Mapping[str, Any]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(next(iter(self.columns.values())))

    def column(self, kind: str, name: str) -> np.ndarray:
        """Return a column by its name, such as `uncertainty` and `entropy`.

        Raises:
            ArgumentError: If there is none; it lists those of the kind.
        """
        known = [each.partition("/")[2] for each in self.columns if each.partition("/")[0] == kind]
        if name not in known:
            argument = {"uncertainty": "by", "conformity": "method"}[kind]
            raise ArgumentError(f"{argument}={name!r}: give {' or '.join(map(repr, known)) or 'another prediction'}.")
        return self.columns[f"{kind}/{name}"]

    def threshold(self, risk: float, confidence: float, by: str) -> float:
        """Return the uncertainty below which rows may be answered; see `selective_threshold`."""
        uncertainty = _without_rounding(self.column("uncertainty", by))
        return selective_threshold(uncertainty, self.columns["wrong"], risk, confidence) * (1 - ALIKE)

    def quantile(self, coverage: float, method: str) -> float:
        """Return the largest score of a label in a set; see `conformal_quantile`."""
        return conformal_quantile(self.column("conformity", method), coverage) * (1 + ALIKE)


def _without_rounding(scores: np.ndarray) -> np.ndarray:
    """Return scores, `[row]`, of which those that differ by rounding have the least value among them."""
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    begins = np.append(True, ordered[1:] * (1 - ALIKE) > ordered[:-1])[: len(ordered)]
    equal = np.empty_like(ordered)
    equal[order] = ordered[begins][begins.cumsum() - 1]
    return equal


def held_out_like(held_out: HeldOut | None, made: Mapping[str, Any]) -> HeldOut:
    """Return the held-out rows to decide by.

    Raises:
        ValueError: If there are none, or they were not predicted as the new rows were.
    """
    if held_out is None:
        raise ValueError(
            "There are no held-out rows to decide by: call posterior.decide(validation) with labelled data that the "
            "fit has not seen, and predict then."
        )
    if {**made} != {**held_out.made}:
        then, now = (", ".join(f"{name}={value!r}" for name, value in each.items()) for each in (held_out.made, made))
        raise ValueError(
            f"The held-out rows were predicted with {then}, these rows with {now}, for which nothing is promised: give "
            "decide and predict the same arguments."
        )
    return held_out
