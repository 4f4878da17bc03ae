"""Work in a process of its own that is killed at a chosen operation on files, at a chosen size of file, or at any time.

Processes are forked from the tests', which has everything imported: one costs what its work costs.
"""

import builtins
import io
import os
import pickle
import resource
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

OPERATIONS = ("mkdir", "rename", "replace", "unlink", "remove", "rmdir", "fsync")
"""Functions of `os` that change what is on the disk."""


class Failed(Exception):
    """The work raised an exception in its process; the text is its traceback."""


def fork(work: Callable[[], Any]) -> tuple[int, int]:
    """Start work in a process of its own; its number, and the file from which its result can be read."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other threads of the tests' process hold no lock that the work needs
        pid = os.fork()
    if pid:
        os.close(write)
        return pid, read
    os.close(read)
    torch.set_num_threads(1)  # OpenMP's other threads are not forked; a process that waits for them waits forever
    try:
        result: Any = (True, work())
    except BaseException:
        result = (False, traceback.format_exc())
    with os.fdopen(write, "wb") as pipe:
        pickle.dump(result, pipe)
        pipe.flush()
    os._exit(0)


def result_of(pid: int, pipe: int) -> Any:
    """Wait for a process, and return what its work returned; None if it was killed."""
    with os.fdopen(pipe, "rb") as file:
        content = file.read()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGXFSZ), f"the process died of signal {status}"
        return None
    succeeded, result = pickle.loads(content)
    if not succeeded:
        raise Failed(result)
    return result


def run(work: Callable[[], Any]) -> Any:
    """What work returns, in a process of its own."""
    return result_of(*fork(work))


def count_operations(work: Callable[[], Any]) -> int:
    """How many operations on files work makes."""

    def counted() -> int:
        counter = Counter(None)
        work()
        return counter.count

    return run(counted)


def kill_at(work: Callable[[], Any], operation: int) -> None:
    """Do work in a process that is killed instead of its operation with that number, or halfway through it.

    Raises:
        AssertionError: If there is no such operation.
    """

    def counted() -> int:
        counter = Counter(operation)
        work()
        return counter.count

    count = run(counted)
    assert count is None, f"the work ended after {count} operations, before operation {operation}"


def kill_at_size(work: Callable[[], Any], size: int) -> bool:
    """Do work in a process that is killed as soon as a file grows beyond that size; whether it was.

    The kernel does it, in the middle of the write, whatever code is writing.
    """

    def limited() -> bool:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        work()
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        return True

    try:
        return run(limited) is None
    except Failed as failure:
        raise AssertionError(failure) from failure


def kill_after(work: Callable[[], Any], seconds: float) -> bool:
    """Do work in a process that is killed after that time; whether it was still at work."""
    pid, pipe = fork(work)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    with os.fdopen(pipe, "rb") as file:
        ended = bool(file.read())
    os.waitpid(pid, 0)
    return not ended


class Counter:
    """Counts this process's operations on files, and kills it at one of them. Only for a process of its own."""

    def __init__(self, last: int | None):
        self.last = last
        self.count = 0
        for name in OPERATIONS:
            setattr(os, name, self._wrapped(getattr(os, name)))
        for module in (builtins, io):
            module.open = self._open(module.open)  # type: ignore[attr-defined]
        torch.save = self._save(torch.save)

    def at(self) -> bool:
        """Count an operation; whether it is the last."""
        self.count += 1
        return self.count - 1 == self.last

    def _wrapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if self.at():
                _die()
            return function(*args, **kwargs)

        return wrapped

    def _open(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if not any(letter in mode for letter in "wax+") or str(file).startswith("/dev/"):
                return function(file, mode, *args, **kwargs)
            if self.at():
                _die()
            return _Halved(function(file, mode, *args, **kwargs), self)

        return wrapped

    def _save(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """torch.save, which writes files from C++."""

        def wrapped(value: Any, file: Any, *args: Any, **kwargs: Any) -> Any:
            if self.at():
                _die()
            if self.at():
                content = io.BytesIO()
                function(value, content, *args, **kwargs)
                Path(file).write_bytes(content.getvalue()[: len(content.getvalue()) // 2])
                _die()
            return function(value, file, *args, **kwargs)

        return wrapped


class _Halved:
    """A file whose writes are counted, the last one being done by half."""

    def __init__(self, file: Any, counter: Counter):
        self._file, self._counter = file, counter

    def write(self, content: Any) -> int:
        if self._counter.at():
            self._file.write(content[: len(content) // 2])
            self._file.flush()
            _die()
        return self._file.write(content)

    def __enter__(self) -> "_Halved":
        self._file.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._file.__exit__(*error)

    def __iter__(self) -> Any:
        return iter(self._file)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
