"""Labels that are first and last tokens: those that are none of a row's are found before training, named by row."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bayeslora.data import checks, labelling
from bayeslora.data.forms import Arrays
from bayeslora.tasks.checking import rows_said


def check_stored(data: str, rows: Any, labels: Any, are_places: bool) -> None:
    """Raise a ValueError if a label of stored rows is a place beyond the row's tokens, or ends before it starts.

    Args:
        data: What to call the data.
        rows: The dataset.
        labels: The labels of all rows.
        are_places: Whether the labels are places of tokens.
    """
    for start, lengths in _lengths(data, rows) if are_places else ():
        places = labelling.array(labels)[start : start + len(lengths)]
        _check(data, places, lengths, np.arange(start, start + len(lengths)))


def check_batch(
    data: str, batch: Mapping[str, Any], are_places: bool, numbers: Sequence[int] | None = None, of: str = ""
) -> None:
    """Raise a ValueError if a label of a batch is none of its row's tokens; see `checks.check_batch`."""
    lengths = _of_columns(batch) if are_places else None
    if lengths is not None:
        rows = np.arange(len(lengths)) if numbers is None else np.asarray(numbers)
        _check(f"{data}{of}", labelling.array(batch["labels"]), lengths, rows)


def _lengths(data: str, rows: Any) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the number of the first of some rows, and how many tokens each of them has."""
    if isinstance(rows, Arrays):
        if (lengths := _of_columns(rows.columns)) is not None:
            yield 0, lengths
        return
    for start, columns in checks.stored_columns(data, rows, lambda name: name == checks.TOKENS[0]) or ():
        if checks.TOKENS[0] in columns:
            yield start, columns[checks.TOKENS[0]].lengths


def _of_columns(columns: Mapping[str, Any]) -> np.ndarray | None:
    """Return how many tokens each row has, up to the last that its mask lets the network see."""
    tokens, mask = columns.get(checks.TOKENS[0]), columns.get(checks.MASK)
    if tokens is None or tokens.dim() != 2:
        return None
    lengths = np.full(len(tokens), tokens.shape[1])
    if mask is None or mask.shape != tokens.shape:
        return lengths
    return lengths - mask.cpu().numpy().astype(bool)[:, ::-1].argmax(1)


def _check(data: str, places: np.ndarray, lengths: np.ndarray, numbers: np.ndarray) -> None:
    if places.ndim != 2 or len(places) != len(lengths):  # which the likelihood refuses
        return
    beyond = np.flatnonzero((places >= lengths[:, None]).any(1))
    if len(beyond):
        raise ValueError(
            f"{data}: a label is the place {int(places[beyond[0]].max())}, beyond the {int(lengths[beyond[0]])} tokens "
            f"of 'input_ids', in {rows_said(numbers[beyond])}: cut texts so that their answers stay, or give such rows "
            "the place of the first token, 0, which stands for no answer."
        )
    backwards = np.flatnonzero(places[:, -1] < places[:, 0])
    if len(backwards):
        start, *_, end = places[backwards[0]].tolist()
        raise ValueError(
            f"{data}: a label ends at token {end}, before it starts, at token {start}, in "
            f"{rows_said(numbers[backwards])}: give the places of the answer's first token and of its last, in this "
            "order, or 0 twice for no answer."
        )
