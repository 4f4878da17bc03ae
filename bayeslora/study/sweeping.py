"""`sweep`: methods over a grid of learning rates, batch sizes and seeds, and how much hangs on these."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from bayeslora import contracts
from bayeslora.contracts import ArgumentError, Count, Scale, checked
from bayeslora.fit import fit
from bayeslora.methods import Method, MethodName
from bayeslora.study.comparing import (
    Jobs,
    distinct,
    named_entries,
    recorded,
    setting_of,
    settings_of_fit,
    tasks_of,
)
from bayeslora.study.robustness import Sweep
from bayeslora.study.runs import Task, run_all
from bayeslora.study.store import Store
from bayeslora.types import BatchSize, Data, Folder, ModelName, NumDraws, Seed

VARIED = ("learning_rate", "batch_size")
"""Arguments of `fit` that the grid varies."""


@checked(settings_of_fit("sweep", *VARIED))
def sweep(
    model: nn.Module | ModelName,
    data: Data,
    methods: Sequence[Method | MethodName] | Mapping[str, Method | MethodName | Mapping[str, Any]],
    *,
    test: Data | None = None,
    validation: Data | None = None,
    learning_rates: Sequence[Scale] = (3e-4, 5e-5, 1e-5),
    batch_sizes: Sequence[BatchSize] = (8, 32, 64),
    seeds: Count | Sequence[Seed] = 1,
    num_draws: NumDraws = 32,
    store: Folder | None = None,
    n_jobs: Jobs | None = None,
    **settings: Any,
) -> Sweep:
    """Fit methods at every learning rate, batch size and seed of a grid: how robust is each to these?

    A method is held against the first one, cell by cell. A cell whose fit diverges counts as the worst of all.

    Args:
        model: As in `fit`.
        data: All labels to learn from, in any form that `fit` reads.
        methods: As in `compare`; the first is the one that others are held against.
        test: The examples that are scored; by default the split `test` of `data`.
        validation: Held-out labels that every method may use, and that set the temperature of a name which ends in
            `" + temperature"`; without them, that is a tenth of `data`.
        learning_rates: Peak learning rates; by default those of the MonteCLoRA paper for RoBERTa.
        batch_sizes: Examples per step; by default those of the same paper.
        seeds: How many fits of each point, from seed 0 on, or the seeds.
        num_draws: Draws of the weights for a prediction.
        store: A folder in which every run is kept as it ends: a sweep that is called again goes on with those that are
            lacking. Methods, seeds and points of the grid may be added.
        n_jobs: Fits at a time, in processes; None for 1, or what `joblib.parallel_config` says.
        settings: Further arguments of `fit`, the same for all methods.

    Raises:
        ArgumentError: If an argument does not fit, or two methods have one name.
        ValueError: If there is no test data, or the store is of another study; the message says what differs.

    References:
        Sengupta et al. (2024), [MonteCLoRA](https://arxiv.org/abs/2411.04358), section 3.3.
    """
    entries = named_entries(methods)
    if not entries:
        raise ArgumentError("methods=[]: give one at least, such as ['lora', 'monteclora'].")
    for name, entry in entries.items():
        for varied in VARIED:
            if varied in entry.settings:
                raise ArgumentError(f"methods: {name!r} sets {varied}, which the sweep varies: leave it out.")
    seeds = distinct("seeds", range(seeds) if isinstance(seeds, int) else seeds)
    rates = distinct("learning_rates", map(float, learning_rates))
    sizes = distinct("batch_sizes", map(int, batch_sizes))
    for entry in entries.values():
        contracts.check_arguments(fit, model, data, entry.method, **{**settings, **entry.settings})
    setting = setting_of(model, data, test, validation, None, num_draws, settings)
    kept = Store(store, {"study": "sweep", **setting.record(), **recorded(settings)})
    first: list[Task] = []
    second: list[Task] = []
    for point in (dict(zip(VARIED, each, strict=True)) for each in itertools.product(rates, sizes)):
        for tasks, found in zip((first, second), tasks_of(entries, seeds, {**settings, **point}, setting), strict=True):
            tasks += [dataclasses.replace(task, cell=point) for task in found]
    runs = run_all(first, setting, kept, n_jobs)
    # Fits that hold labels out for a temperature are made only if the labels have one.
    if not first or any(run.get("has_temperature") for run in runs):
        runs += run_all(second, setting, kept, n_jobs)
    return Sweep(runs, [*entries], {**setting.record(), "settings": recorded(settings)})
