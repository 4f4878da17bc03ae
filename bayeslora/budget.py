"""Compare methods at equal size: find the rank that a budget of learned numbers allows."""

from bisect import bisect_right
from typing import Any

from torch import nn

from bayeslora.adapters import AdaptedNetwork
from bayeslora.contracts import Count, checked
from bayeslora.isolation import exclusive, seeded
from bayeslora.methods import Method, MethodName, fields_for_fit, make_method
from bayeslora.types import Targets


@checked(fields=fields_for_fit)
def rank_for_budget(
    model: nn.Module,
    method: Method | MethodName,
    budget: Count,
    *,
    targets: Targets = "all-linear",
    **hyperparameters: Any,
) -> int:
    """Return the largest rank at which a method's adapters learn at most `budget` numbers.

    The count is that of the guide's parameters, `Posterior.summary()["adapters"]`. A task head that is trained as a
    point is the same for every method, and does not count.

    Args:
        model: The base model.
        method: A name in `bayeslora.METHODS`, or an instance.
        budget: Numbers to learn.
        targets: Layers to adapt, as in `fit`.
        hyperparameters: Fields of the method.

    Raises:
        ValueError: If the budget is too small for rank 1, or the method's adapters have no rank.
    """
    chosen = make_method(method, **hyperparameters)

    def network(rank: int) -> AdaptedNetwork:
        return AdaptedNetwork(
            model, chosen.family, targets, rank, head_family=chosen.head_family, start_rank=chosen.start_rank
        )

    def size(rank: int) -> int:
        with exclusive(), seeded(0):  # guides start from random values
            guide = chosen.guide(network(rank).stacks)
        return sum(parameter.numel() for parameter in guide.parameters() if parameter.requires_grad)

    least = size(1)
    if not chosen.family.has_rank:
        raise ValueError(f"{chosen.name!r} has no rank to choose: on these layers it learns {least:,} numbers.")
    if least > budget:
        raise ValueError(f"budget={budget}: even at rank 1, {chosen.name!r} learns {least:,} numbers on these layers.")
    largest = min(min(stack.d_in, stack.d_out) for stack in network(1).stacks.values() if not stack.in_head)
    # Doubling comes first, so that no guide learns more than about twice the budget.
    rank = 1
    while chosen.start_rank(2 * rank) <= largest and size(2 * rank) <= budget:
        rank *= 2
    candidates = [r for r in range(rank, 2 * rank + 1) if chosen.start_rank(r) <= largest]
    return candidates[bisect_right(candidates, budget, key=size) - 1]
