"""Adapters in and out: PEFT's LoRA format, and merging into the base weights."""

import copy
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora.adapters import AdaptedNetwork, Factors, LowRank, Stacks
from bayeslora.adapters.network import share_weights
from bayeslora.program import Program

PREFIX = "base_model.model."


@dataclass(frozen=True)
class Adapters:
    """Trained low-rank adapters, layer by layer, and the task head trained with them.

    Args:
        factors: Module name to `A` `[rank, d_in]` and `B` `[d_out, rank]`.
        scaling: Module name to s.
        head: The task head's parameters, by their names in the model; empty if the adapters came without one.
    """

    factors: Mapping[str, Factors]
    scaling: Mapping[str, float]
    head: Mapping[str, Tensor]

    def network_settings(self) -> dict[str, Any]:
        """Targets, ranks and alphas for an `AdaptedNetwork` with the same layers."""
        ranks = {name: len(value.A) for name, value in self.factors.items()}
        alphas = {name: self.scaling[name] * rank for name, rank in ranks.items()}
        return {"targets": list(self.factors), "rank": ranks, "alpha": alphas}

    def stacked(self, stacks: Stacks) -> dict[str, Factors]:
        """Factors by stack, `[layer, …]`."""
        return {
            name: Factors(
                *(torch.stack(part) for part in zip(*(self.factors[n] for n in stack.layer_names), strict=True))
            )
            for name, stack in stacks.items()
            if not stack.in_head
        }

    def start(self, program: Program) -> None:
        """Make these the starting point of a program over the same layers.

        Raises:
            ValueError: If the head does not fit the network's.
        """
        # The trained head is the head's frozen weights; what a method adds to them starts at no change.
        head = {name: stack.initial() for name, stack in program.stacks.items() if stack.in_head}
        program.guide.start(self.stacked(program.stacks) | head)  # type: ignore[operator]
        if self.head:
            program.network.load_head(self.head)


def from_program(program: Program) -> Adapters:
    """The centre of a fitted program.

    Raises:
        TypeError: If its adapters are not low rank.
    """
    body = {name: stack for name, stack in program.stacks.items() if not stack.in_head}
    for stack in body.values():
        if not isinstance(stack.family, LowRank):
            raise TypeError(f"{type(stack.family).__name__} adapters are no low-rank factors to start from.")
    with torch.no_grad():
        centre = program.factors_at(program.centre())
    layers: dict[str, Factors] = {}
    scaling: dict[str, float] = {}
    for name, stack in body.items():
        for index, layer in enumerate(stack.layer_names):
            layers[layer] = Factors(*(factor[index].clone() for factor in centre[name]))
            scaling[layer] = float(program.network.scaling(name)[index])
    return Adapters(layers, scaling, trained_head(program.network, centre))


def trained_head(network: AdaptedNetwork, factors: Mapping[str, Any]) -> dict[str, Tensor]:
    """The task head's parameters, by their names in the model, with the factors of its layers, if any, folded in."""
    state = {name: value.clone() for name, value in network.head_state().items()}
    for name, value in network.scaled({n: f for n, f in factors.items() if network.stacks[n].in_head}).items():
        stack, bases = network.stacks[name], network.bases(name)
        changes = {"weight": stack.family.delta(value, bases), "bias": stack.family.bias_delta(value)}
        for part, change in changes.items():
            if change is not None:
                for layer, its_change in zip(stack.layer_names, change, strict=True):
                    key = f"{layer}.{part}"
                    state[key] = state.get(key, 0) + its_change
    return state


def is_peft_model(model: object) -> bool:
    """Whether a model is one of PEFT's, told without importing it."""
    return any(cls.__name__ == "PeftModel" for cls in type(model).__mro__)


def from_peft(model: nn.Module) -> Adapters:
    """The active LoRA adapter of a PEFT model.

    Raises:
        ValueError: If the adapter is of a kind whose update is not `B A` alone.
    """
    from peft import get_peft_model_state_dict

    config = model.peft_config[model.active_adapter].to_dict()  # type: ignore[index, union-attr]
    return _from_peft(config, get_peft_model_state_dict(model))


def from_peft_folder(folder: str | os.PathLike[str]) -> Adapters:
    """A LoRA adapter that PEFT saved: `adapter_config.json` and `adapter_model.safetensors`.

    Raises:
        FileNotFoundError: If the folder holds none.
        ValueError: If the adapter is of a kind whose update is not `B A` alone.
    """
    from safetensors.torch import load_file

    config, weights = (Path(folder) / name for name in ("adapter_config.json", "adapter_model.safetensors"))
    for path in (config, weights):
        if not path.is_file():
            raise FileNotFoundError(f"{folder} holds no PEFT adapter: there is no {path.name} in it.")
    return _from_peft(json.loads(config.read_text()), load_file(weights))


def base_of_peft(model: nn.Module) -> nn.Module:
    """A PEFT model's base, with the task head that was trained with the adapters; the PEFT model stays as it is."""
    return share_weights(model, ()).unload()  # type: ignore[operator]


def _from_peft(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Adapters:
    if str(config["peft_type"]).rpartition(".")[2] != "LORA":
        raise ValueError(f"The PEFT adapter is of type {config['peft_type']}; only LORA can be a starting point.")
    for option, plain in (("use_dora", False), ("bias", "none"), ("monteclora_config", None)):
        if config.get(option, plain) not in (plain, None):
            raise ValueError(
                f"The PEFT adapter has {option}={config[option]!r}: its update is not B A alone. Only plain LoRA can "
                "be a starting point."
            )
    factors: dict[str, dict[str, Tensor]] = {}
    head = {}
    for key, value in state.items():
        name = key.removeprefix(PREFIX)
        if match := re.fullmatch(r"(.+)\.lora_([AB])(?:\.[^.]+)?\.weight", name):
            factors.setdefault(match[1], {})[match[2]] = value.detach().float()
        elif "lora_" in name:
            raise ValueError(f"The PEFT adapter has weights {key!r}, which are no linear layer's A or B.")
        else:
            head[name] = value.detach()
    layers = {name: Factors(parts["A"], parts["B"]) for name, parts in factors.items()}
    return Adapters(layers, {name: _peft_scaling(config, name, len(f.A)) for name, f in layers.items()}, head)


def _peft_scaling(config: Mapping[str, Any], name: str, rank: int) -> float:
    """The scaling alpha / rank, or alpha / √rank (rsLoRA), with PEFT's patterns over module names."""
    patterns = config.get("alpha_pattern") or {}
    alpha = next((a for key, a in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), config["lora_alpha"])
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def merge(network: AdaptedNetwork, factors: Mapping[str, Any]) -> nn.Module:
    """A plain model with the given factors folded into the weights of a copy of the network.

    Args:
        network: The adapted network.
        factors: Factors by stack, without draws.

    Raises:
        ValueError: If a base layer is quantised.
    """
    scaled = network.scaled(factors)
    merged = copy.deepcopy(network)
    for stack in network.stacks.values():
        bases = merged.bases(stack.name)
        with torch.no_grad():
            weights = stack.family.delta(scaled[stack.name], bases)
            biases = stack.family.bias_delta(scaled[stack.name])
        for index, (name, base) in enumerate(zip(stack.layer_names, bases, strict=True)):
            if weights is not None:
                _add_to_weight(base, weights[index], name)
            if biases is not None:
                _add_to_bias(base, biases[index])
            parent, _, child = name.rpartition(".")
            setattr(merged.model.get_submodule(parent), child, base)
    return merged.model


def _add_to_weight(layer: Any, change: Tensor, name: str) -> None:
    weight = layer.weight
    if not weight.is_floating_point():
        raise ValueError(
            f"Layer {name!r} is quantised ({weight.dtype}); merging would lose the adapter to rounding. "
            "Load the base model unquantised, load the posterior onto it, and merge that."
        )
    # GPT-2's Conv1D keeps its weight transposed.
    change = change.T if type(layer).__name__ == "Conv1D" else change
    layer.weight = nn.Parameter((weight.detach().to(change.dtype) + change).to(weight.dtype), requires_grad=False)


def _add_to_bias(layer: Any, change: Tensor) -> None:
    bias = torch.zeros_like(change) if layer.bias is None else layer.bias.detach()
    layer.bias = nn.Parameter((bias.to(change.dtype) + change).to(bias.dtype), requires_grad=False)
