"""Metrics against numbers worked out by hand."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss

from bayeslora import metrics
from bayeslora.tasks.matching import span_scores
from bayeslora.tasks.multilabel import multilabel_scores
from tests.door.calls import arrays
from tests.door.signatures import public

PROBS = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.45, 0.55]])
LABELS = np.array([0, 1, 1, 1])


def test_accuracy_nll_and_majority() -> None:
    assert metrics.accuracy(PROBS, LABELS) == 0.75
    assert metrics.nll(PROBS, LABELS) == pytest.approx(-np.log([0.9, 0.4, 0.8, 0.55]).mean())
    assert metrics.majority_rate(LABELS) == 0.75


def test_nll_of_an_impossible_label_is_large_and_finite() -> None:
    assert np.isfinite(metrics.nll([[1.0, 0.0]], [1]))
    assert metrics.nll([[1.0, 0.0]], [1]) > 700


def test_brier_sums_over_all_classes() -> None:
    expected = np.mean([2 * 0.1**2, 2 * 0.6**2, 2 * 0.2**2, 2 * 0.45**2])
    assert metrics.brier(PROBS, LABELS) == pytest.approx(expected)
    three = np.array([[0.5, 0.3, 0.2]])
    assert metrics.brier(three, [0]) == pytest.approx(0.25 + 0.09 + 0.04)


@pytest.mark.parametrize("num_classes", [2, 3, 129])
def test_brier_is_scikit_learns_to_the_bit(num_classes: int) -> None:
    rng = np.random.default_rng(0)
    probs, labels = rng.dirichlet(np.ones(num_classes), 33), rng.integers(0, num_classes, 33)
    theirs = brier_score_loss(labels, probs, labels=np.arange(num_classes), scale_by_half=False)
    assert metrics.brier(probs, labels) == theirs


def test_calibration_error_weighs_the_gap_of_each_bin() -> None:
    # Of 15 bins, .9 and .8 have one each; .55 and .6 share (8/15, 9/15].
    bins = metrics.reliability(PROBS, LABELS)
    assert bins["count"].sum() == 4
    gaps = [abs(1 - 0.9), abs(1 - 0.8), abs(np.mean([0, 1]) - np.mean([0.6, 0.55]))]
    assert metrics.ece(PROBS, LABELS) == pytest.approx((gaps[0] + gaps[1] + 2 * gaps[2]) / 4)


def test_a_confidence_of_one_is_in_the_last_bin_and_edges_in_the_lower_one() -> None:
    bins = metrics.reliability([[1.0, 0.0], [0.5, 0.5]], [0, 0], num_bins=2)
    assert bins["count"].tolist() == [1, 1]
    assert metrics.ece([[1.0, 0.0]], [0]) == 0


def test_entropies() -> None:
    assert metrics.entropy([[0.5, 0.5], [1.0, 0.0]]) == pytest.approx([np.log(2), 0])
    divergences = metrics.relative_entropy([[0.5, 0.5], [0.9, 0.1]], [[0.9, 0.1]])
    assert divergences == pytest.approx([0.5 * np.log(0.25 / 0.09), 0])


def test_no_divergence_is_negative() -> None:
    probs = np.random.default_rng(0).dirichlet(np.ones(3), 1000)
    average = np.stack([probs] * 3).mean(0)  # of equal draws, up to rounding
    assert (average != probs).any()
    assert (metrics.relative_entropy(probs, average) >= 0).all()


def test_auroc_counts_ordered_pairs() -> None:
    assert metrics.auroc([1, 2, 3], [2.5, 4]) == pytest.approx(5 / 6)
    assert metrics.auroc([[1], [2], [3]], [2.5, 4]) == pytest.approx(5 / 6)


def test_temperature_undoes_a_scale() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(4_000, 3)) * 2
    labels = np.array([generator.choice(3, p=p) for p in metrics.softmax(logits)])
    scaled = 5 * logits
    assert metrics.fit_temperature(scaled[None], labels) == pytest.approx(5, rel=0.1)
    assert metrics.nll(metrics.softmax(scaled, 5), labels) < metrics.nll(metrics.softmax(scaled), labels)


def test_temperature_of_draws_minimises_the_nll_of_their_average() -> None:
    generator = np.random.default_rng(1)
    logits = generator.normal(size=(6, 500, 3)) * 3 + generator.normal(size=(500, 3)) * 4
    labels = logits.mean(0).argmax(-1)
    labels[::4] = generator.integers(3, size=125)
    best = metrics.fit_temperature(logits, labels)

    def loss(temperature: float) -> float:
        return metrics.nll(metrics.softmax(logits, temperature).mean(0), labels)

    assert loss(best) <= min(loss(best * 1.02), loss(best / 1.02))


def test_macro_f1_and_matthews_by_hand() -> None:
    scores = metrics.class_scores(PROBS, LABELS)  # predicted 0, 0, 1, 1; true 0, 1, 1, 1
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert scores["matthews"] == pytest.approx((1 * 2 - 1 * 0) / np.sqrt(2 * 3 * 1 * 2))
    assert metrics.class_scores([[0.9, 0.1]], [0])["matthews"] == 0


def test_adaptive_and_classwise_calibration_errors_by_hand() -> None:
    # Two bins of two, by confidence: .55 (right), .6 (wrong); .8, .9 (right).
    assert metrics.adaptive_ece(PROBS, LABELS, 2) == pytest.approx((abs(1 - 1.15) + abs(2 - 1.7)) / 4)
    # Both classes, two bins: class 0 has .2, .45 (never) and .6, .9 (once).
    one_class = (abs(0 - 0.65) + abs(1 - 1.5)) / 4
    assert metrics.classwise_ece(PROBS, LABELS, 2) == pytest.approx(one_class)


@pytest.mark.parametrize("labels", [[0, 1] * 15, [0] * 15 + [1] * 15])
def test_the_adaptive_error_of_equal_confidences_has_no_order(labels: list[int]) -> None:
    assert metrics.adaptive_ece([[0.5, 0.5]] * 30, labels) == pytest.approx(0)
    assert metrics.adaptive_ece([[0.75, 0.25]] * 30, labels) == pytest.approx(0.25)


def test_errors_are_told_by_ordered_pairs() -> None:
    wrong = np.array([False, True, True, False])
    assert metrics.auroc_errors([0.1, 0.2, 0.4, 0.3], wrong) == pytest.approx(3 / 4)
    assert metrics.auroc_errors([1, 1, 1, 1], wrong) == 0.5
    for same in (True, False):
        assert np.isnan(metrics.auroc_errors([0.1, 0.2], [same, same]))


def test_risk_of_the_least_uncertain_by_hand() -> None:
    uncertainty, wrong = [0.4, 0.1, 0.3, 0.2], [True, False, False, True]  # in order: right, wrong, right, wrong
    curve = metrics.risk_coverage(uncertainty, wrong)
    np.testing.assert_allclose(curve["coverage"], [1 / 4, 2 / 4, 3 / 4, 1])
    np.testing.assert_allclose(curve["risk"], [0, 1 / 2, 1 / 3, 2 / 4])
    assert metrics.aurc(uncertainty, wrong) == pytest.approx((1 / 2 + 1 / 3 + 1 / 2) / 4)


def test_equally_uncertain_examples_have_no_order() -> None:
    uncertainty, wrong = np.array([0.1, 0.2, 0.2, 0.2]), np.array([False, True, False, False])
    orders = [metrics.risk_coverage([0.1, *order], wrong)["risk"] for order in itertools.permutations([0.2, 0.3, 0.4])]
    np.testing.assert_allclose(metrics.risk_coverage(uncertainty, wrong)["risk"], np.mean(orders, axis=0))
    assert metrics.aurc(np.zeros(4), wrong) == pytest.approx(1 / 4)


def test_entropy_is_what_tells_errors_of_classes() -> None:
    scores = metrics.class_scores(PROBS, LABELS)  # by entropy: .9, .8 (right), .6 (wrong), .55 (right)
    assert scores["auroc_errors"] == pytest.approx(2 / 3)
    assert scores["aurc"] == pytest.approx((1 / 3 + 1 / 4) / 4)
    assert np.isnan(metrics.class_scores([[0.9, 0.1]], [0])["auroc_errors"])


def test_span_scores_count_shared_positions() -> None:
    scores = span_scores(np.array([[2, 4], [5, 5], [0, 0]]), [[3, 6], [5, 5], [2, 3]])
    assert scores["exact_match"] == pytest.approx(1 / 3)
    assert scores["f1"] == pytest.approx((2 * 2 / 7 + 1 + 0) / 3)


def test_multilabel_scores_by_hand() -> None:
    scores = multilabel_scores([[0.9, 0.2], [0.6, 0.6]], [[1, 0], [0, 1]])
    assert scores["accuracy"] == 0.75
    assert scores["exact_match"] == 0.5
    assert scores["brier"] == pytest.approx((0.01 + 0.04 + 0.36 + 0.16) / 4)
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 1) / 2)


def test_nll_of_a_mixture_averages_probabilities_not_their_logarithms() -> None:
    assert metrics.mixture_nll(np.log([[0.2, 0.5], [0.4, 0.1]])) == pytest.approx(-np.log(0.3))


def test_fpr95_is_the_share_of_outside_scores_below_the_inside_ones() -> None:
    inside = np.arange(100.0)
    assert metrics.fpr95(inside, inside + 1000) == 0
    assert metrics.fpr95(inside, inside - 1000) == 1
    assert metrics.fpr95(inside, inside) == 0.95  # uninformative
    assert metrics.fpr95(inside, [94.0, 94.5]) == 0.5  # 94 is the 95th of a hundred, and passes
    assert metrics.fpr95([1.0], [1.0, 2.0]) == 0.5


def test_fpr95_is_one_minus_the_true_positive_rate_of_sklearns_curve() -> None:
    from sklearn.metrics import roc_curve

    rng = np.random.default_rng(0)
    inside, outside = rng.normal(size=137), rng.normal(1.0, size=91)
    truth = np.concatenate([np.ones(137), np.zeros(91)])  # "positive" is inside
    fpr, tpr, _ = roc_curve(truth, -np.concatenate([inside, outside]), drop_intermediate=False)
    assert metrics.fpr95(inside, outside) == pytest.approx(fpr[tpr >= 0.95][0])


def test_unfamiliarity_judges_every_score_by_its_name() -> None:
    inside, outside = {"a": [0.0, 1.0], "b": [1.0, 1.0]}, {"b": [1.0, 1.0], "a": [2.0, 3.0]}
    found = metrics.unfamiliarity(inside, outside)
    assert found == {"a": {"auroc": 1.0, "fpr95": 0.0}, "b": {"auroc": 0.5, "fpr95": 1.0}}
    with pytest.raises(ValueError, match="inside has the scores a, b, outside a"):
        metrics.unfamiliarity(inside, {"a": [2.0]})


def test_the_floor_of_the_ece_is_that_of_calibrated_labels() -> None:
    rng = np.random.default_rng(0)
    p = rng.beta(2, 2, 200)
    probs = np.stack([1 - p, p], axis=-1)
    eces = [metrics.ece(probs, (rng.random(200) < p).astype(int)) for _ in range(200)]
    floor = metrics.ece_floor(probs)
    width = 5 * (np.std(eces) / 200**0.5) * 2**0.5  # both are means of 200 draws
    assert abs(np.mean(eces) - floor) < width
    assert metrics.ece_floor(np.array([[1.0, 0.0]])) == 0


def test_arrays_may_be_tensors() -> None:
    calls = {name: function for name, function in public().items() if name.startswith("metrics.")}
    for name, function in calls.items():
        plain = arrays(name)
        tensors = {k: torch.as_tensor(v) if isinstance(v, np.ndarray) else v for k, v in plain.items()}
        np.testing.assert_equal(function(**tensors), function(**plain))
