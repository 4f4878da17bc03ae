"""Which likelihood suits the data and the network."""

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import numpy as np
from torch import Tensor, nn

from bayeslora.contracts import ArgumentError, Kind, suggestions
from bayeslora.networks import vocabulary
from bayeslora.tasks import LIKELIHOODS, Classification, Likelihood, Observation
from bayeslora.tasks.checking import check_present, is_missing
from bayeslora.tasks.labels import RawLabels
from bayeslora.tasks.spelling import MOST_SHOWN, is_number, name_of
from bayeslora.tasks.token_classification import is_per_token
from bayeslora.types import LabelColumn, LabelValues, Tokenizer

if TYPE_CHECKING:
    Given: TypeAlias = Likelihood | str | Callable[..., Any] | None
else:
    _name = Kind("its name in bayeslora.LIKELIHOODS", lambda value: isinstance(value, str))
    _function = Kind("a function of logits and labels", lambda value: callable(value) and not isinstance(value, type))
    Given: TypeAlias = Likelihood | Annotated[Any, _name] | Annotated[Any, _function] | None
"""What `fit(likelihood=…)` takes."""


def asked(given: Given) -> type[Likelihood] | None:
    """Return the kind of likelihood that was asked for; None if it is to be inferred.

    Raises:
        ValueError: If no likelihood has that name.
    """
    if given is None or isinstance(given, Likelihood):
        return None if given is None else type(given)
    if not isinstance(given, str):
        return Observation
    if given not in LIKELIHOODS:
        raise ArgumentError(
            f"likelihood={given!r} is not known. Likelihoods: {', '.join(LIKELIHOODS)}; or an instance, or a callable."
            f"{suggestions([given], list(LIKELIHOODS))}"
        )
    return LIKELIHOODS[given]


WAYS = "likelihood='classification' for classes, 'ordinal' for classes in order, such as stars, or 'regression'"
"""What whole numbers may be."""


def expected(
    given: Given, model: nn.Module | None, columns: Sequence[str], labels: RawLabels | None
) -> type[Likelihood] | None:
    """Return the kind of the labels as far as it can be told before the network is run, for reading them.

    Args:
        given: What was asked for.
        model: The network; None if it is to be loaded by name.
        columns: Names of the data's columns; `text` stands for texts that still have to be turned into tokens.
        labels: The labels, if they are available.

    Raises:
        ValueError: If labels are whole numbers written as others, or real numbers written as texts, and a model would
            have to be loaded for one of the things that they may be.
    """
    kind = asked(given)
    if kind is not None:
        return kind
    if model is not None and (own := next((kind for kind in LIKELIHOODS.values() if kind.is_of(model)), None)):
        return own
    if model is None and labels is not None and (labels.are_whole_floats or _are_real_texts(labels)):
        check_present(labels.data, labels.plain)
        raise not_told(labels)
    known = () if labels is None else (labels[row] for row in range(len(labels)))
    label = next((each for each in known if not is_missing(each)), None)
    label = label[0] if label is not None and labels is not None and labels.are_real_column else label
    kind = suggested(columns, [label] if label is not None else None)
    if kind.one_of is not None and labels is not None:
        one_each = labels.are_one_each and len({each[0] for each in labels.plain}) > 1
        if labels.are_one_hot or one_each or (model is None and labels.are_column):
            return kind.one_of
    return kind


def _are_real_texts(labels: RawLabels) -> bool:
    """Whether all labels are texts that are numbers, not all of them whole, and no classes are declared."""
    values = labels.plain
    if labels.names is not None or not isinstance(values, list):
        return False
    return all(isinstance(value, str) and is_number(value) for value in values) and not all(
        float(value).is_integer() for value in values
    )


def not_told(labels: RawLabels) -> ValueError:
    """The error about labels that may be classes or real numbers."""
    first = [value for value in dict.fromkeys([*labels.plain[:100]]) if value == value]
    are_texts = isinstance(labels.plain, list)
    few = [repr(value) if are_texts else name_of(value) + ".0" for value in first[:MOST_SHOWN]]
    shown = ", ".join(few + ["…"] * (len(first) > MOST_SHOWN))
    what = "real numbers written as texts" if are_texts else "whole numbers written as real ones"
    return ValueError(f"{labels.data}: the labels in {labels.name!r} are {what} ({shown}): say what they are, {WAYS}.")


def suggested(columns: Sequence[str], labels: LabelColumn | None) -> type[Likelihood]:
    """Return the kind that the data suggests before there is a model, by its columns and its first label."""
    label = labels[0] if labels is not None and len(labels) else None
    # The newest first: the user's own kinds take precedence over the library's.
    kinds = reversed(LIKELIHOODS.values())
    return next((kind for kind in kinds if kind.suggested_by(columns, label)), Classification)


def labelled_by_inputs(model: nn.Module) -> type[Likelihood] | None:
    """Return the kind for which a model's inputs can serve as labels if there are no others; None if there is none."""
    return next((kind for kind in LIKELIHOODS.values() if kind.inputs_are_labels and kind.is_of(model)), None)


def inferred(model: nn.Module, logits: Tensor, labels: Tensor) -> type[Likelihood]:
    """Return the kind that suits a model, given the outputs and labels of a few examples: their shapes and types.

    Raises:
        ValueError: If none fits.
    """
    for kind in reversed(LIKELIHOODS.values()):
        if kind.fits(model, logits, labels):
            return kind
    if is_per_token(logits, labels) and logits.shape[-1] == vocabulary(model):
        raise ValueError(
            f"{type(model).__name__} has a logit for each of {logits.shape[-1]} tokens, and nothing says which token "
            "they are about: pass likelihood='causal_lm' for the next one, 'seq2seq_lm' for the one at the same place, "
            "or 'token_classification' for classes of tokens."
        )
    raise ValueError(
        f"No likelihood is known for outputs {tuple(logits.shape)} and labels {tuple(labels.shape)} of {len(logits)} "
        "examples: pass likelihood=…."
    )


def make(
    given: Given,
    model: nn.Module,
    logits: Tensor,
    labels: Tensor,
    values: LabelValues | None,
    tokenizer: Tokenizer | None,
) -> Likelihood:
    """Make the likelihood that was asked for, or the one that fits; copy an instance of the user's.

    Args:
        given: What was asked for.
        model: The network.
        logits: What it returns for the first examples.
        labels: Their labels.
        values: Labels of all examples, as many as are available.
        tokenizer: The data's tokenizer, if there is one.
    """
    if isinstance(given, Likelihood):
        return copy.deepcopy(given)
    if given is not None and not isinstance(given, str):
        return Observation(copy.deepcopy(given))
    kind = asked(given) or inferred(model, logits, labels)
    return kind.fitting(logits, values if values is not None else np.asarray(labels.cpu()), tokenizer)
