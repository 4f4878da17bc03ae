"""`fit`, which builds the program and hands it to the `transformers` Trainer."""

import inspect
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from bayeslora import arguments, bases, choice, claiming, failing, interop, onward, several, storage
from bayeslora.adapters.weights import uncompiled
from bayeslora.contracts import ArgumentError, Count, Scale
from bayeslora.data import NOTHING, Columns, Reading, Source, Weight, apart, given, opened, plain, shots_in, split
from bayeslora.dialling import by_fits
from bayeslora.dials import wanted, with_default
from bayeslora.divergence import check_weights
from bayeslora.fitting import Fitting, Read
from bayeslora.folds import cross_fit
from bayeslora.grouping import same_inputs, tenth
from bayeslora.isolation import public, seeded
from bayeslora.loading import Init, load, load_model, with_padding
from bayeslora.methods import Method, MethodName, fields_for_fit, make_method
from bayeslora.networks import unwrapped, with_output_names
from bayeslora.posterior import Posterior
from bayeslora.preparation import check_rows, likelihood_for, number_labels, seen_in
from bayeslora.showing import hushed, narrating
from bayeslora.tasks import Likelihood, choosing
from bayeslora.tasks.labels import RawLabels
from bayeslora.types import (
    Arguments,
    BatchSize,
    Callback,
    Data,
    Epochs,
    Folder,
    Folds,
    ModelName,
    NumParticles,
    Seed,
    Targets,
    Tokenizer,
)
from bayeslora.weights import ClassWeights, weigh

logger = logging.getLogger(__name__)

DEFAULT = "monteclora"
"""The method of a fit that names none, and has no prior."""

FEWEST_TO_SPLIT = 50
"""Training examples from which on a tenth is held out, if a method needs held-out data and none is given."""


@public(fields=fields_for_fit)
def fit(
    model: nn.Module | ModelName,
    data: Data,
    method: Method | MethodName | None = None,
    *,
    validation: Data | None = None,
    folds: Folds | None = None,
    refit: bool | None = None,
    tokenizer: Tokenizer | None = None,
    text: str | Sequence[str] | None = None,
    label: str | Sequence[str] | None = None,
    id: str | None = None,
    answers: Literal["all", "last"] = "all",
    shots: Data | None = None,
    weight: Weight | None = None,
    class_weights: ClassWeights | None = None,
    likelihood: choosing.Given = None,
    init: Init = None,
    prior: Posterior | None = None,
    rank: Count | Mapping[str, Count] | None = None,
    alpha: Scale | Mapping[str, Scale] = 16,
    targets: Targets = "all-linear",
    exclude: Targets | None = None,
    head: str | Sequence[str] | None = None,
    epochs: Epochs | None = None,
    batch_size: BatchSize = 16,
    packing: bool = False,
    learning_rate: Scale | None = None,
    num_particles: NumParticles | None = None,
    seed: Seed = 0,
    output_dir: Folder | None = None,
    resume: bool | Literal["anyway"] = False,
    args: Arguments | None = None,
    callbacks: Sequence[Callback] = (),
    compute_metrics: Callable[..., Mapping[str, float]] | None = None,
    data_collator: Callable[[list[Any]], Any] | None = None,
    processing_class: Tokenizer | None = None,
    progress: bool = True,
    num_examples: Count | None = None,
    **hyperparameters: Any,
) -> Posterior:
    """Fine-tune a network with Bayesian adapters, and return the posterior over them.

        posterior = fit("distilbert/distilbert-base-uncased", "train.csv")
        posterior.predict(["better than I feared"]).to_pandas()

    Most people need no more: columns, kind of label, task head, epochs and rate are found, and the log says what they
    are. Name what should be otherwise, such as `label="stars"`, `likelihood="ordinal"`, `epochs=5`; `method` says which
    posterior. PEFT's `r`, `lora_alpha` and `target_modules` are `rank`, `alpha` and `targets` here; the Trainer's
    settings go into `args`, and its `eval_dataset` is `validation`. The model is not changed: the posterior shares its
    frozen weights. Random states are restored afterwards.

    Args:
        model: A `transformers` model with a task head, any `torch.nn.Module`, a path or hub name, or a PEFT model,
            which is also the `init` unless another is given.
        data: A `datasets.Dataset` or `DatasetDict` (its `train` and `validation` splits), whose text columns are
            tokenised if it has no columns that the network takes (questions about contexts and questions with choices
            as the page on tasks says), or its hub name, a file, several, or a folder; a pandas `DataFrame` of texts or
            numbers; a torch `Dataset` or `DataLoader` of mappings or `(inputs, label)` pairs; a stream, an
            `IterableDataset` of either library, with `num_examples`; or `(inputs, labels)` as arrays, a mapping of
            arrays, or a list of texts.
        method: A name in `bayeslora.METHODS`, or an instance; by default `"monteclora"`, or that of `prior`.
        validation: Held-out data, in any of these forms: its NLL at the centre is recorded after each epoch. Methods
            that need some (`noise_ratio="auto"`) hold out a tenth of `data` where none is given.
        folds: K, for cross-fitting: K members are trained, each without one of K parts of the data, and predict that
            part. These predictions set one temperature and the method's dial, where that is `"auto"`, and no label is
            lost. Rows with equal inputs stay together. It takes the time of K − 1 fits, and of one more to `refit`.
            See [The dial](dial.md).
        refit: Whether to return one fit of all data at the temperature found, instead of the mixture of the members.
            By default, the mixture, but for `monteclora` the refit. For `folds` only.
        tokenizer: For text; loaded with the model if that is given by name.
        text: The column of the texts, or two, for pairs; by default found ([Data](data.md) has the rule).
        label: The column of the labels, or several that each say 0 or 1 of a class (`multilabel`); by default found.
        id: A column that names the rows, which is not an input.
        answers: Of conversations ([Tasks](tasks.md#instructions-and-conversations)), which answers are learned: all of
            the assistant's, or only the last of each.
        shots: Of `answer_letters`, rows like those of `data`, which precede every question with their answers, in the
            fit and in predictions: a few-shot prompt. They are saved with the posterior.
        weight: How much rows count: a column of `data`, or an array with a number of at least 0 for each row. A row's
            log-likelihood is multiplied by its weight over the mean of all weights: n stays n.
        class_weights: How much classes count, in the same way: a mapping from names (others count 1), numbers in the
            order of the classes, or `"balanced"`, inversely to their frequency. Tokens that are labels are weighed one
            by one.
        likelihood: Labels given logits: a name in `bayeslora.LIKELIHOODS`, an instance, or a callable that makes a Pyro
            observation (see `tasks.Observation`); by default inferred from the network and the labels, and stated
            in the log.
        init: Trained adapters and task head to start from: a `Posterior` (its centre), a PEFT model, or a folder of
            either; layers, ranks and scaling are then theirs: other `targets`, `exclude`, `rank` and `alpha` are left
            aside, with a warning.
        prior: A posterior of other data, to learn on from: it is the prior of this fit, and where it starts. Layers,
            ranks, scaling, classes and the kind of label are its own ([Learning on](learning-on.md)); other `targets`,
            `exclude`, `rank`, `alpha` and `prior_scale` are left aside, with a warning.
        rank: r, or a mapping from module-name suffix to r. By default, and for layers that it does not name, r is 8, or
            less where a layer has fewer features.
        alpha: LoRA's alpha, or a mapping like `rank`; the update is multiplied by alpha / r.
        targets: Layers to adapt: `"all-linear"`, `"attention"`, `"last:2"` (the last two blocks: draws then share one
            pass through those below), a suffix, a list of suffixes, or a regular expression. Layers that cannot be
            adapted are left out with a warning, or refused if they are named.
        exclude: Layers to leave out of these: a suffix, a list of suffixes, or a regular expression.
        head: Names of the modules that form the task head, which is trained itself; `()` for none. By default, it is
            what stands outside a pre-trained body, the layer that makes the logits, and what the model's checkpoint
            lacked, such as a pooler; the log says which.
        epochs: Passes over the data; by default 3, or as many as make 200 steps, but no more than 8 (MonteCLoRA: 400
            steps, if 6 passes make them). With 0, or if a method has nothing to train (`post_hoc`), the starting point
            is refined, if the method does that, and returned without training.
        batch_size: Examples per step and device.
        packing: Whether a causal language model trains on several short texts in one row, which do not see each other:
            the loss is the same, in fewer passes over padding. A network that cannot keep them apart is refused.
        learning_rate: Peak rate of AdamW, decaying linearly to 0; by default $10^{-3} (384 / d)^{0.78}$ for a network
            of width d, times a factor of the method's.
        num_particles: Draws of the weights per step, run as one batch; None for 1, or an ensemble's members.
        seed: Seed of the adapters' start, the data's order and all noise.
        output_dir: Where to save the posterior and the Trainer's checkpoints, if anywhere.
        resume: Continue from the newest whole checkpoint in `output_dir`, if there is one; the result is that of a fit
            that was not interrupted. A checkpoint of another fit, of other data, say, is refused; with `"anyway"` it is
            continued all the same. With False, checkpoints of earlier fits are moved to a folder of their own there.
        args: `TrainingArguments` for full control; they replace `epochs`, `batch_size`, `learning_rate`, `seed`,
            `output_dir` and `progress`.
        callbacks: Trainer callbacks. Without `args`, an `EarlyStoppingCallback` goes by the held-out NLL, and the best
            epoch is restored.
        compute_metrics: Called after each evaluation of `validation` with the `EvalPrediction` of the centre's logits
            and the labels, numbered as in `class_names`; its metrics are logged, beside those of `evaluate`.
        data_collator: Makes a batch of rows, a mapping from the network's inputs and `labels` to tensors, in place of
            padding and stacking; kept by the posterior for its predictions, and not saved.
        processing_class: Another name of `tokenizer`, the Trainer's.
        progress: Whether to show a progress bar, or lines where there is no terminal, and, unless logging is
            configured, what the fit logs.
        num_examples: n, for a stream: the examples of an epoch, after which it starts again. Order and shuffling are up
            to the stream.
        hyperparameters: Fields of the method.

    Raises:
        ArgumentError: If an argument does not fit, is not known, or the method has no such field: a ValueError and a
            TypeError, whose message says what fits.
        TypeError: If the data has none of these forms.
        ValueError: If the labels or the inputs do not fit; the message says what does.
        DivergedError: If the loss becomes NaN or infinite, or runs away; it has the posterior at the last good state.
            That is saved in `output_dir`, as is that of a fit which is interrupted.
    """
    earlier = onward.of(prior, init)
    chosen = earlier.method(method, hyperparameters) if earlier else make_method(method or DEFAULT, **hyperparameters)
    if (folder := output_dir if args is None else args.output_dir) is not None:
        failing.check_folder(folder, "output_dir")
        folder = str(Path(folder).absolute())  # wherever a callback goes to
        output_dir, args = (folder, None) if args is None else (output_dir, arguments.in_folder(args, folder))
    data = given(opened(data))
    held_out = given(validation, "validation", "test", "train") if validation is not None else split(data, "validation")
    train_data = split(data, "train")
    arguments.check(args, compute_metrics, held_out is not None, callbacks)
    tokenizer = arguments.one_tokenizer(tokenizer, processing_class) or (prior.tokenizer if prior else None)
    if folds is None and refit is not None:
        raise ArgumentError(f"refit={refit} is for folds=…: give both, or leave it out.")
    train_data, weights = apart(train_data, weight, "data")
    held_out = held_out if held_out is None else apart(held_out, weight, "validation", False)[0]
    seed = seed if args is None else args.seed
    shows = progress if args is None else not args.disable_tqdm
    with seeded(seed), narrating(shows), hushed(not shows):
        asked_for = Columns.asked(text, label, id, answers, shots_in(shots))
        train_data = plain(train_data, asked_for, earlier.columns if earlier else NOTHING)
        own = unwrapped(model) if isinstance(model, nn.Module) else None
        likelihood = earlier.likelihood(likelihood) if earlier else likelihood
        names, seen_labels = seen_in(train_data, asked_for, num_examples, own is not None)
        told = train_data.labels if own is not None or train_data.labels is not None else seen_labels
        kind = choosing.expected(likelihood, own, names, told)
        known = (earlier.class_names, None) if earlier else (None, told)
        model, tokenizer, lacked, adapters = _network(model, tokenizer, earlier or init, kind, names, *known)
        if chosen.post_hoc and adapters is None:
            raise ValueError("post_hoc=True keeps trained adapters as they are: pass them, fit(…, init=…).")
        reading = Reading(asked_for, collator=data_collator)
        reading = earlier.reading(reading) if earlier else reading
        train = Source(train_data, model, tokenizer, "data", num_examples, kind if earlier else None, reading)
        arguments.check_shots(asked_for.shots, train.columns.shots)
        _check_num_examples(train, num_examples, chosen)
        classes = earlier.classes if earlier else number_labels(train, model, kind, seen_labels)
        model = with_output_names(model, classes.names if classes else None)
        columns = replace(train.columns, by_index=classes is None or classes.by_index)
        if held_out is not None:
            reading = replace(reading, known=columns, classes=classes)
            held_out = Source(held_out, model, tokenizer, "validation", likelihood=kind, reading=reading)
        likelihood, seen, first = likelihood_for(likelihood, model, train, chosen)
        train, held_out = train.about(likelihood), held_out and held_out.about(likelihood)
        for source in (train, held_out):
            check_rows(source)
        train = weigh(train, weights, class_weights, classes, likelihood)
        tuning_data = held_out
        if (chosen.tuning() or wanted(chosen)) and held_out is None and folds is None:
            train, tuning_data = _hold_out(train, chosen)
            chosen = with_default(chosen) if tuning_data is None else chosen
        layers: dict[str, Any] = {"targets": targets, "exclude": exclude, "rank": rank, "alpha": alpha}
        if adapters:
            start = "prior" if earlier else "init" if init is not None else "the PEFT model"
            layers = choice.of_start(model, adapters.network_settings(), _not_default(layers), start)
        else:
            layers["start_rank"] = chosen.start_rank
        trained = None if adapters is None else () if adapters.reference else tuple(adapters.head)
        found = choice.choose(model, chosen.family, seen, layers, head, trained, lacked)
        fitting = Fitting(
            model=model,
            method=chosen,
            likelihood=likelihood,
            found=found,
            first=first,
            lacked=lacked,
            adapters=adapters,
            read=Read(tokenizer, classes, columns, reading.collator),
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            num_particles=num_particles,
            args=args,
            callbacks=callbacks,
            compute_metrics=compute_metrics,
            progress=progress,
            resume=resume,
            packing=packing,
        )
        with claiming.claimed(folder if several.is_first() else None):
            if folds is not None:
                posterior = cross_fit(fitting, train, held_out, folds, refit, seed, output_dir)
            elif tuning_data is not None and (dial := wanted(chosen)) and dial.buffer is None:
                posterior = by_fits(fitting, train, held_out, tuning_data, seed, output_dir)
            else:
                posterior = fitting(train, held_out, tuning_data, seed, output_dir)
        posterior.learned_from = earlier.kept() if earlier else None
        return posterior


def _check_num_examples(train: Source, num_examples: int | None, method: Method) -> None:
    """Raise a ValueError unless the number of examples is known, and a method's particles can share a stream."""
    if not train.is_stream:
        if num_examples is not None:
            raise ValueError(f"num_examples={num_examples} is for streams; data has {len(train)}: leave it out.")
        return
    if num_examples is None:
        raise ValueError(
            "data is a stream, whose length is not known: say how many examples make an epoch, num_examples=…. "
            "Divergences are divided by them."
        )
    if method.own_batches and method.num_particles > 1:
        raise ValueError(
            f"{method.name!r} gives every member an order of its own, and data is a stream, which has one: give a "
            "dataset."
        )


def _hold_out(train: Source, method: Method) -> tuple[Source, Source | None]:
    """Split a tenth off the training data, or nothing if there are too few examples."""
    if train.is_stream:
        raise ValueError(
            f"{method.name!r} needs held-out data here, and none can be taken from a stream: pass validation=…."
        )
    if len(train) < FEWEST_TO_SPLIT:
        logger.warning(
            "%d examples are too few to hold out a tenth, and there is no validation data: %s keeps the default of "
            "what it would have found.",
            len(train),
            method.name,
        )
        return train, None
    order = torch.randperm(len(train)).numpy()
    same = np.arange(len(train)) if train.dataset is None else same_inputs(train.dataset)  # `take` refuses a loader
    chosen = tenth(same, order)
    if chosen is None:
        raise ValueError(f"{method.name!r} needs held-out data, and most rows are alike: pass validation=….")
    size = int(chosen.sum())
    logger.info("No validation data: %d of %d training examples are held out for %s.", size, len(train), method.name)
    return train.take(np.flatnonzero(~chosen).tolist()), train.take(np.flatnonzero(chosen).tolist())


class _Network(NamedTuple):
    """What is fitted.

    Args:
        model: The network itself, out of what a user or PEFT has put around it.
        tokenizer: For text, if there is one.
        lacked: Parameters that the model's checkpoint lacked.
        adapters: Trained adapters, or an earlier posterior, to start from, if any.
    """

    model: nn.Module
    tokenizer: Tokenizer | None
    lacked: set[str]
    adapters: interop.Adapters | onward.Earlier | None


def _network(
    model: object,
    tokenizer: Tokenizer | None,
    start: onward.Earlier | Init,
    kind: type[Likelihood] | None,
    columns: Sequence[str],
    class_names: Sequence[str] | None,
    labels: RawLabels | None,
) -> _Network:
    """Load a model that is given by name, as `load_model` does, and take a network out of what stands around it."""
    lacked = None
    if isinstance(model, str | os.PathLike):
        assert kind is not None
        model, tokenizer, lacked = load_model(model, tokenizer, kind, columns, class_names, labels)
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model is a {type(model).__name__}; give a transformers model, a torch.nn.Module, or a path or hub name."
        )
    model = uncompiled(unwrapped(model))
    check_weights(model)
    adapters = start if isinstance(start, onward.Earlier) else _adapters(start, model)
    if interop.is_peft_model(model):
        model = interop.base_of_peft(model)
    lacked = bases.lacked_by_checkpoint(model) if lacked is None else lacked
    return _Network(*with_padding(model, tokenizer), lacked, adapters)


def _adapters(init: Init, model: nn.Module) -> interop.Adapters | None:
    """Return the trained adapters to start from, if any: those of `init`, or of a PEFT model."""
    is_peft_model = interop.is_peft_model(model)
    if init is None and is_peft_model:
        init = model
    if init is None:
        return None
    if isinstance(init, Posterior):
        return interop.from_program(init.program)
    if interop.is_peft_model(init):
        return interop.from_peft(init, model)
    if isinstance(init, str | os.PathLike):
        if os.path.isfile(Path(init) / storage.MANIFEST):
            return interop.from_program(load(init, model).program)
        return interop.from_peft_folder(init, model)
    raise TypeError(f"init is a {type(init).__name__}; give a Posterior, a PEFT model, or a folder of either.")


def _not_default(layers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `fit` that were given."""
    defaults = inspect.signature(fit).parameters
    return {name: value for name, value in layers.items() if value != defaults[name].default}
