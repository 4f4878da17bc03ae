"""One of several answers per prompt, given by the next token of a causal language model."""

import logging
import string
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayeslora.contracts import Natural, checked
from bayeslora.networks import continues
from bayeslora.tasks import choices
from bayeslora.tasks.base import Likelihood, Reader
from bayeslora.tasks.classification import Categorical
from bayeslora.types import Batch, LabelValues, Logits, Tokenizer

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)


class AnswerLetters(Categorical):
    r"""One of several answers per prompt: the next token of a causal language model, restricted to their letters.

    Labels: the number of an answer.
    Logits: those of the next token, `[batch, token, vocabulary]`.

    Args:
        token_ids: The token of each answer.
    """

    name = "answer_letters"
    weighs_classes = True
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    up_to_constant = True
    answer_columns = choices.KEYS
    takes_shots = True

    @checked()
    def __init__(self, token_ids: Sequence[Natural]):
        if len(set(token_ids)) < 2 or len(set(token_ids)) < len(token_ids):
            raise ValueError(f"token_ids={list(token_ids)}: give two or more different tokens, one for each answer.")
        super().__init__(len(token_ids))
        self.token_ids = list(token_ids)

    @classmethod
    def fitting(cls, logits: Tensor, labels: LabelValues, tokenizer: Tokenizer | None = None) -> Likelihood:
        if tokenizer is None:
            raise ValueError(
                "Without a tokenizer it is not known which tokens stand for the answers: pass tokenizer=…, or "
                "likelihood=AnswerLetters(token_ids=[…])."
            )
        count = max(int(np.max(np.asarray(labels))) + 1, 2)
        return cls.of(tokenizer, [f" {letter}" for letter in string.ascii_uppercase[:count]])

    @classmethod
    def of(cls, tokenizer: Tokenizer, answers: Sequence[str]) -> "AnswerLetters":
        """Make the likelihood of some answers, such as `" A"`, `" B"`, `" C"`.

        Of an answer of several tokens, the first that tells it from all others is read; a space of its own is none.

        Raises:
            ValueError: If no token tells all answers apart.
        """
        written = []
        for answer in answers:
            ids = list(tokenizer(answer, add_special_tokens=False)["input_ids"])
            blank = [not str(tokenizer.decode([token])).strip() for token in ids]
            written.append(ids[blank.index(False) if False in blank else 0 :])
        for tokens in zip(*written, strict=False):
            if len({*tokens}) == len(tokens) > 1:
                return cls(tokens)
        raise ValueError(
            f"answers={list(answers)!r:.100}: no token tells them all apart: give letters, or other words."
        )

    @property
    def num_labels(self) -> int | None:
        return None

    def select(self, logits: Float[Tensor, "*draw batch token vocabulary"], batch: Batch) -> Logits:
        """Return the logits of the answers after the last token that is not padding."""
        last = torch.full((logits.shape[-3],), logits.shape[-2] - 1, device=logits.device)
        mask = batch.get("attention_mask")
        if mask is not None:
            last = (mask.to(logits.device) * torch.arange(mask.shape[-1], device=logits.device)).argmax(-1)
        ids = torch.as_tensor(self.token_ids, device=logits.device)
        return logits[..., torch.arange(len(last), device=logits.device), last, :][..., ids]

    def config(self) -> dict[str, Any]:
        return {"token_ids": self.token_ids}

    @classmethod
    def fits(cls, model: nn.Module, logits: Tensor, labels: Tensor) -> bool:
        return logits.dim() == 3 and labels.dim() == 1 and continues(model)

    @classmethod
    def columns_read(cls, columns: Sequence[str]) -> dict[str, list[str]]:
        return choices.columns_read(columns)

    @classmethod
    def reads(cls, columns: Sequence[str], model: nn.Module) -> bool:
        return choices.are_in(columns) and continues(model)

    @classmethod
    def read(cls, table: "Dataset", reader: Reader) -> tuple[list[dict[str, Any]], None]:
        """Turn each question into one prompt that lists its choices, with a letter before each, after the shots.

        What does not fit is cut from the left: whole shots, then the beginning of the question.

        Raises:
            ValueError: If the choices alone do not fit.
        """
        prompts, texts, labels = choices.read(table, reader.name)
        reader.choices = tuple(map(len, texts))
        return choices.labelled(_tokens([*map(prompt_with_letters, prompts, texts)], texts, reader), labels), None

    def check_read(self, reader: Reader) -> None:
        most = max(reader.choices, default=0)
        if most > self.num_classes:
            raise ValueError(
                f"{reader.name}: a question has {most} choices, and the likelihood knows {self.num_classes} "
                "letters: leave such questions out, or fit with AnswerLetters.of(tokenizer, [' A', ' B', …])."
            )
        fewer = sum(count < self.num_classes for count in reader.choices)
        if fewer:
            logger.warning(
                "%s: %d of %d questions have fewer choices than the %d letters of the fit, of which each gets some "
                "probability: leave such questions out, or use a multiple-choice model.",
                *(reader.name, fewer, len(reader.choices), self.num_classes),
            )

    @classmethod
    def shots(cls, table: "Dataset") -> tuple[str, ...]:
        """Return a text for each row of a table of questions: the prompt, and the letter of the right choice.

        Raises:
            ValueError: If a row has no right choice.
        """
        prompts, texts, labels = choices.read(table, "shots")
        if labels is None:
            raise ValueError("shots need their right choices, in a column 'answerKey' or 'answer'.")
        written = map(prompt_with_letters, prompts, texts)
        return tuple(f"{text} {chr(ord('A') + label)}" for text, label in zip(written, labels, strict=True))


def prompt_with_letters(prompt: str, choices: Sequence[str]) -> str:
    """Return a prompt whose next token is the letter of a choice."""
    lines = [f"{chr(ord('A') + index)}. {text}" for index, text in enumerate(choices)]
    return "\n".join([prompt, *lines, "Answer:"])


def _tokens(prompts: Sequence[str], texts: Sequence[Sequence[str]], reader: Reader) -> list[dict[str, Any]]:
    """Return the inputs of prompts whose ends, with the choices, are never cut.

    Args:
        prompts: As `prompt_with_letters` writes them.
        texts: Their choices.
        reader: The tokenizer, and the shots that come before every prompt.
    """
    tokenizer: Any = reader.needed_tokenizer()
    longest, begin, end = tokenizer.model_max_length, tokenizer.bos_token_id, tokenizer.eos_token_id
    rows, cut, fewer = [], 0, 0
    for number, (prompt, listed) in enumerate(zip(prompts, texts, strict=True)):
        for first in range(len(reader.shots) + 1):
            ids = list(tokenizer("\n\n".join([*reader.shots[first:], prompt]), verbose=False)["input_ids"])
            ids = ids[:-1] if len(ids) > 1 and ids[-1] == end else ids  # nothing follows what ends a text
            if len(ids) <= longest:
                break
        fewer += first > 0
        if len(ids) > longest:
            head = 1 if begin is not None and ids[0] == begin else 0
            least = head + len(tokenizer(prompt_with_letters("", listed), add_special_tokens=False)["input_ids"])
            if least > longest:
                raise ValueError(
                    f"{reader.name}, row {number}: the choices have {least} tokens, and {longest} can be read: shorten "
                    "them, or leave the row out."
                )
            ids, cut = [*ids[:head], *ids[head + len(ids) - longest :]], cut + 1
        inputs = {"input_ids": ids, "attention_mask": [1] * len(ids)}
        rows.append({name: value for name, value in inputs.items() if name in reader.parameters})
    if cut or fewer:
        logger.warning(
            "%s: of %d questions, %d are too long for all shots, and the beginnings of %d are left out: %d tokens fit.",
            *(reader.name, len(rows), fewer, cut, longest),
        )
    return rows
