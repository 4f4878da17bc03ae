"""Isolate calls that would share what exists only once in a process.

Pyro has one stack of handlers and one table of plate dimensions; PyTorch, numpy and Python have one random state each
(and PyTorch one per device); a network has one set of bound factors and one mode. A call of the library therefore runs
alone, and calls of other threads wait for their turn. It runs without Pyro handlers, and restores handlers and random
states afterwards, whoever set them. Long calls let others run in between, see `give_way`.
"""

import contextlib
import functools
import itertools
import operator
import os
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _DIM_ALLOCATOR, _ENUM_ALLOCATOR, _PYRO_STACK
from torch import Tensor

from bayeslora.contracts import Fields, checked
from bayeslora.surroundings import accelerator, plain

F = TypeVar("F", bound=Callable[..., Any])

VALIDATION = ("validate_distributions_pyro", "validate_distributions_torch", "validate_infer", "validate_poutine")
"""Pyro's settings that say what is checked."""


class _Handlers(NamedTuple):
    """What Pyro keeps for the process, and what PyTorch does: its default type, and how modules are moved and cast.

    A module that is moved gets parameters of its own if one of the latter two is set: optimisers would train others.
    """

    stack: list[Any]
    plates: list[Any]
    enumeration: dict[str, Any]
    validation: dict[str, bool]
    dtype: torch.dtype
    overwrites: bool
    swaps: bool


class _RandomStates(NamedTuple):
    """Random states of Python, numpy, PyTorch on the CPU with its initial seed, and CUDA, if it is in use."""

    python: Any
    numpy: Any
    cpu: Tensor
    initial: int
    cuda: list[Tensor] | None


class _Guard(Messenger):
    """A handler at the bottom of the stack in a thread's turn, which raises an error if another thread runs Pyro."""

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
    """Return Pyro's state at its start, with the guard added."""
    validation = dict.fromkeys(VALIDATION, __debug__)
    return _Handlers([_Guard()], [], {}, validation, torch.get_default_dtype(), overwrites=False, swaps=False)


class _Outside:
    """The state of the process outside of a context, to be restored at its end."""

    def __init__(self, value: Any):
        self.value = value


class _Turn:
    """The turn of a thread: the public calls and the contexts that it is in, from the outermost in."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.number = next(_numbers)
        self.calls = 0
        self.handlers: list[_Outside] = []
        self.random: list[_Outside] = []


_numbers = itertools.count()
_turn: _Turn | None = None  # of the thread that has `_lock`
# Both locks are re-entrant: a signal handler or a `__del__` may call the library while this thread waits for them.
_lock = threading.RLock()
# A thread that waits for `_lock` holds this one, so that a thread that gives way cannot come back first.
_next = threading.RLock()
_waiting = 0  # calls that hold `_next`

# What is in the middle of something, and in which of a thread's calls, see `_depth`.
_at_work: list[tuple[Any, int]] = []


class AtWorkError(RuntimeError):
    """A call needs a network that an outer call of the same thread is in the middle of using."""


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Run as a public call: alone, under no Pyro handlers, and with gradients on, whatever the caller has set.

    It is also a decorator. Calls within calls, such as those of a callback during a fit, are part of the outer turn.
    """
    with _own_turn() as turn, exclusive(), torch.inference_mode(False), plain():
        state = random.getstate()  # some libraries draw from it when they are imported, which may be now
        turn.calls += 1
        try:
            yield
        finally:
            turn.calls -= 1
            random.setstate(state)


def public(fields: Callable[[Mapping[str, Any]], Fields | None] | None = None) -> Callable[[F], F]:
    """Return the decorator of a public call: its arguments are checked (`contracts.checked`), then it runs isolated."""

    def decorate(function: F) -> F:
        return checked(fields)(isolated()(function))

    return decorate


@contextlib.contextmanager
def exclusive() -> Iterator[None]:
    """Run alone and under no Pyro handlers; restore the caller's afterwards.

    Calls of the library do this. Your own Pyro program has to, if it runs in another thread at the same time, because
    Pyro has one stack of handlers for all threads:

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
            if outside in turn.handlers:  # an interruption may come before it is appended
                turn.handlers.remove(outside)


@contextlib.contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Draw random numbers from a seed on every device, and restore the caller's random states afterwards.

    With None, the caller's states are used and advanced.
    """
    if seed is None:
        yield
        return
    with _own_turn() as turn:
        outside = _Outside(random_states())
        try:
            turn.random.append(outside)
            seed = operator.index(seed)  # NumPy's whole numbers, too
            _seed_torch(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002 (libraries draw from the global state)
            yield
        finally:
            set_random_states(outside.value)
            if outside in turn.random:
                turn.random.remove(outside)


def _own() -> _Turn | None:
    """Return the turn, if this thread has it."""
    turn = _turn  # read once: another thread may end its turn between two looks
    return turn if turn is not None and turn.thread == threading.get_ident() else None


def turn() -> int | None:
    """Return the number of the call of the library that this thread is in; None outside of one."""
    return None if (own := _own()) is None else own.number


def _depth() -> int:
    """Return how many public calls, each within the one before, this thread is in."""
    return 0 if (own := _own()) is None else own.calls


@contextlib.contextmanager
def at_work(network: Any) -> Iterator[None]:
    """Keep a network, whose factors are bound, from calls within this one: those of a hook or a signal handler, say."""
    entry = network, _depth()
    _at_work.append(entry)
    try:
        yield
    finally:
        _at_work.remove(entry)


def working(method: F) -> F:
    """Return a method of a network, or of what has one, during which the network is at work."""

    @functools.wraps(method)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        with at_work(getattr(self, "network", self)):
            return method(self, *args, **kwargs)

    return wrapped  # type: ignore[return-value]


def check_free(network: Any) -> None:
    """Raise an `AtWorkError` if an outer call is in the middle of using a network."""
    if any(each is network and _depth() > outer for each, outer in _at_work):
        raise AtWorkError(
            "This posterior is in the middle of a pass through its network, and was called again by what runs "
            "meanwhile: a hook, a signal handler, a `__del__`. The call would replace the factors of that pass. Let it "
            "wait until the pass has ended, or call a copy, copy.deepcopy(posterior), that was made before."
        )


def give_way() -> None:
    """Let waiting calls of other threads run, and restore handlers and random states afterwards.

    Call it between steps of long work, when nothing that others could use is half done. It does nothing inside another
    call, whose state is not known.
    """
    global _turn
    turn = _own()
    if not _waiting or turn is None or len(turn.handlers) != 1:
        return
    handlers, states = _handlers(), random_states() if turn.random else None
    _set_handlers(turn.handlers[0].value)
    if turn.random:
        set_random_states(turn.random[0].value)
    _turn = None
    _lock.release()
    interruption = None
    while True:
        try:
            _acquire()
            break
        except BaseException as error:  # work in progress needs its turn even for cleaning up
            interruption = error
    _turn = turn
    # Other threads may have changed what is restored at the end.
    turn.handlers[0].value = _handlers()
    _set_handlers(handlers)
    if states is not None:
        turn.random[0].value = random_states()
        set_random_states(states)
    if interruption is not None:
        raise interruption


@contextlib.contextmanager
def _own_turn() -> Iterator[_Turn]:
    """Enter the turn of this thread, waiting for it unless the thread has it already."""
    global _turn
    if (own := _own()) is not None:
        yield own
        return
    _acquire()
    try:
        _turn = _Turn()
        yield _turn
    finally:
        _turn = None
        _lock.release()


def _acquire() -> None:
    global _waiting
    with _next:
        _waiting += 1
        try:
            _lock.acquire()
        finally:
            _waiting -= 1


def _handlers() -> _Handlers:
    validation = {name: pyro.settings.get(name) for name in VALIDATION}
    return _Handlers(
        list(_PYRO_STACK),
        _DIM_ALLOCATOR._stack,
        dict(vars(_ENUM_ALLOCATOR)),
        validation,
        torch.get_default_dtype(),
        torch.__future__.get_overwrite_module_params_on_conversion(),
        torch.__future__.get_swap_module_params_on_conversion(),
    )


def _set_handlers(handlers: _Handlers) -> None:
    _PYRO_STACK[:] = handlers.stack  # other modules of Pyro refer to this very list
    _DIM_ALLOCATOR._stack = list(handlers.plates)
    vars(_ENUM_ALLOCATOR).clear()
    vars(_ENUM_ALLOCATOR).update(handlers.enumeration)
    pyro.settings.set(**handlers.validation)
    torch.set_default_dtype(handlers.dtype)
    torch.__future__.set_overwrite_module_params_on_conversion(handlers.overwrites)
    torch.__future__.set_swap_module_params_on_conversion(handlers.swaps)


def random_states() -> _RandomStates:
    """Return the states of all random numbers that are global."""
    # A device that nothing has used yet is left alone: asking for its state would take memory on it.
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    return _RandomStates(python, numpy, torch.get_rng_state(), torch.initial_seed(), cuda)


def set_random_states(states: _RandomStates) -> None:
    """Put back what `random_states` returned."""
    random.setstate(states.python)
    np.random.set_state(states.numpy)  # noqa: NPY002
    torch.set_rng_state(states.cpu)
    if accelerator() != "cuda" or torch.cuda._is_in_bad_fork():
        return
    if states.cuda is None:  # devices start from the seed of the CPU, and have been given another meanwhile
        torch.cuda.manual_seed_all(states.initial)
    else:
        torch.cuda.set_rng_state_all(states.cuda)


def _seed_torch(seed: int) -> None:
    """Seed torch as `torch.manual_seed` does, without the millisecond it takes to record absent kinds of devices."""
    kind = accelerator()
    if kind not in (None, "cuda"):
        torch.manual_seed(seed)
        return
    torch.default_generator.manual_seed(int(seed))
    if kind and not torch.cuda._is_in_bad_fork():
        torch.cuda.manual_seed_all(int(seed))


def _after_fork() -> None:
    """End the turns of threads that a child process does not have."""
    global _lock, _next, _turn, _waiting
    _next, _waiting = threading.RLock(), 0
    if _own() is not None:
        return
    absent, _turn, _lock = _turn, None, threading.RLock()
    _at_work.clear()
    if absent is not None and absent.handlers:
        _set_handlers(absent.handlers[0].value)
    if absent is not None and absent.random:
        set_random_states(absent.random[0].value)


os.register_at_fork(after_in_child=_after_fork)
