"""What compressed files hold, unless that is far more than their size lets expect."""

import importlib
import io
import re
from pathlib import Path
from typing import Any

ZSTANDARD = b"\x28\xb5\x2f\xfd"
"""How a file that Zstandard has compressed begins."""

PACKED = {"gzip": rb"\x1f\x8b", "bz2": rb"BZh[1-9]1AY&SY", "lzma": rb"\xfd7zXZ\0", "zipfile": rb"PK\x03\x04"}
"""How compressed files begin, by the modules that unpack them."""

FREE, MOST_TIMES = 2**28, 100
"""A file may hold so many bytes, or so many times its own; texts are a twentieth when they are compressed."""

MOST_FILES = 1000
"""Tables in an archive."""


def unpacked(path: Path) -> bytes:
    """Return what a file holds, unpacked if it is compressed.

    Raises:
        ValueError: If it cannot be unpacked, or holds far more than its size lets expect.
    """
    content = path.read_bytes()
    name = next((name for name, first in PACKED.items() if re.match(first, content)), None)
    if content.startswith(ZSTANDARD):
        return _of_zstandard(content, path)
    if name is None:
        return content
    module = importlib.import_module(name)
    try:
        if name != "zipfile":
            with module.open(io.BytesIO(content)) as stream:
                return _read(stream, len(content), path)
        with module.ZipFile(io.BytesIO(content)) as packed:
            names = [name for name in packed.namelist() if not name.startswith("__MACOSX") and not name.endswith("/")]
            check_archive(packed, names[:2], path)
            found = {name: packed.read(name) for name in names[:2]}
    except Expanding:
        raise
    except Exception as error:  # each module has its own, and zlib's, too
        raise ValueError(f"{path} cannot be unpacked: {error}.") from error
    if "[Content_Types].xml" in names:
        raise ValueError(f"{path} is a spreadsheet or a document: let its name end in .xlsx, or save it as .csv.")
    if len(names) != 1:
        raise ValueError(f"{path} holds {len(names)} files: give one that holds a single one, or unpack it.")
    return bytes(found[names[0]])


class Expanding(ValueError):
    """A file holds far more than its size lets expect, or far too many files."""

    def __init__(self, path: Path, what: str):
        super().__init__(
            f"{path}, of {path.stat().st_size:,} bytes, holds {what}: unpack it yourself if that is right."
        )


def check_archive(packed: Any, names: list[str], path: Path) -> None:
    """Raise an error if files in a zip archive are too many, or too large for it; no more of them is ever unpacked."""
    if len(names) > MOST_FILES:
        raise Expanding(path, f"{len(names):,} tables, more than {MOST_FILES:,}")
    size = sum(packed.getinfo(name).file_size for name in names)
    if size > _most(path.stat().st_size):
        raise Expanding(path, f"{size:,} bytes")


def _most(size: int) -> int:
    return max(FREE, MOST_TIMES * size)


def _read(stream: Any, size: int, path: Path) -> bytes:
    found = bytes(stream.read(_most(size) + 1))
    if len(found) > _most(size):
        raise Expanding(path, f"more than {_most(size):,} bytes")
    return found


def _of_zstandard(content: bytes, path: Path) -> bytes:
    """Return what Zstandard has compressed, by Arrow, which has it where Python has not."""
    import pyarrow as pa  # type: ignore[import-untyped]

    try:
        with pa.CompressedInputStream(pa.BufferReader(content), "zstd") as packed:
            return _read(packed, len(content), path)
    except OSError as error:
        raise ValueError(f"{path} cannot be unpacked: {error}.") from error
