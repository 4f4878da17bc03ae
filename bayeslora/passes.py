"""Passes through a network that leave it as they found it.

Some networks keep something from one pass to the next: a running mean that is updated in evaluation too, the last
state of a recurrent layer, a cache. Predictions would then depend on those before, and a model that was only looked at
would not be what it was.
"""

import contextlib
import functools
import types
from collections import deque
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

LARGEST = 2**26
"""Bytes of the largest real tensor that is kept: 64 MiB."""

LARGEST_WHOLE = 2**20
"""Bytes of the largest other tensor that is kept: larger ones are quantised weights, which do not move."""

MOST = 1000
"""Entries of the largest list or mapping that is looked into: larger ones are vocabularies."""

OF_TORCH = frozenset(vars(nn.Module()))
"""Attributes that every module has."""

SET_UP = frozenset({"_output_capturing_hooks_installed"})
"""Attributes that say what the first pass sets up: transformers' hooks, which stay, would be set up again."""

NOT_STATE = (Tensor, nn.Module, type, types.FunctionType, types.MethodType, types.ModuleType, functools.partial)
OTHERS = ("bayeslora", "torch", "accelerate", "builtins")
"""Packages whose modules keep nothing but buffers, and whose objects are not looked into."""


class Passes:
    """What one network keeps from one pass to the next, which the first pass in each mode shows.

    Attributes:
        moving: By mode, whether training, the places that a pass changes.
        names: Modules and attributes among them, to be shown.
    """

    def __init__(self) -> None:
        self.moving: dict[bool, list[Any]] = {}
        self.names: list[str] = []
        self.later = contextlib.ExitStack()

    def __reduce__(self) -> tuple[type["Passes"], tuple[()]]:
        return Passes, ()  # a copy is of other modules

    @contextlib.contextmanager
    def alone(
        self, model: nn.Module, training: bool = False, besides: Collection[nn.Module] = (), later: bool = False
    ) -> Iterator["Left"]:
        """Let passes in this context begin with the state of the network outside, and restore that afterwards.

        Args:
            model: The network.
            training: Its mode.
            besides: Modules whose state may change.
            later: Whether to restore it before the next pass, or in `settle`, instead of at once: a backward pass may
                look at what the forward pass kept, as Reformer's at its seeds.

        Yields:
            What the passes leave, once the context has ended.
        """
        self.settle()
        known, left = self.moving.get(training), Left()
        if known == []:
            yield left
            return
        places = _places(model, besides) if known is None else known
        before = _Before(places)
        try:
            yield left
        except BaseException:  # the pass may have stopped halfway
            left.contents = before.restore()
            raise
        left.contents = before.restore()
        changed = [place for place, _ in left.contents]
        if known is None:
            self.moving[training] = changed
            if changed:
                self.names += [name for name in _names(model, changed) if name not in self.names]
        if later and changed:
            self.later.enter_context(left.again())

    def settle(self) -> None:
        """Restore what was to be restored later."""
        self.later.close()


class Left:
    """What passes have left in the places that they changed."""

    def __init__(self) -> None:
        self.contents: list[tuple[Any, dict[Any, Any]]] = []

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Let passes in this context begin with it."""
        before = _Before([place for place, _ in self.contents])
        try:
            for place, content in self.contents:
                _put_back(place, _content(place), {}, content)
            yield
        finally:
            before.restore()


@contextlib.contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Restore afterwards what a model keeps from one pass to the next: buffers, attributes, and what is in these."""
    with Passes().alone(model):
        yield


class _Before:
    """The contents of places before a pass, which works on copies of their tensors."""

    def __init__(self, places: list[Any]):
        copies: dict[int, Tensor] = {}
        self.contents: list[tuple[Any, dict[Any, Any], dict[Any, Any]]] = []
        for place in places:
            original = _content(place)
            lent: dict[Any, Any] = {}
            for key in original.keys() - OF_TORCH:
                value = original[key]
                if isinstance(value, Tensor) and (copy := _copy(value, copies)) is not value:
                    place[key] = lent[key] = copy
            self.contents.append((place, original, lent))
        self.versions = {id(value): value._version for value in copies.values()}

    def restore(self) -> list[tuple[Any, dict[Any, Any]]]:
        """Restore the contents, and return the places in which they had changed, with what was there."""
        changed = []
        for place, original, lent in self.contents:
            now, before = _content(place), original | lent
            written = any(value._version != self.versions[id(value)] for value in lent.values())
            if written or [*now] != [*before] or [*map(id, now.values())] != [*map(id, before.values())]:
                if _put_back(place, now, before, original) or written:
                    changed.append((place, now))
            else:
                for key in lent:
                    place[key] = original[key]
        return changed


def _put_back(place: Any, now: dict[Any, Any], before: dict[Any, Any], original: dict[Any, Any]) -> bool:
    """Put the original content back, and return whether it had changed from what there was before the pass."""
    if not isinstance(place, dict):
        place.clear()
        place.extend(original.values())
        return True
    changed = False
    for key in {**original, **now}:
        if key in SET_UP or _is_computed(place, key):  # the other would be out of date
            continue
        changed |= key not in now or key not in before or now[key] is not before[key]
        if key in original:
            place[key] = original[key]
        else:
            del place[key]
    return changed


def _is_computed(place: Any, key: Any) -> bool:
    """Whether an attribute is a weight that the older `weight_norm` and the like compute before every call."""
    parameters = place.get("_parameters") or {}
    return bool(parameters) and (f"{key}_v" in parameters or f"{key}_orig" in parameters)


def _content(place: Any) -> dict[Any, Any]:
    return dict(place) if isinstance(place, dict) else dict(enumerate(place))


def _copy(value: Tensor, copies: dict[int, Tensor]) -> Tensor:
    """A copy of a tensor that a pass may write into; the same one wherever the tensor stands."""
    if isinstance(value, nn.Parameter) or value.requires_grad or not value.is_leaf:
        return value
    largest = LARGEST if value.is_floating_point() else LARGEST_WHOLE
    if type(value) is not Tensor or value.is_inference() or value.numel() * value.element_size() > largest:
        return value
    if id(value) not in copies:
        with (
            torch.inference_mode(False),
            torch.no_grad(),
        ):  # tensors of inference do not count what is written into them
            copies[id(value)] = value.clone()
    return copies[id(value)]


def _places(model: nn.Module, besides: Collection[nn.Module]) -> list[Any]:
    """Every mapping and list in which a network may keep something: attributes, buffers, and what is in these."""
    found: dict[int, Any] = {}

    def look_into(value: Any) -> None:
        if isinstance(value, NOT_STATE) or id(value) in found:
            return
        if isinstance(value, dict | list | deque):
            place: Any = value
        elif type(value).__module__.partition(".")[0] not in OTHERS and type(getattr(value, "__dict__", None)) is dict:
            place = vars(value)
        else:
            return
        if len(place) <= MOST and id(place) not in found:
            found[id(place)] = place
            for each in list(place.values() if isinstance(place, dict) else place):
                look_into(each)

    for module in model.modules():
        if module in besides:
            continue
        if module._buffers:
            found[id(module._buffers)] = module._buffers
        if type(module).__module__.partition(".")[0] not in OTHERS:
            own = vars(module)
            found[id(own)] = own
            for name in own.keys() - OF_TORCH:
                look_into(own[name])
    return list(found.values())


def _names(model: nn.Module, changed: list[Any]) -> list[str]:
    ids = {id(place) for place in changed}
    return [
        name or type(model).__name__
        for name, module in model.named_modules()
        if id(module._buffers) in ids or id(vars(module)) in ids
    ] or [type(model).__name__]
