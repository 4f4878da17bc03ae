"""Frozen weights: the shape of a linear layer, the orientation of its weight, and sharing it."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


def is_transposed(layer: object) -> bool:
    """Return whether a linear layer stores its weight as `[d_in, d_out]`, as GPT-2's `Conv1D` does."""
    return type(layer).__name__ == "Conv1D" and hasattr(layer, "nf")


def features(module: Any) -> tuple[int, int] | None:
    """Return `(d_in, d_out)` of a linear layer, None for any other module."""
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return int(module.in_features), int(module.out_features)
    return (int(module.nx), int(module.nf)) if is_transposed(module) else None


def oriented(layer: object, weight: Tensor) -> Tensor:
    """Turn a weight from the layer's orientation to `[d_out, d_in]`, or back."""
    return weight.T if is_transposed(layer) else weight


def frozen_weight(layer: Any) -> Float[Tensor, "d_out d_in"]:
    """Return the weight of a linear layer.

    Raises:
        ValueError: If it is quantised.
    """
    weight = layer.weight.detach()
    if not weight.is_floating_point():
        raise ValueError(
            f"{type(layer).__name__} holds quantised weights ({weight.dtype}), whose rows DoRA cannot measure: load "
            "the base model unquantised, or use a family that does not need them, such as low rank."
        )
    return oriented(layer, weight)


def precise(weight: Tensor) -> Tensor:
    """Return a weight in single precision, or in double if it is in double."""
    return weight if weight.dtype == torch.float64 else weight.float()


def share_weights(model: nn.Module, heads: Sequence[str]) -> nn.Module:
    """Copy a model's modules around the same frozen weights; the heads get copies of theirs."""
    memo: dict[int, Any] = {}
    for name, parameter in model.named_parameters():
        if is_within(name, heads):
            memo[id(parameter)] = nn.Parameter(parameter.detach().clone())
        elif type(parameter) is nn.Parameter:
            memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
        else:  # quantised weights carry their own state and are frozen already
            memo[id(parameter)] = parameter
    return copy.deepcopy(model, memo)


def is_within(name: str, modules: Sequence[str]) -> bool:
    """Return whether a module or parameter is one of some modules, or within one, by their full names."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)
