"""Rows that are computed, or stream by: their texts are read, and their labels are known before training."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset
from transformers import default_data_collator

import bayeslora
from bayeslora.data import given, plain
from tests.tasks.cases import model
from tests.test_data import TEXTS, Bag, Rows, tiny_tokenizer

WORDS = ["good", "bad", "good", "bad", "fair"]
RECORDS = [{"text": text, "label": word} for text, word in zip(TEXTS, WORDS, strict=True)]
PAIRS = [*zip(TEXTS, WORDS, strict=True)]
FRAME = pd.DataFrame(RECORDS)
TABLE = datasets.Dataset.from_pandas(FRAME)


class Streamed(IterableDataset[Any]):
    """A stream that begins anew."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows)


def same(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return rows


class NamedAxes:
    """A set of arrays as xarray has it."""

    __module__ = "xarray.core.dataset"
    data_vars = ("text", "label")

    def to_dataframe(self) -> pd.DataFrame:
        return FRAME


FORMS: dict[str, Any] = {
    "a torch dataset of pairs": Rows(PAIRS),
    "a torch dataset of records": Rows(RECORDS),
    "a part of one": Subset(Rows([*RECORDS, *RECORDS]), range(5)),
    "a part of a table": Subset(TABLE, range(5)),
    "several in a row": ConcatDataset([Rows(PAIRS[:2]), Rows(PAIRS[2:])]),
    "a table with a transform": TABLE.with_transform(same),
    "a mapping of mappings": FRAME.to_dict(),
    "a mapping of records": FRAME.to_dict("index"),
    "columns and data": FRAME.to_dict("split"),
    "columns and data, tight": FRAME.to_dict("tight"),
    "a column of texts in two dimensions": {"text": FRAME[["text"]].to_numpy(), "label": FRAME[["label"]].to_numpy()},
    "named axes": NamedAxes(),
}


@pytest.mark.parametrize("form", FORMS)
def test_texts_and_labels_are_found(form: str) -> None:
    found = plain(given(FORMS[form]))
    assert (found.inputs["text"][:] if hasattr(found.inputs, "column_names") else found.inputs) == TEXTS
    assert found.labels is not None
    assert [*np.ravel(found.labels.plain)] == WORDS


def test_records_with_other_keys() -> None:
    first = [{"id": 0, "label": "bad"}, *RECORDS]
    found = plain(first)
    assert (found.columns.text, found.inputs["text"][:]) == (("text",), [None, *TEXTS])
    noted = plain([*RECORDS, {**RECORDS[0], "note": "a slip"}])
    assert noted.columns.text == ("text",)
    assert noted.columns.ignored == ("note",)
    truths = FRAME.assign(label=pd.array([True, None, False, True, True], dtype="boolean"))
    found = plain(truths)
    assert found.labels is not None
    assert np.isnan(found.labels.plain[1])


def fit(data: Any, base: Any, **settings: Any) -> bayeslora.Posterior:
    return bayeslora.fit(base, data, "lora", tokenizer=tiny_tokenizer(), epochs=0, rank=2, progress=False, **settings)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    model("Bert", "Model")().save_pretrained(folder)
    return folder


def tokens(*, numbers: bool = False) -> "Dataset[Any]":
    encoded = tiny_tokenizer()(TEXTS)
    labels = [4, 2, 4, 2, 1] if numbers else WORDS
    return Rows([{**{k: encoded[k][i] for k in encoded}, "label": labels[i]} for i in range(5)])


@pytest.mark.parametrize(
    ("data", "settings", "names"),
    [
        (TABLE.to_iterable_dataset(), {"num_examples": 5}, ("bad", "fair", "good")),
        (Streamed(RECORDS), {"num_examples": 5}, ("bad", "fair", "good")),
        (tokens(), {}, ("bad", "fair", "good")),
        (tokens(numbers=True), {}, ("1", "2", "3", "4")),
    ],
)
def test_labels_are_known_before_a_model_is_loaded(data: Any, settings: Any, names: Any, base: Path) -> None:
    assert fit(data, base, **settings).class_names == names


def test_words_of_a_stream_are_numbered_for_a_network() -> None:
    torch.manual_seed(0)
    network = Bag(3)
    streamed = fit(Streamed(RECORDS), network, num_examples=5)
    assert streamed.class_names == ("bad", "fair", "good")
    expected = fit((TEXTS, WORDS), network).evaluate((TEXTS, WORDS), num_draws=1)["nll"]
    assert streamed.evaluate((TEXTS, WORDS), num_draws=1)["nll"] == pytest.approx(expected, rel=1e-6)


def tokenised(rows: dict[str, list[Any]]) -> dict[str, Any]:
    return dict(tiny_tokenizer()(rows["text"], padding="max_length", max_length=8), labels=rows["label"])


AROUND: dict[str, Callable[[datasets.Dataset], Any]] = {
    "a transform": lambda table: table.with_transform(same),
    "a transform to tokens": lambda table: table.with_transform(tokenised),
    "a part": lambda table: Subset(table, range(5)),
    "a part of a transform": lambda table: Subset(table.with_transform(tokenised), range(5)),
    "several": lambda table: ConcatDataset([table.select(range(2)), table.select(range(2, 5))]),
    "a stream": lambda table: table.to_iterable_dataset(),
    "a loader": lambda table: DataLoader(table.with_transform(tokenised), collate_fn=default_data_collator),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("form", AROUND)
def test_classes_go_by_the_names_of_the_table_behind(form: str) -> None:
    """Numbers of another table stand for other classes."""
    torch.manual_seed(0)
    orders = [("bad", "fair", "good"), ("good", "bad", "fair")]
    tables = [TABLE.cast_column("label", datasets.ClassLabel(names=[*names])) for names in orders]
    settings = {"num_examples": 5} if form == "a stream" else {}
    posterior = fit(AROUND[form](tables[0]), model("Bert", "ForSequenceClassification", num_labels=3)(), **settings)
    assert posterior.class_names == orders[0]
    expected = posterior.evaluate((TEXTS, WORDS), num_draws=1)["nll"]
    for data in (*map(AROUND[form], tables), (TEXTS, [*tables[0]["label"]])):
        assert posterior.evaluate(data, num_draws=1)["nll"] == pytest.approx(expected, rel=1e-5)


class Renumbered(Dataset[Any]):
    """Rows with labels of its own around those of a table, and features that are not to be looked at."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    @property
    def features(self) -> Any:
        raise RuntimeError("hours of work")

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input": torch.zeros(2), "label": int(self.dataset[index]["label"] == 2)}


def test_labels_of_a_dataset_of_ones_own_have_no_declared_names() -> None:
    table = TABLE.cast_column("label", datasets.ClassLabel(names=["bad", "fair", "good"]))
    for data in (Renumbered(table), Subset(Renumbered(table), range(3)), DataLoader(Renumbered(table))):
        assert plain(data).labels is None


def test_labels_that_a_transform_changes_have_no_declared_names() -> None:
    table = TABLE.cast_column("label", datasets.ClassLabel(names=["bad", "fair", "good"]))
    changed = plain(table.with_transform(lambda rows: {**rows, "label": [2 - label for label in rows["label"]]}))
    assert changed.labels is not None
    assert changed.labels.names is None


def test_tables_that_number_their_classes_otherwise_are_not_put_together() -> None:
    tables = [
        TABLE.cast_column("label", datasets.ClassLabel(names=names))
        for names in (["bad", "fair", "good"], ["good", "bad", "fair"])
    ]
    with pytest.raises(ValueError, match="tables that number their classes in other ways, bad, fair, good and good"):
        plain(ConcatDataset(tables))  # type: ignore[arg-type]


PUBLISHED: dict[str, tuple[dict[str, list[Any]], str]] = {
    "questions": (
        {
            "id": ["a", "b"],
            "context": ["a b c", "b c d"],
            "question": ["b c", "c d"],
            "answers": [{"text": ["a"], "answer_start": [0]}, {"text": ["c"], "answer_start": [2]}],
        },
        "QuestionAnswering",
    ),
    "choices": ({"question": ["a", "b"], "choices": [["b", "c"], ["c", "d"]], "answer": [0, 1]}, "MultipleChoice"),
    "words": ({"tokens": [["a", "b"], ["c"]], "ner_tags": [["B-X", "O"], ["B-X"]]}, "TokenClassification"),
}


@pytest.mark.parametrize("form", ["a transform", "a part", "several", "rows"])
@pytest.mark.parametrize("kind", PUBLISHED)
def test_published_tables_are_read_row_by_row_too(kind: str, form: str) -> None:
    columns, head = PUBLISHED[kind]
    table = datasets.Dataset.from_dict(columns)
    forms: dict[str, Any] = {
        "a transform": table.with_transform(same),
        "a part": Subset(table, range(2)),  # type: ignore[arg-type]
        "several": ConcatDataset([table.select([0]), table.select([1])]),  # type: ignore[list-item]
        "rows": Rows([*table]),
    }
    network = model("Bert", f"For{head}")()
    expected, found = (fit(data, network).evaluate(data, num_draws=1)["nll"] for data in (table, forms[form]))
    assert found == pytest.approx(expected, rel=1e-5)


class ByName(Dataset[Any]):
    """Rows that a sampler asks for by their names."""

    def __getitem__(self, name: str) -> tuple[torch.Tensor, int]:
        return {"a": (torch.zeros(2), 0), "b": (torch.ones(2), 1)}[name]


def test_a_loader_whose_rows_have_names_is_not_looked_into() -> None:
    loader = DataLoader(ByName(), sampler=["a", "b"])
    assert plain(loader).inputs is loader
    table = {"index": [0, 1], "columns": ["a b", "c d"], "data": [1, 2]}  # of such names, and not by pandas' to_dict
    assert plain(table).columns.text == ("columns",)


def test_what_a_loader_and_an_endless_stream_are_told(base: Path) -> None:
    with pytest.raises(ValueError, match=r"a DataLoader of texts: give its dataset, loader\.dataset, and batch_size="):
        fit(DataLoader(Rows(PAIRS), batch_size=2), base)
    named = TABLE.to_iterable_dataset().cast_column("label", datasets.ClassLabel(names=["good", "bad", "fair"]))
    assert fit(named, base, num_examples=5).class_names == ("good", "bad", "fair")  # what the next message says
    with pytest.raises(ValueError, match=r"say how many rows to read, num_examples=…, or name them, data\.cast_column"):
        fit(TABLE.to_iterable_dataset(), base)
    once = Streamed(iter(RECORDS))  # type: ignore[arg-type]
    for network in (base, Bag(3)):
        with pytest.raises(TypeError, match="a stream that can be read only once"):
            fit(once, network, num_examples=5)
