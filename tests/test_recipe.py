"""Epochs and rate where they are not given, and the verdict on whether a fit has learned."""

import logging

import numpy as np
import pytest
import torch

import bayeslora
from bayeslora import METHODS, metrics, recipe, verdict
from bayeslora.adapters import AdaptedNetwork
from bayeslora.tasks.classification import Classification
from bayeslora.tasks.multilabel import MultiLabel
from bayeslora.tasks.ordinal import Ordinal
from bayeslora.tasks.regression import Regression
from bayeslora.tasks.token_classification import TokenClassification
from tests.helpers import tiny_bert, tokens
from tests.tasks.cases import model as case_model
from tests.test_data import tiny_tokenizer


@pytest.mark.parametrize(
    ("num_examples", "usual", "loud"),
    [(1, 8, 8), (400, 8, 8), (500, 6, 6), (640, 5, 6), (1_000, 3, 6), (1_600, 3, 4), (6_400, 3, 3), (1_000_000, 3, 3)],
)
def test_epochs_make_the_methods_fewest_steps_between_three_and_eight_epochs(
    num_examples: int, usual: float, loud: float
) -> None:
    assert recipe.epochs(num_examples, 16, METHODS["lora"]()) == usual
    assert recipe.epochs(num_examples, 16, METHODS["monteclora"]()) == loud


def test_the_rate_falls_with_the_width_and_is_the_methods_own() -> None:
    def rate(width: int, method: str = "lora") -> float:
        network = AdaptedNetwork(tiny_bert(hidden_size=width, intermediate_size=width), METHODS[method].family)
        return recipe.learning_rate(network, METHODS[method]())

    assert rate(384) == 1e-3
    assert rate(768) == pytest.approx(1e-3 * 0.5**0.78, rel=0.05)  # two digits
    assert rate(8) == rate(64)
    assert rate(384, "full") == pytest.approx(1e-4)
    assert rate(384, "adalora") == pytest.approx(3e-3)


def test_fit_uses_the_recipe_unless_told(caplog: pytest.LogCaptureFixture) -> None:
    model, data = tiny_bert(), tokens(32)
    with caplog.at_level(logging.INFO, logger="bayeslora"):
        told = bayeslora.fit(model, data, "lora", rank=1, targets="query", epochs=1, learning_rate=1e-3, progress=False)
        posterior = bayeslora.fit(model, data, "lora", rank=1, targets="query", batch_size=32, progress=False)
    assert len(told.history) == 2
    assert len(posterior.history) == 8
    assert "Epochs: 1, at a peak rate of 0.001." in caplog.text
    assert "Epochs: 8, at a peak rate of 0.004." in caplog.text


GENERATOR = np.random.default_rng(0)
LABELS = {
    "classification": (Classification(3), GENERATOR.integers(3, size=40)),
    "ordinal": (Ordinal(3), GENERATOR.integers(3, size=40)),
    "multilabel": (MultiLabel(2), GENERATOR.integers(2, size=(40, 2))),
    "regression": (Regression(), GENERATOR.normal(3, 2, size=40)),
    "regression of known scale": (Regression(0.5, learned=False), GENERATOR.normal(3, 2, size=40)),
    "token_classification": (TokenClassification(3), GENERATOR.integers(3, size=(40, 5))),
}


@pytest.mark.parametrize("kind", LABELS)
def test_baseline_is_the_best_nll_of_constant_logits(kind: str) -> None:
    likelihood, labels = LABELS[kind]
    likelihood = likelihood.double()
    shape = {"regression": (1,), "regression of known scale": (1,), "ordinal": (1,)}.get(kind, (labels.max() + 1,))
    logits = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    values = torch.as_tensor(labels)
    parameters = [logits, *(p for p in likelihood.parameters() if p.requires_grad)]
    optimizer = torch.optim.LBFGS(parameters, max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def nll() -> torch.Tensor:
        everywhere = logits.expand(*values.shape[: 2 if kind == "token_classification" else 1], *shape)
        return -likelihood.log_prob(everywhere, values).mean()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nll()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert likelihood.baseline(labels) == pytest.approx(float(nll().detach()), abs=1e-6)


def test_tokens_that_are_not_observed_do_not_count() -> None:
    ragged = [[0, 1, -100], [1], [-100, 0]]
    assert TokenClassification(2).baseline(ragged) == pytest.approx(4 / 3 * np.log(2))


def test_frequency_nll() -> None:
    assert metrics.frequency_nll([0, 0, 0, 1]) == pytest.approx(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))


@pytest.mark.parametrize(("level", "learned"), [(0.2, True), (0.68, False), (0.75, False)])
def test_verdict_compares_the_last_epoch_with_the_frequencies(
    level: float, learned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    epoch = np.arange(1, 31) / 10
    nll = np.where(epoch <= 2, 5.0, level) + 0.1 * (-1.0) ** np.arange(30)
    history = {"epoch": epoch.tolist(), "nll": nll.tolist()}
    labels = np.array([0, 1] * 20)
    assert verdict.has_learned(history, Classification(2), labels) is learned
    assert ("learning_rate=…" in caplog.text) is not learned
    assert (f"{level:.3f}" in caplog.text) is not learned


def test_verdict_on_labels_that_are_not_observed(caplog: pytest.LogCaptureFixture) -> None:
    assert verdict.has_learned({"epoch": [0.5, 1.0], "nll": [0.0, 0.0]}, Classification(2), None) is False
    assert "0 at every step, as where all labels are -100" in caplog.text


def test_verdict_is_open_without_a_baseline_or_enough_steps() -> None:
    history = {"epoch": [1.0] * 4, "nll": [0.7] * 4}
    assert verdict.has_learned(history, Classification(2), [0, 1]) is None
    assert verdict.has_learned({}, Classification(2), [0, 1]) is None
    assert verdict.has_learned({"epoch": [1.0] * 9, "nll": [0.7] * 9}, Classification(2), [1, 1]) is None
    assert verdict.has_learned({"epoch": [1.0] * 9, "nll": [0.7] * 9}, Classification(2), None) is None


@pytest.mark.parametrize(("fall", "noise", "falls"), [(0.3, 0.05, True), (0.3, 1.0, False), (0.005, 0.0, False)])
def test_verdict_compares_the_fall_in_the_last_tenth_with_its_noise(
    fall: float, noise: float, falls: bool, caplog: pytest.LogCaptureFixture
) -> None:
    last = np.linspace(fall, 0, 20) + noise * np.random.default_rng(0).standard_normal(20)
    history = {"nll": [*np.linspace(3, 1, 180), *last]}
    assert verdict.still_falls(history) is falls
    assert ("still falls" in caplog.text) is falls
    assert verdict.still_falls({"nll": [1.0] * 79}) is None


def test_a_fit_on_labels_without_a_pattern_says_so(caplog: pytest.LogCaptureFixture) -> None:
    x, y = torch.ones(64, 4), torch.arange(64) % 2
    network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    bayeslora.fit(network, (x, y), "lora", rank=1, epochs=4, progress=False)
    assert "has not learned" in caplog.text


def test_a_fit_to_words_is_compared_with_frequencies_per_row(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"tokens": [["good", "film"], ["bad"], ["very", "good", "film"]] * 4}
    rows["ner_tags"] = [["B" if word == "good" else "O" for word in row] for row in rows["tokens"]]
    seen = []
    monkeypatch.setattr(verdict, "has_learned", lambda history, likelihood, labels: seen.append((likelihood, labels)))
    network = case_model("Bert", "ForTokenClassification", num_labels=2)()
    bayeslora.fit(network, rows, "lora", tokenizer=tiny_tokenizer(), rank=2, epochs=1, progress=False)
    [(likelihood, labels)] = seen
    assert likelihood.baseline(labels) == pytest.approx(2 * metrics.frequency_nll([1, 0, 0, 1, 0, 0]))  # 2 words a row
