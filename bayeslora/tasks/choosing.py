"""Which likelihood data and a network ask for."""

import copy
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from bayeslora.tasks import LIKELIHOODS, Classification, Likelihood, Observation
from bayeslora.types import LabelColumn, LabelValues, Tokenizer

logger = logging.getLogger(__name__)

Given = Likelihood | str | Callable[..., Any] | None
"""What `fit(likelihood=…)` takes."""


def asked(given: Given) -> type[Likelihood] | None:
    """The kind that was asked for; None where it is to be inferred.

    Raises:
        ValueError: If there is none of that name.
    """
    if given is None or isinstance(given, Likelihood):
        return None if given is None else type(given)
    if not isinstance(given, str):
        return Observation
    if given not in LIKELIHOODS:
        raise ValueError(
            f"likelihood={given!r} is not known. Likelihoods: {', '.join(LIKELIHOODS)}; or an instance, or a callable."
        )
    return LIKELIHOODS[given]


def suggested(columns: Sequence[str], labels: LabelColumn | None) -> type[Likelihood]:
    """The kind that data alone suggest, before a model is at hand: its columns, and the first of its labels."""
    label = labels[0] if labels is not None and len(labels) else None
    # The newest first: a kind of the user's own goes before the library's.
    kinds = reversed(LIKELIHOODS.values())
    return next((kind for kind in kinds if kind.suggested_by(columns, label)), Classification)


def labelled_by_inputs(model: nn.Module) -> type[Likelihood] | None:
    """The kind for which a model's inputs can be the labels, where there are no others."""
    return next((kind for kind in LIKELIHOODS.values() if kind.inputs_are_labels and kind.is_of(model)), None)


def inferred(model: nn.Module, logits: Tensor, labels: Tensor) -> type[Likelihood]:
    """The kind for a model, and outputs and labels of a few examples of such shapes and types.

    Raises:
        ValueError: If none fits.
    """
    for kind in reversed(LIKELIHOODS.values()):
        if kind.fits(model, logits, labels):
            return kind
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
    """The likelihood asked for, or the one that fits; the user's own instance is copied.

    Args:
        given: What was asked for.
        model: The network.
        logits: What it returns for the first examples.
        labels: Their labels.
        values: Labels of all examples, as many as are at hand.
        tokenizer: The data's tokenizer, if there is one.
    """
    if isinstance(given, Likelihood):
        return copy.deepcopy(given)
    if given is not None and not isinstance(given, str):
        return Observation(copy.deepcopy(given))
    kind = asked(given) or inferred(model, logits, labels)
    likelihood = kind.fitting(logits, values if values is not None else np.asarray(labels.cpu()), tokenizer)
    logger.info("Likelihood: %s, %s.", likelihood.name, likelihood.config())
    return likelihood
