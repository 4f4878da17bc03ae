"""Runs of a study: each fits one posterior, and scores it on the test data."""

import json
import logging
import os
import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from bayeslora import facts, metrics, storage
from bayeslora.data import Columns
from bayeslora.divergence import DivergedError
from bayeslora.fit import fit
from bayeslora.grouping import same_given, tenth
from bayeslora.hashing import hashed, hashed_files
from bayeslora.isolation import isolated
from bayeslora.methods import Method
from bayeslora.metrics import FloatArray
from bayeslora.posterior import Posterior
from bayeslora.study import rows
from bayeslora.study.intervals import blocks
from bayeslora.study.store import Store
from bayeslora.tasks.prediction import BasePrediction

logger = logging.getLogger(__name__)

BATCH_SIZE = 64
"""Test examples in a batch."""


@dataclass(frozen=True)
class Setting:
    """What all runs of a study have in common.

    Args:
        model: The model, or its name.
        data: All labels that a method may learn from, beside those of `validation`.
        test: The examples that are scored.
        validation: Held-out data, if some are given.
        folds: K of cross-fitting, or None.
        num_draws: Draws of a prediction.
        columns: Names of columns, as `evaluate` takes them.
    """

    model: Any
    data: Any
    test: Any
    validation: Any = None
    folds: int | None = None
    num_draws: int = 32
    columns: Mapping[str, Any] | None = None

    def record(self) -> dict[str, Any]:
        """Return what tells it from others, by names that a user knows, ready for JSON."""
        from bayeslora import __version__

        return {
            "version": __version__,
            "model": model_record(self.model),
            **{name: data_record(getattr(self, name)) for name in ("data", "test", "validation")},
            "folds": self.folds,
            "num_draws": self.num_draws,
        }


@dataclass(frozen=True)
class Task:
    """One fit, and the rows that it has in the table.

    Args:
        names: Names of its rows.
        tempered: Whether each row is at the temperature that was found.
        method: The method.
        settings: Further arguments of `fit`.
        seed: Seed of the fit and of the draws.
        tenth: Whether a tenth of the data is held out for the temperature.
        refit: As `fit` takes it.
        cell: What else the row is called by: the point of a grid.
    """

    names: tuple[str, ...]
    tempered: tuple[bool, ...]
    method: Method
    settings: Mapping[str, Any]
    seed: int
    tenth: bool = False
    refit: bool | None = None
    cell: Mapping[str, Any] | None = None

    def record(self) -> dict[str, Any]:
        """Return what tells the run from others of the study, ready for JSON."""
        return {
            "names": self.names,
            "method": storage.method_record(self.method),
            "code": hashed(self.method),  # and its class's, if that is of the user's own
            "settings": {name: shown(value) for name, value in sorted(self.settings.items())},
            "seed": self.seed,
            "tenth": self.tenth,
            "refit": self.refit,
        }


class Failure(NamedTuple):
    """What a run ended with instead of a record.

    Args:
        error: The error.
        trace: Where it was raised, as a text: an error that comes from another process does not know.
    """

    error: Exception
    trace: str


def model_record(model: Any) -> dict[str, Any]:
    """Return what tells a model from others: its name and files, or its class and a hash of all that it computes with.

    Of a name on the hub, nothing else is known.
    """
    if isinstance(model, nn.Module):
        return {"class": type(model).__name__, "digest": hashed(model)}
    return {"name": str(model), **({"files": hashed_files(Path(model))} if Path(model).is_dir() else {})}


def data_record(data: Any) -> dict[str, Any] | None:
    """Return what tells data from others; None if there are none."""
    return None if data is None else {"examples": rows.count(data), "digest": rows.digest(data)}


def shown(value: Any) -> Any:
    """Return a setting for a record: what is plain itself, other things as a short text and a hash."""
    if isinstance(value, str | os.PathLike) and Path(value).is_dir():
        return model_record(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [shown(each) for each in value]
    if isinstance(value, Mapping):
        return {str(name): shown(each) for name, each in value.items()}
    if isinstance(value, nn.Module):
        return model_record(value)
    kind = getattr(value, "__qualname__", type(value).__name__)
    return f"{kind} {hashed(rows.content(value))}"


def run_all(tasks: Sequence[Task], setting: Setting, store: Store, n_jobs: int | None) -> list[dict[str, Any]]:
    """Run tasks that the store does not have, and return all runs, in order: each is stored as it ends.

    Where one fails, the others still run, and the first error is raised when they have ended. If none has ended before,
    it is raised at once: what is wrong may well be wrong for all.

    Args:
        tasks: The tasks.
        setting: What they have in common.
        store: Where runs are kept.
        n_jobs: Runs at a time, in processes of joblib; None for what `joblib.parallel_config` says, or 1.
    """
    keys = [store.key(task.record()) for task in tasks]
    lacking = [(key, task) for key, task in zip(keys, tasks, strict=True) if store.get(key) is None]
    if len(lacking) < len(tasks):
        logger.info("%d of %d runs are in %s.", len(tasks) - len(lacking), len(tasks), store.folder)
    ended, errors, found = 0, [], _spread(lacking, setting, n_jobs)
    for number, (key, run) in enumerate(found, start=1):
        if isinstance(run, Failure):
            errors.append(run.error)
            if run.error.__traceback__ is None:  # it was in another process
                run.error.add_note(run.trace)
            if not ended:
                found.throw(run.error)  # where joblib stops its workers, and raises it
            logger.warning("%d of %d failed: %s: %s", number, len(lacking), type(run.error).__name__, run.error)
            continue
        store.put(key, run)
        ended += 1
        logger.info("%d of %d: %s", number, len(lacking), _said(run))
    if errors:
        if len(errors) > 1:
            errors[0].add_note(f"{len(errors) - 1} more failed.")
        raise errors[0]
    return [store.get(key) or {} for key in keys]


def _spread(
    tasks: Sequence[tuple[str, Task]], setting: Setting, n_jobs: int | None
) -> Generator[tuple[str, dict[str, Any] | Failure], None, None]:
    """Yield runs as they end, whichever is first, and the errors of those that fail."""
    import joblib  # type: ignore[import-untyped,unused-ignore]

    parallel = joblib.Parallel(n_jobs=n_jobs, return_as="generator_unordered", batch_size=1, pre_dispatch="n_jobs")
    yield from parallel(joblib.delayed(_keyed)(key, task, setting) for key, task in tasks)


def _keyed(key: str, task: Task, setting: Setting) -> tuple[str, dict[str, Any] | Failure]:
    try:
        return key, run(task, setting)
    except Exception as error:
        names, cell = " and ".join(task.names), _at(task.cell or {})
        error.add_note(f"This was the fit of {names} with seed {task.seed}{cell}; a store keeps the others.")
        return key, Failure(error, traceback.format_exc())


def _at(cell: Mapping[str, Any]) -> str:
    return "".join(f", {name.replace('_', ' ')} {value:g}" for name, value in cell.items())


def _said(run: Mapping[str, Any]) -> str:
    result = "".join(f", NLL {each['scores']['nll']:.4f}" for each in run["results"].values())
    failed = f", failed: {run['failed']}" if run["failed"] else ""
    names, cell = " and ".join(run["names"]), _at(run["cell"])
    return f"{names}{cell}, seed {run['seed']}{result}{failed}, {run['fit_seconds']:.0f} s"


def run(task: Task, setting: Setting) -> dict[str, Any]:
    """Fit and score one posterior, and return a record of it, ready for JSON; a fit that diverges says so in it."""
    data, held_out = setting.data, setting.validation
    settings: dict[str, Any] = {"progress": False, **task.settings}
    if task.tenth:
        data, held_out, settings = divided(data, task.seed, settings)
    about: dict[str, Any] = {**task.record(), "cell": dict(task.cell or {}), "results": {}, "failed": None}
    if setting.folds is not None:
        settings |= {"folds": setting.folds, "refit": task.refit}
    start = time.perf_counter()
    try:
        posterior = fit(setting.model, data, task.method, validation=setting.validation, seed=task.seed, **settings)
    except DivergedError as error:
        return {**about, "failed": str(error), "fit_seconds": time.perf_counter() - start}
    about["fit_seconds"] = time.perf_counter() - start
    start = time.perf_counter()
    likelihood = posterior._likelihood
    about["has_temperature"] = bool(likelihood.has_temperature)
    temperature = posterior.temperature
    if any(task.tempered) and likelihood.has_temperature and setting.folds is None:
        temperature = posterior.calibrate(held_out, setting.num_draws, seed=task.seed).temperature
    about["calibrate_seconds"] = time.perf_counter() - start
    start = time.perf_counter()
    evaluation = Evaluation(posterior, setting, task.seed)
    for name, tempered in zip(task.names, task.tempered, strict=True):
        if likelihood.has_temperature or not tempered:
            plain = any(task.tempered) and not tempered
            found = evaluation(1.0 if plain else temperature)
            tuning = posterior.tuning
            if tuning is not None and tuning.log_density is not None and not plain:
                found["elpd"] = tuning.log_density.tolist()
            about["results"][name] = found
    about["predict_seconds"] = time.perf_counter() - start
    return json.loads(json.dumps(about))


def divided(data: Any, seed: int, settings: Mapping[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """Hold out a tenth of the data, in an order of its own for each seed; rows with equal inputs stay together.

    Args:
        data: The data.
        seed: Seed of the order.
        settings: Further arguments of `fit`.

    Returns:
        What is left, what is held out, and the arguments for what is left.
    """
    size = rows.count(data)
    if size is None:
        raise TypeError(
            "data is a stream or a DataLoader, from which no labels can be held out for a temperature: give a dataset, "
            "or validation=…."
        )
    weight = settings.get("weight")
    asked = Columns.asked(settings.get("text"), settings.get("label"), settings.get("id"))
    same = same_given(data, asked, weight if isinstance(weight, str) else None)
    chosen = tenth(same, np.random.default_rng(seed).permutation(size))
    if chosen is None:
        why = "there is one row" if size == 1 else "most rows are alike"
        raise ValueError(f"A tenth of data is held out for a temperature, and {why}: pass validation=….")
    kept, out = np.flatnonzero(~chosen).tolist(), np.flatnonzero(chosen).tolist()
    own = {} if weight is None or isinstance(weight, str) else {"weight": rows.take(weight, kept, "weight")}
    return rows.take(data, kept), rows.take(data, out), {**settings, **own}


class Evaluation:
    """The scores of a posterior on the test data, at any temperature; the network runs once.

    Args:
        posterior: The posterior.
        setting: What runs have in common.
        seed: Seed of the draws.
    """

    @isolated()
    def __init__(self, posterior: Posterior, setting: Setting, seed: int):
        asked = Columns.asked(**{name: (setting.columns or {}).get(name) for name in ("text", "label", "id")})
        self.posterior = posterior
        source = posterior._source(setting.test, asked, name="test")
        self.outputs, self.labels = posterior._labelled(source, setting.num_draws, seed, BATCH_SIZE)

    @isolated()
    def __call__(self, temperature: float) -> dict[str, Any]:
        """Return the scores, those without each block of examples, and what to hold them against."""
        prediction = self.posterior._prediction(self.outputs, temperature)
        log_density = prediction.log_density(self.labels)
        scores = prediction.scores(self.labels)
        block = blocks(len(log_density))
        found: dict[str, Any] = {
            "scores": scores,
            "left_out": self._left_out(temperature, block, log_density, scores),
            "temperature": temperature,
            "parameters": learned(self.posterior),
            "examples": len(log_density),
        }
        if self.labels.ndim == 1 and self.labels.dtype.kind in "iu" and "accuracy" in scores:
            found["majority"] = metrics.majority_rate(self.labels)
        return found

    def _left_out(
        self, temperature: float, block: np.ndarray, log_density: FloatArray, scores: Mapping[str, float]
    ) -> dict[str, list[float]]:
        """Return scores without each block of examples; the NLL alone where outputs cannot be taken apart."""
        numbers = range(int(block.max()) + 1 if block.max() else 0)
        take: Callable[..., Any] = getattr(self.outputs, "take", lambda examples: None)
        kept = [block != number for number in numbers]
        parts = [take(examples) for examples in kept]
        if not parts or parts[0] is None:
            # log densities are of examples: of windows, where a context has several
            return {"nll": [-float(log_density[examples].mean()) for examples in kept]}
        each = [self._prediction(part, temperature).scores(part.labels) for part in parts]
        return {name: [one[name] for one in each] for name in scores}

    def _prediction(self, outputs: Any, temperature: float) -> BasePrediction:
        return self.posterior._prediction(outputs, temperature)


def learned(posterior: Posterior) -> int:
    """Return how many numbers were learned, those of all components of a mixture."""
    components = getattr(posterior, "components", (posterior,))
    return int(sum(facts.learned(each.program)[part] for each in components for part in ("adapters", "head")))
