"""How much rows count in a fit: weights of rows, and of classes."""

import contextlib
import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from bayeslora.contracts import ArgumentError, Weight
from bayeslora.data import Source, apart
from bayeslora.data import Weight as RowWeights
from bayeslora.hashing import hashed
from bayeslora.isolation import seeded
from bayeslora.metrics import FloatArray
from bayeslora.tasks import Likelihood
from bayeslora.tasks.classes import Classes
from bayeslora.types import IGNORED, Data

logger = logging.getLogger(__name__)

ClassWeights: TypeAlias = Literal["balanced"] | Mapping[str | float | bool, Weight] | Sequence[Weight]
"""How much classes count: by name, in their order, or inversely to how frequent they are."""


def weigh(
    source: Source,
    rows: np.ndarray | None,
    classes: ClassWeights | None,
    known: Classes | None,
    likelihood: Likelihood,
) -> Source:
    r"""Return training data whose rows have weights.

    A row counts by the product of its own weight and that of its class, over the mean of this product: with weights
    $w_i$ of mean 1, the loss is

    $$-\frac1n \sum_i w_i \, E_q[\ln p(y_i \mid x_i)] + \frac1n \mathrm{KL}(q \,\|\, p),$$

    n being the number of rows, as without weights. Where labels are tokens, classes weigh tokens, over the mean of all
    observed ones.

    Args:
        source: The training data.
        rows: Weights of rows, `[row]`.
        classes: Weights of classes.
        known: The classes, if they have names.
        likelihood: Labels given logits.

    Raises:
        ValueError: If weights do not fit, or rows cannot be read by number.
    """
    likelihood.token_weights = None  # of another fit with the same likelihood
    if rows is None and classes is None:
        return source
    what = "class_weights" if rows is None else "weight"
    if source.is_stream or source.loader is not None:
        kind = "stream" if source.is_stream else "DataLoader"
        raise ArgumentError(f"{what}: data is a {kind}, whose rows cannot be weighed: give a dataset.")
    if rows is not None and len(rows) != len(source):
        raise ArgumentError(f"weight has {len(rows)} numbers, and data {len(source)} rows: give one for each row.")
    weights = np.ones(len(source)) if rows is None else rows
    if classes is not None:
        if not likelihood.weighs_classes:
            raise ArgumentError(
                f"class_weights: labels of {likelihood.name!r} are not of one class each: weigh the rows, weight=…."
            )
        labels = _labels(source)
        flat = np.concatenate([np.ravel(each) for each in labels]).astype(np.int64)  # truth values are places
        numbers = _numbers(classes, flat[flat != IGNORED], known, likelihood)
        if np.ndim(labels[0]):
            mean = numbers[flat[flat != IGNORED]].mean()
            likelihood.token_weights = torch.as_tensor(numbers / mean)
        else:
            weights = weights * numbers[flat]
    if not weights.any():
        raise ArgumentError(f"{what}: every row has the weight 0: give some more.")
    logger.info(
        "Rows count between %.3g and %.3g times, over their mean.", *(weights.min(), weights.max()) / weights.mean()
    )
    return source.weighing(weights)


def as_in_fit(
    posterior: Any, data: Data, weight: RowWeights | None, classes: ClassWeights | None
) -> tuple[Source, "Counted"]:
    """Return training data with the weights that its rows had in the fit, and these with those of classes of tokens.

    Raises:
        ValueError: If none are given and the fit had some, or they do not fit.
    """
    rest, rows = apart(data, weight, "data")
    source: Source = posterior._source(rest)
    if posterior.weighted and rows is None and classes is None:
        raise ValueError(
            "Rows had weights in the fit, and the posterior that it claims is given those: pass weight=… or "
            "class_weights=…, as fit had them."
        )
    source.check_labels()
    names = posterior.class_names
    known = Classes(names, posterior.columns.by_index) if names else None
    likelihood = copy.copy(posterior.program.likelihood)
    source = weigh(source, rows, classes, known, likelihood)
    shares = 1.0 if source.weights is None else source.weights / source.weights.mean()
    return source, Counted(shares, likelihood.token_weights)


def digest_of_labels(source: Source) -> str | None:
    """Return a digest of all labels, whatever the order of the rows; None where they are not at hand, or no numbers."""
    labels = source.labels
    if labels is None or labels.dtype.kind not in "biuf":
        return None
    rows = labels.astype(np.float32).reshape(len(labels), -1)  # as which a fit may have read real numbers
    return hashed(np.sort(rows.view(f"S{rows.itemsize * rows.shape[1]}"), axis=0).tobytes())


def of_another_fit(posterior: Any, source: Source) -> str | None:
    """Return what data has, in words, that the data of a fit had not; None if nothing tells them apart."""
    rows, fitted_on = len(source), posterior.program.stacks.num_examples
    if rows != fitted_on:
        return f"{'1 row' if rows == 1 else f'{rows} rows'}, and the fit had {fitted_on}"
    if posterior.labels_seen not in (None, digest_of_labels(source)):
        return "other labels than the fit had"
    return None


class Counted(NamedTuple):
    """How much of the log-likelihood of labels a fit has seen.

    Args:
        rows: Weights of rows, `[row]`, or 1.
        tokens: Weights of classes where labels are tokens, `[class]`; None for 1.
    """

    rows: np.ndarray | float
    tokens: Tensor | None

    def terms(self, prediction: Any, labels: np.ndarray) -> FloatArray:
        """Return log-likelihoods of labels by these weights, `[draw, example]`."""
        if self.tokens is None:
            return np.asarray(self.rows * prediction.log_likelihood(labels))
        each = self.tokens.cpu().double().numpy()[labels] * prediction.row_log_likelihood(labels)
        return np.asarray(self.rows * prediction.rows.by_example(each))


@contextlib.contextmanager
def weighing_tokens(likelihood: Likelihood, weights: Tensor | None) -> Iterator[None]:
    """Let classes of tokens count by these weights, `[class]`, and afterwards as before."""
    before = likelihood.token_weights
    likelihood.token_weights = weights
    try:
        yield
    finally:
        likelihood.token_weights = before


def _labels(source: Source) -> list[np.ndarray]:
    """Return the labels of all rows, `[row]` or `[row, token]`."""
    found = source.label_rows()
    if found is None:  # rows that are computed one by one
        with seeded(0):
            found = [label for batch in source.batches(64) for label in batch["labels"]]
    return [np.asarray(label) for label in found]


def _numbers(classes: ClassWeights, labels: np.ndarray, known: Classes | None, likelihood: Likelihood) -> np.ndarray:
    """Return the weights of the classes in their order, `[class]`."""
    count = likelihood.num_classes
    names = known.names if known else tuple(map(str, range(count)))
    if isinstance(classes, str):
        counts = np.bincount(labels, minlength=count)
        return np.where(counts > 0, len(labels) / np.maximum(counts, 1) / max((counts > 0).sum(), 1), 0.0)
    if not isinstance(classes, Mapping):
        if len(classes) != count:
            raise ArgumentError(
                f"class_weights has {len(classes)} numbers, and there are {count} classes, {', '.join(names)}: give "
                "one for each, in this order."
            )
        return np.asarray(classes, dtype=np.float64)
    by_name = known or Classes(names)
    places = {name: by_name.place(str(name)) for name in classes}
    if unknown := [name for name, place in places.items() if place is None]:
        raise ArgumentError(
            f"class_weights: there is no class {', '.join(map(repr, unknown))}, only {', '.join(map(repr, names))}."
        )
    weights = np.ones(count)
    for name, place in places.items():
        weights[place] = classes[name]
    return weights
