"""Make batches of rows: pad tokens and their labels, or let a function of the user's make the batch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayeslora.data import checks
from bayeslora.data.reading import Reader
from bayeslora.networks import takes_any_name
from bayeslora.types import IGNORED, Batch, Row, Tokenizer


def padded(rows: Sequence[Row], tokenizer: Tokenizer) -> dict[str, Any]:
    """Pad sequences of tokens, one or several per example, by the tokenizer."""
    from transformers import DataCollatorWithPadding

    pad = DataCollatorWithPadding(tokenizer)
    if np.ndim(rows[0]["input_ids"][0]) == 0:
        return dict(pad(rows))
    # One sequence for each choice.
    flat = [dict(zip(row, values, strict=True)) for row in rows for values in zip(*row.values(), strict=True)]
    return {name: value.view(len(rows), -1, value.shape[-1]) for name, value in pad(flat).items()}


def positioned(batch: dict[str, Any], reader: Reader) -> dict[str, Any]:
    """Return a batch with positions of its tokens if it is padded on the left, and the network would count padding."""
    mask = batch.get("attention_mask")
    if not (reader.needs_positions and isinstance(mask, Tensor) and mask.dim() == 2) or "position_ids" in batch:
        return batch
    return batch if bool(mask[:, 0].all()) else batch | {"position_ids": (mask.long().cumsum(-1) - 1).clamp(min=0)}


def stacked_labels(labels: list[Tensor], batch: Batch, rows: Sequence[Row], reader: Reader) -> Tensor:
    """Stack the labels of all rows; labels of tokens are padded as the tokens are."""
    tokens, tokenizer = batch.get("input_ids"), reader.tokenizer
    are_padded = tokens is not None and tokens.dim() == 2 and tokenizer is not None
    if (
        any(label.dim() != 1 for label in labels)
        or labels[0].is_floating_point()
        or not (are_padded or len({*map(len, labels)}) > 1)
    ):
        return torch.stack(checks.of_one_shape(reader.name, "labels", labels, rows))
    length = max(map(len, labels))
    mask = batch.get("attention_mask")
    same = mask is not None and reader.decoder_inputs is None and mask.sum(1).tolist() == [*map(len, labels)]
    left = same and tokenizer is not None and tokenizer.padding_side == "left"
    length = tokens.shape[1] if same and tokens is not None else length
    missing = [length - len(row) for row in labels]
    return torch.stack(
        [
            torch.nn.functional.pad(row, (count, 0) if left else (0, count), value=IGNORED)
            for row, count in zip(labels, missing, strict=True)
        ]
    )


def collated(rows: Sequence[Row], collator: Callable[[list[Any]], Any], reader: Reader) -> dict[str, Any]:
    """Return the batch that a function of the user's makes of rows: the network's inputs, and labels.

    The function is given mappings as the Trainer's are. Entries that the network does not take are left out.

    Raises:
        TypeError: If it returns no mapping.
    """
    given = [dict(row) for row in rows]
    try:
        made = collator(given)
    except Exception as error:
        error.add_note(f"It was raised by data_collator, given rows with {', '.join(map(str, rows[0]))}.")
        raise
    if not isinstance(made, Mapping | tuple):
        raise TypeError(
            f"data_collator returned a {type(made).__name__}: let it return a mapping from the network's inputs, "
            f"{', '.join(reader.parameters)}, and 'labels' to tensors."
        )
    batch = reader.named(made)
    if not reader.with_labels:
        batch.pop("labels", None)
    names = batch if takes_any_name(reader.model) else (*reader.parameters, "labels")
    return {
        name: reader.tensor(value) if isinstance(value, Tensor | np.ndarray) else value
        for name, value in batch.items()
        if name in names
    }


def tensors(name: str, rows: Sequence[Row], reader: Reader) -> list[Tensor]:
    """Return the values that some rows have of an input, or of the labels, as tensors; a ValueError names the row."""
    found = []
    for place, row in enumerate(rows):
        try:
            found.append(reader.tensor(row[name]))
        except (TypeError, ValueError, RuntimeError) as error:
            raise checks.not_numbers(reader.name, name, row[name], checks.called(row, place)) from error
    return found
