"""Axis names and array aliases.

Axes keep one order: `draw` first, then `layer` (factors) or `batch` (data), features or labels last. `*draw` stands
for no draw dimension or one.
"""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

Batch = Mapping[str, Any]
"""Keyword arguments of the network's forward, with `labels` beside them."""

Logits = Float[Tensor, "*draw batch class"]
TokenLogits = Float[Tensor, "*draw batch token class"]
RealLogits = Float[Tensor, "*draw batch"]
Labels = Int[Tensor, "batch"]
PerLayer = Float[Tensor, "*draw layer"]
Scaling = Float[Tensor, "layer"]
Sites = Mapping[str, Tensor]
"""Site name to value, `[layer, …]`, or `[draw, layer, …]` for several draws."""

IGNORED = -100
"""The label of a token that is not observed, as everywhere in `transformers`."""
