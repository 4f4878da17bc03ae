"""Predictive distributions against integrals and draws."""

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, stats

from bayeslora import (
    MultiLabelPrediction,
    ObservationPrediction,
    Prediction,
    RegressionPrediction,
    SpanPrediction,
    TokenPrediction,
)
from bayeslora.contracts import ArgumentError
from bayeslora.tasks import CausalLM, Regression, StudentT
from bayeslora.tasks.collecting import Rows
from bayeslora.tasks.language_model import Summaries
from bayeslora.tasks.noise import Noise
from bayeslora.tasks.observation import Observation
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
    for rounding in (0.0, 1e-16, 1e-7):
        equal = 1 + rounding * np.array([[0, 2, 1]])
        assert math.isnan(RegressionPrediction(equal, 1.0).scores(labels)["pearson"])


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


# Other kinds of labels


def simplex(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).dirichlet(np.ones(shape[-1]), shape[:-1])


def test_spans_are_pairs_whose_ends_the_draws_tie_together() -> None:
    draws = np.moveaxis(simplex(3, 2, 2, 5), -2, -1)  # [draw, example, position, end]
    prediction = SpanPrediction(draws, max_length=3)
    for example in range(2):
        pairs = np.mean([np.outer(draw[example, :, 0], draw[example, :, 1]) for draw in draws], axis=0)
        np.testing.assert_allclose(prediction.joint(example), pairs)
        assert prediction.entropy[example] == pytest.approx(-(pairs * np.log(pairs)).sum())
        valid = {(i, j): pairs[i, j] for i in range(5) for j in range(i, min(i + 3, 5))}
        assert tuple(prediction.predicted[example]) == max(valid, key=valid.__getitem__)
        assert prediction.confidence[example] == max(valid.values())
    labels = np.array([[1, 2], [0, 4]])
    expected = np.log(draws[:, [0, 1], labels[:, 0], 0]) + np.log(draws[:, [0, 1], labels[:, 1], 1])
    np.testing.assert_allclose(prediction.log_likelihood(labels), expected)
    assert (SpanPrediction(draws[:1]).epistemic == 0).all()


def test_multilabel_sums_over_an_examples_labels() -> None:
    draws = np.random.default_rng(0).random((4, 3, 2))
    prediction = MultiLabelPrediction(draws, ("cat", "dog"))
    labels = np.array([[0, 1], [1, 1], [0, 0]])
    expected = stats.bernoulli.logpmf(labels, draws).sum(-1)
    np.testing.assert_allclose(prediction.log_likelihood(labels), expected)
    np.testing.assert_allclose(prediction.aleatoric, stats.bernoulli.entropy(draws).sum(-1).mean(0))
    np.testing.assert_allclose(prediction.entropy, stats.bernoulli.entropy(draws.mean(0)).sum(-1))
    table = prediction.to_pandas()
    for names, probs in zip(table["predicted"], prediction.probs, strict=True):
        assert names == tuple(name for name, p in zip(("cat", "dog"), probs, strict=True) if p > 0.5)


def test_tokens_add_up_to_their_examples() -> None:
    rows = Rows(np.array([0, 0, 2, 2, 2]), np.array([1, 2, 0, 1, 2]), 3)  # the second example has no token
    prediction = TokenPrediction(simplex(4, 5, 3), rows)
    labels = np.array([0, 2, 1, 1, 0])
    tokens = np.log(prediction.draws[:, np.arange(5), labels])
    expected = np.stack([tokens[:, :2].sum(1), np.zeros(4), tokens[:, 2:].sum(1)], axis=1)
    np.testing.assert_allclose(prediction.log_likelihood(labels), expected)
    scores = prediction.scores(labels)
    assert scores["nll"] == pytest.approx(-np.log(np.exp(expected).mean(0)).mean())
    assert scores["nll_per_token"] == pytest.approx(-np.log(np.exp(tokens).mean(0)).mean())
    assert list(prediction.to_pandas().columns[:3]) == ["example", "position", "predicted"]


def test_a_likelihood_of_ones_own_is_estimated_from_samples() -> None:
    rates = torch.tensor([[1.0, 20.0], [4.0, 20.0]], dtype=torch.float64)
    prediction = ObservationPrediction([dist.Poisson(rate) for rate in rates], num_samples=20_000)
    np.testing.assert_allclose(prediction.predicted, rates.mean(0))
    counts = np.arange(200)[:, None, None]
    pmf = stats.poisson.pmf(counts, rates.numpy())
    entropy = -(pmf.mean(1) * np.log(np.maximum(pmf.mean(1), 1e-300))).sum(0)
    # The standard deviation of a surprise is below 1 here.
    np.testing.assert_allclose(prediction.entropy, entropy, atol=4.3 / math.sqrt(20_000))
    assert prediction.epistemic[1] == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(
        prediction.log_likelihood(np.array([3.0, 18.0])), stats.poisson.logpmf([3, 18], rates.numpy())
    )


def test_a_language_models_summary_is_that_of_all_its_probabilities() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 6, 11, generator=generator)
    labels = torch.randint(0, 11, (3, 6), generator=generator)
    labels[1, 3:] = -100
    summaries = Summaries(CausalLM(11), with_labels=True)
    summaries.add(np.array([2, 0]), {"labels": labels[:2]}, iter([logits[:3, :2], logits[3:, :2]]))
    summaries.add(np.array([1]), {"labels": labels[2:]}, iter([logits[:, 2:]]))
    prediction = summaries.result()
    probs = logits.softmax(-1).numpy()[:, [1, 2, 0]]  # in the data's order
    labels = labels[[1, 2, 0]]
    example, position = np.nonzero(labels[:, 1:].numpy() != -100)
    rows, tokens = probs[:, example, position], labels[example, position + 1].numpy()
    np.testing.assert_array_equal(prediction.rows.example, example)
    np.testing.assert_array_equal(prediction.rows.position, position + 1)
    np.testing.assert_array_equal(prediction.tokens, tokens)
    np.testing.assert_allclose(prediction.draws, rows[:, np.arange(len(tokens)), tokens], rtol=1e-5)
    full = Prediction(rows)
    np.testing.assert_allclose(prediction.entropy, full.entropy, rtol=1e-5)
    np.testing.assert_allclose(prediction.aleatoric, full.aleatoric, rtol=1e-5)
    np.testing.assert_array_equal(prediction.predicted, full.predicted)
    scores = prediction.scores(prediction.tokens)
    assert scores["perplexity"] == pytest.approx(math.exp(-np.log(prediction.probs).mean()))
    with pytest.raises(ArgumentError, match=r"not the tokens that this prediction is of: give prediction.labels"):
        prediction.scores(prediction.tokens + 1)


# Labels that are not the rows'

OF_THREE_ROWS = {
    "classes": (Prediction(simplex(4, 3, 3)), np.array([0, 2, 1])),
    "labels": (MultiLabelPrediction(simplex(4, 3, 3)), np.array([[0, 1, 0], [1, 1, 0], [0, 0, 0]])),
    "numbers": (RegressionPrediction(LOC, SCALE), LABELS),
    "spans": (SpanPrediction(np.moveaxis(simplex(3, 3, 2, 5), -2, -1)), np.array([[0, 1], [2, 2], [1, 4]])),
    "tokens": (TokenPrediction(simplex(4, 3, 3), Rows(np.arange(3), np.zeros(3, int), 3)), np.array([0, 2, 1])),
    "counts": (ObservationPrediction([dist.Poisson(torch.tensor([1.0, 20.0, 3.0]))] * 2), np.array([1, 18, 0])),
    "vectors": (
        ObservationPrediction([dist.Normal(torch.zeros(3, 2), torch.ones(3, 2)).to_event(1)] * 2),
        np.array([[1.0, 0.5], [0.0, 2.0], [3.0, 1.0]]),
    ),
}
METHODS_OF_LABELS = ("log_likelihood", "row_log_likelihood", "log_density", "scores", "wrong", "conformity", "crps")


def others(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Labels of fewer, more or other rows, or that are none."""
    late = (np.arange(3) == 2).reshape(3, *[1] * (labels.ndim - 1))
    shapes = {"few": labels[:2], "one": labels[:1], "column": labels[..., None], "row": labels[None]}
    shapes |= {"many": np.concatenate([labels, labels[:1]]), "none": labels[:0], "scalar": np.array(1)}
    return shapes | {"nan": np.where(late, np.nan, labels), "inf": np.where(late, np.inf, labels)}


@pytest.mark.parametrize("kind", OF_THREE_ROWS)
def test_labels_of_other_rows_are_refused_and_not_spread_over_all(kind: str) -> None:
    prediction, labels = OF_THREE_ROWS[kind]
    for method in [name for name in METHODS_OF_LABELS if hasattr(prediction, name)]:
        call = getattr(prediction, method)
        if call(labels) is None or len(call(labels)) == 0:  # which this kind does not have
            continue
        for other in others(labels).values():
            with pytest.raises(ArgumentError, match=r"labels(\[2.*\] is (nan|inf)| has shape)"):
                call(other)


@pytest.mark.parametrize(("kind", "bad"), [("classes", -1), ("classes", 3), ("labels", 2), ("spans", 5), ("tokens", 3)])
def test_labels_beyond_what_there_is_are_named(kind: str, bad: int) -> None:
    prediction, labels = OF_THREE_ROWS[kind]
    labels = labels.copy()
    labels[1] = bad
    for call in (prediction.log_likelihood, prediction.wrong if kind != "tokens" else prediction.scores):
        with pytest.raises(ArgumentError, match=rf"labels\[1.*\] is {bad}: give whole numbers from 0 to"):
            call(labels)
    with pytest.raises(ArgumentError, match=r"labels has -1, which no Poisson gives"):
        OF_THREE_ROWS["counts"][0].scores(np.array([1, -1, 0]))


def test_truth_values_and_whole_real_numbers_are_classes() -> None:
    prediction = Prediction(simplex(4, 3, 2))
    for labels in (np.array([True, False, True]), np.array([1.0, 0.0, 1.0])):
        assert prediction.scores(labels) == prediction.scores(np.array([1, 0, 1]))
    assert OF_THREE_ROWS["numbers"][0].scores(np.array([True, False, True]))["nll"] > 0


OBSERVED = {
    "bernoulli": (dist.Bernoulli, (torch.tensor([0.2, 0.7]),), [0, 1], stats.bernoulli([0.2, 0.7])),
    "uniform": (dist.Uniform, (torch.zeros(2), torch.tensor([2.0, 4.0])), [1.5, 3.0], stats.uniform(0, [2, 4])),
    "poisson": (dist.Poisson, (torch.tensor([1.0, 4.0]),), [3, 2], stats.poisson([1, 4])),
}


@pytest.mark.parametrize("name", OBSERVED)
@pytest.mark.parametrize("form", ["<i8", ">i8", "<u8", "<f4", ">f8", "longdouble", "bool", "reversed", "read only"])
def test_labels_of_a_likelihood_of_ones_own_come_in_any_form(name: str, form: str) -> None:
    make, parameters, values, law = OBSERVED[name]
    labels = np.array(values, dtype=float)
    if form == "reversed":
        labels = labels[::-1].copy()[::-1]
    elif form == "read only":
        labels.flags.writeable = False
    else:
        labels = labels.astype(form)
    prediction = ObservationPrediction([make(*(each.double() for each in parameters))])
    given = labels.astype(float)
    expected = law.logpdf(given) if hasattr(law.dist, "pdf") else law.logpmf(given)
    np.testing.assert_allclose(prediction.log_likelihood(labels)[0], expected, rtol=1e-6)


def test_what_only_some_draws_can_give_has_no_probability_under_the_others() -> None:
    widths = torch.tensor([[1.0, 2.0], [4.0, 2.0]], dtype=torch.float64)
    prediction = ObservationPrediction([dist.Uniform(torch.zeros_like(width), width) for width in widths])
    labels = np.array([3.0, 1.0])
    expected = np.array([[-math.inf, math.log(1 / 2)], [math.log(1 / 4), math.log(1 / 2)]])
    np.testing.assert_array_equal(prediction.log_likelihood(labels), expected)
    np.testing.assert_allclose(prediction.log_density(labels), [math.log(1 / 8), math.log(1 / 2)])
    assert prediction.epistemic[1] == pytest.approx(0, abs=1e-12)
    with pytest.raises(ArgumentError, match=r"^labels has 5\.0, which no Uniform gives"):
        prediction.scores(np.array([5.0, 1.0]))


def test_masked_labels_are_no_labels(prediction: RegressionPrediction) -> None:
    with pytest.raises(ArgumentError, match=r"^labels is a masked array"):
        prediction.scores(np.ma.masked_array(LABELS, [False, True, False]))


def test_a_callable_observes_labels_in_the_type_that_its_distribution_takes() -> None:
    def observe(logits: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        values = None if labels is None else labels.to(logits.dtype)
        return pyro.sample("labels", dist.Bernoulli(logits=logits[..., 0]), obs=values)

    logits, labels = torch.tensor([[0.3], [-1.0]], dtype=torch.float64), torch.tensor([1, 0])
    expected = -np.log1p(np.exp([-0.3, -1.0]))
    np.testing.assert_allclose(Observation(observe).log_prob(logits, labels), expected)
