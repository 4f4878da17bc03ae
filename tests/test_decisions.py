"""What decisions promise, on simulated rows whose truth is known."""

import copy
import dataclasses
import functools
import json
import math
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import digamma
from torch import nn

import bayeslora
from bayeslora import (
    MultiLabelPrediction,
    Posterior,
    Prediction,
    RegressionPrediction,
    TokenPrediction,
    decisions,
    metrics,
    tables,
)
from bayeslora.adapters import AdaptedNetwork
from bayeslora.contracts import ArgumentError
from bayeslora.methods import make_method
from bayeslora.program import Program
from bayeslora.tasks import CausalLM, Classification, Regression
from bayeslora.tasks.collecting import Rows
from bayeslora.tasks.prediction import BasePrediction
from bayeslora.tasks.question_answering import AnswerPrediction, SpanPrediction
from bayeslora.tasks.questions import Questions
from tests.clock import units
from tests.helpers import FAILURE_RATE, tiny_bert, tiny_gpt2, tiny_llama, tokens
from tests.methods.conftest import NO_DROPOUT, randomise
from tests.tasks.cases import model


def risk_below(threshold: float, rate, grid: np.ndarray) -> float:  # type: ignore[no-untyped-def]
    """The error rate of rows with a uniform uncertainty below a threshold; 0 where none is answered."""
    answered = grid[grid < threshold]
    return float(rate(answered).mean()) if len(answered) else 0.0


RATES = {
    "rising": lambda u: 0.4 * u**2,
    "nothing can be promised": lambda u: np.full_like(u, 0.12),
    "just what is asked": lambda u: np.full_like(u, 0.05),
    "jump": lambda u: np.where(u < 0.5, 0.01, 0.4),
    "overconfident": lambda u: 0.2 * (1 - u),
    "good": lambda u: 0.02 * u,
}
"""Error rates of rows of uncertainty u, which is uniform."""


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("num_rows", [60, 400])
@pytest.mark.parametrize("name", RATES)
def test_the_risk_is_kept_with_the_confidence_promised(name: str, num_rows: int, ties: bool) -> None:
    rng, rate, risk, confidence, repeats = np.random.default_rng(0), RATES[name], 0.05, 0.8, 400
    grid = np.linspace(0, 1, 2001)
    steps = 20 if ties else 10**9
    grid = np.round(grid * steps) / steps
    broken = 0
    for _ in range(repeats):
        u = rng.random(num_rows)
        u = np.round(u * steps) / steps
        threshold = decisions.selective_threshold(u, rng.random(num_rows) < rate(u), risk, confidence)
        broken += risk_below(threshold, rate, grid) > risk * (1 + 1e-3)  # the grid's mean is not exact
    assert stats.binom.sf(broken - 1, repeats, 1 - confidence) > FAILURE_RATE


def test_many_rows_are_answered_where_the_risk_allows_it() -> None:
    rng = np.random.default_rng(1)
    u = rng.random(20_000)
    wrong = rng.random(20_000) < 0.4 * u**2  # the risk below t is 0.4 t² / 3, at t = 0.612 it is 0.05
    assert 0.55 < decisions.selective_threshold(u, wrong, 0.05, 0.9) < 0.63
    assert decisions.selective_threshold(u, wrong, 0.2, 0.9) == math.inf


def test_one_early_error_does_not_end_the_search() -> None:
    u = np.arange(2000.0)
    wrong = np.arange(2000) == 3
    assert decisions.selective_threshold(u, wrong, 0.05, 0.9) == math.inf


def test_the_fewest_rows_are_those_without_an_error_that_suffice() -> None:
    needed = decisions.fewest_rows(0.05, 0.9)
    assert 0.95**needed <= 0.1 < 0.95 ** (needed - 1)
    for rows, expected in ((needed, math.inf), (needed - 1, -math.inf)):
        assert decisions.selective_threshold(np.arange(float(rows)), np.zeros(rows), 0.05, 0.9) == expected


def test_equal_uncertainties_are_answered_together() -> None:
    u = np.array([0.0] * 300 + [1.0] * 100)
    wrong = np.array([False] * 300 + [True] * 100)
    assert decisions.selective_threshold(u, wrong, 0.05, 0.9) == 1.0
    assert decisions.selective_threshold(u[:300], wrong[:300], 0.05, 0.9) == math.inf


def test_the_quantile_is_the_one_of_the_formula() -> None:
    scores = np.random.default_rng(0).permutation(np.arange(1.0, 10))  # 1 to 9
    for coverage, place in ((0.1, 1), (0.5, 5), (0.81, 9), (0.9, 9)):
        assert decisions.conformal_quantile(scores, coverage) == place == math.ceil(round(10 * coverage, 9))
    assert decisions.conformal_quantile(scores, 0.91) == math.inf


def test_scores_of_classes_are_those_of_the_papers() -> None:
    scores = decisions.conformal_scores(np.array([[0.5, 0.2, 0.3], [0.25, 0.25, 0.5], [1.0, 0.0, 0.0]]))
    np.testing.assert_allclose(scores["lac"], [[0.5, 0.8, 0.7], [0.75, 0.75, 0.5], [0, 1, 1]])
    np.testing.assert_allclose(scores["aps"], [[0.5, 1.0, 0.8], [1.0, 1.0, 0.5], [1, 1, 1]])


def test_many_classes_take_little_time_and_memory() -> None:
    probs = np.random.default_rng(0).dirichlet(np.ones(1000), 500)
    tracemalloc.start()
    try:
        scores = decisions.conformal_scores(probs)["aps"]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * probs.nbytes  # pairs of classes are 1000 times as many
    assert units(lambda: decisions.conformal_scores(probs), times=3) < 1000
    row = probs[0]
    np.testing.assert_allclose(scores[0], [row[row >= p].sum() for p in row])


def test_expected_costs_are_sums_over_the_classes() -> None:
    probs, costs = np.array([[0.9, 0.1], [0.4, 0.6]]), np.array([[0.0, 1.0, 2.0], [10.0, 0.0, 3.0]])
    np.testing.assert_allclose(decisions.expected_costs(probs, costs), [[1.0, 0.9, 2.1], [6.0, 0.4, 2.6]])
    with pytest.raises(ArgumentError, match=r"costs has shape \(2, 3\), and probs \(2, 3\)"):
        decisions.expected_costs(np.full((2, 3), 1 / 3), costs)


def test_distances_are_mahalanobis_distances_to_the_nearest_class() -> None:
    rng = np.random.default_rng(0)
    means, root = np.array([[0.0, 0.0], [6.0, 0.0]]), np.array([[1.0, 0.0], [0.8, 0.6]])
    labels = rng.integers(2, size=20_000)
    features = means[labels] + rng.normal(size=(20_000, 2)) @ root.T
    familiar = decisions.Familiar.of(features, labels)
    asked = np.array([[0.0, 0.0], [6.0, 2.0], [3.0, -3.0]])
    precision = np.linalg.inv(root @ root.T)
    exact = [min(math.sqrt((h - m) @ precision @ (h - m)) for m in means) for h in asked]
    np.testing.assert_allclose(familiar.distance(asked), exact, atol=0.1)
    # In k dimensions the squared distances of familiar inputs are χ²(k), whatever the unit of the features.
    scaled = decisions.Familiar.of(features * [1.0, 1e-3])
    assert np.mean(scaled.distance(features * [1.0, 1e-3]) ** 2) == pytest.approx(2, rel=0.05)


def test_distances_stand_fewer_rows_than_features() -> None:
    features = np.random.default_rng(0).normal(size=(20, 50))
    assert np.isfinite(decisions.Familiar.of(features).distance(features + 1)).all()
    alone = decisions.Familiar.of(features[:1]).distance(features[:1] + 1)
    np.testing.assert_allclose(alone, [features.shape[1] ** 0.5])


def classes(num_rows: int, seed: int, num_classes: int = 4) -> tuple[Prediction, np.ndarray]:
    """A prediction from a network that is overconfident, and labels."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2.0, size=(num_rows, num_classes))
    noise = rng.gumbel(size=logits.shape)
    draws = metrics.softmax(2 * logits + rng.normal(scale=0.5, size=(3, num_rows, num_classes)))
    return Prediction(draws), (logits + noise).argmax(-1)


def several(num_rows: int, seed: int) -> tuple[MultiLabelPrediction, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2.0, size=(num_rows, 3))
    return MultiLabelPrediction(metrics.sigmoid(3 * logits)[None]), (
        rng.random(logits.shape) < metrics.sigmoid(logits)
    ).astype(int)


def numbers(num_rows: int, seed: int) -> tuple[RegressionPrediction, np.ndarray]:
    rng = np.random.default_rng(seed)
    mean = rng.normal(size=num_rows)
    draws = mean + rng.normal(scale=rng.random(num_rows), size=(5, num_rows))
    return RegressionPrediction(draws, scale=0.1), mean + rng.standard_t(3, size=num_rows)


def covered(prediction: BasePrediction, labels: np.ndarray, coverage: float, **settings: Any) -> np.ndarray:
    """Whether the set of each row holds its label, or all its labels."""
    sets = prediction.sets(coverage, **settings)
    if isinstance(prediction, RegressionPrediction):
        return (sets[:, 0] <= labels) & (labels <= sets[:, 1])
    if isinstance(prediction, MultiLabelPrediction):
        return (sets | (labels == 0)).all(-1)
    return sets[np.arange(len(labels)), labels]


def halves(prediction: Any, labels: np.ndarray, which: np.ndarray) -> tuple[BasePrediction, np.ndarray]:
    """Rows of a prediction, deciding by the others."""
    held, new = (dataclasses.replace(prediction, draws=prediction.draws[:, rows]) for rows in (which, ~which))
    return new.decided_by(held.as_held_out(labels[which]), {}), labels[~which]


def test_a_prediction_that_can_decide_is_pickled() -> None:
    prediction, labels = halves(*classes(60, 0), np.arange(60) < 40)
    same = pickle.loads(pickle.dumps(prediction))
    np.testing.assert_array_equal(covered(same, labels, 0.8), covered(prediction, labels, 0.8))


KINDS: list[tuple[Any, dict[str, Any]]] = [
    (classes, {"method": "lac"}),
    (classes, {"method": "aps"}),
    (several, {}),
    (numbers, {}),
]


@pytest.mark.parametrize("coverage", [0.8, 0.9])
@pytest.mark.parametrize(("make", "settings"), KINDS)
def test_sets_hold_the_label_as_often_as_promised_over_200_splits(
    make: Any, settings: dict[str, Any], coverage: float
) -> None:
    # Every split has rows of its own, so that the 200 first new rows are independent.
    rows, splits = 60, 200
    hits = 0
    for seed in range(splits):
        prediction, labels = make(rows + 1, seed)
        new, label = halves(prediction, labels, np.arange(rows + 1) < rows)
        hits += int(covered(new, label, coverage, **settings)[0])
    exact = math.ceil((rows + 1) * coverage - 1e-9) / (rows + 1)  # where no two scores are equal
    most = 1.0 if settings.get("method") == "aps" or make is several else exact
    assert stats.binom.cdf(hits, splits, coverage) > FAILURE_RATE
    assert stats.binom.sf(hits - 1, splits, most) > FAILURE_RATE


@pytest.mark.parametrize(("make", "settings"), KINDS)
def test_equal_rows_whose_digits_differ_by_batch_are_equal(make: Any, settings: dict[str, Any]) -> None:
    # Of few inputs, as of short texts: a new one is the same as a held-out one but for rounding, upwards or downwards.
    prediction, labels = make(40, 0)
    held, _ = halves(prediction, labels, np.arange(40) < 30)
    repeated = dataclasses.replace(prediction, draws=prediction.draws[:, :30])
    before = repeated.decided_by(held.held_out, {})
    inside = covered(before, labels[:30], 0.8, **settings)
    for digits in (1 - 2e-7, 1 + 2e-7):
        changed = dataclasses.replace(repeated, draws=repeated.draws * digits).decided_by(held.held_out, {})
        np.testing.assert_array_equal(covered(changed, labels[:30], 0.8, **settings), inside)


@pytest.mark.parametrize("by", ["entropy", "epistemic", "maximum_probability"])
def test_no_row_is_answered_by_rounding(by: str) -> None:
    # One input is always right; the other, as often wrong, must not fall below its own uncertainty in another batch.
    kinds = np.array([[[0.95, 0.05], [0.55, 0.45]], [[0.97, 0.03], [0.85, 0.15]]])
    rng = np.random.default_rng(0)

    def rows(number: int, digits: float) -> tuple[Prediction, np.ndarray]:
        which = rng.integers(2, size=number)
        first = kinds[:, which, 0] * (1 + digits * rng.uniform(-1, 1, number))
        return Prediction(np.stack([first, 1 - first], -1)), which

    held, which = rows(200, 1e-7)
    held_out = held.as_held_out(which * rng.integers(2, size=200))
    new, which = rows(200, 2e-7)
    np.testing.assert_array_equal(new.decided_by(held_out, {}).abstain(0.1, by=by), which == 1)


@pytest.mark.parametrize(("make", "settings"), KINDS)
def test_coverage_of_one_split_is_that_of_the_beta_distribution(make: Any, settings: dict[str, Any]) -> None:
    prediction, labels = make(21_000, 0)
    new, label = halves(prediction, labels, np.arange(21_000) < 1000)
    share = covered(new, label, 0.9, **settings).mean()
    place = math.ceil(1001 * 0.9)
    low, high = stats.beta(place, 1001 - place).ppf([FAILURE_RATE, 1 - FAILURE_RATE])
    error = 5 * math.sqrt(0.1 * 0.9 / 20_000)
    assert low - error < share < high + error


@pytest.mark.filterwarnings("ignore:Nothing can be answered")
def test_abstaining_keeps_its_risk_on_new_rows() -> None:
    broken, answered = 0, []
    for seed in range(200):
        prediction, labels = classes(2300, seed)
        new, label = halves(prediction, labels, np.arange(2300) < 300)
        abstained = new.abstain(risk=0.2, confidence=0.8)
        answered.append(1 - abstained.mean())
        wrong = (new.predicted != label)[~abstained]
        # Broken only if new rows show it beyond their own chance.
        broken += len(wrong) > 0 and stats.binom.sf(wrong.sum() - 1, len(wrong), 0.2) < 0.01
    assert stats.binom.sf(broken - 1, 200, 0.2) > FAILURE_RATE
    assert np.mean(answered) > 0.3


@pytest.mark.parametrize("by", ["entropy", "epistemic", "maximum_probability"])
def test_abstention_is_a_threshold_on_what_orders_the_rows(by: str) -> None:
    prediction, labels = classes(1200, 0)
    new, _ = halves(prediction, labels, np.arange(1200) < 1000)
    abstained = new.abstain(risk=0.3, by=by)
    assert 0 < abstained.sum() < 200
    assert new.uncertainties[by][~abstained].max() < new.uncertainties[by][abstained].min()


def test_what_cannot_be_promised_is_said() -> None:
    prediction, labels = classes(30, 0)
    new, _ = halves(prediction, labels, np.arange(30) < 8)
    with pytest.warns(
        UserWarning, match=r"the 8 held-out rows do not show a risk of at most 0\.05 .* takes 45 of them"
    ):
        assert new.abstain().all()
    with pytest.warns(UserWarning, match=r"a coverage of 0\.9 it takes 9 held-out rows, and there are 8"):
        assert new.sets(0.9).all()
    with pytest.raises(ValueError, match=r"There are no held-out rows to decide by: call posterior\.decide"):
        prediction.abstain()
    with pytest.raises(ArgumentError, match="by='luck': give 'entropy' or 'epistemic' or 'maximum_probability'"):
        new.abstain(by="luck")
    with pytest.raises(ArgumentError, match="risk=0: give a probability between 0 and 1"):
        new.abstain(risk=0)
    with pytest.raises(ValueError, match="with num_draws=3, these rows with num_draws=4"):
        new.decided_by(dataclasses.replace(new.held_out, made={"num_draws": 3}), {"num_draws": 4}).sets()
    real, _ = halves(*numbers(30, 0), np.arange(30) < 8)
    with pytest.raises(ValueError, match="RegressionPrediction is not right or wrong"):
        real.abstain()
    with pytest.warns(UserWarning, match="All labels are in all sets"):
        assert np.isinf(real.sets(0.95)).all()
    rows = Rows(np.zeros(2, int), np.arange(2), 1)
    with pytest.raises(ValueError, match="TokenPrediction knows no decisions"):
        TokenPrediction(np.full((1, 2, 2), 0.5), rows).as_held_out(np.array([0, 1]))


def test_the_cheapest_action_has_the_least_expected_cost() -> None:
    prediction = Prediction(np.array([[[0.9, 0.1], [0.6, 0.4], [0.1, 0.9]]]))
    costs = [[0.0, 1.0], [5.0, 0.0]]  # missing class 1 costs five times as much as a false alarm
    np.testing.assert_array_equal(prediction.cheapest(costs), [0, 1, 1])
    np.testing.assert_array_equal(prediction.cheapest(costs, abstain=0.3), [-1, -1, 1])
    np.testing.assert_array_equal(prediction.cheapest(1 - np.eye(2)), prediction.predicted)
    with pytest.raises(ArgumentError, match="costs has shape"):
        prediction.cheapest([[0.0, 1.0]])


def test_costs_go_by_the_names_of_classes() -> None:
    import pandas as pd

    prediction = Prediction(np.array([[[0.9, 0.1], [0.6, 0.4], [0.1, 0.9]]]), ("ham", "spam"))
    costs = pd.DataFrame([[0.0, 5.0], [1.0, 0.0]], ["spam", "ham"], ["spam", "ham"])
    np.testing.assert_array_equal(prediction.cheapest(costs), [0, 1, 1])
    actions = costs.set_axis(["delete", "deliver"], axis=1)  # which are not classes, and keep their places
    np.testing.assert_array_equal(prediction.cheapest(actions), [1, 0, 0])
    np.testing.assert_array_equal(prediction.cheapest(actions.reset_index(drop=True)), [0, 0, 1])
    with pytest.raises(ArgumentError, match="costs has the rows 'spam', 'eggs', and the classes are ham, spam"):
        prediction.cheapest(costs.rename({"ham": "eggs"}))


@pytest.mark.parametrize("num_draws", [2, 4, 8])
def test_the_epistemic_part_is_corrected_for_the_number_of_draws(num_draws: int) -> None:
    # Of Dirichlet(a) probabilities, E H = ψ(Σ a + 1) − Σ aᵢ ψ(aᵢ + 1) / Σ a.
    a, rows = np.array([30.0, 15.0, 15.0]), 200_000 // num_draws
    mean = a / a.sum()
    exact = metrics.entropy(mean[None])[0] - (digamma(a.sum() + 1) - (mean * digamma(a + 1)).sum())
    prediction = Prediction(np.random.default_rng(0).dirichlet(a, (num_draws, rows)))
    plain, corrected = prediction.epistemic.mean(), prediction.epistemic_corrected
    assert plain / exact == pytest.approx(1 - 1 / num_draws, abs=0.02)
    error = corrected.std() / math.sqrt(rows)
    assert abs(corrected.mean() - exact) < 5 * error + 0.01 * exact


def test_a_correction_is_never_more_than_there_can_be() -> None:
    apart = Prediction(np.array([[[1.0, 0.0]], [[0.0, 1.0]]]))
    np.testing.assert_allclose(apart.epistemic_corrected, math.log(2))
    one = Prediction(np.array([[[0.3, 0.7]]]))
    assert one.epistemic_corrected == one.epistemic == 0
    real = RegressionPrediction(np.array([[0.0], [0.1]]), scale=1.0)
    np.testing.assert_allclose(real.epistemic_corrected, 2 * real.epistemic)


# In a posterior


@functools.cache
def untrained(method: str = "monteclora", labels: str = "classification") -> Posterior:
    """A posterior over a tiny BERT that no training has made; float64."""
    chosen = make_method(method)
    likelihood = Classification(3) if labels == "classification" else Regression(0.5)
    base = tiny_bert(3 if labels == "classification" else 1, **NO_DROPOUT).double()
    network = AdaptedNetwork(base, chosen.family, rank=4, alpha=8, num_examples=48)
    return Posterior(randomise(Program(network, chosen, likelihood)).eval(), class_names=None)


def test_decide_keeps_its_rows_in_the_posterior_and_on_disk(tmp_path: Path) -> None:
    posterior = copy.deepcopy(untrained())
    assert posterior.decide(tokens(60), num_draws=4) is posterior
    new = tokens(20, seed=1)[0]
    prediction = posterior.predict(new, num_draws=4)
    posterior.save(tmp_path)
    loaded = bayeslora.load(tmp_path, model=tiny_bert(**NO_DROPOUT).double())
    again = loaded.predict(new, num_draws=4)
    for settings in ({"method": "lac"}, {"method": "aps"}):
        np.testing.assert_array_equal(again.sets(0.8, **settings), prediction.sets(0.8, **settings))  # type: ignore[call-arg, arg-type]
    np.testing.assert_array_equal(again.abstain(risk=0.9), prediction.abstain(risk=0.9))
    assert loaded.record() == posterior.record()
    assert untrained().held_out is None


def test_decisions_are_those_of_the_rows_predicted() -> None:
    posterior = copy.deepcopy(untrained())
    held, new = tokens(60), tokens(20, seed=1)[0]
    posterior.decide(held, num_draws=4)
    expected = posterior.predict(held[0], num_draws=4).as_held_out(held[1].numpy())
    by_hand = posterior.predict(new, num_draws=4).decided_by(expected, expected.made)
    np.testing.assert_array_equal(posterior.predict(new, num_draws=4).sets(0.8), by_hand.sets(0.8))


@pytest.mark.parametrize(
    "other", [{"num_draws": 5}, {"seed": 1}, {"center": True}, {"approximation": "linear"}, {"seed": None}]
)
@pytest.mark.filterwarnings("ignore:Linearised predictions")
def test_rows_predicted_otherwise_are_refused(other: dict[str, Any]) -> None:
    posterior = copy.deepcopy(untrained()).decide(tokens(60), num_draws=4)
    prediction = posterior.predict(tokens(4, seed=1)[0], **{"num_draws": 4, **other})
    with pytest.raises(ValueError, match="give decide and predict the same arguments"):
        prediction.sets(0.5)  # type: ignore[attr-defined]
    calibrated = posterior.calibrate(tokens(60), num_draws=4)
    assert calibrated.held_out is None
    assert posterior.held_out is not None


def test_what_makes_no_difference_is_not_asked_to_agree() -> None:
    point, noisy = copy.deepcopy(untrained("lora")), copy.deepcopy(untrained())
    new = tokens(4, seed=1)[0]
    point.decide(tokens(60)).predict(new, num_draws=5, seed=None).sets(0.5)
    noisy.decide(tokens(60), center=True).predict(new, num_draws=7, center=True, seed=3).sets(0.5)


def test_intervals_of_numbers_come_from_a_posterior_too() -> None:
    posterior = copy.deepcopy(untrained(labels="regression"))
    inputs, labels = tokens(60)
    data = (inputs, labels.double())
    prediction = posterior.decide(data, num_draws=4).predict(inputs, num_draws=4)
    sets = prediction.sets(0.9)
    # On the held-out rows themselves, of which one is the bound, but for rounding.
    inside = (sets[:, 0] <= data[1].numpy() + 1e-6) & (data[1].numpy() <= sets[:, 1] + 1e-6)
    assert inside.sum() == math.ceil(61 * 0.9)


def test_answers_are_right_or_wrong() -> None:
    """Six questions, of which the network finds the answers to all but the last; the second has two windows."""
    contexts, question = ["a b"] * 6, np.array([0, 1, 1, 2, 3, 4, 5])
    offsets = [np.array([[-1, -1], [0, 1], [2, 3]])] * 7
    sure = np.array([0.9, 0.5, 0.8, 0.9, 0.9, 0.9, 0.6])
    draws = np.zeros((1, 7, 3, 2))
    draws[0, :, 1, :] = ((1 - sure) / 4)[:, None]
    draws[0, :, 2, :] = sure[:, None]
    draws[0, :, 0, :] = 1 - draws[0].sum(1)
    answers = [["b"]] * 5 + [["a"]]
    prediction = AnswerPrediction(draws, questions=Questions(contexts, answers, question, offsets))
    assert prediction.wrong(np.zeros((7, 2), int)).tolist() == [False] * 5 + [True]
    held_out = prediction.as_held_out(np.zeros((7, 2), int))
    assert len(held_out) == 6
    unsure = prediction.uncertainties["maximum_probability"]
    np.testing.assert_allclose(unsure, 1 - np.array([0.9, 0.8, 0.9, 0.9, 0.9, 0.6]) ** 2)
    new = prediction.decided_by(held_out, {})
    assert new.abstain(0.5, confidence=0.5, by="maximum_probability").shape == (6,)
    assert new.abstain(0.999, confidence=0.5, by="maximum_probability").tolist() == [False] * 6
    with pytest.raises(ValueError, match="AnswerPrediction has no sets"):
        new.sets()
    unlabelled = dataclasses.replace(prediction, questions=Questions(contexts, None, question, offsets))
    assert unlabelled.wrong(np.zeros((7, 2), int)) is None
    spans = SpanPrediction(draws)
    assert spans.wrong(np.array([[2, 2]] * 6 + [[1, 2]])).tolist() == [False] * 6 + [True]


def test_as_many_draws_as_needed_decide_too(tmp_path: Path) -> None:
    posterior = copy.deepcopy(untrained()).decide(tokens(60), "auto")
    posterior.save(tmp_path)
    again = bayeslora.load(tmp_path, model=tiny_bert(**NO_DROPOUT).double())
    assert again.held_out is not None
    assert again.held_out.made["num_draws"] == "auto"
    new = tokens(20, seed=1)[0]
    np.testing.assert_array_equal(again.predict(new, "auto").sets(0.5), posterior.predict(new, "auto").sets(0.5))
    with pytest.raises(ValueError, match=r"with num_draws='auto', .*, these rows with num_draws=32"):
        posterior.predict(new).sets()


def test_antithetic_draws_decide_about_antithetic_draws(tmp_path: Path) -> None:
    posterior = copy.deepcopy(untrained()).decide(tokens(60), 4, antithetic=True)
    posterior.save(tmp_path)
    again = bayeslora.load(tmp_path, model=tiny_bert(**NO_DROPOUT).double())
    new = tokens(20, seed=1)[0]
    sets = [each.predict(new, 4, antithetic=True).sets(0.5) for each in (posterior, again)]
    np.testing.assert_array_equal(*sets)
    with pytest.raises(ValueError, match="antithetic=True, these rows with"):
        posterior.predict(new, 4).sets()


def test_a_temperature_at_its_bound_is_said(caplog: pytest.LogCaptureFixture) -> None:
    posterior = untrained()
    inputs, _ = tokens(1)
    right = posterior.predict(inputs, num_draws=2).predicted
    assert posterior.calibrate((inputs, right), num_draws=2).temperature == pytest.approx(0.05, rel=1e-2)
    assert "The temperature is 0.05, as far as it may go: the 1 held-out label(s) do not bound it" in caplog.text


def test_labels_that_know_no_decisions_say_so() -> None:
    llama, chosen = model("Llama", "ForCausalLM")().double(), make_method("lora")
    network = AdaptedNetwork(llama, chosen.family, rank=4, alpha=8, num_examples=10)
    posterior = Posterior(randomise(Program(network, chosen, CausalLM(60))).eval())
    with pytest.raises(ValueError, match="LanguagePrediction knows no decisions"):
        posterior.decide({"input_ids": tokens(4)[0]["input_ids"]})


DAMAGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "num_draws": lambda held: held.update(num_draws=0),
    "seed": lambda held: held.update(seed=-1),
    "columns": lambda held: held.update(columns=[*held["columns"][:-1], "../x"]),
    "a column stands twice": lambda held: held["columns"].append(held["columns"][0]),
    "is not in the record": lambda held: held["columns"].pop(),
    "there is no tensor": lambda held: held["columns"].append("uncertainty/luck"),
    "is missing": lambda held: held.pop("center"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_rows_are_refused(damage: str, tmp_path: Path) -> None:
    copy.deepcopy(untrained()).decide(tokens(20), num_draws=2).save(tmp_path)
    record = json.loads((tmp_path / "bayeslora.json").read_text())
    DAMAGES[damage](record["held_out"])
    (tmp_path / "bayeslora.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"damaged posterior: .*(held_out|no tensor)"):
        bayeslora.load(tmp_path, model=tiny_bert(**NO_DROPOUT).double())


def test_columns_that_no_prediction_writes_are_refused() -> None:
    record: Any = {"held_out": {"columns": ["wrong"], "num_draws": 1}}
    for values in ([0.0, 0.5], []):
        with pytest.raises(ValueError, match="held_out/wrong"):
            tables.held_out({"held_out/wrong": torch.tensor(values, dtype=torch.float64)}, record)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("conformity/lac", "conformity/aps", "conformity/least") for value in (-0.1, 1.1)),
        ("uncertainty/maximum_probability", 2.0),
        ("conformity/scaled", -1.0),
        ("conformity/lac", np.nan),
    ],
)
def test_held_out_probabilities_are_probabilities(name: str, value: float) -> None:
    record: Any = {"held_out": {"columns": [name], "num_draws": 1}}
    values = torch.tensor([0.25, value, 1 + 1e-9], dtype=torch.float64)
    with pytest.raises(ValueError, match=rf"'held_out/{name}' holds {value:g}: give 0 to (1|inf)$"):
        tables.held_out({f"held_out/{name}": values}, record)
    values[1] = -1e-9
    found = tables.held_out({f"held_out/{name}": values}, record)
    assert found is not None
    assert len(found) == 3


# Features


NETWORKS: dict[str, Callable[[], nn.Module]] = {"bert": tiny_bert, "llama": tiny_llama, "gpt2": tiny_gpt2}


@pytest.mark.parametrize("name", NETWORKS)
def test_distances_are_of_the_inputs_of_the_output_layer(name: str) -> None:
    chosen = make_method("monteclora")
    network = AdaptedNetwork(NETWORKS[name]().double(), chosen.family, rank=4, alpha=8, num_examples=48)
    posterior = Posterior(randomise(Program(network, chosen, Classification(3))).eval())
    familiar, (new, _) = tokens(60), tokens(7, seed=1)
    found = posterior.distance(new, familiar, batch_size=4)
    plain = posterior.merge()
    seen: list[torch.Tensor] = []
    output = plain.classifier if name == "bert" else plain.score
    output.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))  # type: ignore[operator]
    with torch.no_grad():
        for inputs in (familiar[0], new):
            plain(**inputs)
    known, asked = (each if each.dim() == 2 else each.mean(1) for each in seen)
    expected = decisions.Familiar.of(known.numpy(), familiar[1].numpy()).distance(asked.numpy())
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert not any(module._forward_pre_hooks for module in posterior.network.model.modules())


@pytest.mark.parametrize(
    ("labels", "message"), [([0, 1, 3], "row 2 of familiar"), ([0.5, 1, 0], "needs whole numbers")]
)
def test_familiar_labels_are_the_likelihoods(labels: list[float], message: str) -> None:
    chosen = make_method("lora")
    posterior = Posterior(Program(AdaptedNetwork(tiny_bert(), chosen.family), chosen, Classification(3)))
    inputs, _ = tokens(3)
    with pytest.raises(ValueError, match=message):
        posterior.distance(inputs, (inputs, np.array(labels)))


def test_padding_does_not_count_in_features() -> None:
    chosen = make_method("lora")
    network = AdaptedNetwork(tiny_llama().double(), chosen.family, rank=4, alpha=8, num_examples=48)
    posterior = Posterior(randomise(Program(network, chosen, Classification(3))).eval())
    familiar, (new, _) = tokens(60), tokens(5, seed=1)
    padded = {key: torch.nn.functional.pad(value, (0, 3)) for key, value in new.items()}
    np.testing.assert_allclose(posterior.distance(padded, familiar), posterior.distance(new, familiar), rtol=1e-9)


def test_ids_of_arrays_are_refused_and_not_left_out() -> None:
    posterior = copy.deepcopy(untrained())
    inputs, labels = tokens(4)
    for data in ((inputs, labels), {**inputs, "labels": labels}, torch.utils.data.TensorDataset(inputs["input_ids"])):
        with pytest.raises(ValueError, match="id='name': validation has no columns to name, only arrays"):
            posterior.decide(data, 2, id="name")
