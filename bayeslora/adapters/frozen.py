"""Whether the frozen weights that a network shares with the model it was made from are still what they were.

A write through `.data`, as PEFT's `merge_adapter` makes, leaves no trace but the numbers; all others count a version.
"""

import logging
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora.adapters.weights import is_within
from bayeslora.isolation import turn

logger = logging.getLogger(__name__)

VALUES = 8
"""Numbers of each parameter that are looked at."""

ROUNDINGS = 4
"""Roundings, relative to a parameter's largest number, that a change and its reversal leave."""

BUT = "The posterior shares its frozen weights with the model that it was made from"
PUT_BACK = (
    "put the weights back, in PEFT by model.unmerge_adapter(), or load the posterior onto an unchanged copy. To change "
    "a model after a fit, fit a copy, copy.deepcopy(model)."
)


class BaseChangedError(ValueError):
    """The weights of the base model that a posterior shares have changed since the fit."""


class FrozenWeights:
    """Remembers a few numbers of every frozen parameter of a network, and how often each was written to.

    Moving the network to a device or to another precision is not a change.

    Args:
        network: An `AdaptedNetwork`.
    """

    def __init__(self, network: Any):
        self.parameters = _parameters(network)
        present = self._present()
        self.numbers = _Numbers(present)
        self.writes = _writes(present)
        self.turn: int | None = None
        self.is_noted = False

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy is of other parameters, which hold the same numbers.
        return _copy, ({**vars(self), "parameters": {}, "writes": {}, "turn": None, "is_noted": False},)

    def check(self, network: Any) -> None:
        """Compare the weights with those of the fit, once in each call of the library.

        Where a parameter was written to, and the numbers that are looked at have not changed, others may have: that is
        a warning.

        Args:
            network: The network.

        Raises:
            BaseChangedError: If numbers have changed by more than rounding.
        """
        now = turn()
        if now is not None and now == self.turn:
            return
        self.parameters = self.parameters or _parameters(network)
        present = self._present()
        numbers, writes = _Numbers(present), _writes(present)
        is_same = numbers.same_as(self.numbers)
        if is_same and writes == self.writes:
            self.turn = now
            return
        # What has moved is shared no longer.
        still = [name for name, (_, place) in writes.items() if self.writes.get(name, (0, place))[1] == place]
        if not is_same:
            self._compare(numbers, still)
        elif written := [name for name in still if self.writes.get(name, writes[name]) != writes[name]]:
            logger.warning(
                "%s, and %d of %d parameters have been written to since, the first is %r. The few numbers that are "
                "looked at are what they were; if others are not, predictions are wrong: %s",
                *(BUT, len(written), len(writes), written[0], PUT_BACK),
            )
        self.numbers, self.writes, self.turn = numbers, writes, now

    def note(self) -> None:
        """Leave out, once, what passes of the network itself write to, as an embedding with `max_norm` does."""
        if self.is_noted or self.turn is None:
            return
        now, self.is_noted = _writes(self._present()), True
        if own := {name for name, count in now.items() if self.writes.get(name, count) != count}:
            self.parameters = {name: p for name, p in self.parameters.items() if name not in own}
            present = self._present()
            self.numbers, self.writes = _Numbers(present), _writes(present)

    def _present(self) -> dict[str, Tensor]:
        """Return the parameters that there are, and hold numbers: one that is kept on the disk has been replaced."""
        found = {name: reference() for name, reference in self.parameters.items()}
        return {name: p for name, p in found.items() if p is not None and not p.is_meta and p.numel()}

    def _compare(self, numbers: "_Numbers", names: Iterable[str]) -> None:
        """Raise an error unless parameters differ from what they were by rounding alone."""
        before, after = self.numbers.rows(), numbers.rows()
        rounding = max(self.numbers.rounding, numbers.rounding)
        changed = []
        for name in names:
            pair = torch.stack([before.get(name, after[name]), after[name]]).nan_to_num()
            if bool((pair[0] - pair[1]).abs().max() > ROUNDINGS * rounding * pair.abs().max()):
                changed.append(name)
        if changed:
            raise BaseChangedError(
                f"{BUT}, and {len(changed)} of {len(after)} parameters have changed since, the first is "
                f"{changed[0]!r}. Predictions would be wrong: {PUT_BACK}"
            )


def check_frozen(network: Any) -> None:
    """Raise a `BaseChangedError` if the frozen weights of a fitted network have changed since the fit."""
    if network.frozen is not None:
        network.frozen.check(network)


class _Numbers:
    """A few numbers of every parameter, in one tensor for each precision and device.

    Args:
        parameters: By name.
    """

    def __init__(self, parameters: Mapping[str, Tensor]):
        parts: dict[Any, dict[str, Tensor]] = {}
        with torch.inference_mode(False), torch.no_grad():
            for name, parameter in parameters.items():
                parts.setdefault((parameter.dtype, parameter.device), {})[name] = _some(parameter)
            self.found = {key: torch.cat([*each.values()]) for key, each in parts.items()}
        self.names = {key: [*each] for key, each in parts.items()}

    @property
    def rounding(self) -> float:
        """The coarsest relative difference of neighbouring numbers."""
        return max((torch.finfo(dtype).eps for dtype, _ in self.found if dtype.is_floating_point), default=0.0)

    def same_as(self, other: "_Numbers") -> bool:
        """Whether all numbers are the same, of the same parameters at the same places."""
        return self.names == other.names and all(
            torch.equal(value, other.found[key]) for key, value in self.found.items()
        )

    def rows(self) -> dict[str, Tensor]:
        """Return the numbers of each parameter, in double precision."""
        return {
            name: part
            for key, value in self.found.items()
            for name, part in zip(self.names[key], value.double().cpu().split(VALUES), strict=True)
        }


def _parameters(network: Any) -> dict[str, "weakref.ref[nn.Parameter]"]:
    """Return the plain parameters of the body by name; those of the head are the network's own."""
    adapted = {name for stack in network.stacks.values() for name in stack.layer_names}
    found = {}
    for name, parameter in network.model.named_parameters():
        is_plain = type(parameter) is nn.Parameter and parameter.layout is torch.strided
        if is_plain and not (is_within(name, network.head_names) or parameter.is_complex() or parameter.is_inference()):
            layer, _, own = name.rpartition(".base.")
            found[f"{layer}.{own}" if layer in adapted else name] = weakref.ref(parameter)
    return found


def _some(parameter: Tensor) -> Tensor:
    if parameter.is_contiguous() and parameter.numel() >= VALUES:
        values = parameter.as_strided((VALUES,), (parameter.numel() // VALUES,))
    else:
        step = torch.arange(VALUES, device=parameter.device)
        values = parameter[tuple(step * max(1, size // VALUES) % size for size in parameter.shape)].expand(VALUES)
    return values if parameter.is_floating_point() and parameter.element_size() > 1 else values.double()


def _writes(parameters: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """Return how often each parameter was written to, and where it is, which moving it changes."""
    return {name: (parameter._version, parameter.data_ptr()) for name, parameter in parameters.items()}


def _copy(content: Mapping[str, Any]) -> FrozenWeights:
    weights = FrozenWeights.__new__(FrozenWeights)
    vars(weights).update(content)
    return weights
