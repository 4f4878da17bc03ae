"""The text of a file: unpacked by what it holds, whatever its name says, and in whichever of a few encodings."""

import contextlib
import logging
import re
from pathlib import Path

from bayeslora.data.encodings import LOOKED_AT, encoding_of, is_escaped, is_foreign
from bayeslora.data.packed import unpacked

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

COMPRESSED = (".gz", ".bz2", ".xz", ".zip", ".zst")
"""Endings of compressed files, after that of what they hold."""

MOST_ODD = 0.7
"""Share of the lines with letters beyond ASCII up to which a text is in UTF-8 although these lines are not."""

CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
"""Characters that texts do not have."""

WITH_SIGN = re.compile(r"\S*[^\W\d_][¹³¿¼½¾¦¶±¨¸¡¢£¥§¬¯]+[^\W\d_]\S*")
"""A word with a sign between its letters, which is a letter in another encoding."""

BEYOND = re.compile(r"\S*[^\x00-\x7f]\S*")
"""A word with a character beyond ASCII."""

STRANGE = 0.2
"""Share of letters beyond ASCII from which a text in no Unicode is likely to be in another encoding than taken."""


NEVER = {
    rb"version https://git-lfs": "a pointer of Git LFS, in place of the file: fetch that, git lfs pull",
    rb"\s*<(!doctype html|html|head|body)\b": "a page of the web: download the file that it is about",
    rb"%PDF": "a PDF: copy its table into a text, .csv",
}
"""How files begin that hold no table, whatever their name ends in, and what to do with each."""

OTHERS = {
    rb"SQLite format 3\0": "a database of SQLite: read its table, pandas.read_sql(…), and give that",
    rb"PAR1": "a table of Parquet: let its name end in .parquet",
    rb"ARROW1": "a table of Arrow: let its name end in .arrow",
    rb"\xd0\xcf\x11\xe0": "a spreadsheet or a document: let its name end in .xls, or save it as .csv",
    rb"\s*<\?xml": "XML: turn it into a table, pandas.read_xml(…), and give that",
    rb"\{\\rtf": "a document (RTF): save it as a plain text",
    rb"\x93NUMPY": "an array of NumPy: load it, numpy.load(…), and give (inputs, labels)",
    rb"\x89HDF": "a file of HDF: read its table, pandas.read_hdf(…), and give that",
    rb"\x80[\x02-\x05]": "a pickle, which may run code: load it yourself, and give what it holds",
    rb"7z\xbc\xaf|Rar!": "an archive of a kind that is not read: unpack it",
}
"""How files begin that hold no table of text, and what to do with each."""


def decoded(path: Path) -> str:
    """Return the text of a file, whose lines end in `\\n`.

    Raises:
        ValueError: If it cannot be unpacked, or is not a text.
    """
    content = unpacked(path)
    check_plain(content[:1000], path)
    text = _text(content, path).rstrip("\x1a\x00")  # which ends a file of DOS
    if empty := text.count("\0"):
        logger.warning("%s has %d empty character(s) (NUL), which are left out.", path, empty)
        text = text.replace("\0", "")
    return text if "\n" in text else text.replace("\r", "\n")


def check_plain(content: bytes, path: Path, is_text: bool = True) -> None:
    """Raise a ValueError if a file begins as those do that hold no table; it says what to do.

    Args:
        content: How the file begins.
        path: The file.
        is_text: Whether it has to be a table of text.
    """
    for first, what in (NEVER | OTHERS if is_text else NEVER).items():
        if re.match(first, content, re.IGNORECASE):
            raise ValueError(f"{path} is {what}.")


def _text(content: bytes, path: Path) -> str:
    for mark, encoding in MARKS.items():
        if content.startswith(mark):
            return content.decode(encoding, "replace")
    head = content[:10_000]
    for encoding, first in (("utf-16-le", 1), ("utf-16-be", 0)):  # without its mark: one byte of a letter is 0
        zeros, end = head[first::2].count(0), "\n".encode(encoding)
        few = len(head) < 4 or zeros < 3 or zeros < len(head) / 100
        if not few and not head[1 - first :: 2].count(0) and (end in head or b"\n" not in head):
            return content.decode(encoding, "replace")
    if not is_escaped(content):
        with contextlib.suppress(UnicodeDecodeError):
            return content.decode(ENCODINGS[0])
    if (foreign := encoding_of(content)) is not None:
        return _foreign(content, foreign, path)
    if (mixed := _line_by_line(content, path)) is not None:
        return mixed
    for encoding in ENCODINGS[1:]:
        with contextlib.suppress(UnicodeDecodeError):
            text = content.decode(encoding).removeprefix("ï»¿")  # the mark of UTF-8, before what is not
            _check(text, encoding, path)
            return text
    raise AssertionError("the last encoding fits everything")


def _foreign(content: bytes, encoding: str, path: Path) -> str:
    """Return a text in an encoding that its letters tell."""
    text = content.decode(encoding, "replace")
    logger.warning(
        "%s is not in UTF-8, and is read in %s, by its letters, such as %r. If that is wrong, save it in UTF-8.",
        *(path, encoding, BEYOND.findall(text)[0][:40]),
    )
    return text


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
    signs = WITH_SIGN.findall(text)
    is_strange = len(re.findall(r"[^\x00-\x7f]", letters)) > STRANGE * len(letters)
    if is_strange or signs or is_foreign(text[:LOOKED_AT].encode(encoding, "replace")):
        logger.warning(
            "%s is not in UTF-8, and is read in Windows' Western encoding (%s), such as %r. If that is wrong, save it "
            "in UTF-8.",
            *(path, encoding, (signs or BEYOND.findall(text))[0][:40]),
        )
