"""Short hashes of what a fit depends on: numbers, texts, settings, functions, models and other objects.

They are the same in every process. What they hold of a function is what it does, its code and what it refers to; of
an object, its class and its state. The code of installed packages is known by their names alone.
"""

import functools
import hashlib
import re
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bayeslora.origins import is_installed

ATOMS = (type(None), bool, int, float, complex, str, bytes, np.generic)
"""What is printed with all that there is of it."""

NAMES = ("__doc__", "__firstlineno__", "__static_attributes__")
"""What a class says of its text."""

COLLECTIONS = (list, tuple, Mapping, set, frozenset)
"""What is its parts."""

CODE = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial)
"""What is called."""

OF_MODULES = frozenset((*vars(nn.Module()), "warnings_issued"))
"""Attributes of modules that are not settings."""


def hashed(values: Any) -> str:
    """Return a short hash of a value: see `_Hash`."""
    found = _Hash()
    found.add(values)
    for value in found.met:  # which grows meanwhile
        found.add_parts(value)
    return found.digest.hexdigest()[:16]


def hashed_bytes(content: Any) -> str:
    """Return a short hash of a file's content, or of what else is bytes."""
    return hashlib.sha256(content).hexdigest()[:16]


def hashed_files(path: Path) -> str:
    """Return a short hash of a file, or of all files in a folder and their names."""
    digest = hashlib.sha256()
    for file in sorted(each for each in (path.rglob("*") if path.is_dir() else [path]) if each.is_file()):
        with file.open("rb") as content:
            digest.update(f"{file.relative_to(path)} {hashlib.file_digest(content, 'sha256').hexdigest()}".encode())
    return digest.hexdigest()[:16]


class _Hash:
    """A hash of values: tensors by their bytes, collections by their parts, objects by class and state.

    Functions, classes and other objects are numbered as they are met, and their parts follow in that order: they may
    refer to each other in circles, or in chains that are deeper than the stack.
    """

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.numbers: dict[int, int] = {}  # by the place in memory
        self.met: list[Any] = []  # which keeps them alive

    def add(self, value: Any) -> None:
        """Add a value; of an object, its number."""
        if isinstance(value, ATOMS):
            self.digest.update(repr(value).encode())
            return
        if isinstance(value, np.ndarray):
            is_plain = value.dtype.kind in "biuf"
            value = torch.from_numpy(np.require(value, requirements=["C", "W"])) if is_plain else value.tolist()
        if isinstance(value, Tensor):
            self.digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
            # A copy: PyTorch takes one number of a column for contiguous, but cannot read its bytes.
            copy = value.detach().cpu().clone(memory_format=torch.contiguous_format)
            self.digest.update(copy.reshape(-1).view(torch.uint8).numpy().tobytes())
            return
        is_new = id(value) not in self.numbers
        number = self.numbers.setdefault(id(value), len(self.numbers))
        if is_new and isinstance(value, COLLECTIONS):
            self.add_parts(value)
            del self.numbers[id(value)]  # equal ones may be one or several
            return
        self.digest.update(f"number {number}".encode())
        if is_new:
            self.met.append(value)

    def add_parts(self, value: Any) -> None:
        """Add what a collection or an object consists of."""
        if isinstance(value, nn.Module):
            for name, module in value.named_modules():
                self.add([name, type(module), _settings(module)])
            self.add({**dict(value.named_parameters()), **dict(value.named_buffers())})
        elif isinstance(value, Mapping):
            for name in sorted(value, key=str):
                self.digest.update(str(name).encode())
                self.add(value[name])
        elif isinstance(value, list | tuple):
            self.digest.update(f"{len(value)}".encode())
            for part in value:
                self.add(part)
        elif isinstance(value, set | frozenset):  # in another order in each process
            self.add(sorted(map(hashed, value)))
        elif isinstance(value, types.CodeType):
            self.add([value.co_code, value.co_names, value.co_varnames, value.co_freevars, *value.co_consts])
        elif isinstance(value, types.FunctionType):
            self.add(_of_function(value))
        elif isinstance(value, types.MethodType):
            self.add([value.__func__, value.__self__])
        elif isinstance(value, functools.partial):
            self.add([value.func, value.args, value.keywords])
        elif isinstance(value, type):
            own = [each for each in value.__mro__ if not is_installed(each.__module__)]
            self.add([value.__module__, value.__qualname__, *(_of_class(each) for each in own)])
        elif isinstance(value, types.ModuleType):
            self.digest.update(value.__name__.encode())
        elif (state := _state(value)) is not None:
            self.add(state)
        else:
            # What has no text of its own is printed with its place in memory, which differs from process to process.
            self.digest.update(re.sub(r" at 0x[0-9a-f]+", "", repr(value)).encode())


def _settings(module: nn.Module) -> Any:
    """Return what is set in a module: of one of an installed package, what says so plainly."""
    own = {name: value for name, value in vars(module).items() if name not in OF_MODULES}
    if not is_installed(type(module).__module__):
        return own
    config: Any = getattr(module, "config", None)
    plain = {n: value for n, value in own.items() if isinstance(value, (*ATOMS, *CODE)) and not n.startswith("_")}
    return [plain, module.extra_repr(), config.to_dict() if hasattr(config, "to_dict") else None]


def _of_function(function: types.FunctionType) -> list[Any]:
    """Return a function's name and, unless a package brings it, its code and all that this refers to."""
    if is_installed(function.__module__):
        return [function.__module__, function.__qualname__]
    cells = [cell.cell_contents for cell in function.__closure__ or () if not _is_empty(cell)]
    refers = {name: function.__globals__[name] for name in _names(function.__code__) & function.__globals__.keys()}
    return [function.__qualname__, function.__code__, function.__defaults__, function.__kwdefaults__, cells, refers]


def _names(code: types.CodeType) -> set[str]:
    inner = (each for each in code.co_consts if isinstance(each, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _of_class(cls: type) -> dict[str, Any]:
    """Return what a class itself defines."""
    found = dict(vars(cls))
    for name, each in vars(cls).items():
        for within in ("fget", "__func__", "func"):  # of properties and class methods
            found[name] = getattr(each, within, found[name])
    return {n: each for n, each in found.items() if isinstance(each, (*ATOMS, *CODE)) and n not in NAMES}


def _is_empty(cell: Any) -> bool:
    try:
        return cell.cell_contents is cell
    except ValueError:  # a name that is not bound yet
        return True


def _state(value: Any) -> Any:
    """Return an object's class and what it would be pickled as; None if it cannot be."""
    try:
        made = value.__reduce_ex__(4)
    except Exception:  # whatever an object may raise
        return None
    if isinstance(made, str):
        return [type(value), made]
    return [type(value), *(list(part) if isinstance(part, Iterable) and i > 2 else part for i, part in enumerate(made))]
