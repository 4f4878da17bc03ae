"""What keeps files from being written, found before there is anything to write, or said in one sentence."""

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BESIDE = ".export-"
"""How the names of folders begin that are being filled; those of killed exports are removed by the next."""

STEP = re.compile(r"checkpoint-\d+")
RECORD = "bayeslora.json"

FULL = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)))
"""Reasons that go away when there is room."""


class NotSavedError(OSError):
    """Something could not be written; what was saved there before is as it was."""

    failed: tuple[Path, str] | None = None
    """The file, and why it could not be written."""

    posterior: Any = None
    """The posterior of a fit that had ended, and could not be saved."""


def check_folder(folder: str | os.PathLike[str], what: str) -> None:
    """Raise a NotSavedError unless a fit can write to a folder, which need not be there; nothing is left in it.

    Args:
        folder: The folder.
        what: What to call it in messages.
    """
    there = Path(folder)
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
        with os.scandir(there) as entries:
            taken = next((each for each in entries if (kind := _written_as(each.name)) and not kind(each)), None)
    except OSError as error:
        reason = error.strerror if os.path.isdir(there) else "it is not a folder"
        raise NotSavedError(f"{what}={os.fspath(folder)!r} cannot be written at {there}: {reason}.") from error
    if taken is not None:
        kinds = ("folder", "file") if taken.is_dir() else ("file", "folder")
        raise NotSavedError(
            f"{what}={os.fspath(folder)!r} has a {kinds[0]} called {taken.name!r}, and a fit writes {kinds[1]}s of "
            "such names: move it away, or give another folder."
        )


def _written_as(name: str) -> Callable[["os.DirEntry[str]"], bool] | None:
    """Return a test whether something is what a fit writes under that name; None if it writes nothing of that name."""
    if STEP.fullmatch(name):
        return lambda entry: entry.is_dir()
    return (lambda entry: not entry.is_dir()) if name == RECORD else None


def remedy(reason: str) -> str:
    """Return what is to be done about the reason why a file could not be written."""
    return "make room" if any(full in reason for full in FULL) else "see to that"


@contextlib.contextmanager
def saying_what_failed(path: Path, kept: str | Callable[[], str] = "") -> Iterator[None]:
    """Say in one sentence which file could not be written, and why; what is nested in this says nothing of its own.

    Args:
        path: The file or folder that is written, where the error names none.
        kept: A sentence about what is there, or what returns it.

    Raises:
        NotSavedError: In place of errors of writing; libraries in Rust and C++ raise theirs as plain exceptions.
    """
    try:
        yield
    except Exception as error:
        failed = what_failed(error, path)
        if failed is None:
            raise
        there = kept if isinstance(kept, str) else kept()
        raised = NotSavedError(f"{failed[0]} could not be written: {failed[1]}.{' ' * bool(there)}{there}")
        raised.failed = failed
        raise raised from error


@contextlib.contextmanager
def loadable(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Raise a NotSavedError for a ValueError: what loading would refuse is not saved in place of what can be loaded."""
    try:
        yield
    except ValueError as error:
        raise NotSavedError(
            f"The posterior is not saved in {os.fspath(folder)!r}, because it could not be loaded again: {error}. What "
            "was there is as it was. Fit it anew with inputs and labels scaled to about 1, or at a lower learning rate."
        ) from error


@contextlib.contextmanager
def writing_a_checkpoint(folder: Path) -> Iterator[None]:
    """Say in one sentence that a checkpoint could not be written, and remove what there is of it."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch writes its files from C++, and raises a RuntimeError where the disk is full.
        last = newest(folder)
        path, reason = what_failed(error, last) or (last, str(error).partition("\n")[0])
        shutil.rmtree(folder, ignore_errors=True)
        what = remedy(reason) if isinstance(error, OSError) else "make room"
        raise NotSavedError(
            f"{path} could not be written: {reason.rstrip('.')}. Earlier checkpoints are whole: {what}, and go on with "
            "resume=True."
        ) from error


def what_failed(error: BaseException, path: Path) -> tuple[Path, str] | None:
    """Return the file that an error of writing is about, by the name that it was to have, and the reason.

    Args:
        error: The error.
        path: What is written, where the error names nothing in it.

    Returns:
        None if it is another error.
    """
    if isinstance(error, NotSavedError):
        return error.failed
    rust = re.search(r"(?:I/O error: )?([^:]*) \(os error \d+\)", str(error))
    if isinstance(error, OSError):
        named = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else path
        reason = error.strerror or (rust[1] if rust else str(error))
        return _final(named if path in (named, *named.parents) else path), reason
    return (path, rust[1]) if rust else None


def newest(folder: Path) -> Path:
    """Return the file in a folder that was written last, or the folder: many errors of writing name none."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return max(files, key=lambda path: path.stat().st_mtime_ns, default=folder)


def _final(path: Path) -> Path:
    """Return the name that a file is renamed to, which is written under another one."""
    parts = [part for part in path.parts if not re.fullmatch(rf"{re.escape(BESIDE)}\d+", part)]
    return Path(*(re.sub(r"^\.(.+?)(\.\d+){1,2}$", r"\1", part) for part in parts))
