"""Predictions: what draws of the network's logits say about the labels, one class for each kind of label."""

import abc
import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, singledispatch
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float

from bayeslora import metrics
from bayeslora.isolation import seeded
from bayeslora.likelihoods import (
    Categorical,
    LanguageModel,
    Likelihood,
    MultiLabel,
    PerToken,
    QuestionAnswering,
    RealValued,
)
from bayeslora.metrics import FloatArray, Noise
from bayeslora.tables import Questions

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Rows:
    """Where the rows of a prediction stand in the data, if they are tokens.

    Args:
        example: Number of each row's example, `[row]`.
        position: Place of its token in the example, `[row]`.
        num_examples: Examples of the data, those without rows included.
    """

    example: np.ndarray
    position: np.ndarray
    num_examples: int

    def by_example(self, values: FloatArray) -> FloatArray:
        """Sums over each example's rows, `[draw, row]` to `[draw, example]`."""
        return np.stack([np.bincount(self.example, value, self.num_examples) for value in values])


@dataclass(frozen=True)
class Outputs:
    """What a network returned at several draws, and what it was asked about.

    Args:
        logits: `[draw, row, …]`; a row is an example, or a token of one.
        labels: `[row, …]`, or None where the data has none.
        rows: Where the tokens stand, if rows are tokens.
        questions: What the rows are windows of, if they are.
    """

    logits: FloatArray
    labels: np.ndarray | None
    rows: Rows | None = None
    questions: Questions | None = None


class BasePrediction(abc.ABC):
    """The predictive distribution of the labels: an equal mixture over draws of the weights, row by row.

    A row is an example, or a token of one. Entropies are in nats.

    Attributes:
        draws: What every draw says, `[draw, row, …]`.
    """

    draws: Any

    @property
    @abc.abstractmethod
    def predicted(self) -> np.ndarray:
        """The one label to give if one must be given, `[row, …]`."""

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

    @abc.abstractmethod
    def log_likelihood(self, labels: np.ndarray) -> FloatArray:
        """Log-likelihood ln p(labels) of every draw in nats, `[draw, example]`."""

    def row_log_likelihood(self, labels: np.ndarray) -> FloatArray:
        """Log-likelihood row by row in nats, `[draw, row]`: that of tokens, where rows are tokens."""
        return self.log_likelihood(labels)

    @abc.abstractmethod
    def sample(self, seed: int | None = 0) -> np.ndarray:
        """One label per draw and row from the predictive distribution, `[draw, row, …]`."""

    @abc.abstractmethod
    def scores(self, labels: np.ndarray) -> dict[str, float]:
        """The task's metrics; `nll` is in nats per example."""

    @abc.abstractmethod
    def to_pandas(self) -> "pd.DataFrame":
        """A row per row of the prediction."""

    def __len__(self) -> int:
        """Number of rows."""
        return self.draws.shape[1]


class ClassProbabilities(BasePrediction):
    """Rows that each have one class.

    Attributes:
        draws: Probabilities per draw, `[draw, row, class]`.
        class_names: Names of the classes, or None.
    """

    class_names: tuple[str, ...] | None

    @cached_property
    def probs(self) -> FloatArray:
        """Probabilities averaged over draws, `[row, class]`."""
        return self.draws.mean(0)

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
        return metrics.entropy(self.draws).mean(0)

    @cached_property
    def epistemic(self) -> FloatArray:
        """Mutual information of label and weights in nats, `[row]`: entropy − aleatoric, 0 for one draw."""
        # The mean KL from the draws to their average: no difference of two entropies, whose digits would cancel.
        return metrics.relative_entropy(self.draws, self.probs).mean(0)

    def row_log_likelihood(self, labels: np.ndarray) -> FloatArray:
        return np.stack([-metrics.nll_per_example(probs, labels) for probs in self.draws])

    def sample(self, seed: int | None = 0) -> np.ndarray:
        return _sample_classes(self.draws, seed)

    def to_pandas(self) -> "pd.DataFrame":
        """A row per row: predicted class, a probability per class, and the three uncertainties."""
        import pandas as pd

        names = _names(self.class_names, self.probs.shape[-1])
        columns: dict[str, Any] = {"predicted": [names[index] for index in self.predicted]}
        columns |= {f"p({name})": self.probs[:, index] for index, name in enumerate(names)}
        return pd.DataFrame(columns | _uncertainty(self))


@dataclass(frozen=True)
class Prediction(ClassProbabilities):
    """Class probabilities, `S` draws of them, for `N` examples and `C` classes.

    Args:
        draws: Probabilities per draw, `[draw, example, class]`.
        class_names: Names of the classes, or None.
    """

    draws: Float[np.ndarray, "draw example class"]
    class_names: tuple[str, ...] | None = None

    def log_likelihood(self, labels: np.ndarray) -> FloatArray:
        return self.row_log_likelihood(labels)

    def scores(self, labels: np.ndarray) -> dict[str, float]:
        """Accuracy, NLL, ECE and Brier score, and `metrics.class_scores`."""
        return metrics.classification_scores(self.probs, labels) | metrics.class_scores(self.probs, labels)


@dataclass(frozen=True)
class TokenPrediction(ClassProbabilities):
    """Class probabilities of tokens: those of all examples in one row after another, padding left out.

    Args:
        draws: Probabilities per draw, `[draw, token, class]`.
        rows: Where the tokens stand.
        class_names: Names of the classes, or None.
    """

    draws: Float[np.ndarray, "draw token class"]
    rows: Rows
    class_names: tuple[str, ...] | None = None

    def log_likelihood(self, labels: np.ndarray) -> FloatArray:
        return self.rows.by_example(self.row_log_likelihood(labels))

    def scores(self, labels: np.ndarray) -> dict[str, float]:
        """As of a `Prediction`, but token by token; `nll` of an example's tokens together, `nll_per_token` of one."""
        scores = metrics.classification_scores(self.probs, labels) | metrics.class_scores(self.probs, labels)
        return scores | {"nll": metrics.mixture_nll(self.log_likelihood(labels)), "nll_per_token": scores["nll"]}

    def to_pandas(self) -> "pd.DataFrame":
        """A row per token: example, position, predicted class, probabilities, and the three uncertainties."""
        return _with_places(super().to_pandas(), self.rows)


@dataclass(frozen=True)
class LanguagePrediction(BasePrediction):
    """How probable each observed token was, and how sure the model was before it.

    A vocabulary's probabilities are summarised draw by draw as they are computed.

    Args:
        draws: Probability of the token that is there, per draw, `[draw, token]`.
        tokens: That token, `[token]`.
        most_probable: The most probable token of the mixture, `[token]`.
        mixture_entropy: Entropy of the mixture in nats, `[token]`.
        mean_entropy: Entropy per draw, averaged, in nats, `[token]`.
        sampled: A token from every draw's distribution, `[draw, token]`.
        rows: Where the tokens stand.
    """

    draws: Float[np.ndarray, "draw token"]
    tokens: np.ndarray
    most_probable: np.ndarray
    mixture_entropy: FloatArray
    mean_entropy: FloatArray
    sampled: np.ndarray
    rows: Rows

    @property
    def predicted(self) -> np.ndarray:
        """The most probable token, `[token]`."""
        return self.most_probable

    @property
    def entropy(self) -> FloatArray:
        """Entropy of the mixture in nats, `[token]`: all uncertainty about the token."""
        return self.mixture_entropy

    @property
    def aleatoric(self) -> FloatArray:
        """Entropy per draw, averaged, in nats, `[token]`."""
        return self.mean_entropy

    @property
    def probs(self) -> FloatArray:
        """Probability of the token that is there, averaged over draws, `[token]`."""
        return self.draws.mean(0)

    @property
    def epistemic(self) -> FloatArray:
        """Mutual information of token and weights in nats, `[token]`: entropy − aleatoric, 0 for one draw."""
        # Rounding can make the difference of two sums over a vocabulary negative.
        return np.maximum(self.entropy - self.aleatoric, 0)

    def row_log_likelihood(self, labels: np.ndarray) -> FloatArray:
        return np.log(np.maximum(self.draws, np.finfo(np.float64).tiny))

    def log_likelihood(self, labels: np.ndarray) -> FloatArray:
        return self.rows.by_example(self.row_log_likelihood(labels))

    def sample(self, seed: int | None = 0) -> np.ndarray:
        return self.sampled

    def scores(self, labels: np.ndarray) -> dict[str, float]:
        """NLL of an example's tokens together and of one token, perplexity exp(NLL per token), accuracy per token."""
        per_token = metrics.mixture_nll(self.row_log_likelihood(labels))
        return {
            "accuracy": float((self.predicted == self.tokens).mean()),
            "nll": metrics.mixture_nll(self.log_likelihood(labels)),
            "nll_per_token": per_token,
            "perplexity": math.exp(min(per_token, 700.0)),
        }

    def to_pandas(self) -> "pd.DataFrame":
        """A row per token: example, position, the token, its probability, the most probable one, uncertainties."""
        import pandas as pd

        columns = {"token": self.tokens, "p(token)": self.probs, "predicted": self.predicted}
        return _with_places(pd.DataFrame(columns | _uncertainty(self)), self.rows)


@dataclass(frozen=True)
class MultiLabelPrediction(BasePrediction):
    """Probabilities that labels apply, each by itself.

    Entropies are sums over an example's labels: `aleatoric` is that of all labels together, `entropy` and `epistemic`
    are the sums of the labels' own (labels that draws tie together share information, which is counted twice).

    Args:
        draws: Probabilities per draw, `[draw, example, label]`.
        class_names: Names of the labels, or None.
    """

    draws: Float[np.ndarray, "draw example label"]
    class_names: tuple[str, ...] | None = None

    @cached_property
    def probs(self) -> FloatArray:
        """Probabilities averaged over draws, `[example, label]`."""
        return self.draws.mean(0)

    @property
    def predicted(self) -> np.ndarray:
        """Whether each label is more probable than not, `[example, label]`."""
        return self.probs > 0.5

    @cached_property
    def aleatoric(self) -> FloatArray:
        """Entropy per draw, averaged, in nats, `[example]`."""
        return metrics.entropy(_both(self.draws)).sum(-1).mean(0)

    @cached_property
    def epistemic(self) -> FloatArray:
        """Mutual information of each label and the weights in nats, summed over labels, `[example]`."""
        return metrics.relative_entropy(_both(self.draws), _both(self.probs)).sum(-1).mean(0)

    def log_likelihood(self, labels: np.ndarray) -> FloatArray:
        chosen = np.where(np.asarray(labels) > 0.5, self.draws, 1 - self.draws)
        return np.log(np.maximum(chosen, np.finfo(np.float64).tiny)).sum(-1)

    def sample(self, seed: int | None = 0) -> np.ndarray:
        return (np.random.default_rng(seed).random(self.draws.shape) < self.draws).astype(np.int64)

    def scores(self, labels: np.ndarray) -> dict[str, float]:
        """NLL of an example's labels together; accuracy and Brier score per label, exact match, macro F1."""
        return {
            "nll": metrics.mixture_nll(self.log_likelihood(labels)),
            **metrics.multilabel_scores(self.probs, labels),
        }

    def to_pandas(self) -> "pd.DataFrame":
        """A row per example: the names of its labels, a probability per label, and the three uncertainties."""
        import pandas as pd

        names = np.asarray(_names(self.class_names, self.probs.shape[-1]))
        columns: dict[str, Any] = {"predicted": [tuple(map(str, names[row])) for row in self.predicted]}
        columns |= {f"p({name})": self.probs[:, index] for index, name in enumerate(names)}
        return pd.DataFrame(columns | _uncertainty(self))


@dataclass(frozen=True)
class SpanPrediction(BasePrediction):
    """First and last token of an answer. Given the weights the two are independent; in the mixture they are not.

    Args:
        draws: Probabilities of each position to be the first and to be the last, `[draw, example, position, 2]`.
        max_length: Longest span to consider, in tokens.
    """

    draws: Float[np.ndarray, "draw example position 2"]
    max_length: int = 30

    @cached_property
    def probs(self) -> FloatArray:
        """Averaged over draws, `[example, position, 2]`."""
        return self.draws.mean(0)

    def joint(self, example: int) -> Float[np.ndarray, "position position"]:
        """Probability of every pair of first and last token of an example."""
        draws = self.draws[:, example]
        return draws[..., 0].T @ draws[..., 1] / len(draws)

    def allowed(self, example: int) -> Any:
        """Which positions an answer may end at, `[position]`."""
        return True

    @cached_property
    def _best(self) -> tuple[np.ndarray, FloatArray, FloatArray]:
        """Most probable spans, their probabilities, and the entropy of all pairs."""
        spans, probs, entropies = [], [], []
        for example in range(len(self)):
            joint = self.joint(example)
            valid = np.tril(np.triu(joint), self.max_length - 1) * self.allowed(example)
            spans.append(np.unravel_index(valid.argmax(), valid.shape))
            probs.append(valid.max())
            entropies.append(metrics.entropy(joint.reshape(1, -1))[0])
        return np.asarray(spans), np.asarray(probs), np.asarray(entropies)

    @property
    def predicted(self) -> np.ndarray:
        """Most probable span, first and last token, `[example, 2]`."""
        return self._best[0]

    @property
    def confidence(self) -> FloatArray:
        """Probability of that span, `[example]`; among all pairs, those that are no span included."""
        return self._best[1]

    @cached_property
    def aleatoric(self) -> FloatArray:
        """Entropy of first and last token per draw, averaged, in nats, `[example]`."""
        return metrics.entropy(np.moveaxis(self.draws, -1, -2)).sum(-1).mean(0)

    @property
    def epistemic(self) -> FloatArray:
        """Mutual information of the pair and the weights in nats, `[example]`: 0 for one draw."""
        if len(self.draws) == 1:
            return np.zeros(len(self))
        return np.maximum(self._best[2] - self.aleatoric, 0)

    def log_likelihood(self, labels: np.ndarray) -> FloatArray:
        where = np.broadcast_to(np.asarray(labels)[None, :, None], (len(self.draws), len(self), 1, 2))
        chosen = np.take_along_axis(self.draws, where, axis=2)[:, :, 0]
        return np.log(np.maximum(chosen, np.finfo(np.float64).tiny)).sum(-1)

    def sample(self, seed: int | None = 0) -> np.ndarray:
        return _sample_classes(np.moveaxis(self.draws, -1, -2), seed)

    def scores(self, labels: np.ndarray) -> dict[str, float]:
        """NLL of first and last token; exact match and F1 (SQuAD's, on token positions instead of words)."""
        return {
            "nll": metrics.mixture_nll(self.log_likelihood(labels)),
            **metrics.span_scores(self.predicted, labels),
        }

    def to_pandas(self) -> "pd.DataFrame":
        """A row per example: first and last token of the most probable span, its probability, uncertainties."""
        import pandas as pd

        columns = {"start": self.predicted[:, 0], "end": self.predicted[:, 1], "p(span)": self.confidence}
        return pd.DataFrame(columns | _uncertainty(self))


@dataclass(frozen=True)
class AnswerPrediction(SpanPrediction):
    """Answers in the words of a context. Rows are windows of question and context; most questions have one.

    The answer to a question is the most probable span of its context's tokens over its windows, or none where that is
    less probable than the first token of every window.

    Args:
        draws: Probabilities of each position to be the first and to be the last, `[draw, window, position, 2]`.
        max_length: Longest answer to consider, in tokens.
        questions: What the windows are of.
    """

    questions: Questions = field(kw_only=True)

    def allowed(self, example: int) -> np.ndarray:
        """Which positions an answer may end at: tokens of the context, `[position]`."""
        in_context = self.questions.offsets[example][:, 0] >= 0
        return np.pad(in_context, (0, self.draws.shape[2] - len(in_context)))

    @cached_property
    def windows(self) -> np.ndarray:
        """The window that holds each question's most probable span, `[question]`."""
        order = np.lexsort((self.confidence, self.questions.question))
        return order[
            np.searchsorted(self.questions.question[order], np.arange(len(self.questions.contexts)), "right") - 1
        ]

    @cached_property
    def no_answer(self) -> FloatArray:
        """Probability that no window holds the answer: the smallest over windows of its first token's, `[question]`."""
        least = np.ones(len(self.questions.contexts))
        np.minimum.at(least, self.questions.question, self.draws[:, :, 0].prod(-1).mean(0))
        return least

    @cached_property
    def answers(self) -> list[str]:
        """The most probable answer to each question; empty where none is more probable."""
        return [
            self.questions.text(int(window), *self.predicted[window].tolist())
            if self.confidence[window] >= none
            else ""
            for window, none in zip(self.windows, self.no_answer, strict=True)
        ]

    @property
    def answer_probs(self) -> FloatArray:
        """Probability of that answer, `[question]`."""
        return np.maximum(self.confidence[self.windows], self.no_answer)

    def scores(self, labels: np.ndarray) -> dict[str, float]:
        """NLL of a window's first and last token; SQuAD's exact match and F1; how well confidence tells errors.

        `auroc_errors` is the probability that a wrong answer has a lower one than a right answer; NaN where all are
        right, or all wrong.
        """
        exact, f1 = metrics.answer_scores(self.answers, self.questions.answers or [])
        return {
            "nll": metrics.mixture_nll(self.log_likelihood(labels)),
            "exact_match": float(exact.mean()),
            "f1": float(f1.mean()),
            "auroc_errors": metrics.auroc_errors(-self.answer_probs, ~exact),
        }

    def to_pandas(self) -> "pd.DataFrame":
        """A row per question: the answer, its probability, that of there being none, uncertainties in its window."""
        import pandas as pd

        columns = {"answer": self.answers, "p(answer)": self.answer_probs, "p(none)": self.no_answer}
        return pd.DataFrame(columns | {name: value[self.windows] for name, value in _uncertainty(self).items()})


@dataclass(frozen=True)
class ObservationPrediction(BasePrediction):
    """Labels under a likelihood of the user's own. Entropies are Monte Carlo estimates.

    Args:
        distributions: The labels' distribution at each draw, batch shape `[example]`.
        num_samples: Samples per draw for the entropies.
    """

    distributions: Sequence[Any]
    num_samples: int = 64

    @cached_property
    def draws(self) -> FloatArray:
        """Mean of the labels at each draw, `[draw, example, …]`."""
        return np.stack([each.mean.numpy() for each in self.distributions])

    @property
    def predicted(self) -> FloatArray:
        """Mean of the labels, `[example, …]`."""
        return self.draws.mean(0)

    @cached_property
    def _estimates(self) -> tuple[FloatArray, FloatArray]:
        """Aleatoric and epistemic, from the same samples."""
        aleatoric, epistemic = [], []
        with seeded(0):
            for own in self.distributions:
                values = own.sample((self.num_samples,))
                log_probs = torch.stack([other.log_prob(values) for other in self.distributions])
                mixture = log_probs.logsumexp(0) - math.log(len(self.distributions))
                aleatoric.append(-own.log_prob(values).mean(0).numpy())
                epistemic.append((own.log_prob(values) - mixture).mean(0).numpy())
        return np.mean(aleatoric, axis=0), np.maximum(np.mean(epistemic, axis=0), 0)

    @property
    def aleatoric(self) -> FloatArray:
        return self._estimates[0]

    @property
    def epistemic(self) -> FloatArray:
        return self._estimates[1]

    def log_likelihood(self, labels: np.ndarray) -> FloatArray:
        return np.stack([each.log_prob(torch.as_tensor(labels)).numpy() for each in self.distributions])

    def sample(self, seed: int | None = 0) -> np.ndarray:
        with seeded(seed):
            return np.stack([each.sample().numpy() for each in self.distributions])

    def scores(self, labels: np.ndarray) -> dict[str, float]:
        """NLL."""
        return {"nll": metrics.mixture_nll(self.log_likelihood(labels))}

    def to_pandas(self) -> "pd.DataFrame":
        """A row per example: the mean, a column per label where there are several, and the three uncertainties."""
        import pandas as pd

        mean = self.predicted.reshape(len(self), -1)
        names = ["predicted"] if mean.shape[1] == 1 else [f"predicted({i})" for i in range(mean.shape[1])]
        return pd.DataFrame(dict(zip(names, mean.T, strict=True)) | _uncertainty(self))


@dataclass(frozen=True)
class RegressionPrediction(BasePrediction):
    r"""A real number per example: an equal mixture over draws of $f_s + \sigma \epsilon$.

    The noise ε is standard Normal, or Student's t. Densities are per unit of the labels: entropies in nats depend on
    that unit and may be negative; `epistemic`, a difference of two, does not and is not.

    Args:
        draws: $f_s$, `[draw, example]`.
        scale: σ, in units of the labels.
        df: Degrees of freedom of the noise, infinite for Normal noise.
    """

    draws: Float[np.ndarray, "draw example"]
    scale: float
    df: float = math.inf

    @property
    def noise(self) -> Noise:
        """The noise ε."""
        return Noise(self.df)

    @cached_property
    def mean(self) -> FloatArray:
        """Mean, `[example]`."""
        return self.draws.mean(0)

    @property
    def predicted(self) -> FloatArray:
        """The mean, `[example]`."""
        return self.mean

    @property
    def aleatoric_variance(self) -> FloatArray:
        """Variance of the noise, `[example]`."""
        return np.full(len(self), self.scale**2 * self.noise.variance)

    @cached_property
    def epistemic_variance(self) -> FloatArray:
        """Variance of the draws' means, `[example]`."""
        return self.draws.var(0)

    @property
    def variance(self) -> FloatArray:
        """Variance, `[example]`: aleatoric + epistemic."""
        return self.aleatoric_variance + self.epistemic_variance

    @property
    def aleatoric(self) -> FloatArray:
        """Entropy of the noise in nats, `[example]`."""
        return np.full(len(self), self.noise.entropy + math.log(self.scale))

    @cached_property
    def epistemic(self) -> FloatArray:
        r"""Mutual information of label and weights in nats, `[example]`, by quadrature over the noise."""
        return metrics.mixture_information(self.draws, self.scale, self.noise)

    def quantile(self, q: float) -> FloatArray:
        """The q-quantile of the mixture, `[example]`, by bisection of its distribution function."""
        return metrics.mixture_quantile(self.draws, self.scale, q, self.noise)

    def interval(self, level: float = 0.9) -> Float[np.ndarray, "example 2"]:
        """Lower and upper end of the central interval that holds that share of the probability."""
        if not 0 < level < 1:
            raise ValueError(f"level={level!r}: give a probability between 0 and 1.")
        return np.stack([self.quantile((1 - level) / 2), self.quantile((1 + level) / 2)], axis=-1)

    def crps(self, labels: np.ndarray) -> FloatArray:
        """Continuous ranked probability score in units of the labels, `[example]`."""
        return metrics.mixture_crps(self.draws, labels, self.scale, self.noise)

    def log_likelihood(self, labels: np.ndarray) -> FloatArray:
        return self.noise.log_density((labels - self.draws) / self.scale) - math.log(self.scale)

    def sample(self, seed: int | None = 0) -> FloatArray:
        return self.draws + self.scale * self.noise.sample(self.draws.shape, seed)

    def scores(self, labels: np.ndarray) -> dict[str, float]:
        """NLL, RMSE, MAE, Pearson and Spearman correlation, CRPS, and the share of labels in the 90 % interval."""
        lower, upper = self.interval(0.9).T
        return {
            "nll": metrics.mixture_nll(self.log_likelihood(labels)),
            **metrics.regression_scores(self.mean, labels),
            "crps": float(self.crps(labels).mean()),
            "coverage_90": float(((lower <= labels) & (labels <= upper)).mean()),
        }

    def to_pandas(self) -> "pd.DataFrame":
        """A row per example: mean, standard deviation, 90 % interval, and the three uncertainties."""
        import pandas as pd

        lower, upper = self.interval(0.9).T
        columns = {"predicted": self.mean, "sd": np.sqrt(self.variance), "lower_90": lower, "upper_90": upper}
        return pd.DataFrame(columns | _uncertainty(self))


Names = tuple[str, ...] | None


@singledispatch
def make_prediction(
    likelihood: Likelihood, outputs: Any, temperature: float = 1.0, class_names: Names = None
) -> BasePrediction:
    """The prediction that a likelihood makes of the network's outputs.

    Args:
        likelihood: Labels given logits.
        outputs: Logits at several draws.
        temperature: Divides the logits of likelihoods that have one.
        class_names: Names of the classes, or None.
    """
    # On the processor and in double precision, as the logits are; without gradients, which NumPy does not know.
    likelihood = copy.deepcopy(likelihood).to("cpu", torch.float64).requires_grad_(False)
    return ObservationPrediction([likelihood.distribution(logits) for logits in torch.as_tensor(outputs.logits)])


@make_prediction.register
def _(likelihood: Categorical, outputs: Any, temperature: float = 1.0, class_names: Names = None) -> BasePrediction:
    return Prediction(metrics.softmax(outputs.logits, temperature), class_names)


@make_prediction.register
def _(likelihood: RealValued, outputs: Any, temperature: float = 1.0, class_names: Names = None) -> BasePrediction:
    return RegressionPrediction(outputs.logits, likelihood.scale, likelihood.df)


@make_prediction.register
def _(likelihood: MultiLabel, outputs: Any, temperature: float = 1.0, class_names: Names = None) -> BasePrediction:
    return MultiLabelPrediction(metrics.sigmoid(outputs.logits / temperature), class_names)


@make_prediction.register
def _(likelihood: PerToken, outputs: Any, temperature: float = 1.0, class_names: Names = None) -> BasePrediction:
    return TokenPrediction(metrics.softmax(outputs.logits, temperature), outputs.rows, class_names)


@make_prediction.register
def _(likelihood: LanguageModel, outputs: Any, temperature: float = 1.0, class_names: Names = None) -> BasePrediction:
    return outputs


@make_prediction.register
def _(
    likelihood: QuestionAnswering, outputs: Any, temperature: float = 1.0, class_names: Names = None
) -> BasePrediction:
    probs = metrics.softmax(np.moveaxis(outputs.logits, -1, -2), temperature)
    draws = np.moveaxis(probs, -2, -1)
    return AnswerPrediction(draws, questions=outputs.questions) if outputs.questions else SpanPrediction(draws)


def _uncertainty(prediction: BasePrediction) -> dict[str, FloatArray]:
    return {name: getattr(prediction, name) for name in ("entropy", "aleatoric", "epistemic")}


def _with_places(table: "pd.DataFrame", rows: Rows) -> "pd.DataFrame":
    """The table, with the tokens' places in front."""
    table.insert(0, "example", rows.example)
    table.insert(1, "position", rows.position)
    return table


def _names(class_names: Names, count: int) -> tuple[str, ...]:
    return class_names or tuple(str(index) for index in range(count))


def _both(probs: FloatArray) -> FloatArray:
    """Probabilities of yes and no, last."""
    return np.stack([probs, 1 - probs], axis=-1)


def _sample_classes(probs: FloatArray, seed: int | None) -> np.ndarray:
    """Classes by inversion of the distribution function, the last axis taken out."""
    uniform = np.random.default_rng(seed).random((*probs.shape[:-1], 1))
    return np.minimum((probs.cumsum(-1) < uniform).sum(-1), probs.shape[-1] - 1)
