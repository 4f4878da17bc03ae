"""The Trainer's own files in a checkpoint: whether they say what the fit at hand would have written there."""

import contextlib
import math
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.optim.lr_scheduler import LambdaLR

from bayeslora import saving
from bayeslora.contracts import Count, fits

PLAIN = (bool, int, float, str, tuple, list, type(None))

WRITTEN_BY_OTHERS = (
    *(AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError),
    pickle.UnpicklingError,
)
"""What loading a state may raise that is cut short, or of another form than the Trainer's."""

NUMBER = (int, float)
KINDS: dict[str, Any] = {
    "epoch": NUMBER,
    "num_input_tokens_seen": int,
    "total_flos": NUMBER,
    "log_history": list,
    "best_metric": (*NUMBER, type(None)),
    "best_global_step": (int, type(None)),
    "best_model_checkpoint": (str, type(None)),
    "stateful_callbacks": dict,
}
"""What a fit goes on with of `trainer_state.json`, beside its step; the rest, it says itself."""

MOVING = ("lr", "last_epoch", "_step_count", "_last_lr", "_get_lr_called_within_step", "_is_initial")
"""What an optimiser's groups and a schedule of rates have that steps change, or that nothing depends on."""


class Unresumable(ValueError):
    """A checkpoint cannot be continued as the fit that was asked for."""


@contextlib.contextmanager
def continuing(checkpoint: str | None) -> Iterator[None]:
    """Say of which checkpoint it is that a state cannot be loaded, which somebody else has written.

    Raises:
        Unresumable: If it cannot.
    """
    try:
        yield
    except WRITTEN_BY_OTHERS as error:
        if isinstance(error, pickle.UnpicklingError):
            what = "a state in it holds more than numbers, which could run code"
        else:
            what = f"a state in it lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
            what = what or "a state in it ends too early"
        raise Unresumable(
            f"Cannot resume from {checkpoint}: {what[:300].rstrip('.')}. Set resume=False, or another output_dir."
        ) from error


def check_trainer(checkpoint: Path, step: int) -> Mapping[str, Any]:
    """Read a checkpoint's `trainer_state.json`.

    Args:
        checkpoint: The checkpoint.
        step: The step after which it was written.

    Raises:
        Unresumable: If the file is not one that the Trainer wrote then.
    """
    from transformers import TrainerState

    state = saving.read(checkpoint / "trainer_state.json")
    if state is None:
        what = "cannot be read"
    elif state.get("global_step") != step:
        what = f"is of step {state.get('global_step')!r:.50}"
    elif (batch := state.get("train_batch_size")) is not None and not fits(batch, Count):
        what = f"has train_batch_size={batch!r:.50}"
    elif unknown := [name for name in state if name not in TrainerState.__dataclass_fields__]:
        what = f"has {unknown[0]!r:.50}, which the Trainer does not know"
    elif wrong := [name for name, kind in KINDS.items() if name in state and not isinstance(state[name], kind)]:
        what = f"has {wrong[0]}={state[wrong[0]]!r:.50}"
    else:
        return state
    raise Unresumable(
        f"Cannot resume from {checkpoint}: its trainer_state.json {what}. Remove this checkpoint: an earlier one is "
        "taken then."
    )


@contextlib.contextmanager
def due_rates(trainer: Any, checkpoint: str | None) -> Iterator[None]:
    """Load optimiser and schedule in this: their rates have to be those that this fit would have come to.

    Args:
        trainer: Has both, made anew.
        checkpoint: Where their states are loaded from; None for no check.

    Raises:
        ValueError: If they are others.
    """
    if checkpoint is None:
        yield
        return
    scheduler, optimizer = trainer.lr_scheduler, trainer.optimizer
    fresh, fresh_groups = scheduler.state_dict(), optimizer.state_dict()["param_groups"]
    yield
    told, groups = scheduler.state_dict(), optimizer.state_dict()["param_groups"]
    for own, group in zip(fresh_groups, groups, strict=True):
        _check_same("optimizer", group, own)
    if not isinstance(scheduler, LambdaLR):  # whose rates follow from the step alone
        return
    _check_same("schedule", told, fresh)
    at, skips = told["last_epoch"], getattr(trainer.accelerator, "scaler", None) is not None
    if at != (step := int(checkpoint.rpartition("-")[2])) and not (skips and at in range(step)):
        raise ValueError(f"its schedule is of step {at!r:.50}")
    due = [rate * share(at) for rate, share in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
    for whose, rates in {"schedule": told["_last_lr"], "optimizer": [group["lr"] for group in groups]}.items():
        if len(rates) != len(due) or not all(map(_close, rates, due)):
            raise ValueError(f"its {whose} has the rates {rates!r:.100}, where {due!r:.100} are due")


def _check_same(whose: str, told: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    for name, value in own.items():
        if name not in MOVING and isinstance(value, PLAIN) and told.get(name) != value:
            raise ValueError(f"its {whose} has {name}={told.get(name)!r:.50}, and this fit's has {value!r:.50}")


def _close(one: Any, other: Any) -> bool:
    return math.isclose(float(one), float(other), rel_tol=1e-9, abs_tol=1e-300)


def has_stopped(callbacks: Sequence[Any], state: Any) -> bool:
    """Give each early stopping the count that a checkpoint says, and return whether one of them ends the fit there.

    The Trainer restores no state of callbacks on its own account, and would train on.

    Raises:
        ValueError: If the checkpoint's count is not one.
    """
    from transformers import EarlyStoppingCallback

    own = [each for each in callbacks if isinstance(each, EarlyStoppingCallback)]
    for kind in {type(each).__name__ for each in own}:
        named = [each for each in own if type(each).__name__ == kind]
        told = state.stateful_callbacks.get(kind, [])
        told = told[-len(named) :] if isinstance(told, list) else [told]  # a save appends to those of the one before
        for callback, its in zip(named, told, strict=False):
            count = its["attributes"]["early_stopping_patience_counter"]
            if type(count) is not int or count < 0:
                raise ValueError(f"its {kind} has counted {count!r:.50} evaluations without a better one")
            callback.early_stopping_patience_counter = count
    return any(each.early_stopping_patience_counter >= each.early_stopping_patience for each in own)
