"""PyTorch's own transformer encoders, whose layers have to be called for an adapter to be."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

SIGNATURE = inspect.signature(nn.TransformerEncoder.forward)


def leave_fused_encoders(model: nn.Module) -> None:
    """Let PyTorch's transformer encoders call their layers: the fused kernel for inference only reads their weights.

    In evaluation mode, encoders also take rows without their padding, as nested tensors, which neither have rows of
    several draws nor gradients. Here they do not, and their output at the padding is what it would be: zero, normed.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder) and getattr(module, "use_nested_tensor", False):
            module.use_nested_tensor = False
            module.register_forward_hook(_without_padding, with_kwargs=True)


def _without_padding(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> Tensor:
    given = SIGNATURE.bind(module, *args, **kwargs).arguments
    padding = given.get("src_key_padding_mask")
    if padding is None or given.get("mask") is not None or output.dim() != 3 or module.layers[0].training:
        return output
    if not torch.backends.mha.get_fastpath_enabled() or torch.is_autocast_enabled():
        return output
    kept = padding == 0  # also where -inf stands for padding
    # PyTorch does so only if all padding is at the ends of rows.
    at_ends = (kept[:, 1:] <= kept[:, :-1]).all()
    fill = output.new_zeros(output.shape[-1])
    fill = fill if module.norm is None else module.norm(fill)
    return torch.where(kept[..., None] | ~at_ends, output, fill)
