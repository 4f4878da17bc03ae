"""Several answers to each prompt, and how much they, and the draws that wrote them, disagree."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from jaxtyping import Int

from bayeslora.contracts import checked
from bayeslora.generation.meaning import meanings
from bayeslora.generation.text import Generation
from bayeslora.metrics import FloatArray

if TYPE_CHECKING:
    import pandas as pd

Weights: TypeAlias = Literal["probability", "frequency", "monte_carlo"]
"""How the probability of a meaning is estimated."""


@dataclass(frozen=True)
class Answers:
    r"""Texts sampled from draws of the weights, and the uncertainty about a prompt's whole answer.

    Of prompt $x$ there are $N$ texts $y_n$ of $L_n$ tokens, the last of which ends the text. Each is sampled from one
    of $S$ draws and scored under all of them, so that they are samples of the mixture

    $$p(y \mid x) = \frac1S \sum_s p_s(y \mid x), \qquad p_s(y \mid x) = \prod_t p_s(y_t \mid y_{<t}, x),$$

    in which one draw writes a whole text. Uncertainties are in nats, `[prompt]`; with `per_token` every text's
    logarithm is divided by $L_n$, so that long answers are not uncertain for their length.

    Args:
        generation: The texts.
        writer: The draw that wrote each text, `[text]`.
        meaning: The number of each text's meaning among those of its prompt, `[text, prompt]`.

    References:
        Malinin & Gales (2021), [Uncertainty Estimation in Autoregressive Structured
        Prediction](https://arxiv.org/abs/2002.07650); Kuhn et al. (2023), [Semantic
        Uncertainty](https://arxiv.org/abs/2302.09664); Farquhar et al. (2024), [Detecting hallucinations in large
        language models using semantic entropy](https://doi.org/10.1038/s41586-024-07421-0).
    """

    generation: Generation
    writer: Int[np.ndarray, " text"]
    meaning: Int[np.ndarray, "text prompt"]

    @property
    def texts(self) -> tuple[tuple[str, ...], ...]:
        """The texts, `[text][prompt]`."""
        assert self.generation.texts is not None
        return self.generation.texts

    @property
    def lengths(self) -> np.ndarray:
        """$L_n$: tokens of each text, with the one that ends it, `[text, prompt]`."""
        return self.generation.written.sum(-1)

    @property
    def log_probs(self) -> FloatArray:
        r"""$\ln p_s(y_n)$, `[draw, text, prompt]`."""
        return self.generation.log_probs

    @property
    def log_prob(self) -> FloatArray:
        r"""$\ln p(y_n)$, the logarithm of the mean probability over draws, `[text, prompt]`."""
        return self.generation.log_prob

    @property
    def log_prob_per_token(self) -> FloatArray:
        r"""$\frac1{L_n} \ln p(y_n)$, `[text, prompt]`."""
        return self.log_prob / np.maximum(self.lengths, 1)

    def _mean(self, values: FloatArray, per_token: bool) -> FloatArray:
        return (values / np.maximum(self.lengths, 1) if per_token else values).mean(0)

    @checked()
    def predictive_entropy(self, per_token: bool = True) -> FloatArray:
        r"""Estimate the entropy of the answer, $-\frac1N \sum_n \ln p(y_n)$, `[prompt]`."""
        return -self._mean(self.log_prob, per_token)

    @checked()
    def mutual_information(self, per_token: bool = True) -> FloatArray:
        r"""Estimate the mutual information of the answer and the weights, `[prompt]`; 0 for one draw, at most $\ln S$.

        $$I = \frac1N \sum_n \sum_s r_{ns} \ln \frac{p_s(y_n)}{p(y_n)}, \qquad
        r_{ns} = \frac{p_s(y_n)}{\sum_{s'} p_{s'}(y_n)}.$$

        It is the knowledge uncertainty of Malinin & Gales (2021), averaged over the draws that may have written each
        text, so that no text's term is negative.
        """
        ratio = self.log_probs - self.log_prob
        responsibility = np.exp(ratio) / len(self.log_probs)
        terms = (responsibility * np.where(responsibility > 0, ratio, 0)).sum(0)
        return self._mean(np.maximum(terms, 0), per_token)

    @checked()
    def disagreement(self) -> FloatArray:
        """Return which share of pairs of texts by different draws differ in meaning, `[prompt]`; 0 for one draw."""
        others = self.writer[:, None] != self.writer
        differ = self.meaning[:, None] != self.meaning
        return (differ & others[..., None]).sum((0, 1)) / max(int(others.sum()), 1)

    @checked()
    def semantic_entropy(self, weights: Weights = "probability") -> FloatArray:
        r"""Estimate the entropy of the answer's meaning, `[prompt]`; at most that of the texts.

        Args:
            weights: `"probability"`: $-\sum_c P_c \ln P_c$ over meanings $c$, where $P_c$ is the sum of $p(y)$ over the
                different texts of that meaning, divided by that over all texts (Farquhar et al. 2024).
                `"frequency"`: the same, where $P_c$ is the share of texts of that meaning, for which no probability is
                needed. `"monte_carlo"`: $-\frac1N \sum_n \ln p(c_n)$, where $p(c)$ is the sum of $p(y)$ over the
                different texts of meaning $c$, and $c_n$ that of text $n$ (Kuhn et al. 2023).
        """
        return np.asarray([self._of_meanings(prompt, weights) for prompt in range(self.meaning.shape[1])])

    def _of_meanings(self, prompt: int, weights: Weights) -> float:
        meaning = self.meaning[:, prompt]
        counts = np.bincount(meaning)
        if weights == "frequency":
            shares = counts / counts.sum()
            return 0.0 - float((shares * np.log(shares)).sum())
        log_probs = self.meaning_log_probs(prompt)
        if weights == "monte_carlo":
            return float(-log_probs[meaning].mean())
        normalised = log_probs - np.logaddexp.reduce(log_probs)
        return 0.0 - float((np.exp(normalised) * normalised).sum())  # and never −0

    @checked()
    def meaning_log_probs(self, prompt: int) -> FloatArray:
        """Return the logarithm of the summed probability of the different texts of each meaning, `[meaning]`."""
        kept, meaning = self.generation.written[:, prompt], self.meaning[:, prompt]
        rows = [tuple(tokens[own]) for tokens, own in zip(self.generation.tokens[:, prompt], kept, strict=True)]
        found = np.full(meaning.max() + 1, -math.inf)
        for number in [rows.index(row) for row in dict.fromkeys(rows)]:  # one sampled twice counts once
            found[meaning[number]] = np.logaddexp(found[meaning[number]], self.log_prob[number, prompt])
        return found

    @cached_property
    def chosen(self) -> np.ndarray:
        """The text to give: the most probable one of the most probable meaning, `[prompt]`."""
        best = [int(self.meaning_log_probs(prompt).argmax()) for prompt in range(self.meaning.shape[1])]
        return np.where(self.meaning == best, self.log_prob, -math.inf).argmax(0)

    @checked()
    def to_pandas(self) -> "pd.DataFrame":
        """Return a table with a row per prompt: the chosen text, its probability, and all uncertainties."""
        import pandas as pd

        prompts = np.arange(self.meaning.shape[1])
        table = pd.DataFrame(
            {
                "log_prob": self.log_prob[self.chosen, prompts],
                "log_prob_per_token": self.log_prob_per_token[self.chosen, prompts],
                "meanings": self.meaning.max(0) + 1,
                "predictive_entropy": self.predictive_entropy(),
                "mutual_information": self.mutual_information(),
                "disagreement": self.disagreement(),
                "semantic_entropy": self.semantic_entropy(),
            }
        )
        if self.generation.texts is not None:
            table.insert(0, "text", [self.texts[number][prompt] for prompt, number in enumerate(self.chosen)])
        return table


def grouped(written: Generation, samples: int, equal: Callable[[str, str], bool]) -> Answers:
    """Return what draws wrote for prompts that were each repeated so many times in a row, as answers to the prompts.

    Args:
        written: The texts, one of each draw for each repetition.
        samples: The repetitions.
        equal: Says whether two texts mean the same; without texts, their tokens have to be the same.
    """
    num_draws, repeated = written.tokens.shape[:2]

    def order(values: np.ndarray) -> np.ndarray:
        """From `[…, text, prompt × sample, token]` to `[…, text × sample, prompt, token]`."""
        parts = values.reshape(*values.shape[:-2], repeated // samples, samples, values.shape[-1])
        return np.moveaxis(parts, -2, -3).reshape(*values.shape[:-3], num_draws * samples, -1, values.shape[-1])

    names = ("tokens", "written", "token_log_probs", "entropy", "aleatoric")
    parts = {name: order(getattr(written, name)) for name in names}
    texts = None
    if written.texts is not None:
        texts = tuple(tuple(row[sample::samples]) for row in written.texts for sample in range(samples))
    generation = dataclasses.replace(written, **parts, texts=texts)
    shown = texts
    if shown is None:
        shown = tuple(
            tuple(str(row[own].tolist()) for row, own in zip(rows, kept, strict=True))
            for rows, kept in zip(generation.tokens, generation.written, strict=True)
        )
    compare = equal if texts is not None else str.__eq__
    meaning = np.stack([meanings([row[prompt] for row in shown], compare) for prompt in range(len(shown[0]))], axis=-1)
    return Answers(generation, np.repeat(np.arange(num_draws), samples), meaning)
