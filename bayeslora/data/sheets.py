"""Tables in spreadsheets, by pandas."""

import logging
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayeslora.data.delimited import without_end
from bayeslora.data.packed import check_archive
from bayeslora.data.tidying import MOST_ABOVE, are_names

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

PACKAGES = {".xlsx": "openpyxl", ".xls": "xlrd", ".ods": "odfpy"}
"""What pandas reads spreadsheets with."""

WITHOUT_NAME = "Unnamed: "
"""How pandas calls columns that have no name."""


def first(path: Path, sheet: str | int = 0) -> "pd.DataFrame":
    """Return the table of a sheet, the first one by default, without lines above the names of its columns.

    Raises:
        ValueError: If it cannot be read, or holds far more than its size lets expect.
        ImportError: If pandas lacks the package for it.
    """
    import pandas as pd

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as packed:
            check_archive(packed, packed.namelist(), path)
    how: dict[str, Any] = {"sheet_name": sheet, "keep_default_na": False, "na_values": [""]}
    try:
        table = pd.read_excel(path, **how)
    except ImportError:
        package = PACKAGES[path.suffix.lower()]
        raise ImportError(f"{path}: reading this file needs the package {package}: pip install {package}") from None
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a spreadsheet that can be read: {error}") from None
    if (place := _head(table)) is not None:
        logger.warning(
            "%s: %d row(s) above the names of the columns, %s, are left out.",
            *(path, place + 1, ", ".join(map(str, table.iloc[place].dropna()))),
        )
        table = pd.read_excel(path, **how, skiprows=place + 1)
    if sheet == 0 and (others := _names(path)[1:]):
        logger.warning(
            "%s has other sheets, %s, which are not read: save one as a file to read it.", path, ", ".join(others)
        )
    table = without_end(table)
    table.attrs["file"] = str(path)
    return table


def splits(path: Path, split_in: Callable[[str], str | None]) -> dict[str, str]:
    """Return the sheets of a file by their splits; none unless each says another, and one is `train`.

    Args:
        path: The file.
        split_in: Returns the split that a name says.
    """
    sheets = _names(path)
    found = {split: sheet for sheet in sheets if (split := split_in(sheet)) is not None}
    return found if len(found) == len(sheets) and "train" in found else {}


def _names(path: Path) -> list[str]:
    """Return the names of a file's sheets; none if they cannot be read."""
    import pandas as pd

    with suppress(Exception), pd.ExcelFile(path) as book:
        return [*map(str, book.sheet_names)]
    return []


def _head(table: "pd.DataFrame") -> int | None:
    """Return the row with the names of the columns, where pandas took a title above it for them; None elsewhere."""
    if sum(not str(name).startswith(WITHOUT_NAME) for name in table.columns) > 1 or table.shape[1] < 2:
        return None
    for place in range(min(len(table), MOST_ABOVE)):
        cells = table.iloc[place].dropna().tolist()
        if len(cells) > 1:
            return place if all(isinstance(cell, str) for cell in cells) and are_names(cells) else None
    return None
