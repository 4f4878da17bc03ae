"""`fit`: builds the program and hands it to the `transformers` Trainer."""

import copy
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import torch
from torch import nn
from torch.utils.data import IterableDataset

from bayeslora import interop, storage, tables
from bayeslora.adapters import AdaptedNetwork
from bayeslora.adapters.network import logits_of
from bayeslora.data import LABELS, SPAN, Source, is_a, read, split, to_device, with_padding
from bayeslora.likelihoods import (
    LIKELIHOODS,
    AnswerLetters,
    CausalLM,
    Classification,
    Likelihood,
    MultiLabel,
    MultipleChoice,
    Observation,
    QuestionAnswering,
    RealValued,
    Regression,
    Seq2SeqLM,
    StudentT,
    TokenClassification,
)
from bayeslora.methods import Method, make_method
from bayeslora.posterior import Posterior, load
from bayeslora.prediction import seeded
from bayeslora.program import Program

if TYPE_CHECKING:
    from transformers import TrainingArguments

logger = logging.getLogger(__name__)

FEWEST_TO_SPLIT = 50
"""Training examples from which a tenth is held out where a method needs held-out data and got none."""


def fit(
    model: nn.Module | str,
    data: Any,
    method: str | Method = "monteclora",
    *,
    validation: Any = None,
    tokenizer: Any = None,
    likelihood: Likelihood | str | Callable[..., Any] | None = None,
    init: Any = None,
    rank: int | Mapping[str, int] = 8,
    alpha: float | Mapping[str, float] = 16,
    targets: str | Sequence[str] = "all-linear",
    epochs: float = 3,
    batch_size: int = 16,
    learning_rate: float = 3e-4,
    num_particles: int | None = None,
    seed: int = 0,
    output_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    args: "TrainingArguments | None" = None,
    callbacks: Sequence[Any] = (),
    progress: bool = True,
    num_examples: int | None = None,
    **hyperparameters: Any,
) -> Posterior:
    """Fine-tune a network with Bayesian adapters, and return the posterior over them.

    The model is left as it was; the posterior shares its frozen weights. Random states are left as they were.

    Args:
        model: A `transformers` model with a task head, any `torch.nn.Module`, a path or hub name, or a PEFT model,
            which is also the `init` unless another is given.
        data: A `datasets.Dataset` or `DatasetDict` (its `train` and `validation` splits), whose text columns are
            tokenised if it has no columns that the network takes (questions about contexts and questions with choices
            as the page on tasks says), or its hub name, file or folder; a pandas `DataFrame`, likewise, or of numbers;
            a torch `Dataset` or `DataLoader` of mappings or `(inputs, label)` pairs; a stream, an `IterableDataset` of
            either library, with `num_examples`; or `(inputs, labels)` as arrays, a mapping of arrays, or a list of
            texts.
        method: A name in `bayeslora.METHODS`, or an instance.
        validation: Held-out data, in any of these forms: its NLL at the centre is recorded after each epoch. Methods
            that need some (`noise_ratio="auto"`) hold out a tenth of `data` where none is given.
        tokenizer: For text; found by itself if the model came by name.
        likelihood: Labels given logits: a name in `bayeslora.LIKELIHOODS`, an instance, or a callable that makes a Pyro
            observation (see `likelihoods.Observation`); by default inferred from the network and the labels, and stated
            in the log.
        init: Trained adapters and task head to start from: a `Posterior` (its centre), a PEFT model, or a folder of
            either; layers, ranks and scaling are then theirs, and `targets`, `rank` and `alpha` are not looked at.
        rank: r, or a mapping from module-name suffix to r.
        alpha: LoRA's alpha; the update is multiplied by alpha / r. Or a mapping, likewise.
        targets: Layers to adapt: `"all-linear"`, `"attention"`, a suffix, a list of suffixes, or a regular expression.
        epochs: Passes over the data. With 0, or where a method has nothing to train (`post_hoc`), there is no training:
            the starting point is refined, if the method does that, and returned.
        batch_size: Examples per step and device.
        learning_rate: Peak rate of AdamW, decaying linearly to 0.
        num_particles: Draws of the weights per step, run as one batch; None for 1, or an ensemble's members.
        seed: Seed of the adapters' start, the data's order and all noise.
        output_dir: Where to save the posterior and the Trainer's checkpoints, if anywhere.
        resume: Continue from the last checkpoint in `output_dir`, if there is one.
        args: `TrainingArguments` for full control; they replace `epochs`, `batch_size`, `learning_rate`, `seed`,
            `output_dir` and `progress`.
        callbacks: Trainer callbacks.
        progress: Whether to show a progress bar.
        num_examples: n, for a stream: the examples of an epoch, after which it is begun again. Order and shuffling are
            the stream's own.
        hyperparameters: Fields of the method.

    Raises:
        TypeError: If the method has no such field, or data or model are of a kind not known.
        ValueError: If an argument, the labels or the inputs do not fit; the message says what does.
        DivergedError: If the loss becomes NaN or infinite; it has the posterior at the last good state.
    """
    chosen = make_method(method, **hyperparameters)
    data = read(os.fspath(data)) if isinstance(data, str | os.PathLike) else data
    train_data, held_out = split(data, "train"), validation if validation is not None else split(data, "validation")
    seed = seed if args is None else args.seed
    with seeded(seed):
        if isinstance(model, str | os.PathLike):
            model, tokenizer = _load_model(model, train_data, tokenizer, likelihood)
        _check_model(model)
        adapters = _adapters(init, model)
        if interop.is_peft_model(model):
            model = interop.base_of_peft(model)
        if chosen.post_hoc and adapters is None:
            raise ValueError("post_hoc=True keeps trained adapters as they are: pass them, fit(…, init=…).")
        model, tokenizer = with_padding(model, tokenizer)
        train = Source(train_data, model, tokenizer, "data", num_examples)
        _check_num_examples(train, num_examples, chosen)
        held_out = None if held_out is None else Source(held_out, model, tokenizer, "validation")
        likelihood = _likelihood(likelihood, model, train, chosen)
        for source in (train, held_out):
            if source is not None:
                source.inputs_are_labels = isinstance(likelihood, CausalLM)
        for source in (train, held_out):
            _check_labels(source, likelihood)
        tuning_data = held_out
        if chosen.tuning() and held_out is None:
            train, tuning_data = _hold_out(train, chosen)
        asked = {"targets": targets, "rank": rank, "alpha": alpha, "start_rank": chosen.start_rank}
        layers: dict[str, Any] = adapters.network_settings() if adapters else asked
        network = AdaptedNetwork(
            model, chosen.family, num_examples=len(train), head_family=chosen.head_family, **layers
        )
        if not adapters:
            _shift_outputs(network, likelihood, model, train, batch_size)
        num_particles = chosen.num_particles if num_particles is None else num_particles
        program = Program(network, chosen, likelihood, num_particles)
        with seeded(0):  # a loader that shuffles takes its seed from the global state
            example = train.first_batch()
        if adapters:
            adapters.start(program)
            adapters.check(program, to_device(example, program.device))
        if chosen.post_hoc:
            program.network.freeze_head()
        history: dict[str, list[Any]] = {}
        posterior = Posterior(program, history, 1.0, tokenizer, _class_names(model, train_data))
        posterior.example = {name: value for name, value in example.items() if name != "labels"}
        with tempfile.TemporaryDirectory() as scratch:
            training = args or _training_arguments(
                output_dir or scratch,
                num_train_epochs=epochs,
                per_device_train_batch_size=batch_size,
                per_device_eval_batch_size=batch_size,
                learning_rate=learning_rate,
                seed=seed,
                disable_tqdm=not progress,
                save_strategy="epoch" if output_dir else "no",
                eval_strategy="epoch" if held_out else "no",
            )
            steps = training.max_steps > 0 or training.num_train_epochs > 0
            if steps and any(True for _ in program.trainable()):
                _train(posterior, history, train, held_out, tuning_data, training, callbacks, resume)
        program.eval()
        batches = [Batches(source, batch_size, program.device) if source else () for source in (train, held_out)]
        program.guide = chosen.refine(program, program.guide, *batches)
    if (output_dir or args) and training.should_save:
        posterior.save(training.output_dir)
    return posterior


class Batches:
    """Batches of data on a device, with the least padding, as often as they are gone over."""

    def __init__(self, source: Source, batch_size: int, device: torch.device):
        self.source = source
        self.batch_size = batch_size
        self.device = device

    @cached_property
    def ordered(self) -> Source:
        """The examples in order of length, which is found at the first pass: most methods make none."""
        return self.source.by_length()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (to_device(batch, self.device) for batch in self.ordered.batches(self.batch_size))


def _train(
    posterior: Posterior,
    history: dict[str, list[Any]],
    train: Source,
    validation: Source | None,
    tuning_data: Source | None,
    args: "TrainingArguments",
    callbacks: Sequence[Any],
    resume: bool,
) -> None:
    from transformers.trainer_utils import get_last_checkpoint

    from bayeslora.trainer import ProgramTrainer

    args = copy.copy(args)
    args.remove_unused_columns = False  # its filter sees `forward(**batch)` and would drop every column
    args.label_names = ["labels"]
    args.logging_nan_inf_filter = False
    if args.ddp_find_unused_parameters is None:  # every learned parameter is in every step's loss
        args.ddp_find_unused_parameters = False
    trainer = ProgramTrainer(posterior, history, train, validation, tuning_data, args=args, callbacks=list(callbacks))
    checkpoint = get_last_checkpoint(args.output_dir) if resume and os.path.isdir(args.output_dir) else None
    if resume:
        logger.info("Resuming from %s.", checkpoint or "the start: there is no checkpoint yet")
    if args.process_index > 0:  # with one seed for all, every process would draw the same noise
        torch.manual_seed(args.seed + args.process_index)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.recorder.flush()


def _check_num_examples(train: Source, num_examples: int | None, method: Method) -> None:
    """Raise a ValueError unless the number of examples is known, once, and a method's particles can share a stream."""
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
    """Training data without a tenth of it, and that tenth; too few examples are all trained on."""
    if train.is_stream:
        raise ValueError(
            f"{method.name!r} needs held-out data here, and none can be taken from a stream: pass validation=…."
        )
    if len(train) < FEWEST_TO_SPLIT:
        logger.warning(
            "%d examples are too few to hold a tenth out, and there is no validation data: %s keeps the default of "
            "what it would have found.",
            len(train),
            method.name,
        )
        return train, None
    order = torch.randperm(len(train)).tolist()
    size = len(train) // 10
    logger.info("No validation data: %d of %d training examples are held out for %s.", size, len(train), method.name)
    return train.take(sorted(order[size:])), train.take(sorted(order[:size]))


def _training_arguments(output_dir: str | os.PathLike[str], **settings: Any) -> "TrainingArguments":
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=str(output_dir),
        report_to=[],
        logging_strategy="epoch",
        dataloader_pin_memory=torch.cuda.is_available(),
        **settings,
    )


def _load_model(name: str | os.PathLike[str], data: Any, tokenizer: Any, likelihood: Any) -> tuple[nn.Module, Any]:
    """A model with the output that such labels and likelihood need, and its tokenizer, from a folder or the hub."""
    import transformers

    columns = getattr(data, "column_names", None) or (list(data) if isinstance(data, Mapping) else ())
    kind = _kind(likelihood, columns, _label_values(data))
    settings = _output_settings(name, data, kind) if kind in NUMBERED else {}
    if kind is Classification and "pixel_values" in columns:
        return transformers.AutoModelForImageClassification.from_pretrained(name, **settings), tokenizer
    tokenizer = tokenizer or transformers.AutoTokenizer.from_pretrained(name)
    return getattr(transformers, AUTO_CLASSES.get(kind, DEFAULT)).from_pretrained(name, **settings), tokenizer


NUM_TO_SHIFT = 64
"""Examples that tell where the outputs start: the mean of 64 labels is within an eighth of their spread."""

FAR = 10
"""Distance of outputs from labels, in the likelihood's unit, that is hard to learn without a bias."""

DEFAULT = "AutoModelForSequenceClassification"
AUTO_CLASSES: dict[type[Likelihood], str] = {
    TokenClassification: "AutoModelForTokenClassification",
    MultipleChoice: "AutoModelForMultipleChoice",
    QuestionAnswering: "AutoModelForQuestionAnswering",
    AnswerLetters: "AutoModelForCausalLM",
    CausalLM: "AutoModelForCausalLM",
    Seq2SeqLM: "AutoModelForSeq2SeqLM",
}
"""What a name is loaded as, where that is no sequence classifier."""

NUMBERED = (Classification, TokenClassification, MultiLabel, Regression, StudentT, Observation)
"""Likelihoods whose models are loaded with `num_labels`."""


def _kind(likelihood: Any, columns: Sequence[str], labels: Any) -> type[Likelihood]:
    """The class of likelihood that is asked for, or that the labels alone suggest."""
    if likelihood is not None:
        if isinstance(likelihood, Likelihood):
            return type(likelihood)
        return LIKELIHOODS.get(likelihood, Classification) if isinstance(likelihood, str) else Observation
    if all(name in columns for name in SPAN) or (tables.is_questions(columns) and "answers" in columns):
        return QuestionAnswering
    if tables.is_choices(columns):
        return MultipleChoice
    first = labels[0] if labels is not None and len(labels) else 0
    if np.ndim(first) == 1:
        return MultiLabel if np.asarray(first).dtype.kind == "f" else TokenClassification
    return Regression if np.asarray(first).dtype.kind == "f" else Classification


def _output_settings(name: object, data: Any, kind: type[Likelihood]) -> dict[str, Any]:
    """Number and names of a model's outputs for such data."""
    names, labels = _label_names(data), _label_values(data)
    if names:
        by_index = dict(enumerate(names))
        return {"num_labels": len(names), "id2label": by_index, "label2id": {n: i for i, n in by_index.items()}}
    if issubclass(kind, RealValued):
        return {"num_labels": 1}
    if labels is None or len(labels) == 0 or isinstance(labels[0], str):
        raise ValueError(
            f"The number of classes for {str(name)!r} cannot be told from the data: name the classes in its features "
            "(data.class_encode_column('label')), or pass a model loaded with num_labels=…."
        )
    if kind is MultiLabel:
        return {"num_labels": len(labels[0])}
    largest = max(int(np.max(row)) for row in labels)
    return {"num_labels": max(largest + 1, 2)}


def _check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model is a {type(model).__name__}; give a transformers model, a torch.nn.Module, or a path or hub name."
        )


def _adapters(init: Any, model: nn.Module) -> interop.Adapters | None:
    """The trained adapters to start from, if any: `init`'s, or those of a PEFT model."""
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
        if (Path(init) / storage.MANIFEST).is_file():
            return interop.from_program(load(init, model).program)
        return interop.from_peft_folder(init, model)
    raise TypeError(f"init is a {type(init).__name__}; give a Posterior, a PEFT model, or a folder of either.")


def _likelihood(
    given: Likelihood | str | Callable[..., Any] | None, model: nn.Module, train: Source, method: Method
) -> Likelihood:
    """The likelihood asked for, or the one that fits what the network returns for the first examples, and their labels.

    It is tried on those examples: what does not fit is said before training starts.
    """
    if isinstance(given, str) and given not in LIKELIHOODS:
        raise ValueError(
            f"likelihood={given!r} is not known. Likelihoods: {', '.join(LIKELIHOODS)}; or an instance, or a callable."
        )
    kind = given.name if isinstance(given, Likelihood) else given
    train.inputs_are_labels = kind == CausalLM.name or (given is None and is_a(model, "CAUSAL_LM"))
    batch = train.first_batch()
    if "labels" not in batch:
        raise ValueError(
            f"The data has no labels, only {', '.join(batch)}: give a 'labels' or 'label' column, or (inputs, labels)."
        )
    batch = to_device(batch, next(model.parameters()).device)
    logits = _first_logits(model, batch)
    labels = torch.as_tensor(batch["labels"])
    if isinstance(given, Likelihood):
        likelihood = copy.deepcopy(given)
    elif given is not None and not isinstance(given, str):
        likelihood = Observation(copy.deepcopy(given))
    else:
        cls = LIKELIHOODS[given] if given else _infer_likelihood(model, logits, labels)
        values = train.labels if train.labels is not None else labels.cpu()
        likelihood = cls.fitting(logits, values, train.tokenizer)
        logger.info("Likelihood: %s, %s.", likelihood.name, likelihood.config())
    likelihood.check_labels(labels.cpu())
    with torch.no_grad(), pyro.validation_enabled(False):
        selected = likelihood.to(logits.device).select(logits, batch)
        log_prob = likelihood.log_prob(selected, labels)
    if log_prob.shape != (len(labels),):
        raise ValueError(
            f"Likelihood {likelihood.name!r} does not fit outputs {tuple(logits.shape)} and labels "
            f"{tuple(labels.shape)}: it gives {tuple(log_prob.shape)} log-likelihoods for {len(labels)} examples."
        )
    if method.approximation == "linear" and selected.dim() > 2:
        raise ValueError(
            f"{method.name!r} is for a number or a vector of logits per example, and {likelihood.name!r} has logits "
            f"{tuple(selected.shape)} for {len(labels)} examples: give another method."
        )
    return likelihood


def _first_logits(model: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
    """What the base network returns for a batch, in evaluation mode; it is left in the mode it was in."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            return logits_of(model.eval()(**inputs))
    finally:
        for module, mode in modes:
            module.training = mode


def _shift_outputs(
    network: AdaptedNetwork, likelihood: Likelihood, model: nn.Module, train: Source, batch_size: int
) -> None:
    """Let the head's outputs start at the mean that the labels of the first examples ask for.

    Adam moves every weight at about the same rate: with labels around 3 and outputs around 0, all of them push the
    outputs up at first, drive the layer below into saturation, and little is learned afterwards.
    """
    layer = network.output_layer()
    if layer is None or not isinstance(likelihood, RealValued):
        return
    total, count = 0.0, 0
    for batch in train.batches(batch_size):
        batch = to_device(batch, network.device)
        total += likelihood.residuals(_first_logits(model, batch), batch).sum().item()
        count += len(batch["labels"])
        if count >= NUM_TO_SHIFT:
            break
    offset = total / count
    if layer.bias is not None:
        with torch.no_grad():
            layer.bias += offset
    elif abs(offset) > FAR * likelihood.unit:
        logger.warning(
            "Labels are %.3g above the outputs on average, many times their spread, and the head has no bias: subtract "
            "the labels' mean.",
            offset,
        )


def _infer_likelihood(model: nn.Module, logits: torch.Tensor, labels: torch.Tensor) -> type[Likelihood]:
    """The class of likelihood for a model, and outputs and labels of such shapes and types."""
    per_token = labels.dim() == 2 and logits.dim() == 3 and not labels.is_floating_point()
    if logits.dim() == 2 and labels.dim() == 1:
        if is_a(model, "MULTIPLE_CHOICE"):
            return MultipleChoice
        return Regression if labels.is_floating_point() and logits.shape[-1] == 1 else Classification
    if logits.dim() == 2 and labels.shape == logits.shape:
        return MultiLabel
    if per_token and labels.shape[1] == 2 and is_a(model, "QUESTION_ANSWERING"):
        return QuestionAnswering
    if logits.dim() == 3 and labels.dim() == 1 and is_a(model, "CAUSAL_LM"):
        return AnswerLetters
    if per_token and labels.shape == logits.shape[:2]:
        if is_a(model, "CAUSAL_LM"):
            return CausalLM
        if is_a(model, "SEQ_TO_SEQ_CAUSAL_LM") or is_a(model, "MASKED_LM"):
            return Seq2SeqLM
        return TokenClassification
    raise ValueError(
        f"No likelihood is known for outputs {tuple(logits.shape)} and labels {tuple(labels.shape)} of {len(logits)} "
        "examples: pass likelihood=…."
    )


def _check_labels(source: Source | None, likelihood: Likelihood) -> None:
    if source is None:
        return
    labels = source.labels
    if labels is None:
        labels = source.first_batch().get("labels")
    if labels is None:
        raise ValueError(f"{source.name} has no labels: give a 'labels' or 'label' column, or (inputs, labels).")
    likelihood.check_labels(labels)


def _label_values(data: Any) -> Any:
    if isinstance(data, tuple) and len(data) == 2:
        return data[1]
    if isinstance(data, IterableDataset):
        return None
    names = [name for name in LABELS if name in getattr(data, "column_names", ())]
    return data[names[0]] if names else None


def _label_names(data: Any) -> list[str] | None:
    """Class names of a `datasets.Dataset` whose labels have them."""
    features = getattr(data, "features", None) or {}
    return next((list(features[n].names) for n in LABELS if n in features and hasattr(features[n], "names")), None)


def _class_names(model: nn.Module, data: Any) -> tuple[str, ...] | None:
    names = _label_names(data)
    if names is None:
        id2label = getattr(getattr(model, "config", None), "id2label", None) or {}
        names = [id2label[index] for index in sorted(id2label)]
        if all(name == f"LABEL_{index}" for index, name in enumerate(names)):
            return None
    return tuple(names)
