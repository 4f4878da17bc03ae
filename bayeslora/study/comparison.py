"""The table of a comparison: means over seeds with intervals, differences from LoRA with a temperature, verdicts."""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bayeslora.contracts import ArgumentError, checked
from bayeslora.display import Shown, as_html, first_columns, markdown
from bayeslora.study.intervals import Estimate, estimate, estimate_of_rows, unless_constant
from bayeslora.types import FileName

if TYPE_CHECKING:
    import pandas as pd

TEMPERED = " + temperature"
"""How the name of a method ends that is used at the temperature that fits held-out labels."""

BASELINE = f"lora{TEMPERED}"
"""What others are held against, where labels have a temperature; otherwise `lora`."""

FLOOR = "ece_floor"
"""A score without an interval, which stands beside the ECE."""

FIRST = ("nll", "ece", "brier", "accuracy", "auroc_errors")
"""Scores that stand first, and of classes alone."""

LEVEL_WITHIN = 0.05
"""Half of an interval, as a share of the baseline's NLL, up to which methods are called level if it has 0 in it."""

NARROW = ("seeds", "nll", "nll difference", "ece", "accuracy", "rmse")
"""Columns for a prompt, as many of the first as it has room for."""


class Comparison(Shown):
    """What `compare` returns: runs, and what follows from them.

    Args:
        runs: Records of the runs.
        methods: Names of the methods, in order.
        about: What the runs have in common.
    """

    def __init__(self, runs: Sequence[Mapping[str, Any]], methods: Sequence[str], about: Mapping[str, Any]):
        self.runs = list(runs)
        found = {name for run in self.runs for name in run["results"]} | {
            name for run in self.runs if run["failed"] for name in run["names"]
        }
        self.methods = [name for name in methods if name in found]
        self.about = dict(about)

    @cached_property
    def baseline(self) -> str:
        """The method that others are held against."""
        return BASELINE if any(BASELINE in run["results"] for run in self.runs) else "lora"

    @property
    def metrics(self) -> list[str]:
        """Names of the scores in the table: those of this kind of label, the NLL first."""
        names = list(
            dict.fromkeys(name for run in self.runs for each in run["results"].values() for name in each["scores"])
        )
        if {*FIRST} <= {*names}:
            return list(FIRST)
        names = [name for name in names if name != FLOOR]
        return [*(name for name in FIRST if name in names), *(name for name in names if name not in FIRST)]

    @checked()
    def results(self, method: str) -> dict[int, dict[str, Any]]:
        """Return the results of a method by seed; a fit that diverged has none."""
        return {run["seed"]: run["results"][method] for run in self.runs if method in run["results"]}

    @property
    def scores(self) -> "pd.DataFrame":
        """Every score of every run: a row per method and seed."""
        import pandas as pd

        return pd.DataFrame(
            {"method": method, "seed": seed, **result["scores"], "temperature": result["temperature"]}
            for method in self.methods
            for seed, result in sorted(self.results(method).items())
        )

    def _of(self, method: str, seeds: Iterable[int], metric: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Return a score of each seed, and the same without each block of test examples, if they are known."""
        results = [self.results(method)[seed] for seed in seeds]
        values = np.array([each["scores"][metric] for each in results])
        if not all(metric in each["left_out"] for each in results):
            return values, None
        return values, np.array([each["left_out"][metric] for each in results])

    @checked()
    def estimate(self, method: str, metric: str = "nll") -> Estimate:
        """Return the mean of a score over seeds, with its interval over seeds and test rows.

        Half the interval's width is NaN where it is not known: a score that is the same for every seed, and without any
        block of rows, such as an accuracy of 1, does not say how far it may be from its mean.
        """
        self._check(method, metric)
        seeds = sorted(self.results(method))
        return unless_constant(estimate(*self._of(method, seeds, metric))) if seeds else NOTHING

    @checked()
    def difference(self, method: str, metric: str = "nll", against: str | None = None) -> Estimate:
        """Return the mean difference of a score between two methods, paired by seed and by test row.

        Args:
            method: A method.
            metric: The score.
            against: The other; None for the `baseline`.
        """
        against = self.baseline if against is None else against
        self._check(method, metric)
        self._check(against, metric, "against")
        seeds = sorted(self.results(method).keys() & self.results(against).keys())
        if not seeds:
            return NOTHING
        (own, own_left), (other, other_left) = (self._of(each, seeds, metric) for each in (method, against))
        left = None if own_left is None or other_left is None else own_left - other_left
        return estimate(own - other, left)

    @checked()
    def elpd(self, method: str, against: str | None = None) -> Estimate:
        """Return the mean log predictive density of rows that fits have not seen, in nats per row, by `folds`.

        Args:
            method: A method.
            against: Another, for the difference from it, paired by row and seed.
        """
        self._check(method)
        if against is not None:
            self._check(against, name="against")
        found = [self.results(each) for each in ([method] if against is None else [method, against])]
        seeds = sorted(set.intersection(*({seed for seed in each if "elpd" in each[seed]} for each in found)))
        if not seeds:
            return NOTHING
        values = [np.array([each[seed]["elpd"] for seed in seeds]) for each in found]
        return estimate_of_rows(values[0] if against is None else values[0] - values[1])

    def _check(self, method: str, metric: str | None = None, name: str = "method") -> None:
        if method not in self.methods:
            raise ArgumentError(f"{name}={method!r}: the comparison has {', '.join(self.methods)}.")
        known = [name for run in self.runs for each in run["results"].values() for name in each["scores"]]
        if metric is not None and known and metric not in known:
            raise ArgumentError(f"metric={metric!r}: the comparison has {', '.join(dict.fromkeys(known))}.")

    @checked()
    def verdict(self, method: str) -> str:
        """Say in words whether a method's NLL is better than the baseline's, level with it, or worse.

        Level means that the difference is 0 within its interval, and that this is less than 5 % of the baseline's NLL;
        of a wider one it is said that they are not to be told apart.
        """
        failed = [run["seed"] for run in self.runs if run["failed"] and method in run["names"]]
        lacking = f"; {len(failed)} of {len(failed) + len(self.results(method))} fits diverged" if failed else ""
        if method == self.baseline:
            return f"the baseline{lacking}"
        apart = self.difference(method)
        if math.isnan(apart.half):
            return f"not known{lacking}"
        if apart.is_zero:
            known = apart.half <= LEVEL_WITHIN * abs(self.estimate(self.baseline).value)
            word = "level with" if known else "not to be told from"
            return f"{word} {self.baseline}: {apart.value:+.3f} ± {apart.half:.3f}{lacking}"
        word = "better" if apart.value < 0 else "worse"
        return f"{word} by {abs(apart.value):.3f} ± {apart.half:.3f}{lacking}"

    @cached_property
    def table(self) -> "pd.DataFrame":
        """A row per method: scores and half the widths of their 95 % intervals (`±`), and what they are held against.

        `nll_difference` is from the baseline, paired. `ece_floor` is the ECE of a perfectly calibrated prediction,
        `elpd` in nats per row, `seconds` the mean of fitting and predicting, `parameters` the numbers that are learned.
        """
        import pandas as pd

        return (
            pd.DataFrame([self._row(method) for method in self.methods]).set_index("method").dropna(axis=1, how="all")
        )

    def _row(self, method: str) -> dict[str, Any]:
        results, row = self.results(method), {"method": method, "seeds": len(self.results(method))}
        for metric in self.metrics:
            if not any(metric in each["scores"] for each in results.values()):
                continue
            found = self.estimate(method, metric)
            row |= {metric: found.value, f"±{metric}": found.half}
            if metric == "nll":
                apart = self.difference(method)
                is_other = method != self.baseline
                row |= {"nll_difference": apart.value if is_other else math.nan}
                row |= {"±nll_difference": apart.half if is_other else math.nan}
            if metric == "ece":
                row[FLOOR] = _mean(each["scores"].get(FLOOR) for each in results.values())
        elpd = self.elpd(method)
        apart = self.elpd(method, self.baseline) if self.baseline in self.methods else NOTHING
        is_other = method != self.baseline
        row |= {"elpd": elpd.value, "elpd_difference": apart.value if is_other else math.nan}
        row |= {"se_elpd_difference": apart.se if is_other else math.nan}
        runs = [run for run in self.runs if method in run["results"]]
        parts = ("fit_seconds", "calibrate_seconds", "predict_seconds")
        row["majority"] = _mean(each.get("majority") for each in results.values())
        row["seconds"] = _mean(sum(run.get(part, 0.0) for part in parts) for run in runs)
        row["parameters"] = _mean(each["parameters"] for each in results.values())
        return row | {"verdict": self.verdict(method)}

    def shown(self) -> "pd.DataFrame":
        """Return the table as texts, with each interval beside its number."""
        import pandas as pd

        table, columns = self.table, {}
        for name in table.columns:
            if name.startswith(("±", "se_")):
                continue
            digits = {"seconds": 1, "parameters": 0, "seeds": 0}.get(name, 3)
            half = table.get(f"±{name}", table.get(f"se_{name}"))
            sign = "+" if name.endswith("difference") else ""
            columns[name.replace("_", " ")] = [
                value if isinstance(value, str) else _text(value, width, digits, sign)
                for value, width in zip(table[name], [math.nan] * len(table) if half is None else half, strict=True)
            ]
        return pd.DataFrame(columns, index=table.index)

    @checked()
    def to_markdown(self) -> str:
        """Return the table as Markdown, with each interval beside its number."""
        return markdown(self.shown())

    @checked()
    def report(self, path: FileName) -> Path:
        """Write one self-contained HTML page: verdicts, the table, a figure, every run, and how to reproduce it."""
        from bayeslora.report import of_comparison

        return of_comparison(self, path)

    def _shown(self) -> tuple[str, dict[str, str], Any]:
        data, test = self.about["data"], self.about["test"]
        seeds = {run["seed"] for run in self.runs}
        facts = {
            "labels": f"{data['examples']} to learn from, {test['examples']} to test"
            + (f", {self.about['validation']['examples']} held out" if self.about.get("validation") else ""),
            "seeds": f"{len(seeds)}" + ("" if len(seeds) > 1 else "; intervals are over test rows alone"),
            "temperature": _whence(self.about),
            "baseline": self.baseline,
            **{name: self.verdict(name) for name in self.methods if name != self.baseline},
        }
        shown = self.shown()
        return "Comparison", facts, first_columns(shown[[name for name in NARROW if name in shown]].reset_index())

    def _repr_html_(self) -> str:
        title, facts, _ = self._shown()
        return as_html(title, facts, self.shown().reset_index())


NOTHING = Estimate(math.nan, math.nan, math.nan)


def _whence(about: Mapping[str, Any]) -> str:
    if about["folds"] is not None:
        return f"by {about['folds']} folds"
    return "on the held-out labels" if about.get("validation") else "on a tenth of the labels, which is not trained on"


def _mean(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else math.nan


def _text(value: float, half: float, digits: int, sign: str) -> str:
    if value is None or math.isnan(value):
        return "–"
    text = f"{value:{sign},.{digits}f}"
    return text if math.isnan(half) else f"{text} ± {half:.{digits}f}"
