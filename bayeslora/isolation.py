"""Keep calls apart that would share what exists once in a process.

Pyro has one stack of handlers and one table of plate dimensions; PyTorch, numpy and Python have one random state each
(and PyTorch one per device); a network has one set of bound factors and one mode. A call of the library therefore runs
alone: calls of other threads wait for their turn. It finds Pyro without handlers, and leaves handlers and random states
as they were, whoever set them. Long calls let others in between, see `give_way`.
"""

import contextlib
import functools
import os
import random
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _DIM_ALLOCATOR, _ENUM_ALLOCATOR, _PYRO_STACK
from torch import Tensor

VALIDATION = ("validate_distributions_pyro", "validate_distributions_torch", "validate_infer", "validate_poutine")
"""Pyro's settings that say what is checked."""


class _Handlers(NamedTuple):
    """What Pyro keeps for the process."""

    stack: list[Any]
    plates: list[Any]
    enumeration: dict[str, Any]
    validation: dict[str, bool]


class _RandomStates(NamedTuple):
    """Random states of Python, numpy, PyTorch on the CPU and the seed that began it, and CUDA's, where it is in use."""

    python: Any
    numpy: Any
    cpu: Tensor
    initial: int
    cuda: list[Tensor] | None


class _Guard(Messenger):
    """Stands at the bottom of the stack in a thread's turn, and raises an error where another thread runs Pyro."""

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()

    def _process_message(self, msg: Any) -> None:
        if threading.get_ident() != self.thread:
            raise RuntimeError(
                f"The Pyro statement {msg['name']!r} ran while bayeslora was at work in another thread, under the "
                "handlers that were there for it: Pyro has one stack of them for all threads. Run your program in "
                "`with bayeslora.isolation.exclusive():`."
            )


def _fresh() -> _Handlers:
    """Pyro as it starts, but for the guard."""
    return _Handlers([_Guard()], [], {}, dict.fromkeys(VALIDATION, __debug__))


class _Outside:
    """What the process had outside of a context, to be put back at its end."""

    def __init__(self, value: Any):
        self.value = value


class _Turn:
    """The turn of a thread: the contexts that it is in, from the outermost in."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.handlers: list[_Outside] = []
        self.random: list[_Outside] = []


_turn: _Turn | None = None  # of the thread that has `_lock`
_lock = threading.Lock()
# Who waits for `_lock` holds this one. A thread that gives way can then not be the first to come back.
_next = threading.Lock()


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Run as a public call: alone, under no Pyro handlers, and with gradients switched on, whatever the caller set.

    Also a decorator. Calls within calls, such as a callback's during a fit, are part of the outer one's turn.
    """
    with exclusive(), torch.inference_mode(False):
        yield


@contextlib.contextmanager
def exclusive() -> Iterator[None]:
    """Run alone and under no Pyro handlers; the caller's are back afterwards.

    Calls of the library do this by themselves. A Pyro program of your own that runs in another thread meanwhile has to,
    as Pyro has one stack of handlers for all threads:

        with bayeslora.isolation.exclusive():
            svi.step(batch)
    """
    with _own_turn() as turn:
        outside = _Outside(_handlers())
        try:
            turn.handlers.append(outside)
            _set_handlers(_fresh())
            yield
        finally:
            _set_handlers(outside.value)
            if outside in turn.handlers:  # an interruption can come before it is there
                turn.handlers.remove(outside)


@contextlib.contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Random numbers from a seed, on every device; the caller's random states are as before afterwards.

    With None, the caller's states are used and move on.
    """
    if seed is None:
        yield
        return
    with _own_turn() as turn:
        outside = _Outside(_random_states())
        try:
            turn.random.append(outside)
            _seed_torch(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002 (libraries draw from the global state)
            yield
        finally:
            _set_random_states(outside.value)
            if outside in turn.random:
                turn.random.remove(outside)


def give_way() -> None:
    """Let the calls of other threads run, if any wait; afterwards handlers and random states are as before.

    To be called between steps of long work, where nothing that others could use is half done. Within the call of
    another, whose state is not known, it does nothing.
    """
    global _turn
    turn = _turn
    if not _next.locked() or turn is None or turn.thread != threading.get_ident() or len(turn.handlers) != 1:
        return
    handlers, states = _handlers(), _random_states() if turn.random else None
    _set_handlers(turn.handlers[0].value)
    if turn.random:
        _set_random_states(turn.random[0].value)
    _turn = None
    _lock.release()
    interruption = None
    while True:
        try:
            _acquire()
            break
        except BaseException as error:  # what has begun needs its turn to be cleared up, too
            interruption = error
    _turn = turn
    # Others may have moved on what is to be put back at the end.
    turn.handlers[0].value = _handlers()
    _set_handlers(handlers)
    if states is not None:
        turn.random[0].value = _random_states()
        _set_random_states(states)
    if interruption is not None:
        raise interruption


@contextlib.contextmanager
def _own_turn() -> Iterator[_Turn]:
    """The turn of this thread, which it has already or waits for."""
    global _turn
    if _turn is not None and _turn.thread == threading.get_ident():
        yield _turn
        return
    _acquire()
    try:
        _turn = _Turn()
        yield _turn
    finally:
        _turn = None
        _lock.release()


def _acquire() -> None:
    with _next:
        _lock.acquire()


def _handlers() -> _Handlers:
    validation = {name: pyro.settings.get(name) for name in VALIDATION}
    return _Handlers(list(_PYRO_STACK), _DIM_ALLOCATOR._stack, dict(vars(_ENUM_ALLOCATOR)), validation)


def _set_handlers(handlers: _Handlers) -> None:
    _PYRO_STACK[:] = handlers.stack  # other modules of Pyro refer to this very list
    _DIM_ALLOCATOR._stack = list(handlers.plates)
    vars(_ENUM_ALLOCATOR).clear()
    vars(_ENUM_ALLOCATOR).update(handlers.enumeration)
    pyro.settings.set(**handlers.validation)


def _random_states() -> _RandomStates:
    # A device that nothing has used yet is left alone: asking for its state would take memory on it.
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    return _RandomStates(python, numpy, torch.get_rng_state(), torch.initial_seed(), cuda)


def _set_random_states(states: _RandomStates) -> None:
    random.setstate(states.python)
    np.random.set_state(states.numpy)  # noqa: NPY002
    torch.set_rng_state(states.cpu)
    if _accelerator() != "cuda" or torch.cuda._is_in_bad_fork():
        return
    if states.cuda is None:  # devices start from the seed of the CPU, and have been given another meanwhile
        torch.cuda.manual_seed_all(states.initial)
    else:
        torch.cuda.set_rng_state_all(states.cuda)


def _seed_torch(seed: int) -> None:
    """`torch.manual_seed`, which also puts a formatted stack aside for every kind of device that is not here: 1 ms."""
    kind = _accelerator()
    if kind not in (None, "cuda"):
        torch.manual_seed(seed)
        return
    torch.default_generator.manual_seed(int(seed))
    if kind and not torch.cuda._is_in_bad_fork():
        torch.cuda.manual_seed_all(int(seed))


@functools.cache
def _accelerator() -> str | None:
    """The kind of device that PyTorch has here beside the CPU."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return device.type if device is not None else None


def _after_fork() -> None:
    """In a child process, end the turns of threads that it does not have."""
    global _lock, _next, _turn
    _next = threading.Lock()
    if _turn is not None and _turn.thread == threading.get_ident():
        return
    absent, _turn, _lock = _turn, None, threading.Lock()
    if absent is not None and absent.handlers:
        _set_handlers(absent.handlers[0].value)
    if absent is not None and absent.random:
        _set_random_states(absent.random[0].value)


os.register_at_fork(after_in_child=_after_fork)
