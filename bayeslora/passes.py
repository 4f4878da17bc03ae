"""Passes through a network that leave it as they found it.

Some networks keep something from one pass to the next: a running mean that is updated in evaluation too, the last
state of a recurrent layer, a cache, an iterator. Predictions would then depend on those before, and a model that was
only looked at would not be what it was. Most keep it in their modules; some in their classes, in the closures of their
functions, or in what their functions know by a global name.
"""

import contextlib
import dis
import functools
import sys
import types
from collections import deque
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bayeslora import counting

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
OTHERS = ("bayeslora", "torch", "accelerate", "builtins", "logging", "threading")
"""Packages whose modules keep nothing but buffers, and whose objects are not looked into."""

LIBRARIES = (*OTHERS, "transformers", "peft", "timm", "torchvision", "torchaudio", "diffusers", "pyro", "numpy")
"""Packages whose classes and functions keep nothing outside of modules."""

NOT_OWN = frozenset(LIBRARIES) | (sys.stdlib_module_names - {"types"})
"""The same, and Python's own, whose objects belong to more than a network: files, queues, locks."""


class _Attributes:
    """Named attributes of an object as a mapping: its slots, what a closure's cell holds, or globals of a module."""

    def __init__(self, owner: Any, names: Collection[str]):
        self.owner = owner
        self.names = names

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        for name in self.names:
            with contextlib.suppress(AttributeError, ValueError):  # there is nothing yet
                yield name, getattr(self.owner, name)

    def __getitem__(self, name: str) -> Any:
        return getattr(self.owner, name)

    def __setitem__(self, name: str, value: Any) -> None:
        # Objects may be frozen; they have what they had.
        (type if isinstance(self.owner, type) else object).__setattr__(self.owner, name, value)

    def __delitem__(self, name: str) -> None:
        (type if isinstance(self.owner, type) else object).__delattr__(self.owner, name)


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
        before = _Before(places, training)
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
    """The contents of places before a pass, which works on copies of their tensors, and of what counts in them."""

    def __init__(self, places: list[Any], training: bool = False):
        copies: dict[int, Any] = {}
        self.contents: list[tuple[Any, dict[Any, Any], dict[Any, Any]]] = []
        for place in places:
            original = _content(place)
            lent: dict[Any, Any] = {}
            for key in original.keys() - OF_TORCH:
                value = original[key]
                is_array = isinstance(value, Tensor | np.ndarray)
                if (is_array or counting.counts(value, training)) and (copy := _copy(value, copies)) is not value:
                    place[key] = lent[key] = copy
            self.contents.append((place, original, lent))
        self.versions = {id(value): value._version for value in copies.values() if isinstance(value, Tensor)}

    def restore(self) -> list[tuple[Any, dict[Any, Any]]]:
        """Restore the contents, and return the places in which they had changed, with what was there."""
        changed = []
        for place, original, lent in self.contents:
            now, before = _content(place), original | lent
            written = any(self._is_written(value, original[key]) for key, value in lent.items())
            if written or [*now] != [*before] or [*map(id, now.values())] != [*map(id, before.values())]:
                if _put_back(place, now, before, original) or written:
                    changed.append((place, now))
            else:
                for key in lent:
                    place[key] = original[key]
        return changed

    def _is_written(self, lent: Any, original: Any) -> bool:
        if isinstance(lent, Tensor):
            return lent._version != self.versions[id(lent)]
        if isinstance(lent, np.ndarray):
            return lent.tobytes() != original.tobytes()
        return not counting.is_as(lent, original)


def _put_back(place: Any, now: dict[Any, Any], before: dict[Any, Any], original: dict[Any, Any]) -> bool:
    """Put the original content back, and return whether it had changed from what there was before the pass."""
    if isinstance(place, list | deque | set):
        place.clear()
        put: Any = place.update if isinstance(place, set) else place.extend
        put(original.values())
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
    parameters = (place.get("_parameters") if isinstance(place, dict) else None) or {}
    return bool(parameters) and (f"{key}_v" in parameters or f"{key}_orig" in parameters)


def _content(place: Any) -> dict[Any, Any]:
    if isinstance(place, set):
        return {id(each): each for each in place}
    return dict(place) if isinstance(place, dict | _Attributes) else dict(enumerate(place))


def _copy(value: Any, copies: dict[int, Any]) -> Any:
    """A copy of what a pass may write into or move; the same one wherever it stands."""
    if not isinstance(value, Tensor | np.ndarray):
        return copies.setdefault(id(value), counting.copied(value))
    if isinstance(value, np.ndarray):
        if type(value) is not np.ndarray or value.dtype.hasobject or value.nbytes > LARGEST_WHOLE:
            return value
        return copies.setdefault(id(value), value.copy())
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
    """Everything in which a network may keep something: attributes, buffers, and what is in these.

    So may its own classes: in their attributes, and in what their functions hold or know by name.
    """
    places = _Places()
    for module in model.modules():
        if module in besides:
            continue
        if module._buffers:
            places.add(module._buffers, module._buffers)
        if _package(type(module)) not in OTHERS:
            own = vars(module)
            places.add(own, own)
            for name in own.keys() - OF_TORCH:
                places.look_into(own[name])
    for kind in {kind: None for module in model.modules() if module not in besides for kind in type(module).__mro__}:
        places.look_into_class(kind)
    return list(places.found.values())


class _Places:
    """Places in which something may be kept, by the `id` of what they are in."""

    def __init__(self) -> None:
        self.found: dict[int, Any] = {}

    def add(self, key: Any, place: Any) -> bool:
        """Add a place, if it is new and not too large, and return whether that was done."""
        if id(key) in self.found or len(place.names if isinstance(place, _Attributes) else place) > MOST:
            return False
        self.found[id(key)] = place
        return True

    def look_into(self, value: Any, only_plain: bool = False) -> None:
        """Add a value, if it can keep something, and what is in it.

        Args:
            value: The value.
            only_plain: Whether objects are left out, unless their class is the user's.
        """
        if isinstance(value, NOT_STATE):
            return
        if isinstance(value, dict | list | deque | set):
            place: Any = value
        elif _package(type(value)) in (NOT_OWN if only_plain else OTHERS):
            return
        elif type(getattr(value, "__dict__", None)) is dict:
            place = vars(value)
        elif slots := [name for kind in type(value).__mro__ for name in _slots(kind)]:
            place = _Attributes(value, slots)
        else:
            return
        if self.add(value if isinstance(place, _Attributes) else place, place):
            for each in list(_content(place).values()):
                self.look_into(each, only_plain)

    def look_into_class(self, kind: type) -> None:
        """Add what a class of the user's keeps in attributes, and what its functions hold or know by name."""
        if _package(kind) in LIBRARIES or id(kind) in self.found:
            return
        plain = {name: value for name, value in vars(kind).items() if not name.startswith("__")}
        kept = [name for name, value in plain.items() if not (callable(value) or hasattr(value, "__get__"))]
        self.add(kind, _Attributes(kind, kept))
        for value in vars(kind).values():
            function = getattr(value, "__func__", getattr(value, "fget", value))
            if isinstance(function, types.FunctionType):
                self.look_into_function(function)
            elif not hasattr(value, "__get__"):
                self.look_into(value, only_plain=True)

    def look_into_function(self, function: types.FunctionType) -> None:
        """Add what a function of the user's holds in its closure and attributes, and what it knows by a global name."""
        module = sys.modules.get(function.__module__ or "")
        if (function.__module__ or "").partition(".")[0] in LIBRARIES or not self.add(function, vars(function)):
            return
        for cell in function.__closure__ or ():
            content = _content(_Attributes(cell, ("cell_contents",))).get("cell_contents")
            self.add(cell, _Attributes(cell, ("cell_contents",)))
            self._look_into_known(content)
        codes, known = list(_codes(function.__code__)), function.__globals__
        names = sorted({name for code in codes for name in code.co_names if name in known})
        for name in names:
            self._look_into_known(known[name])
        if module is not None and vars(module) is known:
            steps = (step for code in codes for step in dis.get_instructions(code))
            kept = {step.argval for step in steps if step.opname == "STORE_GLOBAL"}
            kept |= {n for n in names if isinstance(known[n], Tensor | np.ndarray) or counting.counts(known[n])}
            self.add(function.__code__, _Attributes(module, sorted(kept)))

    def _look_into_known(self, value: Any) -> None:
        if isinstance(value, types.FunctionType):
            self.look_into_function(value)
        else:
            self.look_into(value, only_plain=True)


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def _slots(kind: type) -> Collection[str]:
    slots = vars(kind).get("__slots__", ())
    return [slots] if isinstance(slots, str) else [name for name in slots if not name.startswith("__")]


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            yield from _codes(each)


def _names(model: nn.Module, changed: list[Any]) -> list[str]:
    ids = {id(place) for place in changed}
    return [
        name or type(model).__name__
        for name, module in model.named_modules()
        if id(module._buffers) in ids or id(vars(module)) in ids
    ] or [type(model).__name__]
