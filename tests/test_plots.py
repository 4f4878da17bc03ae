"""Figures show what they are given."""

import math
from collections import OrderedDict

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from scipy.stats import binomtest
from torch import nn

import bayeslora
from bayeslora import ArgumentError, metrics, plots
from bayeslora.plots.base import NARROWEST
from bayeslora.plots.scores import _merged
from tests.study.networks import DATA, FEW, network

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
    merged = _merged(bins, least)
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
    merged = _merged(bins, 30)
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
    merged = _merged(bins, 30)
    assert (np.diff(merged["edges"]) >= NARROWEST).all()
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


def test_losses_are_smoothed_and_held_out_ones_are_not() -> None:
    history = pd.DataFrame({"step": range(1, 101), "epoch": 1.0, "loss": 2.0, "nll": np.arange(100.0), "s.A": 0.5})
    history["validation_nll"] = [math.nan] * 99 + [7.0]
    (axes,) = plots.losses(history).axes
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    assert list(lines) == ["loss", "nll", "s.A", "NLL of held-out data, centre"]
    assert lines["nll"].get_ydata()[50] == pytest.approx(49.5)
    assert lines["NLL of held-out data, centre"].get_ydata().tolist() == [7.0]


def test_uncertainties_are_shares_on_common_bins() -> None:
    figure = plots.uncertainties({"familiar": np.zeros(10), "$unfamiliar$": np.ones(30)})
    first, second = (patch.get_data() for patch in figure.axes[0].patches)
    np.testing.assert_array_equal(first.edges, second.edges)
    assert first.values.sum() == second.values.sum() == pytest.approx(1)
    assert names(figure) == ["familiar (10)", r"\$unfamiliar\$ (30)"]


@pytest.mark.parametrize(
    "each", [[0.0], [math.log(2) - 1e-16 * k for k in range(30)], [1e-20, 2e-20], [0.0, math.nan, 1.0], [math.inf, 3.0]]
)
def test_constant_values_and_those_that_are_not_finite_are_drawn(each: list[float]) -> None:
    values, kept = np.array(each), np.isfinite(each).sum()
    lacking = f", {len(each) - kept} not finite" if kept < len(each) else ""
    figure = plots.uncertainties({"a": values, "none": np.array([math.nan])})
    (shares,) = (patch.get_data() for patch in figure.axes[0].patches)
    assert shares.values.sum() == pytest.approx(1)
    assert names(figure) == [f"a{lacking} ({kept})"]
    (axes,) = plots.boxes({"a": values}).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"a{lacking}"]
    with pytest.raises(ArgumentError, match="no number is finite"):
        plots.uncertainties({"none": np.array([math.nan])})


def test_a_triangle_needs_classes_and_their_names() -> None:
    for shape in ((4, 2, 1), (4, 0, 3)):
        with pytest.raises(ArgumentError, match="give \\[draw, example, class\\], with two classes or more"):
            plots.simplex(np.ones(shape))
    with pytest.raises(ArgumentError, match="class_names has 2, and draws are of 3 classes"):
        plots.simplex(np.full((4, 2, 3), 1 / 3), ["a", "b"])
    draws = np.full((4, 2, 3), 1 / 3)
    draws[2, 1, 0] = math.nan
    with pytest.raises(ArgumentError, match="example 1 has probabilities that are not finite"):
        plots.simplex(draws)


def test_layers_leave_out_draws_that_are_not_finite() -> None:
    posterior = bayeslora.fit(network(), DATA, "blob", progress=False, **FEW | {"epochs": 0})
    groups = posterior.to_arviz(num_draws=20, prior=False)
    noise = groups.posterior["noise_to_signal_4x6"]
    noise[:] = np.arange(20.0)[None, :, None]
    noise[0, 3], noise[0, 4] = math.inf, math.nan
    points = plots.layers(groups).axes[1].containers[0][0]
    assert points.get_xdata()[0] == np.median([*range(3), *range(5, 20)])
    with pytest.raises(ArgumentError, match="groups has no layers"):
        plots.layers(bayeslora.mixture([posterior]).to_arviz())


def test_layers_show_medians_and_intervals_over_draws() -> None:
    posterior = bayeslora.fit(network(), DATA, "monteclora", progress=False, **FEW)
    groups = posterior.to_arviz(num_draws=50, prior=False)
    norm, noise = plots.layers(groups).axes[0], groups.posterior["delta_norm_4x6"].to_numpy().ravel()
    (points, _, (bars,)) = norm.containers[0]
    assert points.get_xdata() == pytest.approx(np.median(noise))
    np.testing.assert_allclose(bars.get_segments()[0][:, 0], np.quantile(noise, (0.05, 0.95)), atol=1e-12)


def test_what_names_of_layers_have_in_common_is_said_once() -> None:
    block = nn.Sequential(OrderedDict(up=nn.Linear(4, 5), act=nn.Tanh(), down=nn.Linear(5, 6)))
    body = nn.Sequential(OrderedDict(block=block))
    model = nn.Sequential(OrderedDict(body=body, head=nn.Linear(6, 3)))
    posterior = bayeslora.fit(model, DATA, "blob", progress=False, **FEW | {"epochs": 0})
    axes = plots.layers(posterior.to_arviz(num_draws=3, prior=False)).axes[0]
    assert axes.get_ylabel() == "body.block"
    assert sorted(label.get_text() for label in axes.get_yticklabels()) == ["down", "up"]


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_draws_on_the_simplex_are_where_their_probabilities_are(classes: int) -> None:
    draws = np.eye(classes)[[0, 1]][:, None]  # one example, of which two draws are sure of different classes
    (axes,) = plots.simplex(draws, [f"${c}" for c in range(classes)]).axes
    cloud, mean = axes.get_lines()[1:]
    np.testing.assert_allclose(cloud.get_xydata(), [[0, 0], [1, 0]], atol=1e-12)
    np.testing.assert_allclose(mean.get_xydata(), [[0.5, 0]], atol=1e-12)


def test_differences_have_the_intervals_of_the_comparison() -> None:
    result = {"scores": {"nll": 1.0}, "left_out": {"nll": [1.0, 1.1, 0.9]}, "temperature": 1.0}
    other = {"scores": {"nll": 0.5}, "left_out": {"nll": [0.5, 0.61, 0.4]}, "temperature": 1.0}
    run = {"seed": 0, "results": {"lora + temperature": result, "mine": other}, "failed": None, "names": []}
    found = bayeslora.Comparison([run], ["lora + temperature", "mine"], {})
    (axes,) = plots.differences(found).axes
    (points, _, (bars,)) = axes.containers[0]
    expected = found.difference("mine")
    assert points.get_xdata() == [-0.5]
    assert np.ptp(bars.get_segments()[0][:, 0]) == pytest.approx(2 * expected.half)
    assert [text.get_text() for text in axes.get_yticklabels()] == ["mine"]


def test_boxes_have_a_point_for_each_cell() -> None:
    (axes,) = plots.boxes({"a": np.array([1.0, 2, 9]), "b": np.array([3.0, 4])}).axes
    points = [line.get_xdata().tolist() for line in axes.get_lines() if line.get_marker() == "o"]
    assert points == [[1, 2, 9], [3, 4]]


def test_regression_shows_intervals_of_few_examples() -> None:
    prediction = bayeslora.RegressionPrediction(np.array([[0.0, 1.0], [2.0, 1.0]]), 0.5)
    with pytest.raises(ValueError, match=r"labels: there are 3, and predictions of 2: give the label of each example"):
        plots.regression(prediction, np.array([1.0, 3.0, 2.0]))
    (axes,) = plots.regression(prediction, np.array([1.0, 3.0])).axes
    (points, _, (bars,)) = axes.containers[0]
    assert points.get_xydata().tolist() == [[1, 1], [3, 1]]
    np.testing.assert_allclose([s[:, 1] for s in bars.get_segments()], prediction.interval(0.9))
