"""Adapters in and out: starting points, PEFT's LoRA format, and merging into the base weights."""

import copy
import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora.adapters import AdaptedNetwork, Family, Stacks
from bayeslora.adapters.families import IN_PEFT
from bayeslora.adapters.weights import is_transposed, oriented, share_weights
from bayeslora.program import Program

PREFIX = "base_model.model."


@dataclass(frozen=True)
class Adapters:
    """Trained adapters, layer by layer, and the task head trained with them.

    Args:
        family: The adapters' family.
        factors: Module name to the factors of the layer, such as `A` `[rank, d_in]` and `B` `[d_out, rank]`.
        ranks: Module name to r.
        scaling: Module name to s.
        head: The task head's parameters, by their names in the model; empty if the adapters came without one.
    """

    family: Family
    factors: Mapping[str, Any]
    ranks: Mapping[str, int]
    scaling: Mapping[str, float]
    head: Mapping[str, Tensor]

    def network_settings(self) -> dict[str, Any]:
        """Targets, ranks and alphas for an `AdaptedNetwork` with the same layers."""
        alphas = {name: self.scaling[name] * rank for name, rank in self.ranks.items()}
        return {"targets": list(self.factors), "rank": self.ranks, "alpha": alphas}

    def stacked(self, stacks: Stacks) -> dict[str, Any]:
        """Factors by stack, `[layer, …]`."""
        return {
            name: self.family.factors(
                *(torch.stack(part) for part in zip(*(self.factors[n] for n in stack.layer_names), strict=True))
            )
            for name, stack in stacks.items()
            if not stack.in_head
        }

    def start(self, program: Program) -> None:
        """Make these the starting point of a program over the same layers.

        Raises:
            TypeError: If the program's adapters are of another family.
            ValueError: If the head does not fit the network's.
        """
        family = next(iter(program.stacks.values())).family.without_noise()
        if family.factors is not self.family.factors:
            own, given = (f"{type(f).__name__} ({', '.join(f.factors._fields)})" for f in (family, self.family))
            raise TypeError(
                f"The method {program.method.name!r} has {own} adapters and cannot start from {given} adapters: start "
                "from a fit of the same family."
            )
        # The trained head is the head's frozen weights; what a method adds to them starts at no change.
        head = {name: stack.initial() for name, stack in program.stacks.items() if stack.in_head}
        program.guide.start(self.stacked(program.stacks) | head)  # type: ignore[operator]
        if self.head:
            program.network.load_head(self.head)


def from_program(program: Program) -> Adapters:
    """The centre of a fitted program."""
    with torch.no_grad():
        return from_factors(program.network, program.factors_at(program.centre()))


def from_factors(network: AdaptedNetwork, factors: Mapping[str, Any]) -> Adapters:
    """A network's adapters and head at given factors, without draws, by stack."""
    layers: dict[str, Any] = {}
    ranks: dict[str, int] = {}
    scaling: dict[str, float] = {}
    body = {name: stack for name, stack in network.stacks.items() if not stack.in_head}
    for name, stack in body.items():
        family = stack.family.without_noise()
        for index, layer in enumerate(stack.layer_names):
            layers[layer] = family.factors(*(getattr(factors[name], f)[index].clone() for f in family.factors._fields))
            ranks[layer] = stack.rank
            scaling[layer] = float(network.scaling(name)[index])
    return Adapters(family, layers, ranks, scaling, trained_head(network, factors))


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
    for option, plain in (("bias", "none"), ("monteclora_config", None)):
        if config.get(option, plain) not in (plain, None):
            raise ValueError(
                f"The PEFT adapter has {option}={config[option]!r}: its update is not B A alone. Only plain LoRA and "
                "DoRA can be a starting point."
            )
    family = next(f for f in IN_PEFT if all(config.get(key) == value for key, value in f.peft_settings.items()))
    patterns = {factor: _peft_pattern(name) for factor, name in family.peft_names.items()}
    factors: dict[str, dict[str, Tensor]] = {}
    head = {}
    for key, value in state.items():
        name = key.removeprefix(PREFIX)
        matches = ((factor, pattern.fullmatch(name)) for factor, pattern in patterns.items())
        if found := next(((factor, match[1]) for factor, match in matches if match), None):
            factors.setdefault(found[1], {})[found[0]] = value.detach().float()
        elif "lora_" in name:
            raise ValueError(f"The PEFT adapter has weights {key!r}, which are no linear layer's A or B.")
        else:
            head[name] = value.detach()
    layers = {name: family.factors(**parts) for name, parts in factors.items()}
    ranks = {name: len(parts["A"]) for name, parts in factors.items()}
    scaling = {name: _peft_scaling(config, name, rank) for name, rank in ranks.items()}
    return Adapters(family, layers, ranks, scaling, head)


def _peft_pattern(name: str) -> re.Pattern[str]:
    """What matches a parameter of a LoRA layer in a saved adapter; an adapter's name may stand in it.

    A parameter of the layer itself, such as DoRA's magnitudes, is at times saved as one of a module of its own.
    """
    module, dot, _ = name.partition(".")
    return re.compile(rf"(.+)\.{module}(?:\.[^.]+)?" + (r"\.weight" if dot else r"(?:\.weight)?"))


def _peft_scaling(config: Mapping[str, Any], name: str, rank: int) -> float:
    """The scaling alpha / rank, or alpha / √rank (rsLoRA), with PEFT's patterns over module names."""
    patterns = config.get("alpha_pattern") or {}
    alpha = next((a for key, a in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), config["lora_alpha"])
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def export_peft(network: AdaptedNetwork, factors: Mapping[str, Any], folder: str | os.PathLike[str]) -> None:
    """Write given factors and the task head as an adapter for `peft.PeftModel.from_pretrained(base, folder)`.

    Args:
        network: The adapted network.
        factors: Factors by stack, without draws.
        folder: Where to write `adapter_config.json` and `adapter_model.safetensors`.

    Raises:
        ValueError: If the adapters have no form in PEFT's LoRA.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    adapters = from_factors(network, factors)
    tensors = dict(adapters.head)
    for name, value in adapters.factors.items():
        tensors |= {f"{name}.{key}": tensor for key, tensor in adapters.family.peft(value).items()}
    alphas = {name: adapters.scaling[name] * rank for name, rank in adapters.ranks.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (adapters.ranks, alphas))
    config = LoraConfig(
        base_model_name_or_path=getattr(network.model, "name_or_path", "") or None,
        inference_mode=True,
        r=rank,
        lora_alpha=alpha,
        rank_pattern={name: r for name, r in adapters.ranks.items() if r != rank},
        alpha_pattern={name: a for name, a in alphas.items() if a != alpha},
        target_modules=list(adapters.factors),
        modules_to_save=list(network.head_names) or None,
        fan_in_fan_out=any(is_transposed(base) for name in network.stacks for base in network.bases(name)),
        **adapters.family.peft_settings,
    )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = {f"{PREFIX}{name}": value.detach().cpu().contiguous() for name, value in tensors.items()}
    save_file(content, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)


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
    change = oriented(layer, change)
    layer.weight = nn.Parameter((weight.detach().to(change.dtype) + change).to(weight.dtype), requires_grad=False)


def _add_to_bias(layer: Any, change: Tensor) -> None:
    bias = torch.zeros_like(change) if layer.bias is None else layer.bias.detach()
    layer.bias = nn.Parameter((bias.to(change.dtype) + change).to(bias.dtype), requires_grad=False)
