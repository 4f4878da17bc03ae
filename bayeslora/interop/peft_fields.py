"""PEFT's configuration, field by field: what is read, what does not matter, and what is refused by name."""

import functools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NoReturn

from bayeslora.adapters import Family
from bayeslora.adapters.families import IN_PEFT
from bayeslora.contracts import Count, Within, fits, in_words

PREFIX = "base_model.model."
"""What PEFT puts before the names of a base's layers."""

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
    # Ignored: the weights say which layers there are, and these say where or how they were made.
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
"""PEFT's `LoraConfig`, field by field: None where a field is read or ignored, else why other values than its default
are refused. A field that is not here is refused unless it has its default."""


Alpha = Annotated[float, Within(at_least=-1_000_000, at_most=1_000_000)]

KINDS: Mapping[str, Any] = {
    "r": Count,
    "rank_pattern": Mapping[str, Count],
    "lora_alpha": Alpha,
    "alpha_pattern": Mapping[str, Alpha],
    "use_rslora": bool,
    "use_dora": bool,
    "fan_in_fan_out": bool,
    "init_lora_weights": bool | str,
    "modules_to_save": Sequence[str],
    "lora_dropout": Annotated[float, Within(at_least=0, at_most=1)],
    "base_model_name_or_path": str,
    "target_modules": str | Sequence[str],
    "exclude_modules": str | Sequence[str],
    "layers_to_transform": int | Sequence[int],
    "layers_pattern": str | Sequence[str],
    "task_type": str,
}
"""What the fields that are read may be, if they are not None."""

LEAVING_BASE = ("gaussian", "eva", "orthogonal", "mica")
"""PEFT's starts, `init_lora_weights`, that do not change the base."""


CHANGING_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""PEFT's starts that subtract the adapter's first value from the base's weights: it is right on those weights only."""


def change_by(config: Mapping[str, Any]) -> str | None:
    """Return the start of an adapter, `init_lora_weights`, if it changes the base's weights."""
    start = config.get("init_lora_weights", True)
    if start is None or isinstance(start, bool) or str(start).lower() in LEAVING_BASE:
        return None
    if str(start).lower().startswith(CHANGING_BASE):
        return str(start)
    return refuse(f"init_lora_weights={start!r}", "is not known here")


def check_config(config: Mapping[str, Any]) -> Family:
    """Return the family of the adapters that a configuration describes.

    Raises:
        ValueError: If there is none; the message names the field.
    """
    kind = str(getattr(config.get("peft_type"), "value", config.get("peft_type")))
    if kind != "LORA":
        raise ValueError(
            f"The PEFT adapter is of type {kind:.100}; only LORA can be a starting point. Where PEFT can merge it into "
            "a model of its own, model.merge_and_unload(), fit that."
        )
    for field, value in config.items():
        if field not in LORA_FIELDS:
            if value not in _defaults(field):
                refuse(f"{field}={value!r:.200}", "is not known here")
        elif (reason := LORA_FIELDS[field]) and value not in (None, False, "none", []):
            refuse(f"{field}={value!r:.200}", reason)
    change_by(config)
    for field, declaration in KINDS.items():
        value = getattr(config.get(field), "value", config.get(field))  # of an enumeration
        value = sorted(value, key=str) if isinstance(value, set) else value
        if value is not None and not fits(value, declaration):
            raise ValueError(f"The PEFT adapter has {field}={value!r:.200}: give {in_words(declaration)}.")
    return next(f for f in IN_PEFT if all(config.get(key, False) == value for key, value in f.peft_settings.items()))


def _defaults(field: str) -> list[Any]:
    """Return the values with which an unknown field of PEFT's does nothing: its default, or nothing at all."""
    return [None, False, "", [], {}, _pefts().get(field)]


@functools.cache
def _pefts() -> Mapping[str, Any]:
    """Return PEFT's own defaults; nothing without PEFT."""
    try:
        from peft import LoraConfig
    except ImportError:
        return {}
    return LoraConfig().to_dict()


def refuse(what: str, why: str | None) -> NoReturn:
    raise ValueError(
        f"The PEFT adapter has {what}, which {why}: only plain LoRA, an update that is B A alone, and DoRA can be a "
        "starting point. Where PEFT can merge the adapter into a model of its own, model.merge_and_unload(), fit that."
    )


def refuse_layer(name: str) -> NoReturn:
    raise ValueError(
        f"The PEFT adapter adapts {name!r}, which is not a linear layer: it cannot be a starting point. Train it on "
        "linear layers, or merge it into a model of its own, model.merge_and_unload(), and fit that."
    )


def refuse_beside(names: list[str]) -> NoReturn:
    raise ValueError(
        f"The PEFT adapter trained more than adapters and a task head (modules_to_save): {', '.join(names[:5])}, which "
        "a posterior would not save. Merge it into a model of its own, model.merge_and_unload(), and fit that."
    )


def refuse_base(start: str) -> NoReturn:
    raise ValueError(
        f"The PEFT adapter has init_lora_weights={start!r}, which changes the base's own weights: it is right on that "
        "base alone. Pass the PEFT model itself, fit(peft_model, …), or let PEFT convert the adapter when it saves it, "
        "save_pretrained(folder, path_initial_model_for_weight_conversion=…)."
    )
