"""What is seen of a fit while it trains: its history, scores of held-out data at the centre, and lines of the log."""

import functools
import logging
import math
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from bayeslora.contracts import ArgumentError
from bayeslora.data import Source, to_device
from bayeslora.isolation import seeded
from bayeslora.posterior import Posterior
from bayeslora.prediction import centre_sites, labelled
from bayeslora.program import Program
from bayeslora.showing import has_stderr
from bayeslora.types import Batch, History

logger = logging.getLogger(__name__)

OF_THE_TRAINER = frozenset(("loss", "runtime", "samples_per_second", "steps_per_second", "model_preparation_time"))
"""What the Trainer itself says of an evaluation."""

RECORDED = 50
"""Steps whose losses stay on the device, before they are moved into the history together."""


class Recorder(TrainerCallback):
    """A record of the terms of every step's loss, collected on the device and turned into columns when asked."""

    def __init__(self, history: History):
        self.history = history
        self.names: list[str] = []
        self.pending: list[tuple[int, float, torch.Tensor]] = []
        self.parts: list[torch.Tensor] = []
        self.line: torch.Tensor | None = None
        self.line_steps = 0

    def record(self, program: Program) -> None:
        """Keep the terms of a batch's loss."""
        self.names, values = program.last_terms
        self.parts.append(values)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        mean = torch.stack(self.parts).mean(0)
        self.pending.append((state.global_step, state.epoch, mean))
        self.line = mean if self.line is None else self.line + mean
        self.line_steps += 1
        self.parts = []
        if len(self.pending) >= RECORDED:
            self.flush()

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **others: Any,
    ) -> None:
        self.flush()
        if metrics and "eval_loss" in metrics and self.history:
            self.history.setdefault("validation_nll", [math.nan] * len(self.history["step"]))
            self.history["validation_nll"][-1] = metrics["eval_loss"]

    def flush(self) -> None:
        """Move the collected terms into the columns, in one transfer from the device."""
        if not self.pending:
            return
        rows = torch.stack([terms for _, _, terms in self.pending]).cpu().double()
        labels = self.names.index("labels")
        columns: History = {
            "step": [step for step, _, _ in self.pending],
            "epoch": [epoch for _, epoch, _ in self.pending],
            "loss": rows.sum(1).tolist(),
            "nll": rows[:, labels].tolist(),
        }
        columns |= {name: rows[:, i].tolist() for i, name in enumerate(self.names) if i != labels}
        if "validation_nll" in self.history:
            columns["validation_nll"] = [math.nan] * len(rows)
        for name, values in columns.items():
            self.history.setdefault(name, []).extend(values)
        self.pending = []

    def since_last_line(self) -> torch.Tensor | None:
        """Return the mean of the terms over the steps since this was called last, `[term]`; None without a step."""
        line, steps, self.line, self.line_steps = self.line, self.line_steps, None, 0
        return None if line is None else line / steps

    def restore(self, columns: History) -> None:
        """Continue the columns of a checkpoint."""
        self.history.clear()
        self.history.update(columns)


class CentreScores:
    """The scores that `evaluate` gives of the centre, from the logits of batches as an evaluation makes them.

    Args:
        posterior: The posterior that is trained.
        source: The held-out data.
        by_length: Whether its examples come in the order of `shortest_first`, and not in their own.
    """

    def __init__(self, posterior: Posterior, source: Source, by_length: bool):
        self.posterior = posterior
        self.source = source
        self.order = source.shortest_first() if by_length else None
        self.start()

    def start(self) -> None:
        """Begin an evaluation."""
        self.collector = self.posterior.program.likelihood.collector(True, self.source.context)
        self.seen = 0

    def add(self, batch: Batch, logits: Tensor) -> None:
        """Take in the centre's logits of a batch, `[batch, …]`."""
        stop = self.seen + len(batch["labels"])
        where = np.arange(self.seen, stop) if self.order is None else self.order[self.seen : stop]
        with seeded(0):  # summaries of tokens draw some
            self.collector.add(where, batch, iter([logits.unsqueeze(0)]))
        self.seen = stop

    def result(self) -> dict[str, float]:
        """Return the scores of what was added."""
        return self._scores(self.collector.result())

    def whole(self, batch_size: int) -> dict[str, float]:
        """Return the scores of all examples, by a pass over them."""
        program = self.posterior.program
        return self._scores(labelled(program, self.source, centre_sites(program), 0, batch_size, "draws")[0])

    def names(self) -> set[str]:
        """Return the names of the scores, found from the first few examples."""
        program = self.posterior.program
        with seeded(0), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of scores that two examples do not have
            batch = to_device(self.source.first_batch(), program.device)
            was_training = program.training
            logits = program.eval()(**batch).logits
            program.train(was_training)
            self.add(batch, logits)
            found = {*self.result()}
        self.start()
        return found

    def _scores(self, outputs: Any) -> dict[str, float]:
        prediction = self.posterior.program.likelihood.predict(outputs, 1.0, self.posterior.class_names)
        return prediction.scores(outputs.labels)


def metrics_by(compute_metrics: Callable[..., Any] | None) -> Callable[..., Any] | None:
    """Return a user's function of predictions with its result checked, and without what would hide the held-out NLL."""
    if compute_metrics is None:
        return None

    @functools.wraps(compute_metrics, updated=())  # the Trainer looks for `compute_result` in the signature
    def checked(*given: Any, **settings: Any) -> Any:
        try:
            found = compute_metrics(*given, **settings)
        except Exception as error:
            error.add_note("It was raised by compute_metrics.")
            raise
        if not settings.get("compute_result", True):  # of a batch that is not the last
            return found
        if not isinstance(found, Mapping):
            raise ArgumentError(
                f"compute_metrics returned {found!r:.40}: return a mapping from names to numbers, {{'accuracy': 0.9}}."
            )
        hidden = [name for name in found if name in ("loss", "eval_loss")]
        if hidden:
            logger.warning("compute_metrics returns %r, which is the held-out NLL's name: give it another.", hidden[0])
        return {name: value for name, value in found.items() if name not in hidden}

    return checked


def check_metric(args: TrainingArguments, scores: CentreScores, compute_metrics: Callable[..., Any] | None) -> None:
    """Raise a ValueError if there is no metric by which the best model is to be found, as far as that can be told."""
    if args.metric_for_best_model is None or compute_metrics is not None:
        return
    name = args.metric_for_best_model.removeprefix("eval_")
    if name not in OF_THE_TRAINER and name not in (known := scores.names()):
        raise no_metric(args, known)


def no_metric(args: TrainingArguments, known: Any) -> ValueError:
    """Return the error that there is no metric by which the best model is to be found."""
    names = sorted({name.removeprefix("eval_") for name in known} - OF_THE_TRAINER - {"epoch"})
    return ValueError(
        f"metric_for_best_model={args.metric_for_best_model!r}: evaluation gives 'loss', "
        f"{', '.join(map(repr, names))}. Name one of these, or compute it, compute_metrics=…."
    )


def show_lines(trainer: Trainer, wanted: bool) -> None:
    """Let lines of the log be printed where there is no bar, or no terminal for one; none where none are wanted."""
    has_bar = has_stderr() and sys.stderr.isatty()
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback) is PrinterCallback and not wanted:
            trainer.remove_callback(callback)
        elif type(callback) is ProgressCallback and wanted and not has_bar:
            trainer.remove_callback(callback)
            trainer.add_callback(PrinterCallback)


def with_parts(logs: dict[str, float], terms: Mapping[str, float]) -> dict[str, float]:
    """Return a line of the log whose `loss` is followed by its parts: `nll`, and `kl` with everything else.

    Args:
        logs: The line.
        terms: Means of the terms of the loss since the last line; the NLL is called `labels`.
    """
    rest = [value for name, value in terms.items() if name != "labels"]
    parts = {"nll": terms["labels"], **({"kl": sum(rest)} if rest else {})}
    return {"loss": logs["loss"], **parts, **{name: value for name, value in logs.items() if name != "loss"}}
