"""A folder of finished runs: each is written as it ends, and found again by what determines it."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bayeslora import checkpoints, failing, saving
from bayeslora.hashing import hashed

STUDY = "study.json"
"""The file that says which study a folder is of."""


class Store:
    """The finished runs of one study; in memory alone if there is no folder.

    Args:
        folder: Where they are, if anywhere.
        study: What all runs of the study have in common, by names that a user knows, ready for JSON.

    Raises:
        ValueError: If the folder is of another study; the message says what differs.
        NotSavedError: If the folder cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, study: Mapping[str, Any]):
        self.study = json.loads(json.dumps(study))
        # Absolute: a method or data of the user's may change the folder of the process.
        self.folder = None if folder is None else Path(folder).absolute()
        self.runs: dict[str, dict[str, Any]] = {}
        if self.folder is None:
            return
        with failing.saying_what_failed(self.folder):
            saving.make_folder(self.folder)
        path = self.folder / STUDY
        if path.exists():
            self._check(path)
        elif others := sorted(each.name for each in self.folder.iterdir() if not each.name.startswith(".")):
            raise ValueError(
                f"store={str(folder)!r} has no {STUDY}, but other files, such as {others[0]!r}: give a new folder, or "
                "that of a study."
            )
        else:
            with failing.saying_what_failed(path):
                saving.write(path, json.dumps(self.study, indent=1).encode())

    def _check(self, path: Path) -> None:
        saved = saving.read(path)
        if saved is None:
            raise ValueError(f"store={str(self.folder)!r}: {STUDY} in it cannot be read. Give another folder.")
        differing = checkpoints.differences({"method": "", **saved}, {"method": "", **self.study})
        if differing:
            raise ValueError(
                f"store={str(self.folder)!r} holds the runs of another study: {'; '.join(differing)}. Give another "
                "folder, or the same arguments as then."
            )

    def key(self, run: Mapping[str, Any]) -> str:
        """Return the name of a run: a digest of what determines it, with what all runs have in common."""
        return hashed([json.dumps(each, sort_keys=True) for each in (self.study, run)])

    def get(self, key: str) -> dict[str, Any] | None:
        """Return a finished run; None if there is none."""
        if key not in self.runs and self.folder is not None:
            found = saving.read(self.folder / f"run-{key}.json")
            if found is not None and saving.is_signed(found) and _is_whole(found):
                self.runs[key] = {name: value for name, value in found.items() if name != "digest"}
        return self.runs.get(key)

    def put(self, key: str, run: Mapping[str, Any]) -> None:
        """Keep a finished run; it is on the disk, whole, when this returns."""
        self.runs[key] = json.loads(json.dumps(run))
        if self.folder is not None:
            path = self.folder / f"run-{key}.json"
            with failing.saying_what_failed(path, "Runs that had ended are kept: call it again with this store."):
                saving.write(path, json.dumps(saving.signed(self.runs[key])).encode())
                saving.sync(self.folder)


def _is_whole(run: Mapping[str, Any]) -> bool:
    """Whether a run has what every run has; what somebody has changed is run again."""
    try:
        numbers = [
            *(value for each in run["results"].values() for value in (*each["scores"].values(), each["temperature"])),
            *(value for each in run["results"].values() for left in each["left_out"].values() for value in left),
            *(each["parameters"] for each in run["results"].values()),
            run["seed"],
        ]
        names = [*run["names"], *run["results"]]
    except (KeyError, TypeError, AttributeError):
        return False
    return "failed" in run and all(isinstance(name, str) for name in names) and all(map(_is_number, numbers))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
