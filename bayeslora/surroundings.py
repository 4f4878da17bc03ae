"""What a caller has set in PyTorch for whatever it computes: autocast, the default device, a coarse default type.

Calls of the library compute as if none of it was set; passes of a network see it, as those of the caller would.
"""

import contextlib
import contextvars
import functools
import inspect
import threading
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

PRECISE = (torch.float32, torch.float64)
"""Default types in which the library computes: numbers of the others are too coarse to count steps."""


class _Surroundings(NamedTuple):
    """What is set outside of a call."""

    dtype: torch.dtype
    device: torch.device
    autocast: dict[str, torch.dtype]

    @property
    def is_plain(self) -> bool:
        return self.dtype in PRECISE and self.device.type == "cpu" and not self.autocast


class _OfThread(threading.local):
    outside: _Surroundings | None = None


_of_thread = _OfThread()


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Compute as if nothing was set, and restore what was.

    Raises:
        ValueError: If the default device is `meta` or cannot be had, or a FakeTensorMode is active.
    """
    before, now = _of_thread.outside, _present()
    if now.is_plain:  # within another call, what was set outside of that one holds
        yield
        return
    with contextlib.ExitStack() as after:
        _of_thread.outside = now
        after.callback(setattr, _of_thread, "outside", before)
        if now.dtype not in PRECISE:
            torch.set_default_dtype(torch.float32)
            after.callback(torch.set_default_dtype, now.dtype)
        if now.device.type != "cpu":
            after.enter_context(torch.device("cpu"))
        for kind in now.autocast:
            after.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextlib.contextmanager
def outside() -> Iterator[None]:
    """Let a pass of a network see what the caller of the library has set, autocast without its cache.

    That keeps what weights were cast to until the caller's own context ends, whatever they have become meanwhile.
    """
    settings = _of_thread.outside
    if settings is None:
        yield
        return
    with contextlib.ExitStack() as after:
        if settings.dtype not in PRECISE:
            after.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(settings.dtype)
        if settings.device.type != "cpu":
            after.enter_context(settings.device)
        for kind, dtype in settings.autocast.items():
            if not torch.is_autocast_enabled(kind):  # that of a training step is its own
                after.enter_context(torch.autocast(kind, dtype, cache_enabled=False))
        yield


def called(network: nn.Module, inputs: Mapping[str, Any]) -> Any:
    """Return what a network returns, which sees what the caller has set; context variables that it sets stay its own.

    Args:
        network: The network.
        inputs: Its keyword arguments.
    """
    placed = _placed(network, inputs)
    named = {name: value for name, value in inputs.items() if name not in placed}
    with outside():
        return contextvars.copy_context().run(network, *placed.values(), **named)


def _placed(network: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs that a network is given by their places: those that come first, where hooks see no others."""
    hooks = [
        *(key not in network._forward_pre_hooks_with_kwargs for key in network._forward_pre_hooks),
        *(key not in network._forward_hooks_with_kwargs for key in network._forward_hooks),
    ]
    if not any(hooks):
        return {}
    placed = {}
    for name, parameter in inspect.signature(network.forward).parameters.items():
        if name not in inputs or parameter.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
            break
        placed[name] = inputs[name]
    return placed


def autocast_dtype(kind: str) -> torch.dtype | None:
    """Return the type to which passes are cast on a kind of device; None if they are not."""
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    settings = _of_thread.outside
    return None if settings is None else settings.autocast.get(kind)


def _present() -> _Surroundings:
    if torch._guards.active_fake_mode() is not None:
        raise ValueError(
            "A FakeTensorMode is active, in which tensors have no numbers: call bayeslora before or after its context."
        )
    try:
        device = torch.get_default_device()
    except (AssertionError, RuntimeError) as error:
        raise ValueError(
            f"torch's default device is not there: {str(error).rstrip('.')}. Leave it, "
            'torch.set_default_device(None), or set "cpu", before calling bayeslora.'
        ) from error
    if device.type == "meta":
        raise ValueError(
            "torch's default device is 'meta', where tensors have no numbers: leave it, by "
            "torch.set_default_device(None) or after the context torch.device('meta'), before calling bayeslora."
        )
    kinds = [kind for kind in ("cpu", accelerator()) if kind is not None and torch.is_autocast_enabled(kind)]
    autocast = {kind: torch.get_autocast_dtype(kind) for kind in kinds}
    return _Surroundings(torch.get_default_dtype(), device, autocast)


@functools.cache
def accelerator() -> str | None:
    """Return the kind of device that PyTorch has besides the CPU; None if there is none."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return device.type if device is not None else None
