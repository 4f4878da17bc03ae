"""Adapters in and out: starting points, PEFT's LoRA format, and merging into the base weights."""

import copy
import json
import logging
import math
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from bayeslora.adapters import AdaptedNetwork, DoRA, Family, LowRank, Stacks, choose_targets
from bayeslora.adapters.network import head_names, logits_of, share_weights
from bayeslora.data import is_a
from bayeslora.prediction import seeded
from bayeslora.program import Program, evaluating
from bayeslora.types import Batch

logger = logging.getLogger(__name__)

PREFIX = "base_model.model."

LORA_FIELDS: Mapping[str, str | None] = {
    # Read: they say what is computed.
    "peft_type": None,
    "r": None,
    "rank_pattern": None,
    "lora_alpha": None,
    "alpha_pattern": None,
    "use_rslora": None,
    "use_dora": None,
    "init_lora_weights": None,
    "modules_to_save": None,
    "lora_dropout": None,
    "base_model_name_or_path": None,
    # Of no account: which layers there are is in the weights, and these say where or how they came to be.
    "target_modules": None,
    "exclude_modules": None,
    "layers_to_transform": None,
    "layers_pattern": None,
    "fan_in_fan_out": None,  # how a base stores its weight, which the base itself says
    "loftq_config": None,  # beside `init_lora_weights`, as the next three
    "eva_config": None,
    "corda_config": None,
    "lora_ga_config": None,
    "qalora_group_size": None,  # beside `use_qalora`
    "megatron_core": None,  # beside `megatron_config`
    "task_type": None,
    "auto_mapping": None,
    "peft_version": None,
    "revision": None,
    "inference_mode": None,
    "runtime_config": None,
    # Refused: with them, the network is not the base with B A added.
    "bias": "trains biases of the base",
    "lora_bias": "adds a bias to the update",
    "trainable_token_indices": "trains rows of the embedding",
    "target_parameters": "adapts parameters that are not a linear layer's",
    "layer_replication": "repeats layers of the base",
    "megatron_config": "splits layers over processes",
    "use_qalora": "averages the adapter's input over groups",
    "use_bdlora": "makes factors block-diagonal",
    "alora_invocation_tokens": "adapts only what follows an invocation",
    "arrow_config": "routes tokens between adapters",
    "kasa_config": "truncates the base and scales the update's components",
    "monteclora_config": "adds noise to the factors",
    "velora_config": "compresses what the backward pass sees",
    "ensure_weight_tying": "ties adapters of tied layers",
}
"""PEFT's `LoraConfig`, field by field: None where a field is read or of no account, else why another value than its
default is refused. A field that is not here is refused where it is not at its default."""

LEAVING_BASE = ("gaussian", "eva", "orthogonal", "mica")
"""PEFT's starts, `init_lora_weights`, after which the base is as it was."""

CHANGING_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""PEFT's starts that take the adapter's first value out of the base's weights: the adapter is right on those alone."""


@dataclass(frozen=True)
class Adapters:
    """Trained adapters, layer by layer, and the task head trained with them.

    Args:
        family: The adapters' family.
        factors: Module name to the factors of the layer, such as `A` `[rank, d_in]` and `B` `[d_out, rank]`.
        ranks: Module name to r.
        scaling: Module name to s.
        head: The task head's parameters, by their names in the model; empty if the adapters came without one.
        dropout: The dropout on the adapters' inputs that they were trained with.
        reference: Builds PEFT's own network with these adapters, to compare with, or None if PEFT is not installed.
    """

    family: Family
    factors: Mapping[str, Any]
    ranks: Mapping[str, int]
    scaling: Mapping[str, float]
    head: Mapping[str, Tensor]
    dropout: float = 0.0
    reference: Callable[[], nn.Module | None] | None = None

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
            ValueError: If the head does not fit the network's, or more than a head was trained with the adapters.
        """
        network = program.network
        family = next(iter(program.stacks.values())).family.without_noise()
        if family.factors is not self.family.factors:
            wanted, given = (f"{type(f).__name__} ({', '.join(f.factors._fields)})" for f in (family, self.family))
            raise TypeError(
                f"The method {program.method.name!r} has {wanted} adapters and cannot start from {given} adapters: "
                "start from a fit of the same family."
            )
        # The trained head is the head's frozen weights; what a method adds to them starts at no change.
        head = {name: stack.initial() for name, stack in program.stacks.items() if stack.in_head}
        program.guide.start(self.stacked(program.stacks) | head)  # type: ignore[operator]
        if beside := [name for name in self.head if name.split(".")[0] not in network.head_names]:
            _refuse_beside(beside)
        if self.head:
            # PEFT may have trained a part of it, and leaves the rest as the base has it.
            own = {} if self.reference is None else network.head_state()
            network.load_head(own | dict(self.head))
        elif network.head_names:
            logger.warning("The adapters come without a task head: the model's own, %s, is used.", network.head_names)
        dropout = getattr(next(iter(program.stacks.values())).family, "p", 0.0)
        if self.dropout not in (0, dropout) and not program.method.post_hoc:
            logger.warning(
                "The PEFT adapter was trained with lora_dropout=%g, which the method %r does not take over: "
                "method='mc_dropout', p=%g has it.",
                *(self.dropout, program.method.name, self.dropout),
            )

    def check(self, program: Program, batch: Batch) -> None:
        """Compare the program's network at these adapters with PEFT's, if they are PEFT's, on a batch.

        Raises:
            ValueError: If their logits differ by more than rounding.
        """
        reference = None if self.reference is None else self.reference()
        if reference is None:
            return
        network = program.network
        if hasattr(reference, "config"):
            reference.config = network.model.config  # which may have been given a padding token since
        factors = {}
        stacked = self.stacked(program.stacks)
        for name, stack in program.stacks.items():
            given = stack.initial()._asdict() if stack.in_head else stacked[name]._asdict()
            noise = {key: torch.zeros(len(stack), *shape) for key, shape in stack.shapes.items() if key not in given}
            parts = {key: value.to(network.device, network.dtype) for key, value in (given | noise).items()}
            factors[name] = stack.family.factors(**parts)
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        if difference := _difference(network, factors, reference, inputs):
            raise ValueError(
                f"The network with the PEFT adapter and PEFT's own differ by {difference:.2g} on a batch: the adapter "
                "was trained on another base than the model given, or its configuration does not fit its weights. Load "
                "the base that it names, or pass the PEFT model itself, fit(peft_model, …)."
            )


def _difference(network: AdaptedNetwork, factors: Mapping[str, Any], other: nn.Module, inputs: Batch) -> float:
    """The largest difference of the logits of a network at factors from those of another; 0 if it is rounding."""
    with torch.no_grad(), evaluating(network), evaluating(other):
        own, expected = network(factors, inputs), logits_of(other(**inputs))
    network.unbind()
    dtypes = [value.dtype for value in (*network.model.parameters(), own, expected) if value.is_floating_point()]
    tolerance = max(torch.finfo(dtype).eps for dtype in dtypes) ** 0.5
    own, expected = own.double(), expected.double()
    same = (own == expected) | (own.isnan() & expected.isnan())  # also where both are infinite
    difference = float((own - expected).abs().masked_fill(same, 0.0).nan_to_num(nan=math.inf).max())
    return difference if difference > tolerance * max(1.0, float(expected.abs().nan_to_num(0, 0).max())) else 0.0


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
            scaling[layer] = stack.scaling[index]
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
    """Whether a model is one of PEFT's, told without importing it.

    Raises:
        ValueError: If it has PEFT's layers and is not a `PeftModel`.
    """
    if _is_a(model, "PeftModel"):
        return True
    if isinstance(model, nn.Module) and any(_is_a(module, "BaseTunerLayer") for module in model.modules()):
        raise ValueError(
            f"The {type(model).__name__} has PEFT layers, which PEFT puts into the model it is given, and is not a "
            "PeftModel: pass that, or save the adapter and pass PeftModel.from_pretrained(base, folder)."
        )
    return False


def _is_a(value: object, name: str) -> bool:
    return any(cls.__name__ == name for cls in type(value).__mro__)


def from_peft(model: Any, network: nn.Module | None = None) -> Adapters:
    """The active LoRA adapter of a PEFT model, with the task head that the model has.

    Ranks, scaling and factors are those that PEFT's layers compute with, which its configuration need not say.

    Args:
        model: The PEFT model.
        network: The network that the adapter is for; None for the PEFT model's own base.

    Raises:
        ValueError: If it is not one active adapter beside its base, not plain LoRA or DoRA, or for another base.
    """
    active = model.active_adapters
    config = model.peft_config[active[0] if active else model.active_adapter].to_dict()
    family = _check_config(config)
    root = model.base_model.model
    layers = _adapted_layers(model)
    if len(active) != 1:
        raise ValueError(
            f"The PEFT model has {len(active)} adapters active: {', '.join(active)}. Choose one, "
            "model.set_adapter(name), or make one of them, model.add_weighted_adapter(…, combination_type='cat')."
        )
    (name,) = active
    if changed := _changing(model):
        if network not in (None, model):
            _refuse_base(changed)
        logger.warning(
            "The PEFT model was started with init_lora_weights=%r, which changes the base's weights: the posterior "
            "belongs to the base inside this PEFT model, not to the one it was made from. To load it, pass this model.",
            changed,
        )
    factors: dict[str, dict[str, Tensor]] = {}
    scaling = {}
    for layer_name, layer in layers.items():
        here = [adapter for adapter in layer.active_adapters if adapter in (*layer.lora_A, *layer.lora_embedding_A)]
        if (here and here != [name]) or (name in layer.lora_A and not here):
            raise ValueError(
                f"Layer {layer_name!r} of the PEFT model has other adapters active, {here}, than {name!r}."
            )
        if not here:
            continue
        variant = type(layer.lora_variant.get(name)).__name__
        if name not in layer.lora_A or ".base_layer" in layer_name:
            _refuse_layer(layer_name)
        if variant not in ("NoneType", "DoraLinearVariant", "MiCALinearVariant"):
            _refuse(f"layer {layer_name!r} as a {variant}", "does not compute B A alone")
        if layer.lora_B[name].bias is not None:
            _refuse("lora_bias=True", LORA_FIELDS["lora_bias"])
        factors[layer_name] = {"A": layer.lora_A[name].weight, "B": layer.lora_B[name].weight}
        if name in layer.lora_magnitude_vector:
            factors[layer_name]["m"] = layer.lora_magnitude_vector[name].weight
        scaling[layer_name] = float(layer.scaling[name])
    heads = head_names(root)
    trained = [key for key, module in root.named_modules() if _is_a(module, "AuxiliaryTrainingWrapper")]
    if beside := [key for key in trained if key.split(".")[0] not in heads]:
        _refuse_beside(beside)
    base = base_of_peft(model)
    head = {key: value for key, value in base.state_dict().items() if key.split(".")[0] in heads}
    adapters = _adapters(config, family, factors, scaling, head, lambda: share_weights(root, ()))
    _check_layers(adapters, base if network in (None, model) else network)
    return adapters


def from_peft_folder(folder: str | os.PathLike[str], network: nn.Module | None = None) -> Adapters:
    """A LoRA adapter that PEFT saved: `adapter_config.json` and `adapter_model.safetensors`, which hold no code.

    Args:
        folder: A local folder; nothing is fetched.
        network: The network that the adapter is for: where PEFT is installed, it reads the adapter onto it as well.

    Raises:
        FileNotFoundError: If the folder holds none.
        ValueError: If the adapter is not plain LoRA or DoRA, damaged, or for another network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config_path, weights_path = (Path(folder) / name for name in ("adapter_config.json", "adapter_model.safetensors"))
    for path in (config_path, weights_path):
        if not path.is_file():
            if (Path(folder) / "adapter_model.bin").is_file():
                raise ValueError(
                    f"{folder} holds its adapter as adapter_model.bin, a pickle, which can run code when it is read: "
                    "if you trust it, convert it, PeftModel.from_pretrained(base, folder).save_pretrained(folder)."
                )
            inside = sorted(found.parent.name for found in Path(folder).glob(f"*/{path.name}"))
            hint = f" There are some in its folders: {', '.join(inside)}." if inside else ""
            raise FileNotFoundError(f"{folder} holds no PEFT adapter: there is no {path.name} in it.{hint}")
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{config_path.name} in {folder} is not a configuration of PEFT's: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{config_path.name} in {folder} is not a configuration of PEFT's: {str(config)[:50]}")
    try:
        state = load_file(weights_path)
    except SafetensorError as error:
        raise ValueError(f"{weights_path.name} in {folder} is damaged: {error}") from None
    base = None if network is None else (base_of_peft(network) if is_peft_model(network) else network)
    adapters = _from_peft(config, state, None if base is None else lambda: _read_by_peft(base, folder))
    if changed := _change_by(config):
        _refuse_base(changed)
    if base is not None:
        _check_layers(adapters, base)
        named, own = config.get("base_model_name_or_path"), getattr(base, "name_or_path", "")
        if named and own and named != own:
            logger.warning("The PEFT adapter in %s names its base %r; the model given is %r.", folder, named, own)
    return adapters


def base_of_peft(model: nn.Module) -> nn.Module:
    """A PEFT model's base, with the task head that was trained with the adapters; the PEFT model stays as it is.

    A base that PEFT has changed to start the adapters has no name.

    Raises:
        ValueError: If adapters are merged into it.
    """
    _adapted_layers(model)
    shared: Any = share_weights(model, ())
    base = shared.unload() if hasattr(shared.base_model, "unload") else shared.get_base_model()
    if _changing(model) and hasattr(base, "name_or_path"):
        base.name_or_path = ""
    return base


def _adapted_layers(model: Any) -> dict[str, Any]:
    """PEFT's layers in a PEFT model, by their names in its base.

    Raises:
        ValueError: If adapters are merged into the base, or switched off.
    """
    root = getattr(model.base_model, "model", model.base_model)
    layers = {name: module for name, module in root.named_modules() if _is_a(module, "BaseTunerLayer")}
    if merged := sorted({name for layer in layers.values() for name in layer.merged_adapters}):
        raise ValueError(
            f"The PEFT model has its adapters merged into the base: {', '.join(merged)}. Take them out, "
            "model.unmerge_adapter(), or make it a plain model, model.merge_and_unload()."
        )
    if any(layer.disable_adapters for layer in layers.values()):
        raise ValueError(
            "The PEFT model has its adapters disabled: switch them on, model.enable_adapter_layers(), or pass the base "
            "alone, model.unload()."
        )
    return layers


def _change_by(config: Mapping[str, Any]) -> str | None:
    """The start of an adapter, `init_lora_weights`, if it changes the base's weights."""
    start = config.get("init_lora_weights", True)
    if start is None or isinstance(start, bool) or str(start).lower() in LEAVING_BASE:
        return None
    if str(start).lower().startswith(CHANGING_BASE):
        return str(start)
    return _refuse(f"init_lora_weights={start!r}", "is not known here")


def _changing(model: Any) -> str | None:
    """The start of any of a PEFT model's adapters that has changed the base, which they share."""
    configs = [config.to_dict() for config in model.peft_config.values() if hasattr(config, "init_lora_weights")]
    return next((start for start in map(_change_by, configs) if start), None)


def _check_config(config: Mapping[str, Any]) -> Family:
    """The family of the adapters that a configuration describes.

    Raises:
        ValueError: If that is none, names the field.
    """
    kind = str(getattr(config.get("peft_type"), "value", config.get("peft_type")))
    if kind != "LORA":
        raise ValueError(
            f"The PEFT adapter is of type {kind}; only LORA can be a starting point. Where PEFT can merge it into a "
            "model of its own, model.merge_and_unload(), fit that."
        )
    for field, value in config.items():
        if field not in LORA_FIELDS:
            if value not in _defaults(field):
                _refuse(f"{field}={value!r}", "is not known here")
        elif (reason := LORA_FIELDS[field]) and value not in (None, False, "none", []):
            _refuse(f"{field}={value!r}", reason)
    _change_by(config)
    for field in ("r", "lora_alpha", "lora_dropout"):
        if not _is_number(config.get(field, 0)):
            raise ValueError(f"The PEFT adapter has {field}={config[field]!r}, which is not a number.")
    for field in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(field) or {}
        if not isinstance(patterns, dict) or not all(map(_is_number, patterns.values())):
            raise ValueError(f"The PEFT adapter has {field}={patterns!r}, which does not give names numbers.")
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"The PEFT adapter has {pattern!r} in its {field}, which is not a regular expression: {error}"
                ) from None
    return DoRA() if config.get("use_dora") else LowRank()


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _defaults(field: str) -> list[Any]:
    """Values of a field of PEFT's that is not known here with which it does nothing: its default, or nothing at all."""
    nothing: list[Any] = [None, False, "", [], {}]
    try:
        from peft import LoraConfig
    except ImportError:
        return nothing
    return [*nothing, LoraConfig().to_dict().get(field)]


def _refuse(what: str, why: str | None) -> NoReturn:
    raise ValueError(
        f"The PEFT adapter has {what}, which {why}: only plain LoRA, an update that is B A alone, and DoRA can be a "
        "starting point. Where PEFT can merge the adapter into a model of its own, model.merge_and_unload(), fit that."
    )


def _refuse_layer(name: str) -> NoReturn:
    raise ValueError(
        f"The PEFT adapter adapts {name!r}, which is not a linear layer: it cannot be a starting point. Train it on "
        "linear layers, or merge it into a model of its own, model.merge_and_unload(), and fit that."
    )


def _refuse_beside(names: list[str]) -> NoReturn:
    raise ValueError(
        f"The PEFT adapter trained more than adapters and a task head (modules_to_save): {', '.join(names[:5])}, which "
        "a posterior would not save. Merge it into a model of its own, model.merge_and_unload(), and fit that."
    )


def _refuse_base(start: str) -> NoReturn:
    raise ValueError(
        f"The PEFT adapter has init_lora_weights={start!r}, which changes the base's own weights: it is right on that "
        "base alone. Pass the PEFT model itself, fit(peft_model, …), or let PEFT convert the adapter when it saves it, "
        "save_pretrained(folder, path_initial_model_for_weight_conversion=…)."
    )


def _check_layers(adapters: Adapters, network: nn.Module) -> None:
    """Raise a ValueError unless a network has the linear layers that adapters are for, outside its task head."""
    there, heads, names = dict(network.named_modules()), head_names(network), list(adapters.factors)
    for name in names:
        if name not in there:
            raise ValueError(
                f"The PEFT adapter adapts {name!r}, which the {type(network).__name__} does not have: load a model of "
                "the class that it was trained on."
            )
        if name.split(".")[0] in heads:
            raise ValueError(
                f"The PEFT adapter adapts {name!r}, a part of the task head, which is trained itself: leave it out of "
                "target_modules, or merge the adapter into a model of its own, model.merge_and_unload(), and fit that."
            )
        try:
            found = choose_targets(network, [name])
        except ValueError:
            found = []
        if found != [name]:
            _refuse_layer(name)


def _from_peft(
    config: Mapping[str, Any], state: Mapping[str, Tensor], reference: Callable[[], nn.Module | None] | None = None
) -> Adapters:
    """Adapters from PEFT's configuration and saved weights."""
    family = _check_config(config)
    factors: dict[str, dict[str, Tensor]] = {}
    head = {}
    for key, value in state.items():
        name = key.removeprefix(PREFIX)
        if match := re.fullmatch(r"(.+)\.lora_([AB])(?:\.[^.]+)?\.weight", name):
            factors.setdefault(match[1], {})[match[2]] = value
        elif match := re.fullmatch(r"(.+)\.lora_magnitude_vector(?:\.[^.]+)?(?:\.weight)?", name):
            factors.setdefault(match[1], {})["m"] = value
        elif "lora_embedding" in name:
            _refuse_layer(name.partition(".lora_")[0])
        elif "lora_" in name:
            raise ValueError(f"The PEFT adapter has weights {key!r}, which are not a linear layer's A or B.")
        else:
            head[name] = value.detach()
    scaling = {}
    for name, parts in factors.items():
        rank, given = _peft_pattern(config, "rank_pattern", "r", name), len(parts.get("A", ()))
        if rank != given:
            raise ValueError(
                f"The PEFT adapter has r={rank} for {name!r} in its configuration, and its weights there have rank "
                f"{given}: it is damaged."
            )
        alpha = _peft_pattern(config, "alpha_pattern", "lora_alpha", name)
        scaling[name] = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    return _adapters(config, family, factors, scaling, head, reference)


def _adapters(
    config: Mapping[str, Any],
    family: Family,
    factors: Mapping[str, Mapping[str, Tensor]],
    scaling: Mapping[str, float],
    head: Mapping[str, Tensor],
    reference: Callable[[], nn.Module | None] | None,
) -> Adapters:
    """Adapters from the parts of each layer, which must be those of the family."""
    layers, ranks = {}, {}
    for name, parts in factors.items():
        if set(parts) != set(family.factors._fields):
            raise ValueError(
                f"Layer {name!r} of the PEFT adapter has {', '.join(sorted(parts))}; {type(family).__name__} has "
                f"{', '.join(family.factors._fields)} in every layer."
            )
        if parts["A"].dim() != 2 or parts["B"].dim() != 2:
            _refuse_layer(name)
        # Factors are never in half precision, whatever the base.
        precise = {
            key: value.detach().to(torch.promote_types(value.dtype, torch.float32)) for key, value in parts.items()
        }
        layers[name] = family.factors(**precise)
        ranks[name] = len(parts["A"])
    if not layers:
        raise ValueError("The PEFT adapter adapts no layer.")
    dropout = float(config.get("lora_dropout") or 0)
    return Adapters(family, layers, ranks, scaling, head, dropout, reference)


def _peft_pattern(config: Mapping[str, Any], field: str, default: str, name: str) -> Any:
    """A layer's entry of PEFT's patterns over module names, or the default's value."""
    patterns = config.get(field) or {}
    matching = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name))
    return next(matching, config.get(default, 8))  # PEFT's own default of both rank and alpha


def _read_by_peft(base: nn.Module, folder: str | os.PathLike[str]) -> nn.Module | None:
    """A copy of a network with the adapter that PEFT reads from a folder; None, with a word, without PEFT."""
    try:
        from peft import PeftModel
    except ImportError:
        logger.warning("The adapter in %s was not compared with what PEFT computes: peft is not installed.", folder)
        return None
    device = str(next(base.parameters()).device)
    try:
        with seeded(0):  # PEFT draws a start, which it then replaces
            shared = share_weights(base, head_names(base))
            model = PeftModel.from_pretrained(shared, os.fspath(folder), torch_device=device)
    except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        reason = f"there are no weights {error} in it" if isinstance(error, KeyError) else error
        raise ValueError(f"PEFT cannot read the adapter in {folder}: {reason}") from error
    return model.base_model.model


TASKS: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "SEQ_CLS": ("SEQUENCE_CLASSIFICATION", "SequenceClassification", ("classifier", "score")),
    "TOKEN_CLS": ("TOKEN_CLASSIFICATION", "TokenClassification", ("classifier", "score")),
    "QUESTION_ANS": ("QUESTION_ANSWERING", "QuestionAnswering", ("qa_outputs",)),
    "CAUSAL_LM": ("CAUSAL_LM", "CausalLM", ()),
    "SEQ_2_SEQ_LM": ("SEQ_TO_SEQ_CAUSAL_LM", "Seq2SeqLM", ()),
}
"""PEFT's task types: transformers' list of such models, the end of `AutoPeftModelFor…`, and the modules that PEFT
looks for in `modules_to_save` by itself."""


@dataclass(frozen=True)
class About:
    """What the card of exported adapters says of them.

    Args:
        method: The method of the fit.
        part: Which adapters of the posterior they are.
        temperature: What the posterior divides every logit by, which PEFT does not.
    """

    method: str
    part: str = "its centre"
    temperature: float = 1.0


def export_peft(
    network: AdaptedNetwork,
    factors: Mapping[str, Any],
    folder: str | os.PathLike[str],
    *,
    about: About | None = None,
    tokenizer: Any = None,
    check: bool = True,
    batch: Batch | None = None,
) -> None:
    """Write given factors and the task head as an adapter for `peft.PeftModel.from_pretrained(base, folder)`.

    Files are written beside and then moved: where the export fails, the folder is as it was.

    Args:
        network: The adapted network.
        factors: Factors by stack, without draws.
        folder: Where to write `adapter_config.json`, `adapter_model.safetensors` and a card, `README.md`.
        about: What the card says.
        tokenizer: Written beside them, if there is one.
        check: Whether PEFT reads the adapter back, and is compared with the network; see `check_export`.
        batch: Inputs of the network to compare on, if some are at hand.

    Raises:
        ValueError: If the adapters have no form in PEFT's LoRA, or PEFT reads something else.
    """
    from safetensors.torch import save_file

    for name, stack in network.stacks.items():
        noise = set(stack.family.factors._fields) - set(stack.family.without_noise().factors._fields)
        if any(bool(getattr(factors[name], field).any()) for field in noise):
            raise ValueError(
                f"A draw of {type(stack.family).__name__} adapters is more than their factors, and has no form in "
                "PEFT's LoRA: export the centre, num_draws=None."
            )
    adapters = from_factors(network, factors)
    tensors = dict(adapters.head)
    for name, value in adapters.factors.items():
        tensors |= {f"{name}.{key}": tensor for key, tensor in adapters.family.peft(value).items()}
    plain = _plain(network)
    task = next((task for task, (listed, _, _) in TASKS.items() if is_a(network.model, listed)), None)
    heads = [*network.head_names, *(TASKS[task][2] if task else ())]
    for name, module in plain.named_modules():  # PEFT goes by how names end, and wants to read whatever it finds
        if name.endswith(tuple(heads)) and name.split(".")[0] not in network.head_names:
            tensors |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
    alphas = {name: _tidy(adapters.scaling[name] * rank) for name, rank in adapters.ranks.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (adapters.ranks, alphas))
    config = _lora_config(
        base_model_name_or_path=getattr(network.model, "name_or_path", "") or None,
        task_type=task,
        auto_mapping=None if task else _auto_mapping(network.model),
        r=rank,
        lora_alpha=alpha,
        rank_pattern=_patterns(adapters.ranks, rank),
        alpha_pattern=_patterns(alphas, alpha),
        target_modules=_target_modules(plain, list(adapters.factors)),
        modules_to_save=list(network.head_names) or None,
        fan_in_fan_out=any(type(base).__name__ == "Conv1D" for name in network.stacks for base in network.bases(name)),
        use_dora=isinstance(adapters.family, DoRA),
    )
    folder = Path(folder)
    existed = folder.is_dir()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as name:
            beside = Path(name)
            content = {f"{PREFIX}{name}": value.detach().cpu().contiguous() for name, value in tensors.items()}
            save_file(content, beside / "adapter_model.safetensors", metadata={"format": "pt"})
            (beside / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
            (beside / "README.md").write_text(_card(config, network, about), encoding="utf-8")
            if tokenizer is not None:
                tokenizer.save_pretrained(beside)
            if check:
                check_export(network, factors, beside, batch)
            if _is_of_another(folder / "README.md"):
                (beside / "README.md").unlink()
            for path in beside.iterdir():
                if path.is_dir():
                    shutil.rmtree(folder / path.name, ignore_errors=True)
                path.replace(folder / path.name)
    except BaseException:
        if not existed:
            folder.rmdir()
        raise


def _is_of_another(card: Path) -> bool:
    """Whether a file is there that no export of ours has written."""
    return card.is_file() and "- bayeslora\n" not in card.read_text(encoding="utf-8", errors="replace")


def check_export(
    network: AdaptedNetwork, factors: Mapping[str, Any], folder: str | os.PathLike[str], batch: Batch | None = None
) -> None:
    """Let PEFT read an exported adapter, and compare its layers, its task head and its logits with ours.

    Layers are compared on inputs of their own, which needs no data; logits on a batch, if there is one. Without PEFT,
    the log says that nothing was compared.

    Raises:
        ValueError: If PEFT cannot read it, or reads something else.
    """
    # With another head to begin with, only the head that is read can be the network's.
    base = _plain(network)
    with torch.no_grad():
        for head in network.head_names:
            for parameter in base.get_submodule(head).parameters():
                parameter.zero_()
    read = _read_by_peft(base, folder)
    if read is None:
        return
    layers = {name: module for name, module in read.named_modules() if _is_a(module, "BaseTunerLayer")}
    ours = {name for stack in network.stacks.values() if not stack.in_head for name in stack.layer_names}
    if differing := sorted(ours ^ set(layers)):
        raise ValueError(
            f"PEFT reads the exported adapter onto other layers than it is for, so nothing was written: "
            f"{', '.join(differing[:5])}. Leave them out of `targets`, or give modules names that do not end alike."
        )
    with torch.no_grad(), evaluating(network):
        network.bind(factors)
        generator = torch.Generator().manual_seed(0)
        for name, layer in layers.items():
            own: Any = network.model.get_submodule(name)
            weight = own.base.weight
            dtype = weight.dtype if weight.is_floating_point() else network.dtype
            x = torch.randn(3, layer.in_features, generator=generator).to(weight.device, dtype)
            expected, before, got = own(x), own.base(x), layer(x)
            eps = torch.finfo(expected.dtype).eps
            rounding = (64 if eps < 1e-6 else 8) * eps * float(expected.abs().max())
            difference = float((got - expected).abs().max())
            if not difference <= rounding + 1e-3 * float((expected - before).abs().max()):
                raise ValueError(
                    f"PEFT reads the exported adapter of {name!r} so that its output differs by {difference:.2g}: "
                    "nothing was written. Please report this, with your version of peft."
                )
        network.unbind()
    state = {re.sub(r"\.modules_to_save\.default\b", "", name): value for name, value in read.state_dict().items()}
    for name, value in trained_head(network, factors).items():
        if name not in state or not torch.equal(state[name].to(value), value):
            has = "another value there" if name in state else "no such parameter"
            raise ValueError(
                f"PEFT does not read {name!r} of the trained task head from the exported adapter, it has {has}: "
                "nothing was written. posterior.merge() has the whole head."
            )
    if batch is not None and (difference := _difference(network, factors, read, batch)):
        raise ValueError(
            f"The logits of PEFT's network with the exported adapter differ by {difference:.2g} on a batch, though its "
            "layers are right, and nothing was written: the network does not call them there, as PyTorch's "
            "TransformerEncoderLayer in evaluation. posterior.merge() is a plain model."
        )


def _plain(network: AdaptedNetwork) -> nn.Module:
    """A copy of an adapted network's base, around the same weights, with a task head of its own."""
    plain = share_weights(network.model, network.head_names)
    for stack in network.stacks.values():
        for name in stack.layer_names:
            parent, _, child = name.rpartition(".")
            setattr(plain.get_submodule(parent), child, plain.get_submodule(name).base)
    for module in plain.modules():
        if isinstance(module, nn.TransformerEncoderLayer):  # whose fused kernel, off in ours, is on in the base
            activation = module.activation
            is_relu, is_gelu = activation is nn.functional.relu, activation is nn.functional.gelu
            is_relu, is_gelu = is_relu or isinstance(activation, nn.ReLU), is_gelu or isinstance(activation, nn.GELU)
            module.activation_relu_or_gelu = 1 if is_relu else 2 if is_gelu else 0
    return plain


def _lora_config(**fields: Any) -> dict[str, Any]:
    """PEFT's configuration of an adapter; a field that is not here is at its default there."""
    plain = {"bias": "none", "init_lora_weights": True, "lora_dropout": 0.0, "use_rslora": False}
    return {"peft_type": "LORA", "inference_mode": True, **plain, **fields}


def _auto_mapping(model: nn.Module) -> dict[str, str] | None:
    """How `AutoPeftModel` finds the class of a base without a task type of PEFT's; transformers' alone."""
    library = type(model).__module__
    return (
        {"base_model_class": type(model).__name__, "parent_library": library}
        if library.startswith("transformers.")
        else None
    )


def _patterns(values: Mapping[str, Any], default: Any) -> dict[str, Any]:
    """Entries of layers that differ from the default, under names which PEFT takes for no other layer's."""
    patterns = {name: value for name, value in values.items() if value != default}
    read = {
        name: _peft_pattern({"pattern": patterns, "default": default}, "pattern", "default", name) for name in values
    }
    return patterns if read == dict(values) else {f"^{re.escape(name)}": value for name, value in patterns.items()}


def _target_modules(model: nn.Module, names: list[str]) -> list[str] | str:
    """Layers by name; as a regular expression where PEFT, which goes by how names end, would find more."""
    ends = tuple(f".{name}" for name in names)
    more = any(name.endswith(ends) for name, _ in model.named_modules() if name not in names)
    return "|".join(map(re.escape, names)) if more else names


def _tidy(number: float) -> float:
    """A number without the error of having been divided and multiplied again; whole, if it is."""
    rounded = float(f"{number:.9g}")
    return int(rounded) if rounded == int(rounded) else rounded


def _card(config: Mapping[str, Any], network: AdaptedNetwork, about: About | None) -> str:
    """What a folder of exported adapters says of itself, in Markdown."""
    base, task = config["base_model_name_or_path"], config["task_type"]
    settings = {}
    model_config: Any = getattr(network.model, "config", None)
    if task in ("SEQ_CLS", "TOKEN_CLS"):
        settings["num_labels"] = model_config.num_labels
    if task == "SEQ_CLS" and model_config.pad_token_id is not None:
        settings["pad_token_id"] = model_config.pad_token_id  # without which some would classify another token
    arguments = "".join(f", {name}={value}" for name, value in settings.items())
    head = ", ".join(f"`{name}`" for name in network.head_names)
    lines = [
        "---",
        *([f"base_model: {base}"] if base else []),
        "library_name: peft",
        "tags:",
        "- lora",
        "- bayeslora",
        "---",
        "",
        "# Adapters of a Bayesian fit",
        "",
        f"A {'DoRA' if config['use_dora'] else 'LoRA'} adapter on {f'`{base}`' if base else 'a base without a name'}"
        + (f", with the task head trained with it ({head})." if head else "."),
    ]
    if about is not None:
        lines += [
            f"It is one point of a posterior that bayeslora fitted with the method `{about.method}`: {about.part}. One",
            "adapter gives one prediction; the uncertainty is in how those of several draws differ.",
        ]
        if about.temperature != 1:
            lines += ["", f"The posterior divides every logit by {about.temperature:.6g}; PEFT does not."]
    lines += ["", "```python"]
    if task and base:
        auto = f"AutoPeftModelFor{TASKS[task][1]}"
        lines += [f"from peft import {auto}", "", f'model = {auto}.from_pretrained("path/to/this/folder"{arguments})']
    else:
        lines += ["from peft import PeftModel", "", 'model = PeftModel.from_pretrained(base, "path/to/this/folder")']
    return "\n".join([*lines, "```", ""])


def merge(network: AdaptedNetwork, factors: Mapping[str, Any], batch: Batch | None = None) -> nn.Module:
    """A plain model with the given factors folded into the weights of a copy of the network.

    Args:
        network: The adapted network.
        factors: Factors by stack, without draws.
        batch: Inputs of the network, if some are at hand, on which both are compared.

    Raises:
        ValueError: If a base layer is quantised, or the merged model differs on the batch.
    """
    scaled = network.scaled(factors)
    merged = copy.deepcopy(network)
    gaining: list[str] = []
    for stack in network.stacks.values():
        bases = merged.bases(stack.name)
        with torch.no_grad():
            weights = stack.family.delta(scaled[stack.name], bases)
            biases = stack.family.bias_delta(scaled[stack.name])
        for index, (name, base) in enumerate(zip(stack.layer_names, bases, strict=True)):
            if weights is not None:
                _add_to_weight(base, weights[index], name)
            if biases is not None:
                gaining += [name] if base.bias is None else []
                _add_to_bias(base, biases[index])
            parent, _, child = name.rpartition(".")
            setattr(merged.model.get_submodule(parent), child, base)
    if gaining:
        logger.warning(
            "%d layers of the merged model, such as %s, have a bias that their class does not give them: saving "
            "keeps it, and from_pretrained would leave it out. Keep the posterior.",
            *(len(gaining), gaining[0]),
        )
    if batch is not None and (difference := _difference(network, factors, merged.model, batch)):
        raise ValueError(
            f"The merged model's logits differ by {difference:.2g} on a batch from those of the adapters: a layer's "
            "weight is used in other ways than by its own call. Keep the posterior, and predict with center=True."
        )
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
