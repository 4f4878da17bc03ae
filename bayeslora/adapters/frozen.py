"""Whether the frozen weights that a network shares with the model it was made from are still what they were.

A write through `.data`, as PEFT's `merge_adapter` makes, leaves no trace but the numbers; all others count a version.
"""

import contextlib
import logging
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora.adapters.weights import is_within
from bayeslora.isolation import check_free, turn

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
IN_FIT = (
    "they were written to during the fit, by something else than its passes, such as a callback, a hook or another "
    "thread. Leave the model alone until the fit has ended, or fit a copy, copy.deepcopy(model)."
)


class BaseChangedError(ValueError):
    """The weights of the base model that a posterior shares have changed since the fit."""


_all: "weakref.WeakSet[FrozenWeights]" = weakref.WeakSet()


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
        self.is_in_fit = False
        self.own: list[weakref.ref[nn.Parameter]] = []  # what passes write to
        self._leave_out({p.data_ptr() for each in list(_all) for own in each.own if (p := own()) is not None})
        _all.add(self)
        if not _is_distributed():
            self._tell(network.writes)  # of passes during a fit; processes write theirs to each other

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy is of other parameters, which hold the same numbers.
        return _copy, (
            {
                **vars(self),
                "parameters": {},
                "writes": {},
                "own": [],
                "turn": None,
                "is_noted": False,
                "is_in_fit": False,
            },
        )

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
                *(BUT, len(written), len(writes), written[0], IN_FIT if self.is_in_fit else PUT_BACK),
            )
        self.numbers, self.writes, self.turn = numbers, writes, now

    @contextlib.contextmanager
    def passing(self) -> Iterator[None]:
        """Leave out, during a fit, what a pass in this context writes to, here and where other networks share it."""
        if not self.is_in_fit:
            yield
            return
        parameters = list(self.parameters.values())
        before = _counts(parameters)
        try:
            yield
        finally:
            if (now := _counts(parameters)) != before:
                pairs = zip(parameters, before, now, strict=True)
                self._spread({p.data_ptr() for each, was, is_ in pairs if was != is_ and (p := each()) is not None})

    def begin_fit(self) -> None:
        """Take what passes write to from `passing`."""
        self.is_in_fit = not _is_distributed()

    def end_fit(self, network: Any) -> "FrozenWeights":
        """Compare the weights with those before training, and return what to compare with from now on.

        Raises:
            BaseChangedError: If numbers have changed by more than rounding.
        """
        if not self.is_in_fit:
            return FrozenWeights(network)
        self.turn = None
        self.check(network)
        self.is_in_fit = self.is_noted = False
        return self

    def note(self) -> None:
        """Leave out, once, what passes of the network itself write to, here and where other networks share it."""
        if self.is_in_fit or self.is_noted or self.turn is None:
            return
        self.is_noted = True
        self._tell(self.writes)

    def _tell(self, before: Mapping[str, tuple[int, int]]) -> None:
        """Leave out what has been written to since, where it still is, for every network that shares it."""
        now = _writes(self._present())
        pairs = [(before[name], write) for name, write in now.items() if name in before]
        self._spread({place for (count, was), (again, place) in pairs if place == was and count != again})

    @staticmethod
    def _spread(places: Collection[int]) -> None:
        for each in list(_all) if places else []:
            each._leave_out(places)

    def _leave_out(self, places: Collection[int]) -> None:
        """Look no longer at parameters in some places of memory."""
        present = self._present()
        own = {name for name, parameter in present.items() if parameter.data_ptr() in places}
        if own:
            self.own += [self.parameters[name] for name in own]
            self.parameters = {name: p for name, p in self.parameters.items() if name not in own}
            self.numbers.leave_out(own)
            self.writes = {name: write for name, write in self.writes.items() if name not in own}

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
                f"{changed[0]!r}. Predictions would be wrong: {IN_FIT if self.is_in_fit else PUT_BACK}"
            )


@contextlib.contextmanager
def passing(network: Any) -> Iterator[None]:
    """See `FrozenWeights.passing`."""
    with contextlib.nullcontext() if network.frozen is None else network.frozen.passing():
        yield


def _counts(parameters: Iterable["weakref.ref[nn.Parameter]"]) -> list[int]:
    """Return how often each parameter was written to, quickly."""
    return [-1 if (p := reference()) is None else p._version for reference in parameters]


def _is_distributed() -> bool:
    """Whether several processes write their weights to each other."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def writes_of(network: Any) -> dict[str, tuple[int, int]]:
    """Return how often each frozen parameter was written to, and where it is."""
    return _writes({name: p for name, each in _parameters(network).items() if (p := each()) is not None})


def check_frozen(network: Any) -> None:
    """Raise an error if a network is at work, or if its frozen weights have changed since the fit.

    Raises:
        AtWorkError: If an outer call is in the middle of using it.
        BaseChangedError: If the weights have changed.
    """
    check_free(network)
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

    def leave_out(self, names: Collection[str]) -> None:
        """Forget the numbers of some parameters."""
        for key, own in self.names.items():
            if not set(names).isdisjoint(own):
                kept = torch.tensor([name not in names for name in own], device=self.found[key].device)
                self.found[key] = self.found[key][kept.repeat_interleave(VALUES)]
                self.names[key] = [name for name in own if name not in names]
        self.names = {key: own for key, own in self.names.items() if own}

    @property
    def rounding(self) -> float:
        """The coarsest relative difference of neighbouring numbers."""
        return max((torch.finfo(dtype).eps for dtype, _ in self.found if dtype.is_floating_point), default=0.0)

    def same_as(self, other: "_Numbers") -> bool:
        """Whether all numbers are the same, of the same parameters at the same places."""
        return self.names == other.names and all(torch.equal(self.found[key], other.found[key]) for key in self.names)

    def rows(self) -> dict[str, Tensor]:
        """Return the numbers of each parameter, in double precision."""
        return {
            name: part
            for key, own in self.names.items()
            for name, part in zip(own, self.found[key].double().cpu().split(VALUES), strict=True)
        }


def _parameters(network: Any) -> dict[str, "weakref.ref[nn.Parameter]"]:
    """Return the plain parameters of the body by name; those of the head are the network's own.

    An embedding with `max_norm` normalises its rows before it looks them up, in whichever network, and always to the
    same values: it is left out.
    """
    adapted = {name for stack in network.stacks.values() for name in stack.layer_names}
    normed = {id(m.weight) for m in network.model.modules() if getattr(m, "max_norm", None) is not None}
    found = {}
    for name, parameter in network.model.named_parameters():
        is_plain = type(parameter) is nn.Parameter and parameter.layout is torch.strided
        is_plain = is_plain and id(parameter) not in normed
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
    _all.add(weights)
    return weights
