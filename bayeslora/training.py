"""Trains a posterior: resumes, and keeps what a fit that breaks off has learned."""

import copy
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import SaveStrategy

from bayeslora import arguments, checkpoints, natural, several, stopping, storage, verdict, watching
from bayeslora.data import Source
from bayeslora.divergence import DivergedError
from bayeslora.posterior import Posterior
from bayeslora.trainer import ProgramTrainer
from bayeslora.trying import FirstStep

logger = logging.getLogger(__name__)

UNFINISHED = "unfinished"
"""Where the last good state of a fit is saved whose folder holds a finished posterior."""


def train(
    posterior: Posterior,
    source: Source,
    validation: Source | None,
    tuning_data: Source | None,
    args: TrainingArguments,
    callbacks: Sequence[Any],
    resume: bool | str,
    keep: bool,
    lines: bool,
    compute_metrics: Callable[..., Any] | None,
    first_step: FirstStep | None,
) -> None:
    """Train a posterior in place.

    Args:
        posterior: The posterior.
        source: Training data.
        validation: Held-out data, evaluated at the centre.
        tuning_data: Held-out data for methods that need some.
        args: The Trainer's arguments.
        callbacks: The user's callbacks.
        resume: Whether to go on from the newest whole checkpoint of the same fit; `"anyway"` of whatever fit it is.
        keep: Whether `args.output_dir` is the user's: then the last good state of a fit that breaks off is saved there.
        lines: Whether lines of the log are printed where there is no bar.
        compute_metrics: Metrics of the centre's logits and labels, after each evaluation.
        first_step: Runs the first step, and sees what adapters learn.

    Raises:
        DivergedError: If the loss becomes NaN or infinite, or runs away.
        Unresumable: If the checkpoint to resume from is of another fit, or lacks what a fit needs to go on.
    """
    args = copy.copy(args)
    args.remove_unused_columns = False  # its filter sees `forward(**batch)` and would drop every column
    args.label_names = ["labels"]
    args.logging_nan_inf_filter = False
    args._n_gpu = min(args.n_gpu, 1)  # copies of the program on several, one thread each, would share Pyro's handlers
    if args.ddp_find_unused_parameters is None:  # every learned parameter is in every step's loss
        args.ddp_find_unused_parameters = False
    arguments.point_down(args)
    settings = {"args": args, "callbacks": list(callbacks), "compute_metrics": watching.metrics_by(compute_metrics)}
    arguments.check_a_batch(args, None if source.is_stream or source.loader else len(source))
    with arguments.naming():
        trainer = ProgramTrainer(posterior, source, validation, tuning_data, lines, **settings)
    if trainer.scores is not None:
        watching.check_metric(args, trainer.scores, compute_metrics)
    trainer.first_step, trainer.resumes_anyway = first_step, resume == "anyway"
    checkpoint = _checkpoint(trainer, resume)
    if args.process_index > 0:  # with one seed for all, every process would draw the same noise
        torch.manual_seed(args.seed + args.process_index)
    with stopping.raising(keep and args.should_save):
        try:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            trainer.recorder.flush()
            trainer.last_good.check_state(trainer)
            verdict.have_settled(natural.distance(trainer.optimizer))
        except BaseException as error:
            if keep:
                with stopping.deaf():
                    _keep(trainer, error)
            raise
        finally:
            trainer.program.network.unbind()  # the last step's factors hold its whole graph
    if checkpoint is not None and checkpoints.step(checkpoint) == trainer.state.global_step:
        # There was no step to go on with, before which the Trainer restores it; what follows may draw.
        trainer._load_rng_state(str(checkpoint))


def _checkpoint(trainer: ProgramTrainer, resume: bool | str) -> Path | None:
    """The checkpoint to resume from, if any; where there is none, those of earlier fits are moved away."""
    if resume not in (True, False, "anyway"):
        raise ValueError(f"resume={resume!r}: give True, False or 'anyway'.")
    folder = Path(trainer.args.output_dir)
    if resume or trainer.args.save_strategy != SaveStrategy.NO:
        several.check_single(folder, resume)
    checkpoint = None
    if resume:
        checkpoint, passed_over = checkpoints.newest(folder, trainer.states)
        if passed_over:
            logger.warning(
                "Passed over in %s, as their writing or removing was interrupted, or a file changed: %s.",
                folder,
                ", ".join(path.name for path in passed_over),
            )
        logger.info("Resuming from %s.", checkpoint or "the start: there is no whole checkpoint yet")
    if resume or trainer.args.save_strategy != SaveStrategy.NO:
        trainer.fit_record  # noqa: B018 (reads a few rows, which are not to be read between steps)
    if checkpoint is not None:
        checkpoints.check(checkpoint, trainer.fit_record, trainer.states, resume == "anyway")
    elif trainer.args.should_save:
        checkpoints.set_aside(folder)
    return checkpoint


def _keep(trainer: ProgramTrainer, error: BaseException) -> None:
    """Save the last good state of a fit that breaks off, as a posterior that says so, and tell the error where."""
    if trainer.last_good.step in (None, 0) or not trainer.args.should_save:
        return
    posterior = trainer.posterior
    if not isinstance(error, DivergedError):
        what = error.signal if isinstance(error, stopping.Terminated) else type(error).__name__
        by = "" if isinstance(error, KeyboardInterrupt) else f" by {what}"
        posterior = trainer.last_good.restored(trainer, f"interrupted{by} at step {trainer.last_good.step + 1}")
    folder = Path(trainer.args.output_dir)
    if storage.is_finished(folder):
        folder /= UNFINISHED
    try:
        posterior.save(folder)
    except OSError as failure:  # the disk may be what the fit broke off for
        logger.error("The last good state is lost: %s", failure)
        return
    error.add_note(f"The posterior, {posterior.state}, is saved in {folder}.")
    # A process that a signal ends shows no traceback, where the note would stand.
    level = logging.WARNING if isinstance(error, stopping.Terminated) else logging.INFO
    logger.log(level, "The posterior, %s, is saved in %s.", posterior.state, folder)
