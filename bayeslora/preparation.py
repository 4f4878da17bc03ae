"""Choose the likelihood, check the labels against it, and set where the outputs start, all before training."""

import logging

import numpy as np
import pyro
import torch
from torch import nn

from bayeslora.adapters import AdaptedNetwork, inspection
from bayeslora.data import Columns, Source, computed, said, to_device
from bayeslora.data.plain import Plain
from bayeslora.isolation import seeded
from bayeslora.methods import Method
from bayeslora.networks import base_logits, check_decoder_inputs, output_names
from bayeslora.tasks import Classification, Likelihood, choosing
from bayeslora.tasks.classes import Classes
from bayeslora.tasks.labels import RawLabels
from bayeslora.types import WEIGHTS, Batch

logger = logging.getLogger(__name__)

NUM_TO_SHIFT = 64
"""Examples by which the start of the outputs is set: the mean of 64 labels is within an eighth of their spread."""

LOOK_AHEAD = 0.25
"""Seconds for which rows are read that have to be computed, before training."""

FAR = 10
"""Distance of outputs from labels, in the likelihood's unit, that is hard to learn without a bias."""


def likelihood_for(
    given: choosing.Given, model: nn.Module, train: Source, method: Method
) -> tuple[Likelihood, inspection.Inspection, Batch]:
    """Return the likelihood asked for, or the one that fits the network's outputs and labels of the first examples.

    It is tried on those examples, so that errors come before training.

    Returns:
        The likelihood, what the network's pass over the examples showed, and the examples.
    """
    train.check_labels_given()
    batch = train.about(choosing.asked(given) or choosing.labelled_by_inputs(model)).first_batch()
    if "labels" not in batch:
        texts = train.reader.columns.text
        if len(texts) > 1:  # as of a text and its summary
            raise ValueError(
                f"The data has no label: {', '.join(texts)} are read as texts. If one of them is the label, name it, "
                f"such as label={texts[-1]!r}."
            )
        raise ValueError(
            f"The data has no labels, only {', '.join(batch)}: give a 'labels' or 'label' column, or (inputs, labels), "
            "or name the column, label=…."
        )
    batch = to_device(batch, next(model.parameters()).device)
    check_decoder_inputs(model, batch)
    seen = inspection.inspect(model, batch)
    logits = seen.logits
    labels = torch.as_tensor(batch["labels"])
    raw = train.raw
    if given is None and raw is not None and raw.are_whole_floats and logits.dim() == 2 and logits.shape[-1] > 1:
        raise choosing.not_told(raw)
    values = train.labels
    if train.reader.choices and values is not None:  # the last letter may be right nowhere
        values = np.append(values, max(train.reader.choices) - 1)
    likelihood = choosing.make(given, model, logits, labels, values, train.tokenizer)
    likelihood.check_labels(labels.cpu())
    of = f"Likelihood {likelihood.name!r} does not fit outputs {tuple(logits.shape)} and labels {tuple(labels.shape)}"
    try:
        with torch.no_grad(), pyro.validation_enabled(False):
            selected = likelihood.to(logits.device).select(logits, batch)
            log_prob = likelihood.log_prob(selected, labels)
    except RuntimeError as error:  # outputs are not about these rows
        raise ValueError(f"{of}: {' '.join(str(error).split()):.300}.") from error
    if log_prob.shape != (len(labels),):
        raise ValueError(f"{of}: it gives {tuple(log_prob.shape)} log-likelihoods for {len(labels)} examples.")
    if (doubt := likelihood.doubt(selected, seen.end)) is not None:
        logger.warning(
            "In evaluation mode, the %s returns what looks like %s. The likelihood %r takes logits, any real numbers, "
            "and would turn these into other probabilities: leave that out at the network's end.",
            *(type(model).__name__, doubt, likelihood.name),
        )
    if given is None and likelihood.name == "regression" and values is not None and np.isin(values, (0, 1)).all():
        logger.warning(
            "%s: all labels are 0.0 or 1.0, and are read as real numbers. If the one output of %s is a logit of yes or "
            "no, give them as a column, [example, 1]; if they are real numbers, pass likelihood='regression'.",
            *(train.name, type(model).__name__),
        )
    if method.approximation == "linear" and selected.dim() > 2:
        raise ValueError(
            f"{method.name!r} is for a number or a vector of logits per example, but {likelihood.name!r} has logits "
            f"{tuple(selected.shape)} for {len(labels)} examples: give another method."
        )
    return likelihood, seen, batch


def shift_outputs(
    network: AdaptedNetwork, likelihood: Likelihood, model: nn.Module, train: Source, batch_size: int
) -> None:
    """Shift the outputs of the head to the mean of the first labels, where what follows the head lets them through.

    Adam moves every weight at about the same rate. With labels around 3 and outputs around 0, all weights would push
    the outputs up at first and drive the layer below into saturation, and little would be learned afterwards.
    """
    layer = network.output_layer()
    if layer is None:
        return
    total, weight, count = 0.0, 0.0, 0
    first: tuple[Batch, torch.Tensor] | None = None
    for batch in train.weighted().batches(batch_size):
        batch = to_device(batch, network.device)
        weights = batch.pop(WEIGHTS, None)
        residuals = likelihood.residuals(base_logits(model, batch), batch)
        if residuals is None:
            return
        first = first or (batch, residuals)
        weights = torch.ones_like(residuals) if weights is None else weights
        total += (residuals * weights).sum().item()
        weight += weights.sum().item()
        count += len(batch["labels"])
        if count >= NUM_TO_SHIFT and weight > 0:
            break
    offset = total / weight
    if offset == 0 or first is None:
        return
    if layer.bias is not None:
        before = layer.bias.detach().clone()
        with torch.no_grad():
            layer.bias += offset
            rows, residuals = first
            left = likelihood.residuals(base_logits(network.model, rows), rows)
            moved = 0.0 if left is None else (residuals - left).mean().item()
            # An exponential function or a scale makes more of it, and a ReLU may make nothing.
            if not 0.5 <= moved / offset <= 1.5:
                layer.bias.copy_(before)
    elif abs(offset) > FAR * likelihood.unit:
        logger.warning(
            "Labels are %.3g above the outputs on average, many times their spread, and the head has no bias: subtract "
            "the labels' mean.",
            offset,
        )


def check_rows(source: Source | None) -> None:
    """Raise a ValueError unless data, if there is any, has labels that fit, and inputs that the network can read.

    Rows that have to be computed one by one are read for a moment; the rest is checked as it comes.
    """
    if source is None:
        return
    source.check_labels()
    with seeded(0):  # rows may be read with random changes
        source.look_ahead(LOOK_AHEAD)


def seen_in(
    data: Plain, asked: Columns, num_examples: int | None, only_texts: bool
) -> tuple[tuple[str, ...], RawLabels | None]:
    """Return the columns of training data, and labels that are known from a pass over rows that are computed.

    Args:
        data: The training data.
        asked: The columns that the user names.
        num_examples: Examples of a stream.
        only_texts: Whether labels that are numbers are not looked for: a network that is given has its outputs.

    Raises:
        ValueError: If a stream has to be read, and its number of examples is not known.
    """
    if data.labels is not None and (len(data.labels) or data.labels.names):
        return data.names, None
    names, labels = computed.seen(data.inputs, asked, num_examples, "data", only_texts)
    return data.names or names, labels


def number_labels(
    train: Source, model: nn.Module, kind: type[Likelihood] | None, seen: RawLabels | None = None
) -> Classes | None:
    """Number the labels of the training data, and return their classes; None if they are numbers without names.

    Args:
        train: The training data.
        model: The network.
        kind: The kind of the labels, as far as it can be told.
        seen: The labels, if they are known from a pass over rows that are computed.

    Raises:
        ValueError: If a label is missing, or the classes cannot be told.
    """
    kind = kind or Classification
    labels = seen if train.reader.decoder_inputs is None else None
    if labels is None:
        with seeded(0):  # rows may be read with random changes
            labels = train.all_labels()
    if labels is None:
        labels = RawLabels([], data=train.name)
    count = getattr(getattr(model, "config", None), "num_labels", None)
    if count is None and labels.are_whole and not _from_zero(labels):
        with seeded(0):
            batch = to_device(train.first_batch(), next(model.parameters()).device)
        count = base_logits(model, batch).shape[-1]
    classes = kind.classes(labels, output_names(model), count)
    train.label(kind, classes)
    return classes


def _from_zero(labels: RawLabels) -> bool:
    """Whether labels are all of the whole numbers from 0 to the largest."""
    return {*labels.plain.tolist()} == {*range(len({*labels.plain.tolist()}))}


def summary(train: Source, classes: Classes | None, likelihood: Likelihood) -> str:
    """Return a line that says which columns were read as what."""
    count = getattr(likelihood, "num_classes", None)
    what = f"{count} classes" if count else likelihood.name
    return said(train.reader.columns, what)
