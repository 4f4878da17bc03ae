"""Numbers that sum up sets of labels, by name."""

import numpy as np

from bayeslora.metrics import FloatArray

SHOWN_FREQUENCIES = 10
"""Classes whose frequencies a predictive check compares."""

Names = tuple[str, ...] | None
"""Names of the classes, if they are known."""


def summed(labels: np.ndarray, observed: np.ndarray, class_names: Names = None) -> dict[str, FloatArray]:
    """Return the frequencies of classes, where labels are whole numbers, and otherwise mean, sd and quantiles.

    Args:
        labels: Sets of labels, `[set, row, …]`.
        observed: The labels of the data, `[row, …]`, which decide about the classes that are looked at.
        class_names: Names of the classes, or None.

    Returns:
        Name to value, `[set]`.
    """
    whole = np.issubdtype(observed.dtype, np.integer)
    return frequencies(labels, observed, class_names) if whole else moments(labels)


def names_of(class_names: Names, count: int) -> tuple[str, ...]:
    """Return the names of the classes, or their numbers if they have none."""
    return class_names or tuple(str(index) for index in range(count))


def frequencies(labels: np.ndarray, observed: np.ndarray, class_names: Names = None) -> dict[str, FloatArray]:
    """Return the share of each class among labels, `[set]` of `[set, row]`: of the ten most frequent in the data."""
    count = len(class_names) if class_names else int(observed.max(initial=0)) + 1
    names = names_of(class_names, count)
    counts = np.bincount(observed.ravel(), minlength=count)
    looked_at = range(count) if count <= SHOWN_FREQUENCIES else np.argsort(-counts, kind="stable")[:SHOWN_FREQUENCIES]
    return {f"frequency of {names[index]}": (labels == index).mean(-1) for index in looked_at}


def moments(labels: FloatArray) -> dict[str, FloatArray]:
    """Return mean, sd and quantiles of labels, `[set]` of `[set, row]`; of several numbers a row, of each."""
    if labels.ndim > 2:
        columns = labels.reshape(*labels.shape[:2], -1)
        each = {f" of {index}": moments(columns[..., index]) for index in range(columns.shape[-1])}
        return {name + which: value for which, found in each.items() for name, value in found.items()}
    quantiles = {f"{q:.0%} quantile": np.quantile(labels, q, axis=-1) for q in (0.05, 0.5, 0.95)}
    return {"mean": labels.mean(-1), "sd": labels.std(-1), **quantiles}
