"""Kinds of posteriors that came after those of `tests.fixtures`: mixtures, students, posteriors with tables.

They are made anew for each run of the tests, by the code that is tested: what they predict is not held to the past.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import bayeslora
from tests.fixtures.make import CASES, Case, fit, of_method

KINDS = {name: of_method("lora") for name in ("mixture", "members", "refit", "student")}
"""A base network and data for each."""


def made(case: Case, method: str, **settings: Any) -> Any:
    """A posterior over the base of a case, without much training."""
    few = {"targets": case.targets, "rank": 2, "epochs": 1, "batch_size": 8, "learning_rate": 0.1, "progress": False}
    return bayeslora.fit(case.network(), case.train, method, **few | settings)


def mixture(case: Case) -> Any:
    """Three methods, their weights by stacking, with rows to decide by."""
    parts = [made(case, "lora"), made(case, "monteclora", rank=3), fit(CASES["blob"])]
    densities = {"validation": case.train, "num_draws": 2}
    stacked = bayeslora.mixture(parts, "stacking", **densities)
    found = bayeslora.Mixture(parts, [0.5, 0.3, 0.2], 1.25, None, stacked.densities)
    found.decide(case.train, 2)
    return found


def student(case: Case) -> Any:
    """A student with a spread, and with rows to decide by."""
    found = fit(CASES["blob"]).distil(case.train, 4, epochs=0.5)
    found.decide(case.train, 2)
    return found


MADE: dict[str, Callable[[Case], Any]] = {
    "mixture": mixture,
    "members": lambda case: made(case, "lora", folds=2),
    "refit": lambda case: made(case, "monteclora", folds=2, refit=True),
    "student": student,
}


def make(folder: Path) -> None:
    """Write one of each kind into a folder of its name."""
    for name, case in KINDS.items():
        MADE[name](case).save(folder / name)
