"""What a network can take in: how many tokens it knows, how many types and positions, and how long a text may be."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from bayeslora.networks import base_logits, input_embedding, memory_of
from bayeslora.types import Batch


class Limits(NamedTuple):
    """What a network can take in.

    Args:
        sizes: Name of an input whose whole numbers are looked up in a table, to the table's number of rows; a mask, of
            0 and 1, is among them.
        longest: The most tokens that fit into the network's table of positions; None if it has no such table.
        trained: The most tokens that the network was made for, if it says so; beyond them it may still run.
    """

    sizes: dict[str, int]
    longest: int | None = None
    trained: int | None = None


_looked_up: WeakKeyDictionary[nn.Module, dict[str, int]] = WeakKeyDictionary()
"""What was seen of other people's networks, which do not say what their tables are for."""


def limits(model: nn.Module) -> Limits:
    """Return what a network of `transformers` says it can take in; of any other, what `watch` has seen."""
    config: Any = getattr(model, "config", None)
    if not hasattr(model, "get_input_embeddings"):
        return Limits(dict(_looked_up.get(model, {})))
    sizes, longest = {}, None
    for name, part in (("input_ids", model), ("decoder_input_ids", _decoder(model))):
        size = getattr(input_embedding(part), "num_embeddings", None)
        if isinstance(size, int):
            sizes[name] = size
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    trained = getattr(text, "max_position_embeddings", None)
    trained = trained if isinstance(trained, int) and trained > 0 else None
    for path, module in model.named_modules():
        kind = path.rpartition(".")[2]
        if not isinstance(module, nn.Embedding):
            continue
        if kind == "token_type_embeddings":
            sizes["token_type_ids"] = module.num_embeddings
        elif trained and module.num_embeddings >= trained and kind in POSITIONS:
            # Where padding has a position of its own, texts begin after it.
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            sizes.setdefault("position_ids", module.num_embeddings)
            longest = trained - first if first < trained else trained
    if not hasattr(config, "attention_window"):  # of networks whose masks also mark tokens that see all others, by 2
        sizes["attention_mask"] = 2
    return Limits(sizes, longest, longest or trained)


POSITIONS = ("position_embeddings", "position_embedding", "embed_positions", "embed_position", "wpe")
"""What tables of positions are called; those of distances between tokens have other names, and no limit."""


def _decoder(model: Any) -> Any:
    return model.get_decoder() if getattr(getattr(model, "config", None), "is_encoder_decoder", False) else None


class _Stop(Exception):
    pass


def watch(model: nn.Module, batch: Batch) -> None:
    """See which inputs a network looks up in tables, by one pass over a batch, unless it says so itself.

    The pass ends where a number would lie beyond a table, which on an accelerator could not be undone, or where the
    network itself fails.
    """
    whole = {name: value for name, value in batch.items() if name != "labels" and _are_whole(value)}
    if hasattr(model, "get_input_embeddings") or model in _looked_up or not whole:
        return
    if not any(isinstance(module, nn.Embedding) for module in model.modules()):
        return
    found: dict[str, int] = {}
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    inputs = {n: v.to(device) if isinstance(v, Tensor) else v for n, v in batch.items() if n != "labels"}
    places = {memory_of(value): name for name, value in inputs.items() if name in whole}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        ids = next(iter((*args, *kwargs.values())), None)
        if isinstance(module, nn.Embedding) and isinstance(ids, Tensor):
            name = places.get(memory_of(ids))
            if name is not None:
                found[name] = min(found.get(name, module.num_embeddings), module.num_embeddings)
            if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= module.num_embeddings):
                raise _Stop

    hooks = [
        m.register_forward_pre_hook(note, with_kwargs=True) for m in model.modules() if isinstance(m, nn.Embedding)
    ]
    try:
        with suppress(Exception):  # what is wrong is said by the pass that is needed
            base_logits(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    _looked_up[model] = found


def _are_whole(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_floating_point() and value.dtype != torch.bool


OWN = (RuntimeError, ValueError, IndexError, TypeError, KeyError, AttributeError, AssertionError)
"""Errors by which networks say that their inputs do not fit; of subclasses nothing is known."""


@contextmanager
def naming_inputs(inputs: Batch) -> Iterator[None]:
    """Say with which inputs a network failed, where it fails with one of Python's own errors.

    Raises:
        ValueError: With the network's own error as its cause.
    """
    try:
        yield
    except OWN as error:
        if type(error) not in OWN:  # out of memory, for instance, or an error of the user's
            raise
        raise _unread(inputs, f"{clause(error):.500} ({type(error).__name__})") from error


def clause(error: Exception) -> str:
    """Return what an error says as a part of a sentence: in one line, and without a stop."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def check_rows(rows: Sequence[int], size: int, inputs: Batch) -> None:
    """Raise a ValueError unless a network's outputs are about each example of a batch, and about nothing else.

    Some networks take an array of one dimension too few for a batch of another size.

    Args:
        rows: The batch shape of the labels' distribution at one draw.
        size: Examples of the batch.
        inputs: The batch.
    """
    if tuple(rows) != (size,):
        raise _unread(inputs, f"it returns rows of shape {tuple(rows)} for {size} example(s)")


def _unread(inputs: Batch, why: str) -> ValueError:
    """The error about a network that cannot read its inputs."""
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor) and name != "labels"}
    given = ", ".join(
        f"{name} {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
        if name in tensors
        else f"{name}, a {type(value).__name__}"
        for name, value in inputs.items()
        if name != "labels"
    )
    flat = any(value.dim() < 2 for value in tensors.values())
    return ValueError(
        f"The network cannot read its inputs, {given or 'of which there are none'}: {why}. Give inputs of the shapes "
        f"and types that it was made for{', with a row for each example: x[None] for a single one' if flat else ''}."
    )
