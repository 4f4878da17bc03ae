r"""One of several classes per example."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayeslora import decisions, metrics
from bayeslora.contracts import ArgumentError, ClassCount, Probability, checked
from bayeslora.contracts import Finite as Cost
from bayeslora.contracts.arrays import Finite, fitting_labels
from bayeslora.display import SHOWN_CLASSES
from bayeslora.metrics import FloatArray
from bayeslora.networks import is_a
from bayeslora.tasks.base import Likelihood, check_classes, class_settings, precise
from bayeslora.tasks.classes import Classes, numbers_of_one, of_one
from bayeslora.tasks.collecting import Outputs
from bayeslora.tasks.ends import NOT_OF_CLASSES
from bayeslora.tasks.labels import RawLabels
from bayeslora.tasks.prediction import BasePrediction, Names, names_of, sample_classes, uncertainty
from bayeslora.tasks.settling import Component, settled
from bayeslora.types import LabelColumn, LabelValues, Logits, Tokenizer

if TYPE_CHECKING:
    import pandas as pd


TINY = np.finfo(np.float64).tiny


class ClassProbabilities(BasePrediction):
    """Class probabilities of rows that each have one class.

    Attributes:
        draws: Probabilities per draw, `[draw, row, class]`.
        class_names: Names of the classes, or None.
        log_draws: The logarithms of `draws`, also where those are too small for a number; None if only they are known.
    """

    per_draw: ClassVar[tuple[str, ...]] = ("draws", "log_draws")
    class_names: tuple[str, ...] | None
    log_draws: FloatArray | None

    @cached_property
    def probs(self) -> FloatArray:
        """Probabilities averaged over draws, `[row, class]`."""
        return self.average(self.draws)

    @property
    def predicted(self) -> np.ndarray:
        """Most probable class, `[row]`, as a number."""
        return self.probs.argmax(-1)

    @cached_property
    def entropy(self) -> FloatArray:
        """Entropy of the averaged probabilities in nats, `[row]`: all uncertainty about the label."""
        return metrics.entropy(self.probs)

    @cached_property
    def aleatoric(self) -> FloatArray:
        """Entropy per draw, averaged, in nats, `[row]`: what would remain if the weights were known."""
        return self.average(metrics.entropy(self.draws))

    @cached_property
    def epistemic(self) -> FloatArray:
        """Mutual information of label and weights in nats, `[row]`: entropy − aleatoric, 0 for one draw."""
        # The mean KL from the draws to their average. In a difference of two entropies, digits would cancel.
        return self.average(metrics.relative_entropy(self.draws, self.probs))

    @property
    def epistemic_corrected(self) -> FloatArray:
        # A mutual information is at most that of a uniform mixture, ln C − aleatoric, whatever a correction says.
        most = np.log(self.probs.shape[-1]) - self.aleatoric
        return np.clip(super().epistemic_corrected, 0, np.maximum(most, 0))

    @property
    def uncertainties(self) -> dict[str, FloatArray]:
        """Scores that order the rows, `[row]` each: `entropy`, `epistemic`, and 1 − `maximum_probability`."""
        return super().uncertainties | {"maximum_probability": 1 - self.probs.max(-1)}

    def _settled(self, tolerance: float, pairs: bool, components: Sequence[Component]) -> np.ndarray:
        """Return whether all probabilities, and which class is the most probable, are settled, `[row]`."""
        best = np.take_along_axis(self.draws, self.predicted[None, :, None], -1)
        margins = np.where(np.arange(self.draws.shape[-1]) == self.predicted[:, None], 1.0, best - self.draws)
        return settled(self.draws, margins, tolerance, pairs, components, self.weights)

    @checked()
    def cheapest(self, costs: Finite, abstain: Cost | None = None) -> np.ndarray:
        """Return the action with the least expected cost, `[row]`; −1 where abstaining costs less than any.

        Args:
            costs: The cost of each action for each class that may be true, `[class, action]`, in any unit. The rows of
                a `DataFrame` may have the classes' names, in any order; if its columns have them, too, actions are
                numbered as the classes are.
            abstain: The cost of not acting, in the same unit; None if that is not possible.

        Raises:
            ArgumentError: If the shape does not fit, or rows have names that are not those of the classes.
        """
        expected = decisions.expected_costs(self.probs, _by_name(costs, self.class_names))
        best = expected.argmin(-1)
        return best if abstain is None else np.where(expected.min(-1) <= abstain, best, -1)

    def _facts(self) -> dict[str, str]:
        names = ", ".join([*(self.class_names or ())[:SHOWN_CLASSES]])
        number = self.probs.shape[-1]
        return {"classes": f"{number}" + (f": {names}" if names else "") + (", …" if number > SHOWN_CLASSES else "")}

    def _fitting(self, labels: np.ndarray) -> np.ndarray:
        return fitting_labels(labels, self.draws.shape[1:2], "the class", self.draws.shape[-1] - 1)

    def row_log_likelihood(self, labels: np.ndarray) -> FloatArray:
        if self.log_draws is None:
            return np.stack([-metrics.nll_per_example(probs, labels) for probs in self.draws])
        return metrics.chosen(self.log_draws, labels)

    def sample(self, seed: int | None = 0) -> np.ndarray:
        return sample_classes(self.draws, seed)

    def to_pandas(self) -> "pd.DataFrame":
        """Return a table with a row per row: predicted class, a probability per class, and the three uncertainties."""
        import pandas as pd

        names = names_of(self.class_names, self.probs.shape[-1])
        columns: dict[str, Any] = {"predicted": [names[index] for index in self.predicted]}
        columns |= {f"p({name})": self.probs[:, index] for index, name in enumerate(names)}
        return pd.DataFrame(columns | uncertainty(self))


@dataclass(frozen=True, repr=False)
class Prediction(ClassProbabilities):
    """Class probabilities, `S` draws of them, for `N` examples and `C` classes.

    Args:
        draws: Probabilities per draw, `[draw, example, class]`.
        class_names: Names of the classes, or None.
        log_draws: Their logarithms, or None.
    """

    draws: Float[np.ndarray, "draw example class"]
    class_names: tuple[str, ...] | None = None
    log_draws: Float[np.ndarray, "draw example class"] | None = None

    def log_likelihood(self, labels: np.ndarray) -> FloatArray:
        return self.row_log_likelihood(labels)

    def wrong(self, labels: np.ndarray) -> np.ndarray:
        return self.predicted != labels

    def conformity(self, labels: np.ndarray) -> dict[str, FloatArray]:
        return {name: metrics.chosen(each, labels) for name, each in decisions.conformal_scores(self.probs).items()}

    @checked()
    def sets(self, coverage: Probability = 0.9, *, method: Literal["lac", "aps"] = "lac") -> np.ndarray:
        """Return the classes that may be right, `[example, class]`, True for those in the set of an example.

        The true class is among them with probability `coverage` at least, on average over the rows of
        `Posterior.decide` and new ones: whatever the network, for any number of rows.

        Args:
            coverage: Probability that a set holds the true class.
            method: `"lac"` for the smallest sets on average; an uncertain row may get an empty one. `"aps"` for sets
                that grow with uncertainty. See `decisions.conformal_scores`.

        Raises:
            ValueError: If there are no held-out rows, or they were predicted otherwise.
        """
        return decisions.conformal_scores(self.probs)[method] <= self._largest_score(coverage, method)

    def scores(self, labels: np.ndarray) -> dict[str, float]:
        """Return accuracy, NLL, ECE and its floor, Brier score, and `metrics.class_scores`."""
        scores = metrics.classification_scores(self.probs, labels) | metrics.class_scores(self.probs, labels)
        return scores | {"nll": self.mixture_nll(self.log_likelihood(labels))}


class OfClasses(Likelihood):
    """A likelihood that needs to know nothing but how many classes there are.

    Args:
        num_classes: Number of classes.
    """

    num_classes: int

    @checked()
    def __init__(self, num_classes: ClassCount):
        super().__init__()
        self.num_classes = num_classes

    @classmethod
    def fitting(cls, logits: Tensor, labels: LabelValues, tokenizer: Tokenizer | None = None) -> Likelihood:
        return cls(logits.shape[-1])

    @property
    def num_labels(self) -> int | None:
        return self.num_classes

    def config(self) -> dict[str, Any]:
        return {"num_classes": self.num_classes}


class Categorical(OfClasses):
    r"""One of several classes per example: $p(y) = \mathrm{softmax}(f)_y$."""

    not_logits = NOT_OF_CLASSES

    def distribution(self, logits: Logits) -> dist.Distribution:
        return dist.Categorical(logits=precise(logits))

    def check_labels(self, labels: LabelValues) -> None:
        check_classes(labels, self.num_classes, "classification")

    def doubt(self, logits: Tensor, end: str | None = None) -> str | None:
        sums = logits.double().sum(-1)
        near = (sums - 1).abs() <= 4 * torch.finfo(logits.dtype).eps * logits.shape[-1]
        is_softmax = logits.shape[-1] > 1 and bool((logits >= 0).all()) and bool(near.all())
        if is_softmax:
            return "probabilities, which sum to 1 in every row, as a softmax makes them"
        return super().doubt(logits, end)

    def baseline(self, labels: LabelValues) -> float | None:
        return metrics.frequency_nll(np.asarray(labels))

    def predict(self, outputs: Outputs, temperature: float = 1.0, class_names: Names = None) -> BasePrediction:
        logits = outputs.logits
        return Prediction(metrics.softmax(logits, temperature), class_names, metrics.log_softmax(logits, temperature))


class Classification(Categorical):
    r"""One class per example: $p(y) = \mathrm{softmax}(f)_y$.

    Labels: a whole number.
    Logits: `[batch, class]`.

    Args:
        num_classes: Number of classes.
    """

    name = "classification"
    weighs_classes = True
    up_to_constant = True

    @checked()
    def __init__(self, num_classes: ClassCount):
        super().__init__(num_classes)
        if num_classes < 2:
            raise ValueError(
                f"num_classes={num_classes}: classification needs at least two classes, and the network has "
                f"{num_classes} output(s): load it with `num_labels` set to the number of classes; or, for one "
                "logit of yes or no, give labels 0 and 1 as a column, [example, 1]; or, for real numbers, set "
                "likelihood='regression'."
            )

    @classmethod
    def classes(cls, labels: RawLabels, names: Sequence[str] | None, count: int | None) -> Classes | None:
        return of_one(labels.one_place(), names, count)

    @classmethod
    def encode(cls, labels: RawLabels, classes: Classes | None) -> Any:
        return numbers_of_one(labels, classes)

    @classmethod
    def fits(cls, model: nn.Module, logits: Tensor, labels: Tensor) -> bool:
        real = labels.is_floating_point() and logits.shape[-1] == 1
        return logits.dim() == 2 and labels.dim() == 1 and not real and not is_a(model, "MULTIPLE_CHOICE")

    @classmethod
    def model_settings(cls, model: str, names: Sequence[str] | None, labels: LabelColumn | None) -> dict[str, Any]:
        return class_settings(model, names, labels)

    def latent(self, prediction: ClassProbabilities) -> tuple[FloatArray, FloatArray]:
        log_draws = np.log(np.maximum(prediction.draws, TINY)) if prediction.log_draws is None else prediction.log_draws
        return log_draws, np.log(np.maximum(prediction.probs, TINY))


def _by_name(costs: Any, names: Names) -> Any:
    """Return costs in the order of the classes, if they are a table of pandas whose rows have names."""
    if names is None or not hasattr(costs, "loc") or getattr(costs, "ndim", 0) != 2:
        return costs
    table = np.asarray(costs)
    rows, columns = (_order(axis, Classes(tuple(names))) for axis in (costs.index, costs.columns))
    if rows is not None:
        table = table[rows]
    elif [*costs.index] != [*range(len(names))]:  # which names nothing
        raise ArgumentError(
            f"costs has the rows {', '.join(map(repr, costs.index))}, and the classes are {', '.join(names)}: name "
            "each row after a class, or give an array whose rows are in this order."
        )
    return table if columns is None else table[:, columns]


def _order(axis: Iterable[Any], known: Classes) -> np.ndarray | None:
    """Return where each class stands, if names are those of the classes, each once."""
    places = [known.place(str(name)) for name in axis]
    numbers = range(len(known.names))
    each_once = len(places) == len(numbers) and {*places} == {*numbers}
    return np.array([places.index(number) for number in numbers]) if each_once else None
