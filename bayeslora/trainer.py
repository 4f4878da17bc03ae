"""The `transformers` Trainer for programs."""

import logging
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import nn
from torch.utils.data import DataLoader, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCALER_NAME, SCHEDULER_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from bayeslora import arguments, bases, checkpoints, failing, guides, natural, states, storage, watching
from bayeslora.data import OwnOrders, Source, Stream, to_device
from bayeslora.divergence import DivergedError as DivergedError
from bayeslora.divergence import LastGood
from bayeslora.isolation import at_work, give_way, seeded
from bayeslora.methods import Tuning
from bayeslora.posterior import Posterior
from bayeslora.program import Program, evaluating
from bayeslora.trying import FirstStep
from bayeslora.types import Batch

logger = logging.getLogger(__name__)

TUNING_SHARE = 0.3
"""Largest cost of the hook for held-out data, as a share of the fit."""

PASSES_PER_STEP = 2.5
"""Cost of a training step in forward passes: one of its own, and a backward pass without the frozen weights."""

FEWEST_TUNING, TUNING_BATCH = 50, 16


class ProgramTrainer(Trainer):
    """A Trainer for a program: its loss is the negative ELBO, its checkpoints are posteriors (adapters and head only).

    Args:
        posterior: The posterior to train, in place.
        train: Training data.
        validation: Held-out data, evaluated at the centre.
        tuning_data: Held-out data for methods that need some.
        lines: Whether lines of the log may be printed where there is no bar.
        others: As `transformers.Trainer` takes them.
    """

    def __init__(
        self,
        posterior: Posterior,
        train: Source,
        validation: Source | None,
        tuning_data: Source | None = None,
        lines: bool = False,
        **others: Any,
    ):
        self.posterior = posterior
        self.program: Program = posterior.program
        self.train_source = train
        self.validation_source = validation
        # A user's metrics may go by the rows' places in the data; without any, the shortest come first.
        by_length = others.get("compute_metrics") is None
        self.scores = None if validation is None else watching.CentreScores(posterior, validation, by_length)
        if validation is not None and by_length:
            validation = validation.by_length()
        rows: Any = train.dataset
        self.rows_by_draw = False
        if self.program.method.own_batches and self.program.elbo.num_particles > 1:
            if rows is None:
                logger.warning("All members get the same batches, the DataLoader's: give a dataset to change that.")
            else:
                rows = OwnOrders(rows, self.program.elbo.num_particles)
                self.rows_by_draw = True
        super().__init__(
            model=self.program,
            train_dataset=rows,
            eval_dataset=validation.dataset if validation else None,
            data_collator=partial(_collated, train),
            **others,
        )
        watching.show_lines(self, lines)
        self.recorder = watching.Recorder(posterior._history)
        self.add_callback(self.recorder)
        self.add_callback(AfterStep(self.program))
        if (tuning := self.program.method.tuning()) and tuning_data:
            self.add_callback(Tune(self.program, tuning_data, tuning))
        self.add_callback(GiveWay(self.accelerator))
        self.last_good = LastGood(self.program)
        self.tuning_data = tuning_data
        self.first_step: FirstStep | None = None
        self.resumes_anyway = False
        # Labels of rows that are computed one by one have not been checked before training.
        self.labels_unseen = train.labels is None

    @arguments.naming()
    def get_train_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.train_source) or super().get_train_dataloader()

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        return self._loader(self.validation_source) or super().get_eval_dataloader(eval_dataset)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        # Whatever the order of training: that of the held-out rows is known.
        own = self.args.world_size <= 1 and eval_dataset is not None and not isinstance(eval_dataset, Stream)
        return SequentialSampler(eval_dataset) if own else super()._get_eval_sampler(eval_dataset)

    def evaluation_loop(self, dataloader: Any, description: str, *others: Any, **settings: Any) -> Any:
        """Evaluate at the centre: the loss, what `compute_metrics` returns, and the scores that `evaluate` gives."""
        if self.scores is None:
            return super().evaluation_loop(dataloader, description, *others, **settings)
        self.scores.start()
        output = super().evaluation_loop(dataloader, description, *others, **settings)
        prefix = settings.get("metric_key_prefix", "eval")
        # Each of several processes sees a share of the rows: a pass of its own over all of them costs more.
        alone, named = self.args.world_size <= 1, self.args.metric_for_best_model
        needed = named is not None and f"{prefix}_{named.removeprefix('eval_')}" not in (output.metrics or {})
        found = self.scores.result() if alone else self.scores.whole(self.args.eval_batch_size) if needed else {}
        for name, value in found.items():
            output.metrics.setdefault(f"{prefix}_{name}", value)
        return output

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Any, Any, Any]:
        loss, logits, labels = super().prediction_step(model, inputs, False, ignore_keys)
        if self.scores is not None and self.args.world_size <= 1:
            self.scores.add(inputs, logits)
        if prediction_loss_only:
            return loss, None, None
        return loss, *self.program.likelihood.for_metrics(logits, labels)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        try:
            is_best = bool(super()._determine_best_metric(metrics, trial))
        except KeyError:
            raise watching.no_metric(self.args, metrics) from None
        if is_best and self.args.load_best_model_at_end:
            self.control.should_save = True  # between the steps to save at, too: what is not saved cannot be restored
        return is_best

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log a line; a training loss is followed by its parts, the NLL and the KLs, as they enter it."""
        if "loss" in logs and (terms := self.recorder.since_last_line()) is not None:
            means = self.accelerator.reduce(terms.to(self.args.device), "mean").tolist()
            logs = watching.with_parts(logs, dict(zip(self.recorder.names, means, strict=True)))
        super().log(logs, start_time)

    def _loader(self, source: Source | None) -> DataLoader[Any] | None:
        """Return the user's own loader, if one was given."""
        return self.accelerator.prepare(source.loader) if source and source.loader else None

    def _init_training_state(
        self, max_steps: int, per_epoch: int, epochs: int, checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        """Restore what the checkpoint says of the fit so far; what the arguments say, they say."""
        started = super()._init_training_state(max_steps, per_epoch, epochs, checkpoint, trial)
        if checkpoint is None:
            return started
        self.state.compute_steps(self.args, max_steps)
        self.state.train_batch_size = self._train_batch_size
        best, is_needed = self.state.best_global_step, self.args.load_best_model_at_end
        self.state.best_model_checkpoint = checkpoints.best(Path(checkpoint), best, is_needed, self.resumes_anyway)
        with states.continuing(checkpoint):
            return (epochs, 0) if states.has_stopped(self.callback_handler.callbacks, self.state) else started

    optimizer: torch.optim.Optimizer | None

    @arguments.naming()
    def _prepare_for_training(self, max_steps: int, *others: Any, **settings: Any) -> Any:
        self.program.num_steps = max_steps  # rates of the optimiser, and methods, depend on it
        return super()._prepare_for_training(max_steps, *others, **settings)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimiser; spreads and parameters of the likelihood have their own rates and no weight decay.

        A method may step some parameters in its own way (`Method.optimizer_groups`).

        Adam's steps have the size of the learning rate, whatever the unit: if outputs are in the thousands, the output
        layer needs steps in the thousands.
        """
        if self.optimizer is None:
            cls, kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.program)
            own = self.program.method.optimizer_groups(self.program, self.args.learning_rate)
            cls = natural.with_natural_steps(cls) if own else cls
            taken = {id(parameter) for group in own for parameter in group["params"]}
            self.optimizer = cls([*self._groups(taken), *own], **kwargs)
        return self.optimizer

    def _groups(self, taken: set[int]) -> list[dict[str, Any]]:
        """Return the groups of the parameters that the Trainer's optimiser steps, by where each of them is."""
        method, likelihood = self.program.method, self.program.likelihood
        rate, decay, unit = self.args.learning_rate, self.args.weight_decay, likelihood.unit
        of_spreads = rate if method.guide_learning_rate is None else method.guide_learning_rate
        groups: dict[str, dict[str, Any]] = {
            "places": {"params": [], "weight_decay": decay},
            "outputs": {"params": [], "weight_decay": decay / unit, "lr": rate * unit},
            "spreads": {"params": [], "weight_decay": 0.0, "lr": of_spreads},
            "likelihood": {"params": [], "weight_decay": 0.0, "lr": likelihood.learning_rate},
        }
        spreads = {id(parameter) for parameter in guides.spreads(self.program.guide)}
        for name, parameter in self.program.trainable():
            if id(parameter) in taken:
                continue
            if name.startswith("likelihood."):
                kind = "likelihood"
            elif id(parameter) in spreads:
                kind = "spreads"
            else:
                kind = "outputs" if unit != 1 and self.program.network.is_of_output(name) else "places"
            groups[kind]["params"].append(parameter)
        return [group for kind, group in groups.items() if group["params"] or kind == "places"]

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        # A clipped gradient would have another optimum: natural steps have no use for it.
        steps_of_its_own = natural.parameters(self.optimizer)
        if not steps_of_its_own:
            return super()._clip_grad_norm(model)
        others = [parameter for parameter in model.parameters() if id(parameter) not in steps_of_its_own]
        return self.accelerator.clip_grad_norm_(others, self.args.max_grad_norm)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        if self.labels_unseen:
            self.program.likelihood.check_labels(inputs["labels"].cpu())
        # The Trainer calls the model with a mapping only, so that this flag goes in with the network's inputs.
        call = {**inputs, "rows_by_draw": True} if self.rows_by_draw else inputs
        step = partial(super().training_step, model, call, num_items_in_batch)
        first_step, self.first_step = self.first_step, None
        with at_work(self.program.network):  # checkpoints of activations find the factors again in the backward pass
            loss = step() if first_step is None else first_step(step)
        self.recorder.record(self.program)
        self.last_good.after_backward(self, loss, inputs)
        return loss

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self.args.should_save:
            self.recorder.flush()
            self.posterior.save(output_dir or self.args.output_dir)
            torch.save(self.args, f"{output_dir or self.args.output_dir}/training_args.bin")

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint, then the file that says that it is whole, and only then remove older ones."""
        self.last_good.check_state(self)
        folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with failing.writing_a_checkpoint(folder):
                if self.args.should_save:
                    checkpoints.remove(folder)  # one that was passed over
                self.accelerator.wait_for_everyone()
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()  # each process writes its random state
                if self.args.should_save:
                    checkpoints.complete(folder, self.fit_record)
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save:
            checkpoints.rotate(folder.parent, limit, self.state.best_model_checkpoint)

    @cached_property
    def fit_record(self) -> dict[str, Any]:
        """What the fit's steps depend on, to compare checkpoints with."""
        program = self.program
        start = bases.identity(program.network) | ({} if program.start is None else {"init": program.start})
        return checkpoints.fit_record(
            self.posterior.record(), self.train_source, self.tuning_data, self.args, program.prior, start
        )

    @property
    def states(self) -> list[str]:
        """Files of a checkpoint without which a fit does not go on as if it had not stopped."""
        single = self.args.world_size <= 1
        names = [SCHEDULER_NAME, "rng_state.pth" if single else f"rng_state_{self.args.process_index}.pth"]
        if not (self.is_deepspeed_enabled or self.is_fsdp_enabled):  # which write folders of their own
            names.append(OPTIMIZER_NAME)
        if getattr(self.accelerator, "scaler", None) is not None:
            names.append(SCALER_NAME)
        return names

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        tensors, record = storage.load_files(resume_from_checkpoint)
        with states.continuing(resume_from_checkpoint):
            with storage.of_this_base():
                bases.put_new(self.program.network, tensors)
                storage.check_base(self.program.network, tensors.pop("fingerprint"))
                bases.check(self.program.network, tensors.pop("base_fingerprint", None))
            storage.load_state(self.program, tensors)
        self.recorder.restore(storage.history(tensors, record))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        exact = not (self.resumes_anyway or self.is_deepspeed_enabled or self.is_fsdp_enabled)
        with states.continuing(checkpoint), states.due_rates(self, checkpoint if exact else None):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with states.continuing(checkpoint):
            super()._load_rng_state(checkpoint)

    def _load_best_model(self) -> None:
        storage.load_state(self.program, storage.load_files(self.state.best_model_checkpoint)[0])


def _collated(source: Source, rows: list[Any]) -> dict[str, Any]:
    """Make a batch of rows; rows of several readers become blocks of it.

    No method: workers that are not forked get a copy, and the Trainer has none.
    """
    if isinstance(rows[0], tuple):
        rows = [row for block in zip(*rows, strict=True) for row in block]
    return source.collate(rows)


class AfterStep(TrainerCallback):
    """A callback for the method's hook after the optimiser's step, while the gradients are still there."""

    def __init__(self, program: Program):
        self.program = program

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        self.program.method.after_step(self.program, state.global_step + 1)


class Tune(TrainerCallback):
    """A callback for the method's hook for held-out data, with as many examples as its share of the cost allows."""

    def __init__(self, program: Program, held_out: Source, tuning: Tuning):
        self.program = program
        self.held_out = held_out
        self.tuning = tuning
        self.steps: list[int] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        steps = [max(1, round(moment * state.max_steps)) for moment in self.tuning.moments]
        self.steps = [step for step in steps if step > state.global_step]

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        if state.global_step not in self.steps:
            return
        seen = state.max_steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        budget = TUNING_SHARE * PASSES_PER_STEP * seen / len(self.tuning.moments) / self.tuning.passes
        # Every process takes the same examples and draws: their parameters stay equal.
        with seeded(state.global_step):
            batches = self._batches(max(FEWEST_TUNING, int(budget)))
            with evaluating(self.program):
                self.program.method.tune(self.program, batches)

    def _batches(self, size: int) -> list[Batch]:
        """Return batches of a number of held-out examples, or of all, on the program's device."""
        part = self.held_out
        in_order = part.loader is not None or part.is_stream
        if not in_order and size < len(part):
            part = part.take(torch.randperm(len(part))[:size].tolist())
        batches: list[Batch] = []
        for _, batch in part.batches_by_length(TUNING_BATCH):
            batches.append(to_device(batch, self.program.device))
            if in_order and sum(len(b["labels"]) for b in batches) >= size:
                break
        return batches


class GiveWay(TrainerCallback):
    """Lets waiting calls of other threads run between steps, and keeps what accelerate knows of this run."""

    def __init__(self, accelerator: Any):
        self.accelerator = accelerator

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **others: Any,
    ) -> None:
        # It is kept once in the process, and `TrainingArguments`, made in any thread, empty it.
        for own in (self.accelerator.state, optimizer.accelerator_state):
            own.__dict__ = dict(vars(own))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        states = (PartialState, AcceleratorState, GradientState)
        own = [dict(state._shared_state) for state in states]
        give_way()
        for state, content in zip(states, own, strict=True):
            state._shared_state.clear()
            state._shared_state.update(content)

    on_substep_end = on_prediction_step = on_step_end
