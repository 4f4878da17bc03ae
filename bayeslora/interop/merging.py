"""Adapters folded into the base weights."""

import logging
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora import filing
from bayeslora.adapters import AdaptedNetwork
from bayeslora.adapters.weights import (
    copied,
    has_own_weight,
    oriented,
    plain_weight,
    plain_weights,
    without_adapters,
)
from bayeslora.interop.peft_files import CONFIG
from bayeslora.interop.starting import distance
from bayeslora.types import Batch, FactorsByStack, Tokenizer

logger = logging.getLogger(__name__)

WEIGHTS = re.compile(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")
"""Files of weights, of which transformers reads the first that it finds: those of another model must not stay."""


def merge(network: AdaptedNetwork, factors: FactorsByStack, batch: Batch | None = None) -> nn.Module:
    """Return a plain model with the given factors folded into the weights of a copy of the network.

    Weights that an adapted layer computes from others (`torch.nn.utils.parametrize`) become parameters of its own.

    Args:
        network: The adapted network.
        factors: Factors by stack, without draws.
        batch: Inputs of the network on which both are compared, if there are any.

    Raises:
        ValueError: If a base layer is quantised, or the merged model differs on the batch.
    """
    scaled = network.scaled(factors)
    with without_adapters():
        merged = copied(network.model)
    gaining: list[str] = []
    for stack in network.stacks.values():
        bases = [merged.get_submodule(name) for name in stack.layer_names]
        with torch.no_grad():
            weights = stack.family.delta(scaled[stack.name], bases)
            biases = stack.family.bias_delta(scaled[stack.name])
        for index, (name, base) in enumerate(zip(stack.layer_names, bases, strict=True)):
            plain_weights(base)
            if weights is not None:
                _add_to_weight(base, weights[index], name)
            if biases is not None:
                gaining += [name] if base.bias is None else []
                _add_to_bias(base, biases[index])
    if gaining:
        logger.warning(
            "%d layers of the merged model, such as %s, have a bias that their class does not give them: saving "
            "keeps it, and from_pretrained would leave it out. Keep the posterior.",
            *(len(gaining), gaining[0]),
        )
    if batch is not None and (difference := distance(network, factors, merged, batch)):
        raise ValueError(
            f"The merged model's logits differ by {difference:.2g} on a batch from those of the adapters: a layer's "
            "weight is used in other ways than by its own call. Keep the posterior, and predict with center=True."
        )
    return merged


def save_merged(model: nn.Module, tokenizer: Tokenizer | None, folder: Path) -> None:
    """Save a merged model and its tokenizer as transformers does, at once; weights that were there before go.

    Raises:
        ValueError: If it is not a model of transformers, or the folder has a PEFT adapter, which would be put onto it.
        NotSavedError: If a file cannot be written.
    """
    if not hasattr(model, "save_pretrained"):
        raise ValueError(f"{type(model).__name__} is not a transformers model: merge it in Python, and save it.")
    if (folder / CONFIG).exists():
        raise ValueError(f"{folder} has a PEFT adapter, which would be put onto the merged model: give another folder.")

    def fill(beside: Path) -> None:
        model.save_pretrained(beside)  # type: ignore[operator]
        if tokenizer is not None:
            tokenizer.save_pretrained(beside)

    filing.write_folder(folder, fill, ["config.json"], lambda name: bool(WEIGHTS.fullmatch(name)))


def _add_to_weight(layer: Any, change: Tensor, name: str) -> None:
    weight = plain_weight(layer)
    if weight is None or not has_own_weight(layer):
        raise ValueError(
            f"Layer {name!r}, a {type(layer).__name__}, has no tensor 'weight' of its own to which a change could be "
            "added: its weights are packed, or computed from others. If it is quantised, load the base model "
            "unquantised, load the posterior onto it, and merge that; or predict with center=True."
        )
    if weight.is_complex():
        raise ValueError(f"Layer {name!r} has complex weights, and an adapter's are real: leave it out of `targets`.")
    if not weight.is_floating_point() or weight.element_size() < 2:
        raise ValueError(
            f"Layer {name!r} is quantised ({weight.dtype}); merging would lose the adapter to rounding. "
            "Load the base model unquantised, load the posterior onto it, and merge that."
        )
    change = oriented(layer, change)
    layer.weight = nn.Parameter((weight.detach().to(change.dtype) + change).to(weight.dtype), requires_grad=False)


def _add_to_bias(layer: Any, change: Tensor) -> None:
    bias = torch.zeros_like(change) if layer.bias is None else layer.bias.detach()
    layer.bias = nn.Parameter((bias.to(change.dtype) + change).to(bias.dtype), requires_grad=False)
