"""One fit at a time in a folder: two would remove, replace and resume each other's checkpoints."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bayeslora import failing, saving

LOCK = ".fit.lock"
"""The file that a fit holds a lock on while it runs. It is removed afterwards; one that a kill has left is free."""

ATTEMPTS = 100
"""Times that a fit opens the file anew because its owner has removed it meanwhile."""

_held: set[tuple[int, int, int] | None] = set()
"""Process, device and inode of the locks of this process, which the system does not keep from its own threads."""


@contextlib.contextmanager
def claimed(folder: str | os.PathLike[str] | None) -> Iterator[None]:
    """Keep other fits out of a folder, those of other processes and threads.

    Its posterior can be loaded all the while. File systems without locks, and Windows, have none: there, see to it that
    every fit has a folder of its own.

    Args:
        folder: The folder, which need not be there; None for none.

    Raises:
        ValueError: If another fit is at work there.
        NotSavedError: If the folder cannot be made.
    """
    try:
        import fcntl
    except ImportError:
        fcntl = None  # type: ignore[assignment]
    if folder is None or fcntl is None:
        yield
        return
    path = Path(folder) / LOCK
    with failing.saying_what_failed(Path(folder)):
        saving.make_folder(Path(folder))
    handle, key = _locked(path, fcntl)
    try:
        yield
    finally:
        if handle is not None:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            _held.discard(key)
            os.close(handle)


def _locked(path: Path, fcntl: Any) -> tuple[int | None, tuple[int, int, int] | None]:
    """Open a file and lock it; no handle where that is not possible."""
    for _ in range(ATTEMPTS):
        if _key(path) in _held:  # not opened: closing any handle of a file frees all locks that a process has on it
            raise _busy(path, "thread")
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:  # what cannot be written is said by whoever writes
            return None, None
        key = _key(handle)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            os.close(handle)
            raise _busy(path, "process") from None
        except OSError:
            os.close(handle)
            return None, key
        if key is not None and key == _key(path):  # else its owner has removed it, just before
            _held.add(key)
            return handle, key
        os.close(handle)
    return None, None  # a file system whose files have no numbers of their own


def _key(file: Path | int) -> tuple[int, int, int] | None:
    """Return the process, device and inode of a file; None if it is not there."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return os.getpid(), status.st_dev, status.st_ino


def _busy(path: Path, whose: str) -> ValueError:
    return ValueError(
        f"output_dir={str(path.parent)!r}: a fit of another {whose} is at work in it. Give every fit a folder of its "
        "own, or start this one when that has ended."
    )
