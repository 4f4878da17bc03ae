"""Places in which a network may keep something: attributes, buffers, closures, globals, and what is in these."""

import contextlib
import contextvars
import dis
import functools
import gc
import io
import sys
import threading
import types
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bayeslora import contents, counting
from bayeslora.origins import is_installed, package

MOST = 1000
"""Entries of the largest list or mapping that is looked into: larger ones are vocabularies."""

OF_TORCH = frozenset(vars(nn.Module()))
"""Attributes that every module has."""

OTHERS = ("bayeslora", "torch", "accelerate", "builtins", "logging", "threading")
"""Packages whose modules keep nothing but buffers, and whose objects are not looked into."""

LIBRARIES = (*OTHERS, "transformers", "peft", "timm", "torchvision", "torchaudio", "diffusers", "pyro", "numpy")
"""Packages whose classes and functions keep nothing outside of modules."""

INDEPENDENT = (str, bytes, int, range, slice, type(None), type, types.FunctionType, types.ModuleType, torch.dtype)
"""Values that do not depend on the weights of a network, or are not thought to."""

OTHERS_CODE = frozenset(LIBRARIES) | sys.stdlib_module_names
"""The same, and Python's own."""

CONTAINERS = ("types", "collections", "weakref")
"""Python's packages whose objects belong to what they are in; files, queues and locks belong to more than a network."""

OF_THREADS = (
    "_thread",
    "threading",
    "_queue",
    "queue",
    "asyncio",
    "concurrent",
    "multiprocessing",
    "_socket",
    "socket",
)
"""Python's packages whose objects other threads and processes wait for."""


class Attributes:
    """Named attributes of an object as a mapping: its slots, what a closure's cell holds, or globals of a module."""

    def __init__(self, owner: Any, names: Collection[Any]):
        self.owner = owner
        self.names = names
        # Objects may be frozen, and have what they had; and nothing of theirs is to run.
        self.access: Any = type if isinstance(owner, type) else object

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        for name in self.names:
            with contextlib.suppress(AttributeError, ValueError):  # there is nothing yet
                yield name, self[name]

    def __getitem__(self, name: str) -> Any:
        return self.access.__getattribute__(self.owner, name)

    def __setitem__(self, name: str, value: Any) -> None:
        self.access.__setattr__(self.owner, name, value)

    def __delitem__(self, name: str) -> None:
        self.access.__delattr__(self.owner, name)


class _Defaults(Attributes):
    """The default values of a function's arguments as a mapping, by their place."""

    def __init__(self, function: types.FunctionType):
        super().__init__(function, range(len(function.__defaults__ or ())))

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        yield from enumerate(self.owner.__defaults__ or ())

    def __getitem__(self, name: Any) -> Any:
        return self.owner.__defaults__[name]

    def __setitem__(self, name: Any, value: Any) -> None:
        values = list(self.owner.__defaults__)
        values[name] = value
        self.owner.__defaults__ = tuple(values)


class Memo(Attributes):
    """What `functools.lru_cache` remembers of a function's results, as a mapping to their number.

    They cannot be put back, but they can be computed again: with the factors of each draw, if they may depend on these.
    Those that are texts and whole numbers, such as patterns of axes, do not count.
    """

    def __init__(self, function: Any):
        super().__init__(function, ("results",))

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        yield "results", self.owner.cache_info().currsize if self._may_depend() else 0

    def __setitem__(self, name: str, value: Any) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget them."""
        self.owner.cache_clear()

    def _may_depend(self) -> bool:
        """Whether anything but texts and whole numbers, and what is made of these, is remembered or asked for."""
        own = {id(vars(self.owner)), id(getattr(self.owner, "__wrapped__", None))}
        left, seen = [each for each in gc.get_referents(self.owner) if id(each) not in own], own
        while left:
            value = left.pop()
            if isinstance(value, INDEPENDENT) or type(value) is object or id(value) in seen:
                continue
            seen.add(id(value))
            if len(seen) > MOST or isinstance(value, Tensor | nn.Module | float | complex):
                return True
            if isinstance(value, tuple | list | dict | set | frozenset):
                left += gc.get_referents(value)
            elif type(value).__name__ != "_lru_list_elem":  # whose content is there beside it
                slots = Attributes(value, _slots(type(value)))
                content = [*getattr(value, "__dict__", {}).values(), *content_of(slots).values()]
                if not content:
                    return True
                left += content
        return False


def places_of(model: nn.Module, besides: Collection[nn.Module]) -> list[Any]:
    """Everything in which a network may keep something: attributes, buffers, and what is in these.

    So may its own classes: in their attributes, and in what their functions hold or know by name.
    """
    kinds = {kind: None for module in model.modules() if module not in besides for kind in type(module).__mro__}
    places = _Places({_package(kind) for kind in kinds})
    for module in model.modules():
        if module not in besides:
            places.add_module(module)
    for kind in kinds:
        places.look_into(kind, only_plain=True)
    places.look()
    return list(places.found.values())


class _Places:
    """Places in which something may be kept, by the `id` of what they are in.

    What is in a value is looked into later, and not by recursion: classes and functions may be linked in long chains.

    Args:
        packages: Those of the network's classes. What a function knows of other installed ones is theirs: it may serve
            other threads, as a server's or a worker's state does, and there is much of it.
    """

    def __init__(self, packages: Collection[str]) -> None:
        self.packages = packages
        self.found: dict[int, Any] = {}
        self.keys: list[Any] = []  # whose `id` must not be another's
        self.left: dict[bool, deque[Any]] = {False: deque(), True: deque()}

    def add(self, key: Any, place: Any) -> bool:
        """Add a place, if it is new and not too large, and return whether that was done."""
        if id(key) in self.found or len(getattr(place, "names", place)) > MOST:
            return False
        self.found[id(key)] = place
        self.keys.append(key)
        return True

    def add_module(self, module: nn.Module) -> None:
        """Add what a module keeps in buffers, in attributes, of its own and of its tensors, and what is in these."""
        if module._buffers:
            self.add(module._buffers, module._buffers)
        own = vars(module)
        if self.add(own, own) and _package(type(module)) not in OTHERS:
            for name in own.keys() - OF_TORCH:
                self.look_into(own[name])
        for part in ("_parameters", "_buffers"):
            self._look_into_parts(own.get(part, {}).values(), only_plain=True)

    def _is_others(self, value: Any) -> bool:
        """Whether a module, a class or a function is not the network's or its user's."""
        name = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
        name = name if isinstance(name, str | None) else "builtins"  # the class that makes all classes has no name
        return package(name) in OTHERS_CODE or (package(name) not in self.packages and is_installed(name))

    def look_into(self, value: Any, only_plain: bool = False) -> None:
        """Let `look` add a value, if it can keep something, and what is in it.

        Args:
            value: The value.
            only_plain: Whether objects are left out, unless their class is the user's.
        """
        self.left[only_plain].append(value)

    def look(self) -> None:
        """Look into all that is left; first into what is looked into whole, because nothing is looked into twice."""
        while any(self.left.values()):
            only_plain = not self.left[False]
            self._look_into_value(self.left[only_plain].popleft(), only_plain)

    def _look_into_value(self, value: Any, only_plain: bool) -> None:
        if isinstance(value, INDEPENDENT) and not isinstance(value, type | types.FunctionType):
            return
        if isinstance(value, functools._lru_cache_wrapper):
            self._look_into_memo(value)
        elif isinstance(value, types.FunctionType):
            self._look_into_function(value)
        elif isinstance(value, type):
            self._look_into_class(value)
        elif isinstance(value, Tensor):
            if (own := getattr(value, "__dict__", None)) is not None:
                self.add(own, own)
        elif isinstance(value, tuple | frozenset):
            for each in tuple(value)[:MOST]:
                self.look_into(each, only_plain)
        elif isinstance(value, functools.partial):
            self.look_into((value.func, value.args, value.keywords), only_plain)
        elif isinstance(value, contextvars.ContextVar):
            self.look_into(value.get(None), only_plain)
        elif isinstance(value, types.MethodType):
            self.look_into((value.__func__, value.__self__), only_plain)
        elif isinstance(value, nn.Module):
            if id(vars(value)) not in self.found:
                for module in value.modules():
                    self.add_module(module)
                    self.look_into(type(module), only_plain=True)
        elif contents.has_content(value):
            self.add(value, contents.Content(value))
        elif isinstance(value, threading.local):
            if self.add(value, contents.OfThread(value)):
                self._look_into_parts(vars(value).values(), only_plain)
        else:
            self._look_into_object(value, only_plain)
        if isinstance(value, np.ndarray) and value.dtype.hasobject and value.size <= MOST:
            self._look_into_parts(value.ravel().tolist(), only_plain)

    def _look_into_parts(self, parts: Iterable[Any], only_plain: bool) -> None:
        for part in list(parts):
            self.look_into(part, only_plain)

    def _look_into_object(self, value: Any, only_plain: bool) -> None:
        """Add a container, or an object with attributes."""
        kind = type(value)
        if isinstance(value, dict | list | deque | set):
            if self.add(value, value):
                self._look_into_parts([*value, *value.values()] if isinstance(value, dict) else value, only_plain)
        elif isinstance(value, types.MappingProxyType):
            self._look_into_parts(value.values() if len(value) <= MOST else (), only_plain)
            return
        if _package(kind) in OTHERS or (only_plain and self._is_others(kind) and _package(kind) not in CONTAINERS):
            return
        if is_shared(value):
            return
        if type(own := getattr(value, "__dict__", None)) is dict and self.add(own, own):
            self._look_into_parts(own.values(), only_plain)
        if slots := _slots(kind):
            place = Attributes(value, slots)
            if self.add(value, place):
                self._look_into_parts(content_of(place).values(), only_plain)
        self.look_into(kind, only_plain=True)

    def _look_into_class(self, kind: type) -> None:
        """Add what a class of the user's keeps in attributes, and what its functions hold or know by name."""
        if self._is_others(kind) or id(kind) in self.found:
            return
        if type(kind) is not type:
            self.look_into(type(kind), only_plain=True)
        plain = {name: value for name, value in vars(kind).items() if not name.startswith("__")}
        kept = [name for name, value in plain.items() if not (callable(value) or hasattr(value, "__get__"))]
        self.add(kind, Attributes(kind, kept))
        for value in vars(kind).values():
            function = getattr(value, "__func__", getattr(value, "fget", value))
            if isinstance(function, types.FunctionType | functools._lru_cache_wrapper):
                self.look_into(function, only_plain=True)
            elif not hasattr(value, "__get__"):
                self.look_into(value, only_plain=True)

    def _look_into_function(self, function: types.FunctionType) -> None:
        """Add what a function of the user's holds in its closure and attributes, and what it knows by a global name."""
        module = sys.modules.get(function.__module__ or "")
        if self._is_others(function) or not self.add(function, vars(function)):
            return
        for cell in function.__closure__ or ():
            content = content_of(Attributes(cell, ("cell_contents",))).get("cell_contents")
            self.add(cell, Attributes(cell, ("cell_contents",)))
            self.look_into(content, only_plain=True)
        self.look_into(function.__defaults__ or (), only_plain=True)
        if function.__defaults__:
            self.add(function.__defaults__, _Defaults(function))
        self.look_into(function.__kwdefaults__ or {}, only_plain=True)
        codes, known = list(_codes(function.__code__)), function.__globals__
        written = sorted({name for code in codes for name in code.co_names})
        module = module if module and vars(module) is known else None
        names = [name for name in written if name in known]
        self._look_into_module(module, known, names, codes, "STORE_GLOBAL")
        for name in names:
            if isinstance(other := known[name], types.ModuleType) and not self._is_others(other):
                self._look_into_module(
                    other, vars(other), [n for n in written if n in vars(other)], codes, "STORE_ATTR"
                )

    def _look_into_memo(self, function: Any) -> None:
        """Add what is remembered of the results of a function of the user's, and what that function holds."""
        wrapped = function.__wrapped__
        if not self._is_others(wrapped):
            self.add(function, Memo(function))
            if isinstance(wrapped, types.FunctionType):
                self.look_into(wrapped, only_plain=True)

    def _look_into_module(
        self, module: Any, known: dict[str, Any], names: list[str], codes: list[types.CodeType], stores: str
    ) -> None:
        """Add what a function reads by its name in a module, and the names that it stores there."""
        for name in names:
            self.look_into(known[name], only_plain=True)
        if module is not None:
            kept = {name for code in codes for name in _stored(code, stores) if name in known}
            kept |= {n for n in names if may_move(known[n], False) or counting.hides(known[n])}
            self.add(names, Attributes(module, sorted(kept)))


def is_shared(value: Any) -> bool:
    """Whether a network has a value together with others: modules, locks, sockets, files, a client of a service.

    Other threads may use it during a pass, and it cannot be copied.
    """
    if isinstance(value, types.ModuleType | contextvars.ContextVar | io.FileIO | io.BufferedIOBase | io.TextIOWrapper):
        return not isinstance(value, io.BytesIO)
    if _package(kind := type(value)) in OF_THREADS:
        return True
    own = getattr(value, "__dict__", None)
    if type(own) is not dict or isinstance(value, nn.Module) or not is_installed(kind.__module__):
        return False
    return any(_package(type(each)) in OF_THREADS for each in own.values())


def content_of(place: Any) -> dict[Any, Any]:
    if isinstance(place, set):
        return {id(each): each for each in place}
    return dict(enumerate(place)) if isinstance(place, list | deque) else dict(place)


def may_move(value: Any, training: bool) -> bool:
    """Whether a pass may write into a value, or move it on, as it stands."""
    if isinstance(value, tuple):
        return len(value) <= MOST and any(may_move(each, training) for each in value)
    return isinstance(value, Tensor | np.ndarray) or counting.counts(value, training)


def _package(kind: type) -> str:
    return package(kind.__module__ if isinstance(kind.__module__, str) else "builtins")


def _slots(kind: type) -> list[str]:
    """Return the names of the slots of a class's objects, without those that it computes instead."""
    names = []
    for each in kind.__mro__:
        slots = vars(each).get("__slots__", ())
        names += [slots] if isinstance(slots, str) else [name for name in slots if not name.startswith("__")]
    return [name for name in names if isinstance(getattr(kind, name, None), types.MemberDescriptorType)]


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            yield from _codes(each)


def _stored(code: types.CodeType, instruction: str) -> Collection[str]:
    """Names that an instruction of a function's own code stores."""
    if dis.opmap[instruction] not in code.co_code[::2]:  # most functions store none, and to list what one does is slow
        return ()
    return {step.argval for step in dis.get_instructions(code) if step.opname == instruction}
