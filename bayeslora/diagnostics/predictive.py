"""Predictive checks: whether labels look like those that the posterior predicts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bayeslora.diagnostics.densities import draw_with_latents
from bayeslora.display import Shown
from bayeslora.isolation import public
from bayeslora.metrics import FloatArray
from bayeslora.prediction import labelled
from bayeslora.types import Approximation, BatchSize, Data, NumDraws, PosteriorLike, Seed

if TYPE_CHECKING:
    import pandas as pd

REPLICATIONS = 200
"""Sets of labels that are drawn, at least; there are 50 for each statistic."""

FAILURE_RATE = 0.05
"""How often data from the posterior itself are called unusual, at most, over all statistics together."""


@dataclass(frozen=True)
class Statistic:
    """A number that sums up the labels, and where the posterior expects it.

    Args:
        name: What it is.
        observed: Its value in the data.
        low: The 2.5 % quantile of its replications.
        high: The 97.5 % quantile.
        p: Twice the smaller of the shares of replications at least as large and at least as small, 1 at most.
    """

    name: str
    observed: float
    low: float
    high: float
    p: float


@dataclass(frozen=True, repr=False)
class PredictiveCheck(Shown):
    """Labels of the data beside labels that the posterior predicts for the same inputs.

    Args:
        statistics: What was compared.
    """

    statistics: Sequence[Statistic]

    @property
    def unusual(self) -> list[Statistic]:
        """Statistics whose p is below 0.05 over their number, the least likely first."""
        found = [each for each in self.statistics if each.p < FAILURE_RATE / len(self.statistics)]
        return sorted(found, key=lambda each: each.p)

    @property
    def good(self) -> bool:
        """Whether no statistic is unusual."""
        return not self.unusual

    @property
    def verdict(self) -> str:
        """What to make of it, in words."""
        if self.good:
            return f"The labels look like those that the posterior predicts, by {len(self.statistics)} statistics."
        worst = self.unusual[0]
        where = "above" if worst.observed > worst.high else "below"
        further = f" So are {len(self.unusual) - 1} more." if len(self.unusual) > 1 else ""
        return (
            f"The labels do not look like those that the posterior predicts: their {worst.name}, {worst.observed:.3g}, "
            f"is {where} the {worst.low:.3g} to {worst.high:.3g} of 95 % of its predictions (p = {worst.p:.2g})."
            f"{further}"
        )

    def to_pandas(self) -> "pd.DataFrame":
        """Return a table with a row per statistic."""
        import pandas as pd

        return pd.DataFrame([vars(each) for each in self.statistics]).set_index("name")

    def _shown(self) -> tuple[str, dict[str, str], "pd.DataFrame"]:
        return type(self).__name__, {"verdict": self.verdict}, self.to_pandas().reset_index()


@public()
def predictive_check(
    posterior: PosteriorLike,
    data: Data,
    num_draws: NumDraws = 100,
    *,
    approximation: Approximation | None = None,
    seed: Seed = 0,
    batch_size: BatchSize = 64,
) -> PredictiveCheck:
    r"""Compare the labels of data with labels that the posterior predicts for the same inputs.

    Sets of labels, 200 or more, are drawn from the prediction, each at one draw of the weights. What is compared
    follows from the kind of label: the frequencies of classes (of the ten most frequent, where there are more) or of
    several labels, with how many an example has; mean, sd, and the 5, 50 and 95 % quantiles of numbers; means and sds
    of first token and length of spans.

    The posterior has seen the training data, whose p-values are therefore too near 1. What they call unusual
    nevertheless, the likelihood or the network cannot describe. Held-out labels also tell of data that have changed.

    Args:
        posterior: Any posterior; points and noise, too.
        data: Labelled data, on which the network runs once a draw.
        num_draws: Draws of the weights.
        approximation: As in `predict`.
        seed: Seed of the draws.
        batch_size: Examples per batch.

    References:
        Gelman, Meng and Stern (1996), Posterior predictive assessment of model fitness via realized discrepancies.
    """
    program = posterior.program
    sites, _ = draw_with_latents(program, num_draws, seed)
    found, labels = labelled(program, posterior._source(data), sites, seed, batch_size, approximation)
    prediction = posterior._prediction(found)
    observed = getattr(prediction, "tokens", labels)
    own = prediction._statistics(observed[None], observed)
    rounds = range(-(-max(REPLICATIONS, 50 * len(own)) // len(prediction.draws)))
    replicated = [prediction._statistics(prediction.sample(seed + index), observed) for index in rounds]
    return PredictiveCheck(
        [_compared(name, float(value[0]), np.concatenate([r[name] for r in replicated])) for name, value in own.items()]
    )


def _compared(name: str, observed: float, replicated: FloatArray) -> Statistic:
    # Sums in another order differ by rounding, which must not decide whether values are the same.
    slack = 1e-9 * max(abs(observed), float(np.abs(replicated).max()), 1e-9)
    shares = ((replicated >= observed - slack).sum(), (replicated <= observed + slack).sum())
    p = min(1.0, 2 * (min(shares) + 1) / (len(replicated) + 1))
    low, high = np.quantile(replicated, [0.025, 0.975])
    return Statistic(name, observed, float(low), float(high), float(p))
