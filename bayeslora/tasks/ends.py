"""What may stand at the end of a network, so that its outputs are not logits."""

from collections.abc import Mapping
from typing import Any

_POSITIVE = "numbers that are never negative, as {} makes them"

NOT_LOGITS: Mapping[Any, str] = {
    "softmax": "probabilities, as a softmax makes them",
    "log_softmax": "logarithms of probabilities, as a log-softmax makes them",
    "sigmoid": "probabilities, as a sigmoid makes them",
    "logsigmoid": "logarithms of probabilities, as a log-sigmoid makes them",
    "tanh": "numbers between −1 and 1, as tanh makes them",
    "relu": _POSITIVE.format("a ReLU"),
    "softplus": _POSITIVE.format("a softplus"),
    "exp": _POSITIVE.format("exp"),
}
"""What may follow logits at the end of a network, by the operator, in words."""

NOT_OF_CLASSES = frozenset(NOT_LOGITS) - {"log_softmax"}  # whose softmax is the same
