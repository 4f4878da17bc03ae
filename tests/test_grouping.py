"""Rows with equal inputs: they are found in every form of data, and held out together."""

from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

import bayeslora
from bayeslora.data import Columns
from bayeslora.grouping import same_given, same_inputs, tenth
from bayeslora.study import rows, runs
from tests.study.networks import FEW, TEST, network

X = np.random.default_rng(0).normal(size=(30, 4))
TWICE = np.concatenate([X, X])
Y = np.arange(60) % 3
TEXTS = [f"text {number % 30}" for number in range(60)]
NUMBERS: dict[str, Any] = {f"x{column}": TWICE[:, column] for column in range(4)}
TABLE: dict[str, Any] = {"id": [*range(60)], "text": TEXTS, "label": Y.tolist()}
FORMS: dict[str, Any] = {
    "arrays": (TWICE, Y),
    "tensors": (torch.as_tensor(TWICE), Y),
    "mapping": {"input": TWICE, "labels": Y},
    "frame": pd.DataFrame({"id": np.arange(60), **NUMBERS, "label": Y}),
    "frame of texts": pd.DataFrame(TABLE),
    "dataset": datasets.Dataset.from_dict(TABLE),
    "records": [dict(zip(TABLE, row, strict=True)) for row in zip(*TABLE.values(), strict=True)],
    "texts": (TEXTS, Y),
    "pairs": ([(text, "again") for text in TEXTS], Y),
    "torch dataset": TensorDataset(torch.as_tensor(TWICE), torch.as_tensor(Y)),
    "conversations": [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "yes"}], "idx": number}
        for number, text in enumerate(TEXTS)
    ],
}


@pytest.mark.parametrize("form", FORMS)
def test_equal_inputs_are_found_whatever_their_labels_and_names(form: str) -> None:
    assert same_given(FORMS[form]).tolist() == [*range(30)] * 2


def test_what_is_asked_for_decides_what_an_input_is() -> None:
    data = {"a": TEXTS, "b": [str(number) for number in range(60)], "answer": Y.tolist(), "w": np.arange(60.0)}
    asked = Columns.asked("a", "answer", None)
    assert same_given(data, asked, "w").tolist() == [*range(30)] * 2
    assert same_given(data, Columns.asked(["a", "b"], "answer", None), "w").tolist() == [*range(60)]


def test_images_are_compared_by_their_pixels_and_what_cannot_be_compared_is_apart() -> None:
    images = [Image.fromarray(np.full((2, 2), shade, np.uint8)) for shade in (1, 2, 1)]
    assert same_inputs([{"image": image} for image in images]).tolist() == [0, 1, 0]
    assert same_inputs([{"thing": [object()]} for _ in range(3)]).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("same", "held_out"),
    [
        (np.arange(60), {6}),
        (np.arange(60) % 30, {6}),
        (np.arange(60) % 12, {5}),
        (np.minimum(np.arange(60), 10), {6}),  # fifty rows are one
        (np.repeat([0, 9, 18, 27], [9, 9, 9, 33]), {9}),
    ],
)
def test_a_tenth_is_held_out_as_near_as_equal_rows_let_it_be(same: np.ndarray, held_out: set[int]) -> None:
    for seed in range(5):
        chosen = tenth(same, np.random.default_rng(seed).permutation(60))
        assert chosen is not None
        assert int(chosen.sum()) in held_out
        assert not {*same[chosen]} & {*same[~chosen]}
    assert tenth(np.zeros(60, np.int64), np.arange(60)) is None


def test_a_comparison_holds_equal_rows_out_together_and_keeps_the_weights_of_the_rest() -> None:
    weight = np.arange(1.0, 61)
    train, held_out, settings = runs.divided((TWICE, Y), 3, {"weight": weight})
    assert (len(train[0]), len(held_out[0])) == (54, 6)
    assert not {*train[0][:, 0]} & {*held_out[0][:, 0]}
    kept = [int(row) - 1 for row in settings["weight"]]
    np.testing.assert_array_equal(TWICE[kept], train[0])
    np.testing.assert_array_equal(rows.take((TWICE, Y), kept)[1], train[1])
    with pytest.raises(ValueError, match=r"most rows are alike: pass validation=…"):
        runs.divided((TWICE[:1].repeat(60, 0), Y), 3, {})
    with pytest.raises(ValueError, match=r"for a temperature, and there is one row: pass validation=…"):
        runs.divided((TWICE[:1], Y[:1]), 3, {})
    found = bayeslora.compare(network(), (TWICE, Y), ["blob"], test=TEST, seeds=1, weight=weight, num_draws=2, **FEW)
    assert np.isfinite(found.estimate("lora + temperature").value)
