"""Predictive distributions against integrals and draws."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from bayeslora import RegressionPrediction
from bayeslora.likelihoods import Regression, StudentT
from bayeslora.metrics import Noise
from tests.helpers import assert_mean_close, assert_uniform

LOC = np.array([[0.0, 1.0, -4.0], [0.5, 1.0, 2.0], [2.0, 1.0, 9.0]])
SCALE = 0.7
LABELS = np.array([0.3, 4.0, 2.5])


@pytest.fixture(params=[math.inf, 5.0, 2.5], ids=["normal", "t5", "t2.5"])
def prediction(request: pytest.FixtureRequest) -> RegressionPrediction:
    return RegressionPrediction(LOC, SCALE, request.param)


def law(prediction: RegressionPrediction) -> stats.rv_continuous:
    return stats.norm if math.isinf(prediction.df) else stats.t(prediction.df)


def density(prediction: RegressionPrediction, example: int, y: float) -> float:
    return float(np.exp(prediction.log_likelihood(np.full(3, y))[:, example]).mean())


def integral(function: object, prediction: RegressionPrediction, example: int) -> float:
    points = np.concatenate([[-1e5, -100], np.sort(LOC[:, example]), LABELS[[example]], [100, 1e5]])
    points = np.sort(points)
    return sum(
        integrate.quad(function, a, b, limit=200, epsabs=1e-10)[0] for a, b in itertools.pairwise(points) if b > a
    )


def test_entropy_is_that_of_the_mixture(prediction: RegressionPrediction) -> None:
    for example in range(3):

        def surprise(y: float, example: int = example) -> float:
            p = density(prediction, example, y)
            return -p * math.log(p) if p > 0 else 0.0

        expected = integral(surprise, prediction, example)
        assert prediction.entropy[example] == pytest.approx(expected, abs=2e-5)
    np.testing.assert_allclose(prediction.aleatoric, law(prediction).entropy() + math.log(SCALE))


def test_epistemic_is_zero_without_disagreement_and_log_draws_at_most(prediction: RegressionPrediction) -> None:
    assert prediction.epistemic[1] == pytest.approx(0, abs=1e-12)
    assert (prediction.epistemic <= math.log(3)).all()
    apart = RegressionPrediction(1e4 * LOC[:, [0]], SCALE, prediction.df)
    assert apart.epistemic[0] == pytest.approx(math.log(3), abs=1e-4)
    single = RegressionPrediction(LOC[:1], SCALE, prediction.df)
    assert (single.epistemic == 0).all()


def test_quantiles_invert_the_distribution_function(prediction: RegressionPrediction) -> None:
    for q in (0.01, 0.3, 0.95):
        at = prediction.quantile(q)
        cdf = law(prediction).cdf((at - LOC) / SCALE).mean(0)
        np.testing.assert_allclose(cdf, q, atol=1e-12)
    interval = prediction.interval(0.8)
    np.testing.assert_allclose(interval, np.stack([prediction.quantile(0.1), prediction.quantile(0.9)], -1))


def test_variance_is_that_of_the_mixture(prediction: RegressionPrediction) -> None:
    within = SCALE**2 * (1 if math.isinf(prediction.df) else prediction.df / (prediction.df - 2))
    np.testing.assert_allclose(prediction.variance, within + LOC.var(0))
    np.testing.assert_allclose(prediction.mean, LOC.mean(0))


def test_crps_is_the_integral_of_squared_differences(prediction: RegressionPrediction) -> None:
    noise = law(prediction)
    for example in range(3):

        def gap(y: float, example: int = example) -> float:
            cdf = noise.cdf((y - LOC[:, example]) / SCALE).mean()
            return (cdf - (y >= LABELS[example])) ** 2

        expected = integral(gap, prediction, example)
        assert prediction.crps(LABELS)[example] == pytest.approx(expected, rel=1e-5)


def test_log_likelihood_is_the_likelihoods(prediction: RegressionPrediction) -> None:
    np.testing.assert_allclose(
        prediction.log_likelihood(LABELS), law(prediction).logpdf((LABELS - LOC) / SCALE) - math.log(SCALE)
    )
    likelihood = Regression(SCALE) if math.isinf(prediction.df) else StudentT(SCALE, prediction.df)
    with torch.no_grad():
        expected = likelihood.double().log_prob(torch.as_tensor(LOC), torch.as_tensor(LABELS))
    np.testing.assert_allclose(prediction.log_likelihood(LABELS), expected, rtol=1e-6)


def test_samples_follow_the_distribution() -> None:
    prediction = RegressionPrediction(np.zeros((1, 4000)), SCALE, 5.0)
    assert_uniform(Noise(5.0).cdf(prediction.sample(seed=1)[0] / SCALE))
    normal = RegressionPrediction(np.full((1, 4000), 2.0), SCALE).sample(seed=1)[0]
    assert_mean_close(torch.as_tensor(normal), 2.0)
    assert_uniform(Noise().cdf((normal - 2) / SCALE))


def test_scores_by_hand() -> None:
    prediction = RegressionPrediction(np.array([[1.0, 2.0, 4.0]]), 1.0)
    labels = np.array([1.0, 4.0, 3.0])
    scores = prediction.scores(labels)
    assert scores["rmse"] == pytest.approx(math.sqrt(5 / 3))
    assert scores["mae"] == pytest.approx(1)
    assert scores["spearman"] == pytest.approx(0.5)
    assert scores["pearson"] == pytest.approx(np.corrcoef([1, 2, 4], [1, 4, 3])[0, 1])
    assert scores["nll"] == pytest.approx(0.5 * math.log(2 * math.pi) + 5 / 6)
    assert scores["coverage_90"] == pytest.approx(2 / 3)  # the interval is ± 1.645
    assert math.isnan(RegressionPrediction(np.ones((1, 3)), 1.0).scores(labels)["pearson"])


def test_to_pandas_has_a_row_per_example(prediction: RegressionPrediction) -> None:
    table = prediction.to_pandas()
    assert len(table) == len(prediction) == 3
    assert list(table.columns) == [
        *("predicted", "sd", "lower_90", "upper_90", "entropy", "aleatoric", "epistemic"),
    ]


@pytest.mark.parametrize("level", [0.0, 1.0, 1.5])
def test_a_level_is_a_probability(prediction: RegressionPrediction, level: float) -> None:
    with pytest.raises(ValueError, match=f"level={level}: give a probability between 0 and 1"):
        prediction.interval(level)
    with pytest.raises(ValueError, match=r"q=1\.5: give a probability"):
        prediction.quantile(1.5)
