"""Which layers of a network are adapted, and which form its task head."""

import contextlib
import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from bayeslora.adapters.families import Family, LowRank
from bayeslora.adapters.weights import around, features, has_own_weight, is_within, names_of
from bayeslora.types import Targets

# Query, key and value projections as the common architectures spell them, the fused ones included.
ATTENTION = (
    *("query", "key", "value", "q_proj", "k_proj", "v_proj", "q_lin", "k_lin", "v_lin", "q", "k", "v"),
    *("query_proj", "key_proj", "value_proj", "to_q", "to_k", "to_v"),
    *("c_attn", "query_key_value", "qkv", "qkv_proj", "Wqkv", "in_proj"),
)  # fmt: skip

# Heads of networks that do not say which of their parts is the body.
HEADS = ("classifier", "score", "head", "heads", "fc", "qa_outputs", "classification_head")


def choose_targets(
    model: nn.Module,
    targets: Targets,
    family: Family | None = None,
    exclude: Targets | None = None,
    head: Sequence[str] | None = None,
) -> list[str]:
    """Return the names of the layers to adapt, in the model's order.

    Args:
        model: The network.
        targets: `"all-linear"`, every linear layer of the body (not the pooler, the task head or the output
            embedding); `"attention"`, query, key and value projections; `"last:2"`, every linear layer of the body's
            last two blocks (see `blocks`); a suffix; a list of suffixes; or a regular expression, matched against whole
            module names.
        family: The adapter family, for which `"all-linear"` may be fewer layers: bottlenecks follow the layers that end
            attention and the MLP.
        exclude: Layers to leave out of these: a suffix, a list of suffixes, or a regular expression.
        head: Names of the modules that form the task head; by default those that `head_names` finds.

    Raises:
        ValueError: If nothing matches, or nothing is left; the message lists the names that exist.
    """
    # A task head is trained itself: an adapter on it would only make the same changes again.
    heads = head_names(model) if head is None else tuple(head)
    linear = {name: layer for name, layer in linear_layers(model).items() if not is_within(name, heads)}
    body = [name for name in linear if _in_body(model, name)]
    names = names_of(model)

    def is_called(name: str, fits: Callable[[str], Any]) -> bool:
        return any(fits(alias) for alias in names[linear[name]])

    if targets == "all-linear":
        chosen = (family or LowRank()).places(body) if body else []
    elif isinstance(targets, str) and (last := re.fullmatch(r"last:(\d+)", targets)):
        chosen = (family or LowRank()).places(_last(model, body, int(last[1]), targets))
    elif targets == "attention":
        chosen = [name for name in body if is_called(name, lambda alias: alias.rpartition(".")[2] in ATTENTION)]
    elif isinstance(targets, str):
        chosen = [name for name in linear if is_called(name, lambda alias: _ends_with(alias, targets))]
        if not chosen:
            try:
                pattern = re.compile(targets)
            except re.error as error:
                raise ValueError(
                    f"targets={targets!r} is neither a suffix of a layer's name nor a regular expression: {error}"
                ) from None
            chosen = [name for name in linear if is_called(name, pattern.fullmatch)]
    else:
        matches = {
            t: [t] if t in linear else [n for n in linear if is_called(n, lambda alias, t=t: _ends_with(alias, t))]  # type: ignore[misc]
            for t in targets
        }
        unmatched = [t for t, names in matches.items() if not names]
        if unmatched or not targets:
            raise ValueError(_no_match(unmatched, linear, heads))
        chosen = [name for name in linear if any(name in names for names in matches.values())]
    if not chosen:
        raise ValueError(_no_match(targets, linear, heads))
    return chosen if exclude is None else without(chosen, exclude, linear_layers(model))


def without(chosen: Sequence[str], exclude: Targets, layers: Mapping[str, nn.Module]) -> list[str]:
    """Return names of layers, without those that a suffix, one of several, or a regular expression matches.

    Raises:
        ValueError: If one of them matches no layer of the model, or no layer is left.
    """
    out: set[str] = set()
    for term in [exclude] if isinstance(exclude, str) else exclude:
        found = {name for name in layers if _ends_with(name, term)}
        with contextlib.suppress(re.error):
            found = found or {name for name in layers if re.fullmatch(term, name)}
        if not found:
            raise ValueError(
                f"exclude={term!r} matches no linear layer{nearest(term, parts(layers))}. Suffixes that exist: "
                f"{', '.join(suffixes(layers))}; or give a regular expression that matches whole names."
            )
        out |= found
    left = [name for name in chosen if name not in out]
    if not left:
        raise ValueError(f"exclude={exclude!r} leaves none of the {len(chosen)} layers that `targets` match.")
    return left


def check_names(model: nn.Module, values: object, what: str) -> None:
    """Raise a ValueError if a mapping from suffixes of layers' names, such as ranks, has one that no layer has."""
    if not isinstance(values, Mapping):
        return
    layers = list(_matrices(model, each_once=False))
    for suffix in values:
        if not any(_ends_with(name, str(suffix)) for name in layers):
            raise ValueError(
                f"{what}={{{suffix!r}: …}} names no linear layer{nearest(str(suffix), parts(layers))}. Suffixes that "
                f"exist: {', '.join(suffixes(layers))}."
            )


def nearest(name: str, names: Iterable[str]) -> str:
    """Return a question that suggests the most similar name, or nothing."""
    close = difflib.get_close_matches(name, list(names), 1)
    return f": did you mean {close[0]!r}?" if close else ""


def suffixes(names: Iterable[str]) -> list[str]:
    """Return the last parts of names, each once."""
    return sorted({name.rpartition(".")[2] for name in names})


def parts(names: Iterable[str]) -> list[str]:
    """Return every suffix of names, the whole names included, each once."""
    split = (name.split(".") for name in names)
    return list(dict.fromkeys(".".join(words[start:]) for words in split for start in range(len(words))))


def head_names(model: nn.Module) -> tuple[str, ...]:
    """Return the top-level parts of a model that form its task head, which is trained with the adapters, not adapted.

    For a `transformers` model they are all parts outside its body, unless it has a pre-trained language-model head; for
    any other model, the parts with one of the usual names (`classifier`, `head`, `fc`, …).
    """
    prefix = getattr(model, "base_model_prefix", "")
    children = {name: child for name, child in model.named_children() if any(True for _ in child.parameters())}
    if prefix and prefix in children:
        return () if output_embedding(model) is not None else tuple(n for n in children if n != prefix)
    return tuple(name for name in children if name in HEADS) if len(children) > 1 else ()


def output_embedding(model: nn.Module) -> nn.Module | None:
    """Return the layer that makes logits of tokens in a pre-trained language model, None for any other model."""
    get = getattr(model, "get_output_embeddings", None)
    return get() if get is not None else None


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the linear layers that can have an adapter, by name, in the model's order.

    What only stands around linear layers, as a LoRA layer of one's own around the one it was made for, has no weight to
    change: the layers within are adapted, and not the whole once more.
    """
    # nn.MultiheadAttention reads its projection's weight and never calls it: an adapter there would do nothing.
    bypassed = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention))
    return {name: module for name, module in _matrices(model).items() if not name.startswith(bypassed)}


def _matrices(model: nn.Module, each_once: bool = True) -> dict[str, nn.Module]:
    """Return the modules that multiply by a matrix, by name, without those that stand around one and have none."""
    found = {
        name: module
        for name, module in model.named_modules(remove_duplicate=each_once)
        if name and features(module) is not None
    }
    outer = {other for name in found for other in around(name)}
    return {name: module for name, module in found.items() if name not in outer or has_own_weight(module)}


def blocks(model: nn.Module, layers: Sequence[str]) -> list[list[str]]:
    """Return layers by the block of the network that they are in, in the model's order; some may be in none.

    Blocks are the entries of the outermost lists of modules (`nn.ModuleList`, `nn.Sequential`) with two such entries or
    more: the layers of a transformer, the decoder's after the encoder's, or the stages of a hierarchical one. A list of
    one entry counts beside another of its name, as that of a decoder of one layer.
    """
    several: dict[str, list[list[str]]] = {}
    single: dict[str, list[list[str]]] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or is_within(name, [*several]):
            continue
        prefix = f"{name}." if name else ""
        inside = [[n for n in layers if is_within(n, [prefix + entry])] for entry, _ in module.named_children()]
        filled = [own for own in inside if own]
        (several if len(filled) > 1 else single)[name] = filled
        if not name and name in several:
            break
    names = {name.rpartition(".")[2] for name in several}
    apart = {
        name: filled
        for name, filled in single.items()
        if name.rpartition(".")[2] in names and not any(is_within(other, [name]) for other in several)
    }
    return [block for name, _ in model.named_modules() for block in {**several, **apart}.get(name, ())]


def _last(model: nn.Module, body: Sequence[str], count: int, targets: str) -> list[str]:
    found = blocks(model, body)
    if not 1 <= count <= len(found):
        have = f"has {len(found)} blocks: give 1 to {len(found)} of them, or" if found else "is not a list of blocks:"
        raise ValueError(f"targets={targets!r}: the body of {type(model).__name__} {have} name layers.")
    return [name for block in found[-count:] for name in block]


def _in_body(model: nn.Module, name: str) -> bool:
    return not ("pooler" in name.split(".") or model.get_submodule(name) is output_embedding(model))


def _ends_with(name: str, suffix: str) -> bool:
    return name == suffix or name.endswith(f".{suffix}")


def lookup(value: Any, names: Sequence[str], default: Any) -> Any:
    """Return a layer's entry in a mapping from module-name suffixes; any other value holds for every layer.

    Args:
        value: The mapping, or the value.
        names: The layer's names, most often one.
        default: What holds for a layer that the mapping does not name.
    """
    if not isinstance(value, Mapping):
        return value
    for name in names:
        if name in value:
            return value[name]
    found = (entry for suffix, entry in value.items() if any(_ends_with(name, suffix) for name in names))
    return next(found, default)


def _no_match(targets: object, names: Mapping[str, nn.Module], head: Sequence[str]) -> str:
    if not names:
        besides = f" besides the task head, {', '.join(map(repr, head))}: with head=() there is none" if head else ""
        return f"targets={targets!r} match no layer: the model has no linear layers to adapt{besides}."
    return (
        f"targets={targets!r} match no linear layer. Suffixes that exist: {', '.join(suffixes(names))}. "
        f"Full names look like {next(iter(names))!r}. Or use 'all-linear', 'attention' or 'last:1'."
    )
