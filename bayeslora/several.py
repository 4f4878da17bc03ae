"""A fit that consists of several, each in a folder of its own: which it is, so that no other one is mistaken for it."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bayeslora import checkpoints, filing, saving
from bayeslora.data import Source

logger = logging.getLogger(__name__)

RECORD = "several.json"
"""Beside the folders of the fits: what they are parts of, and their names."""

MOST_BYTES = 2**20
"""Of a record that is read."""


def fit_record(method: Mapping[str, Any], train: Source, seed: int, **settings: Any) -> dict[str, Any]:
    """Return what tells several fits from others, by names that a user knows, ready for JSON.

    What each of them depends on beside that, its own checkpoints say.

    Args:
        method: The record of the method.
        train: The data that the fits share.
        seed: The seed.
        settings: What makes them several.
    """
    record = {"method": method["name"], **method["fields"], **settings, "seed": seed, **checkpoints.data_record(train)}
    return json.loads(json.dumps(record, default=str))


def begin(
    folder: str | os.PathLike[str] | None, fit: Mapping[str, Any], names: Sequence[str], resume: bool | str
) -> None:
    """Say in a folder which fits it is for; where they are not resumed, move what others have left to one of its own.

    Args:
        folder: The folder; None if nothing is saved.
        fit: The record of the fits, see `fit_record`.
        names: The folders of the fits, in there.
        resume: Whether to go on with them; `"anyway"` with whatever fits they are.

    Raises:
        Unresumable: If there are others to resume.
    """
    if folder is None:
        return
    path = Path(folder)
    if not resume:
        if is_first():
            set_aside(path)
    elif checkpoints.in_order(path):
        _refuse(path, [f"{name} None, now {fit[name]!r}" for name in ("folds", "dial") if name in fit], resume)
    elif (found := _read(path)) is not None:
        _refuse(path, checkpoints.differences(found["fit"], fit), resume)
    if is_first():
        saving.make_folder(path)
        filing.write_file(path / RECORD, json.dumps({"fit": fit, "folders": list(names)}, indent=2))
        saving.sync(path)


def check_single(folder: Path, resume: bool | str) -> None:
    """Refuse to resume one fit in a folder of several; where it is not resumed, these are moved to one of their own.

    Raises:
        Unresumable: If there are several to resume.
    """
    found = _read(folder)
    if found is None or not (resume or is_first()):
        return
    if resume:
        what = [f"{name} {found['fit'][name]!r}, now None" for name in ("folds", "dial") if name in found["fit"]]
        _refuse(folder, what, resume)
    else:
        set_aside(folder)


def set_aside(folder: Path) -> None:
    """Move the checkpoints of earlier fits in a folder, of one or of several, to one of their own."""
    found = _read(folder)
    parts = [] if found is None else [folder / name for name in found["folders"]]
    checkpoints.set_aside(folder, [*(part for part in parts if part.is_dir()), *([folder / RECORD] if found else [])])


def _refuse(folder: Path, differing: Sequence[str], resume: bool | str) -> None:
    if not differing:
        return
    fault = f"it holds another fit ({'; '.join(differing)})"
    if resume != "anyway":
        raise checkpoints.Unresumable(
            f"Cannot resume in {folder}: {fault}. Set resume=False or another output_dir to start anew, or "
            'resume="anyway" to go on with what is there all the same.'
        )
    logger.warning("Resuming in %s anyway: %s.", folder, fault)


def _read(folder: Path) -> dict[str, Any] | None:
    """Return the record in a folder; None if there is none that can be read, as of a fit that has not begun."""
    path = folder / RECORD
    try:
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            return None
        found = json.loads(path.read_text())
        names = found["folders"]
        sound = isinstance(found["fit"], dict) and all(isinstance(n, str) and Path(n).name == n for n in names)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if sound else None


def is_first() -> bool:
    """Whether this is the one of several processes that writes."""
    return int(os.environ.get("RANK", "0")) == 0
