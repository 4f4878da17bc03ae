"""Draws that run as one pass of `torch.vmap`, where they cannot run as rows of one batch."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora.adapters import folding
from bayeslora.adapters.rows import copied, positions
from bayeslora.adapters.stack import draws_at
from bayeslora.isolation import seeded
from bayeslora.limits import clause
from bayeslora.networks import logits_of
from bayeslora.origins import package
from bayeslora.places import LIBRARIES
from bayeslora.surroundings import called
from bayeslora.types import Batch

POSITIONS = 64
"""Positions of a draw up to which its pass is mapped on a CPU: it takes 0.85 to 0.94 × the time of a loop there, and
1.3 × at 16 × 6."""

ACCELERATED_POSITIONS = 4096
"""Positions of all draws that are mapped together on an accelerator, where a pass of few leaves it idle."""


def num_together(network: Any, inputs: Batch) -> int | None:
    """Return how many draws to map together; None if a loop over them is faster, or gradients are needed.

    Activation checkpointing could not repeat a mapped pass.
    """
    if torch.is_grad_enabled():
        return None
    found = positions(inputs)
    if network.device.type == "cpu":
        return max(1, ACCELERATED_POSITIONS // found) if found <= POSITIONS else None
    return ACCELERATED_POSITIONS // found if 2 * found <= ACCELERATED_POSITIONS else None


def logits(network: Any, factors: Mapping[str, Any], inputs: Batch, together: int | None = None) -> Tensor:
    """Return the logits of draws, `[draw, batch, …]`, a number of them at once; factors are unbound afterwards."""

    def one(its_factors: Mapping[str, Any]) -> Tensor:
        network.bind(its_factors)
        return logits_of(called(network.model, copied(inputs)))

    def mapped(its_factors: Mapping[str, Any]) -> Tensor:
        with network.alone():  # what a network keeps would go on into the next pass, or be a tensor of this map
            return torch.vmap(one)(its_factors)

    num_draws = network.num_draws(factors)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*batching rule", UserWarning)
            starts = range(0, num_draws, together or num_draws)
            return torch.cat([mapped(draws_at(factors, slice(at, at + starts.step))) for at in starts])
    finally:
        network.unbind()


@seeded(0)
def measure(network: Any, factors: Mapping[str, Any], inputs: Batch) -> str | None:
    """Compare two draws that are mapped with draws one by one, on two examples; return what is in the way, or None.

    Args:
        network: An `AdaptedNetwork`; its factors are unbound afterwards.
        factors: Stack name to factors, `[*draw, layer, …]`; the draws are made around the first.
        inputs: Keyword arguments of the model.
    """
    if _is_watched(network.model):
        return "its hooks, which may keep what they see, would see tensors of the map"
    try:
        with torch.no_grad(), folding.still(network):
            draws, few = folding.moved(network, factors, 2), folding.few_examples(inputs)
            mapped = logits(network, draws, few)
            alone = torch.stack([folding.logits(network, draws_at(draws, index), few) for index in (0, 1)])
            worst = folding.distance(mapped, alone)
    except Exception as error:  # whatever cannot be mapped, such as a branch by the data
        return clause(error)
    finally:
        network.unbind()
    return None if worst <= folding.tolerance(network.model) else f"mapped and one by one they differ by {worst:.2g}"


def _is_watched(model: nn.Module) -> bool:
    """Return whether a model has forward hooks of the user's."""
    hooks = [hook for module in model.modules() for hook in module._forward_hooks.values()]
    return any(package(getattr(hook, "__module__", None)) not in LIBRARIES for hook in hooks)
