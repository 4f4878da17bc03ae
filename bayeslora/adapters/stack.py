"""Layers of one shape, stacked: one tensor per factor."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral

import pyro
import torch
from torch import Tensor, nn

from bayeslora.adapters.families import Family, LowRank
from bayeslora.adapters.targets import lookup
from bayeslora.adapters.weights import features, names_of
from bayeslora.types import FactorsByStack, FactorTuple, Sites

DEFAULT_RANK = 8
"""The rank of a layer for which none is given, if it is that wide."""


def split_site(site: str) -> tuple[str, str]:
    """Return the name of a site's stack, and its own: the inverse of `Stack.site`."""
    stack, _, name = site.partition(".")  # no stack has a dot in its name
    return stack, name


def each_factor(factors: FactorsByStack, function: Callable[[Tensor], Tensor]) -> dict[str, FactorTuple]:
    """Return what a function makes of every factor, by stack."""
    return {name: type(value)(*map(function, value)) for name, value in factors.items()}


def draws_at(draws: FactorsByStack, index: int | slice) -> dict[str, FactorTuple]:
    """Return the factors of one draw, or of some."""
    return each_factor(draws, lambda factor: factor[index])


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

    @cached_property
    def matrix_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name to the shape of one layer's matrix, for the matrices of the family's `curvature`."""
        factors = self.family.factors(*(torch.empty(shape, device="meta") for shape in self.shapes.values()))
        return {name: tuple(matrix.shape) for name, matrix in self.family.matrices(factors).items()}

    def initial(self) -> FactorTuple:
        """Return factors to start from, `[layer, …]` each, with which the layers compute what their bases do."""
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


def grouped(
    model: nn.Module,
    bases: Mapping[str, nn.Module],
    family: Family,
    rank: int | Mapping[str, int] | None,
    start_rank: Callable[[int], int],
    alpha: float | Mapping[str, float],
    num_examples: int,
    num_layers: int | None = None,
    prefix: str = "",
) -> list[Stack]:
    """Group the named layers of a model by shape and rank, a stack each.

    Args:
        model: The network.
        bases: The layers by name, in the model's order, or copies of them around the same weights.
        family: Which factors they have.
        rank: r, or a mapping from module-name suffix to r; other layers get the largest that fits, up to 8.
        start_rank: The rank at which a layer starts, given r.
        alpha: LoRA's alpha, or a mapping from module-name suffix to alpha.
        num_examples: n.
        num_layers: L; by default, the number of layers.
        prefix: Precedes the names of stacks; those of the task head have one.

    Raises:
        ValueError: If a rank does not fit its layer.
    """
    groups: dict[tuple[int, int, int], list[str]] = {}
    called = names_of(model)
    for name, base in bases.items():
        sizes = features(base)
        assert sizes is not None
        layer_rank = min(sizes)
        if family.has_rank:
            given = lookup({} if rank is None else rank, called[model.get_submodule(name)], None)
            if given is None:
                given = max((r for r in range(1, DEFAULT_RANK + 1) if start_rank(r) <= min(sizes)), default=1)
            layer_rank = start_rank(int(given)) if isinstance(given, Integral) else 0
            if given == 1:  # no rank is smaller, so a method that prunes starts there, too
                layer_rank = min(layer_rank, *sizes)
            if not 1 <= layer_rank <= min(sizes):
                starts = f", which starts at {layer_rank}," if layer_rank not in (0, given) else ""
                largest = max(1, sum(start_rank(r) <= min(sizes) for r in range(1, min(sizes) + 1)))
                raise ValueError(
                    f"rank={given!r}{starts} does not fit layer {name!r}, which is {sizes[0]} to {sizes[1]} "
                    f"features: give a whole number from 1 to {largest}, or leave the layer out of `targets`."
                )
        groups.setdefault((*sizes, layer_rank), []).append(name)
    several = family.has_rank and len({layer_rank for _, _, layer_rank in groups}) > 1
    return [
        Stack(
            name=f"{prefix}{d_in}x{d_out}" + (f"r{layer_rank}" if several else ""),
            layer_names=tuple(layers),
            d_in=d_in,
            d_out=d_out,
            rank=layer_rank,
            scaling=tuple(float(lookup(alpha, called[model.get_submodule(name)], 16)) / layer_rank for name in layers),
            num_layers=num_layers or len(bases),
            num_examples=num_examples,
            family=family,
            in_head=bool(prefix),
            measured=family.measure([bases[name] for name in layers]),
        )
        for (d_in, d_out, layer_rank), layers in groups.items()
    ]
