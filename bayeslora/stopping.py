"""Signals that ask a process to end: during a fit that saves what it has learned, they raise an exception first."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGXCPU") if hasattr(signal, name))
"""What a scheduler or `kill` sends, what the end of a terminal does, and a limit on the processor's time."""


class Terminated(SystemExit):
    """A signal such as SIGTERM asked the process to end; its exit status is the shell's, 128 plus the signal's number.

    Args:
        number: The signal's number.
    """

    def __init__(self, number: int):
        self.status = 128 + number
        self.signal = signal.Signals(number).name
        super().__init__(self.status)

    def __reduce__(self) -> tuple[type["Terminated"], tuple[int]]:
        return Terminated, (self.status - 128,)  # to the process that started this one

    def __str__(self) -> str:
        return f"Ended by {self.signal}."


@contextlib.contextmanager
def raising(wanted: bool = True) -> Iterator[None]:
    """Let signals that would end the process raise `Terminated`, as Ctrl-C raises `KeyboardInterrupt`.

    A signal that the caller handles, or ignores, is left to the caller; handlers can be set in the main thread alone.
    Afterwards, all is as it was.

    Args:
        wanted: Whether to do so.
    """
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield
        return
    process = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() == process:
            raise Terminated(number)
        signal.signal(number, signal.SIG_DFL)  # a worker that was forked meanwhile has nothing to save
        os.kill(os.getpid(), number)

    taken = [number for number in SIGNALS if signal.getsignal(number) == signal.SIG_DFL]
    try:
        for number in taken:
            signal.signal(number, end)
        yield
    finally:
        for number in taken:
            if signal.getsignal(number) is end:  # else a callback has set one of its own
                signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def deaf() -> Iterator[None]:
    """Ignore the signals that `raising` would raise an exception for: a save that has begun is not cut short."""
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
    ours = {n: handler for n, handler in handlers.items() if getattr(handler, "__module__", None) == __name__}
    for number in ours:
        signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)
