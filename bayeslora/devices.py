"""Where networks are: on the CPU, or on an accelerator."""

import os
from collections.abc import Iterable
from typing import Annotated, Any, TypeAlias

import torch
from torch import Tensor, nn

from bayeslora.contracts import ArgumentError, Kind
from bayeslora.surroundings import accelerator


def _names_a_device(value: Any) -> bool:
    if isinstance(value, torch.device):
        return True
    try:
        return isinstance(value, str) and bool(torch.device(value))
    except RuntimeError:
        return False


Device: TypeAlias = Annotated[
    str | torch.device, Kind("a device of PyTorch's, such as 'cpu', 'cuda' or 'cuda:1'", _names_a_device)
]


def usual() -> torch.device:
    """Return where `fit` trains: on the accelerator, if there is one and accelerate is not told to leave it alone."""
    told = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on", "y", "t")
    if told or (kind := accelerator()) is None:
        return torch.device("cpu")
    return torch.device(kind, torch.accelerator.current_device_index())


def found(device: str | torch.device) -> torch.device:
    """Return the device of a name.

    Raises:
        ArgumentError: If there is none here.
    """
    asked = torch.device(device)
    if asked.type == "cpu":
        return asked
    kind = accelerator()
    count = 0 if kind is None else torch.accelerator.device_count()
    if asked.type != kind or (asked.index or 0) >= count:
        there = ", ".join(["'cpu'", *(f"'{kind}:{index}'" for index in range(count))])
        raise ArgumentError(f"device={str(device)!r}: PyTorch finds no such device here, only {there}.")
    return asked


def check_same(first: torch.device, other: torch.device, number: int) -> None:
    """Raise a ValueError unless the first of some posteriors and another, by its number, are on one device."""
    if first != other:
        raise ValueError(
            f"Posteriors 0 and {number} are on {first} and {other}: a mixture is on one device. Move one of them, "
            f'posterior.to("{first}").'
        )


def move(modules: Iterable[nn.Module], device: torch.device) -> None:
    """Move modules to a device, in place; tensors that are shared between them, such as frozen weights, stay shared."""
    moved: dict[Any, tuple[Tensor, Tensor]] = {}  # with what was moved, whose memory must not be another's meanwhile

    def once(tensor: Tensor) -> Tensor:
        if not tensor.numel() or tensor.device == device:
            return tensor.to(device)
        storage, shape = tensor.untyped_storage(), (tensor.shape, tensor.stride(), tensor.dtype)
        place = storage.data_ptr(), tensor.storage_offset(), *shape
        if place not in moved:
            moved[place] = tensor, tensor.to(device)
        return moved[place][1]

    for module in modules:
        module._apply(once)
