"""What a network is, takes and returns: its kind, its inputs, its logits."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora.types import Batch


def is_a(model: nn.Module | None, task: str) -> bool:
    """Return whether `transformers` lists a model's class for a task, such as `"CAUSAL_LM"`."""
    if not hasattr(model, "config"):
        return False
    from transformers.models.auto import modeling_auto

    listed = {*getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES").values()}
    # The user's own class counts as the class that it derives from.
    return any(cls.__name__ in listed for cls in type(model).__mro__)


def decoder_inputs(model: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """Return the function that turns labels into decoder inputs, for an encoder-decoder that writes text, else None.

    Such a network also reads its labels, shifted by one token: each is predicted from those before it.
    """
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return None
    own: Any = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    return None if own is None else lambda labels: own(labels=labels)


def forward_parameters(model: nn.Module) -> list[str]:
    """Return the names of the inputs that a network's `forward` takes, in its order, without `labels`."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(model.forward).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind in kinds and parameter.name != "labels"]


def logits_of(output: Any) -> Tensor:
    """Return the logits of a network's output; start and end logits of a span are stacked along the last dimension.

    Raises:
        TypeError: If there are none.
    """
    if isinstance(output, Tensor):
        return output
    if hasattr(output, "logits"):
        return output.logits
    if hasattr(output, "start_logits"):
        return torch.stack([output.start_logits, output.end_logits], dim=-1)
    raise TypeError(
        f"The network returned {type(output).__name__}, in which there are no logits: a tensor, or an output with "
        "`logits` or `start_logits` and `end_logits`, is needed. A bare encoder has none: load it with a task head."
    )


def base_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Return the logits of the unchanged network in evaluation mode; every module keeps its own mode."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            return logits_of(model.eval()(**inputs))
    finally:
        for module, mode in modes:
            module.training = mode
