"""Several short texts in one row of a causal language model, which do not see each other."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from bayeslora.contracts import ArgumentError
from bayeslora.networks import continues, forward_parameters, inputs_of
from bayeslora.surroundings import autocast_dtype
from bayeslora.types import Batch

CLOSE = 1e-3
"""Largest difference between logits of packed rows and of rows by themselves, as a share of the largest logit."""

ROOM = 2
"""Tokens of a packed row, as a multiple of the longest of the batch: more fill rows better, and cost more attention."""


class Packed(NamedTuple):
    """A batch whose rows share fewer rows.

    Args:
        inputs: The network's inputs, with the positions that tokens have in their own rows, and a mask
            `[row, 1, token, token]`, by which a token sees those of its own row before it.
        place: Where each token of the batch is, row · length + token, `[batch, token]`; −1 for padding.
    """

    inputs: Batch
    place: Tensor

    def unpack(self, logits: Tensor) -> Tensor:
        """Return logits of tokens in the places that they have in the batch; 0 for padding."""
        found = logits.flatten(-3, -2)[..., self.place.clamp(min=0).flatten(), :]
        found = found.unflatten(-2, self.place.shape)
        return found.masked_fill((self.place < 0)[..., None], 0)


def pack(inputs: Batch, dtype: torch.dtype, longest: int | None = None) -> Packed:
    """Put rows of tokens into as few rows as they fill, the longest first.

    Args:
        inputs: `input_ids` and `attention_mask`, `[batch, token]`, and others of that shape.
        dtype: Of the mask that is added to the scores of attention.
        longest: The most tokens of a row; by default twice as many as the longest of the batch has.
    """
    mask = inputs["attention_mask"] > 0
    lengths = mask.sum(-1).tolist()
    size = max(longest or ROOM * max(lengths), 1)
    free: list[int] = []
    places = [(0, 0)] * len(lengths)
    for index in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        row = next((number for number, room in enumerate(free) if room >= lengths[index]), len(free))
        free += [size] if row == len(free) else []
        places[index] = (row, size - free[row])
        free[row] -= lengths[index]
    size -= min(free)  # what no row fills
    starts = torch.tensor([row * size + start for row, start in places], device=mask.device)
    position = mask.long().cumsum(-1) - 1
    place = torch.where(mask, starts[:, None] + position, -1)

    def filled(values: Tensor, padding: int) -> Tensor:
        rows = values.new_full((len(free) * size,), padding)
        rows[place[mask]] = values[mask]
        return rows.view(len(free), size)

    owner = filled(torch.arange(len(mask), device=mask.device)[:, None].expand_as(mask), -1)
    seen = (owner[:, :, None] == owner[:, None]) & torch.ones(size, size, dtype=torch.bool, device=mask.device).tril()
    scores = torch.zeros(seen.shape, dtype=dtype, device=mask.device).masked_fill(~seen, torch.finfo(dtype).min)
    packed = {
        name: filled(value, 0) for name, value in inputs.items() if name not in ("attention_mask", "position_ids")
    }
    return Packed(packed | {"attention_mask": scores[:, None], "position_ids": filled(position, 0)}, place)


def packs(inputs: Batch) -> bool:
    """Return whether inputs are rows of tokens, and nothing else."""
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    return (
        isinstance(ids, Tensor)
        and isinstance(mask, Tensor)
        and ids.dim() == 2
        and all(isinstance(value, Tensor) and value.shape == ids.shape for value in inputs.values())
    )


def added(network: Any) -> torch.dtype:
    """Return the type of what is added to the scores of a network's attention; autocast makes its own of it."""
    own = next(network.model.parameters()).dtype
    return torch.promote_types(own, torch.float32) if autocast_dtype(network.device.type) else own


def check(program: Any, batch: Batch) -> None:
    """Compare logits of packed rows with those of rows by themselves, on a few examples, at the start of a fit.

    Args:
        program: The program.
        batch: The examples.

    Raises:
        ArgumentError: If they differ, or the network cannot be given positions and a mask.
    """
    model, inputs = program.network.model, inputs_of(batch)
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    why = None
    if not continues(model) or "position_ids" not in forward_parameters(model):
        why = f"{type(model).__name__} does not continue texts, or is not told the positions of their tokens"
    elif getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True):
        why = f"{type(model).__name__} reads through a sliding window, which a mask of packed rows has not"
    elif program.method.own_batches and program.elbo.num_particles > 1:
        why = f"every member of {program.method.name!r} has rows of its own"
    elif not packs(inputs):
        why = f"inputs are {', '.join(inputs)}, not tokens and their mask alone"
    else:
        with torch.no_grad():
            factors = program.factors_at(program.centre())
            plain = program.network(factors, inputs)
            try:
                packed = pack(inputs, added(program.network), longest=inputs["input_ids"].numel())
                found = packed.unpack(program.network(factors, packed.inputs))
                kept = packed.place >= 0
                apart = float((found - plain)[kept].abs().max() / plain[kept].abs().max().clamp(min=1e-6))
                why = f"logits of packed rows differ by {apart:.1e} of the largest" if not apart <= CLOSE else None
            except Exception as error:  # whatever a network may raise that cannot be given such a mask
                why = f"{type(model).__name__} cannot be given such a mask: {' '.join(str(error).split()):.200}"
            finally:
                program.network.unbind()
    if why is not None:
        raise ArgumentError(f"packing=True: rows would see each other, or cannot be packed: {why}. Leave it out.")
