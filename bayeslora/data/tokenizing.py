"""Texts as the numbers of their tokens."""

import copy
from collections.abc import Sequence
from typing import Any

from bayeslora.types import Batch, Tokenizer


def encoded_labels(rows: Batch, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the labels of rows, which are texts, as tokens."""
    return {"labels": tokenizer(text_target=list(rows["labels"]), truncation=True)["input_ids"]}


def encoded(rows: Batch, tokenizer: Tokenizer, columns: Sequence[str]) -> Any:
    """Return what a tokenizer makes of one or two columns of texts."""
    return tokenizer(*(rows[name] for name in columns), truncation=True)


def cutting(tokenizer: Tokenizer, longest: int | None) -> Tokenizer:
    """Return a tokenizer that cuts texts to what a network reads, if it would let longer ones pass."""
    if longest is None or not tokenizer.model_max_length > longest:
        return tokenizer
    tokenizer = copy.copy(tokenizer)  # with the same words
    tokenizer.model_max_length = longest
    return tokenizer
