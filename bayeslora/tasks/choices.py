"""Questions with choices in their published form, turned into a network's inputs."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bayeslora.tasks.checking import REPAIR, check_texts
from bayeslora.types import Tokenizer

if TYPE_CHECKING:
    from datasets import Dataset

PROMPTS = ("passage", "article", "context", "premise", "question", "question_stem", "ctx", "goal", "sent1", "sent2")
"""Columns that make up the question, in this order."""

CHOICES = ("choices", "endings", "options")
NUMBERED_CHOICE = re.compile(r"(choice|ending|option|sol)_?\d+")
KEYS = ("answerKey", "answer")
"""Columns that hold the right choice, if `labels` does not: its letter or name, its number from 0, or its text."""


def are_in(columns: Sequence[str]) -> bool:
    """Return whether a table has questions and choices."""
    return any(name in CHOICES or NUMBERED_CHOICE.fullmatch(name) for name in columns)


def read(table: "Dataset", name: str = "data") -> tuple[list[str], list[list[str]], list[int] | None]:
    """Read questions, their choices, and the numbers of the right choices.

    Args:
        table: Columns of `PROMPTS`; `choices`, `endings` or `options`, lists of texts or `{"text": […], "label": […]}`,
            or one column for each choice (`ending0`, `ending1`, …); and the right one's number in `labels`, or its
            letter, number from 0 or text in `answerKey` or `answer`.
        name: What to call the data in messages.

    Raises:
        ValueError: If there is no question, a text is missing, or the right choice is not among the choices.
    """
    columns = table.column_names
    parts = [part for part in PROMPTS if part in columns and not (part == "question_stem" and "question" in columns)]
    if not parts:
        raise ValueError(
            f"{name} has choices but no question: name its column 'question'. Its columns are {', '.join(columns)}."
        )
    for part in parts:
        check_texts(name, repr(part), table[part])
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
    for row, texts in enumerate(choices):
        if not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{name}, row {row}: a choice is missing or not a text in {texts!r:.80}. {REPAIR}.")
    key = next((column for column in KEYS if column in columns), None)
    if "labels" in columns or key is None:
        return prompts, choices, [int(label) for label in table["labels"]] if "labels" in columns else None
    labels = []
    for row, (right, names, texts) in enumerate(zip(table[key], keys, choices, strict=True)):
        known = names or [chr(ord("A") + index) for index in range(len(texts))]
        number = _number(right, known, texts)
        if number is None:
            raise ValueError(f"{name}, row {row}: the right choice is {right!r}, and the choices are {known}.")
        labels.append(number)
    return prompts, choices, labels


def _number(right: Any, known: Sequence[str], texts: Sequence[str]) -> int | None:
    """Return the number of the right choice, given by its name, by its number from 0, or by its text; None if by none.

    A name counts before a text: `"B"` is the second choice, whatever the texts are.
    """
    if isinstance(right, int) and not isinstance(right, bool):
        return right if 0 <= right < len(texts) else None
    if isinstance(right, str):
        for names in (known, texts):
            if [*names].count(right.strip()) == 1:
                return [*names].index(right.strip())
    return None


def encode(prompts: Sequence[str], choices: Sequence[Sequence[str]], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Encode a sequence for each choice, the prompt and the choice as a pair; a missing choice is all padding."""
    count = max(map(len, choices))
    rows = []
    for prompt, texts in zip(prompts, choices, strict=True):
        encoded = tokenizer([prompt] * len(texts), list(texts), truncation=True)
        missing = {key: tokenizer.pad_token_id if key == "input_ids" else 0 for key in encoded}
        rows.append({key: [*encoded[key], *[[missing[key]]] * (count - len(texts))] for key in encoded})
    return rows


def labelled(rows: list[dict[str, Any]], labels: Sequence[int] | None) -> list[dict[str, Any]]:
    """Return the rows with their labels, if those are known."""
    return rows if labels is None else [{**row, "labels": label} for row, label in zip(rows, labels, strict=True)]
