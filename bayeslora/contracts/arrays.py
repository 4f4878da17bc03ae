"""Arrays as arguments: what they hold, and how their shapes fit each other."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from bayeslora.contracts.door import ArgumentError
from bayeslora.contracts.kinds import Kind


def _array(least_dims: int = 1, most_dims: int | None = None, finite: bool = False) -> Callable[[Any], bool]:
    """Return a test whether a value is an array of numbers; a finite one also has to have some."""

    def holds(value: Any) -> bool:
        try:
            array = np.asarray(value)
        except Exception:  # of numpy, or of whatever the value is
            return False
        if array.dtype.kind not in "biuf" or not least_dims <= array.ndim <= (most_dims or array.ndim):
            return False
        return not finite or (array.size > 0 and bool(np.isfinite(array).all()))

    return holds


def _are_probabilities(value: Any) -> bool:
    if not _array(2, 2, finite=True)(value):
        return False
    array = np.asarray(value)  # a tensor's own minimum takes other arguments
    return bool(0 <= array.min() <= array.max() <= 1.001)  # rounding in single precision may go beyond 1


if TYPE_CHECKING:
    Numbers: TypeAlias = ArrayLike
    Finite: TypeAlias = ArrayLike
    Logits: TypeAlias = ArrayLike
    Probabilities: TypeAlias = ArrayLike
    Draws: TypeAlias = ArrayLike
    LabelArray: TypeAlias = np.ndarray
else:
    _some = _array()
    _numbers = Kind("an array of numbers", lambda value: _some(value) and np.shape(value)[-1] > 0)
    Numbers: TypeAlias = Annotated[Any, _numbers]
    Finite: TypeAlias = Annotated[Any, Kind("an array of finite numbers", _array(finite=True))]
    Logits: TypeAlias = Annotated[Any, Kind("an array of finite numbers, [draw, example, class]", _array(3, 3, True))]
    Probabilities: TypeAlias = Annotated[Any, Kind("probabilities, [example, class]", _are_probabilities)]
    Draws: TypeAlias = Annotated[Any, Kind("an array of numbers, with two or more dimensions", _array(2))]
    _labels = Kind("an array of labels, np.asarray(…)", lambda v: isinstance(v, np.ndarray) and v.dtype.kind in "biuf")
    LabelArray: TypeAlias = Annotated[Any, _labels]


def check_labels(arguments: Mapping[str, Any]) -> None:
    """Refuse labels that are not one class for each example of probabilities or logits."""
    name = next(name for name in ("probs", "logits", "values") if name in arguments)
    labels, shape = np.asarray(arguments["labels"]), np.shape(arguments[name])
    if labels.shape != shape[-2:-1]:
        raise ArgumentError(f"labels has shape {labels.shape}, and {name} {shape}: give a label for each example.")
    if labels.dtype.kind == "f":
        raise ArgumentError(f"labels are real numbers, {labels.dtype}: give whole ones, labels.astype(int).")
    if labels.min() < 0 or labels.max() >= shape[-1]:
        raise ArgumentError(
            f"labels range from {labels.min()} to {labels.max()}: give whole numbers from 0 to {shape[-1] - 1}."
        )


def fitting_labels(labels: np.ndarray, shape: tuple[int, ...], what: str, most: int | None = None) -> np.ndarray:
    """Return the labels of a prediction as numbers of its kind.

    Args:
        labels: The labels.
        shape: The shape that they have to have.
        what: What each row has, for the message.
        most: The largest of whole numbers from 0; None for any real numbers.

    Raises:
        ArgumentError: If they have another shape, or are not such numbers.
    """
    if np.ma.is_masked(labels):
        raise ArgumentError("labels is a masked array: give labels of all rows, or predict only those that have one.")
    if labels.shape != shape:
        raise ArgumentError(
            f"labels has shape {labels.shape}, and this prediction takes {shape}: give {what} of each of its rows."
        )
    with np.errstate(invalid="ignore"):
        fit = np.isfinite(labels) if most is None else (labels >= 0) & (labels <= most) & (labels % 1 == 0)
    if not fit.all():
        place = tuple(int(index) for index in np.argwhere(~fit)[0])
        numbers = "finite numbers" if most is None else f"whole numbers from 0 to {most}"
        raise ArgumentError(f"labels{[*place]} is {labels[place]}: give {numbers}.")
    return _native(labels, whole=most is not None)


def _native(labels: np.ndarray, whole: bool) -> np.ndarray:
    """Return numbers as torch takes them: in this machine's order of bytes, one after another, of a type it has."""
    kind, size = labels.dtype.kind, labels.dtype.itemsize
    if whole or kind in "bi" or (kind == "u" and size < 8):
        return np.ascontiguousarray(labels, np.int64)
    return np.ascontiguousarray(labels, f"f{size}" if kind == "f" and size < 8 else np.float64)


def check_broadcast(arguments: Mapping[str, Any]) -> None:
    """Refuse arrays whose shapes do not broadcast."""
    (name, first), (other, second) = arguments.items()
    try:
        np.broadcast_shapes(np.shape(first), np.shape(second))
    except ValueError:
        raise ArgumentError(f"{name} has shape {np.shape(first)}, and {other} {np.shape(second)}.") from None


def check_lengths(arguments: Mapping[str, Any]) -> None:
    """Refuse arrays of different shapes."""
    (name, first), (other, second) = list(arguments.items())[:2]
    if np.ndim(first) != 1 or np.shape(first) != np.shape(second):
        raise ArgumentError(
            f"{name} has shape {np.shape(first)}, and {other} {np.shape(second)}: give a number for each example."
        )
