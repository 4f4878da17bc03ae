"""Words with tags, spans of characters and answers in the forms of annotation tools, in the columns that tasks read."""

import ast
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bayeslora.data.columns import LABELS, Columns, is_text
from bayeslora.data.tabling import as_table
from bayeslora.tasks.choices import plain_name
from bayeslora.tasks.words import TAG, TAGS, WORDS

logger = logging.getLogger(__name__)

WORD = ("word", "token", "words", "tokens", "form")
"""Columns with one word in each row."""

TAG_OF_WORD = ("tag", "ner_tag", "ner", "label", "entity", "iob", "bio", *TAGS, *LABELS, "pos", "pos_tag")
"""Columns with the tag of one word in each row; if there are several, the first of these."""

SENTENCE = ("sentence_#", "sentence", "sentence_id", "sent_id", "sentence_idx", "sentence_number", "sentenceid", "sent")
"""Columns that say which sentence a word is of."""

SPANS = ("label", "labels", "entities", "spans", "annotations", "annotation", "ner", "ner_tags", "tags")
"""Columns with spans of characters and what they are."""

START, END = ("start", "start_offset", "begin", "start_char"), ("end", "end_offset", "stop", "end_char")
WHAT = ("label", "labels", "entity_group", "entity", "tag", "type", "class")
"""Keys of a span: where it starts and ends, in characters, and what it is."""

OF_LABEL_STUDIO = ("data", "annotations")
"""Columns of what Label Studio exports."""

OF_PRODIGY = ("label", "spans", "accept")
"""Columns of what Prodigy exports, beside `answer`, which says whether a row was accepted."""

PIECE = re.compile(r"\w+|[^\w\s]")
"""A word or a mark of a text whose spans have tags."""

ARRAY = re.compile(r"array\((\[.*?\])(, dtype=[\w'<>]+)?\)", re.DOTALL)
"""An array of NumPy as it is written within a mapping."""


def of_rows(rows: Sequence[Any], known: Columns) -> dict[str, list[Any]] | None:
    """Return the columns of sentences of `(word, tag)`, of `(words, tags)`, or of texts with `{"entities": spans}`.

    Lists of words are those of the fit's column, if the fit read words with tags; None of any other rows.
    """
    if known.label is not None and not known.text and all(map(_are_texts, rows)):
        return {"tokens": [[*row] for row in rows]}
    if all(isinstance(row, Mapping) and {*OF_LABEL_STUDIO} <= {*row} for row in rows):
        return {key: [row[key] for row in rows] for key in OF_LABEL_STUDIO}
    if all(isinstance(row, list | tuple) and len(row) == 2 for row in rows):
        if all(isinstance(row[0], str) and isinstance(row[1], Mapping) and "entities" in row[1] for row in rows):
            return {"text": [row[0] for row in rows], "entities": [list(row[1]["entities"]) for row in rows]}
        if (found := of_pair(tuple(zip(*rows, strict=True)))) is not None:
            return found
    are_pairs = all(isinstance(row, list | tuple) and row and all(map(_is_tagged, row)) for row in rows)
    if are_pairs and all(TAG.fullmatch(tag) for row in rows for _, tag in row):
        return {
            "tokens": [[word for word, _ in row] for row in rows],
            "ner_tags": [[tag for _, tag in row] for row in rows],
        }
    return None


def of_pair(data: tuple[Any, ...]) -> dict[str, list[Any]] | None:
    """Return the columns of words and their tags, which are given beside each other as lists of lists.

    Texts by twos with two labels each are pairs of texts, unless the labels are tags as in `B-PER`.
    """
    words, tags = ([*part] if isinstance(part, list | tuple) or getattr(part, "ndim", False) else [] for part in data)
    if not words or len(words) != len(tags) or not all(map(_are_texts, words)) or not all(map(_fit, words, tags)):
        return None
    found = {"tokens": [[*row] for row in words], "ner_tags": [[*row] for row in tags]}
    are_tags = all(TAG.fullmatch(str(tag)) for row in tags for tag in row)
    return found if are_tags or {*map(len, words)} - {1, 2} else None


def _are_texts(value: Any) -> bool:
    are_several = isinstance(value, list | tuple | np.ndarray) and len(value) > 0
    return are_several and all(isinstance(each, str) for each in value)


def _fit(words: Any, tags: Any) -> bool:
    """Whether there is a tag for each word."""
    are_tags = isinstance(tags, list | tuple | np.ndarray) and all(
        isinstance(tag, str | int | np.integer) for tag in tags
    )
    return are_tags and len(tags) == len(words)


def _is_tagged(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(each, str) for each in value)


def rewritten(table: Any, asked: Columns, known: Columns, name: str, with_labels: bool) -> Any:
    """Return a table with the columns that tasks read, `tokens` and tags or `answers`; any other as it is.

    These forms are seen by their columns and by all of their values: a word in each row, with the sentence that it is
    of; words and tags with spaces between them, as many of each; spans of characters, `[start, end, label]` or mappings
    of these, whose words are tagged `B-label` and `I-label`, and others `O`; answers with their start, in columns of
    their own or written as texts.

    Of what Prodigy exports, all rows have to be accepted, if labels are wanted, and choices that were made are labels.

    Raises:
        ValueError: If there are tags and none of the texts has as many words, a span is not in its text, or a row was
            rejected.
    """
    label = asked.label or known.label
    table = _accepted(table, label, name, with_labels) if len(table) else table
    if asked.text or not len(table):
        return table
    for form in (_one_word_a_row, _of_label_studio, _chosen, _spans, _spaced, _answers):
        columns = form(table, label, name)
        if columns is not None:
            return as_table(columns, name)
    return table


def _say(label: str | None, message: str, *values: Any) -> None:
    """Log how data were read; aloud where no fit has read the like."""
    logger.log(logging.WARNING if label is None else logging.INFO, message, *values)


def _by_name(table: Any, names: Sequence[str]) -> str | None:
    """Return the column with the first of some names that there is."""
    by_name = {plain_name(column): column for column in reversed(table.column_names)}
    return next((by_name[name] for name in names if name in by_name), None)


def _texts(table: Any) -> list[str]:
    """Return the columns of texts."""
    features = table.features or {}  # which copies them all at each look
    return [name for name in table.column_names if is_text(features.get(name))]


def _one_word_a_row(table: Any, label: str | None, name: str) -> dict[str, list[Any]] | None:
    word, sentence = _by_name(table, WORD), _by_name(table, SENTENCE)
    tag = label if label in table.column_names else _by_name(table, TAG_OF_WORD)
    if word is None or sentence is None or word not in _texts(table) or (tag is None and label is None):
        return None
    columns = table.with_format(None)
    words, places = columns[word][:], columns[sentence][:]
    if any(each is not None and len(each.split()) > 1 for each in words) or len({*places}) < 2:
        return None
    starts = [
        row for row, place in enumerate(places) if not row or (place is not None and place != _before(places, row))
    ]
    ends = [*starts[1:], len(words)]
    found = {"tokens": [words[start:end] for start, end in zip(starts, ends, strict=True)]}
    if tag is not None:
        tags = columns[tag][:]
        found[tag if tag == label else "ner_tags"] = [tags[start:end] for start, end in zip(starts, ends, strict=True)]
    _say(label, "%s: the words in %r are read as %d texts, by %r.", name, word, len(starts), sentence)
    return found


def _before(places: Sequence[Any], row: int) -> Any:
    """Return the last value that there is before a row."""
    return next((places[each] for each in range(row - 1, -1, -1) if places[each] is not None), None)


def _accepted(table: Any, label: str | None, name: str, with_labels: bool) -> Any:
    """Return a table of Prodigy's without its column of verdicts, unless that is the label; any other as it is."""
    if "answer" not in table.column_names or label == "answer" or not {*OF_PRODIGY} & {*table.column_names}:
        return table
    verdicts = table.with_format(None)["answer"][:]
    if not all(each in ("accept", "reject", "ignore") for each in verdicts):
        return table
    row = next((row for row, each in enumerate(verdicts) if each != "accept"), None)
    if row is not None and with_labels:
        raise ValueError(
            f"{name}, row {row}: 'answer' is {verdicts[row]!r}, and not 'accept': remove such rows, or name that "
            "column, label='answer', if it is what is to be predicted."
        )
    return table.remove_columns("answer")


def _chosen(table: Any, label: str | None, name: str) -> dict[str, list[Any]] | None:
    if not {"options", "accept"} <= {*table.column_names}:
        return None
    made = table.with_format(None)["accept"][:]
    if not all(isinstance(each, list) and _are_texts([*each, ""]) for each in made):
        return None
    return {**_others(table, "options", "accept"), label or "label": made}


def _spaced(table: Any, label: str | None, name: str) -> dict[str, list[Any]] | None:
    texts, columns = _texts(table), table.with_format(None)
    own = next((column for column in table.column_names if column in WORDS and column in texts), None)
    named = [label] if label in texts else [each for each in (*TAGS, *LABELS) if own is not None and each in texts]
    tags = next(
        (each for each in [*named, *texts] if each != own and (each in named or _are_tags(columns[each]))), None
    )
    if tags is None:
        if own is None or not label:
            return None
        words = [(each or "").split() for each in columns[own]]
        # Words that each stand alone may be those of one text.
        return {**_others(table, own), own: words} if any(len(each) > 1 for each in words) else None
    if own is None and not _are_tags(columns[tags]):
        return None
    apart = [re.split(r"[\s,]+", (each or "").strip()) for each in columns[tags]]
    first = ""
    for text in [own] if own is not None else [each for each in texts if each != tags]:
        words = [(each or "").split() for each in columns[text]]
        odd = next(
            (row for row, (many, each) in enumerate(zip(words, apart, strict=True)) if len(many) != len(each)), None
        )
        if odd is None:
            return {**_others(table, text), "tokens": words, tags: apart}
        first = first or f", row {odd}: {tags!r} has {len(apart[odd])} tags, and {text!r} {len(words[odd])} words"
    raise ValueError(f"{name}{first}: give the words and the tags as lists, in columns 'tokens' and 'ner_tags'.")


def _others(table: Any, *without: str | None) -> dict[str, list[Any]]:
    columns = table.with_format(None)
    return {column: columns[column][:] for column in table.column_names if column not in without}


def _are_tags(values: Sequence[Any]) -> bool:
    """Whether texts are nothing but tags as in `B-PER O O`, several in some of them."""
    several = False
    for value in values:
        tags = re.split(r"[\s,]+", (value or "").strip())
        if not all(map(TAG.fullmatch, tags)):
            return False
        several = several or (len(tags) > 1 and {*tags} != {"O"})
    return several


def _spans(table: Any, label: str | None, name: str) -> dict[str, list[Any]] | None:
    texts, columns = _texts(table), table.with_format(None)
    text = _by_name(table, ("text", "sentence", "content", "document")) or (texts[0] if len(texts) == 1 else None)
    if text not in texts:
        return None
    for column in [str(label)] if label in table.column_names else table.column_names:
        if column == text or (column != label and plain_name(column) not in SPANS):
            continue
        found = [_spans_in(value) for value in columns[column]]
        if None in found or not any(found):
            continue
        rest = _others(table, text, column, *WORDS, *TAGS)
        return {**rest, **_words_of(columns[text][:], found, column if column == label else "ner_tags", name, label)}
    return None


def _words_of(
    texts: Sequence[Any], spans: Sequence[Any], tags: str, name: str, label: str | None
) -> dict[str, list[Any]]:
    """Return the words of each text and their tags, which are None where spans are missing."""
    both = [
        _tagged(text, each or [], f"{name}, row {row}")
        for row, (text, each) in enumerate(zip(texts, spans, strict=True))
    ]
    _say(
        label,
        "%s: %d spans are read as tags of words, B-… for the first of a span, I-… for the others, and O outside.",
        *(name, sum(map(len, filter(None, spans)))),
    )
    own = [None if each is None else written for (_, written), each in zip(both, spans, strict=True)]
    return {"tokens": [words for words, _ in both], tags: own}


def _of_label_studio(table: Any, label: str | None, name: str) -> dict[str, list[Any]] | None:
    if not {*OF_LABEL_STUDIO} <= {*table.column_names}:
        return None
    columns = table.with_format(None)
    tasks, given = columns["data"][:], columns["annotations"][:]
    if not all(isinstance(task, Mapping) and isinstance(each, list) for task, each in zip(tasks, given, strict=True)):
        return None
    texts = [
        task.get("text") or next((each for each in task.values() if isinstance(each, str)), None) for task in tasks
    ]
    kept = [next((each for each in several if not each.get("was_cancelled")), None) for several in given]
    values = [None if each is None else [part.get("value") or {} for part in each.get("result") or []] for each in kept]
    flat = [value for each in values for value in each or []]
    if flat and all(value.get("choices") for value in flat):
        names = [None if not each else [one for value in each for one in value["choices"]] for each in values]
        one = all(each is None or len(each) == 1 for each in names)
        return {"text": texts, label or "label": [each and each[0] for each in names] if one else names}
    spans = [None if each is None else _spans_in(each) for each in values]
    if not flat or any(each is None and value is not None for each, value in zip(spans, values, strict=True)):
        return None
    return _words_of(texts, spans, label or "ner_tags", name, label)


def _spans_in(value: Any) -> list[tuple[int, int, str]] | None:
    """Return the spans that a value is a list of; None if it is not."""
    if isinstance(value, Mapping) and isinstance(value.get("entities"), list):
        value = value["entities"]
    if value is None:
        return []
    if not isinstance(value, list):
        return None
    spans = []
    for each in value:
        if isinstance(each, str):  # which a table has made of numbers beside texts
            try:
                each = ast.literal_eval(each)
            except (ValueError, SyntaxError):
                return None
        if isinstance(each, Mapping):
            keys = [next((key for key in names if each.get(key) is not None), None) for names in (START, END, WHAT)]
            each = None if None in keys else [each[key] for key in keys]
        if not isinstance(each, list | tuple) or len(each) < 3 or not all(type(place) is int for place in each[:2]):
            return None
        what = each[2][0] if isinstance(each[2], list) and len(each[2]) == 1 else each[2]
        if not isinstance(what, str):
            return None
        spans.append((each[0], each[1], what))
    return spans


def _tagged(text: Any, spans: Sequence[tuple[int, int, str]], where: str) -> tuple[list[str], list[str]]:
    """Return the words of a text and their tags; a ValueError if a span is not in it, or overlaps another."""
    pieces = [*PIECE.finditer(text or "")]
    tags = ["O"] * len(pieces)
    for start, end, what in sorted(spans):
        within = [place for place, piece in enumerate(pieces) if piece.start() < end and piece.end() > start]
        if not 0 <= start < end <= len(text or "") or not within:
            raise ValueError(
                f"{where}: the span {start} to {end} ({what}) is not in the text, of {len(text or '')} characters."
            )
        if any(tags[place] != "O" for place in within):
            raise ValueError(f"{where}: the span {start} to {end} ({what}) overlaps another, and a word has one tag.")
        for place in within:
            tags[place] = f"{'B' if place == within[0] else 'I'}-{what}"
    return [piece[0] for piece in pieces], tags


def _answers(table: Any, label: str | None, name: str) -> dict[str, list[Any]] | None:
    columns = table.with_format(None)
    question, context = _by_name(table, ("question", "query")), _by_name(table, ("context", "passage", "paragraph"))
    if question is None or context is None:
        return None
    start, answers = _by_name(table, ("answer_start", "answers_start", "start")), _by_name(table, ("answers", "answer"))
    text = _by_name(table, ("answer_text", "answer", "answers", "text"))
    parts: list[Any] | None = None
    if start is not None and text in _texts(table) and all(_is_place(each) for each in columns[start]):
        places = zip(columns[text], columns[start], strict=True)
        parts = [
            {"text": [each] if _there(each, at) else [], "answer_start": [int(at)] if _there(each, at) else []}
            for each, at in places
        ]
    elif answers in _texts(table):
        parts = [_written(each) for each in columns[answers]]
        parts = None if None in parts else parts
    elif answers is not None and (question, context) != ("question", "context"):
        parts = columns[answers][:]
        parts = (
            parts if all(isinstance(each, Mapping) and {"text", "answer_start"} <= {*each} for each in parts) else None
        )
    if parts is None:
        return None
    rest = _others(table, question, context, start, answers, text)
    return {**rest, "question": columns[question][:], "context": columns[context][:], "answers": parts}


def _is_place(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and (value != value or float(value).is_integer()))


def _there(text: Any, place: Any) -> bool:
    """Whether there is an answer, and not a mark that there is none."""
    return bool(text) and place is not None and place == place and place >= 0


def _written(value: Any) -> Any:
    """Return answers that are written as a text, in Python, JSON or NumPy; None if they are not."""
    readers: tuple[Callable[[str], Any], ...] = (json.loads, ast.literal_eval)
    for read in readers:
        try:
            found = read(ARRAY.sub(r"\1", value or ""))
        except (ValueError, SyntaxError):
            continue
        if isinstance(found, Mapping) and {"text", "answer_start"} <= {*found}:
            return {key: [*found[key]] for key in ("text", "answer_start")}
    return None
