"""Texts that are cut into words, with a tag for each, in their published form, turned into a network's inputs."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bayeslora.tasks.checking import REPAIR, check_present
from bayeslora.types import IGNORED, Tokenizer

if TYPE_CHECKING:
    from datasets import Dataset

WORDS = ("tokens", "words")
"""Columns that hold the words of a text, as a list."""

TAGS = ("ner_tags", "tags", "ner", "pos_tags", "upos", "chunk_tags")
"""Columns that hold a tag for each word; if there are several, the first of these."""

TAG = re.compile(r"O|[BIESLUM][-_]\S+")
"""A tag that says whether a word begins, continues or ends something, or is outside of it."""


def are_in(columns: Sequence[str]) -> bool:
    """Return whether a table has texts that are cut into words."""
    return any(name in WORDS for name in columns)


def is_row(record: Mapping[str, Any]) -> bool:
    """Return whether a mapping is one row of such a table, and not its columns: its words are texts, not lists."""
    own = next((record[name] for name in WORDS if name in record), None)
    return isinstance(own, list | tuple) and len(own) > 0 and all(isinstance(each, str) for each in own)


def are_texts(columns: Sequence[str]) -> bool:
    """Return whether a table has texts that are neither cut into words nor turned into tokens."""
    return "text" in columns and "input_ids" not in columns and not are_in(columns)


def read(
    table: "Dataset", tokenizer: Tokenizer, parameters: Sequence[str], name: str = "data", mark: bool = False
) -> list[dict[str, Any]]:
    """Turn words into tokens; the first token of each word has its tag, and the others have −100, not observed.

    Args:
        table: A column of `WORDS`, and tags in `labels`, if they are known.
        tokenizer: A tokenizer that knows which word its tokens are of.
        parameters: The inputs that the network takes.
        name: What to call the data in messages.
        mark: Whether to label the first token of each word 0 where there are no tags.

    Raises:
        ValueError: If the tokenizer does not know, or a row has more or fewer tags than words.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"{name}: tags of words need a fast tokenizer, which knows which word a token is of.")
    column = next(column for column in WORDS if column in table.column_names)
    given = list(table[column])
    if whole := [each for each in given if isinstance(each, str)]:  # whose letters are not its words
        raise ValueError(f"{name}: {column!r} holds texts, such as {whole[0]!r:.60}: give the list of words of each.")
    words = [list(each or ()) for each in given]
    for index, texts in enumerate(words):
        if not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{name}, row {index}: a word is missing or not a text in {texts!r:.80}. {REPAIR}.")
    if "labels" in table.column_names:
        check_present(name, list(table["labels"]))
    tags = [list(each) for each in table["labels"]] if "labels" in table.column_names else None
    if tags is None and mark:
        tags = [[0] * len(each) for each in words]
    encoded = tokenizer(words, is_split_into_words=True, truncation=True)
    rows: list[dict[str, Any]] = []
    for index, texts in enumerate(words):
        row = {key: encoded[key][index] for key in encoded if key in parameters}
        if tags is not None:
            if len(tags[index]) != len(texts):
                raise ValueError(f"{name}, row {index}: there are {len(texts)} words and {len(tags[index])} tags.")
            places = encoded.word_ids(index)
            first = [
                place is not None and place != before for place, before in zip(places, [None, *places], strict=False)
            ]
            row["labels"] = [tags[index][place] if new else IGNORED for place, new in zip(places, first, strict=True)]
        rows.append(row)
    return rows
