"""`compare`: several methods on the same labels, over seeds, in one table with intervals."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

from torch import nn

from bayeslora import contracts, facts
from bayeslora.contracts import ArgumentError, Count, Fields, checked
from bayeslora.fit import fit
from bayeslora.methods import Method, MethodName, make_method
from bayeslora.study import rows
from bayeslora.study.comparison import BASELINE, TEMPERED, Comparison
from bayeslora.study.runs import Setting, Task, run_all, shown
from bayeslora.study.store import Store
from bayeslora.types import Data, Folder, Folds, ModelName, NumDraws, Seed

OWN = (
    *("model", "data", "method", "validation", "seed", "folds", "refit", "args", "output_dir", "resume", "progress"),
    *("num_examples", "hyperparameters"),
)
"""Arguments of `fit` that a study sets itself, or that no study has."""

T = TypeVar("T")

Jobs = Count | Literal[-1]
"""Runs at a time; −1 for as many as there are processors."""


class Entry(NamedTuple):
    """One line of a study as the user asked for it: a method, further arguments of its fit, its temperature."""

    method: Method
    settings: Mapping[str, Any]
    tempered: bool


def settings_of_fit(whose: str, *varied: str) -> Callable[[Mapping[str, Any]], Fields]:
    """Return what says which arguments of `fit` a study passes on: all but its own and those that it varies."""

    def fields(arguments: Mapping[str, Any]) -> Fields:
        declared = contracts.declared(fit)
        known = [name for name in inspect.signature(fit).parameters if name not in (*OWN, *varied)]
        return Fields({name: declared[name] for name in known}, whose, "argument")

    return fields


@checked(settings_of_fit("compare"))
def compare(
    model: nn.Module | ModelName,
    data: Data,
    methods: Sequence[Method | MethodName] | Mapping[str, Method | MethodName | Mapping[str, Any]],
    *,
    test: Data | None = None,
    validation: Data | None = None,
    seeds: Count | Sequence[Seed] = 5,
    folds: Folds | None = None,
    num_draws: NumDraws = 32,
    store: Folder | None = None,
    n_jobs: Jobs | None = None,
    **settings: Any,
) -> Comparison:
    """Compare methods on the same labels, over seeds: one table with intervals, and a verdict in words for each.

    `lora` and `lora + temperature` are always in it; the latter is what the others are held against. All methods learn
    from the same labels: the temperature comes out of `data`, by `folds` or a held-out tenth, unless `validation` is
    given, which is then there for all.

    Args:
        model: As in `fit`.
        data: All labels to learn from, in any form that `fit` reads.
        methods: Names in `bayeslora.METHODS`, or instances; a name may end in `" + temperature"`. Or a mapping from
            names of your own to these, or to arguments of `fit`, `{"method": "full", "learning_rate": 1e-4}`.
        test: The examples that are scored; by default the split `test` of `data`.
        validation: Held-out labels that every method may use, and that set the temperature.
        seeds: How many fits of each method, from seed 0 on, or the seeds.
        folds: K: every method is cross-fitted, has the temperature that this finds, and an elpd of rows that its fits
            have not seen. `lora` is one refit, with that temperature and without.
        num_draws: Draws of the weights for a prediction.
        store: A folder in which every run is kept as it ends: a comparison that is called again goes on with those that
            are lacking. Methods and seeds may be added.
        n_jobs: Fits at a time, in processes; None for 1, or what `joblib.parallel_config` says.
        settings: Further arguments of `fit`, the same for all methods.

    Raises:
        ArgumentError: If an argument does not fit, or two methods have one name.
        ValueError: If there is no test data, or the store is of another comparison; the message says what differs.
    """
    entries = entries_of(methods)
    seeds = distinct("seeds", range(seeds) if isinstance(seeds, int) else seeds)
    for entry in entries.values():
        contracts.check_arguments(fit, model, data, entry.method, **{**settings, **entry.settings})
    setting = setting_of(model, data, test, validation, folds, num_draws, settings)
    kept = Store(store, {"study": "comparison", **setting.record(), **recorded(settings)})
    first, second = tasks_of(entries, seeds, settings, setting)
    runs = run_all(first, setting, kept, n_jobs)
    if any(run.get("has_temperature") for run in runs):
        runs += run_all(second, setting, kept, n_jobs)
    about = {**setting.record(), "settings": recorded(settings)}
    return Comparison(runs, [*entries], about)


def distinct(name: str, values: Iterable[T]) -> list[T]:
    """Return the values of an argument as a list.

    Raises:
        ArgumentError: If there are none, or one is there twice.
    """
    found = list(values)
    if not found or len({*found}) < len(found):
        raise ArgumentError(f"{name}={found}: give one at least, and each once.")
    return found


def named_entries(methods: Any) -> dict[str, Entry]:
    """Return methods by their names, in order.

    Raises:
        ArgumentError: If a name stands for two methods.
    """
    pairs = list(methods.items()) if isinstance(methods, Mapping) else [(None, each) for each in methods]
    entries: dict[str, Entry] = {}
    for name, given in pairs:
        entry = _entry(given)
        name = (facts.method(entry.method) + (TEMPERED if entry.tempered else "")) if name is None else name
        if name in entries:
            raise ArgumentError(f"methods: {name!r} is in it twice. Give a mapping, with a name for each.")
        entries[name] = entry
    return entries


def entries_of(methods: Any) -> dict[str, Entry]:
    """Return the methods to compare by their names, those that are always there first.

    Raises:
        ArgumentError: If a name stands for two methods, or there is nothing to compare.
    """
    entries = named_entries(methods)
    if not entries:
        raise ArgumentError("methods=[]: give one at least, beside LoRA, such as ['monteclora'].")
    always = {"lora": Entry(make_method("lora"), {}, False), BASELINE: Entry(make_method("lora"), {}, True)}
    for name, entry in always.items():
        if name in entries and (entries[name].method != entry.method or entries[name].tempered != entry.tempered):
            raise ArgumentError(f"methods: {name!r} is LoRA, which is always in it: give yours another name.")
        if name in entries and entries[name].settings:
            always[name] = entries[name]
    if BASELINE in entries and entries[BASELINE].settings:
        always["lora"] = Entry(always["lora"].method, entries[BASELINE].settings, False)
    elif "lora" in entries:
        always[BASELINE] = Entry(always[BASELINE].method, entries["lora"].settings, True)
    return always | {name: entry for name, entry in entries.items() if name not in always}


def _entry(given: Any) -> Entry:
    settings: dict[str, Any] = {}
    if isinstance(given, Mapping):
        settings = dict(given)
        if "method" not in settings:
            raise ArgumentError(f"methods: {dict(given)!r} does not say which: give {{'method': …}}.")
        given = settings.pop("method")
    if not isinstance(given, Method | str):
        raise ArgumentError(f"methods: {given!r} is neither a Method nor the name of one in bayeslora.METHODS.")
    tempered = isinstance(given, str) and given.endswith(TEMPERED)
    known = [name for name in inspect.signature(fit).parameters if name not in OWN]
    fields = {name: settings.pop(name) for name in [*settings] if name not in known}
    return Entry(
        make_method(given.removesuffix(TEMPERED) if isinstance(given, str) else given, **fields), settings, tempered
    )


def setting_of(
    model: Any, data: Any, test: Any, validation: Any, folds: int | None, num_draws: int, settings: Mapping[str, Any]
) -> Setting:
    """Return what all runs have in common, with the splits of the data where they are not given.

    Raises:
        ValueError: If there is no test data.
    """
    held_out = rows.part(data, "test") if test is None else rows.part(test, "train")
    if held_out is None:
        raise ArgumentError("test=None: data has no split 'test': give labelled examples that no method learns from.")
    validation = rows.part(data, "validation") if validation is None else rows.part(validation, "train")
    columns = {name: settings.get(name) for name in ("text", "label", "id")}
    return Setting(model, rows.part(data, "train"), held_out, validation, folds, num_draws, columns)


def recorded(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return further arguments of `fit` for a record."""
    return {name: shown(value) for name, value in sorted(settings.items())}


def tasks_of(
    entries: Mapping[str, Entry], seeds: Sequence[int], settings: Mapping[str, Any], setting: Setting
) -> tuple[list[Task], list[Task]]:
    """Return the runs to make, and those to make only if the labels have a temperature.

    Where no label has to be held out for it, one fit is scored with the temperature and without.
    """
    tenth = setting.folds is None and setting.validation is None
    first: list[Task] = []
    second: list[Task] = []
    for name, entry in entries.items():
        twin = next((each for each, other in entries.items() if _are_twins(entry, other)), None)
        if entry.tempered and twin is not None and not tenth:
            continue  # it is scored with its twin
        if entry.tempered and setting.folds is not None and twin is None:
            raise ArgumentError(
                f"methods: with folds={setting.folds}, every method has a temperature: leave out that of {name!r}."
            )
        names: tuple[str, ...] = (name,)
        tempered: tuple[bool, ...] = (entry.tempered,)
        if twin is not None and not tenth:
            names, tempered = (name, twin), (False, True)
        # A mixture of LoRA's members would be an ensemble, and not LoRA.
        refit = True if setting.folds is not None and names[0] == "lora" else None
        for seed in seeds:
            whole = {**settings, **entry.settings}
            task = Task(names, tempered, entry.method, whole, seed, entry.tempered and tenth, refit)
            (second if task.tenth else first).append(task)
    return first, second


def _are_twins(entry: Entry, other: Entry) -> bool:
    same = entry.method == other.method and recorded(entry.settings) == recorded(other.settings)
    return same and entry.tempered != other.tempered
