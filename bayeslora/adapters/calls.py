"""Calls of a network's modules, taken over for a while."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn


@contextlib.contextmanager
def replaced(made: Mapping[nn.Module, Callable[[nn.Module, Callable[..., Any]], Callable[..., Any]]]) -> Iterator[None]:
    """Replace forward functions of modules by what is made of them; hooks, which run around them, stay as they are."""
    before = [(module, vars(module).get("forward"), module.forward) for module in made]
    try:
        for module, _, forward in before:
            new = made[module](module, forward)
            module.forward = functools.update_wrapper(new, forward, (), ())  # with its names of inputs
        yield
    finally:
        for module, own, _ in before:
            if own is not None:
                module.forward = own
            else:
                vars(module).pop("forward", None)


def replaceable(model: nn.Module) -> list[nn.Module]:
    """Return the modules whose forward functions can be replaced."""
    return [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
