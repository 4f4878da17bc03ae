"""Questions whose answers are in a text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import pyro.distributions as dist
from jaxtyping import Float
from torch import Tensor, nn

from bayeslora import metrics
from bayeslora.contracts import Within, checked
from bayeslora.contracts.arrays import fitting_labels
from bayeslora.metrics import FloatArray
from bayeslora.networks import is_a
from bayeslora.tasks import questions
from bayeslora.tasks.base import Likelihood, Reader, precise
from bayeslora.tasks.collecting import Outputs
from bayeslora.tasks.matching import answer_scores, span_scores
from bayeslora.tasks.prediction import BasePrediction, Names, sample_classes, uncertainty
from bayeslora.tasks.questions import Questions
from bayeslora.tasks.rivals import settled_answer, settled_spans
from bayeslora.tasks.settling import Component
from bayeslora.types import Batch, LabelValues, Tokenizer, TokenLogits

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset


Index = Annotated[int, Within(at_least=0)]
"""The number of an example."""


@dataclass(frozen=True, repr=False)
class SpanPrediction(BasePrediction):
    """First and last token of an answer. Given the weights the two are independent; in the mixture they are not.

    Args:
        draws: Probabilities of each position to be the first and to be the last, `[draw, example, position, 2]`.
        max_length: Longest span to consider, in tokens.
        log_draws: Logarithms of `draws`, or None.
    """

    per_draw: ClassVar[tuple[str, ...]] = ("draws", "log_draws")
    draws: Float[np.ndarray, "draw example position 2"]
    max_length: int = 30
    log_draws: Float[np.ndarray, "draw example position 2"] | None = None

    @cached_property
    def probs(self) -> FloatArray:
        """Averaged over draws, `[example, position, 2]`."""
        return self.average(self.draws)

    @checked()
    def joint(self, example: Index) -> Float[np.ndarray, "position position"]:
        """Return the probability of every pair of first and last token of an example."""
        draws = self.draws[:, example]
        if self.weights is None:
            return draws[..., 0].T @ draws[..., 1] / len(draws)
        return (self.weights[:, None] * draws[..., 0]).T @ draws[..., 1]

    @checked()
    def allowed(self, example: Index) -> Any:
        """Return which positions an answer may end at, `[position]`; True for all."""
        return True

    @cached_property
    def _best(self) -> tuple[np.ndarray, FloatArray, FloatArray]:
        """Most probable spans, their probabilities, and the entropy of all pairs."""
        spans, probs, entropies = [], [], []
        for example in range(len(self)):
            joint = self.joint(example)
            valid = self._valid(joint, example)
            spans.append(np.unravel_index(valid.argmax(), valid.shape))
            probs.append(valid.max())
            entropies.append(metrics.entropy(joint.reshape(1, -1))[0])
        return np.asarray(spans), np.asarray(probs), np.asarray(entropies)

    def _valid(self, joint: FloatArray, example: int) -> FloatArray:
        """Return the probabilities of pairs that are spans; 0 for others."""
        return np.tril(np.triu(joint), self.max_length - 1) * self.allowed(example)

    def _settled(self, tolerance: float, pairs: bool, components: Sequence[Component]) -> np.ndarray:
        """Return whether the probabilities of all ends and of the best span, and which it is, are settled, `[row]`."""
        return self._settled_spans(tolerance, pairs, components)[0]

    def _settled_spans(
        self, tolerance: float, pairs: bool, components: Sequence[Component]
    ) -> tuple[np.ndarray, FloatArray]:
        return settled_spans(
            self.draws, lambda row: self._valid(self.joint(row), row), tolerance, pairs, components, self.weights
        )

    @property
    def predicted(self) -> np.ndarray:
        """Most probable span, first and last token, `[example, 2]`."""
        return self._best[0]

    @property
    def confidence(self) -> FloatArray:
        """Probability of that span, `[example]`, among all pairs of positions, whether or not they form a span."""
        return self._best[1]

    @cached_property
    def aleatoric(self) -> FloatArray:
        """Entropy of first and last token per draw, averaged, in nats, `[example]`."""
        return self.average(metrics.entropy(np.moveaxis(self.draws, -1, -2)).sum(-1))

    @property
    def epistemic(self) -> FloatArray:
        """Mutual information of the pair and the weights in nats, `[example]`: 0 for one draw."""
        if len(self.draws) == 1:
            return np.zeros(len(self))
        return np.maximum(self._best[2] - self.aleatoric, 0)

    @property
    def uncertainties(self) -> dict[str, FloatArray]:
        """Scores that order the answers, a number for each: `entropy`, `epistemic`, and 1 − `maximum_probability`."""
        return super().uncertainties | {"maximum_probability": 1 - self.confidence}

    def _fitting(self, labels: np.ndarray) -> np.ndarray:
        return fitting_labels(labels, (len(self), 2), "the first and last token", self.draws.shape[2] - 1)

    def wrong(self, labels: np.ndarray) -> np.ndarray | None:
        return np.asarray((self.predicted != labels).any(-1))

    def log_likelihood(self, labels: np.ndarray) -> FloatArray:
        where = np.broadcast_to(np.asarray(labels)[None, :, None], (len(self.draws), len(self), 1, 2))
        if self.log_draws is not None:
            return np.take_along_axis(self.log_draws, where, axis=2)[:, :, 0].sum(-1)
        chosen = np.take_along_axis(self.draws, where, axis=2)[:, :, 0]
        return np.log(np.maximum(chosen, np.finfo(np.float64).tiny)).sum(-1)

    def sample(self, seed: int | None = 0) -> np.ndarray:
        return sample_classes(np.moveaxis(self.draws, -1, -2), seed)

    def _statistics(self, labels: np.ndarray, observed: np.ndarray) -> dict[str, FloatArray]:
        """Means and sds of the first token and of the number of tokens."""
        first, length = labels[..., 0], labels[..., 1] - labels[..., 0] + 1
        return {
            f"{name} of the {what}": getattr(value, how)(-1)
            for what, value in (("first token", first), ("length", length))
            for name, how in (("mean", "mean"), ("sd", "std"))
        }

    def scores(self, labels: np.ndarray) -> dict[str, float]:
        """Return the NLL of first and last token; exact match and F1 (SQuAD's, on token positions instead of words)."""
        return {
            "nll": self.mixture_nll(self.log_likelihood(labels)),
            **span_scores(self.predicted, labels),
        }

    def to_pandas(self) -> "pd.DataFrame":
        """Return a table with a row per example: the most probable span, its probability, and the uncertainties."""
        import pandas as pd

        columns = {"start": self.predicted[:, 0], "end": self.predicted[:, 1], "p(span)": self.confidence}
        return pd.DataFrame(columns | uncertainty(self))


@dataclass(frozen=True, repr=False)
class AnswerPrediction(SpanPrediction):
    """Answers in the words of a context. Rows are windows of question and context; most questions have one.

    The answer to a question is the most probable span of its context's tokens in any of its windows. There is none if
    that is less probable than the first token of every window.

    Args:
        draws: Probabilities of each position to be the first and to be the last, `[draw, window, position, 2]`.
        max_length: Longest answer to consider, in tokens.
        log_draws: Logarithms of `draws`, or None.
        questions: The questions and contexts that the windows were cut from.
    """

    questions: Questions = field(kw_only=True)

    @checked()
    def allowed(self, example: Index) -> np.ndarray:
        """Return which positions an answer may end at, `[position]`: the tokens of the context."""
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
        """Probability that no window holds the answer, `[question]`: that of the first token, least over windows."""
        least = np.ones(len(self.questions.contexts))
        np.minimum.at(least, self.questions.question, self.average(self.draws[:, :, 0].prod(-1)))
        return least

    @cached_property
    def answers(self) -> list[str]:
        """The most probable answer to each question; empty if it is more probable that there is none."""
        return [
            self.questions.text(int(window), *self.predicted[window].tolist())
            if self.confidence[window] >= none
            else ""
            for window, none in zip(self.windows, self.no_answer, strict=True)
        ]

    def _settled_spans(
        self, tolerance: float, pairs: bool, components: Sequence[Component]
    ) -> tuple[np.ndarray, FloatArray]:
        """Return the same of windows; those of a question are settled together, if which of them answers it is, too."""
        found, best = super()._settled_spans(tolerance, pairs, components)
        question, none = self.questions.question, self.draws[:, :, 0].prod(-1)
        for number in range(len(self.questions.contexts)):
            windows = np.flatnonzero(question == number)
            least = windows[self.average(none[:, windows]).argmin()]
            options = np.concatenate([best[:, windows], none[:, [least]]], 1)
            texts = [self.questions.text(window, *self.predicted[window].tolist()) for window in windows.tolist()]
            answered = settled_answer(options, [*texts, ""], pairs, components, self.weights)
            found[windows] = found[windows].all() and answered
        return found, best

    def of_table(self, values: np.ndarray) -> np.ndarray:
        return values[self.windows]

    @property
    def answer_probs(self) -> FloatArray:
        """Probability of that answer, `[question]`."""
        return np.maximum(self.confidence[self.windows], self.no_answer)

    @property
    def uncertainties(self) -> dict[str, FloatArray]:
        """Scores that order the answers, `[question]` each: those of its window, and 1 − `maximum_probability`."""
        of_windows = super().uncertainties
        known = {name: of_windows[name][self.windows] for name in ("entropy", "epistemic")}
        return known | {"maximum_probability": 1 - self.answer_probs}

    def wrong(self, labels: np.ndarray) -> np.ndarray | None:
        """Return whether each answer is none of the right ones, `[question]`, by SQuAD's exact match."""
        if self.questions.answers is None:
            return None
        return ~answer_scores(self.answers, self.questions.answers)[0]

    def scores(self, labels: np.ndarray) -> dict[str, float]:
        """Return the NLL of a window's first and last token, SQuAD's exact match and F1, and `auroc_errors`.

        `auroc_errors` is the probability that a wrong answer has a lower confidence than a right one; NaN if all are
        right, or all wrong.
        """
        exact, f1 = answer_scores(self.answers, self.questions.answers or [])
        return {
            "nll": self.mixture_nll(self.log_likelihood(labels)),
            "exact_match": float(exact.mean()),
            "f1": float(f1.mean()),
            "auroc_errors": metrics.auroc_errors(-self.answer_probs, ~exact),
        }

    def to_pandas(self) -> "pd.DataFrame":
        """Return a table with a row per question: the answer, its probability, that of no answer, and uncertainties."""
        import pandas as pd

        columns = {"answer": self.answers, "p(answer)": self.answer_probs, "p(none)": self.no_answer}
        return pd.DataFrame(columns | {name: value[self.windows] for name, value in uncertainty(self).items()})


class Positions(dist.TorchDistribution):
    """Start and end of a span, independent: one event of two positions.

    Args:
        logits: `[…, position, 2]`.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = False

    def __init__(self, logits: Tensor):
        self.ends = dist.Categorical(logits=logits.transpose(-2, -1))
        super().__init__(logits.shape[:-2], (2,), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.ends.log_prob(value).sum(-1)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.ends.sample(sample_shape)


class QuestionAnswering(Likelihood):
    r"""First and last token of the answer: $p(i, j) = \mathrm{softmax}(f^{start})_i\, \mathrm{softmax}(f^{end})_j$.

    Labels: the first and last token, or columns `start_positions` and `end_positions`.
    Logits: start and end, `[batch, token]` each.

    Labels are `[start, end]`, or the two columns `start_positions` and `end_positions`. Padding has probability 0.
    (`transformers` halves the sum of the two losses; this is the log-likelihood of both.)
    """

    name = "question_answering"
    labels_are_places = True
    auto_class: ClassVar[str] = "AutoModelForQuestionAnswering"
    label_columns = ("start_positions", "end_positions")
    answer_columns = ("answers",)

    @classmethod
    def fitting(cls, logits: Tensor, labels: LabelValues, tokenizer: Tokenizer | None = None) -> "QuestionAnswering":
        return cls()

    def select(self, logits: TokenLogits, batch: Batch) -> TokenLogits:
        mask = batch.get("attention_mask")
        if mask is None:
            return logits
        return precise(logits).masked_fill((mask.to(logits.device) == 0)[..., None], -math.inf)

    def distribution(self, logits: TokenLogits) -> dist.Distribution:
        return Positions(precise(logits))

    def for_metrics(self, logits: TokenLogits, labels: Tensor) -> tuple[Any, Any]:
        return logits.unbind(-1), labels.unbind(-1)  # of starts and of ends

    def check_labels(self, labels: LabelValues) -> None:
        values = np.asarray(labels)
        if values.dtype.kind not in "iu" or values.ndim != 2 or values.shape[-1] != 2 or (values < 0).any():
            raise ValueError(
                f"Labels are {values.dtype} of shape {values.shape}; question answering needs the position of the "
                "answer's first and last token, from 0, for each example (those of the first token for no answer)."
            )

    def config(self) -> dict[str, Any]:
        return {}

    @classmethod
    def suggested_by(cls, columns: Sequence[str], label: Any) -> bool:
        return {*cls.label_columns} <= {*columns} or (questions.are_in(columns) and "answers" in columns)

    @classmethod
    def is_of(cls, model: nn.Module) -> bool:
        return is_a(model, "QUESTION_ANSWERING")

    @classmethod
    def fits(cls, model: nn.Module, logits: Tensor, labels: Tensor) -> bool:
        pairs = labels.dim() == 2 and labels.shape[-1] == 2 and not labels.is_floating_point()
        return pairs and logits.dim() == 3 and is_a(model, "QUESTION_ANSWERING")

    @classmethod
    def columns_read(cls, columns: Sequence[str]) -> dict[str, list[str]]:
        return {name: [name] for name in ("question", "context", "answers") if name in columns}

    @classmethod
    def reads(cls, columns: Sequence[str], model: nn.Module) -> bool:
        return questions.are_in(columns) and is_a(model, "QUESTION_ANSWERING")

    @classmethod
    def read(cls, table: "Dataset", reader: Reader) -> tuple[list[dict[str, Any]], Questions]:
        return questions.read(table, reader.needed_tokenizer(), reader.name)

    def alike(self, logits: Sequence[np.ndarray]) -> list[np.ndarray]:
        longest = max(values.shape[2] for values in logits)
        # Positions past the end of an example are as impossible as padding.
        return [
            np.pad(values, ((0, 0), (0, 0), (0, longest - values.shape[2]), (0, 0)), constant_values=-np.inf)
            for values in logits
        ]

    def predict(self, outputs: Outputs, temperature: float = 1.0, class_names: Names = None) -> BasePrediction:
        logits = np.moveaxis(outputs.logits, -1, -2)
        draws, log_draws = (
            np.moveaxis(each(logits, temperature), -2, -1) for each in (metrics.softmax, metrics.log_softmax)
        )
        if outputs.context:
            return AnswerPrediction(draws, log_draws=log_draws, questions=outputs.context)
        return SpanPrediction(draws, log_draws=log_draws)
