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

from bayeslora import counting
from bayeslora.places import OF_TORCH, Memo, content_of, may_move, places_of

LARGEST = 2**26
"""Bytes of the largest real tensor that is kept: 64 MiB."""

LARGEST_WHOLE = 2**20
"""Bytes of the largest other tensor that is kept: larger ones are quantised weights, which do not move."""

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
        copies: dict[int, Any] = {}
        self.contents: list[tuple[Any, dict[Any, Any], dict[Any, Any]]] = []
        for place in places:
            if isinstance(place, Memo):
                place.clear()
            original = content_of(place)
            lent: dict[Any, Any] = {}
            for key in original.keys() - OF_TORCH if not isinstance(place, set) else ():
                value = original[key]
                if name is not None and counting.hides(value):
                    place[key] = lent[key] = counting.Unmoved(name)
                elif may_move(value, training) and (copy := _copy(value, copies, training)) is not value:
                    place[key] = lent[key] = copy
            self.contents.append((place, original, lent))
        self.versions = {id(value): value._version for value in copies.values() if isinstance(value, Tensor)}

    def restore(self) -> list[tuple[Any, dict[Any, Any]]]:
        """Restore the contents, and return the places in which they had changed, with what was there."""
        changed = []
        for place, original, lent in self.contents:
            now, before = content_of(place), original | lent
            written = any(self._is_written(value, original[key]) for key, value in lent.items())
            if written or [*now] != [*before] or [*map(id, now.values())] != [*map(id, before.values())]:
                if _put_back(place, now, before, original) or written:
                    changed.append((place, now))
            else:
                for key in lent:
                    place[key] = original[key]
        return changed

    def _is_written(self, lent: Any, original: Any) -> bool:
        if lent is original or isinstance(lent, counting.Unmoved):
            return False
        if isinstance(lent, tuple):
            return any(map(self._is_written, lent, original))
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


def _copy(value: Any, copies: dict[int, Any], training: bool = False) -> Any:
    """A copy of what a pass may write into or move; the same one wherever it stands."""
    if isinstance(value, tuple):
        parts = [_copy(each, copies, training) if may_move(each, training) else each for each in value]
        make: Any = tuple if type(value) is tuple else getattr(value, "_make", None)
        return value if make is None or all(map(operator.is_, parts, value)) else make(parts)
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
        # Tensors of inference do not count what is written into them.
        with torch.inference_mode(False), torch.no_grad():
            copies[id(value)] = value.clone()
    return copies[id(value)]


def _names(model: nn.Module, changed: list[Any]) -> list[str]:
    ids = {id(place) for place in changed}
    return [
        name or type(model).__name__
        for name, module in model.named_modules()
        if id(module._buffers) in ids or id(vars(module)) in ids
    ] or [type(model).__name__]
