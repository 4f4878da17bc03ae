"""What draws cost by how many blocks have adapters: the k of `targets="last:k"` that a price allows."""

import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import nn

from bayeslora.adapters import AdaptedNetwork, Shared
from bayeslora.adapters.folding import still
from bayeslora.adapters.rows import copied
from bayeslora.adapters.targets import blocks
from bayeslora.contracts import Count, Positive, Within
from bayeslora.isolation import public, seeded
from bayeslora.networks import inputs_of
from bayeslora.prediction import chunks, folded_positions
from bayeslora.types import Batch

if TYPE_CHECKING:
    import pandas as pd


@public()
def prices(
    model: nn.Module,
    inputs: Batch,
    num_draws: Annotated[int, Within(at_least=2, at_most=32)] = 32,
    *,
    price: Positive | None = None,
    rank: Count | None = None,
    repeats: Count = 5,
) -> "pd.DataFrame":
    r"""Measure what draws of a batch cost by how many of the last blocks have adapters.

    For every k, adapters with random factors are put into the layers of `targets="last:k"`. With the time
    $t_k$ of a prediction of S draws and that of one pass of the model alone, $t$, right before it, the price is the
    median of $t_k / t$ in passes. What lies below the adapters runs once for all draws, so that few blocks cost little;
    measure on a quiet machine, with a batch as it will be served. The task head is a point, as in most methods.

        table = bayeslora.prices(model, inputs, 32, price=8)
        k = table[table.within].k.max()  # the most blocks for 8 passes; NaN if one is too many

    Args:
        model: The base model; it is not changed.
        inputs: Keyword arguments of the model, such as `input_ids` and `attention_mask`; `labels` are left out.
        num_draws: S, draws of the weights.
        price: Passes that a prediction may cost; adds the column `within`.
        rank: r; by default as in `fit`.
        repeats: Measurements of each k, after one that warms up.

    Returns:
        A table with a row for each k from 1 to the depth: `k`; `passes`, t_k / t; `share`, of the S passes that a loop
        over the draws takes; and `within`, whether `passes` is at most `price`.

    Raises:
        ValueError: If the model is not a list of blocks.
    """
    import pandas as pd

    whole = AdaptedNetwork(model, rank=rank)
    depth = len(blocks(model, [name for stack in whole.stacks.values() for name in stack.layer_names]))
    given = inputs_of(inputs)
    table = pd.DataFrame({"k": range(1, max(1, depth) + 1)})
    table["passes"] = [
        _passes(AdaptedNetwork(model, None, f"last:{k}", rank), given, num_draws, repeats) for k in table.k
    ]
    table["share"] = table.passes / num_draws
    return table if price is None else table.assign(within=table.passes <= price)


def _passes(network: AdaptedNetwork, inputs: Batch, num_draws: int, repeats: int) -> float:
    """Median time of draws, in passes of the network without factors."""
    with seeded(0):
        factors: dict[str, Any] = {
            name: stack.family.factors(
                *(
                    torch.randn(num_draws, len(stack), *shape, dtype=network.dtype, device=network.device)
                    / max(shape) ** 0.5
                    for shape in stack.shapes.values()
                )
            )
            for name, stack in network.stacks.items()
        }
    shared, most = Shared(network, factors), folded_positions(network.device)

    def draws() -> None:
        with shared.over(inputs, most) as together:
            for _ in chunks(network, factors, inputs, num_draws, together):
                pass
        network.unbind()

    ratios = []
    with still(network), torch.inference_mode():
        for _ in range(1 + repeats):
            alone = _seconds(lambda: network.run(copied(inputs)), network.device)
            ratios.append(_seconds(draws, network.device) / alone)
    return statistics.median(ratios[1:])


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    start = time.perf_counter()
    call()
    if device.type == "cuda":  # its work is done later
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
