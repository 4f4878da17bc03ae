"""Texts in files of their own, in a folder for each class, as those of IMDb and 20 Newsgroups come."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from bayeslora.data.decoding import decoded
from bayeslora.data.tabling import as_table

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

WITHOUT_LABEL = ("unsup", "unsupervised", "unlabeled", "unlabelled")
"""Folders, beside those of classes, whose texts have no label."""

ENDINGS = (".txt", "")
"""Endings of the files."""

TABLES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".xlsx")
"""Endings of tables, beside which folders of texts are not the data."""

ABOUT = ("readme", "license", "licence")
"""Names, without their ending, of files that say something about the others."""

OF_SYSTEMS = ("thumbs.db", "desktop.ini")
"""Files that a system leaves in folders."""


def tables(folder: Path, split_in: Callable[[str], str | None]) -> dict[str, "Dataset"]:
    """Return the tables of a folder whose files are texts by class, by their splits; none of any other folder.

    The files end in `.txt`, or in nothing. Their folder is the label, `pos/1.txt`, and one above it may say the split,
    `train/pos/1.txt`; without one, it is `train`. A table has the columns `id`, which is the file, `text` and `label`.

    Args:
        folder: The folder.
        split_in: Returns the split that a name says.

    Raises:
        ValueError: If a file is not a text.
    """
    classes = _classes_in(folder)
    labelled = {at: files for at, files in classes.items() if at.name.casefold() not in WITHOUT_LABEL}
    # Beside `train/pos`, texts in `test` have no label.
    deepest = max((len(at.parts) for at in labelled), default=0)
    labelled = {at: files for at, files in labelled.items() if len(at.parts) == deepest or not split_in(at.name)}
    if len({at.name for at in labelled}) < 2 or len({len(at.parts) for at in labelled}) > 1:
        return {}
    are_splits = sum(at.name.isalpha() and split_in(at.name) is not None for at in labelled) > 1
    # One file in each is a list of texts, as in `en/texts.txt`; and those in `train` and `test` have no class.
    if are_splits or all(len(files) == 1 for files in labelled.values()):
        return {}
    found: dict[str, list[Path]] = {}
    for at, files in labelled.items():
        above = at.relative_to(folder).parts[:-1]
        split = next((split for name in reversed(above) if (split := split_in(name)) is not None), "train")
        found.setdefault(split, []).extend(files)
    if left_out := [str(at) for at in classes if at not in labelled]:
        logger.warning("%s: these texts have no label, and are left out: read them by themselves.", ", ".join(left_out))
    return {split: _table(files, folder) for split, files in found.items()}


def _table(files: list[Path], folder: Path) -> "Dataset":
    return as_table(
        {
            "id": [path.relative_to(folder).as_posix() for path in files],
            "text": [decoded(path).replace("\r\n", "\n").strip() for path in files],
            "label": [path.parent.name for path in files],
        }
    )


def _classes_in(folder: Path) -> dict[Path, list[Path]]:
    """Return the folders below one that have no folders in them, with their files.

    There are none if a file is not a text, or a table lies beside a folder.
    """
    found: dict[Path, list[Path]] = {}
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "_")))
        names = sorted(name for name in names if not name.startswith((".", "_")))
        names = [name for name in names if name.casefold() not in OF_SYSTEMS]
        files = [Path(place, name) for name in names if Path(name).stem.casefold() not in ABOUT]
        if folders and any(path.suffix.casefold() in TABLES for path in files):
            return {}  # those are the data, and the texts what they were made of
        if folders or not files:
            continue
        if any(path.suffix.casefold() not in ENDINGS for path in files):
            return {}
        found[Path(place)] = files
    return found
