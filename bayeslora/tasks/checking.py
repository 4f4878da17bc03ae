"""What every kind of label and every form of data is checked for before it is used, with the number of the row."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

REPAIR = "Remove such rows, or fill them in"

HALF = re.compile(r"[\ud800-\udfff]")
"""Half of a character that UTF-16 writes as two."""


def rows_said(rows: Sequence[int] | np.ndarray) -> str:
    """Return how many rows there are, and the number of the first."""
    return f"{len(rows)} row(s), the first is row {int(rows[0])}"


def is_missing(value: Any) -> bool:
    """Return whether a value is None, NaN or one of pandas' missing values, or a sequence that has one."""
    if value is None:
        return True
    if isinstance(value, (float, np.floating)):
        return bool(value != value)
    if isinstance(value, (list, tuple)):
        return any(map(is_missing, value))
    if isinstance(value, np.ndarray) or hasattr(value, "detach"):
        array = np.asarray(value.detach().cpu()) if hasattr(value, "detach") else value
        return bool(np.isnan(array).any()) if array.dtype.kind == "f" else False
    return type(value).__name__ in ("NAType", "NaTType")


def as_tensor(value: Any) -> Tensor:
    """Return a tensor; of an array that PyTorch does not take, a copy.

    Such are arrays that must not be written to, as of a mapped file, that run backwards, or have the bytes of another
    machine.

    Raises:
        ValueError: If it has no numbers.
    """
    if isinstance(value, Tensor) and value.is_meta:
        raise ValueError("A tensor on the device 'meta' has a shape, and no numbers: give one on the CPU.")
    if isinstance(value, np.ndarray):
        own = np.float64 if value.dtype == np.longdouble else value.dtype.newbyteorder("=")
        value = value.astype(own, copy=False)
        backwards = any(stride < 0 for stride in value.strides)
        value = value.copy() if backwards or not value.flags.writeable else value
    return torch.as_tensor(value)


def check_texts(data: str, column: str, texts: Sequence[Any]) -> None:
    """Raise a ValueError unless all entries of a column are texts; an empty one is.

    Args:
        data: What to call the data.
        column: What to call the column.
        texts: Its entries.
    """
    odd = [(row, text) for row, text in enumerate(texts) if not isinstance(text, str)]
    if not odd:
        cut = [row for row, text in enumerate(texts) if not text.isascii() and HALF.search(text)]
        if cut:
            raise ValueError(
                f"{data}: {column} has half a character, as of an emoji that was cut, in {rows_said(cut)}: replace it, "
                "text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')."
            )
        return
    missing = [row for row, text in odd if is_missing(text)]
    if missing:
        raise ValueError(f"{data}: {column} is missing in {rows_said(missing)}. {REPAIR}.")
    text = odd[0][1]
    raise ValueError(
        f"{data}: {column} is not a text in {rows_said([row for row, _ in odd])}, where it is {text!r:.60}, of type "
        f"{type(text).__name__}: turn it into a text, str(…), or remove the row."
    )


def check_present(data: str, labels: Any, numbers: Sequence[int] | None = None) -> None:
    """Raise a ValueError if the label of a row is missing, None, NaN, or pandas' NA, or infinite.

    Args:
        data: What to call the data.
        labels: Its labels, an array or a list with an entry for each row.
        numbers: Numbers of the rows; None for 0, 1, ….
    """
    kind = getattr(getattr(labels, "dtype", None), "kind", "O")
    if hasattr(labels, "detach"):
        labels = labels.detach().cpu().numpy()
        kind = labels.dtype.kind
    if kind in "iubUS":
        return
    if kind == "f" and isinstance(labels, np.ndarray):
        endless = np.flatnonzero(np.isinf(labels.reshape(len(labels), -1)).any(1)).tolist() if len(labels) else []
        bad = np.isnan(labels.reshape(len(labels), -1)).any(1) if len(labels) else np.zeros(0)
        missing = np.flatnonzero(bad).tolist()
    else:
        missing = [row for row, label in enumerate(labels) if is_missing(label)]
        endless = [row for row, label in enumerate(labels) if isinstance(label, float) and math.isinf(label)]
    for rows, what in ((missing, "missing"), (endless, "infinite")):
        if rows:
            rows = rows if numbers is None else [numbers[row] for row in rows]
            raise ValueError(f"{data}: the label is {what} in {rows_said(rows)}. {REPAIR}.")


def check_rows(check: Callable[[Any], None], labels: Any, numbers: Sequence[int] | None = None, of: str = "") -> None:
    """Check labels, and name the first row whose label does not fit, if others do.

    Args:
        check: Raises a ValueError if something is wrong with the labels of any number of rows.
        labels: The labels, an array or a list with an entry for each row.
        numbers: Numbers of the rows; None for 0, 1, ….
        of: What to call the data.
    """
    try:
        check(labels)
        return
    except ValueError as error:
        failure = error

    def fails(start: int, end: int) -> bool:
        try:
            check(labels[start:end])
        except ValueError:
            return True
        return False

    low, high = 0, len(labels)  # the first row that fails is below `high`, and not below `low`
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fails(low, middle) else (middle, high)
    others = [row for row in (0, len(labels) // 2, len(labels) - 1) if row != low]
    if all(fails(row, row + 1) for row in others) or re.search(r"\brow \d", str(failure)):
        raise failure
    number = low if numbers is None else numbers[low]
    raise ValueError(f"{failure} The first label that does not fit is in row {number} of {of or 'the data'}.")
