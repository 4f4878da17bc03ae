"""Figures of predictions against labels."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from bayeslora.contracts import ArgumentError, Count, checked
from bayeslora.contracts.arrays import Finite
from bayeslora.plots.base import (
    CELLS,
    COLOURS,
    LEAST,
    NARROWEST,
    Bins,
    Regressed,
    Risks,
    Values,
    axes_of,
    finite,
    name_curves,
    plain,
    styles,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@checked()
def reliability(curves: Bins, least: Count = LEAST) -> "Figure":
    """Plot accuracy against confidence, and how often each confidence occurs.

    Neighbouring bins are merged until each holds enough examples to say something. Bars are Wilson's 95 % intervals of
    the accuracy; a curve whose bars touch the diagonal may be calibrated.

    Args:
        curves: Name to the bins of `metrics.reliability`, best with `adaptive=True`: `edges`, `count`, `confidence` and
            `accuracy`.
        least: Examples in a point; 1 to leave out empty bins alone.

    References:
        Wilson (1927), Probable Inference, the Law of Succession, and Statistical Inference.
    """
    from matplotlib.figure import Figure
    from scipy.stats import binomtest

    # Made without pyplot, which would keep the figure and choose a display.
    figure = Figure(figsize=(5.2, 5.6), layout="constrained")
    diagram, histogram = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
    diagram.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--", label="calibrated")
    low = 1.0
    for style, (name, bins) in zip(styles(), curves.items(), strict=False):  # styles do not end
        points = _merged(bins, least)
        right = np.rint(points["accuracy"] * points["count"]).astype(int)
        ranges = [
            binomtest(int(k), int(n)).proportion_ci(method="wilson")
            for k, n in zip(right, points["count"], strict=True)
        ]
        bars = [
            [accuracy - ci.low for accuracy, ci in zip(points["accuracy"], ranges, strict=True)],
            [ci.high - accuracy for accuracy, ci in zip(points["accuracy"], ranges, strict=True)],
        ]
        diagram.errorbar(
            points["confidence"],
            points["accuracy"],
            np.maximum(bars, 0),  # at accuracies of 0 and 1 an end is at the point, up to rounding
            **style,
            ms=4,
            elinewidth=1,
            capsize=2,
            label=name,
        )
        middles = (bins["edges"][1:] + bins["edges"][:-1]) / 2  # bins may differ in width
        share = np.histogram(middles, CELLS, weights=bins["count"] / bins["count"].sum())[0]
        histogram.stairs(share, CELLS, color=style["color"], linestyle=style["linestyle"], linewidth=1.5)
        low = min(low, bins["edges"][:-1][bins["count"] > 0].min())
    diagram.set(ylabel="accuracy", ylim=(0, 1.02), xlim=(low, 1))
    name_curves(figure, diagram, len(curves), "lower right")
    histogram.set(xlabel="confidence", ylabel="share")
    for axes in (diagram, histogram):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _merged(bins: Mapping[str, np.ndarray], least: int) -> dict[str, np.ndarray]:
    """Merge neighbouring bins of `metrics.reliability`, from the lowest on, until each holds a number of examples.

    None is narrower than `NARROWEST`. What is left at the top joins the last bin that is full.

    Args:
        bins: What `metrics.reliability` returned.
        least: Examples that a bin has to hold; if there are fewer in all, there is one bin.

    Returns:
        As `metrics.reliability`, with as many bins as remain: none of them is empty if there are examples.
    """
    count, edges = np.asarray(bins["count"]), np.asarray(bins["edges"])
    ends: list[int] = []
    held = 0.0
    for index, number in enumerate(count):
        held += number
        if held >= max(least, 1) and edges[index + 1] - edges[ends[-1] if ends else 0] >= NARROWEST:
            ends.append(index + 1)
            held = 0.0
    ends = [*ends[:-1], len(count)]
    starts = [0, *ends[:-1]]
    total = np.add.reduceat(count, starts)
    means = {
        name: np.add.reduceat(np.nan_to_num(bins[name]) * count, starts) / np.where(total > 0, total, np.nan)
        for name in ("confidence", "accuracy")
    }
    return {"edges": edges[[0, *ends]], "count": total, **means}


@checked()
def risk_coverage(curves: Risks) -> "Figure":
    """Plot the error rate of the answered examples against their share, the least uncertain first.

    Args:
        curves: Name to the curve of `metrics.risk_coverage`: `coverage` and `risk`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 4.2), layout="constrained")
    axes = figure.subplots()
    for style, (name, curve) in zip(styles(), curves.items(), strict=False):
        label = f"{name} (area {np.mean(curve['risk']):.3f})"
        axes.plot(curve["coverage"], curve["risk"], **style | {"marker": ""}, linewidth=1.5, label=label)
    axes.set(xlabel="coverage", ylabel="risk", xlim=(0, 1))
    axes.set_ylim(bottom=0)
    name_curves(figure, axes, len(curves), "upper left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


@checked()
def uncertainties(values: Values, label: str = "entropy, nats") -> "Figure":
    """Plot how often each uncertainty occurs: of familiar and unfamiliar examples, or of right and wrong ones.

    Args:
        values: Name to one number for each example, such as `prediction.entropy`; those that are not finite are left
            out and counted.
        label: What they are.
    """
    values = finite(values)
    figure, axes = axes_of(5.2, 3.2)
    every = np.concatenate([*values.values()]).astype(np.float64)
    low, high = every.min(), every.max()
    if high - low <= 1e-6 * max(abs(low), abs(high)):  # one value, up to rounding
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, 31)
    for style, (name, each) in zip(styles(), values.items(), strict=False):
        shares = np.histogram(each, edges)[0] / len(each)
        look = {"color": style["color"], "linestyle": style["linestyle"]}
        axes.stairs(shares, edges, **look, linewidth=1.5, label=plain(f"{name} ({len(each):,})"))
    axes.set(xlabel=plain(label), ylabel="share")
    name_curves(figure, axes, len(values), None)
    return figure


@checked()
def regression(prediction: Regressed, labels: Finite) -> "Figure":
    """Plot labels against their predicted means, with 90 % intervals where examples are few.

    Args:
        prediction: The prediction.
        labels: The labels, `[example]`.

    Raises:
        ValueError: If they are not one for each example.
    """
    if np.size(labels) != np.size(prediction.mean):
        raise ArgumentError(
            f"labels: there are {np.size(labels)}, and predictions of {np.size(prediction.mean)}: give the label of "
            "each example."
        )
    figure, axes = axes_of(5.2, 4.6)
    mean, (low, high), truth = prediction.mean, prediction.interval(0.9).T, np.asarray(labels)
    shown = np.linspace(0, len(mean) - 1, min(len(mean), 1000)).astype(int)
    bars = [(mean - low)[shown], (high - mean)[shown]] if len(mean) <= 200 else None
    style = {"fmt": "o", "ms": 3, "alpha": 0.5, "elinewidth": 0.7}
    axes.errorbar(truth[shown], mean[shown], yerr=bars, color=COLOURS[1], **style)
    ends = [min(truth.min(), mean.min()), max(truth.max(), mean.max())]
    axes.plot(ends, ends, color="0.6", linewidth=1, linestyle="--")
    axes.set(xlabel="label", ylabel="predicted mean, 90 % interval")
    return figure
