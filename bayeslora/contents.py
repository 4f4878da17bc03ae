"""Objects of Python whose content a pass may change without any attribute: bytes, files in memory, unusual arrays.

Their content is put back where it is, so that whoever looks into the same memory sees it, too.
"""

import array
import ctypes
import io
import mmap
import pickle
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

LARGEST = 2**26
"""Bytes of the largest content, or tensor of real numbers, that is kept: 64 MiB."""

LARGEST_LENT = 2**20
"""Bytes of the largest plain array of which a pass works on a copy."""

BYTES = (bytearray, memoryview, mmap.mmap, array.array)
FILES = (io.StringIO, io.BytesIO)
OF_C = ctypes.c_int.__mro__[2]
KINDS = (*BYTES, *FILES, OF_C, np.random.BitGenerator, np.ndarray)


def has_content(value: Any, training: bool = False) -> bool:
    """Whether a value is such an object, which can be written to; in training, random numbers go on."""
    if not isinstance(value, KINDS):
        return False
    if isinstance(value, np.ndarray):
        return not is_lent(value) and value.flags.writeable and value.nbytes <= LARGEST
    if isinstance(value, FILES):
        return not value.closed
    if isinstance(value, np.random.BitGenerator):
        return not training
    try:
        view = memoryview(value)  # type: ignore[arg-type]
    except (ValueError, TypeError, BufferError):  # it is closed, or a pointer
        return False
    return not view.readonly and view.nbytes <= LARGEST


def is_lent(value: np.ndarray) -> bool:
    """Whether a pass can work on a copy of an array: it is plain and small."""
    return type(value) is np.ndarray and not value.dtype.hasobject and value.nbytes <= LARGEST_LENT


class Content:
    """What an object holds, as a mapping with one entry.

    Args:
        owner: The object.
    """

    names = ("content",)

    def __init__(self, owner: Any):
        self.owner = owner

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        if has_content(self.owner):
            yield "content", _content(self.owner)

    def __setitem__(self, name: str, value: Any) -> None:
        _put(self.owner, value)


class OfThread:
    """What a `threading.local` holds for the thread that asks, as a mapping."""

    names = ()

    def __init__(self, owner: threading.local):
        self.owner = owner

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        yield from vars(self.owner).items()

    def __setitem__(self, name: str, value: Any) -> None:
        vars(self.owner)[name] = value

    def __delitem__(self, name: str) -> None:
        del vars(self.owner)[name]


class _Numbers:
    """The numbers of an array, or its references to objects, and what of it is masked."""

    def __init__(self, value: np.ndarray):
        self.data = np.array(np.ma.getdata(value), subok=False)
        self.mask = np.array(value.mask) if isinstance(value, np.ma.MaskedArray) else None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Numbers) and self._bytes() == other._bytes()

    __hash__ = None  # type: ignore[assignment]

    def _bytes(self) -> list[tuple[tuple[int, ...], bytes]]:
        return [(part.shape, part.tobytes()) for part in (self.data, self.mask) if part is not None]


def _content(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _Numbers(value)
    if isinstance(value, np.random.BitGenerator):
        return pickle.dumps(value.state)
    return value.__getstate__() if isinstance(value, FILES) else memoryview(value).tobytes()


def _put(value: Any, content: Any) -> None:
    if isinstance(value, np.ndarray):
        np.ma.getdata(value)[...] = content.data
        if isinstance(value, np.ma.MaskedArray):
            value.mask = content.mask
    elif isinstance(value, np.random.BitGenerator):
        value.state = pickle.loads(content)
    elif isinstance(value, FILES):
        value.__setstate__(content)  # type: ignore[union-attr]
    elif isinstance(value, OF_C):
        ctypes.memmove(ctypes.addressof(value), content, len(content))  # type: ignore[arg-type]
    elif isinstance(value, memoryview):
        value.cast("B")[:] = content
    else:
        value[:] = type(value)(value.typecode, content) if isinstance(value, array.array) else content
