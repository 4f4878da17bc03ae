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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from bayeslora.failing import NotSavedError, saying_what_failed
from bayeslora.hashing import hashed, hashed_bytes

T = TypeVar("T")

TOKENIZER = "tokenizer"
"""The tokenizer's folder, where the record does not name another: that of posteriors of earlier versions."""

OWN = r"posterior-[0-9a-f]{16}\.safetensors|(tokenizer|component)-[0-9a-f]{16}"
"""Names of the files that a record names. What is being written begins with a dot, and ends in a process's number."""

ATTEMPTS = 100
"""Times that a reader starts again because a save has replaced, in the meantime, what it was reading."""


ABOUT = r"README\.md|reliability\.png"
"""Names of files about a posterior."""

_numbers = itertools.count()  # threads of one process write the same file under different names


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
    placed = False

    def kept() -> str:
        old = f"Nothing was saved; a posterior that was in {folder} before is as it was."
        return "The posterior itself is saved." if placed else old

    with saying_what_failed(folder, kept):
        make_folder(folder)
    with saying_what_failed(folder, kept), locked(folder), contextlib.ExitStack() as staged:
        before = read(manifest) or {}
        try:
            files: dict[str, Any] = {"tensors": f"posterior-{hashed_bytes(tensors)}.safetensors"}
            files["folders"] = [_write_component(folder, manifest.name, component) for component in components]
            write(folder / files["tensors"], tensors)
            if tokenizer is not None:
                files["tokenizer_folder"] = _write_tokenizer(folder, tokenizer)
            beside = {name: staged.enter_context(_staged(folder / name, text)) for name, text in (about or {}).items()}
            written = staged.enter_context(_staged(manifest, json.dumps(signed(record(files)), indent=2).encode()))
            sync(folder)
            for name in beside:
                (folder / name).unlink(missing_ok=True)
            written.replace(manifest)
            placed = True
            for name, path in beside.items():
                path.replace(folder / name)
            sync(folder)
        except BaseException:
            now = read(manifest)  # it may have been replaced already
            if now is not None or not os.path.lexists(manifest):
                _remove_leftovers(manifest, now or {}, before)
            raise
        _remove_leftovers(manifest, files, before)


def signed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with the digest of its other entries, by which `is_signed` knows it again.

    Where the base model is found stays out of it: that may move, and the base itself has a fingerprint.
    """
    return {**record, "digest": _digest_of_entries(record)}


def is_signed(record: Mapping[str, Any]) -> bool:
    """Return whether a record is as it was saved; one of an earlier version, without a digest, is taken as it is."""
    return "digest" not in record or record["digest"] == _digest_of_entries(record)


def _digest_of_entries(record: Mapping[str, Any]) -> str:
    own = {name: value for name, value in record.items() if name != "digest"}
    if isinstance(base := own.get("base"), Mapping):
        own["base"] = {"class": base.get("class"), "config": base.get("config", {})}
    return hashed(json.dumps(own, sort_keys=True))


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
            _take_mode(file.fileno(), path)
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


def _take_mode(handle: int, path: Path) -> None:
    """Let a file be read by those alone who may read the one that it replaces."""
    with contextlib.suppress(OSError, AttributeError):  # there is none, or it is somebody else's; Windows has no modes
        status = path.lstat()
        if stat.S_ISREG(status.st_mode):
            os.fchmod(handle, stat.S_IMODE(status.st_mode))


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
    return _named(partial, tokenizer_name(partial))


def tokenizer_name(folder: Path) -> str:
    """Return the name that a tokenizer's folder is given for its content."""
    return f"tokenizer-{_digest(folder)[:16]}"


def _write_component(folder: Path, manifest: str, save: Callable[[Path], None]) -> str:
    """Write a component's posterior to a folder named after its record, and return the name."""
    partial = folder / f".component.{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    save(partial)
    return _named(partial, f"component-{hashed_bytes((partial / manifest).read_bytes())}")


def _named(partial: Path, name: str) -> str:
    """Give a folder that is written the name of its content, unless that is there already, and return the name."""
    target = partial.with_name(name)
    if target.is_dir() and _digest(target) == _digest(partial):
        shutil.rmtree(partial)
    else:
        _remove(target)
        partial.rename(target)
    return name


def _files(folder: Path) -> list[Path]:
    """Return the files in a folder; those whose names begin with a dot are the system's, such as `.DS_Store`."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


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
    try:
        there = [*manifest.parent.iterdir()]
    except OSError:
        return
    for path in there:
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
