"""Fits that break off: losses that are no number any more, and the last state before that."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora.posterior import Posterior
from bayeslora.program import Program
from bayeslora.runaway import DivergedError as DivergedError
from bayeslora.runaway import is_good, read, stays


class LastGood:
    """Keeps the learned state of the last step whose loss and gradient were good; stops the fit where they are not.

    The copy costs what one more optimiser moment would: a fraction of a percent of the model.

    Attributes:
        step: How many steps had led to the copies; None before the first batch. The history's last loss is theirs.
    """

    def __init__(self, program: Program):
        self.program = program
        self.parameters = [parameter for _, parameter in program.trainable()]
        # Running statistics of a head: the pass that gives the bad loss has spoiled them already.
        heads = [program.network.model.get_submodule(name) for name in program.network.head_names]
        self.buffers = [buffer for head in heads for buffer in head.buffers() if buffer.is_floating_point()]
        self.copies = [value.detach().clone() for value in self._values()]
        self.start: float | None = None
        self.step: int | None = None

    def after_backward(self, trainer: Any, loss: Tensor, batch: dict[str, Any]) -> None:
        """Check a batch's loss and gradients, which the optimiser has not used yet.

        Raises:
            DivergedError: If they are not good.
        """
        # Half-precision training scales the loss so far up that infinite gradients are part of its search.
        scaled = getattr(trainer.accelerator, "scaler", None) is not None
        gradients = [] if scaled else [p.grad for p in self.parameters if p.grad is not None]
        found = read(loss, gradients)
        value = found[0]
        if self.start is None:
            self.start = next(iter(trainer.recorder.history.get("loss", ())), value)
        if is_good(found, self.start):
            torch._foreach_copy_(self.copies, self._values())
            self.step = trainer.state.global_step
            return
        number = trainer.state.global_step + 1
        raise DivergedError(self._message(trainer, value, batch), self.restored(trainer, f"diverged at step {number}"))

    def check_state(self, trainer: Any) -> None:
        """Check the state that the last step has left: no further loss may show it, and it may go into a checkpoint.

        Raises:
            DivergedError: If it is not finite, or so far from the last one that nothing of that is left.
        """
        if self.step is None or stays(self.parameters, self.copies[: len(self.parameters)]):
            return
        raise DivergedError(
            f"The last step, {trainer.state.global_step}, made learned parameters NaN, infinite or absurdly large. The "
            "posterior is at the last good state, before that step. Lower the learning rate (now "
            f"{trainer.args.learning_rate:.2g}).",
            self.restored(trainer, f"diverged at step {trainer.state.global_step}"),
        )

    def restored(self, trainer: Any, what_happened: str) -> Posterior:
        """The posterior at the last good state, which says what happened."""
        trainer.recorder.flush()
        with torch.no_grad():
            torch._foreach_copy_(self._values(), self.copies)
        trainer.program.eval()
        posterior: Posterior = trainer.posterior
        posterior.state = f"{what_happened} of {trainer.state.max_steps}"
        return posterior

    def _values(self) -> list[Tensor]:
        return [value.detach() for value in (*self.parameters, *self.buffers)]

    def _message(self, trainer: Any, loss: float, batch: dict[str, Any]) -> str:
        largest = {name: _largest(p.grad) for name, p in self.program.trainable() if p.grad is not None}
        worst = max(largest, key=lambda name: largest[name])
        shapes = ", ".join(f"{name} {tuple(v.shape)}" for name, v in batch.items() if isinstance(v, Tensor))
        against = f", from {self.start:.3g} at the start" if math.isfinite(loss) else ""
        return (
            f"Training stopped at step {trainer.state.global_step + 1} (epoch {trainer.state.epoch or 0:.2f}): the "
            f"loss is {loss:.6g}{against}, the largest gradient {largest[worst]:.3g}, of {worst!r}. Batch: {shapes}, "
            f"labels {batch['labels'].flatten()[:16].tolist()}. The posterior is at the last good state, before that "
            f"step. {self._advice(trainer, batch)}"
        )

    def _advice(self, trainer: Any, batch: dict[str, Any]) -> str:
        for name, value in batch.items():
            if isinstance(value, Tensor) and value.is_floating_point() and value.dim():
                bad = ~value.isfinite().reshape(len(value), -1).all(1)
                if bool(bad.any()):
                    row = int(bad.int().argmax())
                    return f"{name!r} is NaN or infinite in row {row} of that batch: remove or fill it."
        if trainer.state.global_step == 0:
            return "No step was made before it, so it is not the learning rate: look for extreme inputs in that batch."
        rate = trainer._get_learning_rate()
        return f"Lower the learning rate (now {rate:.2g}), or look for extreme inputs in that batch."


def check_weights(model: nn.Module) -> None:
    """Raise a ValueError that names them, if weights of a model are NaN: no learning rate would help."""
    read = {
        name: parameter.detach()
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point() and parameter.itemsize > 1 and parameter.numel() and not parameter.is_meta
    }
    # A sum reads fastest. It is NaN of opposite infinities, too.
    suspects = [name for name, value in read.items() if bool(value.sum().isnan())]
    bad = [name for name in suspects if bool(read[name].isnan().any())]
    if bad:
        shown = ", ".join(repr(name) for name in bad[:3]) + (", …" if len(bad) > 3 else "")
        raise ValueError(
            f"{len(bad)} of the model's {len(read)} parameters are NaN in places ({shown}): its checkpoint is damaged, "
            "or it was not loaded whole. Load it again."
        )


def _largest(gradient: Tensor) -> float:
    value = float(gradient.abs().max())
    return math.inf if math.isnan(value) else value
