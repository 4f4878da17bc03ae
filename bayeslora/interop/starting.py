"""Trained adapters as a starting point."""

import contextlib
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora.adapters import AdaptedNetwork, Family, Stacks
from bayeslora.adapters.weights import is_within
from bayeslora.interop.peft_fields import refuse_beside
from bayeslora.isolation import seeded
from bayeslora.methods import METHODS
from bayeslora.networks import inputs_of, logits_of
from bayeslora.passes import unchanged
from bayeslora.program import Program, evaluating
from bayeslora.surroundings import called
from bayeslora.types import Batch, FactorsByStack, FactorTuple

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Adapters:
    """Trained adapters, layer by layer, and the task head trained with them.

    Args:
        family: The adapters' family.
        factors: Module name to the factors of the layer, such as `A` `[rank, d_in]` and `B` `[d_out, rank]`.
        ranks: Module name to r.
        scaling: Module name to s.
        head: The task head's parameters, by their names in the model; empty if the adapters came without one.
        dropout: The dropout on the adapters' inputs that they were trained with.
        reference: Builds PEFT's own network with these adapters, to compare with, or None if PEFT is not installed.
    """

    family: Family
    factors: Mapping[str, FactorTuple]
    ranks: Mapping[str, int]
    scaling: Mapping[str, float]
    head: Mapping[str, Tensor]
    dropout: float = 0.0
    reference: Callable[[], nn.Module | None] | None = None

    def network_settings(self) -> dict[str, Any]:
        """Return targets, ranks and alphas for an `AdaptedNetwork` with the same layers."""
        alphas = {name: self.scaling[name] * rank for name, rank in self.ranks.items()}
        return {"targets": list(self.factors), "rank": self.ranks, "alpha": alphas}

    def stacked(self, stacks: Stacks) -> dict[str, Any]:
        """Return the factors by stack, `[layer, …]`."""
        return {
            name: self.family.factors(
                *(torch.stack(part) for part in zip(*(self.factors[n] for n in stack.layer_names), strict=True))
            )
            for name, stack in stacks.items()
            if not stack.in_head
        }

    def start(self, program: Program) -> None:
        """Make these the starting point of a program over the same layers.

        Raises:
            TypeError: If the program's adapters are of another family.
            ValueError: If the head does not fit the network's, or more than a head was trained with the adapters.
        """
        network = program.network
        family = next(iter(program.stacks.values())).family.without_noise()
        if family.factors is not self.family.factors:
            wanted, given = (f"{type(f).__name__} ({', '.join(f.factors._fields)})" for f in (family, self.family))
            raise TypeError(
                f"The method {program.method.name!r} has {wanted} adapters and cannot start from {given} adapters: "
                f"start from a fit of the same family{_methods_of(self.family)}."
            )
        # The trained head is the head's frozen weights; what a method adds to them starts at no change.
        head = {name: stack.initial() for name, stack in program.stacks.items() if stack.in_head}
        program.guide.start(self.stacked(program.stacks) | head)  # type: ignore[operator]
        if beside := [name for name in self.head if not is_within(name, network.head_names)]:
            refuse_beside(beside)
        if self.head:
            # PEFT may have trained a part of it, and leaves the rest as the base has it.
            own = {} if self.reference is None else network.head_state()
            network.load_head(own | dict(self.head))
        elif network.head_names:
            logger.warning("The adapters come without a task head: the model's own, %s, is used.", network.head_names)
        dropout = getattr(next(iter(program.stacks.values())).family, "p", 0.0)
        if self.dropout not in (0, dropout) and not program.method.post_hoc:
            logger.warning(
                "The PEFT adapter was trained with lora_dropout=%g, which the method %r does not take over: "
                "method='mc_dropout', p=%g has it.",
                *(self.dropout, program.method.name, self.dropout),
            )

    def check(self, program: Program, batch: Batch) -> None:
        """Compare the program's network at these adapters with PEFT's, if they are PEFT's, on a batch.

        Raises:
            ValueError: If their logits differ by more than rounding.
        """
        reference = None if self.reference is None else self.reference()
        if reference is None:
            return
        network = program.network
        if hasattr(reference, "config"):
            reference.config = network.model.config  # which may have been given a padding token since
        factors = {}
        stacked = self.stacked(program.stacks)
        for name, stack in program.stacks.items():
            given = stack.initial()._asdict() if stack.in_head else stacked[name]._asdict()
            noise = {key: torch.zeros(len(stack), *shape) for key, shape in stack.shapes.items() if key not in given}
            parts = {key: value.to(network.device, network.dtype) for key, value in (given | noise).items()}
            factors[name] = stack.family.factors(**parts)
        inputs = inputs_of(batch)
        if difference := distance(network, factors, reference, inputs):
            raise ValueError(
                f"The network with the PEFT adapter and PEFT's own differ by {difference:.2g} on a batch: the adapter "
                "was trained on another base than the model given, or its configuration does not fit its weights. Load "
                "the base that it names, or pass the PEFT model itself, fit(peft_model, …)."
            )


def distance(network: AdaptedNetwork, factors: FactorsByStack, other: nn.Module, inputs: Batch) -> float:
    """Return the largest difference of a network's logits at given factors from another's; 0 if it is rounding."""
    computed: set[torch.dtype] = set()
    layers = [layer for name in network.stacks for layer in network.layers(name)]
    hooks = [layer.register_forward_hook(lambda layer, args, output: computed.add(output.dtype)) for layer in layers]
    try:
        with torch.no_grad(), evaluating(network), evaluating(other), unchanged(other):
            with seeded(0):  # some networks draw numbers in evaluation too
                own = network(factors, inputs)
            with seeded(0):
                expected = logits_of(called(other, inputs))
    finally:
        for hook in hooks:
            hook.remove()
        network.unbind()
    dtypes = {value.dtype for value in (*network.model.parameters(), own, expected) if value.is_floating_point()}
    dtypes |= computed  # layers may run under an autocast of the network's own
    tolerance = max(torch.finfo(dtype).eps for dtype in dtypes) ** 0.5
    own, expected = own.double(), expected.double()
    same = (own == expected) | (own.isnan() & expected.isnan())  # also where both are infinite
    difference = float((own - expected).abs().masked_fill(same, 0.0).nan_to_num(nan=math.inf).max())
    return difference if difference > tolerance * max(1.0, float(expected.abs().nan_to_num(0, 0).max())) else 0.0


def from_program(program: Program) -> Adapters:
    """Return the adapters and head at the centre of a fitted program."""
    with torch.no_grad():
        return from_factors(program.network, program.factors_at(program.centre()))


def from_factors(network: AdaptedNetwork, factors: FactorsByStack) -> Adapters:
    """Return a network's adapters and head at given factors by stack, without draws."""
    layers: dict[str, Any] = {}
    ranks: dict[str, int] = {}
    scaling: dict[str, float] = {}
    body = {name: stack for name, stack in network.stacks.items() if not stack.in_head}
    for name, stack in body.items():
        family = stack.family.without_noise()
        for index, layer in enumerate(stack.layer_names):
            layers[layer] = family.factors(*(getattr(factors[name], f)[index].clone() for f in family.factors._fields))
            ranks[layer] = stack.rank
            scaling[layer] = stack.scaling[index]
    return Adapters(family, layers, ranks, scaling, trained_head(network, factors))


def trained_head(network: AdaptedNetwork, factors: FactorsByStack) -> dict[str, Tensor]:
    """Return the task head's parameters by their names in the model, with any factors of its layers folded in."""
    state = {name: value.clone() for name, value in network.head_state().items()}
    for name, value in network.scaled({n: f for n, f in factors.items() if network.stacks[n].in_head}).items():
        stack, bases = network.stacks[name], network.bases(name)
        changes = {"weight": stack.family.delta(value, bases), "bias": stack.family.bias_delta(value)}
        for part, change in changes.items():
            if change is not None:
                for layer, its_change in zip(stack.layer_names, change, strict=True):
                    key = f"{layer}.{part}"
                    if part == "weight" and key not in state:
                        raise ValueError(
                            f"The weight of the task head's {layer!r} is computed from other parameters, into which a "
                            "change cannot be folded: take the norm off it before the fit."
                        )
                    state[key] = state.get(key, 0) + its_change
    return state


def _methods_of(family: Family) -> str:
    """Return what a message adds: the methods whose adapters are of a family."""
    names = []
    for name, kind in METHODS.items():
        with contextlib.suppress(TypeError):  # a user's own, whose fields have no defaults
            if kind().family.without_noise().factors is family.factors:
                names.append(repr(name))
    return f", or with {'method' if len(names) == 1 else 'one of the methods'} {', '.join(names)}" if names else ""
