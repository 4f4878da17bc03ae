"""The Trainer's arguments: those that a fit makes, and those that a user gives."""

import contextlib
import copy
import inspect
import logging
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch

from bayeslora.contracts import LARGEST_INTEGER, ArgumentError, Count, Natural, NonNegative, Share, Within, check_value
from bayeslora.origins import package
from bayeslora.types import Seed, Tokenizer

if TYPE_CHECKING:
    from transformers import TrainingArguments

logger = logging.getLogger(__name__)

LESS_IS_BETTER = frozenset(
    [
        *("nll", "nll_per_token", "perplexity", "ece", "adaptive_ece", "classwise_ece", "brier", "aurc"),
        *("rmse", "mae", "crps", "rps"),
    ]
)
"""Scores of `evaluate` that are better the smaller they are; the Trainer takes that for granted of losses alone."""


TRAINERS = ("transformers", "accelerate", "huggingface_hub")
"""Packages of the Trainer."""

FIELDS: dict[str, Any] = {
    "seed": Seed,
    "data_seed": Annotated[int, Within(at_least=0, at_most=LARGEST_INTEGER)] | None,
    "num_train_epochs": NonNegative,  # with max_steps, any number
    "max_steps": Literal[-1] | Count,
    "per_device_train_batch_size": Count,
    "per_device_eval_batch_size": Count,
    "gradient_accumulation_steps": Count,
    "learning_rate": NonNegative,
    "weight_decay": NonNegative,
    "max_grad_norm": NonNegative | None,
    "adam_beta1": Share,
    "adam_beta2": Share,
    "adam_epsilon": NonNegative,
    "warmup_steps": NonNegative,
    "dataloader_num_workers": Natural,
    "save_total_limit": int | None,
}
"""What the Trainer's arguments may be that it does not check itself, or in words that do not name them."""


def one_tokenizer(tokenizer: Tokenizer | None, processing_class: Tokenizer | None) -> Tokenizer | None:
    """Return the tokenizer, by whichever of its two names it was given; an `ArgumentError` if by both."""
    if tokenizer is not None and processing_class is not None:
        raise ArgumentError("processing_class is the Trainer's name of tokenizer, and both are given: leave one out.")
    return processing_class if tokenizer is None else tokenizer


def in_folder(args: "TrainingArguments", folder: str) -> "TrainingArguments":
    """Return a user's arguments with another name of their folder."""
    own = copy.copy(args)
    own.output_dir = folder
    return own


def check_shots(asked: Sequence[str], used: Sequence[str]) -> None:
    """Raise an `ArgumentError` if shots are given that no row of the data follows."""
    if asked and not used:
        raise ArgumentError(
            "shots precede questions with choices, which answer_letters reads, and data has none: give a table with "
            "the columns question, choices and answer, and likelihood='answer_letters'; or leave shots out."
        )


def check(
    args: "TrainingArguments | None", compute_metrics: Callable[..., Any] | None, has_held_out: bool, callbacks: Any
) -> None:
    """Raise a ValueError if training arguments ask for a loss that is not the method's, or for held-out data in vain.

    Args:
        args: The user's arguments.
        compute_metrics: The user's function.
        has_held_out: Whether there are held-out data.
        callbacks: The user's callbacks.
    """
    if not has_held_out and compute_metrics is not None:
        raise ValueError("compute_metrics is for held-out data, and there is none: pass validation=….")
    if compute_metrics is not None:
        _check_takes_one(compute_metrics)
    if not has_held_out and _stops_early(callbacks):
        raise ValueError("EarlyStoppingCallback goes by held-out data, and there is none: pass validation=….")
    if args is None:
        return
    if args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        raise ValueError(
            "FSDP is asked for, by args.fsdp or accelerate's configuration, but a posterior reads and saves whole "
            "weights, and on a CPU accelerate would leave them whole in silence. Leave it out: torchrun without it "
            "trains with DDP; a bfloat16 base and gradient_checkpointing=True save memory."
        )
    if args.deepspeed:
        raise ValueError(
            "args.deepspeed is given, and DeepSpeed parts the weights among processes, which a posterior reads and "
            "saves whole. Leave it out: torchrun trains with DDP."
        )
    for name, declaration in FIELDS.items():
        if hasattr(args, name):
            check_value(f"args.{name}", getattr(args, name), declaration)
    if args.label_smoothing_factor:
        raise ValueError(
            f"label_smoothing_factor={args.label_smoothing_factor}: the loss is the likelihood's, which knows nothing "
            "of smoothed labels. Set it to 0; what keeps predictions from being too sure is the posterior."
        )
    if args.neftune_noise_alpha is not None:
        raise ValueError(
            f"neftune_noise_alpha={args.neftune_noise_alpha}: noise on the embeddings is not part of any method here. "
            "Set it to None."
        )
    if args.torch_compile:
        raise ValueError(
            "torch_compile=True: a Pyro program cannot be compiled, and a fit would break off in its first step. Set "
            "it to False."
        )
    if args.use_liger_kernel:
        raise ValueError(
            "use_liger_kernel=True: Liger's kernels take the place of a model's own layers, and would not be put into "
            "the one that is fine-tuned here. Set it to False."
        )
    if args.push_to_hub:
        raise ValueError(
            "push_to_hub=True would push the Trainer's checkpoints. Set it to False, and push the posterior once it is "
            "fitted, posterior.push_to_hub(…)."
        )
    if args.eval_strategy != "no" and not has_held_out:
        raise ValueError(
            f"args.eval_strategy={args.eval_strategy.value!r} evaluates held-out data, and there is none: pass "
            "validation=…, or set it to 'no'."
        )
    if args.eval_on_start and not has_held_out:
        raise ValueError("args.eval_on_start=True evaluates held-out data, and there is none: pass validation=….")
    if _stops_early(callbacks) and (args.eval_strategy == "no" or args.metric_for_best_model is None):
        raise ValueError(
            "EarlyStoppingCallback goes by args.metric_for_best_model at each evaluation: set that, such as to 'loss', "
            "the NLL of held-out data, and args.eval_strategy to 'epoch'; or leave args out, which does it."
        )
    if compute_metrics is not None and args.eval_strategy == "no":
        raise ValueError(
            "compute_metrics is given, and args.eval_strategy='no', by which it would never be called: set it to "
            "'epoch' or 'steps'."
        )
    if compute_metrics is not None and args.prediction_loss_only:
        raise ValueError(
            "compute_metrics is given, and args.prediction_loss_only=True, by which it would never be called: set it "
            "to False."
        )


def check_a_batch(args: "TrainingArguments", rows: int | None) -> None:
    """Raise an `ArgumentError` if training arguments leave out the only batch there is.

    Args:
        args: The arguments.
        rows: Rows of the training data; None if that is not known.
    """
    size = args.train_batch_size * args.world_size
    if args.dataloader_drop_last and rows is not None and rows < size:
        raise ArgumentError(
            f"args.dataloader_drop_last=True leaves out what does not fill a batch, and data has {rows} rows, fewer "
            f"than the {size} of one: set it to False, or args.per_device_train_batch_size to less."
        )


@contextlib.contextmanager
def naming() -> Iterator[None]:
    """Let what the Trainer raises before the first step name its arguments; what a user's own code raises passes.

    Raises:
        ArgumentError: With the Trainer's error as its cause.
    """
    try:
        yield
    except OSError:  # the network's or the disk's
        raise
    except Exception as error:
        last = list(traceback.walk_tb(error.__traceback__))[-1][0]
        if package(last.f_globals.get("__name__")) not in TRAINERS:
            raise
        said = f"{type(error).__name__}: {error}".rstrip(".")
        raise ArgumentError(
            f"args (or callbacks) are such that transformers' Trainer cannot begin: {said}. Change what that names, or "
            "leave args out."
        ) from error


def _check_takes_one(compute_metrics: Callable[..., Any]) -> None:
    """Raise an `ArgumentError` if a metric cannot be called with one argument, before the first epoch is trained."""
    try:
        signature = inspect.signature(compute_metrics)
    except (TypeError, ValueError):  # of some functions written in C
        return
    try:
        signature.bind(None, **({"compute_result": True} if "compute_result" in signature.parameters else {}))
    except TypeError as error:
        raise ArgumentError(
            "compute_metrics is called with one argument, an EvalPrediction, which unpacks into logits and labels, "
            f"and yours is a function of {signature}: {error}."
        ) from None


def made(
    output_dir: str | os.PathLike[str], has_held_out: bool, saves: bool, callbacks: Sequence[Any], **settings: Any
) -> "TrainingArguments":
    """Return the arguments of a fit to which none are given.

    With an `EarlyStoppingCallback`, the epoch with the least NLL of held-out data is restored.

    Args:
        output_dir: The folder of checkpoints.
        has_held_out: Whether there are held-out data.
        saves: Whether the folder is the user's.
        callbacks: The user's callbacks.
        settings: Further arguments.
    """
    from transformers import TrainingArguments

    stops = _stops_early(callbacks)
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "save_total_limit": None if saves else 1}
    return TrainingArguments(
        output_dir=os.fspath(output_dir),  # of other paths than pathlib's, `str` is not the path
        report_to=[],
        logging_strategy="epoch",
        eval_strategy="epoch" if has_held_out else "no",
        save_strategy="epoch" if saves or stops else "no",
        dataloader_pin_memory=torch.cuda.is_available(),
        **(best if stops else {}),
        **settings,
    )


def point_down(args: "TrainingArguments") -> None:
    """Let the best model be the one with the smallest value of a score that is better the smaller it is."""
    name = (args.metric_for_best_model or "").removeprefix("eval_")
    if name in LESS_IS_BETTER and args.greater_is_better:
        logger.info("The best model has the smallest %s: greater_is_better=False.", name)
        args.greater_is_better = False


def _stops_early(callbacks: Sequence[Any]) -> bool:
    if not callbacks:  # and transformers, whose import takes seconds, may not be there yet
        return False
    from transformers import EarlyStoppingCallback

    return any(
        isinstance(each, EarlyStoppingCallback) or (isinstance(each, type) and issubclass(each, EarlyStoppingCallback))
        for each in callbacks
    )
