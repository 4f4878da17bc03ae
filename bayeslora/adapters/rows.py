"""Rows of a batch: which inputs have them, and whether a layer sees them first."""

from collections import Counter

import torch
from torch import Tensor

from bayeslora.types import Batch


def has_rows(value: object) -> bool:
    """Return whether an input of the network is a tensor with a first dimension."""
    return isinstance(value, Tensor) and value.dim() > 0


def num_rows(inputs: Batch) -> int:
    """Return the number of rows of the inputs: the first dimension that most of them share.

    Some may have none, such as a table of positions. Of equally frequent ones, it is that of the input with most
    dimensions, then of the first.
    """
    with_rows = [value for value in inputs.values() if has_rows(value)]
    count = Counter(len(value) for value in with_rows)
    return len(max(with_rows, key=lambda value: (count[len(value)], value.dim())))


def positions(inputs: Batch) -> int:
    """Return how many positions a pass has: rows × tokens, or rows × what is beyond the second dimension of numbers."""
    values = [value for value in inputs.values() if has_rows(value)]
    return max(v[:, :1].numel() if v.is_floating_point() and v.dim() > 1 else v.numel() for v in values)


def copied(inputs: Batch) -> Batch:
    """Return a copy of inputs for a pass of its own: a network may write into them."""
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in inputs.items()}


def sequences_in(inputs: Batch) -> int:
    """Return the number of sequences in a row of the inputs: choices, if `input_ids` is `[batch, choice, token]`.

    Models of multiple choice flatten the first two dimensions, which keeps each draw's rows together.
    """
    ids = inputs.get("input_ids")
    return ids.shape[1] if isinstance(ids, Tensor) and ids.dim() == 3 else 1


def blocks(inputs: Batch, size: int, num_blocks: int) -> list[Batch]:
    """Split inputs of `size` rows into blocks of equal size."""
    parts = {
        name: value.chunk(num_blocks) if has_rows(value) and len(value) == size else [value] * num_blocks
        for name, value in inputs.items()
    }
    return [{name: values[index] for name, values in parts.items()} for index in range(num_blocks)]


def has_rows_first(x: Tensor, rows: int, sequences: int) -> bool:
    """Return whether a layer's input may have the rows of the batch, or the sequences in them, in its first dimension.

    Shapes do not show whether it has them in the batch's order: that is measured (`folding`).
    """
    if x.dim() < 3:  # rows, or the tokens of all rows
        return x.dim() > 0 and len(x) % rows == 0
    return len(x) in (rows, rows * sequences)


def is_readable(value: Tensor) -> bool:
    """Return whether a tensor has numbers in rows: not within a network's own `torch.vmap`, nor nested or sparse."""
    is_transformed = torch._C._functorch.is_functorch_wrapped_tensor(value)
    return not (is_transformed or value.is_nested) and value.layout is torch.strided
