"""Files without a head: words with a tag on each line (CoNLL, CoNLL-U), and a text on each line."""

import re
from collections.abc import Sequence
from typing import Any

from bayeslora.tasks.words import TAG

NUMBERED = re.compile(r"\d+(-\d+|\.\d+)?")
"""The number of a word in CoNLL-U; of words that are written as one, or that are not written, too."""

FASTTEXT = "__label__"
"""What stands before a label at the beginning of a line of fastText."""

UPOS = 3
"""The column of universal parts of speech in CoNLL-U."""


def words_with_tags(text: str, is_sure: bool = False) -> dict[str, list[Any]] | None:
    """Return the columns `tokens` and `ner_tags` (of CoNLL-U, `upos`) of a text with a word and its tags on each line.

    A blank line ends a sentence. Columns are separated by tabs, otherwise by spaces; the first is the word and the last
    its tag. A single column has no tags. Comments, which begin with `#` and a space, and `-DOCSTART-` are skipped.

    Args:
        text: The text.
        is_sure: Whether the name of the file says so; otherwise None is returned unless every last column is a tag of
            the kind `B-PER` or `O`.

    Raises:
        ValueError: If the name says so, and a line has another number of columns; it names the line.
    """
    blocks: list[list[list[str]]] = [[]]
    wide: dict[int, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        line = line.rstrip("\r ")
        if not line.strip():
            blocks.append([])
        elif not line.startswith(("-DOCSTART-", "# ")) and line != "#":
            blocks[-1].append(line.split("\t") if "\t" in line else line.split())
            wide.setdefault(len(blocks[-1][-1]), number)
    sentences = [block for block in blocks if block]
    rows = [row for block in sentences for row in block]
    if not rows:
        return None
    if is_sure and all(len(row) == 10 and NUMBERED.fullmatch(row[0]) for row in rows):
        sentences = [[row for row in block if row[0].isdecimal()] for block in sentences]
        return {
            "tokens": [[row[1] for row in block] for block in sentences],
            "upos": [[row[UPOS] for row in block] for block in sentences],
        }
    are_tags = len(wide) == 1 and 1 not in wide and all(TAG.fullmatch(row[-1]) for row in rows)
    if not are_tags and not is_sure:
        return None
    if len(wide) > 1:
        before, width = [*wide][:2]
        raise ValueError(f"line {wide[width]}: there are {width} columns, and {before} before")
    columns = {"tokens": [[row[0] for row in block] for block in sentences]}
    if 1 not in wide:
        columns["ner_tags"] = [[row[-1] for row in block] for block in sentences]
    return columns


def texts(lines: Sequence[str]) -> dict[str, list[Any]]:
    """Return the column `text`, with a row for each line that is not blank.

    Lines that all begin with labels as fastText writes them, `__label__good fine film`, have a column `label`, too: a
    text, or a list of texts if any line has several.
    """
    rows = [line.strip() for line in lines if line.strip()]
    if not rows or not all(row.startswith(FASTTEXT) for row in rows):
        return {"text": rows}
    labels, rest = [], []
    for row in rows:
        words = row.split()
        count = next((place for place, word in enumerate(words) if not word.startswith(FASTTEXT)), len(words))
        labels.append([word.removeprefix(FASTTEXT) for word in words[:count]])
        rest.append(row.split(maxsplit=count)[count] if len(words) > count else "")
    return {"text": rest, "label": labels if any(len(each) > 1 for each in labels) else [each[0] for each in labels]}
