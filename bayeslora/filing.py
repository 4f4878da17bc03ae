"""Files and folders that stand alone, such as pages, tables and exported adapters: written whole, or not at all."""

import contextlib
import io
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bayeslora.saving import NotSavedError, locked, sync, write

BESIDE = ".export-"
"""How the names of folders begin that are being filled; those of killed exports are removed by the next."""


def write_file(path: str | os.PathLike[str], content: bytes | str) -> Path:
    """Write a file, and the folder that it is in; what was there before is replaced at once.

    Raises:
        NotSavedError: If it cannot be written.
    """
    target = Path(path)
    with _saying_what_failed(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        write(target, content.encode() if isinstance(content, str) else content)
    return target


def picture(figure: Any, **settings: Any) -> bytes:
    """Return a figure of matplotlib's as the content of a file; settings are those of `savefig`."""
    stream = io.BytesIO()
    figure.savefig(stream, **settings)
    return stream.getvalue()


def write_folder(folder: Path, fill: Callable[[Path], None], key: str) -> None:
    """Write files of fixed names to a folder, beside what else is in it, so that no mixture of old and new is read.

    They are written and put onto the disk beside, and then moved. No rename moves several files together: the one
    without which others read none of them goes first, and comes last. Whoever reads in between, or after a kill there,
    is told that there is nothing.

    Args:
        folder: The folder, which need not be there.
        fill: Writes the files to another folder. If it raises, nothing has changed.
        key: The file without which none is read.

    Raises:
        NotSavedError: If a file cannot be written.
    """
    existed = folder.is_dir()
    with _saying_what_failed(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with locked(folder):
                _replace(folder, fill, key)
        except BaseException:
            if not existed:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise


def _replace(folder: Path, fill: Callable[[Path], None], key: str) -> None:
    for left in folder.glob(f"{BESIDE}*"):
        shutil.rmtree(left, ignore_errors=True)
    beside = folder / f"{BESIDE}{os.getpid()}"
    try:
        beside.mkdir()
        fill(beside)
        for path in (*beside.rglob("*"), beside):
            sync(path)
        (folder / key).unlink(missing_ok=True)
        sync(folder)
        for path in sorted(beside.iterdir(), key=lambda path: path.name == key):
            target = folder / path.name
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            path.replace(target)
        sync(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextlib.contextmanager
def _saying_what_failed(path: Path) -> Iterator[None]:
    """Say in one sentence what could not be written, and why; libraries in Rust raise exceptions of their own."""
    try:
        yield
    except NotSavedError:
        raise
    except Exception as error:
        found = re.search(r"(?:I/O error: )?([^:]*) \(os error \d+\)", str(error))
        if not isinstance(error, OSError) and not found:
            raise
        reason = getattr(error, "strerror", None) or (found[1] if found else error)
        raise NotSavedError(f"{path} could not be written: {reason}.") from error
