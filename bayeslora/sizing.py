"""Whether saved tensors are those of a method's guide, found out before they take any memory."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bayeslora.adapters import AdaptedNetwork, Stacks
from bayeslora.methods import Method
from bayeslora.storage import check_shapes


def check_guide(
    network: AdaptedNetwork,
    method: Method,
    tensors: Mapping[str, Tensor],
    size: int,
    trusted: bool,
    part: str = "guide/",
) -> None:
    """Raise a ValueError unless saved tensors are those of the method's guide, before it takes any memory.

    The guide is made on the meta device, where tensors have a shape and nothing else.

    Args:
        network: The adapted network.
        method: The method.
        tensors: What was saved.
        size: How many numbers were, to which the guide's making is limited.
        trusted: Whether the method is the user's: then it may be one that cannot be made there, which is left alone.
        part: What the names of the guide's tensors begin with.
    """
    stacks = [
        dataclasses.replace(stack, measured={name: value.to("meta") for name, value in stack.measured.items()})
        for stack in network.stacks.values()
    ]
    try:
        with torch.device("meta"), _Limited(size), pyro.validation_enabled(False), torch.no_grad():
            state = method.guide(Stacks(stacks)).state_dict()
    except TooLargeError:
        raise ValueError(f"the record of {method.name!r} asks for far more numbers than are there") from None
    except Exception:
        if trusted:
            return
        raise
    check_shapes(tensors, part, state)


class TooLargeError(Exception):
    """A guide would be far larger than what was saved of it."""


class _Limited(TorchFunctionMode):
    """Stops what makes far more tensors, or numbers in them, than were saved: a loop over a billion members."""

    def __init__(self, size: int):
        super().__init__()
        self.left = 200 * size + 5_000_000

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.left -= 100 + (result.numel() if isinstance(result, Tensor) else 0)
        if self.left < 0:
            raise TooLargeError
        return result
