"""Data that come in an order of their own, and do not say how many they are."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from transformers import TrainingArguments

import bayeslora
from bayeslora.contracts import ArgumentError
from bayeslora.data import Source
from bayeslora.data.columns import Columns, Reading
from tests.helpers import tiny_bert, tokens
from tests.methods.conftest import NO_DROPOUT
from tests.test_data import LABELS, TEXTS, Bag, tiny_tokenizer


def table(num_examples: int = 60) -> datasets.Dataset:
    inputs, labels = tokens(num_examples)
    return datasets.Dataset.from_dict({**{k: v.tolist() for k, v in inputs.items()}, "label": labels.tolist()})


class Rows(IterableDataset[Any]):
    """A stream of torch, which notes the passes it is told of."""

    def __init__(self, rows: Any):
        self.rows = rows
        self.epochs: list[int] = []

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows)

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)


def fit(data: Any, method: str = "lora", **settings: Any) -> bayeslora.Posterior:
    settings = {"rank": 2, "epochs": 1, "learning_rate": 1e-2, "progress": False} | settings
    return bayeslora.fit(tiny_bert(**NO_DROPOUT), data, method, **settings)


def arguments(folder: Path, **settings: Any) -> TrainingArguments:
    fixed = {"report_to": [], "disable_tqdm": True, "save_strategy": "no", "dataloader_pin_memory": False}
    settings = {"per_device_train_batch_size": 16, "learning_rate": 1e-2, "num_train_epochs": 2} | settings
    return TrainingArguments(str(folder), **fixed, **settings)


# Batches


@pytest.mark.parametrize("columns", [{"text": TEXTS}, {"a": TEXTS, "b": TEXTS[::-1], "other": range(5)}])
def test_texts_are_tokenised_on_the_way(columns: dict[str, Any]) -> None:
    rows = datasets.Dataset.from_dict({**columns, "label": LABELS})
    expected = list(Source(rows, Bag(), tiny_tokenizer()).batches(2))
    for stream in (rows.to_iterable_dataset(), Rows(list(rows))):
        for batch, same in zip(Source(stream, Bag(), tiny_tokenizer()).batches(2), expected, strict=True):
            assert batch.keys() == same.keys()
            assert all(torch.equal(batch[name], same[name]) for name in batch)


def test_pairs_and_columns_that_the_network_takes_are_left_as_they_are() -> None:
    x = torch.randn(5, 3)
    batch = Source(Rows([(row, 1) for row in x]), torch.nn.Linear(3, 2)).first_batch(5)
    assert torch.equal(batch["input"], x)
    assert batch["labels"].tolist() == [1] * 5


# Training


def test_a_fit_is_that_of_the_same_rows_in_order(tmp_path: Path) -> None:
    expected = fit(table(), args=arguments(tmp_path, train_sampling_strategy="sequential"))
    posterior = fit(table().to_iterable_dataset(), num_examples=60, args=arguments(tmp_path))
    assert posterior.network.stacks.num_examples == 60
    assert posterior.history["epoch"].tolist() == expected.history["epoch"].tolist()
    np.testing.assert_allclose(posterior.history["loss"], expected.history["loss"], rtol=1e-6)
    for (_, value), (_, same) in zip(posterior.program.trainable(), expected.program.trainable(), strict=True):
        torch.testing.assert_close(value, same)


def test_an_epoch_has_so_many_examples_of_a_longer_stream() -> None:
    stream = Rows(list(table()))
    posterior = fit(stream, "monteclora", num_examples=32, epochs=3)
    assert posterior.history["epoch"].tolist() == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    assert posterior.network.stacks.num_examples == 32
    assert sorted(set(stream.epochs)) == [0, 1, 2]


def test_the_trainers_number_of_steps_stands(tmp_path: Path) -> None:
    posterior = fit(Rows(list(table())), num_examples=60, args=arguments(tmp_path, max_steps=5))
    assert posterior.history["step"].tolist() == [1, 2, 3, 4, 5]


def test_a_stream_that_ends_early_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        fit(Rows(list(table(20))), num_examples=60)
    assert "The stream ended after 20 of 60 examples." in caplog.messages


def test_held_out_data_can_be_a_stream() -> None:
    held_out = table(20)
    settings: dict[str, Any] = {"method": "monteclora", "noise_ratio": "auto", "epochs": 2}
    fits = [
        fit(table().to_iterable_dataset(), num_examples=60, validation=data, **settings)
        for data in (held_out, held_out.to_iterable_dataset())
    ]
    losses = [posterior.history["validation_nll"].dropna() for posterior in fits]
    assert len(losses[0]) == 2
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


# Prediction


def test_predictions_and_scores_are_those_of_the_rows() -> None:
    posterior = fit(table(), "monteclora")
    for stream in (table().to_iterable_dataset(), Rows(list(table()))):
        np.testing.assert_allclose(posterior.predict(stream, 2).draws, posterior.predict(table(), 2).draws, atol=1e-6)
        assert posterior.evaluate(stream, 2) == pytest.approx(posterior.evaluate(table(), 2), abs=1e-6, nan_ok=True)


# What does not fit


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"data is a stream, whose length is not known: say how many .*num_examples=…"),
        ({"num_examples": 0}, "num_examples=0: give a whole number of at least 1"),
        ({"num_examples": 60, "method": "deep_ensemble"}, "'deep_ensemble' gives every member an order of its own"),
        (
            {"num_examples": 60, "method": "monteclora", "noise_ratio": "auto"},
            "'monteclora' needs held-out data here, and none can be taken from a stream: pass validation",
        ),
    ],
)
def test_what_a_stream_cannot_say(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(Rows(list(table())), **settings)


def test_what_has_a_length_needs_no_number() -> None:
    with pytest.raises(ValueError, match="num_examples=10 is for streams; data has 60: leave it out"):
        fit(table(), num_examples=10)


def test_streams_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="data has no examples"):
        Source(Rows([]), tiny_bert())
    with pytest.raises(ValueError, match="a row has number, labels; the network takes input_ids"):
        Source(Rows([{"number": 1, "label": 0}]), tiny_bert())
    with pytest.raises(ValueError, match="data is text, and there is no tokenizer"):
        Source(Rows([{"text": "good", "label": 0}]), tiny_bert())
    with pytest.raises(TypeError, match="data is a stream, of which no part can be taken"):
        Source(Rows(list(table())), tiny_bert()).take([0])
    with pytest.raises(TypeError, match="is a DataLoader over a stream: give the stream itself"):
        Source(DataLoader(Rows(list(table()))), tiny_bert())


@pytest.mark.parametrize("form", ["datasets", "torch"])
def test_pairs_of_texts_go_by_the_names_of_a_streams_columns(form: str) -> None:
    others = [*TEXTS[1:], TEXTS[0]]
    columns: dict[str, list[Any]] = {"premise": TEXTS, "hypothesis": others, "label": LABELS}
    pairs = datasets.Dataset.from_dict(columns)
    swapped = pairs.select_columns(["label", "hypothesis", "premise"])
    stream = pairs.to_iterable_dataset() if form == "datasets" else Rows([*pairs])
    posterior = fit(stream, num_examples=len(TEXTS), tokenizer=tiny_tokenizer())
    assert posterior.columns.text == ("premise", "hypothesis")
    expected, *found = (
        posterior.evaluate(data, num_draws=1)["nll"]
        for data in (
            pairs,
            swapped,
            Rows([*swapped]),
            Rows([row for pair in zip(pairs, swapped, strict=True) for row in pair]),
        )
    )
    assert found == pytest.approx([expected] * 3, rel=1e-5)
    read_backwards = ([*zip(others, TEXTS, strict=True)], LABELS)
    assert posterior.evaluate(read_backwards, num_draws=1)["nll"] != pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("form", ["datasets", "torch"])
def test_columns_that_are_named_of_a_stream_are_read_or_refused(form: str) -> None:
    rows = datasets.Dataset.from_dict(
        {"key": TEXTS[::-1], "label": LABELS[::-1], "review": TEXTS, "verdict": LABELS, "other": TEXTS}
    )
    stream = rows.to_iterable_dataset() if form == "datasets" else Rows([*rows])
    asked = Columns(text=("review",), label="verdict", id="key")
    expected = Source((TEXTS, LABELS), Bag(), tiny_tokenizer()).first_batch(5)
    found = Source(stream, Bag(), tiny_tokenizer(), reading=Reading(asked)).first_batch(5)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    without_key = Source(stream, Bag(), tiny_tokenizer(), reading=Reading(Columns(("review", "other"), id="key")))
    assert without_key.columns.text == ("review", "other")
    for keyword, said in {"text": ("stars",), "label": "stars", "id": "stars"}.items():
        message = f"{keyword}='stars': data has no such column, only key, label, review, verdict, other"
        with pytest.raises(ArgumentError, match=message):
            Source(stream, Bag(), tiny_tokenizer(), reading=Reading(Columns(**{keyword: said})))
    Source(stream, Bag(), tiny_tokenizer(), reading=Reading(Columns(label="stars"), with_labels=False))


def test_columns_that_are_named_of_a_loader_are_there_or_refused() -> None:
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    pairs = DataLoader(TensorDataset(x, y), 2)
    rows: Any = [{"input": row, "label": 1, "stars": label, "key": "a"} for row, label in zip(x, y, strict=True)]
    found = Source(DataLoader(rows, 2), torch.nn.Linear(3, 2), reading=Reading(Columns(label="stars", id="key")))
    assert torch.equal(torch.cat([batch["labels"] for batch in found.batches(2)]), y)
    for keyword in ("label", "id"):
        for data, message in (
            (pairs, "no columns to name"),
            (DataLoader(rows, 2), "no such column, only input, label"),
        ):
            with pytest.raises(ArgumentError, match=f"{keyword}='y': data has {message}"):
                Source(data, torch.nn.Linear(3, 2), reading=Reading(Columns(**{keyword: "y"})))
