"""Questions with choices in their published form, turned into a network's inputs."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bayeslora.tasks.checking import REPAIR, check_texts, is_missing
from bayeslora.types import Tokenizer

if TYPE_CHECKING:
    from datasets import Dataset

PROMPTS = (
    *("passage", "article", "context", "premise", "question", "question_stem", "prompt", "ctx", "goal"),
    *("sent1", "sent2"),
)
"""Columns that make up the question, in this order. Capitals and spaces do not matter in names."""

CHOICES = ("choices", "endings", "options")

ONE_OF_SEVERAL = re.compile(r"(choice|ending|option|opt|sol|answer)_?(\d+|[a-h])")
"""A column with one of the choices."""

KEYS = ("answerkey", "answer_key", "answer", "correct_answer", "correct_option", "correct_choice", "correct")
"""Columns that hold the right choice, if `labels` does not: its letter or name, its number, or its text."""


def plain_name(name: str) -> str:
    """Return a column's name without capitals and spaces."""
    return re.sub(r"[ -]+", "_", name.strip().casefold())


def columns_of(columns: Sequence[str]) -> list[str]:
    """Return the columns of choices: the one of lists, or those that hold one choice each, in their order; or none."""
    if listed := next((name for name in columns if plain_name(name) in CHOICES), None):
        return [listed]
    families: dict[str, list[tuple[int, str, str]]] = {}
    for name in columns:
        if found := ONE_OF_SEVERAL.fullmatch(plain_name(name)):
            number = int(found[2]) if found[2].isdecimal() else 0
            families.setdefault(found[1], []).append((number, found[2], name))
    letters = [name for name in map(chr, range(ord("A"), ord("H") + 1)) if name in columns]
    if len(letters) > 1 and letters[0] == "A" and any(plain_name(name) in PROMPTS for name in columns):
        families.setdefault("", [(0, name, name) for name in letters])
    return next(([name for *_, name in sorted(family)] for family in families.values() if len(family) > 1), [])


def are_in(columns: Sequence[str]) -> bool:
    """Return whether a table has questions and choices."""
    return bool(columns_of([name for name in columns if isinstance(name, str)]))


def columns_read(columns: Sequence[str]) -> dict[str, list[str]]:
    """Return the columns that are read, by what they are."""
    by_name = {plain_name(name): name for name in reversed(columns)}
    parts = [by_name[part] for part in PROMPTS if part in by_name]
    if {"question", "question_stem"} <= {*by_name}:
        parts.remove(by_name["question_stem"])
    key = [] if "labels" in columns else [by_name[key] for key in KEYS if key in by_name][:1]
    return {"question": parts, "choices": columns_of(columns), "answer": key}


def read(table: "Dataset", name: str = "data") -> tuple[list[str], list[list[str]], list[int] | None]:
    """Read questions, their choices, and the numbers of the right choices.

    Args:
        table: Columns of `PROMPTS`; `choices`, `endings` or `options`, lists of texts or `{"text": […], "label": […]}`,
            or one column for each choice (`ending0`, `Option 1`, `A`, …), of which the last may be missing in a row;
            and the right one in `labels` or a column of `KEYS`, as a number, a letter or name, or as its text. Numbers
            count from 0; or from 1, where none is 0 and one is the last, or an answer says the number of a column.
        name: What to call the data in messages.

    Raises:
        ValueError: If there is no question, a text is missing, or the right choice is not among the choices.
    """
    columns = columns_read(table.column_names)
    parts, among = columns["question"], columns["choices"]
    if not parts:
        raise ValueError(
            f"{name} has choices but no question: name its column 'question'. Its columns are "
            f"{', '.join(table.column_names)}."
        )
    for part in parts:
        check_texts(name, repr(part), table[part])
    prompts = [" ".join(texts) for texts in zip(*(table[part] for part in parts), strict=True)]
    if len(among) == 1:
        given = list(table[among[0]])
        both = [_listed(each, f"{name}, row {row}: {among[0]!r}") for row, each in enumerate(given)]
        keys, choices = [key for key, _ in both], [texts for _, texts in both]
    else:
        choices = [list(texts) for texts in zip(*(table[column] for column in among), strict=True)]
        keys = [None] * len(choices)
    for row, texts in enumerate(choices):
        while len(among) > 1 and len(texts) > 2 and texts[-1] is None:
            texts.pop()
        choices[row] = [_written(each) for each in texts]
        if not texts or not all(isinstance(text, str) for text in choices[row]):
            raise ValueError(f"{name}, row {row}: a choice is missing or not a text in {texts!r:.80}. {REPAIR}.")
    key = "labels" if "labels" in table.column_names else next(iter(columns["answer"]), None)
    if key is None:
        return prompts, choices, None
    return prompts, choices, _numbers(list(table[key]), keys, choices, among, key == "labels", name)


def _listed(given: Any, where: str) -> tuple[list[str] | None, list[Any]]:
    """Return the names of choices, if they have some, and the choices; a ValueError if they are one text.

    They are a list, `{"text": […], "label": […]}`, a mapping from names, or a text with bars, semicolons or line ends
    between them.
    """
    if isinstance(given, Mapping) and {"text", "label"} <= {*given}:
        return list(given["label"]), list(given["text"])
    if isinstance(given, Mapping):
        there = {key: text for key, text in given.items() if text is not None}  # a table gives each row all names
        return list(there), list(there.values())
    if not isinstance(given, str):
        return None, list(given or ())
    mark = next((mark for mark in "|;\n" if mark in given), None)
    if mark is None:
        raise ValueError(f"{where} is one text, {given!r:.60}: give a list of choices, or bars between them.")
    return None, [part.strip() for part in given.split(mark)]


def _written(value: Any) -> Any:
    """Return a number as a text, and anything else as it is."""
    if isinstance(value, int | float) and not is_missing(value):
        return f"{value:.12g}" if isinstance(value, float) else str(value)
    return value


def _numbers(
    given: Sequence[Any], keys: Sequence[Any], choices: Sequence[Sequence[str]], among: Sequence[str], are_labels: bool,
    name: str,
) -> list[int]:  # fmt: skip
    """Return the numbers of the right choices from 0; a ValueError if one is not among the choices."""
    found = [_named(right, known, texts, among) for right, known, texts in zip(given, keys, choices, strict=True)]
    numbers = [None if isinstance(right, bool) else _whole(right) for right in given]
    counted = [
        (number, len(texts)) for place, number, texts in zip(found, numbers, choices, strict=True) if place is None
    ]
    ends = [ONE_OF_SEVERAL.fullmatch(plain_name(column)) for column in among]
    says_number = not are_labels and ends[0] is not None and ends[0][2] == "1"
    from_one = all(number != 0 for number, _ in counted) and (
        says_number or any(number == count for number, count in counted)
    )
    written = [_place(_written(each), texts) for each, texts in zip(given, choices, strict=True)]
    beyond = any(number >= count + from_one for number, count in counted if number is not None)
    if beyond and None not in written:  # choices that are numbers themselves
        found = written
    right = []
    for row, (place, number, texts) in enumerate(zip(found, numbers, choices, strict=True)):
        place = number - from_one if place is None and number is not None else place
        if place is None or not 0 <= place < len(texts):
            known = keys[row] or [chr(ord("A") + index) for index in range(len(texts))]
            raise ValueError(f"{name}, row {row}: the right choice is {given[row]!r}, and the choices are {known}.")
        right.append(place)
    return right


def _named(right: Any, known: Sequence[str] | None, texts: Sequence[str], among: Sequence[str]) -> int | None:
    """Return the number of the right choice, given by its name, its column or its text; None if by none of these.

    A name counts before a text: `"B"` is the second choice, whatever the texts are.
    """
    if isinstance(right, float) and not right.is_integer():
        right = _written(right)
    if not isinstance(right, str):
        return None
    letters = [chr(ord("A") + index) for index in range(len(texts))]
    columns = [plain_name(column) for column in among] if len(among) > 1 else []
    right = right.strip()
    for names, said in (
        (known or letters, right),
        ([text.strip() for text in texts], right),
        (columns, plain_name(right)),
        (letters, right.strip("().: ").upper()),
    ):
        place = _place(said, names)
        if place is not None and place < len(texts):
            return place
    return None


def _place(said: Any, names: Sequence[str]) -> int | None:
    """Return where a name stands, if it does so once."""
    return [*names].index(said) if [*names].count(said) == 1 else None


def _whole(right: Any) -> int | None:
    """Return a whole number, also one that is written as a text or as 1.0; None if it is not one."""
    try:
        number = float(right)
    except (TypeError, ValueError):
        return None
    return int(number) if number.is_integer() else None


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
