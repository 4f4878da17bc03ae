"""Figures, in matplotlib."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import numpy as np

from bayeslora.contracts import Kind, checked

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colours that remain distinct in print and to colour-blind readers (Okabe and Ito).
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def _curves(*parts: str) -> Callable[[Any], bool]:
    """Return a test whether a value maps names to curves, each a mapping with these arrays of numbers."""

    def holds(value: Any) -> bool:
        if not isinstance(value, Mapping) or not value or not all(isinstance(each, Mapping) for each in value.values()):
            return False
        arrays = [each.get(part) for each in value.values() for part in parts]
        return all(isinstance(each, np.ndarray) and each.ndim == 1 and each.dtype.kind in "iuf" for each in arrays)

    return holds


if TYPE_CHECKING:
    Bins: TypeAlias = Mapping[str, Mapping[str, np.ndarray]]
    Risks: TypeAlias = Mapping[str, Mapping[str, np.ndarray]]
else:
    _bins = Kind(
        "a mapping from names to what metrics.reliability returns", _curves("edges", "count", "confidence", "accuracy")
    )
    _risks = Kind("a mapping from names to what metrics.risk_coverage returns", _curves("coverage", "risk"))
    Bins: TypeAlias = Annotated[Any, _bins]
    Risks: TypeAlias = Annotated[Any, _risks]


@checked()
def reliability(curves: Bins) -> "Figure":
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


@checked()
def risk_coverage(curves: Risks) -> "Figure":
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
