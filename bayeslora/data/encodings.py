"""Encodings of texts in no Unicode, told by the letters that a language writes most often."""

import contextlib
import re

SINGLE = 0.6
"""Share of letters beyond ASCII that have to be frequent ones in a language with an alphabet."""

SEVERAL = 0.12
"""Share of characters beyond ASCII that have to be frequent ones in a language with thousands of them."""

KANA = re.compile(r"[\u3041-\u3096\u30a1-\u30fc]")
"""A character that Japanese alone is written with."""

ALPHABETS = {
    "оеаинтсрвлімкду": ("cp1251", "koi8-r", "koi8-u", "cp866", "iso8859-5"),
    "αοιετσνηυρπκίάόέ": ("cp1253",),
    "יוהלאתרבשנמםכ": ("cp1255",),
    "اليمونرتبةهدعسكأفحقج": ("cp1256",),
    "านรอกเงมยลวดี่้ัสทหแ็ใไะคปบ": ("cp874",),
}
"""Languages with an alphabet: the frequent letters, in small ones, and the encodings."""

CHARACTERS = {
    "gb18030": "的一是不了人我在有他这为之大来以个中上们到说国和地也子时道出而要于就下得可你年生好很看没都还太真对"
    "服务态度错差用东西质量快店推荐",
    "big5": "的一是不了人我在有他這為之大來以個中上們到說國和地也子時道出而要於就下得可你年生好很看沒都還太真對"
    "服務態度錯差用東西質量快店推薦",
    "cp949": "이다는에가을를의고하지도기은로사어나한시자그리서대아있것들해인수정보게라만일음니습요",
}
"""The frequent characters of languages that have thousands of them, by their encodings."""

JAPANESE = ("euc-jp", "cp932")
"""Encodings of Japanese; the first has its own characters where Chinese ones have theirs, too."""

AS_MUCH_MORE = 2.0
"""How many times as many frequent characters an encoding has to have as any of another language."""

ESCAPED = (b"\x1b$B", b"\x1b$@")
"""What is before Japanese characters in an encoding that has no bytes beyond ASCII."""

IN_A_ROW = 0.5
"""Share of the bytes beyond ASCII that stand side by side, from which a text has not only accents."""

FEWEST = 30
"""Characters beyond ASCII that a text needs to be judged."""

CLEARLY_MORE = 1.15
"""How many times as many frequent letters an encoding has to have as any of another alphabet."""

LOOKED_AT = 100_000
"""Bytes by which a text is judged."""


def is_escaped(content: bytes) -> bool:
    """Whether a text is in the encoding that writes Japanese without bytes beyond ASCII."""
    return any(mark in content for mark in ESCAPED)


def is_foreign(content: bytes) -> bool:
    """Whether the bytes beyond ASCII of a text make whole words; in Western texts, one is between other letters."""
    part = content[:LOOKED_AT]
    rows = re.findall(rb"[\x80-\xff]+", part)
    return sum(len(row) for row in rows if len(row) > 1) > IN_A_ROW * sum(map(len, rows))


def encoding_of(content: bytes) -> str | None:
    """Return the encoding of a text that is in no Unicode, nor in a Western encoding; None if it cannot be told.

    Args:
        content: The text.
    """
    if is_escaped(content):
        return "iso2022-jp"
    if not is_foreign(content):
        return None
    part = content[:LOOKED_AT]
    part = part[: part.rfind(b"\n") + 1] or part  # whole characters
    for encoding in JAPANESE:
        beyond = _beyond(part, encoding)
        if beyond and len(KANA.findall(beyond)) >= 0.25 * len(beyond):
            return encoding
    shares = {each: _share(_beyond(part, each), frequent) / SEVERAL for each, frequent in CHARACTERS.items()}
    best = max(shares, key=lambda encoding: shares[encoding])
    others = [share for encoding, share in shares.items() if encoding != best]
    if shares[best] >= 1 and shares[best] > AS_MUCH_MORE * max(others):
        return best
    shares = {}
    for letters, encodings in ALPHABETS.items():
        within = {each: _share(_words(part, each), letters) for each in encodings}
        encoding = max(within, key=lambda each: within[each])
        shares[encoding] = within[encoding]
    *_, second, best = sorted(shares, key=lambda encoding: shares[encoding])
    return best if shares[best] >= max(SINGLE, CLEARLY_MORE * shares[second]) else None


def _words(content: bytes, encoding: str) -> str:
    """Return the letters of the words beyond ASCII; none where such letters are rather between others."""
    with contextlib.suppress(UnicodeDecodeError):
        words = [word for word in re.findall(r"[^\W\d_]+", content.decode(encoding)) if not word.isascii()]
        whole = [word for word in words if not re.search("[A-Za-z]", word)]
        letters = "".join(whole)
        are_capitals = sum(map(str.isupper, letters)) > len(letters) / 2  # as small ones are in another encoding
        return letters if len(whole) > IN_A_ROW * len(words) and not are_capitals else ""
    return ""


def _beyond(content: bytes, encoding: str) -> str:
    """Return the characters beyond ASCII of a text; none if it is not in an encoding."""
    with contextlib.suppress(UnicodeDecodeError):
        return re.sub(r"[\x00-\x7f]+", "", content.decode(encoding))
    return ""


def _share(text: str, frequent: str) -> float:
    text = text.casefold()
    return sum(map(text.count, frequent)) / max(len(text), FEWEST)
