"""What belongs to a base model: its frozen weights, those that its checkpoint lacked, and its configuration."""

import contextlib
import copy
import functools
import json
import logging
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora.adapters import AdaptedNetwork
from bayeslora.adapters.layer import AdaptedLayer
from bayeslora.adapters.weights import is_within, names_of
from bayeslora.hashing import hashed
from bayeslora.record import MANIFEST, Record, damaged
from bayeslora.tasks import Likelihood

logger = logging.getLogger(__name__)

VALUES = 8
"""Numbers sampled from each frozen parameter to recognise the base model."""

NEW = "new/"
"""What the names of saved weights that the checkpoint lacked begin with."""

HARMLESS = ("architectures", "dtype", "torch_dtype", "id2label", "label2id", "transformers_version", "use_cache")
"""Fields of a configuration that do not say what is computed; the number of labels is kept by itself."""

REFUSED = ("auto_map", "quantization_config")
"""Fields of a configuration that ask for code, or say how weights are stored: a record does not set them."""


MOST_OUTPUTS = 1000
"""A model is loaded by name with so many outputs, or as many as the saved head has."""

MOST_BYTES = 2**26
"""Of weights that are compared with those of a checkpoint's base whole: a tenth of a second."""

HUB_NAME = re.compile(r"\w[\w.-]{0,95}(/\w[\w.-]{0,95})?")


def frozen(network: AdaptedNetwork) -> dict[str, Tensor]:
    """Return the frozen parameters and saved buffers of the body, by their names in the model that was given."""
    adapted = {
        name for module, names in names_of(network.model).items() if isinstance(module, AdaptedLayer) for name in names
    }
    kept = set(network.model.state_dict(keep_vars=True))
    values = [*network.model.named_parameters(), *network.model.named_buffers()]
    found = {}
    for name, value in values:
        parts = name.split(".")
        if is_within(name, network.head_names) or name not in kept or not value.is_floating_point():
            continue
        its_own = [p for i, p in enumerate(parts) if not (p == "base" and ".".join(parts[:i]) in adapted)]
        found[".".join(its_own)] = value
    return found


def fingerprint(network: AdaptedNetwork) -> Tensor:
    """Return a few numbers of every frozen parameter, `[parameter, value]`, in the order of the names."""
    return _sampled(frozen(network))


def identity(network: AdaptedNetwork) -> dict[str, Any]:
    """Return what tells a base from others to the last bit, by names that a user knows, ready for JSON.

    Of a large one, a few numbers of every parameter do. Weights that a checkpoint lacks start anew in each process.
    """
    own = {name: value.detach() for name, value in frozen(network).items() if name not in network.new}
    small = sum(value.nbytes for value in own.values()) <= MOST_BYTES
    parts = [[name, type(part).__name__, part.extra_repr()] for name, part in network.model.named_modules()]
    return {
        "modules of the base model": hashed(parts),
        "configuration of the base model": settings(network.model),
        "number type of the base model": sorted({str(value.dtype).removeprefix("torch.") for value in own.values()}),
        "weights of the base model": hashed(own if small else _sampled(own)),
    }


def _sampled(parameters: Mapping[str, Tensor]) -> Tensor:
    rows = []
    for _, value in sorted(parameters.items()):
        flat = value.detach().flatten()
        index = _places(len(flat))
        rows.append(flat[index.to(flat.device)].float().cpu() if len(flat) else torch.zeros(VALUES))
    return torch.stack(rows) if rows else torch.zeros(0, VALUES)


@functools.lru_cache(1024)
def _places(size: int) -> Tensor:
    """Places of the numbers that are sampled from so many; a network has few sizes."""
    return torch.linspace(0, max(size - 1, 0), VALUES, dtype=torch.float64).long()


def differing(own: Tensor, saved: Tensor) -> Tensor:
    """Return whether two samples of weights, `[row, value]`, differ by more than half precision rounds, `[row]`.

    Those that are not finite, as of quantised weights, say nothing.
    """
    return (((own - saved).abs() > 0.01 * saved.abs() + 1e-4) & own.isfinite() & saved.isfinite()).any(1)


def check(network: AdaptedNetwork, saved: Tensor | None) -> None:
    """Raise a ValueError unless the base has the frozen weights that a posterior was trained on.

    Args:
        network: The adapted network.
        saved: What `fingerprint` returned at the fit; None from versions that did not save it.
    """
    if saved is None:
        return
    parameters = frozen(network)
    own, names = _sampled(parameters), sorted(parameters)
    if own.shape != saved.shape:
        raise ValueError(
            f"that has {len(saved)} frozen parameters, this one has "
            f"{len(own)}. Load the checkpoint that it was trained on."
        )
    differs = differing(own, saved)
    if bool(differs.any()):
        first = names[int(differs.nonzero()[0])]
        raise ValueError(
            f"{int(differs.sum())} of {len(names)} frozen parameters "
            f"differ, the first is {first!r}. Load the checkpoint that it was trained on; where a parameter is new, "
            "and random at each load, pass the very model."
        )


def check_same(network: AdaptedNetwork, other: AdaptedNetwork) -> None:
    """Raise a ValueError unless two networks have the same base: frozen parameters of one name hold the same numbers.

    A parameter that one of them trains, with its head, say, is left out.
    """
    own, others = frozen(network), frozen(other)
    shared = own.keys() & others.keys()
    if not shared or any(own[name].shape != others[name].shape for name in shared):
        raise ValueError("their frozen parameters have other names or shapes.")
    apart = [name for name in sorted(shared) if own[name].data_ptr() != others[name].data_ptr()]
    differs = differing(*(_sampled({name: values[name] for name in apart}) for values in (others, own)))
    if bool(differs.any()):
        raise ValueError(f"{int(differs.sum())} of {len(shared)} frozen parameters differ.")


def note_new(network: AdaptedNetwork, lacked: Collection[str]) -> None:
    """Let weights that the checkpoint lacked be saved with the posterior, and say which they are."""
    network.new = sorted(frozen(network).keys() & set(lacked))
    if network.new:
        logger.warning(
            "%d frozen parameters are not in the model's checkpoint, such as %r: they stay at their random start, and "
            "are saved with the posterior.",
            *(len(network.new), network.new[0]),
        )


def new_weights(network: AdaptedNetwork) -> dict[str, Tensor]:
    """Return the weights that the checkpoint lacked, by the names that they are saved under."""
    values = frozen(network) if network.new else {}
    return {f"{NEW}{name}": values[name] for name in network.new}


def put_new(network: AdaptedNetwork, tensors: Mapping[str, Tensor]) -> None:
    """Put weights that the checkpoint lacked back; the model that was given keeps its own.

    Raises:
        ValueError: If the network has no such weights.
    """
    saved = {name.removeprefix(NEW): value for name, value in tensors.items() if name.startswith(NEW)}
    values = frozen(network) if saved else {}
    for name, value in saved.items():
        own = values.get(name)
        if own is None or own.shape != value.shape:
            has = "no such parameter" if own is None else f"one of shape {tuple(own.shape)}"
            raise ValueError(
                f"{name!r} is {tuple(value.shape)}, and the model has "
                f"{has}. Load it with the class and the configuration of the fit."
            )
        value = value.to(own.device, own.dtype)
        new = nn.Parameter(value, requires_grad=False) if isinstance(own, nn.Parameter) else value
        for module in network.model.modules():  # every module that shares it
            for part in (module._parameters, module._buffers):
                part.update({key: new for key, each in part.items() if each is own})  # type: ignore[misc]
    network.new = sorted(saved)


def lacked_by_checkpoint(model: nn.Module) -> set[str]:
    """Return the parameters of a `transformers` model that its checkpoint has not, or has in another shape.

    They can be told where the model was loaded from a folder with safetensors, or from the hub with a copy in its
    cache, under names that are the model's own.
    """
    name = getattr(model, "name_or_path", "")
    folder = _on_this_machine(name) if isinstance(name, str) and name else None
    files = [] if folder is None else sorted(folder.glob("model*.safetensors"))
    if not files:
        return set()
    from safetensors import safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    for file in files:
        with safe_open(file, "pt") as content:
            for key in content.keys():  # noqa: SIM118 (it is not a mapping)
                shape = tuple(content.get_slice(key).get_shape())
                shapes |= {key: shape, f"{prefix}{key}": shape, key.removeprefix(prefix): shape}
    aliases: dict[Tensor, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(parameter, []).append(name)
    lacked = [
        names[0]
        for parameter, names in aliases.items()
        if not any(shapes.get(name) == tuple(parameter.shape) for name in names)
    ]
    # Names of which most are unknown are not the checkpoint's: it was converted while it was read.
    return set(lacked) if len(lacked) <= len(aliases) / 2 else set()


def record(model: nn.Module) -> dict[str, Any]:
    """Return what is needed to load a base model again: its class, its name, and what was set in its configuration."""
    name = getattr(model, "name_or_path", "") or None
    return {"class": type(model).__name__, "name": name, "config": settings(model)}


def settings(model: nn.Module) -> dict[str, Any]:
    """Return the fields of a model's configuration that differ from its checkpoint's, as JSON has them.

    With them, `from_pretrained` builds the same network again. Where the checkpoint cannot be read, they are those that
    differ from the class's defaults.
    """
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_json_string"):
        return {}
    name = getattr(model, "name_or_path", "") or ""
    try:
        its_own = type(config).from_pretrained(name, local_files_only=True) if name else type(config)()
    except Exception:  # whatever keeps the file from being read, it is not needed
        its_own = type(config)()
    own, saved = (json.loads(each.to_json_string(use_diff=False)) for each in (config, its_own))
    changed = {key: value for key, value in own.items() if key not in saved or saved[key] != value}
    if len(config.id2label or ()) != len(its_own.id2label or ()):
        changed["num_labels"] = len(config.id2label)
    return {key: value for key, value in changed.items() if _may_be_set(key)}


def check_settings(model: nn.Module, recorded: Mapping[str, Any]) -> None:
    """Warn where a model's configuration is not the one of the fit: the same weights may compute something else."""
    own = getattr(model, "config", None)
    differing = {
        key: (getattr(own, key), value)
        for key, value in recorded.items()
        if _may_be_set(key) and key != "num_labels" and isinstance(value, str | int | float) and hasattr(own, key)
        if getattr(own, key) != value
    }
    if differing:
        said = ", ".join(f"{key} is {mine!r} and was {theirs!r}" for key, (mine, theirs) in differing.items())
        logger.warning("The base model's configuration is not that of the fit: %s.", said)


def load_base(
    folder: str | os.PathLike[str],
    name: str | None,
    record: Record,
    likelihood: Likelihood,
    tensors: Mapping[str, Tensor],
    download: bool,
) -> nn.Module:
    """The base model, by the name given or, if it is on this machine or may be fetched, by the one in the record."""
    import transformers

    saved, its_class = record["base"]["name"], record["base"]["class"]
    cls: Any = None
    with contextlib.suppress(Exception):  # an optional package that is missing, for instance
        cls = getattr(transformers, its_class) if its_class.isidentifier() else None
    is_model = isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)
    if not is_model or (name is None and saved is None):
        raise ValueError(
            f"The posterior in {folder} does not name a base model that can be loaded: pass model=… (it was a "
            f"{its_class:.100})."
        )
    settings: dict[str, Any] = {"trust_remote_code": False}
    if (outputs := likelihood.num_labels) is not None:
        heads = {size for key, value in tensors.items() if key.startswith("head/") for size in value.shape}
        if outputs > MOST_OUTPUTS and outputs not in heads:
            raise damaged(folder, MANIFEST, f"there are {outputs} classes, and a head for fewer in {record['tensors']}")
    source: str | Path | None = name
    if source is None:
        source = _on_this_machine(saved or "")
        settings |= {"use_safetensors": True, "local_files_only": source is not None}
        if source is None and download and HUB_NAME.fullmatch(saved or ""):
            source = saved
        if source is None:
            raise ValueError(
                f"The posterior in {folder} names the base model {saved!r:.200}, and there are no config.json and "
                "safetensors of it on this machine: pass model=…, or download=True if that is its name on the hub."
            )
    try:
        # Weights of other shapes than the checkpoint's are saved with the posterior.
        settings |= asked_for(cls, source, record["base"].get("config", {}), outputs, settings)
        model = cls.from_pretrained(source, ignore_mismatched_sizes=True, **settings)
    except Exception as error:
        raise ValueError(
            f"The base model {str(name or saved)!r:.200} of the posterior in {folder} cannot be loaded "
            f"({' '.join(str(error).split()):.300}): pass model=…."
        ) from error
    if name is None:
        model.name_or_path = saved  # which the cache's own path is not
    return model


def _on_this_machine(name: str) -> Path | None:
    """Find the folder of a base that a record names: a folder with safetensors, or a model in the hub's cache.

    The hub's library asks it about names even when it is told to use local files alone, so that it is not given any.
    """
    if name.startswith(("//", "\\\\")) or "\0" in name:  # a share on another machine
        return None
    from huggingface_hub import try_to_load_from_cache

    with contextlib.suppress(OSError):  # too long a name, for instance
        path = Path(name)
        if HUB_NAME.fullmatch(name) and not path.is_dir():
            cached = try_to_load_from_cache(name, "config.json")
            path = Path(cached).parent if isinstance(cached, str) else path
        if (path / "config.json").is_file() and any(path.glob("*.safetensors")):
            return path
    return None


def asked_for(
    cls: Any, source: str | Path, recorded: Mapping[str, Any], num_labels: int | None, how: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what `from_pretrained` is asked for: the recorded configuration, if there is one, or the outputs."""
    if any(_may_be_set(key) for key in recorded):
        return {"config": configured(cls, source, recorded, num_labels, how)}
    return {} if num_labels is None else {"num_labels": num_labels}


def configured(cls: Any, source: str | Path, recorded: Mapping[str, Any], num_labels: int | None, how: Any) -> Any:
    """Return the configuration of a checkpoint with what a record says was set in it.

    Only fields that the checkpoint's configuration has are set: a record passes no other argument to `from_pretrained`.

    Args:
        cls: The class of the model.
        source: Where the checkpoint is.
        recorded: What was set at the fit.
        num_labels: The number of outputs, if the class has any.
        how: Arguments of `from_pretrained`.

    Raises:
        ValueError: If the model would be far larger than the checkpoint's.
    """
    config = cls.config_class.from_pretrained(source, **how)
    plain = _size(cls, config)
    known = config.to_dict()
    for key, value in recorded.items():
        if key in known and _may_be_set(key):
            setattr(config, key, value)
    if num_labels is not None:
        config.num_labels = num_labels
    if _size(cls, config) > 4 * plain + 10_000_000:
        raise ValueError("its configuration asks for a model that is far larger than the checkpoint")
    return config


def _size(cls: Any, config: Any) -> int:
    with torch.device("meta"), torch.no_grad():
        return sum(parameter.numel() for parameter in cls(copy.deepcopy(config)).parameters())


def _may_be_set(key: str) -> bool:
    return not key.startswith("_") and key not in (*HARMLESS, *REFUSED) and key != "model_type"
