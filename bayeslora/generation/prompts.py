"""Turn prompts into a model's inputs."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayeslora.networks import forward_parameters, vocabulary
from bayeslora.tasks import chat, conversations, dialogues
from bayeslora.types import Tokenizer


class Encoded(dict[str, Tensor]):
    """The model's inputs for some prompts.

    Attributes:
        ends: Tokens that end what is written, beside those that the model knows.
    """

    ends: tuple[int, ...] = ()


def encode(inputs: Any, model: nn.Module, tokenizer: Tokenizer | None = None) -> Encoded:
    """Turn prompts into the model's inputs, with a mask of their padding, on the left if they are to be continued.

    Args:
        inputs: A text or texts; token ids, as an array or a list for each prompt; a mapping of the model's inputs; or
            conversations: a list of messages, a list of such lists, or a record, records or a table with the columns
            that `fit` reads as conversations. What the assistant says last is left out, and is to be written.
        model: The model.
        tokenizer: For texts. It is not changed.

    Raises:
        ValueError: If the model does not write text; if there is no prompt, or no tokenizer for texts; if token ids are
            not given as a row for each prompt; if the mapping has no `input_ids`, or has the start of the text to
            write; or if prompts to be continued are padded on the right.
    """
    writes: Any = getattr(model, "can_generate", bool)
    if not writes():
        raise ValueError(
            f"{type(model).__name__} does not write text: fit a causal language model or an encoder-decoder, such as "
            "AutoModelForCausalLM or AutoModelForSeq2SeqLM loads, with likelihood='causal_lm' or 'seq2seq_lm'."
        )
    left = not is_encoder_decoder(model)
    inputs = [inputs] if isinstance(inputs, str) else inputs
    records = _records(inputs)
    ends: Sequence[int] = ()
    if records is not None:
        inputs, ends = _asked(records, tokenizer, left)
    if len(inputs) == 0:
        raise ValueError("inputs has no prompts: give at least one.")
    if not isinstance(inputs, Mapping):
        inputs = list(inputs)
        are_texts = [isinstance(prompt, str) for prompt in inputs]
        if any(are_texts) and not all(are_texts):
            row = are_texts.index(False)
            kind = type(inputs[row]).__name__
            raise ValueError(f"inputs: prompt {row} is a {kind}, and others are texts: give texts alone.")
        inputs = _tokenized(inputs, tokenizer, left) if all(are_texts) else _padded(inputs, left)
    parameters = forward_parameters(model)
    encoded = Encoded({name: _tensor(name, value) for name, value in inputs.items() if name in parameters})
    encoded.ends = tuple(ends)
    if "input_ids" not in encoded or "decoder_input_ids" in encoded:
        raise ValueError(
            f"inputs has {', '.join(map(str, inputs))}: give 'input_ids', and what else the model reads, but not what "
            "it is to write."
        )
    ids, size = encoded["input_ids"], vocabulary(model)
    if ids.dim() == 2 and ids.shape[1] == 0:
        raise ValueError("inputs: a prompt has no tokens, and there is nothing to continue: give one token at least.")
    if ids.dim() != 2 or ids.numel() == 0 or ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(
            f"inputs: 'input_ids' is {tuple(ids.shape)}, {ids.dtype}: give whole numbers, [prompt, token]."
        )
    if size is not None and not 0 <= int(ids.min()) <= int(ids.max()) < size:
        raise ValueError(
            f"inputs: token ids range from {int(ids.min())} to {int(ids.max())}, and the model has {size} "
            f"tokens, 0 to {size - 1}: use the model's own tokenizer."
        )
    encoded.setdefault("attention_mask", torch.ones_like(encoded["input_ids"]))
    empty = (~encoded["attention_mask"].bool().any(1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"inputs: prompt {empty[0]} has no tokens, and there is nothing to continue.")
    if left and not bool(encoded["attention_mask"][:, -1].all()):
        raise ValueError("inputs: prompts end in padding, which the model would continue: pad them on the left.")
    return encoded


def repeated(prompts: Encoded, times: int) -> Encoded:
    """Return every prompt so many times in a row."""
    many = Encoded({name: value.repeat_interleave(times, 0) for name, value in prompts.items()})
    many.ends = prompts.ends
    return many


def _records(inputs: Any) -> list[Mapping[str, Any]] | None:
    """Return conversations as rows of a table; None of prompts in any other form."""
    if hasattr(inputs, "to_dict") and hasattr(inputs, "iloc") and hasattr(inputs, "columns"):
        inputs = inputs.to_dict("records")
    elif hasattr(inputs, "column_names"):
        inputs = list(inputs)
    if isinstance(inputs, Mapping):
        columns = conversations.columns_in(inputs, answered=False)
        if not columns or "input_ids" in inputs:
            return None
        if all(isinstance(inputs[name], str | None) for name in columns) or conversations.are_messages(
            inputs[columns[-1]]
        ):
            return [inputs]
        values = [inputs[name] for name in columns]
        return [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]
    if not isinstance(inputs, list | tuple) or not inputs:
        return None
    if conversations.are_messages(inputs):
        return [{"messages": inputs}]
    if all(conversations.are_messages(each) for each in inputs):
        return [{"messages": each} for each in inputs]
    return list(inputs) if all(isinstance(each, Mapping) for each in inputs) else None


def _asked(
    records: Sequence[Mapping[str, Any]], tokenizer: Tokenizer | None, left: bool
) -> tuple[list[list[int]], list[int]]:
    """Return what the model is to answer, as tokens, and the tokens that end an answer."""
    if tokenizer is None:
        raise ValueError("inputs are conversations, and the posterior has no tokenizer: fit with tokenizer=….")
    ids, is_chat = [], False
    for number, record in enumerate(records):
        where = f"inputs, row {number}" if len(records) > 1 else "inputs"
        if not conversations.columns_in(record, answered=False):
            raise ValueError(f"{where} has {', '.join(map(str, record))}: give messages, or a prompt.")
        talk = conversations.read(record, where, answered=False)
        is_chat |= not talk.is_plain
        ids.append(chat.prompt(talk, tokenizer, where) if left else dialogues.to_answer(talk, tokenizer, where))
    return ids, chat.ends(tokenizer) if is_chat and left else []


def _tokenized(texts: list[str], tokenizer: Tokenizer | None, left: bool) -> Mapping[str, Any]:
    if tokenizer is None:
        raise ValueError("inputs is text, and the posterior has no tokenizer: fit with tokenizer=…, or give ids.")
    if left:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.padding_side = "left"
    return tokenizer(texts, padding=True, return_tensors="pt")


def _padded(prompts: Sequence[Any], left: bool) -> Mapping[str, Any]:
    """Pad token ids of any lengths; the value of padding does not matter, because it is masked."""
    rows = [_tensor(f"prompt {index}", prompt) for index, prompt in enumerate(prompts)]
    if any(row.dim() == 1 and len(row) == 0 for row in rows):
        empty = next(index for index, row in enumerate(rows) if row.dim() == 1 and len(row) == 0)
        raise ValueError(f"inputs: prompt {empty} has no tokens, and there is nothing to continue.")
    if any(row.dim() != 1 or row.is_floating_point() or row.dtype == torch.bool for row in rows):
        raise ValueError(
            "inputs: a prompt is not a row of token ids: give a list of whole numbers for each prompt, or texts."
        )
    longest = max(map(len, rows))
    gaps = [(longest - len(row), 0) if left else (0, longest - len(row)) for row in rows]
    return {
        "input_ids": torch.stack([F.pad(row, gap) for row, gap in zip(rows, gaps, strict=True)]),
        "attention_mask": torch.stack([F.pad(torch.ones_like(row), g) for row, g in zip(rows, gaps, strict=True)]),
    }


def _tensor(name: str, value: Any) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(
            f"inputs: {name} is a {type(value).__name__} that is not an array of numbers: give a list of token ids, or "
            "texts."
        ) from None


def is_encoder_decoder(model: nn.Module) -> bool:
    config: Any = model.config
    return bool(config.is_encoder_decoder)
