"""Words with tags, spans and answers as annotation tools and tables of text write them: all say the same."""

import json
from typing import Any

import pandas as pd
import pytest

from bayeslora.data import Columns, plain
from bayeslora.tasks import choices

WORDS = [["Ada", "Lovelace", "was", "here", "."], ["good", "film"], ["to", "Rome"]]
TAGS = [["B-PER", "I-PER", "O", "O", "O"], ["O", "O"], ["O", "B-LOC"]]
TEXTS = ["Ada Lovelace was here.", "good film", "to Rome"]
SPANS: list[list[Any]] = [[(0, 12, "PER")], [], [(3, 7, "LOC")]]
LONG = [
    (row, word, tag) for row, each in enumerate(zip(WORDS, TAGS, strict=True)) for word, tag in zip(*each, strict=True)
]


def records(spans: str, make: Any = list) -> list[dict[str, Any]]:
    """Texts with their spans under a name."""
    return [{"text": text, spans: [make(each) for each in own]} for text, own in zip(TEXTS, SPANS, strict=True)]


def dict_of(span: Any) -> dict[str, Any]:
    return dict(zip(("start", "end", "label"), span, strict=True))


def studio(text: str, spans: Any) -> dict[str, Any]:
    """A task as Label Studio exports it."""
    values = [{"value": {"start": start, "end": end, "labels": [what]}} for start, end, what in spans]
    return {"id": 1, "data": {"text": text}, "annotations": [{"result": values}]}


FORMS: dict[str, Any] = {
    "lists": {"tokens": WORDS, "ner_tags": TAGS},
    "a pair": (WORDS, TAGS),
    "pairs": list(zip(WORDS, TAGS, strict=True)),
    "columns": (pd.Series(WORDS), pd.Series(TAGS)),
    "words with their tags": [list(zip(*each, strict=True)) for each in zip(WORDS, TAGS, strict=True)],
    "spaces": {"text": [*map(" ".join, WORDS)], "labels": [*map(" ".join, TAGS)]},
    "commas": {"sentence": [*map(" ".join, WORDS)], "tags": [*map(",".join, TAGS)], "id": ["a", "b", "c"]},
    "named": {"tokens": [*map(" ".join, WORDS)], "ner_tags": [*map(" ".join, TAGS)]},
    "a word in each row": pd.DataFrame(LONG, columns=["sentence_id", "word", "tag"]),
    "a sentence's first word": pd.DataFrame(
        [(None if row == before else f"Sentence: {row}", word, "NN", tag)
         for (row, word, tag), before in zip(LONG, [None, *(row for row, *_ in LONG)], strict=False)],
        columns=["Sentence #", "Word", "POS", "Tag"],
    ),
    "Doccano": records("label"),
    "offsets": records("entities", lambda each: {"start_offset": each[0], "end_offset": each[1], "label": each[2]}),
    "Prodigy": [row | {"answer": "accept"} for row in records("spans", dict_of)],
    "spaCy": [(text, {"entities": own}) for text, own in zip(TEXTS, SPANS, strict=True)],
    "Label Studio": [studio(*each) for each in zip(TEXTS, SPANS, strict=True)],
    "spans in a text": pd.DataFrame({"text": TEXTS, "label": [str([*map(list, own)]) for own in SPANS]}),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_words_with_tags_in_every_form(form: str) -> None:
    found = plain(FORMS[form])
    assert found.inputs["tokens"][:] == WORDS
    assert found.labels is not None
    assert [[*row] for row in found.labels.plain] == TAGS


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"text": ["a b c"], "labels": ["B-X O"]}, "row 0: 'labels' has 2 tags, and 'text' 3 words"),
        ({"text": ["a b"], "label": [[[0, 9, "X"]]]}, r"row 0: the span 0 to 9 \(X\) is not in the text"),
        ({"text": ["a b"], "label": [[[0, 3, "X"], [2, 3, "Y"]]]}, "overlaps another"),
        ([row | {"answer": "reject"} for row in records("spans")], "row 0: 'answer' is 'reject', and not 'accept'"),
    ],
)
def test_tags_that_do_not_fit_their_words_are_said(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plain(data)


def verdicts(answers: list[str], **columns: Any) -> list[dict[str, Any]]:
    """Rows of texts as Prodigy exports them."""
    rows = zip(["a b", "c", "d e"], answers, strict=True)
    return [{"text": text, "answer": answer} | {key: each[row] for key, each in columns.items()}
            for row, (text, answer) in enumerate(rows)]  # fmt: skip


def test_what_an_annotator_has_accepted_is_read() -> None:
    options = [[{"id": "x", "text": "X"}, {"id": "y", "text": "Y"}]] * 3
    for columns in ({"label": ["x", "y", "x"]}, {"accept": [["x"], ["y"], ["x"]], "options": options}):
        found = plain(verdicts(["accept"] * 3, **columns))
        assert (found.columns.text, found.columns.label) == (("text",), "label")
        assert found.labels is not None
        assert found.labels.one_place().plain == ["x", "y", "x"]
        refused = verdicts(["accept", "accept", "ignore"], **columns)
        with pytest.raises(ValueError, match=r"row 2: 'answer' is 'ignore', and not 'accept': remove such rows"):
            plain(refused)
        with pytest.raises(ValueError, match="row 2: 'answer' is 'ignore'"):
            plain(refused, known=found.columns)
        assert plain(refused, known=found.columns, with_labels=False).columns.text == ("text",)
    asked = plain(verdicts(["accept", "reject", "accept"], label=["x"] * 3), Columns(label="answer"))
    assert asked.labels is not None
    assert asked.labels.plain == ["accept", "reject", "accept"]


def test_pairs_of_texts_with_two_labels_are_no_words() -> None:
    data = [(("a", "b"), ["x", "y"]), (("c", "d"), ["x", "z"])]
    found = plain(data)
    assert found.inputs == [("a", "b"), ("c", "d")]
    known = Columns(label="ner_tags")
    assert plain(WORDS, known=known, with_labels=False).inputs["tokens"][:] == WORDS


ANSWERS = [{"text": ["b"], "answer_start": [2]}, {"text": [], "answer_start": []}]
ABOUT = {"question": ["what", "who"], "context": ["a b", "c d"]}


@pytest.mark.parametrize(
    "columns",
    [
        ABOUT | {"answers": ANSWERS},
        ABOUT | {"answers": [*map(str, ANSWERS)]},
        ABOUT | {"answers": [*map(json.dumps, ANSWERS)]},
        ABOUT | {"answers": [str(each).replace("[", "array([").replace("]", "], dtype=object)") for each in ANSWERS]},
        ABOUT | {"answer_text": ["b", ""], "answer_start": [2, -1]},
        ABOUT | {"answer": ["b", None], "answer_start": [2.0, None]},
        {"Question": ABOUT["question"], "passage": ABOUT["context"], "Answers": ANSWERS},
    ],
)
def test_answers_in_every_form(columns: dict[str, Any]) -> None:
    table = plain(columns).inputs
    assert table["answers"][:] == ANSWERS
    assert (table["question"][:], table["context"][:]) == (ABOUT["question"], ABOUT["context"])


@pytest.mark.parametrize(
    "given", [["a", "b"], "a|b", "a;b", "a\nb", {"A": "a", "B": "b"}, {"text": ["a", "b"], "label": ["A", "B"]}]
)
def test_choices_in_one_column(given: Any) -> None:
    table = plain({"question": ["q", "p"], "choices": [given, given], "answer": ["B", "A"]}).inputs
    assert choices.read(table)[1:] == ([["a", "b"]] * 2, [1, 0])


def test_one_text_is_not_several_choices() -> None:
    table = plain({"question": ["q"], "choices": ["a b"], "answer": ["A"]}).inputs
    with pytest.raises(ValueError, match="row 0: 'choices' is one text, 'a b': give a list of choices"):
        choices.read(table)
