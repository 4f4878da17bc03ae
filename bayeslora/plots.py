"""Figures, in matplotlib."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colours that remain distinct in print and to colour-blind readers (Okabe and Ito).
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def reliability(curves: Mapping[str, Mapping[str, np.ndarray]]) -> "Figure":
    """Plot accuracy against confidence, and how often each confidence occurs.

    Args:
        curves: Name to the bins of `metrics.reliability`: `edges`, `count`, `confidence` and `accuracy`.
    """
    from matplotlib.figure import Figure

    # Made without pyplot, which would keep the figure and choose a display.
    figure = Figure(figsize=(5.2, 5.6), layout="constrained")
    diagram, histogram = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
    diagram.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--", label="calibrated")
    low = 1.0
    for colour, (name, bins) in zip(COLOURS, curves.items(), strict=False):
        filled = bins["count"] > 0
        error = np.sqrt(bins["accuracy"] * (1 - bins["accuracy"]) / np.maximum(bins["count"], 1))[filled]
        diagram.errorbar(
            bins["confidence"][filled], bins["accuracy"][filled], error, color=colour, marker="o", ms=4, label=name
        )
        share = bins["count"] / bins["count"].sum()
        histogram.stairs(share, bins["edges"], color=colour, linewidth=1.5)
        low = min(low, bins["edges"][:-1][filled].min())
    diagram.set(ylabel="accuracy", ylim=(0, 1.02), xlim=(low, 1))
    diagram.legend(frameon=False, loc="lower right")
    histogram.set(xlabel="confidence", ylabel="share")
    for axes in (diagram, histogram):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def risk_coverage(curves: Mapping[str, Mapping[str, np.ndarray]]) -> "Figure":
    """Plot the error rate of the answered examples against their share, the least uncertain first.

    Args:
        curves: Name to the curve of `metrics.risk_coverage`: `coverage` and `risk`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 4.2), layout="constrained")
    axes = figure.subplots()
    for colour, (name, curve) in zip(COLOURS, curves.items(), strict=False):
        label = f"{name} (area {np.mean(curve['risk']):.3f})"
        axes.plot(curve["coverage"], curve["risk"], color=colour, linewidth=1.5, label=label)
    axes.set(xlabel="coverage", ylabel="risk", xlim=(0, 1))
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
