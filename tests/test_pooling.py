"""Predictions that are mixtures of draws with unequal weights."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from bayeslora.tasks.prediction import BasePrediction
from tests.tasks.cases import CASES, Case

KINDS = {type(case.likelihood).__name__: case for case in CASES}
"""One case of each kind of label."""
del KINDS["Seq2SeqLM"]  # collected as CausalLM is


def predictions(case: Case, weights: np.ndarray | None = None, repeated: tuple[int, ...] = (0, 1)) -> BasePrediction:
    """A prediction at two draws of the logits, repeated so often, or with weights."""
    inputs, labels = case.data
    with torch.no_grad():
        output = case.make()(**inputs) if isinstance(inputs, dict) else case.make()(inputs)
    logits = output if isinstance(output, torch.Tensor) else getattr(output, "logits", None)
    if logits is None:
        logits = torch.stack([output.start_logits, output.end_logits], -1)
    draws = torch.stack([logits, 3 * logits.roll(1, 0)])[list(repeated)].double()
    likelihood = case.likelihood.double()
    batch = {**inputs, "labels": labels} if isinstance(inputs, dict) else {"labels": labels}
    selected = torch.stack([likelihood.select(each, batch) for each in draws])
    collector = likelihood.collector(True)
    collector.weights = weights
    torch.manual_seed(0)
    collector.add(np.arange(len(labels)), batch, iter(selected[:, None]))
    found = collector.result()
    prediction = likelihood.predict(found)
    vars(prediction).update(weights=weights)
    return prediction


def labels_of(case: Case, prediction: BasePrediction) -> np.ndarray:
    labels = torch.as_tensor(case.data[1])
    if hasattr(prediction, "rows"):
        targets = case.likelihood.targets(labels)
        return targets[targets != -100].numpy()
    return labels.numpy()


@pytest.mark.parametrize("name", KINDS)
def test_a_draw_of_twice_the_weight_is_the_draw_twice(name: str) -> None:
    case = KINDS[name]
    twice, weighted = predictions(case, repeated=(0, 1, 1)), predictions(case, np.array([1 / 3, 2 / 3]))
    labels = labels_of(case, twice)
    for part in ("predicted", "entropy", "aleatoric", "epistemic"):
        np.testing.assert_allclose(getattr(weighted, part), getattr(twice, part), rtol=1e-9, atol=1e-12)
    ours, theirs = weighted.scores(labels), twice.scores(labels)
    assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("name", [name for name, case in KINDS.items() if "LM" not in name])
def test_pooling_joins_draws(name: str) -> None:
    case = KINDS[name]
    whole = predictions(case, np.array([0.3, 0.7]))
    one, other = predictions(case, repeated=(0,)), predictions(case, repeated=(1,))
    pooled, labels = one.pooled([other], np.array([0.3, 0.7])), labels_of(case, whole)
    assert pooled.scores(labels) == pytest.approx(whole.scores(labels), rel=1e-9, nan_ok=True)
    np.testing.assert_allclose(pooled.entropy, whole.entropy, rtol=1e-9)
    assert one.pooled([other], np.array([0.5, 0.5])).weights is None


def test_noise_of_draws_may_differ() -> None:
    from bayeslora import RegressionPrediction

    draws = np.array([[0.0, 1.0]])
    quiet, loud = RegressionPrediction(draws, 0.1), RegressionPrediction(draws + 1, 2.0)
    pooled: Any = quiet.pooled([loud], np.array([0.25, 0.75]))
    generator = np.random.default_rng(0)
    which = generator.random(400_000) < 0.75
    y = np.where(which, 1 + 2 * generator.normal(size=which.size), 0.1 * generator.normal(size=which.size))
    error = 5 / math.sqrt(y.size)
    assert abs(pooled.mean[0] - y.mean()) < error * 2
    assert abs(pooled.variance[0] - y.var()) < error * 12
    assert abs(np.mean(y <= pooled.quantile(0.3)[0]) - 0.3) < error
    others = generator.permutation(y)
    crps = np.abs(y - 0.7).mean() - np.abs(y - others).mean() / 2
    assert abs(pooled.crps(np.array([0.7, 0.7]))[0] - crps) < error * 4
    density = np.exp(pooled.log_likelihood(np.array([0.5, 0.5])))[:, 0] @ [0.25, 0.75]
    assert pooled.scores(np.array([0.5, 1.5]))["nll"] == pytest.approx(-math.log(density))
    log_density = np.log(
        0.25 * np.exp(-0.5 * (y / 0.1) ** 2) / 0.1 + 0.75 * np.exp(-0.5 * ((y - 1) / 2) ** 2) / 2
    ) - 0.5 * math.log(2 * math.pi)
    assert abs(pooled.entropy[0] + log_density.mean()) < error * 2


def test_a_weighted_prediction_says_so() -> None:
    from bayeslora import Prediction

    probs = np.array([[[0.3, 0.7]], [[0.4, 0.6]]])
    prediction = Prediction(probs[:1]).pooled([Prediction(probs[1:])], np.array([0.25, 0.75]))
    assert prediction.probs.tolist() == [pytest.approx([0.375, 0.625])]
    assert "2, of unequal weight" in repr(prediction)
    assert dataclasses.replace(prediction).weights is None
    assert prediction.epistemic_corrected == pytest.approx(prediction.epistemic / (1 - 0.0625 - 0.5625))
