"""Classes as users of scikit-learn have them, and where a posterior has their probabilities."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.utils import compute_sample_weight

from bayeslora.contracts import ArgumentError
from bayeslora.data import weighing
from bayeslora.metrics import FloatArray
from bayeslora.tasks import choosing
from bayeslora.tasks.checking import check_present
from bayeslora.tasks.classes import Classes
from bayeslora.tasks.labels import RawLabels
from bayeslora.tasks.spelling import is_number, name_of


class Outcomes:
    """The classes of a column of labels.

    Args:
        y: The labels as they were given, which may declare an order of their classes, as ordered categories do.
        column: The same as an array.

    Attributes:
        classes: The classes, sorted.
        names: Their names; None of numbers from 0 and of truth values, which are places.

    Raises:
        ValueError: If a label is missing, or there is one class only.
    """

    def __init__(self, y: Any, column: np.ndarray):
        check_present("y", y if isinstance(y, list | tuple) else column)  # among words, an array has NaN as a word
        self.classes = np.unique(column)
        if len(self.classes) < 2:
            raise ValueError(f"y has one class, {self.classes.tolist()[0]!r}: a classifier needs two or more.")
        self.names: tuple[str, ...] | None = None
        self.is_ordered = True
        kind = self.classes.dtype.kind
        if kind == "b" or (kind in "iu" and np.array_equal(self.classes, np.arange(len(self.classes)))):
            return
        self.names = tuple(each if isinstance(each, str) else name_of(each) for each in self.classes.tolist())
        if all(map(is_number, self.names)):
            self.order = tuple(sorted(self.names, key=float))
            return
        dtype = getattr(y, "dtype", None)
        self.is_ordered = bool(getattr(dtype, "ordered", False))
        declared = [str(each) for each in getattr(dtype, "categories", ())] if self.is_ordered else []
        self.order = tuple(sorted(self.names, key=declared.index)) if {*self.names} <= {*declared} else self.names

    def labels(self, column: np.ndarray) -> Any:
        """Return labels as `fit` takes them: by the names of the classes, if they have any."""
        if self.names is None:
            return column
        return RawLabels([self.names[code] for code in np.searchsorted(self.classes, column)], "y", self.order, "y")

    def weights(self, class_weight: Any, column: np.ndarray) -> np.ndarray:
        """Return the weight of each label's class: as scikit-learn has it, or 1 for a class that is not named."""
        codes = np.searchsorted(self.classes, column)
        if isinstance(class_weight, Mapping):
            known = self.classes.tolist()
            unknown = [each for each in class_weight if each not in known]
            if unknown and not {*known} <= {*class_weight}:  # in a part of the data a class may be absent
                raise ArgumentError(
                    f"class_weight: y has no class {', '.join(map(repr, unknown))}, only {', '.join(map(repr, known))}."
                )
            own = np.array([class_weight.get(each, 1.0) for each in known], dtype=np.float64)
            return weighing.checked(own[codes], "class_weight")
        if not isinstance(class_weight, str) or class_weight != "balanced":
            raise ArgumentError(f"class_weight={class_weight!r:.60}: give a mapping from classes, 'balanced', or None.")
        return weighing.checked(compute_sample_weight(class_weight, codes), "class_weight")

    def check_order(self) -> None:
        """Raise an `ArgumentError` if ordered classes are words, whose order nothing says."""
        if self.names is not None and not self.is_ordered:
            raise ArgumentError(
                f"y has words, such as {self.names[0]!r}, and ordered classes need an order: give numbers, or declare "
                "it, pandas.Categorical(y, categories=[…], ordered=True)."
            )

    def probabilities(self, probs: FloatArray, known: Sequence[str] | None, by_index: bool) -> FloatArray:
        """Return a prediction's probabilities by the sorted classes, `[example, class]`.

        A model may have its outputs in another order. If it has more of them, the probabilities are those given that
        one of these classes is true.

        Args:
            probs: The probabilities, `[example, output]`.
            known: The names that the posterior has for the outputs.
            by_index: Whether whole numbers are places among these, and not names.
        """
        count = len(self.classes)
        places = list(range(count))
        if known is not None:
            values = self.classes if self.names is None else [*self.names]
            places = Classes(tuple(known), by_index).numbers(RawLabels(values)).astype(np.int64).tolist()
        chosen = probs[:, places]
        return chosen if probs.shape[1] == count else chosen / chosen.sum(1, keepdims=True)


def check_kind(likelihood: Any, of_classes: bool, whose: str) -> None:
    """Raise an `ArgumentError` if a kind of label of the library's is not one that an estimator takes.

    Args:
        likelihood: As `fit` takes it.
        of_classes: Whether the estimator takes one class for each example, and no numbers.
        whose: What to call the estimator.
    """
    kind = choosing.asked(likelihood)
    if kind is None or not kind.__module__.startswith("bayeslora.") or kind.needs_code:
        return
    if (kind.weighs_classes and not kind.labels_tokens) != of_classes:
        fitting = "'classification' or 'ordinal'" if of_classes else "'regression' or 'student_t'"
        raise ArgumentError(f"likelihood={kind.name!r} is not for a {whose}: give {fitting}, or None.")
