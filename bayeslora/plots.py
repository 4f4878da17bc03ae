"""Figures, in matplotlib."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import numpy as np

from bayeslora.contracts import Count, Kind, checked

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that remain distinct in print and to colour-blind readers (Okabe and Ito).
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D")

LEAST = 30
"""Examples in a point of the reliability diagram: its 95 % interval is then at most ±0.17 wide."""

NARROWEST = 0.02
"""Confidences that a point covers at least, so that points do not hide each other."""

CELLS = np.linspace(0, 1, 16)
"""Edges of the histogram below."""

INSIDE_LEGEND = 6
"""Curves whose names have room inside a figure; those of more stand below it."""


def _styles() -> Iterator[dict[str, Any]]:
    """Yield the style of one curve after another, without end: colours first, then other lines and markers."""
    for line, marker in itertools.cycle(zip(LINES, MARKERS, strict=True)):
        for colour in COLOURS:
            yield {"color": colour, "linestyle": line, "marker": marker}


def _curves(*parts: str) -> Callable[[Any], bool]:
    """Return a test whether a value maps names to curves, each a mapping with these arrays of numbers."""

    def holds(value: Any) -> bool:
        if not isinstance(value, Mapping) or not value or not all(isinstance(each, Mapping) for each in value.values()):
            return False
        arrays = [each.get(part) for each in value.values() for part in parts]
        return all(isinstance(each, np.ndarray) and each.ndim == 1 and each.dtype.kind in "iuf" for each in arrays)

    return holds


def _is_tuned(value: Any) -> bool:
    curve = getattr(value, "curve", None)
    return isinstance(curve, Mapping) and _curves("value", "nll", "se_difference")({"": curve})


if TYPE_CHECKING:
    Tuned: TypeAlias = Any
    Bins: TypeAlias = Mapping[str, Mapping[str, np.ndarray]]
    Risks: TypeAlias = Mapping[str, Mapping[str, np.ndarray]]
else:
    _bins = Kind(
        "a mapping from names to what metrics.reliability returns", _curves("edges", "count", "confidence", "accuracy")
    )
    _risks = Kind("a mapping from names to what metrics.risk_coverage returns", _curves("coverage", "risk"))
    Tuned: TypeAlias = Annotated[Any, Kind("how a dial was set, posterior.tuning", _is_tuned)]
    Bins: TypeAlias = Annotated[Any, _bins]
    Risks: TypeAlias = Annotated[Any, _risks]


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
    for style, (name, bins) in zip(_styles(), curves.items(), strict=False):  # styles do not end
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
    _name_curves(figure, diagram, len(curves), "lower right")
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
    for style, (name, curve) in zip(_styles(), curves.items(), strict=False):
        label = f"{name} (area {np.mean(curve['risk']):.3f})"
        axes.plot(curve["coverage"], curve["risk"], **style | {"marker": ""}, linewidth=1.5, label=label)
    axes.set(xlabel="coverage", ylabel="risk", xlim=(0, 1))
    axes.set_ylim(bottom=0)
    _name_curves(figure, axes, len(curves), "upper left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


@checked()
def dial(tuning: Tuned) -> "Figure":
    """Plot the NLL of rows that were not trained on against the values of a dial.

    The bars are standard errors of the differences from the best value: a value whose bar reaches down to its line is
    as good, as far as these rows can tell.

    Args:
        tuning: How the dial was set: `posterior.tuning`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 4.2), layout="constrained")
    axes = figure.subplots()
    values, nll = tuning.curve["value"], tuning.curve["nll"]
    style = next(_styles())
    axes.errorbar(values, nll, tuning.curve["se_difference"], **style, ms=4, elinewidth=1, capsize=2)
    axes.axhline(nll.min(), color="0.6", linewidth=1, linestyle="--")
    axes.axvline(tuning.chosen, color=COLOURS[1], linewidth=1, label=f"chosen: {tuning.chosen:.3g}")
    if len(values) > 1 and values.min() > 0:
        axes.set_xscale("log")
    axes.set(xlabel=tuning.dial, ylabel=f"NLL of {tuning.rows} rows, nats")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _name_curves(figure: "Figure", axes: "Axes", number: int, corner: Any) -> None:
    """Name the curves in a corner, or, where they are many, below the axes, on paper that is taller for it."""
    if number <= INSIDE_LEGEND:
        axes.legend(frameon=False, loc=corner)
        return
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.22 * (number // 2 + 1))
    figure.legend(frameon=False, loc="outside lower center", ncols=2)
