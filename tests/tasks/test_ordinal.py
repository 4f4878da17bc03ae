"""Ordered classes: their probabilities, their scores, and what is refused."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import bayeslora
from bayeslora.tasks import Ordinal
from bayeslora.tasks.ordinal import OrdinalPrediction, ranked_probability_score

CUTS = [-1.0, 0.5, 0.7]


def test_cumulative_probabilities_are_those_of_the_logistic_distribution() -> None:
    likelihood = Ordinal(4, CUTS).double()
    f = torch.linspace(-3, 3, 7, dtype=torch.float64)
    below = likelihood.distribution(f).probs.cumsum(-1)[:, :-1]
    cuts = likelihood.cut_points.double()
    torch.testing.assert_close(below, torch.sigmoid(cuts - f[:, None]), rtol=1e-6, atol=1e-6)


def test_far_from_every_cut_the_logarithms_are_still_right() -> None:
    log_probs = Ordinal(3, [0.0, 1.0]).double().log_probs(torch.tensor([60.0], dtype=torch.float64))
    # ln P(y = 0) = ln σ(−60) = −60; ln P(y = 1) = ln (σ(−59) − σ(−60)) = −59 + ln (1 − 1/e)
    assert log_probs[0, 0].item() == pytest.approx(-60, rel=1e-9)
    assert log_probs[0, 1].item() == pytest.approx(-59 + math.log(1 - math.exp(-1)), rel=1e-6)


def test_cut_points_start_where_the_logit_0_gives_the_frequencies() -> None:
    labels = np.repeat([0, 1, 2, 3], [100, 300, 500, 100])
    likelihood = Ordinal.fitting(torch.zeros(2, 1), labels)
    probs = likelihood.distribution(torch.zeros(1)).probs[0]
    np.testing.assert_allclose(probs.detach().numpy(), [0.1, 0.3, 0.5, 0.1], atol=2e-3)


def test_scores_of_probabilities_made_by_hand() -> None:
    probs = np.array([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]])
    labels = np.array([2, 0])
    expected = [0.2**2 + 0.7**2, 0.4**2 + 0.1**2]
    np.testing.assert_allclose(ranked_probability_score(probs, labels), expected)
    scores = OrdinalPrediction(probs[None]).scores(labels)
    assert scores["rps"] == pytest.approx(np.mean(expected))
    assert scores["mae"] == 0.5  # the medians are 1 and 0
    assert scores["accuracy"] == 0.5


def test_kappa_weighs_the_square_of_the_distance() -> None:
    labels = np.array([0, 1, 2, 2])
    near, far = (OrdinalPrediction(np.eye(3)[None, given]) for given in ([0, 1, 2, 1], [0, 1, 2, 0]))
    assert near.scores(labels)["quadratic_kappa"] > far.scores(labels)["quadratic_kappa"]
    assert OrdinalPrediction(np.eye(3)[None, labels]).scores(labels)["quadratic_kappa"] == 1


def test_stars_come_back_from_disk_with_their_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 1))
    x = torch.randn(60, 3)
    labels = (x[:, 0] * 1.5 + 2).round().clamp(0, 4).long()
    posterior = bayeslora.fit(network, (x, labels), "monteclora", likelihood="ordinal", rank=1, progress=False)
    assert posterior.program.likelihood.config() == {"num_classes": 5}
    posterior.save(tmp_path)
    loaded = bayeslora.load(tmp_path, network)
    np.testing.assert_array_equal(loaded.predict(x, 4).draws, posterior.predict(x, 4).draws)
    assert {"accuracy", "mae", "rps", "quadratic_kappa"} <= loaded.evaluate((x, labels), 4).keys()


@pytest.mark.parametrize("method", ["monteclora", "laplace", "ivon"])
def test_two_classes_are_in_order_too(method: str, tmp_path: Path) -> None:
    # They have one cut point, and no distances between cut points.
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 1))
    data = torch.randn(60, 3), torch.tensor([0, 1] * 30)
    posterior = bayeslora.fit(network, data, method, likelihood="ordinal", rank=1, progress=False)
    posterior.save(tmp_path)
    assert bayeslora.load(tmp_path, network).evaluate(data, 4) == posterior.evaluate(data, 4)


def test_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="give at least two ordered classes"):
        Ordinal(1)
    with pytest.raises(ValueError, match="give 2 finite numbers, one fewer than classes, in order"):
        Ordinal(3, [1.0, 0.0])
    with pytest.raises(ValueError, match=r"need one output per example.*num_labels=1"):
        Ordinal(3).select(torch.zeros(4, 3), {})
    with pytest.raises(ValueError, match="whole numbers from 0, one per example"):
        Ordinal.fitting(torch.zeros(2, 1), [0.5, 1.5])
    with pytest.raises(ValueError, match="range from 0 to 5"):
        Ordinal(3).check_labels([0, 5])
