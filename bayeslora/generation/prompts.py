"""Turn prompts into a model's inputs."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayeslora.networks import forward_parameters, vocabulary
from bayeslora.types import Tokenizer


def encode(inputs: Any, model: nn.Module, tokenizer: Tokenizer | None = None) -> dict[str, Tensor]:
    """Turn prompts into the model's inputs, with a mask of their padding, on the left if they are to be continued.

    Args:
        inputs: A text or texts; token ids, as an array or a list for each prompt; or a mapping of the model's inputs.
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
    encoded = {name: _tensor(name, value) for name, value in inputs.items() if name in parameters}
    if "input_ids" not in encoded or "decoder_input_ids" in encoded:
        raise ValueError(
            f"inputs has {', '.join(map(str, inputs))}: give 'input_ids', and what else the model reads, but not what "
            "it is to write."
        )
    ids, size = encoded["input_ids"], vocabulary(model)
    if ids.dim() != 2 or ids.numel() == 0 or ids.is_floating_point():
        raise ValueError(
            f"inputs: 'input_ids' is {tuple(ids.shape)}, {ids.dtype}: give whole numbers, [prompt, token]."
        )
    if size is not None and not 0 <= int(ids.min()) <= int(ids.max()) < size:
        raise ValueError(
            f"inputs: token ids range from {int(ids.min())} to {int(ids.max())}, and the model has {size} "
            f"tokens, 0 to {size - 1}: use the model's own tokenizer."
        )
    encoded.setdefault("attention_mask", torch.ones_like(encoded["input_ids"]))
    if left and not bool(encoded["attention_mask"][:, -1].all()):
        raise ValueError("inputs: prompts end in padding, which the model would continue: pad them on the left.")
    return encoded


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
    if any(row.dim() != 1 or len(row) == 0 or row.is_floating_point() for row in rows):
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
