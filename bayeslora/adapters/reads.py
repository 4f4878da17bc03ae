"""Which weights operators take in a pass, and which operator made what."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from bayeslora.adapters.ends import Ends
from bayeslora.adapters.writes import Writes


class Reads(TorchDispatchMode):
    """Notes which weights an operator takes outside the call of their layer, and which operator made what.

    Args:
        weights: `id` of a weight to its layer.
        inside: The layers whose calls are under way.
        writes: Is told of operators that write.
    """

    def __init__(self, weights: Mapping[int, str], inside: Sequence[str], writes: Writes | None = None):
        super().__init__()
        self.writes = writes
        self.weights = weights
        self.inside = inside
        self.found: set[str] = set()
        self.ends = Ends()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.writes is not None and func._schema.is_mutable:
            self.writes.before_write(args)
        for arg in args:  # weights are not passed by name
            for value in arg if isinstance(arg, list | tuple) else (arg,):
                name = self.weights.get(id(value))
                if name is not None and name not in self.inside:
                    self.found.add(name)
        result = func(*args, **(kwargs or {}))
        self.ends.note(func, args, result)
        return result
