"""Questions about texts in their published form, turned into a network's inputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bayeslora.tasks.checking import check_texts
from bayeslora.types import Tokenizer

if TYPE_CHECKING:
    from datasets import Dataset

MAX_WINDOW = 384
"""Longest window of question and context, in tokens, unless the tokenizer's limit is lower."""


PARTS = ("text", "answer_start")
"""What is said of an answer."""


@dataclass(frozen=True)
class Questions:
    """Questions about contexts, cut into windows that a network can read.

    Args:
        contexts: The context of each question.
        answers: The right answers of each question, any of which will do (none: it has no answer); None if not known.
        question: Which question each window is about, `[window]`.
        offsets: For each window, first and past-the-last character in the context of every token, `[token, 2]`; −1
            for tokens that are not of the context.
    """

    contexts: list[str]
    answers: list[list[str]] | None
    question: np.ndarray
    offsets: list[np.ndarray]

    def text(self, window: int, first: int, last: int) -> str:
        """Return the text from one token of a window to another."""
        offsets = self.offsets[window]
        return self.contexts[self.question[window]][offsets[first, 0] : offsets[last, 1]]

    def take(self, windows: np.ndarray) -> "Questions":
        """Return the questions that some windows, `[window]` of truth values, are about, and these windows."""
        which, question = np.unique(self.question[windows], return_inverse=True)
        answers = None if self.answers is None else [self.answers[number] for number in which]
        offsets = [self.offsets[window] for window in np.flatnonzero(windows)]
        return Questions([self.contexts[number] for number in which], answers, question, offsets)


def are_in(columns: Sequence[str]) -> bool:
    """Return whether a table has questions and the contexts that hold their answers."""
    return "question" in columns and "context" in columns


def read(table: "Dataset", tokenizer: Tokenizer, name: str = "data") -> tuple[list[dict[str, Any]], Questions]:
    """Cut questions and contexts into windows, labelled with the first and the last token of the answer.

    A context that does not fit is cut into windows that overlap by a quarter. A window without the whole answer is
    labelled with its first token, twice. Of several answers the first is the label.

    Args:
        table: Columns `question` and `context`, and `answers`, `{"text": [...], "answer_start": [...]}`, if known.
        tokenizer: A tokenizer that knows where in the text its tokens are.
        name: What to call the data in messages.

    Raises:
        ValueError: If a text is missing, the tokenizer does not know, a question fills half a window, or an answer is
            not where the table says.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"{name}: finding answers in a text needs a fast tokenizer, which knows where its tokens are.")
    for column in ("question", "context"):
        check_texts(name, repr(column), table[column])
    questions, contexts = [text.strip() for text in table["question"]], list(table["context"])
    answers = None
    if "answers" in table.column_names:
        answers = [_answers(each, f"{name}, row {row}") for row, each in enumerate(table["answers"])]
    window = min(tokenizer.model_max_length, MAX_WINDOW)
    lengths = [len(ids) for ids in tokenizer(questions, add_special_tokens=False)["input_ids"]]
    if max(lengths) > window // 2:
        raise ValueError(
            f"{name}: the question in row {int(np.argmax(lengths))} has {max(lengths)} tokens, more than half a window "
            f"of {window}: shorten it."
        )
    encoded = tokenizer(
        *(questions, contexts),
        truncation="only_second",
        max_length=window,
        stride=window // 4,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    which = np.asarray(encoded.pop("overflow_to_sample_mapping"))
    offsets = []
    for index, spans in enumerate(encoded.pop("offset_mapping")):
        in_context = np.asarray([part == 1 for part in encoded.sequence_ids(index)])
        offsets.append(np.where(in_context[:, None], np.asarray(spans), -1))
    rows: list[dict[str, Any]] = [{key: encoded[key][index] for key in encoded} for index in range(len(which))]
    if answers is not None:
        for row, question, spans in zip(rows, which, offsets, strict=True):
            row["labels"] = _label(answers[question], contexts[question], spans, f"{name}, row {question}")
    texts = None if answers is None else [list(each["text"]) for each in answers]
    return rows, Questions(contexts, texts, which, offsets)


def _answers(given: Any, where: str) -> dict[str, list[Any]]:
    """Return the answers to a question as SQuAD's table has them; they may be a record each, or there may be none.

    Raises:
        ValueError: If they are something else.
    """
    if given is None:
        return {"text": [], "answer_start": []}
    if isinstance(given, list) and all(isinstance(each, Mapping) and {*PARTS} <= {*each} for each in given):
        given = {name: [each[name] for each in given] for name in PARTS}
    if not isinstance(given, Mapping) or not {*PARTS} <= {*given}:
        raise ValueError(
            f"{where}: 'answers' is {str(given)!r:.60}: give {{'text': [...], 'answer_start': [...]}}, the words of "
            "each answer and where they start in the context, in characters."
        )
    return {
        name: list(given[name])
        if isinstance(given[name], Sequence | np.ndarray) and not isinstance(given[name], str)
        else [given[name]]
        for name in PARTS
    }


def _label(answers: Mapping[str, Any], context: str, offsets: np.ndarray, where: str) -> list[int]:
    """Return the first and last token of the first answer in a window, or the window's first token twice."""
    if len(answers["text"]) == 0:
        return [0, 0]
    text, start = answers["text"][0], answers["answer_start"][0]
    if context[start : start + len(text)] != text:
        raise ValueError(f"{where}: the context has {context[start : start + len(text)]!r} where {text!r} should be.")
    known = offsets[:, 0] >= 0
    first = np.flatnonzero(known & (offsets[:, 0] <= start) & (offsets[:, 1] > start))
    last = np.flatnonzero(known & (offsets[:, 0] < start + len(text)) & (offsets[:, 1] >= start + len(text)))
    return [int(first[0]), int(last[0])] if len(first) and len(last) else [0, 0]
