"""The text of a file: unpacked by what it holds, whatever its name says, and in whichever of a few encodings."""

import contextlib
import importlib
import io
import logging
import re
from pathlib import Path

logger = logging.getLogger(__name__)

ENCODINGS = ("utf-8-sig", "cp1252", "latin-1")
"""Encodings of text, of which the first that fits is taken; the last fits everything."""

MARKS = {
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
"""First bytes of a text that say its encoding."""

COMPRESSED = (".gz", ".bz2", ".xz", ".zip")
"""Endings of compressed files, after that of what they hold."""

PACKED = {"gzip": rb"\x1f\x8b", "bz2": rb"BZh[1-9]1AY&SY", "lzma": rb"\xfd7zXZ\0", "zipfile": rb"PK\x03\x04"}
"""How compressed files begin, by the modules that unpack them."""

MOST_ODD = 0.7
"""Share of the lines with letters beyond ASCII up to which a text is in UTF-8 although these lines are not."""

CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
"""Characters that texts do not have."""

STRANGE = 0.2
"""Share of letters beyond ASCII from which a text in no Unicode is likely to be in another encoding than taken."""


def decoded(path: Path) -> str:
    """Return the text of a file, whose lines end in `\\n`.

    Raises:
        ValueError: If it cannot be unpacked, or is not a text.
    """
    text = _text(_content(path), path).rstrip("\x1a\x00")  # which ends a file of DOS
    return text if "\n" in text else text.replace("\r", "\n")


def _content(path: Path) -> bytes:
    """Return what a file holds, unpacked if it is compressed."""
    content = path.read_bytes()
    name = next((name for name, first in PACKED.items() if re.match(first, content)), None)
    if name is None:
        return content
    module = importlib.import_module(name)
    try:
        if name != "zipfile":
            return bytes(module.decompress(content))
        with module.ZipFile(io.BytesIO(content)) as packed:
            names = [name for name in packed.namelist() if not name.startswith("__MACOSX") and not name.endswith("/")]
            unpacked = {name: packed.read(name) for name in names[:2]}
    except Exception as error:  # each module has its own, and zlib's, too
        raise ValueError(f"{path} cannot be unpacked: {error}.") from error
    if "[Content_Types].xml" in names:
        raise ValueError(f"{path} is a spreadsheet or a document: let its name end in .xlsx, or save it as .csv.")
    if len(names) != 1:
        raise ValueError(f"{path} holds {len(names)} files: give one that holds a single one, or unpack it.")
    return bytes(unpacked[names[0]])


def _text(content: bytes, path: Path) -> str:
    for mark, encoding in MARKS.items():
        if content.startswith(mark):
            return content.decode(encoding, "replace")
    head = content[:200]
    for encoding, first in (("utf-16-le", 1), ("utf-16-be", 0)):  # without its mark: every other byte of a letter is 0
        if len(head) > 3 and head[first::2].count(0) > len(head) / 4 and not head[1 - first :: 2].count(0):
            return content.decode(encoding, "replace")
    with contextlib.suppress(UnicodeDecodeError):
        return content.decode(ENCODINGS[0])
    if (mixed := _line_by_line(content, path)) is not None:
        return mixed
    for encoding in ENCODINGS[1:]:
        with contextlib.suppress(UnicodeDecodeError):
            text = content.decode(encoding).removeprefix("ï»¿")  # the mark of UTF-8, before what is not
            _check(text, encoding, path)
            return text
    raise AssertionError("the last encoding fits everything")


def _line_by_line(content: bytes, path: Path) -> str | None:
    """Return a text that is not in UTF-8, but of which many lines are, as of files put together; None of others."""
    lines = content.split(b"\n")
    beyond = [place for place, line in enumerate(lines) if not line.isascii()]
    odd = [place for place in beyond if not _is_unicode(lines[place])]
    if not odd or len(odd) > MOST_ODD * len(beyond):
        return None
    logger.warning(
        "%s is in UTF-8 but for %d line(s), the first is line %d, which are read in Windows' Western encoding (%s).",
        *(path, len(odd), odd[0] + 1, ENCODINGS[1]),
    )
    for place in odd:
        lines[place] = lines[place].decode(ENCODINGS[1], "replace").encode()
    return b"\n".join(lines).decode(ENCODINGS[0])


def _is_unicode(content: bytes) -> bool:
    try:
        content.decode(ENCODINGS[0])
    except UnicodeDecodeError:
        return False
    return True


def _check(text: str, encoding: str, path: Path) -> None:
    """Refuse what is not a text, and say of one in no Unicode how it is read, if that may be wrong."""
    if len(CONTROLS.findall(text[:10_000])) > len(text[:10_000]) / 100:
        raise ValueError(f"{path} is not a text, whatever its name ends in: give it the ending of what it is.")
    letters = "".join(text[:100_000].split())
    beyond = re.findall(r"\S*[^\x00-\x7f]\S*", text)
    if len(re.findall(r"[^\x00-\x7f]", letters)) > STRANGE * len(letters):
        logger.warning(
            "%s is not in UTF-8, and is read in Windows' Western encoding (%s), such as %r. If that is wrong, save it "
            "in UTF-8.",
            *(path, encoding, beyond[0][:40]),
        )
