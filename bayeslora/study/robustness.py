"""The table of a sweep: how much a method's scores hang on learning rate, batch size and seed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bayeslora.arguments import LESS_IS_BETTER
from bayeslora.contracts import ArgumentError, checked
from bayeslora.display import Shown, as_html, first_columns, markdown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

MAIN = ("accuracy", "f1", "exact_match", "rmse")
"""Scores beside the NLL, of which the first that the labels have is the main one."""

SIGNIFICANT = 0.05
"""The p-value below which one method is called better than another."""

NAMED = 3
"""Cells that diverged, or are lacking, and are named in a verdict."""

NARROW = ("cells", "diverged", "intrinsic", "extrinsic", "nll spread", "nll p")
"""Columns for a prompt, as many of the first as it has room for."""


class Cell(NamedTuple):
    """One point of the grid, and a seed."""

    learning_rate: float
    batch_size: int
    seed: int

    def __str__(self) -> str:
        return f"learning rate {self.learning_rate:g}, batch size {self.batch_size}, seed {self.seed}"


@dataclass(frozen=True)
class Spread:
    """How a score varies over the cells of a grid.

    Args:
        median: Its median.
        spread: Largest less smallest; infinite if some cells diverged.
        iqr: Upper quartile less lower quartile; NaN if it is not known, because most cells diverged.
    """

    median: float
    spread: float
    iqr: float


@dataclass(frozen=True)
class Paired:
    """How a score differs between two methods, cell by cell.

    Args:
        median: Median of the differences; infinite if the fits of one method diverged in most cells.
        better: Cells in which the method is better.
        cells: Cells that both have.
        p: Two-sided p-value of Wilcoxon's signed-rank test; 1 if no cell differs, NaN without cells.
        sign: −1 if the method's scores rank below the other's, 1 if above, 0 if neither.
    """

    median: float
    better: int
    cells: int
    p: float
    sign: int


class Sweep(Shown):
    """What `sweep` returns: runs, and what follows from them.

    A fit that diverged, or whose NLL is not a finite number, counts as the worst of all in medians, quartiles and
    ranks: leaving it out would make a method look more robust the more often it fails.

    Args:
        runs: Records of the runs.
        methods: Names of the methods, in order; the first is the one that others are held against.
        about: What the runs have in common.
    """

    def __init__(self, runs: Sequence[Mapping[str, Any]], methods: Sequence[str], about: Mapping[str, Any]):
        self.runs = list(runs)
        self.about = dict(about)
        self._results: dict[str, dict[Cell, Mapping[str, float] | None]] = {}
        for name in methods:
            found = {
                _cell(run): run["results"][name]["scores"] if name in run["results"] else None
                for run in self.runs
                if name in run["results"] or (run["failed"] and name in run["names"])
            }
            if found:
                self._results[name] = dict(sorted(found.items()))
        self.methods = [*self._results]
        if not self.methods:
            raise ArgumentError(
                f"methods={list(methods)}: these labels have no temperature. Name a method without one."
            )

    @property
    def baseline(self) -> str:
        """The method that others are held against: the first."""
        return self.methods[0]

    @cached_property
    def metrics(self) -> list[str]:
        """Names of the scores that runs have."""
        return [*dict.fromkeys(name for each in self._results.values() for run in each.values() for name in run or ())]

    @property
    def main(self) -> str | None:
        """The score of extrinsic robustness: the accuracy, or else F1, exact match or RMSE; None if there is none."""
        return next((name for name in MAIN if name in self.metrics), None)

    @checked()
    def diverged(self, method: str) -> list[Cell]:
        """Return the cells in which a method's fit diverged, or its NLL is not a finite number."""
        self._check(method)
        return [cell for cell, scores in self._results[method].items() if _diverged(scores)]

    @checked()
    def lacking(self, method: str) -> list[Cell]:
        """Return the cells that another method has and this one does not, because its runs have not ended."""
        self._check(method)
        return sorted({cell for each in self._results.values() for cell in each} - self._results[method].keys())

    @checked()
    def values(self, method: str, metric: str = "nll") -> dict[Cell, float]:
        """Return a method's score in each cell: infinite, to the bad side, where there is none."""
        self._check(method, metric)
        worst = math.inf if metric in LESS_IS_BETTER else -math.inf
        found = self._results[method].items()
        values = {
            cell: math.nan if scores is None or _diverged(scores) else scores.get(metric, math.nan)
            for cell, scores in found
        }
        return {cell: worst if math.isnan(value) else value for cell, value in values.items()}

    @checked()
    def spread(self, method: str, metric: str = "nll") -> Spread:
        """Return median, spread and inter-quartile range of a method's score over the cells."""
        values = np.sort([*self.values(method, metric).values()])
        low, middle, high = (_quantile(values, each) for each in (0.25, 0.5, 0.75))
        return Spread(middle, _less(values[-1], values[0]), _less(high, low))

    @checked()
    def difference(self, method: str, metric: str = "nll", against: str | None = None) -> Paired:
        """Return how a method's score differs from another's, cell by cell, with Wilcoxon's signed-rank test.

        Args:
            method: A method.
            metric: The score.
            against: The other; None for the `baseline`.
        """
        against = self.baseline if against is None else against
        self._check(against, metric, "against")
        own, other = self.values(method, metric), self.values(against, metric)
        apart = np.array([_less(own[cell], other[cell], 0.0) for cell in own if cell in other])
        if not apart.size:
            return Paired(math.nan, 0, 0, math.nan, 0)
        better = int((apart < 0).sum() if metric in LESS_IS_BETTER else (apart > 0).sum())
        return Paired(_quantile(np.sort(apart), 0.5), better, len(apart), *_signed_rank(apart))

    @checked()
    def verdict(self, method: str, metric: str = "nll") -> str:
        """Say in words whether a method is better than the first over the grid, and name cells without a finite NLL.

        Better and worse are said where the p-value of Wilcoxon's test over paired cells is below 0.05.
        """
        failed, missing = self.diverged(method), self.lacking(method)
        lacking = f"; {len(failed)} of {len(self._results[method])} cells diverged ({_named(failed)})" if failed else ""
        if missing:
            grid = len(missing) + len(self._results[method])
            lacking += (
                f"; {len(missing)} of {grid} cells are lacking ({_named(missing)}): its medians and spreads are not "
                "over the cells of others"
            )
        if method == self.baseline:
            return f"what others are held against{lacking}"
        found = self.difference(method, metric)
        if not found.cells:
            return f"not known: it has no cell in common with {self.baseline}{lacking}"
        counted = f"{metric.replace('_', ' ')} better in {found.better} of {found.cells} cells"
        facts = f"{counted}, median difference {_text(found.median, '+.3f')}, p = {found.p:.2g}"
        if found.p < SIGNIFICANT:
            word = "better" if (found.sign < 0) == (metric in LESS_IS_BETTER) else "worse"
            return f"{word} than {self.baseline}: {facts}{lacking}"
        least = 2.0 ** (1 - found.cells)
        few = f"; of {found.cells} cells, no p is below {least:.2g}" if least >= SIGNIFICANT else ""
        return f"not to be told from {self.baseline}: {facts}{few}{lacking}"

    def _check(self, method: str, metric: str = "nll", name: str = "method") -> None:
        if method not in self._results:
            raise ArgumentError(f"{name}={method!r}: the sweep has {', '.join(self.methods)}.")
        if self.metrics and metric not in self.metrics:
            raise ArgumentError(f"metric={metric!r}: the sweep has {', '.join(self.metrics)}.")

    @cached_property
    def scores(self) -> "pd.DataFrame":
        """Every score of every run: a row per method and cell, those that diverged included."""
        import pandas as pd

        return pd.DataFrame(
            {"method": method, **cell._asdict(), "diverged": _diverged(scores), **(scores or {})}
            for method in self.methods
            for cell, scores in self._results[method].items()
        )

    @cached_property
    def table(self) -> "pd.DataFrame":
        r"""A row per method, over the cells of the grid.

        `intrinsic` robustness is $1 / \mathrm{median}(\mathrm{NLL})$, NaN if that median is not positive, and
        `extrinsic` is the median of the main score. `…_spread` is largest less smallest, `…_iqr` the inter-quartile
        range, `…_difference` the median difference from the first method, and `…_p` the p-value of Wilcoxon's
        signed-rank test over paired cells.
        """
        import pandas as pd

        return pd.DataFrame([self._row(method) for method in self.methods]).set_index("method")

    def _row(self, method: str) -> dict[str, Any]:
        nll = self.spread(method)
        row = {"method": method, "cells": len(self._results[method]), "diverged": len(self.diverged(method))}
        row |= {"intrinsic": 1 / nll.median if nll.median > 0 else math.nan}
        if self.main is not None:
            row |= {"extrinsic": self.spread(method, self.main).median}
        for metric in ("nll", self.main):
            if metric is None:
                continue
            found = self.spread(method, metric)
            row |= {f"{metric}_spread": found.spread, f"{metric}_iqr": found.iqr}
            apart = None if method == self.baseline else self.difference(method, metric)
            row |= {f"{metric}_difference": math.nan if apart is None else apart.median}
            row |= {f"{metric}_p": math.nan if apart is None else apart.p}
        return row | {"verdict": self.verdict(method)}

    def shown(self) -> "pd.DataFrame":
        """Return the table as texts."""
        import pandas as pd

        columns = {}
        for name in self.table.columns:
            form = ".2g" if name.endswith("_p") else "+.3f" if name.endswith("difference") else ".3f"
            values = self.table[name]
            columns[name.replace("_", " ")] = [
                _text(value, form) if isinstance(value, float) else str(value) for value in values
            ]
        return pd.DataFrame(columns, index=self.table.index)

    @checked()
    def to_markdown(self) -> str:
        """Return the table as Markdown."""
        return markdown(self.shown())

    @checked()
    def plot(self, metric: str = "nll") -> "Figure":
        """Plot a box for each method over its cells, those that diverged left out and counted in its name.

        Args:
            metric: The score.

        Raises:
            ArgumentError: If there is no such score.
        """
        from bayeslora import plots

        values = {}
        for method in self.methods:
            found = np.array([each for each in self.values(method, metric).values() if math.isfinite(each)])
            lacking = len(self._results[method]) - len(found)
            if found.size:
                values[method + (f" ({lacking} diverged)" if lacking else "")] = found
        if not values:
            raise ArgumentError(f"metric={metric!r}: no run has it.")
        return plots.boxes(values, metric.replace("_", " ") if metric != "nll" else "NLL")

    def _shown(self) -> tuple[str, dict[str, str], Any]:
        cells = sorted({cell for each in self._results.values() for cell in each})
        numbers = {name: sorted({getattr(cell, name) for cell in cells}) for name in Cell._fields}
        facts = {
            "labels": f"{self.about['data']['examples']} to learn from, {self.about['test']['examples']} to test",
            **{
                f"{name.replace('_', ' ')}s": ", ".join(f"{each:g}" for each in values)
                for name, values in numbers.items()
            },
            **{
                name: self.verdict(name)
                for name in self.methods
                if name != self.baseline or self.diverged(name) or self.lacking(name)
            },
        }
        shown = self.shown()
        return "Sweep", facts, first_columns(shown[[name for name in NARROW if name in shown]].reset_index())

    def _repr_html_(self) -> str:
        title, facts, _ = self._shown()
        return as_html(title, facts, self.shown().reset_index())


def _named(cells: Sequence[Cell]) -> str:
    return "; ".join(map(str, cells[:NAMED])) + ("; …" if len(cells) > NAMED else "")


def _cell(run: Mapping[str, Any]) -> Cell:
    return Cell(run["cell"]["learning_rate"], run["cell"]["batch_size"], run["seed"])


def _diverged(scores: Mapping[str, float] | None) -> bool:
    return scores is None or not math.isfinite(scores["nll"])


def _less(value: float, other: float, equal: float | None = None) -> float:
    """Return a difference; of two infinities it is not known, unless it is said what it is."""
    if math.isinf(value) and value == other:
        return math.nan if equal is None else equal
    return float(value - other)


def _quantile(values: np.ndarray, share: float) -> float:
    """Return a quantile of sorted values as `numpy.quantile` does, of which some may be infinite."""
    place = share * (len(values) - 1)
    low, high = float(values[math.floor(place)]), float(values[math.ceil(place)])
    if low == high:
        return low
    if math.isinf(low) or math.isinf(high):
        return low if place == math.floor(place) else low + high if math.isinf(low) != math.isinf(high) else math.nan
    return low + (high - low) * (place - math.floor(place))


def _signed_rank(apart: np.ndarray) -> tuple[float, int]:
    """Return the p-value of Wilcoxon's signed-rank test, and the sign of the ranks' sum; infinities rank highest."""
    from scipy import stats

    if not apart.any():
        return 1.0, 0
    finite = np.abs(apart[np.isfinite(apart)])
    ranked = np.where(np.isinf(apart), np.sign(apart) * (2 * finite.max(initial=0.0) + 1), apart)
    kept = ranked[ranked != 0]
    total = float((np.sign(kept) * stats.rankdata(np.abs(kept))).sum())
    return float(stats.wilcoxon(ranked).pvalue), int(np.sign(total))


def _text(value: float, form: str) -> str:
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:{form}}"
