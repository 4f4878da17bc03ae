"""Which operator made a network's logits, if it is one that usually follows them."""

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from bayeslora.networks import memory_of

NAMES = {
    "sigmoid": "sigmoid",
    "hardsigmoid": "sigmoid",
    "log_sigmoid_forward": "logsigmoid",
    "_softmax": "softmax",
    "_log_softmax": "log_softmax",
    "tanh": "tanh",
    "relu": "relu",
    "softplus": "softplus",
    "exp": "exp",
}
"""Operators, in place or not, by what they are called here."""

KEEPING = ("_to_copy", "clone", "cat", "stack")
"""Operators that make a tensor of the same numbers."""


class Ends:
    """Follows which of these operators made the numbers in a piece of memory."""

    def __init__(self) -> None:
        self.by_memory: dict[int, str] = {}

    def note(self, func: Any, args: Any, result: Any) -> None:
        """Take note of an operator; views of what another one made stay that one's."""
        given = [memory_of(value) for value in tree_leaves(args) if isinstance(value, Tensor)]
        made = [memory_of(value) for value in tree_leaves(result) if isinstance(value, Tensor)]
        operator = func._schema.name.rpartition("::")[2]
        name = NAMES.get(operator.removesuffix("_"))
        if operator in KEEPING:
            names = {self.by_memory.get(place) for place in given}
            name = names.pop() if len(names) == 1 else None
        elif not func._schema.is_mutable and made and made[0] in given:
            return
        for place in made:
            if name is None:
                self.by_memory.pop(place, None)
            elif place:
                self.by_memory[place] = name

    def of(self, value: Tensor) -> str | None:
        """Return the name of the operator that made a tensor."""
        return self.by_memory.get(memory_of(value))
