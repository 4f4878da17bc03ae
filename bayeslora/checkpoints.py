"""Checkpoints of a fit: which are whole, of which fit they are, and which give way to others.

A checkpoint is a posterior, with files of the Trainer's beside it. The last file to be written says that all of them
are there, and of which fit they are: a checkpoint without it is one whose process was killed.
"""

import contextlib
import hashlib
import json
import logging
import re
import shutil
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from bayeslora import saving
from bayeslora.data import Source
from bayeslora.failing import NotSavedError
from bayeslora.hashing import hashed
from bayeslora.isolation import seeded
from bayeslora.states import Unresumable as Unresumable
from bayeslora.states import check_trainer

logger = logging.getLogger(__name__)

COMPLETE = "complete.json"
"""Written last: the fit that a checkpoint is of, and its files with their sizes."""

NAME = re.compile(r"checkpoint-(\d+)")

NUM_ROWS = 16
"""Rows that stand for all in the record of a data set, the first and the last among them."""

MOST_BYTES = 2**26
"""Arrays up to this size are recorded whole: a tenth of a second."""

ALL_LABELS, ALL_ROWS = "all labels", "all rows"
"""Parts of that record which are only there for some forms of data."""

IF_BOTH = (
    ALL_LABELS,
    ALL_ROWS,
    *(f"{what} of the base model" for what in ("modules", "configuration", "number type", "weights")),
)
"""Parts of a fit's record which say nothing where one of two has them not, as that of an earlier version."""

MOST_SHOWN = 100
"""Characters of a value in a message."""

TRAINING = {
    "seed": "seed",
    "num_train_epochs": "epochs",
    "max_steps": "max_steps",
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "world_size": "number of processes",
    "learning_rate": "learning_rate",
    "lr_scheduler_type": "lr_scheduler_type",
    "warmup_steps": "warmup_steps",
    "weight_decay": "weight_decay",
    "max_grad_norm": "max_grad_norm",
    "optim": "optim",
    "adam_beta1": "adam_beta1",
    "adam_beta2": "adam_beta2",
    "adam_epsilon": "adam_epsilon",
    "fp16": "fp16",
    "bf16": "bf16",
    "data_seed": "data_seed",
    "train_sampling_strategy": "train_sampling_strategy",
    "dataloader_drop_last": "dataloader_drop_last",
}
"""The Trainer's arguments that decide what a fit's steps are, and what `fit` calls them."""


FURTHER = ("optim_args", "lr_scheduler_kwargs")
"""Those that are recorded only where they say something: earlier versions did not record them."""


def fit_record(
    posterior: Mapping[str, Any],
    train: Source,
    tuning_data: Source | None,
    args: Any,
    prior: nn.Module | None = None,
    start: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything that a fit's steps depend on, by names that a user knows, ready for JSON.

    Args:
        posterior: A posterior's record.
        train: The training data.
        tuning_data: The held-out data, for methods that learn from it.
        args: The Trainer's arguments.
        prior: The guide of an earlier fit, if one is the prior.
        start: What else tells the fit's start, ready for JSON.
    """
    method, network = posterior["method"], posterior["network"]
    record = {
        "method": method["name"],
        **method["fields"],
        "likelihood": posterior["likelihood"]["name"],
        **{f"likelihood's {name}": value for name, value in posterior["likelihood"]["config"].items()},
        "base model": posterior["base"]["class"],
        "targets": network["targets"],
        "rank": _alike(network["rank"]),
        "alpha": _alike(network["alpha"]),
        "num_particles": posterior["num_particles"],
        **{ours: getattr(args, theirs, None) for theirs, ours in TRAINING.items()},
        **{name: value for name in FURTHER if (value := getattr(args, name, None))},
        **({} if prior is None else {"prior": hashed(prior.state_dict())}),
        **(start or {}),
        **data_record(train),
        **({} if tuning_data is None else data_record(tuning_data)),
    }
    return json.loads(json.dumps(record, default=str))


def data_record(source: Source) -> dict[str, Any]:
    """What tells one data set from another, cheaply: its size, its columns, all labels at hand, and a few rows.

    Rows that differ when they are read again, as those of a random transformation do, are left out.
    """
    name = source.name
    record: dict[str, Any] = {f"examples of {name}": len(source)}
    spread = np.unique(np.linspace(0, len(source) - 1, NUM_ROWS).round())
    with seeded(0):
        first, again = (_rows(source, range(min(2, len(source)))) for _ in range(2))
        record[f"columns of {name}"] = {column: _shape(value) for column, value in first[0].items()}
        if hashed(first) != hashed(again):
            return record
        record[f"rows of {name}"] = hashed(_rows(source, spread))
    if source.weights is not None:
        record[f"weights of {name}"] = hashed(source.weights)
    if (labels := source.labels) is not None:
        record[f"{ALL_LABELS} of {name}"] = hashed(labels)
    columns = getattr(source.dataset, "columns", None)
    if columns is not None and sum(column.nbytes for column in columns.values()) <= MOST_BYTES:
        record[f"{ALL_ROWS} of {name}"] = hashed(columns)
    return record


def complete(folder: Path, fit: Mapping[str, Any]) -> None:
    """Put a checkpoint's files onto the disk, and then the file that says that it is whole."""
    files = [path for path in sorted(folder.rglob("*")) if path.name != COMPLETE]
    for path in (*files, folder):
        saving.sync(path)
    needed = [path for path in files if path.is_file() and path.name != "training_args.bin"]
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in needed}
    record = {"fit": fit, "files": sizes, "digests": {name: _digest(folder / name) for name in sizes}}
    saving.write(folder / COMPLETE, json.dumps(record, indent=2).encode())
    for path in (folder, folder.parent):
        saving.sync(path)


def remove(folder: Path) -> None:
    """Remove a checkpoint that is given up or written anew, with whatever stands in the place of its files."""
    if folder.is_symlink():
        folder.unlink()
    elif folder.is_dir():
        if (folder / COMPLETE).is_file():  # first: what is partly removed is not whole
            (folder / COMPLETE).unlink()
            saving.sync(folder)
        shutil.rmtree(folder)


def in_order(folder: Path) -> list[Path]:
    """The checkpoints in a folder, whole or not, the newest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step, reverse=True)


def step(checkpoint: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def missing(checkpoint: Path, reads: bool = False) -> list[str] | None:
    """Names of files that are not as they were when the checkpoint was whole; None if it never was.

    Args:
        checkpoint: The checkpoint.
        reads: Whether their contents count, and not only their sizes.
    """
    found = saving.read(checkpoint / COMPLETE) or {}
    sizes, digests = found.get("files"), found.get("digests", {})  # earlier versions wrote no digests
    if not (isinstance(sizes, dict) and isinstance(digests, dict) and isinstance(found.get("fit"), dict)):
        return None
    gone = [name for name, size in sizes.items() if _size(checkpoint / name) != size]
    return gone or [name for name, digest in digests.items() if reads and _digest(checkpoint / name) != digest]


def newest(folder: Path, states: Sequence[str]) -> tuple[Path | None, list[Path]]:
    """The newest whole checkpoint, and those passed over, which are newer.

    Where none is whole, it is the newest that lacks nothing but some of `states`, the Trainer's files that a fit can do
    without, though it will not be the same: it has to be asked about.
    """
    passed_over: list[Path] = []
    for checkpoint in in_order(folder):
        if missing(checkpoint, reads=True) == []:
            return checkpoint, passed_over
        passed_over.append(checkpoint)
    for index, checkpoint in enumerate(passed_over):
        gone = missing(checkpoint, reads=True)
        if gone is not None and {*gone} <= {*states} and not any((checkpoint / name).exists() for name in gone):
            return checkpoint, passed_over[:index]
    return None, passed_over


def check(checkpoint: Path, fit: Mapping[str, Any], states: Sequence[str], anyway: bool) -> None:
    """Say how the checkpoint's fit differs from the one asked for, and what it lacks to continue it.

    Args:
        checkpoint: The checkpoint to resume from.
        fit: The record of the fit asked for.
        states: Names of the Trainer's files that a fit needs to go on as if it had not stopped.
        anyway: Whether to warn instead of refusing.

    Raises:
        Unresumable: If it differs or lacks something.
    """
    differing = differences(json.loads((checkpoint / COMPLETE).read_text())["fit"], fit)
    gone = [name for name in states if not (checkpoint / name).is_file()]
    faults = []
    if differing:
        faults.append(f"it is a checkpoint of another fit ({'; '.join(differing)})")
    if gone:
        faults.append(f"it has no {', '.join(gone)}, without which the fit will not be what it would have been")
    check_trainer(checkpoint, step(checkpoint))
    if not faults:
        return
    if not anyway:
        raise Unresumable(
            f"Cannot resume from {checkpoint}: {', and '.join(faults)}. Set resume=False or another output_dir to "
            'start anew, or resume="anyway" to go on from there all the same.'
        )
    logger.warning("Resuming from %s anyway: %s.", checkpoint, ", and ".join(faults))


def best(checkpoint: Path, best_step: int | None, is_needed: bool, anyway: bool) -> str | None:
    """Return where a fit's best checkpoint so far is: beside the one to resume from, wherever their folder was then.

    Args:
        checkpoint: The checkpoint to resume from.
        best_step: The step of the best.
        is_needed: Whether the fit ends by restoring the best.
        anyway: Whether to warn instead of refusing where it is needed and not there.

    Raises:
        Unresumable: If that is so.
    """
    path = checkpoint.with_name(f"checkpoint-{best_step}")
    if best_step is None or missing(path, reads=True) == []:
        return None if best_step is None else str(path)
    if is_needed:
        fault = f"the best so far, {path.name}, is not there, or not whole"
        if not anyway:
            raise Unresumable(
                f"Cannot resume from {checkpoint}: {fault}. Remove this checkpoint: an earlier one is taken "
                'then; or set resume="anyway" to go on without the best.'
            )
        logger.warning("Resuming from %s anyway: %s.", checkpoint, fault)
    return None


def differences(saved: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """What two fits' records say differently, each with both values."""
    if saved.get("method") != own.get("method"):  # whose fields have little in common
        return [f"method {saved.get('method')!r}, now {own.get('method')!r}"]
    names = [*saved, *(name for name in own if name not in saved)]
    names = [name for name in names if not name.startswith(IF_BOTH) or name in {*saved} & {*own}]
    return [
        f"{name} {_shown(saved.get(name), own.get(name))}, now {_shown(own.get(name), saved.get(name))}"
        for name in names
        if saved.get(name) != own.get(name)
    ]


def set_aside(folder: Path, others: Sequence[Path] = ()) -> None:
    """Move the checkpoints in a folder, which are of an earlier fit, to one of their own, and others with them."""
    found = [*in_order(folder), *others]
    if not found:
        return
    number = 1
    while (folder / f"earlier-{number}").exists():
        number += 1
    target = folder / f"earlier-{number}"
    try:
        target.mkdir()
        for checkpoint in found:
            checkpoint.rename(target / checkpoint.name)
        for path in (target, folder):
            saving.sync(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            target.rmdir()
        raise NotSavedError(
            f"The checkpoints of an earlier fit in {folder} ({_names(found)}) cannot be moved to {target.name} in it: "
            f"{error.strerror}. Give another output_dir, or move them away."
        ) from error
    logger.info("The checkpoints of an earlier fit in %s (%s) are now in %s.", folder, _names(found), target)


def rotate(folder: Path, limit: int | None, best: str | None) -> None:
    """Remove the oldest checkpoints until `limit` are left, never the newest whole one or the best."""
    if limit is None or limit <= 0:
        return
    ordered = in_order(folder)
    whole = [checkpoint for checkpoint in ordered if missing(checkpoint) == []]
    kept = [checkpoint for checkpoint in whole if best is not None and checkpoint.resolve() == Path(best).resolve()]
    kept = [*whole[:1], *(checkpoint for checkpoint in kept if checkpoint not in whole[:1])]
    kept += [checkpoint for checkpoint in whole if checkpoint not in kept][: max(0, limit - len(kept))]
    for checkpoint in ordered:
        if checkpoint not in kept:
            with contextlib.suppress(OSError):  # somebody else's, for instance: it stays
                remove(checkpoint)


def _names(checkpoints: Sequence[Path]) -> str:
    return ", ".join(checkpoint.name for checkpoint in checkpoints)


def _size(path: Path) -> int | None:
    """The size of a file; None if it is not there, or is a link, or a pipe, of which reading would never end."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _digest(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError:
        return None


def _alike(values: Mapping[str, Any]) -> Any:
    """The value that all layers have, or each layer's."""
    distinct = {*values.values()}
    return distinct.pop() if len(distinct) == 1 else values


def _shown(value: Any, other: Any) -> str:
    """A value in a message; of two lists, or of two mappings, what only this one has."""
    if isinstance(value, list) and isinstance(other, list):
        own = [entry for entry in value if entry not in other]
        text = f"{len(value)} entries" + (f" with {', '.join(map(repr, own))}" if own else "")
    elif isinstance(value, dict) and isinstance(other, dict):
        text = repr({name: entry for name, entry in value.items() if other.get(name) != entry})
    else:
        text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"


def _rows(source: Source, indices: Iterable[Any]) -> list[dict[str, Any]]:
    """Some rows; of a stream, its first batch."""
    if source.is_stream:
        return [source.first_batch()]
    rows: Any = source.dataset if source.dataset is not None else source.loader.dataset  # type: ignore[union-attr]
    return [_row(rows[int(index)]) for index in indices]


def _row(row: Any) -> dict[str, Any]:
    if isinstance(row, Mapping):
        return dict(row)
    return {str(index): value for index, value in enumerate(row if isinstance(row, (tuple, list)) else [row])}


def _shape(value: Any) -> str:
    """What kind of value a column has, but not its length, which can differ between rows."""
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{str(value.dtype).removeprefix('torch.')}, {value.ndim} dimensions"
    return type(value).__name__
