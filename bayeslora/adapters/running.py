"""Passes of an adapted network: with gradients, without, and of networks that take gradients on their way."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor

from bayeslora.adapters.frozen import passing
from bayeslora.surroundings import called
from bayeslora.types import Batch


@functools.cache
def functions_differentiate_in_inference_mode() -> bool:
    """Return whether `torch.func.grad` is right in inference mode; it was 0 there, without a word, in PyTorch 2.11."""
    with torch.inference_mode():
        return bool(torch.func.grad(torch.exp)(torch.zeros((), device="cpu")) == 1)


def run(network: Any, inputs: Batch) -> Any:
    """Return what a network returns with the factors that are bound.

    In inference mode nothing has a gradient, whatever a network asks for: one whose output is made of the gradient of
    an energy is run outside of it, once that has been seen.

    Args:
        network: An `AdaptedNetwork`.
        inputs: Keyword arguments of the model.
    """
    with passing(network):
        return _run(network, inputs)


def _run(network: Any, inputs: Batch) -> Any:
    if not torch.is_inference_mode_enabled():
        graph = torch.is_grad_enabled()
        with network.alone(later=graph), not_reentrant() if graph else contextlib.nullcontext():
            return called(network.model, inputs)
    if not network.differentiates:
        try:
            with network.alone():
                return called(network.model, inputs)
        except RuntimeError as error:
            if not any(said in str(error) for said in ("grad", "Inference tensor")):
                raise
            output = _outside_inference(network, inputs)  # or whatever it raises there
            network.differentiates = True
            return output
    return _outside_inference(network, inputs)


def _outside_inference(network: Any, inputs: Batch) -> Any:
    """Return what a network returns outside of inference mode, whose tensors autograd does not take."""
    with torch.inference_mode(False), torch.no_grad(), network.alone():
        for name in network.stacks:
            for layer in network.layers(name):
                if (factors := layer.slot.factors) is not None:
                    layer.slot.factors = type(factors)(*(factor.clone() for factor in factors))
        own = {name: value.clone() if isinstance(value, Tensor) else value for name, value in inputs.items()}
        return called(network.model, own)


class _NotReentrant:
    """What stands in the place of `CheckpointFunction`, which makes a re-entrant checkpoint."""

    @staticmethod
    def apply(function: Any, preserve_rng_state: bool, *args: Any) -> Any:
        return torch.utils.checkpoint.checkpoint(
            function, *args, use_reentrant=False, preserve_rng_state=preserve_rng_state
        )


@contextlib.contextmanager
def not_reentrant() -> Iterator[None]:
    """Let activation checkpointing that a network itself asks to be re-entrant be of the other kind.

    The re-entrant kind goes backward through the graph of the bound factors once for each block, and drops the gradient
    where no input of a block needs one.
    """
    before = torch.utils.checkpoint.CheckpointFunction
    torch.utils.checkpoint.CheckpointFunction = _NotReentrant  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        torch.utils.checkpoint.CheckpointFunction = before  # type: ignore[misc]
