"""Layers of one shape, stacked: one tensor per factor."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyro
from torch import Tensor

from bayeslora.adapters.families import Family, LowRank
from bayeslora.types import Sites


def split_site(site: str) -> tuple[str, str]:
    """Return the name of a site's stack, and its own: the inverse of `Stack.site`."""
    stack, _, name = site.partition(".")  # no stack has a dot in its name
    return stack, name


@dataclass(frozen=True)
class Stack:
    """Layers of equal shape, rank and family, which share one tensor per factor, `[layer, …]`.

    A Pyro plate over the layers lets a method write one layer and get them all.

    Args:
        name: `"<d_in>x<d_out>"`, with `r<rank>` appended where ranks differ within one network, and `head_` before it
            for layers of the task head.
        layer_names: Module names of the layers, in the order of the `layer` dimension.
        d_in: Input features of each layer.
        d_out: Output features of each layer.
        rank: Rank r of the adapters.
        scaling: s of each layer, alpha / r.
        num_layers: L, adapted layers of the *whole body*; `len(stack)` counts this stack's own.
        num_examples: n, training examples.
        family: Which factors a layer has.
        in_head: Whether the layers belong to the task head; L does not count them.
        measured: What the family measured of the layers' frozen weights, name to `[layer, …]`.
    """

    name: str
    layer_names: tuple[str, ...]
    d_in: int
    d_out: int
    rank: int
    scaling: tuple[float, ...]
    num_layers: int
    num_examples: int
    family: Family = field(default_factory=LowRank)
    in_head: bool = False
    measured: Mapping[str, Tensor] = field(default_factory=dict, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.layer_names)

    @property
    def layers(self) -> pyro.plate:
        """The plate over this stack's layers, the rightmost batch dimension."""
        return pyro.plate(self.site("layers"), len(self), dim=-1)

    def site(self, name: str) -> str:
        """Return the full name of one of this stack's sites: `<stack>.<name>`."""
        return f"{self.name}.{name}"

    def own(self, sites: Sites) -> Sites:
        """Return this stack's part of all sites, under their names without the stack's."""
        split = ((split_site(site), value) for site, value in sites.items())
        return {name: value for (stack, name), value in split if stack == self.name}

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Factor name to the shape of one layer's factor."""
        return self.family.shapes(self.d_in, self.d_out, self.rank)

    def initial(self) -> Any:
        """Factors to start training from, `[layer, …]` each: with them, the layers are as they were."""
        return self.family.initial(len(self), self.shapes, self.measured)

    @property
    def A_shape(self) -> tuple[int, ...]:
        """Shape of one layer's `A`, `(rank, d_in)`."""
        return self.shapes["A"]

    @property
    def B_shape(self) -> tuple[int, ...]:
        """Shape of one layer's `B`, `(d_out, rank)`."""
        return self.shapes["B"]


class Stacks(Mapping[str, Stack]):
    """All stacks of a network, by name, with the counts a method scales its sites by.

    Attributes:
        num_layers: L, adapted layers over the whole body; layers of the task head are not counted.
        num_examples: n, training examples.
    """

    def __init__(self, stacks: list[Stack]):
        self._stacks = {stack.name: stack for stack in stacks}
        self.num_layers = stacks[0].num_layers
        self.num_examples = stacks[0].num_examples

    def __getitem__(self, name: str) -> Stack:
        return self._stacks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stacks)

    def __len__(self) -> int:
        return len(self._stacks)
