"""Passes through a network that leave it as they found it.

Some networks keep something from one pass to the next: a running mean that is updated in evaluation too, the last
state of a recurrent layer, a cache, an iterator. Predictions would then depend on those before, and a model that was
only looked at would not be what it was. Most keep it in their modules; some in their classes, in the closures of their
functions, or in what their functions know by a global name.
"""

import contextlib
import operator
from collections import deque
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bayeslora import contents, counting
from bayeslora.places import OF_TORCH, Memo, content_of, may_move, places_of

LARGEST_WHOLE = 2**20
"""Bytes of the largest tensor of no real numbers that is kept: larger ones are quantised weights, which do not move."""

SET_UP = frozenset({"_output_capturing_hooks_installed"})
"""Attributes that say what the first pass sets up: transformers' hooks, which stay, would be set up again."""


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
        places = places_of(model, besides) if known is None else known
        before = _Before(places, training, type(model).__name__ if known is None else None)
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
                _put_back(place, content_of(place), {}, content)
            yield
        finally:
            before.restore()


@contextlib.contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Restore afterwards what a model keeps from one pass to the next: buffers, attributes, and what is in these."""
    with Passes().alone(model):
        yield


class _Before:
    """The contents of places before a pass, which works on copies of their tensors, and of what counts in them.

    Args:
        places: The places.
        training: The network's mode.
        name: Of the network, for the error if it moves on what cannot be put back; None where that has been seen.
    """

    def __init__(self, places: list[Any], training: bool = False, name: str | None = None):
        copies = _Copies(training)
        self.contents: list[tuple[Any, dict[Any, Any], dict[Any, Any]]] = []
        for place in places:
            if isinstance(place, Memo):
                place.clear()
            original = content_of(place)
            lent: dict[Any, Any] = {}
            for key in original.keys() - OF_TORCH if not isinstance(place, set | contents.Content) else ():
                value = original[key]
                if name is not None and counting.hides(value):
                    place[key] = lent[key] = counting.Unmoved(name)
                elif may_move(value, training) and (copy := copies.of(value)) is not value:
                    place[key] = lent[key] = copy
            if not (isinstance(place, contents.Content) and not contents.has_content(place.owner, training)):
                self.contents.append((place, original, lent))

    def restore(self) -> list[tuple[Any, dict[Any, Any]]]:
        """Restore the contents, and return the places in which they had changed, with what was there."""
        changed = []
        for place, original, lent in self.contents:
            now, before = content_of(place), original | lent
            written = any(_is_written(value, original[key]) for key, value in lent.items())
            if written or not _is_same(place, now, before):
                if _put_back(place, now, before, original) or written:
                    changed.append((place, now))
            else:
                for key in lent:
                    place[key] = original[key]
        return changed


def _is_same(place: Any, now: dict[Any, Any], before: dict[Any, Any]) -> bool:
    """Whether a place has the same entries as before, in the same order."""
    if isinstance(place, contents.Content):
        return now == before
    return [*now] == [*before] and [*map(id, now.values())] == [*map(id, before.values())]


def _is_written(lent: Any, original: Any) -> bool:
    """Whether a copy that a pass was lent holds something else than the original."""
    if lent is original or isinstance(lent, counting.Unmoved):
        return False
    if isinstance(lent, tuple):
        return any(map(_is_written, lent, original))
    if isinstance(lent, Tensor):
        own = [{key: id(each) for key, each in vars(x).items()} for x in (lent, original)]
        return own[0] != own[1] or not _is_equal(lent, original)
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
    if isinstance(place, contents.Content):
        place["content"] = original["content"]
        return True
    for key in {**original, **now}:
        if key in SET_UP or _is_computed(place, key):  # the other would be out of date
            continue
        changed |= key not in now or key not in before or now[key] is not before[key]
        if key in original:
            place[key] = original[key]
        else:
            del place[key]
    if isinstance(place, dict) and [*place] != [*original] and place.keys() == original.keys():
        changed = True
        for key in original:  # in their order
            place[key] = place.pop(key)
    return changed


def _is_computed(place: Any, key: Any) -> bool:
    """Whether an attribute is a weight that the older `weight_norm` and the like compute before every call."""
    parameters = (place.get("_parameters") if isinstance(place, dict) else None) or {}
    return bool(parameters) and (f"{key}_v" in parameters or f"{key}_orig" in parameters)


def _is_equal(lent: Tensor, original: Tensor) -> bool:
    """Whether a copy of a tensor has the same numbers: NumPy and `.data` write without any other trace."""
    kinds = [(x.shape, x.dtype, x.device, x.layout) for x in (lent, original)]
    if kinds[0] != kinds[1] or lent.layout is not torch.strided or lent.is_meta:
        return kinds[0] == kinds[1] and lent._version == 0
    with torch.no_grad():
        if torch.equal(lent, original):
            return True
        return bool((torch.eq(lent, original) | (lent.isnan() & original.isnan())).all())


class _Copies:
    """Copies of what passes may write into or move; the same one wherever it stands, in the same memory as its views.

    Args:
        training: The network's mode.
    """

    def __init__(self, training: bool):
        self.training = training
        self.known: dict[int, Any] = {}
        self.memory: dict[tuple[str, int], Tensor] = {}

    def of(self, value: Any) -> Any:
        """Return the copy of a value; the value itself where it is not copied."""
        if isinstance(value, tuple):
            parts = [self.of(each) if may_move(each, self.training) else each for each in value]
            make: Any = tuple if type(value) is tuple else getattr(value, "_make", None)
            return value if make is None or all(map(operator.is_, parts, value)) else make(parts)
        if id(value) not in self.known:
            if isinstance(value, np.ndarray):
                self.known[id(value)] = self._of_array(value) if contents.is_lent(value) else value
            elif isinstance(value, Tensor):
                self.known[id(value)] = self._of_tensor(value)
            else:
                self.known[id(value)] = counting.copied(value)
        return self.known[id(value)]

    def _of_array(self, value: np.ndarray) -> np.ndarray:
        owner = value
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        start = owner.__array_interface__["data"][0]
        if not (owner.flags.c_contiguous and contents.is_lent(owner) and owner.flags.writeable):
            return value.copy()
        memory = self.memory.setdefault(("cpu", start), torch.from_numpy(owner.reshape(-1).view(np.uint8).copy()))
        place = value.__array_interface__["data"][0] - start
        return np.ndarray(value.shape, value.dtype, memory.numpy(), place, value.strides)

    def _of_tensor(self, value: Tensor) -> Tensor:
        if isinstance(value, nn.Parameter) or value.requires_grad or not value.is_leaf:
            return value
        largest = contents.LARGEST if value.is_floating_point() else LARGEST_WHOLE
        if type(value) is not Tensor or value.is_inference() or value.numel() * value.element_size() > largest:
            return value
        # Tensors of inference do not count what is written into them.
        with torch.inference_mode(False), torch.no_grad():
            copy = self._at_its_place(value) if value.layout is torch.strided else value.clone()
        vars(copy).update(vars(value))
        return copy

    def _at_its_place(self, value: Tensor) -> Tensor:
        """Return a copy of a tensor, whose views are views of the copy."""
        storage = value.untyped_storage()
        place = value.device.type, storage.data_ptr()
        if place[1] == 0 or storage.nbytes() > contents.LARGEST or value.is_conj() or value.is_neg():
            return value.clone()
        if place not in self.memory:
            self.memory[place] = torch.empty(0, dtype=torch.uint8, device=value.device).set_(storage).clone()
        copy = torch.empty(0, dtype=value.dtype, device=value.device)
        return copy.set_(self.memory[place].untyped_storage(), value.storage_offset(), value.shape, value.stride())


def _names(model: nn.Module, changed: list[Any]) -> list[str]:
    ids = {id(place) for place in changed}
    return [
        name or type(model).__name__
        for name, module in model.named_modules()
        if id(module._buffers) in ids or id(vars(module)) in ids
    ] or [type(model).__name__]


def recomputes(model: nn.Module) -> bool:
    """Whether activation checkpointing is on."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
