"""Whether two passes of the same rows through a network give the same logits."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora.adapters.folding import distance, still, tolerance
from bayeslora.adapters.reads import Reads
from bayeslora.adapters.rows import copied, is_readable
from bayeslora.isolation import seeded
from bayeslora.limits import clause
from bayeslora.networks import inputs_of, logits_of
from bayeslora.passes import unchanged
from bayeslora.types import Batch

ROUNDINGS = 64
"""Roundings that two passes may be apart on a CPU, where they add in the same order."""


class NotCopiedError(ValueError):
    """A copy of a network does not compute what the network does."""


class NotRepeatedError(ValueError):
    """Passes through a network depend on those before, or on random numbers that no seed determines."""


def check(model: nn.Module, run: Callable[[], Any], first: Tensor, inputs: Batch) -> None:
    """Raise a `NotRepeatedError` if a pass gives other logits than the first one.

    What a network keeps from one pass to the next is put back, where it is found: in files, in the environment, in
    libraries or in very large tensors it is not.

    Args:
        model: The network.
        run: Runs it once more.
        first: The logits of the first pass.
        inputs: What both passes are given.
    """
    before = _versions(inputs)
    first, second = first.detach(), logits_of(run()).detach()
    if not (is_readable(first) and bool(first.isfinite().any())):
        return
    apart = distance(second, first)
    written = [name for name, version in _versions(inputs).items() if version != before[name]]
    if apart > _rounding(model, first):
        name = type(model).__name__
        what = f"Two passes of the same rows through the {name} give logits that differ by {apart:.2g} of their size"
        if written:
            raise NotRepeatedError(
                f"{what}: it writes into its inputs, so that every draw would see other ones. Let its "
                f"forward begin with a copy: {written[0]} = {written[0]}.clone()."
            )
        raise NotRepeatedError(
            f"{what}: it keeps something that cannot be put back, or draws random numbers "
            "that torch.manual_seed does not determine, so that predictions would depend on those before. Keep it in a "
            "buffer or a plain attribute, or draw from torch's own random numbers, and fit it then."
        )


def check_copy(network: Any, model: nn.Module, expected: Tensor, inputs: Batch) -> None:
    """Raise a `NotCopiedError` unless a network without factors gives the logits of the model that it was made from.

    What a copy shares with its original, such as the variables of a function that is defined in another one, or a
    table by the `id` of modules, is not known to anybody else. Nor may it call layers of the model that it has its own
    of, adapted or of the head: nothing would be trained there.

    Args:
        network: An `AdaptedNetwork` that has not been trained.
        model: The model.
        expected: Its logits, from the random state of seed 0.
        inputs: What they are of, and labels.
    """
    rows = copied(inputs_of(inputs))
    own: set[str] = set()
    try:
        with torch.no_grad(), seeded(0), still(network), unchanged(model):
            try:
                with _originals(network, model) as own:
                    logits = network.logits(rows)
            except Exception:  # some operators cannot be watched
                logits = network.logits(copied(rows))
            apart = distance(logits, expected)
        is_same = apart <= _rounding(model, expected) or not bool(expected.isfinite().any())
        if is_same and not own:
            return
        what = f"gives other logits, by {apart:.2g} of their size"
        if is_same:
            what = f"computes with the model's own {', '.join(map(repr, sorted(own)[:3]))}, which nothing would train"
    except Exception as error:  # whatever a network raises that finds nothing where its original has something
        what = f"fails, by {type(error).__name__}: {clause(error)}"
    raise NotCopiedError(
        f"A copy of the {type(model).__name__}, as a fit makes one, {what}. Something in it still belongs to the "
        "model itself: a hook or a function that is written within another one and uses `self`, or a table by the id "
        "of modules. Let a hook use the module that it is given, or make it a method."
    )


@contextlib.contextmanager
def _originals(network: Any, model: nn.Module) -> Iterator[set[str]]:
    """Collect which layers of the model itself compute, in the place of a copy that is adapted, or is of the head."""
    of_copy = {id(parameter) for parameter in network.parameters()}
    adapted = {
        name: layer
        for stack in network.stacks.values()
        for name, layer in zip(stack.layer_names, network.layers(stack.name), strict=True)
    }
    weights: dict[int, str] = {}
    for name in (*adapted, *network.head_names):
        for part, parameter in model.get_submodule(name).named_parameters(name):
            if id(parameter) not in of_copy:  # as those are that are quantised
                weights[id(parameter)] = name if name in adapted else part.rpartition(".")[0]
    inside: list[str] = []
    hooks = []
    for name, layer in adapted.items():
        hooks.append(layer.register_forward_pre_hook(lambda *_, name=name: inside.append(name)))
        hooks.append(layer.register_forward_hook(lambda *_, name=name: inside.remove(name)))
    try:
        with Reads(weights, inside) as reads:
            yield reads.found
    finally:
        for hook in hooks:
            hook.remove()


def _rounding(model: nn.Module, logits: Tensor) -> float:
    """Return how far two passes of the same rows may be apart."""
    return ROUNDINGS * torch.finfo(logits.dtype).eps if logits.device.type == "cpu" else tolerance(model)


def _versions(inputs: Batch) -> dict[str, int]:
    """Return how often tensors have been written into, as far as PyTorch counts."""
    return {n: t._version for n, t in inputs.items() if isinstance(t, Tensor) and not t.is_inference()}
