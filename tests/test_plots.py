"""Figures show what they are given."""

import numpy as np

from bayeslora import metrics, plots

PROBS = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.45, 0.55]])
LABELS = np.array([0, 1, 1, 1])


def test_reliability_has_a_line_for_each_name() -> None:
    bins = metrics.reliability(PROBS, LABELS)
    diagram, histogram = plots.reliability({"one": bins, "two": bins}).axes
    assert [text.get_text() for text in diagram.get_legend().get_texts()] == ["calibrated", "one", "two"]
    assert histogram.get_xlabel() == "confidence"


def test_risk_coverage_draws_the_curve_and_names_its_area() -> None:
    curve = metrics.risk_coverage(metrics.entropy(PROBS), PROBS.argmax(-1) != LABELS)
    (axes,) = plots.risk_coverage({"draws": curve}).axes
    (line,) = axes.get_lines()
    np.testing.assert_array_equal(line.get_xdata(), curve["coverage"])
    np.testing.assert_array_equal(line.get_ydata(), curve["risk"])
    assert line.get_label() == f"draws (area {curve['risk'].mean():.3f})"
