"""The tokens of a vocabulary: language models."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayeslora.contracts import ArgumentError
from bayeslora.metrics import FloatArray
from bayeslora.networks import answers, continues, is_encoder_decoder
from bayeslora.tasks import conversations, dialogues
from bayeslora.tasks.base import Reader
from bayeslora.tasks.collecting import Collector, Rows
from bayeslora.tasks.prediction import BasePrediction, Names, uncertainty
from bayeslora.tasks.token_classification import NOTHING_OBSERVED, PerToken, is_per_token
from bayeslora.types import IGNORED, Batch

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class LanguagePrediction(BasePrediction):
    """How probable each observed token was, and how certain the model was before it.

    The probabilities of the whole vocabulary are summarised as they are computed, draw by draw.

    Args:
        draws: Probability of the observed token, per draw, `[draw, token]`.
        tokens: The observed token, `[token]`.
        most_probable: The most probable token of the mixture, `[token]`.
        mixture_entropy: Entropy of the mixture in nats, `[token]`.
        mean_entropy: Entropy per draw, averaged, in nats, `[token]`.
        sampled: A token from every draw's distribution, `[draw, token]`.
        rows: Positions of the tokens.
        log_draws: Logarithms of `draws`, or None.
    """

    per_draw: ClassVar[tuple[str, ...]] = ("draws", "log_draws", "sampled")
    draws: Float[np.ndarray, "draw token"]
    tokens: np.ndarray
    most_probable: np.ndarray
    mixture_entropy: FloatArray
    mean_entropy: FloatArray
    sampled: np.ndarray
    rows: Rows
    log_draws: Float[np.ndarray, "draw token"] | None = None

    @property
    def labels(self) -> np.ndarray:
        """The observed tokens, `[token]`."""
        return self.tokens

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
        """Probability of the observed token, averaged over draws, `[token]`."""
        return self.average(self.draws)

    @property
    def epistemic(self) -> FloatArray:
        """Mutual information of token and weights in nats, `[token]`: entropy − aleatoric, 0 for one draw."""
        # Rounding can make the difference of two sums over a vocabulary negative.
        return np.maximum(self.entropy - self.aleatoric, 0)

    def _fitting(self, labels: np.ndarray) -> np.ndarray:
        if not np.array_equal(labels, self.tokens):
            raise ArgumentError("labels are not the tokens that this prediction is of: give prediction.labels.")
        return labels

    def row_log_likelihood(self, labels: np.ndarray) -> FloatArray:
        if self.log_draws is not None:
            return self.log_draws
        return np.log(np.maximum(self.draws, np.finfo(np.float64).tiny))

    def log_likelihood(self, labels: np.ndarray) -> FloatArray:
        return self.rows.by_example(self.row_log_likelihood(labels))

    def sample(self, seed: int | None = 0) -> np.ndarray:
        return self.sampled

    def scores(self, labels: np.ndarray) -> dict[str, float]:
        """Return the NLL per example and per token, perplexity exp(NLL per token), and accuracy per token."""
        if not len(self.tokens):
            raise ValueError(f"{NOTHING_OBSERVED}.")
        per_token = self.mixture_nll(self.row_log_likelihood(labels))
        return {
            "accuracy": float((self.predicted == self.tokens).mean()),
            "nll": self.mixture_nll(self.log_likelihood(labels)),
            "nll_per_token": per_token,
            "perplexity": math.exp(min(per_token, 700.0)),
        }

    def to_pandas(self) -> "pd.DataFrame":
        """Return a table with a row per token: its place, its probability, the most probable token, uncertainties."""
        import pandas as pd

        columns = {"token": self.tokens, "p(token)": self.probs, "predicted": self.predicted}
        return self.rows.beside(pd.DataFrame(columns | uncertainty(self)))


class Summaries(Collector):
    """A collector that keeps a few numbers per token: logits of a vocabulary at all draws do not fit in memory."""

    likelihood: "LanguageModel"

    def __init__(self, likelihood: "LanguageModel", with_labels: bool, context: Any = None):
        super().__init__(likelihood, with_labels, context)
        self.parts: list[dict[str, np.ndarray]] = []

    def add(self, where: np.ndarray, batch: Batch, chunks: Iterator[Tensor]) -> None:
        if batch.get("labels") is None:
            raise ValueError(
                "A language model's prediction says how probable given tokens are, but the data has none: give a "
                "'labels' column."
            )
        targets = self.likelihood.targets(torch.as_tensor(batch["labels"]))
        seen = targets != IGNORED
        tokens = targets[seen]
        self.place(where, seen, self.likelihood.shift)
        total: Any = 0.0
        aleatoric: Any = 0.0
        draws, log_draws, sampled = [], [], []
        for logits in chunks:
            rows = logits[:, seen.to(logits.device)]
            rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
            probs = rows.softmax(-1)
            given = tokens.to(probs.device).expand(probs.shape[:-1])[..., None]
            log_draws.append((rows.gather(-1, given)[..., 0] - rows.logsumexp(-1)).cpu())
            draws.append(probs.gather(-1, given)[..., 0].cpu())
            sampled.append(torch.multinomial(probs.flatten(0, 1), 1).view(probs.shape[:-1]).cpu())
            shares = self.shares(sum(map(len, draws[:-1])), len(probs)).to(probs.device)[:, None]
            aleatoric = aleatoric + (shares * torch.special.entr(probs).sum(-1).double()).sum(0)
            total = total + (shares[..., None] * probs.double()).sum(0)
        num_draws = float(self.shares(0, sum(map(len, draws))).sum())
        mean = total / num_draws
        self.parts.append(
            {
                "draws": torch.cat(draws).double().numpy(),
                "log_draws": torch.cat(log_draws).double().numpy(),
                "tokens": tokens.numpy(),
                "most_probable": mean.argmax(-1).cpu().numpy(),
                "mixture_entropy": torch.special.entr(mean).sum(-1).cpu().numpy(),
                "mean_entropy": (aleatoric / num_draws).cpu().numpy(),
                "sampled": torch.cat(sampled).numpy(),
            }
        )

    def result(self) -> LanguagePrediction:
        parts, order = self.parts, self.order
        columns = {name: np.concatenate([part[name] for part in parts], axis=-1)[..., order] for name in parts[0]}
        return LanguagePrediction(**columns, rows=self.rows)


class LanguageModel(PerToken):
    """The tokens of a vocabulary, each given those before it (or, of a masked model, around it).

    A vocabulary is too large to keep every draw's probabilities: predictions are summarised token by token.
    """

    has_temperature = False
    reads_labels = True
    reads_rows = True

    @property
    def num_labels(self) -> int | None:
        return None

    @classmethod
    def reads(cls, columns: Sequence[str], model: nn.Module) -> bool:
        return bool(conversations.columns_in(columns)) and cls.is_of(model)

    @classmethod
    def fits(cls, model: nn.Module, logits: Tensor, labels: Tensor) -> bool:
        return is_per_token(logits, labels) and cls.is_of(model)

    def collector(self, with_labels: bool, context: Any = None) -> Summaries:
        return Summaries(self, with_labels, context)

    def predict(self, outputs: Any, temperature: float = 1.0, class_names: Names = None) -> BasePrediction:
        return outputs


class CausalLM(LanguageModel):
    """The next token, of a causal language model; tokens labelled −100, such as a prompt, are not observed.

    Labels: the tokens; −100 is not observed; without labels, the inputs.
    Logits: `[batch, token, vocabulary]`.

    Labels are at the position of the token itself, as in `transformers`; if the data has none, they are the inputs.

    Args:
        num_classes: Size of the vocabulary.
    """

    name = "causal_lm"
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    inputs_are_labels = True
    labels_tokens = True
    shift = 1

    @classmethod
    def suggested_by(cls, columns: Sequence[str], label: Any) -> bool:
        return (
            label is None and "input_ids" not in columns and conversations.are_lists(conversations.columns_in(columns))
        )

    @classmethod
    def is_of(cls, model: nn.Module) -> bool:
        return continues(model)

    @classmethod
    def read(cls, table: Iterable[Mapping[str, Any]], reader: Reader) -> tuple[list[dict[str, Any]], str]:
        """Turn instructions or conversations into tokens; those of answers are the labels."""
        return dialogues.continued(table, reader)


class Seq2SeqLM(LanguageModel):
    """The tokens that an encoder-decoder writes, or that a masked language model fills in; −100 is not observed.

    Labels: the tokens to write, or texts; −100 is not observed.
    Logits: `[batch, token, vocabulary]`.

    Args:
        num_classes: Size of the vocabulary.
    """

    name = "seq2seq_lm"
    auto_class: ClassVar[str] = "AutoModelForSeq2SeqLM"

    @classmethod
    def is_of(cls, model: nn.Module) -> bool:
        return answers(model)

    @classmethod
    def reads(cls, columns: Sequence[str], model: nn.Module) -> bool:
        return super().reads(columns, model) and is_encoder_decoder(model)

    @classmethod
    def read(cls, table: Iterable[Mapping[str, Any]], reader: Reader) -> tuple[list[dict[str, Any]], str]:
        """Turn instructions or conversations into what the encoder reads, and the last answer, which is the label."""
        return dialogues.answered(table, reader)
