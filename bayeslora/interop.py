"""Adapters out: merging into the base weights."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from bayeslora.adapters import AdaptedNetwork


def merge(network: AdaptedNetwork, factors: Mapping[str, Any]) -> nn.Module:
    """A plain model with the given factors folded into the weights of a copy of the network.

    Args:
        network: The adapted network.
        factors: Factors by stack, without draws.

    Raises:
        ValueError: If a base layer is quantised.
    """
    deltas = {name: network.family.delta(value) for name, value in network.scaled(factors).items()}
    merged = copy.deepcopy(network)
    for stack in network.stacks.values():
        for name, layer, delta in zip(stack.layer_names, merged.layers(stack.name), deltas[stack.name], strict=True):
            weight = layer.base.weight
            assert isinstance(weight, torch.Tensor)
            if not weight.is_floating_point():
                raise ValueError(
                    f"Layer {name!r} is quantised ({weight.dtype}); merging would lose the adapter to rounding. "
                    "Load the base model unquantised, load the posterior onto it, and merge that."
                )
            # GPT-2's Conv1D keeps its weight transposed.
            change = delta.T if type(layer.base).__name__ == "Conv1D" else delta
            with torch.no_grad():
                layer.base.weight = nn.Parameter(
                    (weight.to(change.dtype) + change).to(weight.dtype), requires_grad=False
                )
            parent, _, child = name.rpartition(".")
            setattr(merged.model.get_submodule(parent), child, layer.base)
    return merged.model
