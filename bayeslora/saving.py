"""Saves that take effect at once: whoever reads, finds what was there before or what is there now, and all of it."""

import contextlib
import glob
import hashlib
import itertools
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

TOKENIZER = "tokenizer"
"""The tokenizer's folder, where the record does not name another: that of posteriors of earlier versions."""

OWN = r"posterior-[0-9a-f]{16}\.safetensors|(tokenizer|component)-[0-9a-f]{16}"
"""Names of the files that a record names. What is being written begins with a dot, and ends in a process's number."""

ATTEMPTS = 100
"""Times that a reader starts again because a save has replaced, in the meantime, what it was reading."""


ABOUT = r"README\.md|reliability\.png"
"""Names of files about a posterior."""

BESIDE = ".export-"
"""How the names of folders begin that are being filled; those of killed exports are removed by the next."""

_numbers = itertools.count()  # threads of one process write the same file under different names


class NotSavedError(OSError):
    """Something could not be written; what was saved there before is as it was."""

    failed: tuple[Path, str] | None = None
    """The file, and why it could not be written."""


def save_together(
    manifest: Path,
    tensors: bytes,
    record: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    tokenizer: Any = None,
    components: Sequence[Callable[[Path], None]] = (),
    about: Mapping[str, bytes] | None = None,
) -> None:
    """Write a posterior's files so that they take effect together, or not at all.

    The tensors' file and the tokenizer's folder carry a hash of their content in their names, and the record names
    them: replacing the record, one atomic rename, is what replaces the posterior. What it no longer names is removed
    afterwards, with what killed saves have left.

    Args:
        manifest: The record's file; the others are put beside it.
        tensors: Content of the tensors' file.
        record: The record, given the names of the files, `tensors`, `folders` of components, and, if there is one,
            `tokenizer_folder`.
        tokenizer: The tokenizer, if there is one.
        components: Each writes a posterior of its own into a folder.
        about: Files about the posterior, such as its card, by name. Those of the one before are removed just before
            the rename, and these come just after it: they never stand beside another posterior.

    Raises:
        NotSavedError: If a file cannot be written, because the disk is full, say.
    """
    folder = manifest.parent
    kept = f"Nothing was saved; a posterior that was in {folder} before is as it was."
    with saying_what_failed(folder, kept):
        make_folder(folder)
    with locked(folder), saying_what_failed(folder, kept), contextlib.ExitStack() as staged:
        before = read(manifest) or {}
        try:
            files: dict[str, Any] = {"tensors": f"posterior-{hashlib.sha256(tensors).hexdigest()[:16]}.safetensors"}
            files["folders"] = [_write_component(folder, manifest.name, component) for component in components]
            write(folder / files["tensors"], tensors)
            if tokenizer is not None:
                files["tokenizer_folder"] = _write_tokenizer(folder, tokenizer)
            beside = {name: staged.enter_context(_staged(folder / name, text)) for name, text in (about or {}).items()}
            written = staged.enter_context(_staged(manifest, json.dumps(record(files), indent=2).encode()))
            sync(folder)
            for name in beside:
                (folder / name).unlink(missing_ok=True)
            written.replace(manifest)
            for name, path in beside.items():
                path.replace(folder / name)
            sync(folder)
        except BaseException:
            _remove_leftovers(manifest, before, before)
            raise
        _remove_leftovers(manifest, files, before)


def read_unchanged(manifest: Path, read: Callable[[], T]) -> T:
    """What `read` returns, from files that one save wrote: it starts again where another has replaced and removed them.

    Args:
        manifest: The record's file.
        read: Reads it, and what it names; raises an exception where that is gone.
    """
    for _ in range(ATTEMPTS):
        before = _version(manifest)
        try:
            return read()
        except Exception:
            if before is None or _version(manifest) == before:
                raise
    raise ValueError(f"{manifest.parent} was saved anew {ATTEMPTS} times while it was read: wait until that ends.")


@contextlib.contextmanager
def reading_folder(path: Path) -> Iterator[None]:
    """Raise a FileNotFoundError unless the folder that is read here stays there, whole.

    A save moves it away before it removes the files: if the same folder stands there afterwards, none was missing.
    """
    inode = path.stat().st_ino
    yield
    if path.stat().st_ino != inode:
        raise FileNotFoundError(f"{path} was replaced while it was read")


def sync(path: Path) -> None:
    """Put a file, or the names in a folder, onto the disk itself: they outlast a power cut from here on."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write(path: Path, content: bytes) -> None:
    """Write a file beside, put it onto the disk, and rename it: the old content or the new is there, and all of it."""
    with _staged(path, content) as temporary:
        temporary.replace(path)


@contextlib.contextmanager
def _staged(path: Path, content: bytes) -> Iterator[Path]:
    """Write a file beside, put it onto the disk, and yield it; unless it is renamed until the end, it is removed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{next(_numbers)}")
    try:
        _remove_killed(path)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    except OSError as error:
        if isinstance(error, NotSavedError):
            raise
        raise OSError(error.errno or 0, error.strerror or str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _remove_killed(path: Path) -> None:
    """Remove what processes have left that were killed while they wrote a file."""
    if os.name == "nt":  # where nobody can be asked whether a process runs
        return
    for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
        if number := re.fullmatch(r"\.(\d{1,9})(\.\d+)?", left.name[len(path.name) + 1 :]):
            try:
                os.kill(int(number[1]), 0)
            except ProcessLookupError:
                left.unlink(missing_ok=True)
            except OSError:  # somebody else's
                pass


def _write_tokenizer(folder: Path, tokenizer: Any) -> str:
    """Write a tokenizer's files to a folder named after their content, and return its name."""
    partial = folder / f".tokenizer.{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        tokenizer.save_pretrained(partial)
    except Exception as error:
        # Fast tokenizers are written in Rust, whose errors arrive as plain exceptions.
        if isinstance(error, OSError) or "os error" not in str(error):
            raise
        raise OSError(0, str(error), str(folder / TOKENIZER)) from error
    for path in (*partial.rglob("*"), partial):
        sync(path)
    digest = _digest(partial)
    name = f"tokenizer-{digest[:16]}"
    target = folder / name
    if target.is_dir() and _digest(target) == digest:
        shutil.rmtree(partial)
        return name
    _remove(target)
    partial.rename(target)
    return name


def _write_component(folder: Path, manifest: str, save: Callable[[Path], None]) -> str:
    """Write a component's posterior to a folder named after its record, and return the name."""
    partial = folder / f".component.{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    save(partial)
    content = (partial / manifest).read_bytes()
    name = f"component-{hashlib.sha256(content).hexdigest()[:16]}"
    target = folder / name
    if target.is_dir() and _digest(target) == _digest(partial):
        shutil.rmtree(partial)
        return name
    _remove(target)
    partial.rename(target)
    return name


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _digest(folder: Path) -> str:
    """A hash of the names and contents of a folder's files."""
    digest = hashlib.sha256()
    for path in _files(folder):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def _version(path: Path) -> tuple[int, int, int] | None:
    """What tells a file from the one that replaces it. Nothing is read, which from a pipe would never end."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def read(path: Path) -> dict[str, Any] | None:
    """Return a record of JSON; None if it is not there, or not whole."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):  # reading a pipe would never end
            return None
        record = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _remove_leftovers(manifest: Path, kept: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Remove what saves have written, except what a record names; what cannot be removed is left to the next save.

    Args:
        manifest: The record's file.
        kept: The record that counts.
        before: The one that counted before.
    """
    names = [kept.get("tensors"), kept.get("tokenizer_folder"), *kept.get("folders", _folders(kept))]
    partial = rf"\.({OWN}|{TOKENIZER}|component|{re.escape(manifest.name)})(\.\d+){{0,2}}|\.({ABOUT})(\.\d+){{2}}"
    for path in manifest.parent.iterdir():
        own = re.fullmatch(OWN, path.name) and path.name not in names
        # Earlier versions wrote every tokenizer to one folder, which is only ours to remove where a record means it.
        own = own or (path.name == TOKENIZER and _means_plain_folder(before) and not _means_plain_folder(kept))
        if own or re.fullmatch(partial, path.name):
            _remove(path)


def _folders(record: Mapping[str, Any]) -> list[Any]:
    """The folders of components that a record names."""
    components = record.get("components")
    return [each.get("folder") for each in components if isinstance(each, dict)] if isinstance(components, list) else []


def _means_plain_folder(record: Mapping[str, Any]) -> bool:
    return bool(record.get("tokenizer")) and "tokenizer_folder" not in record


def _remove(path: Path) -> None:
    """Remove a file or a folder; a folder disappears at once, so that nobody reads a part of it."""
    with contextlib.suppress(OSError):
        if not path.is_dir():
            path.unlink(missing_ok=True)
            return
        if not path.name.startswith("."):
            path = path.rename(path.with_name(f".{path.name}.{os.getpid()}"))
        shutil.rmtree(path)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other saves out of a folder: they would remove, as left over, what this one has yet to name.

    The lock is on the folder itself, leaves no file, and ends with its process. File systems without locks, and
    Windows, have none: there, save from one process at a time.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)  # a process forked meanwhile would otherwise keep it
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Make a folder and those that it is in, unless it is there; the error says if something else stands there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise FileExistsError(error.errno, "it is not a folder", str(folder)) from None


def check_folder(folder: str | os.PathLike[str], what: str) -> None:
    """Raise a NotSavedError unless files can be written to a folder, which need not be there; nothing is left in it.

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
    except OSError as error:
        reason = error.strerror if there.is_dir() else "it is not a folder"
        raise NotSavedError(f"{what}={os.fspath(folder)!r} cannot be written at {there}: {reason}.") from error


@contextlib.contextmanager
def saying_what_failed(path: Path, kept: str = "") -> Iterator[None]:
    """Say in one sentence which file could not be written, and why; what is nested in this says nothing of its own.

    Args:
        path: The file or folder that is written, where the error names none.
        kept: A sentence about what was there before.

    Raises:
        NotSavedError: In place of errors of writing; libraries in Rust and C++ raise theirs as plain exceptions.
    """
    try:
        yield
    except Exception as error:
        failed = what_failed(error, path)
        if failed is None:
            raise
        raised = NotSavedError(f"{failed[0]} could not be written: {failed[1]}.{' ' * bool(kept)}{kept}")
        raised.failed = failed
        raise raised from error


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
    return max(_files(folder), key=lambda path: path.stat().st_mtime_ns, default=folder)


def _final(path: Path) -> Path:
    """Return the name that a file is renamed to, which is written under another one."""
    parts = [part for part in path.parts if not re.fullmatch(rf"{re.escape(BESIDE)}\d+", part)]
    return Path(*(re.sub(r"^\.(.+?)(\.\d+){1,2}$", r"\1", part) for part in parts))
