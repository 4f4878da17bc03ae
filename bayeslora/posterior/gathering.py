"""Outputs of the components of a mixture."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bayeslora.metrics import FloatArray
from bayeslora.posterior import Posterior
from bayeslora.tasks.collecting import Outputs


class Together(NamedTuple):
    """What the networks of several components returned for the same data.

    Args:
        outputs: The outputs of all, draws after draws, or the finished prediction of a language model.
        components: The components that were run, and how many draws each of them has.
        weights: The weight of each draw, `[draw]`.
    """

    outputs: Any
    components: Sequence[tuple[Posterior, int]]
    weights: FloatArray

    @property
    def labels(self) -> np.ndarray | None:
        """Labels, if data has them."""
        return self.outputs.labels

    def take(self, examples: np.ndarray) -> "Together | None":
        """Return the outputs of some examples, `[example]` of truth values; None where that cannot be done."""
        part = self.outputs.take(examples) if isinstance(self.outputs, Outputs) else None
        return None if part is None else self._replace(outputs=part)
