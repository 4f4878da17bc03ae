"""Figures show what they are given."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy.stats import binomtest

from bayeslora import metrics, plots

PROBS = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.45, 0.55]])
LABELS = np.array([0, 1, 1, 1])


def names(figure: Figure) -> list[str]:
    """What the legend says, wherever it stands."""
    legend = figure.axes[0].get_legend() or figure.legends[0]
    return [text.get_text() for text in legend.get_texts()]


def predictions(num_examples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated probabilities of two classes, and labels."""
    rng = np.random.default_rng(seed)
    p = rng.beta(0.6, 0.6, num_examples)
    return np.stack([1 - p, p], axis=-1), (rng.random(num_examples) < p).astype(int)


def test_reliability_has_a_line_for_each_name() -> None:
    bins = metrics.reliability(PROBS, LABELS)
    figure = plots.reliability({"one": bins, "two": bins})
    assert names(figure) == ["calibrated", "one", "two"]
    assert figure.axes[1].get_xlabel() == "confidence"


@pytest.mark.parametrize("number", [1, 6, 7, 24, 30])
def test_no_curve_is_dropped_and_no_two_look_alike(number: int) -> None:
    bins, curve = metrics.reliability(PROBS, LABELS), metrics.risk_coverage([0.1, 0.2], [False, True])
    curves = [str(index) for index in range(number)]
    reliability = plots.reliability(dict.fromkeys(curves, bins))
    assert names(reliability) == ["calibrated", *curves]
    assert len(reliability.axes[1].patches) == number  # the histogram's
    figure = plots.risk_coverage(dict.fromkeys(curves, curve))
    assert [name.partition(" ")[0] for name in names(figure)] == curves
    looks = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].get_lines()}
    assert len(looks) == min(number, 24)


@pytest.mark.parametrize("least", [1, 30, 100, 10_000])
def test_merged_bins_hold_enough_and_keep_the_means(least: int) -> None:
    probs, labels = predictions(500)
    bins = metrics.reliability(probs, labels)
    merged = plots._merged(bins, least)
    assert (merged["count"] >= min(least, 500)).all()
    assert merged["edges"][0] == 0
    assert merged["edges"][-1] == 1
    assert {*merged["edges"]} <= {*bins["edges"]}
    for index, (low, high) in enumerate(zip(merged["edges"][:-1], merged["edges"][1:], strict=True)):
        inside = (probs.max(-1) > low) & (probs.max(-1) <= high)
        assert merged["count"][index] == inside.sum()
        assert merged["confidence"][index] == pytest.approx(probs.max(-1)[inside].mean())
        assert merged["accuracy"][index] == pytest.approx((probs.argmax(-1) == labels)[inside].mean())


def test_reliability_shows_wilsons_intervals_of_merged_bins() -> None:
    probs, labels = predictions(200)
    bins = metrics.reliability(probs, labels)
    merged = plots._merged(bins, 30)
    figure = plots.reliability({"draws": bins})
    (points, _, (bars,)) = figure.axes[0].containers[0]
    np.testing.assert_allclose(points.get_ydata(), merged["accuracy"])
    for segment, accuracy, count in zip(bars.get_segments(), merged["accuracy"], merged["count"], strict=True):
        interval = binomtest(round(accuracy * count), int(count)).proportion_ci(method="wilson")
        np.testing.assert_allclose(segment[:, 1], [interval.low, interval.high], atol=1e-12)
    shares = figure.axes[1].patches[0].get_data().values
    np.testing.assert_allclose(shares, bins["count"] / 200)  # the histogram is not merged


def test_points_of_crowded_bins_do_not_hide_each_other() -> None:
    confidence = np.linspace(0.9, 0.99, 1000)
    bins = metrics.reliability(np.stack([confidence, 1 - confidence], -1), np.zeros(1000, int), adaptive=True)
    merged = plots._merged(bins, 30)
    assert (np.diff(merged["edges"]) >= plots.NARROWEST).all()
    assert len(merged["count"]) > 3


def test_a_perfect_accuracy_has_an_interval_too() -> None:
    probs = np.tile([0.9, 0.1], (40, 1))
    (_, _, (bars,)) = plots.reliability({"right": metrics.reliability(probs, np.zeros(40, int))}).axes[0].containers[0]
    low, high = bars.get_segments()[0][:, 1]
    assert low < 0.95 < high <= 1


def test_risk_coverage_draws_the_curve_and_names_its_area() -> None:
    curve = metrics.risk_coverage(metrics.entropy(PROBS), PROBS.argmax(-1) != LABELS)
    (axes,) = plots.risk_coverage({"draws": curve}).axes
    (line,) = axes.get_lines()
    np.testing.assert_array_equal(line.get_xdata(), curve["coverage"])
    np.testing.assert_array_equal(line.get_ydata(), curve["risk"])
    assert line.get_label() == f"draws (area {curve['risk'].mean():.3f})"


def test_a_crowded_bin_of_the_reliability_diagram_is_split() -> None:
    # Nearly all examples are in the top bin: its confidences differ, and their accuracies.
    rng = np.random.default_rng(0)
    confidence = 1 - rng.uniform(0, 0.06, 600)
    probs = np.stack([confidence, 1 - confidence], axis=-1)
    labels = (rng.random(600) > np.where(confidence > 0.97, 0.99, 0.8)).astype(int)
    plain, adaptive = (metrics.reliability(probs, labels, adaptive=adaptive) for adaptive in (False, True))
    assert (plain["count"] > 0).sum() == 1
    assert adaptive["count"].sum() == 600
    assert adaptive["count"].max() <= 600 / 15 + 1
    assert {*np.round(plain["edges"], 12)} <= {*np.round(adaptive["edges"], 12)}
    total = (np.nan_to_num(adaptive["accuracy"]) * adaptive["count"]).sum()
    assert np.isclose(total, (labels == 0).sum())
    assert len(plots.reliability({"draws": adaptive}).axes[0].containers[0][0].get_xdata()) >= 3
