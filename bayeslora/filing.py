"""Files and folders that stand alone, such as pages, tables and exported adapters: written whole, or not at all."""

import contextlib
import io
import os
import shutil
import stat
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from bayeslora.failing import BESIDE, NotSavedError, check_folder, newest, saying_what_failed, what_failed
from bayeslora.saving import locked, make_folder, sync, write


def write_file(path: str | os.PathLike[str], content: bytes | str) -> Path:
    """Write a file, and the folder that it is in; what was there before is replaced at once.

    Of a link, that is what it leads to. A device or a pipe, such as `/dev/stdout`, is written to as it is.

    Raises:
        NotSavedError: If it cannot be written.
    """
    target, data = Path(path), content.encode() if isinstance(content, str) else content
    with saying_what_failed(target):
        if _is_special(target):
            with target.open("wb") as file:
                file.write(data)
            return target
        final = Path(os.path.realpath(target)) if target.is_symlink() else target
        make_folder(final.parent)
        write(final, data)
    return target


def check_file(path: str | os.PathLike[str], what: str = "path") -> None:
    """Raise a NotSavedError unless `write_file` can write there, before anything is computed for it.

    Args:
        path: The file.
        what: What to call it in messages.
    """
    if os.path.isdir(path):
        raise NotSavedError(f"{what}={os.fspath(path)!r} is a folder: give the name of a file.")
    if not os.path.lexists(path):
        check_folder(Path(path).parent, what)


def _is_special(path: Path) -> bool:
    """Whether neither a file nor a folder stands there, or at the end of a link; an OSError of links in a circle."""
    try:
        kind = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    return not (stat.S_ISREG(kind) or stat.S_ISDIR(kind))


def picture(figure: Any, **settings: Any) -> bytes:
    """Return a figure of matplotlib's as the content of a file; settings are those of `savefig`."""
    stream = io.BytesIO()
    figure.savefig(stream, **settings)
    return stream.getvalue()


def write_folder(
    folder: Path, fill: Callable[[Path], None], keys: Collection[str], stale: Callable[[str], bool] = lambda name: False
) -> None:
    """Write files of fixed names to a folder, beside what else is in it, so that no mixture of old and new is read.

    They are written and put onto the disk beside, and then moved. No rename moves several files together: those
    without which others read none of them go first, and come last. Whoever reads in between, or after a kill there,
    is told that there is nothing.

    Args:
        folder: The folder, which need not be there.
        fill: Writes the files to another folder, or folders of them. If it raises, nothing has changed.
        keys: Names of files without which none of their folder is read; that of the folder itself is the first.
        stale: Whether a file or folder of that name, which is not written anew, is one of those written before.

    Raises:
        NotSavedError: If a file cannot be written.
    """
    existed = folder.is_dir()
    with saying_what_failed(folder):
        make_folder(folder)
        try:
            with locked(folder):
                _replace(folder, fill, tuple(keys), stale)
        except BaseException:
            if not existed:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise


def _replace(folder: Path, fill: Callable[[Path], None], keys: tuple[str, ...], stale: Callable[[str], bool]) -> None:
    for left in folder.glob(f"{BESIDE}*"):
        shutil.rmtree(left, ignore_errors=True)
    beside = folder / f"{BESIDE}{os.getpid()}"
    try:
        beside.mkdir()
        _fill(beside, fill)
        for path in (*beside.rglob("*"), beside):
            sync(path)
        files = [path.relative_to(beside) for path in beside.rglob("*") if path.is_file()]
        files.sort(key=lambda path: (path.name in keys, -len(path.parts), path))
        for path in reversed(files):
            if path.name in keys:
                _remove(folder / path)
        for name in {path.name for path in folder.iterdir()} - {path.parts[0] for path in files}:
            if stale(name):
                _remove(folder / name)
        sync(folder)
        for path in files:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            if (folder / path).is_dir():  # a file is replaced by the rename itself
                _remove(folder / path)
            (beside / path).replace(folder / path)
        for path in {(folder / path).parent for path in files} | {folder}:
            sync(path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _fill(beside: Path, fill: Callable[[Path], None]) -> None:
    try:
        fill(beside)
    except Exception as error:
        failed = what_failed(error, newest(beside))
        if failed is None:
            raise
        raise OSError(0, failed[1], str(failed[0])) from error


def _remove(path: Path) -> None:
    """Remove a file, a link or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
