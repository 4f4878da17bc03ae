"""Posteriors on disk: one safetensors file and one JSON file; never pickle."""

import contextlib
import dataclasses
import json
import mmap
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from bayeslora import bases, guides, saving, tables
from bayeslora.adapters import AdaptedNetwork
from bayeslora.adapters.targets import linear_layers
from bayeslora.adapters.weights import plain_weight
from bayeslora.failing import loadable
from bayeslora.hashing import hashed_bytes
from bayeslora.methods import Method
from bayeslora.program import Program
from bayeslora.record import (
    FORMAT,
    LARGEST,
    MANIFEST,
    NetworkRecord,
    Record,
    check_record,
    damaged,
    listed,
    parse,
    plain_file,
    read_record,
    reading,
)
from bayeslora.tasks import Likelihood

TENSORS_NAME = re.compile(r"posterior-([0-9a-f]{16})\.safetensors")

LARGEST_HEADER = 2**20
"""Bytes of the header of a tensors' file: room for ten thousand tensors."""

LARGEST_LOG = 80.0
"""No parameter named `log_*` is larger: its exponential is infinite in single precision from 88 on."""

LARGEST_WEIGHT = 1e18
"""No number that is learned is larger: its square is infinite in single precision from 1.8e19 on."""

OF_LABELS = ("likelihood", "held_out", "curve", "out_of_fold", "densities")
"""Parts whose numbers may be as large as labels are, which a task may measure in any unit."""

WHOLE = (torch.float32, torch.float64)
DTYPES: dict[str, tuple[torch.dtype, ...]] = {
    "guide": WHOLE,
    "likelihood": WHOLE,
    "fingerprint": WHOLE,
    "base_fingerprint": WHOLE,
    "new": (*WHOLE, torch.float16, torch.bfloat16),
    "history": WHOLE,
    **dict.fromkeys(("held_out", "curve", "out_of_fold", "densities"), (torch.float64,)),
    "prior": WHOLE,
    "head": (*WHOLE, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool),
}
"""What the name of a tensor begins with, to what its numbers may be."""

# Weights sampled from each adapted layer to recognise the base model. Compared with a tolerance, so that a posterior
# trained on single-precision weights loads onto the same weights in half precision.
FINGERPRINT_VALUES = 16


def save_files(
    folder: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    record: Mapping[str, Any],
    tokenizer: Any = None,
    components: Sequence[tuple[Callable[[Path], None], float]] = (),
    about: Mapping[str, bytes] | None = None,
) -> None:
    """Write tensors, a JSON record and a tokenizer so that they take effect together, or not at all.

    Args:
        folder: Where to write.
        tensors: By name.
        record: The record, without the names of files.
        tokenizer: The tokenizer, if there is one.
        components: Of a mixture: what saves each of them into a folder, and its weight.
        about: Files about the posterior, such as its card, by name.

    Raises:
        NotSavedError: If a file cannot be written, because the disk is full, say; or if `load_files` would refuse it.
    """

    def named(files: Mapping[str, Any]) -> dict[str, Any]:
        folders = [{"folder": name, "weight": w} for name, (_, w) in zip(files["folders"], components, strict=True)]
        own = {name: value for name, value in files.items() if name != "folders"}
        whole = {"format": FORMAT, **own, **record, **({"components": folders} if folders else {})}
        with loadable(folder):
            check_record(parse(json.dumps(whole).encode()))
        return whole

    with loadable(folder):
        check_tensors(tensors, cast(Record, {**record, **({"components": []} if components else {})}))
    content = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
    saves = [save for save, _ in components]
    saving.save_together(Path(folder) / MANIFEST, content, named, tokenizer, saves, about)


def load_files(
    folder: str | os.PathLike[str], hashing: contextlib.ExitStack | None = None
) -> tuple[dict[str, Tensor], Record]:
    """Read the tensors and the record that `save_files` wrote, or somebody else: both are checked.

    Args:
        folder: The folder.
        hashing: Left, at last, by the caller, who goes on meanwhile; that raises a ValueError if the content of the
            tensors' file is not the one that it is named after, or the record not the one that was saved. Without it,
            this function does.

    Raises:
        FileNotFoundError: If there is no posterior in the folder.
        ValueError: If it is damaged, or has a format that this version does not know.
    """
    record = read_record(folder)
    with reading(folder, MANIFEST):
        named = TENSORS_NAME.fullmatch(record["tensors"])
        if named is None:
            raise ValueError(f"tensors is {record['tensors']!r:.100}: give posterior-<16 digits>.safetensors")
    path = Path(folder) / record["tensors"]
    with reading(folder, path.name):
        check_header(path, "ours")
    with contextlib.ExitStack() as here:
        last = here if hashing is None else hashing
        last.enter_context(_as_signed(folder, record))
        last.enter_context(_hashed_beside(path, named[1]))
        with reading(folder, path.name):
            tensors = load_file(path)
            check_tensors(tensors, record)
    return tensors, record


def check_header(path: Path, whose: str) -> None:
    """Raise a ValueError if a file of safetensors is not a plain one, or announces a header that none of ours has.

    Args:
        path: The file.
        whose: Whose files have smaller ones, for the message.
    """
    size = plain_file(path)
    with path.open("rb") as file:
        if int.from_bytes(file.read(8), "little") > min(size, LARGEST_HEADER):
            raise ValueError(f"its header is larger than it, or than any of {whose}")


def check_numbers(name: str, value: Tensor, largest: float = LARGEST_WEIGHT, most: float | None = None) -> None:
    """Raise a ValueError, which names a tensor, unless its numbers are from −largest to the most, or largest."""
    most = largest if most is None else most
    if value.dtype in WHOLE:
        flat = value.reshape(-1)
        if float(torch.dot(flat, flat)) <= min(most, largest) ** 2:  # the least work, and nearly always enough
            return
    low, high = (float(bound) for bound in value.aminmax())  # NaN if there is one
    if not (low >= -largest and high <= most):
        raise ValueError(f"{name} holds numbers that are not finite, or beyond belief: from {low} to {high}")


@contextlib.contextmanager
def _as_signed(folder: str | os.PathLike[str], record: Record) -> Iterator[None]:
    """Check the digest of a record once it has been used: what else is wrong with it can say more."""
    yield
    if not saving.is_signed(record):
        raise damaged(folder, MANIFEST, "it does not have its own digest: it was changed after it was saved")


@contextlib.contextmanager
def _hashed_beside(path: Path, expected: str) -> Iterator[None]:
    """Hash a posterior's file in a thread, while it is read and used; what is wrong with its hash is said first.

    Raises:
        ValueError: If its content does not have the hash expected.
    """
    with ThreadPoolExecutor(1) as pool, path.open("rb") as file:  # opened at once: a save may remove it meanwhile
        # In one piece: between two, the thread would wait for Python's lock.
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
        found = pool.submit(hashed_bytes, content)
        try:
            yield
        finally:
            if found.result() != expected:
                what = "its content is not the one it is named after: it was changed or cut short"
                raise damaged(path.parent, path.name, what)


def check_tensors(tensors: Mapping[str, Tensor], record: Record) -> None:
    """Raise a ValueError unless tensors are those of a posterior, and their numbers are believable.

    A history may hold NaN, where there was nothing to record; so may the fingerprint, where weights are quantised.
    """
    tables_of = {part: [f"{part}/{name}" for name in names] for part, names in listed(record).items()}
    for name, value in tensors.items():
        part, _, own = name.partition("/")
        if part not in DTYPES:
            raise ValueError(f"{name!r:.100} is not a tensor of a posterior")
        if name not in tables_of.get(part, [name]):
            raise ValueError(f"{name!r:.100} is not in the record's {part}")
        if value.dtype not in DTYPES[part]:
            raise ValueError(f"{name!r:.100} is of type {value.dtype}")
        if part in ("history", "fingerprint", "base_fingerprint") or value.numel() == 0 or value.dtype == torch.bool:
            continue
        is_log = own.rpartition(".")[2].startswith("log_")
        largest = LARGEST if part in OF_LABELS else LARGEST_WEIGHT
        check_numbers(f"{name!r:.100}", value, largest, LARGEST_LOG if is_log else largest)
    needed = set() if "components" in record else {"fingerprint"}
    if missing := sorted(needed.union(*tables_of.values()) - tensors.keys()):
        raise ValueError(f"there is no tensor {missing[0]!r:.100}")
    for part, names in tables_of.items():
        if len(shapes := {tensors[name].shape for name in names}) > 1 or any(len(shape) != 1 for shape in shapes):
            raise ValueError(f"the columns of {part} are not of one length")
    if "history/step" in tables_of["history"] and not bool(tensors["history/step"].isfinite().all()):
        raise ValueError("'history/step' holds numbers that are not finite")


def is_finished(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds the posterior of a fit that was finished."""
    record = saving.read(Path(folder) / MANIFEST)
    return record is not None and record.get("state") is None


def state(program: Program) -> dict[str, Tensor]:
    """Return all learned state: that of the guide under `guide/`, of the task head under `head/`, and `likelihood/`.

    Beside it are the guide that is the prior, if one is, under `prior/`, what the base's checkpoint lacked, under
    `new/`, and what the base is recognised by.
    """
    parts = {
        "guide": program.guide.state_dict(),
        "head": program.network.head_state(),
        "likelihood": program.likelihood.state_dict(),
        "prior": {} if program.prior is None else program.prior.guide.state_dict(),
    }
    learned = {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
    return learned | bases.new_weights(program.network) | {"base_fingerprint": bases.fingerprint(program.network)}


def load_state(program: Program, tensors: Mapping[str, Tensor]) -> None:
    """Load learned state into a program.

    Raises:
        ValueError: If the tensors are not those of this program.
    """
    check_shapes(tensors, "guide/", program.guide.state_dict())
    check_shapes(tensors, "head/", program.network.head_state(), HEADS_DIFFER)
    check_shapes(tensors, "likelihood/", program.likelihood.state_dict())
    program.guide.load_state_dict(part(tensors, "guide/"))
    guides.check_loaded(program.guide)
    program.network.load_head(part(tensors, "head/"))
    program.likelihood.load_state_dict(part(tensors, "likelihood/"))


HEADS_DIFFER = "load the model with the same class and num_labels as for the fit"


def check_shapes(tensors: Mapping[str, Tensor], prefix: str, own: Mapping[str, Tensor], advice: str = "") -> None:
    """Raise a ValueError that names the first tensor that differs, unless saved tensors have the shapes they need."""
    saved, has = ({n: tuple(t.shape) for n, t in values.items()} for values in (part(tensors, prefix), own))
    for name in {**has, **saved}:
        if saved.get(name) != has.get(name):
            if name not in has:
                what = "is not one of this model's, or of this method's"
            elif name not in saved:
                what = f"of shape {has[name]} is missing"
            else:
                what = f"is of shape {saved[name]}, and has to be of {has[name]}"
            raise ValueError(f"the tensor '{prefix}{name[:100]}' {what}" + (f": {advice}" if advice else ""))


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, without it."""
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}


def history(tensors: Mapping[str, Tensor], record: Record) -> dict[str, list[float]]:
    """Return the columns of the history in their order, which a file of tensors does not keep."""
    return {name: tensors[f"history/{name}"].tolist() for name in record["history"]}


def posterior_record(posterior: Any) -> dict[str, Any]:
    """Return what is saved of a posterior beside its tensors, ready for JSON."""
    program = posterior.program
    return {
        "method": method_record(program.method),
        "likelihood": likelihood_record(program.likelihood),
        "network": network_record(program.network),
        "base": bases.record(program.network.model),
        "num_particles": program.elbo.num_particles,
        "temperature": posterior.temperature,
        "class_names": posterior.class_names,
        "columns": dataclasses.asdict(posterior.columns),
        "tokenizer": posterior.tokenizer is not None,
        "history": list(posterior._history),
        **({} if program.prior is None else {"prior": method_record(program.prior.method)}),
        **({} if posterior.state is None else {"state": posterior.state}),
        **({"weighted": True} if posterior.weighted else {}),
        **({} if posterior.labels_seen is None else {"labels_seen": posterior.labels_seen}),
        **tables.record(posterior),
    }


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
            weight = plain_weight(base)
            if weight is None:
                rows.append(torch.full((FINGERPRINT_VALUES,), torch.nan))
                continue
            weight = weight.detach().flatten()
            # In single precision, the last index of a large layer could be rounded past its end.
            index = torch.linspace(0, len(weight) - 1, FINGERPRINT_VALUES, dtype=torch.float64).long()
            values = weight[index.to(weight.device)].float().cpu()
            rows.append(values if weight.is_floating_point() else torch.full_like(values, torch.nan))
    return torch.stack(rows)


@contextlib.contextmanager
def of_this_base() -> Iterator[None]:
    """Let what is wrong with a base model be said of the posterior."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"the posterior belongs to another base model: {error}") from None


def check_base(network: AdaptedNetwork, saved: Tensor) -> None:
    """Raise a ValueError unless the network has the base weights that a posterior was trained on."""
    own = fingerprint(network)
    if own.shape != saved.shape:
        raise ValueError(f"its fingerprint is {tuple(saved.shape)}, and has to be {tuple(own.shape)}.")
    differs = bases.differing(own, saved)
    if bool(differs.any()):
        raise ValueError(
            f"the weights of {int(differs.sum())} of {len(differs)} adapted layers differ. Load the checkpoint that it "
            "was trained on."
        )


def check_targets(model: nn.Module, record: NetworkRecord) -> None:
    """Raise a ValueError unless a record names layers of this model, in full: neither suffixes nor patterns."""
    modules, known = dict(model.named_modules()), linear_layers(model)
    for name in record.get("head", ()):
        if not name or name not in modules:
            raise ValueError(
                f"it has no part {name!r:.200} for a task head. Load the checkpoint that it was trained on."
            )
    for name in record["targets"]:
        if name not in known:
            raise ValueError(f"it has no linear layer {name!r:.200}. Load the checkpoint that it was trained on.")
