"""Figures of several methods."""

from typing import TYPE_CHECKING

import numpy as np

from bayeslora.contracts import checked
from bayeslora.plots.base import (
    COLOURS,
    LOWER,
    Compared,
    Values,
    axes_of,
    finite,
    plain,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@checked()
def differences(comparison: Compared, metric: str = "nll") -> "Figure":
    """Plot the difference of each method's score from the baseline's, with its 95 % interval, paired.

    Args:
        comparison: What `bayeslora.compare` returns.
        metric: The score.
    """
    others = [name for name in comparison.methods if name != comparison.baseline and comparison.results(name)]
    found = [comparison.difference(name, metric) for name in others]
    figure, axes = axes_of(5.6, 0.35 * len(others) + 1.3)
    for place, each in enumerate(found):
        colour = "0.4" if each.is_zero else COLOURS[2] if (each.value < 0) == (metric in LOWER) else COLOURS[0]
        axes.errorbar(each.value, place, xerr=each.half, fmt="o", ms=5, capsize=3, color=colour)
    axes.axvline(0, color="0.6", linewidth=1, linestyle="--")
    axes.set_yticks(range(len(others)), [plain(name) for name in others])
    axes.invert_yaxis()
    axes.set(xlabel=plain(f"{metric} − {metric} of {comparison.baseline}"), ylim=(len(others) - 0.5, -0.5))
    return figure


@checked()
def boxes(values: Values, label: str = "NLL") -> "Figure":
    """Plot a box for each method over the cells of a grid: median, quartiles, whiskers, and every cell.

    Args:
        values: Method to its score in each cell; scores that are not finite are left out and counted.
        label: What the score is.
    """
    values = finite(values)
    figure, axes = axes_of(5.6, 0.45 * len(values) + 1.3)
    axes.boxplot(
        [*values.values()], orientation="horizontal", tick_labels=[plain(name) for name in values], showfliers=False
    )
    for place, each in enumerate(values.values(), start=1):
        axes.plot(each, np.full(len(each), place), "o", ms=3, alpha=0.6, color=COLOURS[1])
    axes.invert_yaxis()
    axes.set(xlabel=plain(label))
    return figure
