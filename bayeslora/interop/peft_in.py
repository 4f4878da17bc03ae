"""Adapters from PEFT: a model in memory, or a folder."""

import contextlib
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bayeslora.adapters import Family, choose_targets
from bayeslora.adapters.targets import head_names
from bayeslora.adapters.weights import features, share_weights
from bayeslora.interop.peft_fields import (
    LORA_FIELDS,
    PREFIX,
    change_by,
    check_config,
    refuse,
    refuse_base,
    refuse_beside,
    refuse_layer,
)
from bayeslora.interop.peft_files import Patterns, lora_config, or_default, read_folder
from bayeslora.interop.starting import Adapters
from bayeslora.isolation import seeded

if TYPE_CHECKING:
    from peft import PeftModel

logger = logging.getLogger(__name__)

NOT_COMPARED = "The adapter in %s was not compared with what PEFT computes: peft is not installed."


def is_peft_model(model: object) -> bool:
    """Return whether a model is one of PEFT's, without importing PEFT.

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


def from_peft(model: "PeftModel", network: nn.Module | None = None) -> Adapters:
    """Read the active LoRA adapter of a PEFT model, and its task head.

    Ranks, scaling and factors are those of PEFT's layers, from which its configuration may differ.

    Args:
        model: The PEFT model.
        network: The network that the adapter is for; None for the PEFT model's own base.

    Raises:
        ValueError: If there is not exactly one active adapter, unmerged, or if it is not plain LoRA or DoRA, or for
            another base.
    """
    active = model.active_adapters
    config = model.peft_config[active[0] if active else model.active_adapter].to_dict()
    family = check_config(config)
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
            refuse_base(changed)
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
            refuse_layer(layer_name)
        if variant not in ("NoneType", "DoraLinearVariant", "MiCALinearVariant"):
            refuse(f"layer {layer_name!r} as a {variant}", "does not compute B A alone")
        if layer.lora_B[name].bias is not None:
            refuse("lora_bias=True", LORA_FIELDS["lora_bias"])
        factors[layer_name] = {"A": layer.lora_A[name].weight, "B": layer.lora_B[name].weight}
        if name in layer.lora_magnitude_vector:
            factors[layer_name]["m"] = layer.lora_magnitude_vector[name].weight
        scaling[layer_name] = float(layer.scaling[name])
    heads = head_names(root)
    trained = [key for key, module in root.named_modules() if _is_a(module, "AuxiliaryTrainingWrapper")]
    if beside := [key for key in trained if key.split(".")[0] not in heads]:
        refuse_beside(beside)
    base = base_of_peft(model)
    head = {key: value for key, value in base.state_dict().items() if key.split(".")[0] in heads}
    adapters = _adapters(config, family, factors, scaling, head, lambda: share_weights(root, ()))
    _check_layers(adapters, base if network in (None, model) else network)
    return adapters


def from_peft_folder(folder: str | os.PathLike[str], network: nn.Module | None = None) -> Adapters:
    """Read a LoRA adapter that PEFT saved: `adapter_config.json` and `adapter_model.safetensors`, which hold no code.

    Args:
        folder: A local folder; nothing is downloaded.
        network: The network that the adapter is for; PEFT, if it is installed, reads the adapter onto it as well.

    Raises:
        FileNotFoundError: If the folder holds none.
        ValueError: If the adapter is not plain LoRA or DoRA, damaged, or for another network.
    """
    config, state = read_folder(folder)
    base = None if network is None else (base_of_peft(network) if is_peft_model(network) else network)

    def reference() -> nn.Module | None:
        return None if base is None else _built_by_peft(base, folder, adapters, config, state)

    adapters = _from_peft(config, state, reference)
    if changed := change_by(config):
        refuse_base(changed)
    if base is not None:
        _check_layers(adapters, base)
        named, own = config.get("base_model_name_or_path"), getattr(base, "name_or_path", "")
        if named and own and named != own:
            logger.warning("The PEFT adapter in %s names its base %r; the model given is %r.", folder, named, own)
    return adapters


def base_of_peft(model: nn.Module) -> nn.Module:
    """Return a PEFT model's base, with the task head that was trained with the adapters.

    The PEFT model is not changed. The base loses its name if PEFT has changed it to start the adapters.

    Raises:
        ValueError: If adapters are merged into it.
    """
    _adapted_layers(model)
    shared: Any = share_weights(model, ())
    base = shared.unload() if hasattr(shared.base_model, "unload") else shared.get_base_model()
    if _changing(model) and hasattr(base, "name_or_path"):
        base.name_or_path = ""
    return base


def _adapted_layers(model: "PeftModel") -> dict[str, Any]:
    """Return the PEFT layers of a PEFT model, by their names in its base.

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


def _changing(model: "PeftModel") -> str | None:
    """Return the start of an adapter of a PEFT model that has changed the base, which all its adapters share."""
    configs = [config.to_dict() for config in model.peft_config.values() if hasattr(config, "init_lora_weights")]
    return next((start for start in map(change_by, configs) if start), None)


def _check_layers(adapters: Adapters, network: nn.Module) -> None:
    """Raise a ValueError unless a network has the linear layers that adapters are for, outside its task head."""
    there, heads = dict(network.named_modules()), head_names(network)
    for name, parts in adapters.factors.items():
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
            refuse_layer(name)
        if (given := (parts.A.shape[1], len(parts.B))) != (wanted := features(there[name])):
            raise ValueError(
                f"The PEFT adapter adapts {name!r} from {given[0]} to {given[1]} features, and the layer of the "
                f"{type(network).__name__} is of {wanted}: load the model that it was trained on."
            )


def _from_peft(
    config: Mapping[str, Any], state: Mapping[str, Tensor], reference: Callable[[], nn.Module | None] | None = None
) -> Adapters:
    """Make adapters from PEFT's configuration and saved weights."""
    family = check_config(config)
    factors: dict[str, dict[str, Tensor]] = {}
    head: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key.removeprefix(PREFIX)
        if match := re.fullmatch(r"(.+)\.lora_([AB])(?:\.[^.]+)?\.weight", name):
            _put(factors.setdefault(match[1], {}), match[2], value, key)
        elif match := re.fullmatch(r"(.+)\.lora_magnitude_vector(?:\.[^.]+)?(?:\.weight)?", name):
            _put(factors.setdefault(match[1], {}), "m", value, key)
        elif "lora_embedding" in name:
            refuse_layer(name.partition(".lora_")[0])
        elif "lora_" in name:
            raise ValueError(f"The PEFT adapter has weights {key!r}, which are not a linear layer's A or B.")
        else:
            _put(head, name, value.detach(), key)
    scaling = {}
    ranks, alphas = (
        partial(Patterns(field, config.get(field) or {}).of, default=or_default(config, default))
        for field, default in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha"))
    )
    for name, parts in factors.items():
        rank, given = ranks(name), parts["A"].shape[0] if "A" in parts and parts["A"].dim() else 0
        if "A" in parts and rank != given:
            raise ValueError(
                f"The PEFT adapter has r={rank} for {name!r} in its configuration, and its weights there have rank "
                f"{given}: it is damaged."
            )
        scaling[name] = alphas(name) / (rank**0.5 if config.get("use_rslora") else rank)
    return _adapters(config, family, factors, scaling, head, reference)


def _adapters(
    config: Mapping[str, Any],
    family: Family,
    factors: Mapping[str, Mapping[str, Tensor]],
    scaling: Mapping[str, float],
    head: Mapping[str, Tensor],
    reference: Callable[[], nn.Module | None] | None,
) -> Adapters:
    """Make adapters from the factors of each layer, which must be those of the family."""
    layers, ranks = {}, {}
    for name, parts in factors.items():
        if set(parts) != set(family.factors._fields):
            raise ValueError(
                f"Layer {name!r} of the PEFT adapter has {', '.join(sorted(parts))}; {type(family).__name__} has "
                f"{', '.join(family.factors._fields)} in every layer."
            )
        if parts["A"].dim() != 2 or parts["B"].dim() != 2:
            refuse_layer(name)
        if parts["A"].shape[0] != parts["B"].shape[1]:
            raise ValueError(
                f"Layer {name!r} of the PEFT adapter has an A of rank {parts['A'].shape[0]} and a B of rank "
                f"{parts['B'].shape[1]}: it is damaged."
            )
        if "m" in parts and parts["m"].shape != parts["B"].shape[:1]:
            raise ValueError(
                f"Layer {name!r} of the PEFT adapter has magnitudes of shape {tuple(parts['m'].shape)} for "
                f"{len(parts['B'])} features: it is damaged."
            )
        # Factors are never in half precision, whatever the base.
        precise = {
            key: value.detach().to(torch.promote_types(value.dtype, torch.float32)) for key, value in parts.items()
        }
        layers[name] = family.factors(**precise)
        ranks[name] = len(parts["A"])
    if not layers:
        raise ValueError("The PEFT adapter adapts no layer.")
    if not any(scaling.values()):
        raise ValueError(
            "The PEFT adapter is multiplied by 0 in every layer (lora_alpha=0, or a scale set by hand): nothing of it "
            "counts, and nothing would be learned."
        )
    dropout = float(config.get("lora_dropout") or 0)
    return Adapters(family, layers, ranks, scaling, head, dropout, reference)


def _put(parts: dict[str, Tensor], name: str, value: Tensor, key: str) -> None:
    """Add a tensor to those of a layer or a head; a ValueError if there is one already, by another spelling."""
    if name in parts:
        raise ValueError(f"The PEFT adapter has the weights {key!r} twice, by another spelling: it is damaged.")
    parts[name] = value


def _built_by_peft(
    base: nn.Module, folder: str | os.PathLike[str], adapters: Adapters, config: Mapping[str, Any], state: Any
) -> nn.Module | None:
    """Return a copy of a network with an adapter that was read, as PEFT builds it; None, with a warning, without PEFT.

    PEFT opens no file, and sees none of the configuration's patterns.
    """
    try:
        from peft import get_peft_model, set_peft_model_state_dict
    except ImportError:
        logger.warning(NOT_COMPARED, folder)
        return None
    with _by_peft(folder), seeded(0):  # PEFT draws a start, which it then replaces
        settings = _settings(config, adapters, base)
        model: Any = get_peft_model(share_weights(base, head_names(base)), settings)
        set_peft_model_state_dict(model, dict(state))
        return model.base_model.model


def _settings(config: Mapping[str, Any], adapters: Adapters, base: nn.Module) -> Any:
    """Return PEFT's configuration of an adapter that was read, with names in place of patterns."""
    power = 0.5 if config.get("use_rslora") else 1.0
    alphas = {name: adapters.scaling[name] * rank**power for name, rank in adapters.ranks.items()}
    return lora_config(config, adapters.ranks, alphas, [name for name, _ in base.named_modules()])


def put_by_peft(base: nn.Module, folders: Sequence[Path]) -> Any:
    """Return PEFT's model with the adapters of several folders on a base, by the folders' names.

    They are read as those of `from_peft_folder`: PEFT opens no file, and sees none of their patterns.

    Args:
        base: The base, into which PEFT puts its layers.
        folders: The folders.

    Raises:
        ValueError: If an adapter cannot be read, or is for another base.
    """
    from peft import get_peft_model, set_peft_model_state_dict

    read = []
    for folder in folders:
        config, state = read_folder(folder)
        adapters = _from_peft(config, state)
        _check_layers(adapters, base)
        with _by_peft(folder):
            read.append((folder, state, _settings(config, adapters, base)))
    model: Any = None
    for folder, state, settings in read:
        with _by_peft(folder), seeded(0):
            if model is None:
                model = get_peft_model(base, settings, adapter_name=folder.name)
            else:
                model.add_adapter(folder.name, settings)
            set_peft_model_state_dict(model, state, adapter_name=folder.name)
    return model


def read_by_peft(base: nn.Module, folder: str | os.PathLike[str]) -> nn.Module | None:
    """Return a copy of a network with the adapter that PEFT reads from a folder that an export of ours wrote.

    Without PEFT, it is None, with a warning.
    """
    try:
        from peft import PeftModel
    except ImportError:
        logger.warning(NOT_COMPARED, folder)
        return None
    device = str(next(base.parameters()).device)
    with _by_peft(folder), seeded(0):  # PEFT draws a start, which it then replaces
        shared = share_weights(base, head_names(base))
        model = PeftModel.from_pretrained(shared, os.fspath(folder), torch_device=device)
    return model.base_model.model


@contextlib.contextmanager
def _by_peft(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Say whose adapter it is that PEFT cannot read, and nothing of what transformers finds outdated in PEFT."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
            yield
    except (AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        reason = f"it lacks the weights {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ValueError(f"PEFT cannot read the adapter in {folder}: {reason[:500].rstrip('.')}.") from error
