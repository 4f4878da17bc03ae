"""Which layers a fit adapts and what it trains as the task head: chosen, tried on the first examples, and said."""

import logging
import math
import re
import reprlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from bayeslora.adapters import AdaptedNetwork, Family, choose_targets, inspection
from bayeslora.adapters.stack import DEFAULT_RANK
from bayeslora.adapters.targets import linear_layers, nearest, output_embedding
from bayeslora.adapters.weights import around, is_within
from bayeslora.networks import input_embedding
from bayeslora.program import Program
from bayeslora.types import Batch

logger = logging.getLogger(__name__)

NAMES = 12
"""Groups of names that a line of the log has at most."""

SHARE = 0.01
"""Share of the model's numbers from which matrices without an adapter are named."""


NO_GRADIENT = "no gradient"
"""What a line begins with that names adapters without one."""


@dataclass
class Choice:
    """What was chosen.

    Args:
        settings: Arguments of `AdaptedNetwork`.
        seen: What a pass over the first examples has shown.
        left_out: Layers that were asked for and cannot be adapted, and why.
        silent: Adapted layers that get no gradient from the first examples.
    """

    settings: dict[str, Any]
    seen: inspection.Inspection
    left_out: Mapping[str, str]
    silent: tuple[str, ...] = ()


def choose(
    model: nn.Module,
    family: Family,
    seen: inspection.Inspection,
    layers: Mapping[str, Any],
    head: str | Sequence[str] | None = None,
    trained: Sequence[str] | None = None,
    lacked: Collection[str] = (),
) -> Choice:
    """The task head, and of the layers asked for those that can be adapted.

    Args:
        model: The network.
        family: The adapters' family.
        seen: What a pass over the first examples has shown.
        layers: Arguments of `AdaptedNetwork`.
        head: The head that was asked for, if any.
        trained: Parameters of the head of trained adapters to start from; None without such adapters.
        lacked: Parameters that the model's checkpoint lacked. Modules that have no others, such as a pooler, are
            trained with a head that is not named, as they are random.

    Raises:
        ValueError: If there is no such head, no such layer, or an adapter cannot stand for layers that are named.
    """
    settings, targets = dict(layers), layers["targets"]
    heads = inspection.heads(model, seen) if head is None else _existing(model, head)
    if trained is not None and head is None:
        heads = _heads_of_start(heads, trained, targets)
    elif head is None:
        heads += _new_parts(model, seen, heads, lacked)
    names = choose_targets(model, targets, family, settings.pop("exclude", None), heads)
    left_out = {name: seen.unfit[name] for name in names if name in seen.unfit}
    if left_out:
        _refuse_named(model, family, targets, heads, left_out, trained is not None)
        logger.warning(
            "%d of %d layers are left without an adapter, which would do nothing there, or not what a change of the "
            "weight does: %s.",
            *(len(left_out), len(names), "; ".join(_reasons(left_out))),
        )
    kept = {name for name in names if name not in left_out}
    # Linear layers within one, such as a LoRA of the user's own that starts at zero, are parts of what that computes.
    settings |= {"head": heads, "targets": [n for n in names if n in kept and kept.isdisjoint(around(n))]}
    return Choice(settings, seen, left_out)


def of_start(model: nn.Module, theirs: Mapping[str, Any], given: Mapping[str, Any], start: str) -> dict[str, Any]:
    """Return the layers of what a fit starts from; a warning names what else was asked for, and does not count.

    Args:
        model: The model that is to have them.
        theirs: Arguments of `AdaptedNetwork` that make the same layers.
        given: What the user gave otherwise than by default.
        start: What the fit starts from.

    Raises:
        ValueError: If the model lacks one of them.
    """
    known = linear_layers(model)
    if lacking := [name for name in theirs["targets"] if name not in known]:
        raise ValueError(
            f"{start} adapts {lacking[0]!r}, which the {type(model).__name__} does not have: load a model of the class "
            "that it was trained on."
        )
    lost = {name: value for name, value in given.items() if not _is_of_all(value, theirs.get(name))}
    if lost:
        logger.warning(
            "%s left aside: layers, ranks and scaling are those of %s.",
            ", ".join(f"{name}={reprlib.repr(value)}" for name, value in lost.items())
            + (" is" if len(lost) == 1 else " are"),
            start,
        )
    return dict(theirs)


def _is_of_all(value: Any, each: Any) -> bool:
    """Return whether every layer has this rank, or this alpha, anyway."""
    if not isinstance(each, Mapping) or isinstance(value, Mapping):
        return False
    return all(math.isclose(value, own, rel_tol=1e-6) for own in each.values())  # alpha is the scale times r, rounded


def _existing(model: nn.Module, head: str | Sequence[str]) -> tuple[str, ...]:
    """Names of a head's modules, if they exist and have parameters."""
    names = (head,) if isinstance(head, str) else tuple(head)
    modules = {
        name: module for name, module in model.named_modules() if name and any(True for _ in module.parameters())
    }
    for name in names:
        if name not in modules:
            last = ", ".join(map(repr, list(modules)[-5:]))
            raise ValueError(
                f"head={name!r} is not the full name of a module with parameters{nearest(name, modules)}. The last of "
                f"them are {last}. Give one name or several, or () for no head."
            )
    return names


def _new_parts(
    model: nn.Module, seen: inspection.Inspection, heads: tuple[str, ...], lacked: Collection[str]
) -> tuple[str, ...]:
    """Names of the modules, the largest, that the checkpoint lacked as a whole and the examples have reached.

    Embeddings of tokens are left out: those of another size were resized, and keep what was learned.
    """
    if not lacked:
        return ()
    embeddings = (output_embedding(model), input_embedding(model))
    left = [*heads, *seen.uncalled, *(name for name, module in model.named_modules() if module in embeddings)]
    found: list[str] = []
    for name, module in model.named_modules():
        if not any(is_within(parameter, (name,)) for parameter in lacked):
            continue
        own = {f"{name}.{parameter}" for parameter, _ in module.named_parameters()}
        apart = not is_within(name, (*left, *found)) and not any(is_within(other, (name,)) for other in left)
        if name and own and apart and own <= set(lacked):
            found.append(name)
    return tuple(found)


def _heads_of_start(heads: tuple[str, ...], trained: Sequence[str], targets: Sequence[str]) -> tuple[str, ...]:
    """The head that trained adapters came with, or the one found, where that is not among the adapted layers."""
    if not all(is_within(name, heads) for name in trained):
        return tuple(dict.fromkeys(name.rpartition(".")[0] for name in trained))
    return tuple(name for name in heads if not any(is_within(target, (name,)) for target in targets))


def _refuse_named(
    model: nn.Module,
    family: Family,
    targets: str | Sequence[str],
    heads: Sequence[str],
    left_out: Mapping[str, str],
    is_start: bool,
) -> None:
    """Raise a ValueError where all that one of the targets matches is left out."""
    # An adapter that was trained where it does nothing is nothing to start from.
    fatal = {n: why for n, why in left_out.items() if not (is_start and why == inspection.READ)}
    for target in [targets] if isinstance(targets, str) else targets:
        names = choose_targets(model, target, family, head=heads)
        if names and set(names) <= set(fatal):
            raise ValueError(
                f"targets={target!r} match no layer that can be adapted, since an adapter there would do nothing, or "
                f"not what a change of the weight does: {'; '.join(_reasons({n: fatal[n] for n in names}))}. Name "
                "other layers."
            )
    if set(choose_targets(model, targets, family, head=heads)) <= set(left_out):
        raise ValueError(f"targets={targets!r} match no layer that can be adapted: {'; '.join(_reasons(left_out))}.")


def describe(program: Program, choice: Choice, batch: Batch) -> str:
    """Return a short block of lines that says what a fit has inferred."""
    network, likelihood = program.network, program.likelihood
    body = [stack for stack in network.stacks.values() if not stack.in_head]
    layers = [name for stack in body for name in stack.layer_names]
    ranks = {name: stack.rank for stack in body for name in stack.layer_names}
    has_rank = body[0].family.has_rank
    config = ", ".join(
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in likelihood.config().items()
    )
    inputs = ", ".join(name for name in batch if name != "labels")
    lines = {
        "labels": f"{likelihood.name}{f' ({config})' if config else ''}, from {inputs}",
        "head": ", ".join(map(repr, network.head_names)) + ", trained"
        if network.head_names
        else "none, only adapters are trained",
        "adapted": f"{len(layers)} layers: {listed(layers)}",
    }
    default = program.method.start_rank(DEFAULT_RANK)
    if has_rank:
        common = max(set(ranks.values()), key=list(ranks.values()).count)
        others = {name: f"rank {r}" for name, r in ranks.items() if r != common}
        lines["rank"] = "; ".join([f"{common}", *_reasons(others)])
        if narrow := {name for name, r in ranks.items() if r < default and choice.settings.get("rank") is None}:
            lines["rank"] += f" ({len(narrow)} layers are narrower than the default of {default})"
    lines["left out"] = "; ".join(_reasons(choice.left_out))
    silent = [name for name in choice.silent if name not in network.head_names]
    lines[NO_GRADIENT] = f"from the first examples, at {listed(silent)}" if silent else ""
    lines["not adapted"] = _uncovered(network, layers)
    if network.verdict is not None and not network.verdict.holds:
        lines["draws"] = "one by one, since rows of several do not stay apart in one batch"
    said = [line(name, text) for name, text in lines.items() if text]
    title = f"{type(network.model).__name__}, {program.method.name}, {network.stacks.num_examples} examples"
    return "\n".join([title, *said])


def line(name: str, text: str) -> str:
    """Return one line of a block."""
    return f"  {name:<12} {text}"


def _uncovered(network: AdaptedNetwork, layers: Sequence[str]) -> str:
    """Matrices of the body without an adapter, by name, with their share of the model's numbers."""
    total = sum(parameter.numel() for parameter in network.model.parameters())
    sizes = inspection.uncovered(network.model, layers, network.head_names)
    grouped = _groups(sizes)
    shares = {group: sum(sizes[name] for name in names) / total for group, names in grouped.items()}
    large = sorted((group for group in shares if shares[group] >= SHARE), key=lambda group: -shares[group])
    return _cut([f"{_shown(group, grouped[group])} ({100 * shares[group]:.0f} % of the model)" for group in large])


def _reasons(layers: Mapping[str, str]) -> list[str]:
    """For each reason, the layers it is given for."""
    reasons: dict[str, list[str]] = {}
    for name, reason in layers.items():
        reasons.setdefault(reason, []).append(name)
    return [f"{reason} at {listed(names)}" for reason, names in reasons.items()]


def listed(names: Iterable[str]) -> str:
    """Return names, those that differ in numbers alone as one."""
    return _cut([_shown(group, members) for group, members in _groups(names).items()])


def _groups(names: Iterable[str]) -> dict[str, list[str]]:
    """Names by what they have in common but for numbers, which stand for places in lists."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"(?<![^.])\d+(?=\.)", "*", name), []).append(name)
    return groups


def _shown(group: str, names: Sequence[str]) -> str:
    return repr(names[0]) if len(names) == 1 else f"{group!r} ×{len(names)}"


def _cut(shown: Sequence[str]) -> str:
    return ", ".join(shown[:NAMES]) + (f" and {len(shown) - NAMES} more" if len(shown) > NAMES else "")
