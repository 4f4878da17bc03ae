"""Posteriors on disk: one safetensors file and one JSON file; never pickle."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from bayeslora import bases, saving
from bayeslora.adapters import AdaptedNetwork
from bayeslora.methods import Method
from bayeslora.program import Program
from bayeslora.tasks import Likelihood

MANIFEST = "bayeslora.json"
FORMAT = 1

# Weights sampled from each adapted layer to recognise the base model. Compared with a tolerance, so that a posterior
# trained on single-precision weights loads onto the same weights in half precision.
FINGERPRINT_VALUES = 16


def save_files(
    folder: str | os.PathLike[str], tensors: Mapping[str, Tensor], record: Mapping[str, Any], tokenizer: Any = None
) -> None:
    """Write tensors, a JSON record and a tokenizer so that they take effect together, or not at all.

    Raises:
        NotSavedError: If a file cannot be written, because the disk is full, say.
    """
    content = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
    saving.save_together(
        Path(folder) / MANIFEST, content, lambda files: {"format": FORMAT, **files, **record}, tokenizer
    )


def load_files(folder: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the record that `save_files` wrote.

    Raises:
        FileNotFoundError: If there is no posterior in the folder.
        ValueError: If it is damaged, or has a format that this version does not know.
    """
    manifest = Path(folder) / MANIFEST
    if not manifest.is_file():
        raise FileNotFoundError(f"{folder} holds no posterior: there is no {MANIFEST} in it.")
    try:
        record = json.loads(manifest.read_text())
        if record["format"] != FORMAT:
            raise ValueError(
                f"{folder} has format {record['format']}; this version of bayeslora reads format {FORMAT}. Upgrade it."
            )
        return load_file(Path(folder) / record["tensors"]), record
    except (json.JSONDecodeError, KeyError, TypeError, SafetensorError, FileNotFoundError) as error:
        raise ValueError(f"{folder} holds a damaged posterior: {error}. Save it again.") from error


def is_finished(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds the posterior of a fit that was finished."""
    try:
        record = json.loads((Path(folder) / MANIFEST).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("state") is None


def state(program: Program) -> dict[str, Tensor]:
    """Return all learned state: that of the guide under `guide/`, of the task head under `head/`, and `likelihood/`.

    Beside it are what the base's checkpoint lacked, under `new/`, and what the base is recognised by.
    """
    parts = {
        "guide": program.guide.state_dict(),
        "head": program.network.head_state(),
        "likelihood": program.likelihood.state_dict(),
    }
    learned = {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
    return learned | bases.new_weights(program.network) | {"base_fingerprint": bases.fingerprint(program.network)}


def load_state(program: Program, tensors: Mapping[str, Tensor]) -> None:
    """Load learned state into a program.

    Raises:
        ValueError: If the head does not fit the network's.
    """
    guide, head, likelihood = (
        {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
        for prefix in ("guide/", "head/", "likelihood/")
    )
    bases.put_new(program.network, tensors)
    program.guide.load_state_dict(guide)
    program.network.load_head(head)
    program.likelihood.load_state_dict(likelihood)


def history(tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return the columns of the history in their order, which a file of tensors does not keep."""
    return {name: tensors[f"history/{name}"].tolist() for name in record["history"]}


def method_record(method: Method) -> dict[str, Any]:
    """Return a method's name, its class and its fields, as read back from JSON."""
    return json.loads(json.dumps({"name": method.name, "class": type(method).__name__, "fields": method.record()}))


def likelihood_record(likelihood: Likelihood) -> dict[str, Any]:
    """Return a likelihood's name, its class and what its constructor needs."""
    return {"name": likelihood.name, "class": type(likelihood).__name__, "config": likelihood.config()}


def network_record(network: AdaptedNetwork) -> dict[str, Any]:
    """Return what `AdaptedNetwork` needs to be built again on the same base."""
    body = [stack for stack in network.stacks.values() if not stack.in_head]
    names = [name for stack in body for name in stack.layer_names]
    ranks = {name: stack.rank for stack in body for name in stack.layer_names}
    alphas = {
        name: float(s) * stack.rank
        for stack in body
        for name, s in zip(stack.layer_names, network.scaling(stack.name), strict=True)
    }
    return {
        "targets": names,
        "rank": ranks,
        "alpha": alphas,
        "num_examples": network.stacks.num_examples,
        "head": list(network.head_names),
    }


def fingerprint(network: AdaptedNetwork) -> Tensor:
    """Sample a few weights of every adapted layer, `[layer, value]`, to recognise the base model; NaN if quantised.

    Weights of the task head are left out, because they are saved with the posterior.
    """
    rows = []
    for name, stack in network.stacks.items():
        for base in () if stack.in_head else network.bases(name):
            weight = base.weight.detach().flatten()  # type: ignore[operator]
            # In single precision, the last index of a large layer could be rounded past its end.
            index = torch.linspace(0, len(weight) - 1, FINGERPRINT_VALUES, dtype=torch.float64).long()
            values = weight[index.to(weight.device)].float().cpu()
            rows.append(values if weight.is_floating_point() else torch.full_like(values, torch.nan))
    return torch.stack(rows)


def check_base(network: AdaptedNetwork, saved: Tensor) -> None:
    """Raise a ValueError unless the network has the base weights that a posterior was trained on."""
    own = fingerprint(network)
    both = own.isfinite() & saved.isfinite()
    tolerance = 0.01 * saved.abs() + 1e-4
    differs = (((own - saved).abs() > tolerance) & both).any(1)
    if bool(differs.any()):
        raise ValueError(
            f"The posterior belongs to another base model: the weights of {int(differs.sum())} of {len(differs)} "
            "adapted layers differ. Load the checkpoint that it was trained on."
        )
