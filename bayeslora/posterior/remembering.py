"""What a posterior that learned on has forgotten."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from bayeslora.contracts import name_instances
from bayeslora.display import Shown
from bayeslora.isolation import public
from bayeslora.metrics import FloatArray
from bayeslora.posterior.state import State
from bayeslora.types import Approximation, BatchSize, Data, NumDraws, Seed

name_instances(State, "a Posterior")

ERRORS = 2
"""Standard errors beyond which a change is taken for one."""


@dataclass(frozen=True, repr=False)
class Forgotten(Shown):
    """How much worse old data are predicted than before.

    Args:
        change: NLL after minus before, in nats per example, on average: positive where something was forgotten.
        error: Standard error of it, over examples, which are compared one by one.
        num_examples: Number of them.
        before: The metrics of `evaluate` at the draws before.
        after: The same after.
    """

    change: float
    error: float
    num_examples: int
    before: Mapping[str, float]
    after: Mapping[str, float]

    def __float__(self) -> float:
        return self.change

    @property
    def verdict(self) -> str:
        """What has changed, in words."""
        nll = f"NLL {self.before['nll']:.3f} before and {self.after['nll']:.3f} after"
        if "accuracy" in self.before:
            nll += f", accuracy {self.before['accuracy']:.1%} and {self.after['accuracy']:.1%}"
        if self.num_examples == 1:
            return f"Not known: one example says nothing about others ({nll})."
        by = f"{abs(self.change):.3f} ± {self.error:.3f} nats per example"
        if self.change > ERRORS * self.error:
            return f"Forgotten: old data are predicted worse, by {by} ({nll})."
        if self.change < -ERRORS * self.error:
            return f"Nothing forgotten: old data are predicted better, by {by} ({nll})."
        return f"Nothing forgotten that {self.num_examples} examples could show: {by} apart ({nll})."

    def _shown(self) -> tuple[str, dict[str, str], None]:
        scores = {n: f"{self.before[n]:.3f} → {self.after[n]:.3f}" for n in self.before if n in self.after}
        return type(self).__name__, {"verdict": self.verdict, "examples": f"{self.num_examples:,}", **scores}, None


class Remembering(State):
    """Compares itself with the posterior that was its prior."""

    @public()
    def forgotten(
        self,
        data: Data,
        before: State | None = None,
        num_draws: NumDraws = 32,
        *,
        approximation: Approximation | None = None,
        seed: Seed | None = 0,
        batch_size: BatchSize = 64,
    ) -> Forgotten:
        """Say how much worse data of an earlier fit are predicted than the posterior of that fit predicts them.

        A temperature (`calibrate`) is not carried on: if one of the two alone has one, both are compared without.

        Args:
            data: Labelled data like those of the earlier fit, best such that it has not seen.
            before: The earlier posterior; None for the `prior` of this fit, which is not saved with it.
            num_draws: Draws of the weights, of each.
            approximation: As in `predict`.
            seed: Seed of the draws.
            batch_size: Examples per batch.

        Raises:
            ValueError: If there is no earlier posterior, or the data has no labels.
        """
        earlier = self.learned_from if before is None else before
        if earlier is None:
            raise ValueError(
                "There is nothing to compare with: this posterior was loaded, or its fit had no prior. Pass the "
                "earlier posterior, forgotten(data, before=…)."
            )
        temperatures = [each.temperature for each in (earlier, self)]
        if 1.0 in temperatures:
            temperatures = [1.0, 1.0]
        nll, scores = zip(
            *(
                _scored(each, temperature, data, num_draws, approximation, seed, batch_size)
                for each, temperature in zip((earlier, self), temperatures, strict=True)
            ),
            strict=True,
        )
        change = nll[1] - nll[0]
        error = float(change.std(ddof=1) / math.sqrt(len(change))) if len(change) > 1 else math.inf
        return Forgotten(float(change.mean()), error, len(change), *scores)


def _scored(
    posterior: State,
    temperature: float,
    data: Data,
    num_draws: int,
    approximation: str | None,
    seed: int | None,
    batch_size: int,
) -> tuple[FloatArray, dict[str, float]]:
    """Return the NLL of each example, and all metrics."""
    source = posterior._source(data)
    found, labels = posterior._labelled(source, num_draws, seed, batch_size, approximation=approximation)
    prediction = posterior._prediction(found, temperature)
    return -prediction.log_density(labels), prediction.scores(labels)
