"""What every prediction offers: a mixture over draws of the weights, its uncertainties and its scores."""

import abc
import copy
import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from bayeslora import decisions, metrics
from bayeslora.contracts import Probability, checked
from bayeslora.contracts.arrays import LabelArray as LabelArray
from bayeslora.decisions import HeldOut
from bayeslora.display import Shown
from bayeslora.metrics import FloatArray
from bayeslora.tasks.settling import Component
from bayeslora.tasks.summing import Names as Names
from bayeslora.tasks.summing import names_of as names_of
from bayeslora.tasks.summing import summed
from bayeslora.types import Seed

if TYPE_CHECKING:
    import pandas as pd


P = TypeVar("P", bound="BasePrediction")

SHOWN_ROWS = 5
"""Rows that a prediction shows of itself."""


def fit_labels(arguments: dict[str, Any]) -> None:
    """Let the prediction that a method is called of judge the labels among its arguments."""
    if "labels" in arguments:
        arguments["labels"] = next(iter(arguments.values()))._fitting(arguments["labels"])


class BasePrediction(Shown, abc.ABC):
    """The predictive distribution of the labels: a mixture over draws of the weights, row by row.

    A row is an example, or a token of one. Entropies are in nats.

    Attributes:
        draws: What each draw predicts, `[draw, row, …]`.
        weights: Weights of the draws in the mixture, `[draw]`, which sum to 1; None if they are equal.
        per_draw: Fields with an entry for each draw.
        held_out: The held-out rows that `abstain` and `sets` decide by; None without `Posterior.decide`.
        made: How it was made: arguments of `Posterior.predict` that have to be those of `decide`.
        used: How many draws each row has used, `[row]`, with `num_draws="auto"`; None otherwise. `draws` then repeats
            those of a row that needed fewer.
    """

    draws: Any
    weights: FloatArray | None = None
    per_draw: ClassVar[tuple[str, ...]] = ("draws",)
    held_out: HeldOut | None = None
    made: Mapping[str, Any] = MappingProxyType({})
    used: np.ndarray | None = None

    def __init_subclass__(cls, **settings: Any) -> None:
        """Check the arguments of every kind of prediction against what they are declared here."""
        super().__init_subclass__(**settings)
        for name in ("log_likelihood", "row_log_likelihood", "sample", "scores", "to_pandas", "wrong", "conformity"):
            if name in vars(cls):
                setattr(cls, name, checked(like=getattr(BasePrediction, name), also=fit_labels)(vars(cls)[name]))

    def _fitting(self, labels: np.ndarray) -> np.ndarray:
        """Return labels as this kind of prediction takes them; an `ArgumentError` if they are not its rows'."""
        return labels

    @property
    @abc.abstractmethod
    def predicted(self) -> np.ndarray:
        """The single label to predict if one has to be chosen, `[row, …]`."""

    @property
    @abc.abstractmethod
    def aleatoric(self) -> FloatArray:
        """Entropy per draw, averaged, in nats, `[row]`: what would remain if the weights were known."""

    @property
    @abc.abstractmethod
    def epistemic(self) -> FloatArray:
        """Mutual information of label and weights in nats, `[row]`: entropy − aleatoric, 0 for one draw."""

    @property
    def entropy(self) -> FloatArray:
        """Entropy of the mixture in nats, `[row]`: all uncertainty about the label."""
        return self.aleatoric + self.epistemic

    @property
    def epistemic_corrected(self) -> FloatArray:
        r"""The epistemic part in nats, `[row]`, corrected for the number of draws S: `epistemic` · S / (S − 1).

        A mixture of S draws is nearer to them than the one they come from. To second order in the draws' deviations
        from their mean, the mutual information of class and weights is $\frac12 \sum_c \mathrm{Var}(p_c) / p_c$; the
        deviations from the mean of S draws have only (1 − 1/S) of the variance, and `epistemic` is too small by that
        factor on average, by a quarter with 4 draws. One draw says nothing about the weights: it is 0 then, too. If
        the draws are all members of a finite posterior, such as an ensemble, `epistemic` is exact. With unequal
        weights w, 1 / S is $\sum_s w_s^2$.
        """
        share: Any = 1 / len(self.draws) if self.weights is None else float(np.square(self.weights).sum())
        if self.used is not None:
            share = share * len(self.draws) / self.used  # repeated draws are as many with the weight of one
        return self.epistemic / np.where(share < 1, 1 - share, 1.0)

    @property
    def uncertainties(self) -> dict[str, FloatArray]:
        """Scores that order the rows, `[row]` each, by name; the higher, the less certain or familiar the row.

        Where `wrong` is about other units than rows, such as questions, they are about those.
        """
        return {"entropy": self.entropy, "epistemic": self.epistemic}

    def wrong(self, labels: LabelArray) -> np.ndarray | None:
        """Return whether each prediction is wrong, `[row]`.

        None if that is not a matter of yes or no, or rows depend on each other, as tokens do: nothing is promised then.
        """
        return None

    def conformity(self, labels: LabelArray) -> dict[str, FloatArray]:
        """Return how badly each label fits, `[row]`, by the name of the score that `sets` can use; none by default."""
        return {}

    def average(self, values: FloatArray) -> FloatArray:
        """Return the mean over draws of values, `[draw, …]`, by the draws' weights."""
        return average(values, self.weights)

    def log_density(self, labels: LabelArray) -> FloatArray:
        """Return the mixture's log predictive density of each example's labels, in nats, `[example]`."""
        from scipy.special import logsumexp

        values = self.log_likelihood(labels)
        shares = np.full(len(values), 1 / len(values)) if self.weights is None else self.weights
        return logsumexp(values, axis=0, b=shares[:, None])

    def mixture_nll(self, log_likelihood: FloatArray) -> float:
        """Return the mixture's NLL, averaged over rows, given the draws' log-likelihoods `[draw, row]`."""
        if self.weights is None:
            return metrics.mixture_nll(log_likelihood)
        from scipy.special import logsumexp

        return float(-logsumexp(log_likelihood, axis=0, b=self.weights[:, None]).mean())

    def pooled(self: P, others: Sequence[P], weights: FloatArray) -> P:
        """Return the mixture of this prediction and others of the same rows.

        Args:
            others: Predictions of the same kind.
            weights: Weights of all draws, this one's first, `[draw]`.
        """
        fields = {name: _joined([each._per_draw(name) for each in (self, *others)]) for name in self.per_draw}
        pooled = dataclasses.replace(self, **fields)  # type: ignore[type-var]
        equal = bool(np.allclose(weights, 1 / len(weights), rtol=1e-12, atol=0))
        vars(pooled).update(weights=None if equal else weights)
        return pooled

    def _per_draw(self, name: str) -> Any:
        """The value of a field that has an entry for each draw."""
        return getattr(self, name)

    @checked()
    def as_held_out(self, labels: LabelArray) -> HeldOut:
        """Return what `abstain` and `sets` of other predictions need to know about this one and its labels.

        Raises:
            ValueError: If this kind of label knows no such decisions.
        """
        wrong = self.wrong(labels)
        columns = {f"conformity/{name}": score for name, score in self.conformity(labels).items()}
        if wrong is not None:
            columns |= {"wrong": wrong, **{f"uncertainty/{name}": u for name, u in self.uncertainties.items()}}
        if not columns:
            raise ValueError(
                f"{type(self).__name__} knows no decisions with a promise: they take one label, or one set of "
                "labels, for each of several independent rows. Order what you answer by prediction.entropy, and count "
                "errors on held-out texts."
            )
        return HeldOut({name: np.asarray(value, dtype=np.float64) for name, value in columns.items()}, {**self.made})

    @checked()
    def decided_by(self: P, held_out: HeldOut | None, made: Mapping[str, Any]) -> P:
        """Return this prediction with held-out rows, and with how it was made."""
        other = copy.copy(self)
        vars(other).update(held_out=held_out, made={**made})
        return other

    def of_rounds(self: P, used: np.ndarray) -> P:
        """Return this prediction with how many draws each row has used."""
        other = copy.copy(self)
        vars(other).update(used=used)
        return other

    @checked()
    def settled(
        self, tolerance: Probability, pairs: bool = False, components: Sequence[Component] = ()
    ) -> np.ndarray | None:
        """Return whether more draws, or pairs, would leave each row as it is, `[row]`.

        Args:
            tolerance: The largest standard error of a probability, see `tasks.settling`.
            pairs: Whether draws are antithetic.
            components: Whose draws they are, if this is of a mixture.

        Returns:
            None if this kind does not say, of a single draw, and of weighted ones without their components.
        """
        each_draws = getattr(self, self.per_draw[0])  # not `draws`: distributions of the user's may have no mean
        if len(each_draws) < 2 or (self.weights is not None and not components):
            return None
        return self._settled(tolerance, pairs, components)

    def _settled(self, tolerance: float, pairs: bool, components: Sequence[Component]) -> np.ndarray | None:
        """Return the same of at least two draws."""
        return None

    @checked()
    def abstain(self, risk: Probability = 0.05, *, confidence: Probability = 0.9, by: str = "entropy") -> np.ndarray:
        """Return which rows not to answer, `[row]`, so that the error rate of the others is at most `risk`.

        The threshold is the largest that the rows of `Posterior.decide` allow. With probability `confidence` over them,
        the error rate of what is answered is at most `risk`: see `decisions.selective_threshold`, which says under
        which condition, and warns if so few rows were held out, or so many of them are wrong, that nothing can be
        answered.

        Args:
            risk: The error rate that the answered rows may have.
            confidence: Probability that they keep it.
            by: What orders the rows: one of `uncertainties`. Choose it before looking at held-out rows.

        Raises:
            ValueError: If there are no held-out rows, they were predicted otherwise, or this kind has no errors.
        """
        held_out = decisions.held_out_like(self.held_out, self.made)
        if "wrong" not in held_out.columns:
            raise ValueError(f"{type(self).__name__} is not right or wrong, so that it has no risk: use sets(…).")
        threshold = held_out.threshold(risk, confidence, by)
        if threshold == -math.inf:
            warnings.warn(
                f"Nothing can be answered: the {len(held_out)} held-out rows do not show a risk of at most {risk} at "
                f"any threshold. It takes {decisions.fewest_rows(risk, confidence)} of them at least, without an "
                "error; hold out more, or allow more risk.",
                stacklevel=2,
            )
        return ~(self.uncertainties[by] < threshold)

    @checked()
    def sets(self, coverage: Probability = 0.9) -> np.ndarray:
        """Return the labels that may be right, by split-conformal prediction from the rows of `Posterior.decide`.

        The label of a new row is among them with probability `coverage` at least, on average over held-out rows:
        whatever the network, for any number of rows; see `decisions.conformal_quantile`.

        Raises:
            ValueError: If there are no held-out rows, they were predicted otherwise, or this kind has no such sets.
        """
        raise ValueError(f"{type(self).__name__} has no sets.")

    def _largest_score(self, coverage: float, method: str) -> float:
        """The score up to which a label belongs to the set of its row; a warning if that is all of them."""
        held_out = decisions.held_out_like(self.held_out, self.made)
        quantile = held_out.quantile(coverage, method)
        if quantile == math.inf:
            warnings.warn(
                f"All labels are in all sets: for a coverage of {coverage} it takes "
                f"{math.ceil(round(coverage / (1 - coverage), 9))} held-out rows, and there are {len(held_out)}.",
                stacklevel=4,
            )
        return quantile

    @abc.abstractmethod
    def log_likelihood(self, labels: LabelArray) -> FloatArray:
        """Return the log-likelihood ln p(labels) under every draw in nats, `[draw, example]`."""

    def row_log_likelihood(self, labels: LabelArray) -> FloatArray:
        """Return the log-likelihood of each row in nats, `[draw, row]`: of each token, if rows are tokens."""
        return self.log_likelihood(labels)

    @abc.abstractmethod
    def sample(self, seed: Seed | None = 0) -> np.ndarray:
        """Draw one label per draw of the weights and row from the predictive distribution, `[draw, row, …]`."""

    @abc.abstractmethod
    def scores(self, labels: LabelArray) -> dict[str, float]:
        """Return the metrics of the task; `nll` is in nats per example."""

    @abc.abstractmethod
    def to_pandas(self) -> "pd.DataFrame":
        """Return a table with a row per row of the prediction."""

    def of_table(self, values: np.ndarray) -> np.ndarray:
        """Return those of values, `[row]`, that rows of `to_pandas` have."""
        return values

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.draws.shape[1]

    def _shown(self) -> tuple[str, dict[str, str], Any]:
        """Title, facts and first rows."""
        weighted = "" if self.weights is None else ", of unequal weight"
        draws = f"{len(self.draws)}{weighted}"
        if (used := self.used) is not None and len(self):
            draws = f"{used.min()} to {used.max()} a row, {used.mean():.1f} on average"
        facts = {"rows": str(len(self)), "draws": draws, **self._facts()}
        if len(self):
            mean = {name: float(np.mean(values)) for name, values in uncertainty(self).items()}
            parts = f"{mean['aleatoric']:.3f} aleatoric + {mean['epistemic']:.3f} epistemic"
            facts["mean uncertainty"] = f"{mean['entropy']:.3f} nats = {parts}"
        if self.held_out is not None:
            facts["decides by"] = f"{len(self.held_out)} held-out rows"
        return type(self).__name__, facts, self.to_pandas().head(SHOWN_ROWS) if len(self) else None

    def _facts(self) -> dict[str, str]:
        """What is shown of this kind beside the numbers of rows and draws."""
        return {}

    def _statistics(self, labels: np.ndarray, observed: np.ndarray) -> dict[str, FloatArray]:
        """Numbers that sum up labels, `[set]` of `[set, row, …]`, by name; `observed` are those of the data."""
        return summed(labels, observed, getattr(self, "class_names", None))


def average(values: FloatArray, weights: FloatArray | None) -> FloatArray:
    """Return the mean of values, `[draw, …]`, over draws, by weights that sum to 1 or, with None, equally."""
    return np.asarray(values.mean(0) if weights is None else np.tensordot(weights, values, axes=1))


def _joined(values: Sequence[Any]) -> Any:
    """Join what several predictions have for each of their draws; None if one of them has nothing."""
    if any(value is None for value in values):
        return None
    return np.concatenate(values) if isinstance(values[0], np.ndarray) else [each for value in values for each in value]


def uncertainty(prediction: BasePrediction) -> dict[str, FloatArray]:
    """Return the three uncertainties of a prediction as columns of a table."""
    return {name: getattr(prediction, name) for name in ("entropy", "aleatoric", "epistemic")}


def sample_classes(probs: FloatArray, seed: int | None) -> np.ndarray:
    """Draw classes by inverting the distribution function over the last axis, which is removed."""
    uniform = np.random.default_rng(seed).random((*probs.shape[:-1], 1))
    return np.minimum((probs.cumsum(-1) < uniform).sum(-1), probs.shape[-1] - 1)
