"""Tables of questions as they are published, made into a network's inputs: answers to find in a text, and choices."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_WINDOW = 384
"""Longest window of question and context, in tokens; shorter if the tokenizer says so."""

PROMPTS = ("passage", "article", "context", "premise", "question", "question_stem", "ctx", "goal", "sent1", "sent2")
"""Columns of which a question with choices is made, in this order."""

CHOICES = ("choices", "endings", "options")
NUMBERED_CHOICE = re.compile(r"(choice|ending|option|sol)_?\d+")
KEYS = ("answerKey", "answer")
"""Columns with the letter or name of the right choice, where it is no number."""


@dataclass(frozen=True)
class Questions:
    """Questions about contexts, cut into windows that a network can read.

    Args:
        contexts: The context of each question.
        answers: Its right answers, any of which will do (none: it has no answer); None where they are not known.
        question: Which question each window is about, `[window]`.
        offsets: For each window, first and past-the-last character in the context of every token, `[token, 2]`; −1
            for tokens that are not of the context.
    """

    contexts: list[str]
    answers: list[list[str]] | None
    question: np.ndarray
    offsets: list[np.ndarray]

    def text(self, window: int, first: int, last: int) -> str:
        """The words from one token of a window to another."""
        offsets = self.offsets[window]
        return self.contexts[self.question[window]][offsets[first, 0] : offsets[last, 1]]


def is_questions(columns: Sequence[str]) -> bool:
    """Whether a table has questions and the contexts that hold their answers."""
    return "question" in columns and "context" in columns


def is_choices(columns: Sequence[str]) -> bool:
    """Whether a table has questions and choices."""
    return any(name in CHOICES or NUMBERED_CHOICE.fullmatch(name) for name in columns)


def read_questions(table: Any, tokenizer: Any, name: str = "data") -> tuple[list[dict[str, Any]], Questions]:
    """Windows of question and context, labelled with the first and the last token of the answer.

    A context that does not fit is cut into windows that overlap by a quarter. A window without the whole answer is
    labelled with its first token, twice. Of several answers the first is the label.

    Args:
        table: Columns `question` and `context`, and `answers`, `{"text": [...], "answer_start": [...]}`, where known.
        tokenizer: One that knows where in the text its tokens are.
        name: What to call the data in messages.

    Raises:
        ValueError: If the tokenizer does not know, a question fills half a window, or an answer is not where the table
            says.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"{name}: finding answers in a text needs a fast tokenizer, which knows where its tokens are.")
    questions, contexts = [text.strip() for text in table["question"]], list(table["context"])
    answers = list(table["answers"]) if "answers" in table.column_names else None
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


def _label(answers: Mapping[str, Any], context: str, offsets: np.ndarray, where: str) -> list[int]:
    """First and last token of the first answer in a window; the window's first token, twice, if it is not there."""
    if len(answers["text"]) == 0:
        return [0, 0]
    text, start = answers["text"][0], answers["answer_start"][0]
    if context[start : start + len(text)] != text:
        raise ValueError(f"{where}: the context has {context[start : start + len(text)]!r} where {text!r} should be.")
    known = offsets[:, 0] >= 0
    first = np.flatnonzero(known & (offsets[:, 0] <= start) & (offsets[:, 1] > start))
    last = np.flatnonzero(known & (offsets[:, 0] < start + len(text)) & (offsets[:, 1] >= start + len(text)))
    return [int(first[0]), int(last[0])] if len(first) and len(last) else [0, 0]


def read_choices(table: Any, name: str = "data") -> tuple[list[str], list[list[str]], list[int] | None]:
    """Questions, their choices, and the numbers of the right ones.

    Args:
        table: Columns of `PROMPTS`; `choices`, `endings` or `options`, lists of texts or `{"text": […], "label": […]}`,
            or one column for each choice (`ending0`, `ending1`, …); and the right one's number in `labels`, or its
            letter in `answerKey` or `answer`.
        name: What to call the data in messages.

    Raises:
        ValueError: If there is no question, or the right choice is not among the choices.
    """
    columns = table.column_names
    parts = [part for part in PROMPTS if part in columns and not (part == "question_stem" and "question" in columns)]
    if not parts:
        raise ValueError(
            f"{name} has choices and no question: call its column 'question'. It has {', '.join(columns)}."
        )
    prompts = [" ".join(texts) for texts in zip(*(table[part] for part in parts), strict=True)]
    listed = next((column for column in CHOICES if column in columns), None)
    if listed is not None:
        given = list(table[listed])
        keys = [list(each["label"]) if isinstance(each, Mapping) else None for each in given]
        choices = [list(each["text"]) if isinstance(each, Mapping) else list(each) for each in given]
    else:
        numbered = sorted(column for column in columns if NUMBERED_CHOICE.fullmatch(column))
        choices = [list(texts) for texts in zip(*(table[column] for column in numbered), strict=True)]
        keys = [None] * len(choices)
    key = next((column for column in KEYS if column in columns), None)
    if "labels" in columns or key is None:
        return prompts, choices, [int(label) for label in table["labels"]] if "labels" in columns else None
    labels = []
    for row, (right, names, texts) in enumerate(zip(table[key], keys, choices, strict=True)):
        known = names or [chr(ord("A") + index) for index in range(len(texts))]
        if right not in known:
            raise ValueError(f"{name}, row {row}: the right choice is {right!r}, and the choices are {known}.")
        labels.append(known.index(right))
    return prompts, choices, labels


def encode_choices(prompts: Sequence[str], choices: Sequence[Sequence[str]], tokenizer: Any) -> list[dict[str, Any]]:
    """A sequence for each choice, `prompt` and `choice` as a pair; missing ones are padding throughout."""
    count = max(map(len, choices))
    rows = []
    for prompt, texts in zip(prompts, choices, strict=True):
        encoded = tokenizer([prompt] * len(texts), list(texts), truncation=True)
        missing = {key: tokenizer.pad_token_id if key == "input_ids" else 0 for key in encoded}
        rows.append({key: [*encoded[key], *[[missing[key]]] * (count - len(texts))] for key in encoded})
    return rows


def prompt_with_letters(prompt: str, choices: Sequence[str]) -> str:
    """A prompt whose next token is the letter of a choice."""
    lines = [f"{chr(ord('A') + index)}. {text}" for index, text in enumerate(choices)]
    return "\n".join([prompt, *lines, "Answer:"])
