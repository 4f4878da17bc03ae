"""Frozen weights: the shape of a linear layer, the orientation of its weight, and sharing it."""

import contextlib
import copy
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from bayeslora.limits import clause
from bayeslora.places import is_shared

PLAIN = (str, int, float, bool, type, types.FunctionType, type(None))
"""What copies are the same of."""

COMPUTING: Mapping[type, Callable[[nn.Module, str], Any]] = {
    WeightNorm: remove_weight_norm,
    SpectralNorm: remove_spectral_norm,
    prune.BasePruningMethod: prune.remove,
}
"""Hooks that compute a weight before every call, and what removes them and leaves the weight."""

COMPILED = "_torchdynamo_orig_callable"
"""What `torch.compile` calls the function that it was given."""

bare: ContextVar[bool] = ContextVar("bare", default=False)
"""Whether adapted layers are copied as the layers that they adapt."""

Copied = TypeVar("Copied", bound=nn.Module)

OF_TORCH = frozenset(vars(nn.Module()))
"""Attributes that every module has."""


def is_transposed(layer: object) -> bool:
    """Return whether a linear layer stores its weight as `[d_in, d_out]`, as GPT-2's `Conv1D` does."""
    return type(layer).__name__ == "Conv1D" and hasattr(layer, "nf")


def features(module: Any) -> tuple[int, int] | None:
    """Return `(d_in, d_out)` of a linear layer, None for any other module."""
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return int(module.in_features), int(module.out_features)
    return (int(module.nx), int(module.nf)) if is_transposed(module) else None


def has_own_weight(layer: nn.Module) -> bool:
    """Return whether a layer's weight is a tensor of its own, or computed from its own by PyTorch's utilities."""
    return any("weight" in own for own in (layer._parameters, layer._buffers, vars(layer))) or (
        parametrize.is_parametrized(layer, "weight")
    )


def oriented(layer: object, weight: Tensor) -> Tensor:
    """Turn a weight from the layer's orientation to `[d_out, d_in]`, or back."""
    return weight.T if is_transposed(layer) else weight


def frozen_weight(layer: Any) -> Float[Tensor, "d_out d_in"]:
    """Return the weight of a linear layer.

    Raises:
        ValueError: If it is quantised.
    """
    weight = plain_weight(layer)
    if weight is None or not weight.is_floating_point():
        how = "packed" if weight is None else weight.dtype
        raise ValueError(
            f"{type(layer).__name__} holds quantised weights ({how}), whose rows DoRA cannot measure: load "
            "the base model unquantised, or use a family that does not need them, such as low rank."
        )
    return oriented(layer, weight.detach())


def plain_weight(layer: Any) -> Tensor | None:
    """Return the weight of a linear layer; None if it keeps it under other names, as layers of GPTQ and AWQ do."""
    weight = getattr(layer, "weight", None)
    return weight if isinstance(weight, Tensor) else None


def precise(weight: Tensor) -> Tensor:
    """Return a weight in single precision, or in double if it is in double."""
    return weight if weight.dtype == torch.float64 else weight.float()


def share_weights(model: nn.Module, heads: Sequence[str], adapted: Mapping[str, Any] | None = None) -> nn.Module:
    """Copy a model's modules around the same frozen weights; the heads get copies of theirs.

    Args:
        model: The model.
        heads: Names of the heads.
        adapted: What stands in the copy for layers of the model, by their names, wherever these are held: in objects,
            sets or methods, too. Its `base` is the layer, and then the layer's copy.
    """
    memo: dict[int, Any] = {}
    for name, parameter in model.named_parameters():
        if is_within(name, heads):
            memo[id(parameter)] = nn.Parameter(parameter.detach().clone())
        elif parameter.is_inference():  # of a model built in inference mode, which autograd does not take
            memo[id(parameter)] = nn.Parameter(parameter.detach().clone(), requires_grad=False)
        elif type(parameter) is nn.Parameter:
            memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
        else:  # quantised weights carry their own state and are frozen already
            memo[id(parameter)] = parameter
    other = copied(model, memo, (adapted or {}).values())
    for name, layer in (adapted or {}).items():
        if (place := other.get_submodule(name)) is not layer:  # the model's own `__deepcopy__` has made it anew
            layer.base = place
            swap(other, {place: layer})
    return other


def copied(model: Copied, memo: dict[int, Any] | None = None, adapted: Collection[Any] = ()) -> Copied:
    """Copy a model, with what it keeps of its passes and what its hooks compute, as `torch.nn.utils.weight_norm` does.

    Args:
        model: The model.
        memo: What stands for some of its parts in the copy, by their `id`; the copies of all parts are added.
        adapted: What stands in the copy for layers of the model: its `base` is the layer, and then the layer's copy.
    """
    memo = {} if memo is None else memo
    memo |= without_copies(model) | memo | {id(layer.base): layer for layer in adapted}
    try:
        other = copy.deepcopy(model, memo)
        for layer in adapted:
            # Tables of the layer may be others' too, and have what is adapted; its own hooks have the layer.
            copy.deepcopy([value for name, value in vars(layer.base).items() if name not in OF_TORCH], memo)
            del memo[place := id(layer.base)]
            layer.base = copy.deepcopy(layer.base, memo)
            memo[place] = layer
        return other
    except Exception as error:  # what a function yields, a tensor of a class of one's own
        raise TypeError(
            f"The network cannot be copied{_holder(model)}: {clause(error)}. Make it in `forward`."
        ) from error


@contextlib.contextmanager
def without_adapters() -> Iterator[None]:
    """Let copies, in this context, have the layers themselves where adapted ones are."""
    token = bare.set(True)
    try:
        yield
    finally:
        bare.reset(token)


def without_copies(model: nn.Module) -> dict[int, Any]:
    """Return what stands in a copy for the parts that Python does not copy, or not quickly, by their `id`.

    Locks, modules and the like are shared; of a part of an autograd graph, the copy has the numbers. They are looked
    for in attributes, and in what is in these; parameters are leaves. Empty dictionaries are made here, because each
    module has a dozen for its hooks, which take Python half the time of a copy.
    """
    parts = ("_parameters", "_modules")
    left = [value for module in model.modules() for name, value in vars(module).items() if name not in parts]
    found: dict[int, Any] = {}
    seen: set[int] = set()
    while left:
        value = left.pop()
        if isinstance(value, PLAIN) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            left += value.values()
            if not value and type(value) in (dict, OrderedDict):
                found[id(value)] = type(value)()
        elif isinstance(value, list | tuple):
            left += value
        elif is_shared(value):
            found[id(value)] = value
        elif isinstance(value, Tensor):
            if not value.is_leaf:
                found[id(value)] = value.detach().clone()
        elif not isinstance(value, nn.Module):
            left += getattr(value, "__dict__", {}).values()
    return found


def _holder(model: nn.Module) -> str:
    """Say which attribute of a model cannot be copied."""
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key not in OF_TORCH:
                try:
                    copy.deepcopy(value)
                except Exception:
                    return f", for its {'.'.join(filter(None, (name, key)))!r}"
    return ""


def uncompiled(model: nn.Module) -> nn.Module:
    """Return a model without what `torch.compile` has put around its parts, or in the place of their `forward`.

    Compiled code calls the parts that it was made of, and has other names for them. The given model is not changed: if
    it has any, the one that is returned has modules of its own around the same weights.
    """
    around = [module for module in model.modules() if "_orig_mod" in module._modules]
    inside = [module for module in model.modules() if hasattr(vars(module).get("forward"), COMPILED)]
    if not around and not inside:
        return model
    copies: dict[int, Any] = {id(value): value for value in (*model.parameters(), *model.buffers())}
    plain = copied(model, copies)
    for module in inside:
        own: Any = copies[id(module)]
        original = getattr(vars(module)["forward"], COMPILED)
        if getattr(original, "__self__", None) is module:
            own.forward = types.MethodType(original.__func__, own)
    swap(plain, {copies[id(module)]: copies[id(module)]._modules["_orig_mod"] for module in around})
    return plain


def swap(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    """Put modules in the places of others, wherever these stand in a model.

    One layer may have several names, of which `named_modules` gives the first alone, and stand in lists and mappings
    that are not PyTorch's. These remain the same objects, because modules may hold one together.
    """
    seen: set[int] = set()

    def replaced(value: Any) -> Any:
        if isinstance(value, nn.Module):
            return new.get(value, value)
        if isinstance(value, tuple):
            parts = [replaced(each) for each in value]
            if all(part is each for part, each in zip(parts, value, strict=True)):
                return value
            return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
        if isinstance(value, list | deque | dict) and id(value) not in seen:
            seen.add(id(value))
            for key, each in [*(value.items() if isinstance(value, dict) else enumerate(value))]:
                if (other := replaced(each)) is not each:
                    value[key] = other
        return value

    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and child in new:
                parent.register_module(name, new[child])
        for name, value in list(vars(parent).items()):
            if name not in OF_TORCH and isinstance(value, nn.Module | tuple | list | deque | dict):
                vars(parent)[name] = replaced(value)


def state_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield what is saved of a module, by name: a `state_dict` with hooks may give copies, or other names."""
    for name, module in model.named_modules(remove_duplicate=False):
        own = {**module._parameters, **module._buffers}
        for key, value in own.items():
            if value is not None and key not in module._non_persistent_buffers_set:
                yield f"{name}.{key}" if name else key, value.detach()


def names_of(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Every name of every module of a model, the one that `named_modules` gives first."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    return names


def plain_weights(layer: nn.Module) -> None:
    """Make a frozen layer's weights parameters of their own, where they are computed from others at every call.

    As `torch.nn.utils.parametrize` and `prune` have them, and the older `weight_norm` and `spectral_norm`.
    """
    if parametrize.is_parametrized(layer):
        # PyTorch's own way to remove them changes the class, which a copied layer shares with the original.
        computed: Any = layer.parametrizations
        with torch.no_grad():
            values = {name: getattr(layer, name) for name in computed}
        del layer.parametrizations
        layer.__class__ = type(layer).__bases__[0]
        for name, value in values.items():
            layer.register_parameter(name, nn.Parameter(value, requires_grad=False))
    hooks: list[Any] = list(layer._forward_pre_hooks.values())
    for hook in hooks:
        remove = next((remove for kind, remove in COMPUTING.items() if isinstance(hook, kind)), None)
        if remove is not None:
            remove(layer, getattr(hook, "name", None) or hook._tensor_name)
            # PyTorch leaves the hook that reads the norm's own parameters from a saved state.
            for key, reader in list(layer._load_state_dict_pre_hooks.items()):
                if getattr(getattr(reader, "hook", reader), "fn", None) is hook:
                    del layer._load_state_dict_pre_hooks[key]
    layer.requires_grad_(False)


def is_moving(module: nn.Module) -> bool:
    """Whether a module, in training, moves numbers of its own that are not learned: running statistics and the like."""
    if isinstance(module, nn.modules.batchnorm._NormBase | parametrizations._SpectralNorm):
        return True
    return any(isinstance(hook, SpectralNorm) for hook in module._forward_pre_hooks.values())


def hold(model: nn.Module, heads: Sequence[str]) -> None:
    """Put modules that would move numbers of the body in evaluation mode: looking at a weight may be enough."""
    if any(module.training and is_moving(module) for module in model.modules()):
        for name, module in model.named_modules():
            if is_moving(module) and not is_within(name, heads):
                module.eval()


def is_within(name: str, modules: Sequence[str]) -> bool:
    """Return whether a module or parameter is one of some modules, or within one, by their full names."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def around(name: str) -> list[str]:
    """Return the full names of the modules that a module or parameter is in, the model itself left out."""
    words = name.split(".")
    return [".".join(words[:end]) for end in range(1, len(words))]
