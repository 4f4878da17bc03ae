"""What figures have in common: colours, what they take, and names."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import numpy as np

from bayeslora.contracts import ArgumentError, Kind

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

LONGEST_NAME = 60
"""Characters of a name."""

INSIDE_LEGEND = 6
"""Curves whose names have room inside a figure; those of more stand below it."""


def styles() -> Iterator[dict[str, Any]]:
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


def _are_values(value: Any) -> bool:
    arrays = [*value.values()] if isinstance(value, Mapping) else [None]
    arrays = [each if isinstance(each, np.ndarray) else None for each in arrays]
    return bool(arrays) and all(a is not None and a.ndim == 1 and len(a) > 0 and a.dtype.kind in "iuf" for a in arrays)


def _has(*names: str) -> Callable[[Any], bool]:
    """Return a test whether a value has attributes."""
    return lambda value: not isinstance(value, type) and all(hasattr(value, name) for name in names)


def _is_tuned(value: Any) -> bool:
    curve = getattr(value, "curve", None)
    return isinstance(curve, Mapping) and _curves("value", "nll", "se_difference")({"": curve})


if TYPE_CHECKING:
    Tuned: TypeAlias = Any
    Values: TypeAlias = Mapping[str, np.ndarray]
    Table: TypeAlias = Any
    Groups: TypeAlias = Any
    Compared: TypeAlias = Any
    Regressed: TypeAlias = Any
    Bins: TypeAlias = Mapping[str, Mapping[str, np.ndarray]]
    Risks: TypeAlias = Mapping[str, Mapping[str, np.ndarray]]
else:
    _bins = Kind(
        "a mapping from names to what metrics.reliability returns", _curves("edges", "count", "confidence", "accuracy")
    )
    _risks = Kind("a mapping from names to what metrics.risk_coverage returns", _curves("coverage", "risk"))
    Tuned: TypeAlias = Annotated[Any, Kind("how a dial was set, posterior.tuning", _is_tuned)]
    Values: TypeAlias = Annotated[Any, Kind("a mapping from names to arrays of numbers", _are_values)]
    Table: TypeAlias = Annotated[Any, Kind("posterior.history", lambda v: hasattr(v, "columns") and "loss" in v)]
    Groups: TypeAlias = Annotated[Any, Kind("what posterior.to_arviz returns", _has("posterior", "groups"))]
    Compared: TypeAlias = Annotated[Any, Kind("what bayeslora.compare returns", _has("methods", "difference"))]
    Regressed: TypeAlias = Annotated[Any, Kind("a RegressionPrediction", _has("mean", "interval"))]
    Bins: TypeAlias = Annotated[Any, _bins]
    Risks: TypeAlias = Annotated[Any, _risks]


LOWER = ("nll", "ece", "brier", "rmse", "mae", "crps", "aurc", "rps", "nll_per_token", "perplexity")
"""Scores of which lower is better."""


def axes_of(width: float, height: float, columns: int = 1) -> "tuple[Figure, Any]":
    """Return a figure of a size in inches, made without pyplot, which would keep it, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns)
    for each in np.ravel(axes):
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes


def finite(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the finite numbers of each array, by its name, which says how many others there are; none without any.

    Raises:
        ArgumentError: If no array has any.
    """
    found = {}
    for name, each in values.items():
        kept = each[np.isfinite(each)]
        if kept.size:
            found[name + (f", {each.size - kept.size:,} not finite" if kept.size < each.size else "")] = kept
    if not found:
        raise ArgumentError("values: no number is finite: there is nothing to plot.")
    return found


def plain(name: str) -> str:
    """Return a text of the user's without what matplotlib would take for formulas, and no longer than fits."""
    short = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
    return short.replace("$", r"\$")


def name_curves(figure: "Figure", axes: "Axes", number: int, corner: Any) -> None:
    """Name the curves in a corner, or, where they are many, or there is none, below the axes, on taller paper."""
    if corner is not None and number <= INSIDE_LEGEND:
        axes.legend(frameon=False, loc=corner)
        return
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.22 * (number // 2 + 1))
    figure.legend(frameon=False, loc="outside lower center", ncols=2)
