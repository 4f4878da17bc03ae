"""One fit of what has been read: a program is built, trained and refined."""

import copy
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import nn

from bayeslora import arguments, bases, choice, dialling, interop, packing, recipe, together, trying, verdict
from bayeslora.adapters import AdaptedNetwork, FrozenWeights, repeats
from bayeslora.data import Columns, Source, to_device
from bayeslora.dials import wanted
from bayeslora.failing import NotSavedError
from bayeslora.hashing import hashed
from bayeslora.isolation import give_way, seeded
from bayeslora.methods import Method
from bayeslora.networks import inputs_of, output_names
from bayeslora.onward import Earlier
from bayeslora.passes import recomputes
from bayeslora.posterior import Posterior
from bayeslora.preparation import shift_outputs, summary
from bayeslora.program import Program
from bayeslora.tasks import Likelihood
from bayeslora.tasks.classes import Classes
from bayeslora.types import Arguments, Batch, Callback, Tokenizer
from bayeslora.weights import digest_of_labels

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Read:
    """How the data were read.

    Args:
        tokenizer: For text.
        classes: The classes of the labels; None if they are numbers without names.
        columns: The columns that were read.
        data_collator: The user's function that makes batches of rows, if any.
    """

    tokenizer: Tokenizer | None
    classes: Classes | None
    columns: Columns
    data_collator: Callable[[list[Any]], Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """Fits of one model by one method, which differ in their examples and their seed alone.

    Args:
        model: The network.
        method: The method.
        likelihood: Labels given logits; its parameters are trained.
        found: Which layers are adapted.
        first: The first examples, with which the network is tried.
        lacked: Parameters that the model's checkpoint lacked.
        adapters: Trained adapters, or an earlier posterior, to start from, if any.
        read: How the data were read.
        epochs: As `fit` takes it.
        batch_size: As `fit` takes it.
        learning_rate: As `fit` takes it.
        num_particles: As `fit` takes it.
        args: As `fit` takes it.
        callbacks: As `fit` takes it.
        compute_metrics: As `fit` takes it.
        progress: As `fit` takes it.
        resume: As `fit` takes it.
        packing: As `fit` takes it.
    """

    model: nn.Module
    method: Method
    likelihood: Likelihood
    found: choice.Choice
    first: Batch
    lacked: set[str]
    adapters: interop.Adapters | Earlier | None
    read: Read
    epochs: float | None
    batch_size: int
    learning_rate: float | None
    num_particles: int | None
    args: Arguments | None
    callbacks: Sequence[Callback]
    compute_metrics: Callable[..., Mapping[str, float]] | None
    progress: bool
    resume: bool | Literal["anyway"]
    packing: bool = False

    def __call__(
        self,
        train: Source,
        held_out: Source | None,
        tuning_data: Source | None,
        seed: int,
        output_dir: str | os.PathLike[str] | None,
        settles: bool = True,
    ) -> Posterior:
        """Fit, within the random state of the caller.

        Args:
            train: Training data.
            held_out: Held-out data, whose NLL at the centre is recorded.
            tuning_data: Held-out data for methods that learn from some.
            seed: Seed of the order of the data and of the noise.
            output_dir: Where to save checkpoints and the posterior, if anywhere; `args` has its own.
            settles: Whether a dial that can be set after training is set by `tuning_data`.
        """
        program, weighted = self._program(train), train.weighted()
        with seeded(0):  # a loader that shuffles takes its seed from the global state
            example = train.first_batch()
        if self.adapters:
            self.adapters.start(program)
            if isinstance(self.adapters, interop.Adapters):
                program.start = hashed([self.adapters.factors, self.adapters.head])
            self.adapters.check(program, to_device(example, program.device))
        if self.method.post_hoc:
            program.network.freeze_head()
        together.check(program)
        first_step = trying.FirstStep(program, self.found, self.first) if self._waits(program) else None
        if first_step is None:
            trying.check(program, self.found, self.first)
        trying.check_folds(program, self.first)
        if self.packing:
            packing.check(program, to_device(example, program.device))
            program.packs = True
        logger.info("%s", choice.describe(program, self.found, self.first))
        tokenizer, classes, columns = self.read.tokenizer, self.read.classes, self.read.columns
        if read_as := summary(train, classes, program.likelihood):
            logger.info("%s", read_as)
        names = classes.names if classes else output_names(self.model)
        posterior = Posterior(program, tokenizer=tokenizer, class_names=names, columns=columns)
        frozen: FrozenWeights = program.network.frozen  # type: ignore[assignment]
        frozen.begin_fit()
        posterior.data_collator = self.read.data_collator
        posterior.weighted = weighted is not train or program.likelihood.token_weights is not None
        posterior.labels_seen = digest_of_labels(train)
        posterior.example = inputs_of(example)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
            training = self.args or arguments.made(
                output_dir or scratch,
                held_out is not None,
                bool(output_dir),
                self.callbacks,
                **self._schedule(program.network, len(train)),
                per_device_train_batch_size=int(self.batch_size),
                per_device_eval_batch_size=int(self.batch_size),
                disable_tqdm=not self.progress,
                seed=seed,
            )
            if self._trains(program):
                from bayeslora.training import train as train_in_place  # imports the Trainer

                keep, lines = bool(output_dir or self.args), self.progress or self.args is not None
                sources = weighted, held_out, tuning_data
                users = (self.callbacks, self.resume)
                metrics = self.compute_metrics
                train_in_place(posterior, *sources, training, *users, keep, lines, metrics, first_step)
                if weighted is train and program.likelihood.token_weights is None:  # else its loss is weighted, too
                    verdict.has_learned(posterior._history, program.likelihood, train.label_rows())
                verdict.still_falls(posterior._history)
        program.eval().packs = False
        batches = [Batches(part, self.batch_size, program.device) if part else () for part in (weighted, held_out)]
        program.guide = self.method.refine(program, program.guide, *batches)
        program.network.unbind()
        if settles and tuning_data is not None and wanted(self.method):
            dialling.settle(posterior, tuning_data, seed)
        program.network.frozen = frozen.end_fit(program.network)
        if (output_dir or self.args) and training.should_save:
            try:
                posterior.save(training.output_dir)
            except NotSavedError as error:
                error.posterior = posterior
                error.add_note(
                    "The fit had ended: this error has its `posterior`; resume=True goes on from the last checkpoint."
                )
                raise
        return posterior

    def _trains(self, program: Program) -> bool:
        """Return whether there are steps to make, and anything to learn in them."""
        steps = self.epochs != 0 if self.args is None else self.args.max_steps > 0 or self.args.num_train_epochs > 0
        return steps and any(True for _ in program.trainable())

    def _waits(self, program: Program) -> bool:
        """Return whether the first step can show which adapters get a gradient.

        Of several processes, each would wait for the others; activation checkpointing loses gradients, and may say so.
        """
        alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
        return self._trains(program) and alone and not recomputes(self.model)

    def apart(self, seed: int, output_dir: str | os.PathLike[str] | None) -> "Fitting":
        """Return one of several fits, whose likelihood, seed and folder are its own."""
        args = copy.copy(self.args)
        if args is not None and output_dir is not None:
            args.output_dir, args.seed = os.fspath(output_dir), seed
        return replace(self, likelihood=copy.deepcopy(self.likelihood), args=args)

    def _program(self, train: Source) -> Program:
        """Build the program, whose outputs start at the mean of the labels where labels are numbers."""
        method = self.method
        network = AdaptedNetwork(
            self.model, method.family, num_examples=len(train), head_family=method.head_family, **self.found.settings
        )
        repeats.check_copy(network, self.model, self.found.seen.logits, self.first)
        bases.note_new(network, self.lacked)
        with torch.no_grad():  # a pass is needed only where logits are predictions of labels
            shifts = self.likelihood.residuals(self.found.seen.logits, self.first) is not None
        if shifts and not self.adapters:
            shift_outputs(network, self.likelihood, self.model, train, self.batch_size)
        num_particles = method.num_particles if self.num_particles is None else self.num_particles
        return Program(network, method, self.likelihood, num_particles)

    def _schedule(self, network: AdaptedNetwork, num_examples: int) -> dict[str, float]:
        """Return how long to train, and at which rate, by the Trainer's names; nothing if `args` say it."""
        if self.args is not None:
            return {}
        epochs = recipe.epochs(num_examples, self.batch_size, self.method) if self.epochs is None else self.epochs
        rate = self.learning_rate or recipe.learning_rate(network, self.method)
        logger.info("Epochs: %g, at a peak rate of %g.", epochs, rate)
        return {"num_train_epochs": float(epochs), "learning_rate": float(rate)}


class Batches:
    """Batches of data on a device, with the least padding, which can be iterated over repeatedly."""

    def __init__(self, source: Source, batch_size: int, device: torch.device):
        self.source = source
        self.batch_size = batch_size
        self.device = device

    @cached_property
    def ordered(self) -> Source:
        """The examples in order of length, which is found at the first pass, because most methods make none."""
        return self.source.by_length()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.ordered.batches(self.batch_size):
            give_way()
            yield to_device(batch, self.device)
