"""Tables that are saved with a posterior: rows to decide by, how its dial was set, and densities of rows."""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayeslora.decisions import HeldOut
from bayeslora.record import HeldOutRecord, Record

ROUNDING = 1e-6

RANGES = {
    **dict.fromkeys(
        ("conformity/lac", "conformity/aps", "conformity/least", "uncertainty/maximum_probability"), (0, 1)
    ),
    "conformity/scaled": (0, math.inf),
}
"""The least and the most that columns of held-out rows hold, but for rounding."""


def state(posterior: Any) -> dict[str, Tensor]:
    """Return the tables of a posterior as tensors, column by column."""
    columns: dict[str, np.ndarray] = {}
    if posterior.held_out is not None:
        columns |= {f"held_out/{name}": value for name, value in posterior.held_out.columns.items()}
    if posterior.tuning is not None:
        columns |= posterior.tuning.columns()
    return {name: torch.from_numpy(np.array(value, dtype=np.float64)) for name, value in columns.items()}


def record(posterior: Any) -> dict[str, Any]:
    """Return what the record says of the tables; nothing of those that are not there."""
    held_out, tuning = posterior.held_out, posterior.tuning
    found: dict[str, Any] = {}
    if held_out is not None:
        found["held_out"] = {"columns": list(held_out.columns), **held_out.made}
    return found | ({} if tuning is None else {"tuning": tuning.record()})


def held_out(tensors: Mapping[str, Tensor], record: Record) -> HeldOut | None:
    """Return the held-out rows of a saved posterior; None if there are none.

    Raises:
        ValueError: If their columns are not those that predictions write.
    """
    saved = record.get("held_out")
    if saved is None:
        return None
    columns = {name: tensors[f"held_out/{name}"].numpy() for name in saved["columns"]}
    for name, values in columns.items():
        if not re.fullmatch(r"wrong|(uncertainty|conformity)/\w+", name) or len(values) == 0:
            raise ValueError(f"'held_out/{name:.100}' is not a column of held-out rows, or is empty")
        if name == "wrong" and not np.isin(values, (0, 1)).all():
            raise ValueError("'held_out/wrong' holds other numbers than 0 and 1")
        low, high = RANGES.get(name, (-math.inf, math.inf))
        if not ((values >= low - ROUNDING) & (values <= high + ROUNDING)).all():
            raise ValueError(f"'held_out/{name}' holds {values[np.abs(values - 0.5).argmax()]:g}: give {low} to {high}")
    if not columns:
        raise ValueError("held_out has no columns")
    made = {name: value for name, value in saved.items() if name in HeldOutRecord.__annotations__ and name != "columns"}
    return HeldOut(columns, made)
