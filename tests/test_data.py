"""Every form of data that `fit` takes, and the batches it becomes."""

from collections.abc import Iterator, Mapping
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import bayeslora
from bayeslora import metrics
from bayeslora.data import Source, split, to_device
from bayeslora.networks import forward_parameters
from tests.helpers import tiny_bert, tokens

TEXTS = ["good film", "bad", "very good good film", "bad bad film", "good"]
LABELS = [1, 0, 1, 0, 1]


def tiny_tokenizer() -> Any:
    """A tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "good", "bad", "film", "very"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_max_length=8,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


class Bag(nn.Module):
    """Averages its words, and takes no token types."""

    def __init__(self, num_labels: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(60, 8)
        self.dense = nn.Linear(8, 8)
        self.head = nn.Linear(8, num_labels)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask[..., None].float()
        return self.head(self.dense((self.embedding(input_ids) * mask).sum(1) / mask.sum(1)))


class Rows(Dataset[Any]):
    """A torch dataset over a list."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield {"input_ids": torch.tensor([2]), "attention_mask": torch.tensor([1]), "labels": 0}


def assert_same_batch(batch: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    assert set(batch) == set(expected)
    for name, value in expected.items():
        assert torch.equal(batch[name], torch.as_tensor(value)), name


def token_rows() -> dict[str, Any]:
    inputs, labels = tokens(5)
    return {"input_ids": inputs["input_ids"].tolist(), "attention_mask": inputs["attention_mask"].tolist()} | {
        "labels": labels.tolist()
    }


# The forms


def test_a_table_of_tokens() -> None:
    rows = token_rows()
    source = Source(datasets.Dataset.from_dict(rows), tiny_bert())
    assert len(source) == 5
    assert source.labels is not None
    assert source.labels.tolist() == rows["labels"]
    batches = list(source.batches(2))
    assert [len(batch["labels"]) for batch in batches] == [2, 2, 1]
    assert_same_batch(batches[1], {name: value[2:4] for name, value in rows.items()})


@pytest.mark.parametrize("label", ["labels", "label", "label_ids"])
def test_a_table_renames_labels_and_drops_columns_the_network_does_not_take(label: str) -> None:
    rows = token_rows()
    rows[label] = rows.pop("labels")
    source = Source(datasets.Dataset.from_dict(rows | {"idx": range(5), "text": TEXTS}), tiny_bert())
    assert set(source.first_batch()) == {"input_ids", "attention_mask", "labels"}
    assert source.labels is not None
    assert source.labels.tolist() == rows[label]


def test_a_table_with_one_text_column() -> None:
    table = datasets.Dataset.from_dict({"sentence": TEXTS, "label": LABELS, "idx": range(5)})
    source = Source(table, tiny_bert(), tiny_tokenizer())
    assert_same_batch(
        source.first_batch(3),
        {
            "input_ids": [[2, 4, 0, 0], [3, 0, 0, 0], [5, 2, 2, 4]],
            "attention_mask": [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]],
            "token_type_ids": [[0, 0, 0, 0]] * 3,
            "labels": [1, 0, 1],
        },
    )


def test_a_table_with_two_text_columns_is_one_of_pairs() -> None:
    table = datasets.Dataset.from_dict({"premise": TEXTS, "hypothesis": ["film"] * 5, "label": LABELS})
    batch = Source(table, tiny_bert(), tiny_tokenizer()).first_batch(2)
    assert batch["input_ids"].tolist() == [[2, 4, 4], [3, 4, 0]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 1], [0, 1, 0]]


def test_text_longer_than_the_model_is_cut() -> None:
    table = datasets.Dataset.from_dict({"text": ["good " * 20], "label": [1]})
    assert Source(table, tiny_bert(), tiny_tokenizer()).first_batch()["input_ids"].shape == (1, 8)


def test_a_list_of_texts() -> None:
    source = Source((TEXTS, LABELS), Bag(), tiny_tokenizer())
    assert_same_batch(
        source.first_batch(2),  # the tokenizer makes token types, which this network does not take
        {"input_ids": [[2, 4], [3, 0]], "attention_mask": [[1, 1], [1, 0]], "labels": [1, 0]},
    )
    assert source.labels is not None
    assert source.labels.tolist() == LABELS
    unlabelled = Source(TEXTS, Bag(), tiny_tokenizer())
    assert unlabelled.labels is None
    assert set(unlabelled.first_batch()) == {"input_ids", "attention_mask"}


def test_a_torch_dataset_of_mappings() -> None:
    inputs, labels = tokens(5)
    rows = [
        {"input_ids": ids, "attention_mask": torch.ones_like(ids), "label": int(label)}
        for ids, label in zip(inputs["input_ids"], labels, strict=True)
    ]
    source = Source(Rows(rows), tiny_bert())
    assert_same_batch(source.first_batch(5), {**inputs, "labels": labels})
    assert "label" in rows[0]  # the user's rows are left alone


def test_a_torch_dataset_of_pairs() -> None:
    x, y = torch.randn(5, 3), torch.arange(5)
    assert_same_batch(Source(TensorDataset(x, y), nn.Linear(3, 2)).first_batch(5), {"input": x, "labels": y})
    assert_same_batch(Source(Rows(list(x)), nn.Linear(3, 2)).first_batch(5), {"input": x})


@pytest.mark.parametrize("kind", ["pairs", "mappings"])
def test_a_loader_keeps_its_own_batches(kind: str) -> None:
    x, y = torch.randn(5, 3), torch.arange(5)
    rows = (
        TensorDataset(x, y) if kind == "pairs" else Rows([{"input": a, "label": b} for a, b in zip(x, y, strict=True)])
    )
    source = Source(DataLoader(rows, batch_size=3), nn.Linear(3, 2))
    assert len(source) == 5
    assert source.dataset is None
    batches = list(source.batches(batch_size=2))
    assert_same_batch(batches[0], {"input": x[:3], "labels": y[:3]})
    assert_same_batch(batches[1], {"input": x[3:], "labels": y[3:]})


@pytest.mark.parametrize("container", [np.asarray, torch.as_tensor, list])
def test_arrays(container: Any) -> None:
    x, y = np.random.default_rng(0).normal(size=(5, 3)), [0, 1, 0, 1, 1]
    source = Source((container(x), container(y)), nn.Linear(3, 2))
    # NumPy's numbers are double; the network's are not.
    assert_same_batch(source.first_batch(5), {"input": torch.as_tensor(x).float(), "labels": y})
    assert source.labels is not None
    assert source.labels.tolist() == y
    assert Source(container(x), nn.Linear(3, 2)).labels is None


def test_arrays_for_a_double_precision_network_stay_double() -> None:
    x = np.random.default_rng(0).normal(size=(5, 3))
    assert Source(x, nn.Linear(3, 2).double()).first_batch()["input"].dtype == torch.float64


def test_a_mapping_of_arrays() -> None:
    inputs, labels = tokens(5)
    assert_same_batch(Source((inputs, labels), tiny_bert()).first_batch(5), {**inputs, "labels": labels})
    assert_same_batch(Source({**inputs, "labels": labels}, tiny_bert()).first_batch(5), {**inputs, "labels": labels})


# What does not fit


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (DataLoader(Stream()), "is a DataLoader over a stream: give the stream itself"),
        ("a path", "is a str. Give a datasets.Dataset"),
        (Rows([3]), "a row is a int; give mappings"),
    ],
    ids=["loader", "str", "rows"],
)
def test_data_of_another_kind_is_a_type_error(data: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Source(data, Bag())


def test_a_table_without_a_column_for_the_network_names_both() -> None:
    with pytest.raises(ValueError, match=r"has columns number, labels; the network takes input_ids, attention_mask"):
        Source(datasets.Dataset.from_dict({"number": [1], "label": [0]}), Bag())


def test_a_table_with_three_text_columns_names_them() -> None:
    table = datasets.Dataset.from_dict({"a": ["x"], "b": ["y"], "c": ["z"], "label": [0]})
    with pytest.raises(ValueError, match=r"3 text columns, a, b, c"):
        Source(table, Bag(), tiny_tokenizer())


def test_arrays_of_different_lengths() -> None:
    with pytest.raises(ValueError, match=r"differ in length, \{'input': 5, 'labels': 4\}"):
        Source((np.zeros((5, 3)), np.zeros(4, dtype=int)), nn.Linear(3, 2))


def test_ragged_rows_ask_for_a_tokenizer() -> None:
    table = datasets.Dataset.from_dict({"input_ids": [[2], [2, 3]], "attention_mask": [[1], [1, 1]]})
    with pytest.raises(ValueError, match=r"rows of 'input_ids' have different lengths.*pass tokenizer"):
        Source(table, Bag())


# Splits, order, devices


def test_split() -> None:
    table = datasets.Dataset.from_dict(token_rows())
    splits = datasets.DatasetDict({"train": table, "validation": table.select([0])})
    assert split(splits, "train") is splits["train"]
    assert split(splits, "validation") is splits["validation"]
    assert split(datasets.DatasetDict({"train": table}), "validation") is None
    assert split(table, "train") is table
    assert split(table, "validation") is None
    arrays = {"input_ids": np.zeros((2, 2))}
    assert split(arrays, "train") is arrays
    with pytest.raises(ValueError, match="no 'train' split, only test"):
        split(datasets.DatasetDict({"test": table}), "train")


def test_batches_by_length_give_every_row_once_with_least_padding() -> None:
    texts = ["good " * length for length in (5, 1, 4, 1, 2, 5, 3)]
    for data in (texts, datasets.Dataset.from_dict({"text": texts})):
        batches = list(Source(data, tiny_bert(), tiny_tokenizer()).batches_by_length(2))
        assert [positions.tolist() for positions, _ in batches] == [[1, 3], [4, 6], [2, 0], [5]]
        assert [batch["input_ids"].shape[1] for _, batch in batches] == [1, 3, 5, 5]
        for positions, batch in batches:
            assert batch["attention_mask"].sum(1).tolist() == [len(texts[i].split()) for i in positions]


def test_held_out_texts_are_looked_at_with_least_padding() -> None:
    texts = ["good " * length for length in (5, 1, 4, 1, 2, 5, 3)]
    for method in ("lora", "tfb"):  # the Trainer's evaluation, and a method's own
        model, widths = tiny_bert(num_labels=2), []
        model.register_forward_pre_hook(
            lambda module, args, inputs, widths=widths: (
                None if module.training else widths.append(inputs["input_ids"].shape[1])
            ),
            with_kwargs=True,
        )
        bayeslora.fit(
            model,
            (TEXTS, LABELS),
            method,
            validation=(texts, [0, 1, 0, 1, 0, 1, 0]),
            tokenizer=tiny_tokenizer(),
            rank=2,
            epochs=1,
            batch_size=2,
            progress=False,
        )
        assert widths[-4:] == [1, 3, 5, 5], method


@pytest.mark.parametrize("kind", ["arrays", "loader"])
def test_batches_without_a_tokenizer_come_in_order(kind: str) -> None:
    x = torch.randn(5, 3)
    data = (x, torch.arange(5)) if kind == "arrays" else DataLoader(TensorDataset(x, torch.arange(5)), batch_size=2)
    batches = list(Source(data, nn.Linear(3, 2)).batches_by_length(2))
    assert [positions.tolist() for positions, _ in batches] == [[0, 1], [2, 3], [4]]
    assert torch.cat([batch["input"] for _, batch in batches]).equal(x)


def test_predictions_come_back_in_the_datas_order() -> None:
    model, tokenizer = tiny_bert(num_labels=2), tiny_tokenizer()
    posterior = bayeslora.fit(
        model, (TEXTS, LABELS), "lora", tokenizer=tokenizer, rank=2, epochs=1, learning_rate=1e-2, progress=False
    )
    together = posterior.predict(TEXTS, batch_size=2).probs
    alone = np.concatenate([posterior.predict([text]).probs for text in TEXTS])
    assert np.ptp(alone[:, 0]) > 1e-4  # the texts differ
    np.testing.assert_allclose(together, alone, atol=1e-5)
    expected = metrics.classification_scores(alone, LABELS) | metrics.class_scores(alone, LABELS)
    assert posterior.evaluate((TEXTS, LABELS), batch_size=2) == pytest.approx(
        expected | {f"center_{name}": value for name, value in expected.items()}, abs=1e-5, nan_ok=True
    )


def test_batches_leave_torchs_random_state() -> None:
    x, model = torch.randn(5, 3), nn.Linear(3, 2)
    before = torch.get_rng_state()
    list(Source(x, model).batches(2))
    assert torch.equal(torch.get_rng_state(), before)


def test_forward_parameters_are_what_the_network_takes_by_name() -> None:
    assert forward_parameters(nn.Linear(2, 2)) == ["input"]
    names = forward_parameters(tiny_bert())
    assert names[:2] == ["input_ids", "attention_mask"]
    assert "labels" not in names
    assert "kwargs" not in names


def test_to_device_leaves_what_is_no_tensor() -> None:
    moved = to_device({"x": torch.zeros(2), "name": "a"}, torch.device("meta"))
    assert moved["x"].device.type == "meta"
    assert moved["name"] == "a"
