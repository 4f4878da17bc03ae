"""Weights of rows and classes: what enters the loss, exactly, and what is refused."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

import bayeslora
from bayeslora import METHODS
from bayeslora.adapters import AdaptedNetwork
from bayeslora.contracts import ArgumentError
from bayeslora.curvature import gauss_newton
from bayeslora.data import Source, apart
from bayeslora.posterior import Posterior
from bayeslora.program import Program
from bayeslora.tasks import Classification, TokenClassification
from bayeslora.types import IGNORED, WEIGHTS
from bayeslora.weights import weigh
from tests.tasks.test_contract import KINDS

SETTINGS = {"rank": 2, "epochs": 1, "batch_size": 4, "learning_rate": 1e-2, "progress": False}


def network(outputs: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, outputs)).double()


def rows(num_rows: int = 12, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(num_rows, 5))
    return x, np.arange(num_rows) % classes


def fit(data: Any = None, model: nn.Module | None = None, method: str = "blob", **settings: Any) -> Posterior:
    return bayeslora.fit(model or network(), rows() if data is None else data, method, **SETTINGS | settings)


def loss_and_gradients(program: Program, batch: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[Tensor]]:
    program.train()
    program.zero_grad()
    torch.manual_seed(1)
    program(**batch).loss.backward()
    return program.terms, [p.grad.clone() for _, p in program.trainable() if p.grad is not None]


# What enters the loss


class Shaped(nn.Module):
    """Outputs of a shape, for each row of numbers; masks are only for the likelihood."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shape = shape
        self.hidden, self.output = nn.Linear(5, 6), nn.Linear(6, math.prod(shape))

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.output(self.hidden(x).tanh()).unflatten(-1, self.shape)


@pytest.mark.parametrize("num_particles", [1, 2])
@pytest.mark.parametrize("name", KINDS)
def test_a_row_of_weight_2_is_the_row_twice(name: str, num_particles: int) -> None:
    # Whatever the kind of label, and however it observes: the same terms, and the same gradients of each.
    kind, method = KINDS[name], METHODS["blob"]()
    x = torch.randn(40, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    network = AdaptedNetwork(Shaped(kind.num_outputs).double(), method.family, rank=1, num_examples=40)
    program = Program(network, method, copy.deepcopy(kind.likelihood).double(), num_particles)
    batch = {"x": x, **kind.batch}
    logits = program.logits(program.centre(), batch)
    batch["labels"] = program.likelihood.distribution(logits.detach()).sample()
    twice = {key: torch.cat([value, value[:1]]) for key, value in batch.items()}
    weights = torch.ones(40, dtype=torch.float64)
    weights[0] = 2
    terms, gradients = loss_and_gradients(program, batch | {WEIGHTS: weights / weights.mean()})
    expected, expected_gradients = loss_and_gradients(program, twice)
    torch.testing.assert_close(terms, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-10, atol=1e-13)
    plain, _ = loss_and_gradients(program, batch)
    assert abs(float(plain["labels"] - terms["labels"])) > 1e-6


def test_the_curvature_counts_rows_by_their_weights() -> None:
    method, likelihood = METHODS["laplace"](), Classification(3)
    program = Program(AdaptedNetwork(network(), method.family, rank=2, num_examples=12), method, likelihood).eval()
    x, labels = (torch.as_tensor(value) for value in rows())
    ranks = {f"{name}.A": (2, 2) for name in program.stacks}

    def matrices(batch: dict[str, Tensor]) -> list[Tensor]:
        found = gauss_newton(program, [batch], ranks)
        return [each.row_values for site in found.values() for each in site]

    weights = torch.ones(12, dtype=torch.float64)
    weights[2] = 2
    batch = {"input": x, "labels": labels}
    twice = {name: torch.cat([value, value[2:3]]) for name, value in batch.items()}
    torch.testing.assert_close(matrices(batch | {WEIGHTS: weights}), matrices(twice), rtol=1e-9, atol=1e-12)


def test_classes_weigh_tokens_one_by_one() -> None:
    likelihood = TokenClassification(4).double()
    logits = torch.randn(6, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(30).view(6, 5) % 4
    labels[0, 3:] = IGNORED
    data = [{"x": torch.zeros(5, dtype=torch.float64), "labels": row.tolist()} for row in labels]
    source = Source(data, Shaped((5, 4)).double(), likelihood=likelihood)
    weigh(source, None, [4.0, 1.0, 1.0, 0.0], None, likelihood)
    with pyro.validation_enabled(False):
        loss = -poutine.trace(likelihood.observe).get_trace(logits, labels).log_prob_sum()
    seen = labels != IGNORED
    weights = torch.tensor([4.0, 1.0, 1.0, 0.0], dtype=torch.float64)[labels[seen]]
    nll = -logits.log_softmax(-1)[seen].gather(-1, labels[seen][:, None])[:, 0]
    torch.testing.assert_close(loss, (nll * weights / weights.mean()).sum() / 6, rtol=1e-12, atol=0)
    # Predictions are scored without weights.
    torch.testing.assert_close(-likelihood.log_prob(logits, labels).sum(), nll.sum(), rtol=1e-12, atol=0)


# Forms of weights


WEIGHT = np.array([1.0, 2.0, 3.0] * 4)


def forms() -> dict[str, tuple[Any, Any]]:
    """Training data, and the weights as they are given with it."""
    x, labels = rows()
    frame = pd.DataFrame(x, columns=list("abcde")).assign(label=labels)
    table = datasets.Dataset.from_dict({"input": x, "labels": labels})
    listed = [{"input": row, "labels": int(label)} for row, label in zip(x, labels, strict=True)]
    return {
        "arrays": ((x, labels), WEIGHT.tolist()),
        "series": ((x, labels), pd.Series(WEIGHT)),
        "mapping": ({"input": x, "labels": labels, "w": WEIGHT}, "w"),
        "frame": (frame.assign(w=WEIGHT), "w"),
        "frame and labels": ((frame.drop(columns="label").assign(w=WEIGHT), labels), "w"),
        "table": (table.add_column("w", WEIGHT), "w"),
        "records": ([{**row, "w": float(w)} for row, w in zip(listed, WEIGHT, strict=True)], "w"),
        "torch": (Rows(listed), torch.as_tensor(WEIGHT)),
    }


class Rows(torch.utils.data.Dataset):
    def __init__(self, listed: list[Any]) -> None:
        self.listed = listed

    def __len__(self) -> int:
        return len(self.listed)

    def __getitem__(self, index: int) -> Any:
        return self.listed[index]


@pytest.mark.parametrize("form", forms())
def test_weights_have_many_forms(form: str) -> None:
    data, weight = forms()[form]
    rest, weights = apart(data, weight, "data")
    assert weights is not None
    np.testing.assert_array_equal(weights, WEIGHT)
    source = Source(rest, network(), likelihood=Classification(3)).weighing(weights).weighted()
    (batch,) = source.batches(12)
    np.testing.assert_allclose(batch[WEIGHTS], WEIGHT / 2, rtol=1e-12)
    assert {*batch} == {"input", "labels", WEIGHTS}
    part = source.weighing(weights).take([5, 0]).weighted()
    np.testing.assert_allclose(part.first_batch()[WEIGHTS], [1.5, 0.5], rtol=1e-6)


def weighed(labels: np.ndarray, classes: Any, by_row: Any = None) -> np.ndarray:
    likelihood = Classification(3)
    source = weigh(Source((rows()[0], labels), network(), likelihood=likelihood), by_row, classes, None, likelihood)
    assert source.weights is not None
    return source.weights / source.weights.mean()


def test_weights_of_classes_are_weights_of_their_rows() -> None:
    labels = rows()[1]
    for classes in ([1, 2, 3], (0.5, 1, 1.5), {"1": 2, 2: 3.0}):
        np.testing.assert_allclose(weighed(labels, classes), WEIGHT / 2, rtol=1e-12)
    uneven = np.array([0] * 8 + [1] * 4)
    np.testing.assert_allclose(weighed(uneven, "balanced"), np.where(uneven, 1.5, 0.75), rtol=1e-12)
    np.testing.assert_allclose(weighed(labels, [1, 2, 3], WEIGHT), WEIGHT**2 / (WEIGHT**2).mean(), rtol=1e-12)


@pytest.mark.parametrize("classes", ["balanced", {True: 3, False: 1}, {"True": 3}, {1: 3.0, 0: 1}, {1.0: 3}, [1, 3]])
def test_truth_values_are_weighed_as_classes(classes: Any) -> None:
    x, labels = np.random.default_rng(0).normal(size=(12, 5)), np.arange(12) % 4 == 0
    by_rows = fit((x, labels), network(2), weight=np.where(labels, 3.0, 1.0))
    by_classes = fit((x, labels), network(2), class_weights=classes)
    np.testing.assert_allclose(by_classes.history, by_rows.history, rtol=1e-9)


def test_a_fit_uses_them() -> None:
    x, labels = rows()
    by_rows = fit(weight=WEIGHT)
    assert fit({"input": x, "labels": labels, "w": WEIGHT * 7}, weight="w").history.equals(by_rows.history)
    assert fit(class_weights={"1": 2, "2": 3}).history.equals(by_rows.history)
    assert not fit().history.equals(by_rows.history)


@pytest.mark.parametrize("method", ["laplace", "deep_ensemble", "tfb"])
def test_every_way_of_training_takes_weights(method: str) -> None:
    # A row without weight does not count, whatever its label says.
    x, labels = rows()
    wrong = labels.copy()
    wrong[0] = 1
    weights = np.array([0.0] + [1.0] * 11)
    one, other = (fit((x, y), method=method, weight=weights) for y in (labels, wrong))
    for name, value in one.draw(2).items():
        torch.testing.assert_close(value, other.draw(2)[name], rtol=1e-9, atol=1e-12)


# What is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": "w"}, "weight='w': data has no such column"),
        ({"weight": [1.0] * 11}, "weight has 11 numbers, and data 12 rows"),
        ({"weight": [1.0] * 11 + [-1]}, "weight: give a finite number of at least 0 for each row"),
        ({"weight": [np.nan] * 12}, "weight: give a finite number"),
        ({"weight": [0] * 12}, "more than 0 for some"),
        ({"class_weights": [1, 2]}, "class_weights has 2 numbers, and there are 3 classes, 0, 1, 2"),
        ({"class_weights": {"x": 2}}, "class_weights: there is no class 'x', only '0', '1', '2'"),
        ({"class_weights": {"1": float("inf")}}, "class_weights=.*: give 'balanced', a mapping"),
        ({"class_weights": [0, 0, 0]}, "every row has the weight 0"),
    ],
)
def test_weights_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        fit(**settings)


def test_classes_are_weighed_where_there_are_classes() -> None:
    x, labels = rows()
    with pytest.raises(ArgumentError, match="labels of 'regression' are not of one class each: weigh the rows"):
        fit((x, labels + 0.5), network(1), class_weights="balanced")
    loader = torch.utils.data.DataLoader(Rows([{"input": x[0], "labels": 1}] * 4))
    with pytest.raises(ArgumentError, match="class_weights: data is a DataLoader"):
        fit(loader, class_weights="balanced")
