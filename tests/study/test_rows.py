"""Parts and digests of data in the forms that people have them."""

from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import bayeslora
from bayeslora.study import rows
from tests.study.networks import FEW, X, Y, network

FORMS: dict[str, Callable[[Any, Any], Any]] = {
    "arrays": lambda x, y: (x, y),
    "tensors": lambda x, y: (torch.as_tensor(x), torch.as_tensor(y)),
    "frame": lambda x, y: pd.DataFrame({**{f"x{i}": x[:, i] for i in range(4)}, "label": y}),
    "frame and series": lambda x, y: (pd.DataFrame(x), pd.Series(y)),
    "dataset": lambda x, y: datasets.Dataset.from_dict({**{f"x{i}": x[:, i] for i in range(4)}, "label": y}),
    "torch dataset": lambda x, y: TensorDataset(torch.as_tensor(x), torch.as_tensor(y)),
    "lists": lambda x, y: (x.tolist(), y.tolist()),
}


@pytest.mark.parametrize("form", FORMS)
def test_parts_are_read_as_the_whole_is(form: str) -> None:
    posterior = bayeslora.fit(network(), (X, Y), "lora", progress=False, **FEW | {"epochs": 0})
    data, chosen = FORMS[form](X, Y), [3, 1, 60]
    assert rows.count(data) == 90
    if form.startswith("frame") or form == "dataset":  # columns are named otherwise than in the fit
        part = rows.take(data, chosen)
        assert rows.count(part) == 3
        assert rows.digest(part) == rows.digest(FORMS[form](X[chosen], Y[chosen]))
        return
    found = posterior.evaluate(rows.take(data, chosen), 2)["nll"]
    assert found == pytest.approx(posterior.evaluate((X[chosen], Y[chosen]), 2)["nll"], rel=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_a_digest_tells_data_apart_and_is_the_same_again(form: str) -> None:
    make = FORMS[form]
    other = Y.copy()
    other[45] = (other[45] + 1) % 3
    assert rows.digest(make(X, Y)) == rows.digest(make(X.copy(), Y.copy()))
    assert rows.digest(make(X, Y)) != rows.digest(make(X, other))
    assert rows.digest(make(X, Y)) != rows.digest(make(X + np.eye(90, 4), Y))
    assert rows.digest(make(X, Y)) != rows.digest(make(X[:80], Y[:80]))


def test_one_number_of_a_column_has_a_digest() -> None:
    assert rows.digest((X[:1], X[:1, 0])) == rows.digest((X[:1].copy(), X[:1, 0].copy()))


def test_no_part_of_a_loader_is_taken() -> None:
    loader = DataLoader(TensorDataset(torch.as_tensor(X)))
    with pytest.raises(TypeError, match="data is a DataLoader, of which no part can be taken: give a dataset"):
        rows.take(loader, [0])
