"""Several posteriors as the chains of one arviz object."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bayeslora.contracts import ArgumentError, Natural
from bayeslora.diagnostics.groups import PROBES, Groups, from_groups, gather
from bayeslora.isolation import public
from bayeslora.types import Approximation, BatchSize, Data, NumDraws, PosteriorLike, Seed


@public()
def chains(
    posteriors: Sequence[PosteriorLike],
    data: Data | None = None,
    num_draws: NumDraws = 100,
    *,
    approximation: Approximation | None = None,
    seed: Seed = 0,
    batch_size: BatchSize = 64,
    probes: Natural = PROBES,
) -> Any:
    """Return fits of the same network, from several seeds or folds, as the chains of one arviz object.

    `az.rhat` then compares the fits: near 1, they agree on a quantity up to their own spread. The quantities are
    ‖ΔW‖ by layer and, with data, the `logits` of its first examples. A and B themselves are not among them: they are
    known only up to an invertible matrix between them, and differ between fits that predict alike.

    Args:
        posteriors: Two or more; their layers have to be the same.
        data: Labelled data for predictions, log-likelihoods and logits; None for what needs no data.
        num_draws: Draws of each.
        approximation: As in `Posterior.predict`.
        seed: Seed of the first chain's draws; each further one has the next.
        batch_size: Examples per batch.
        probes: Examples whose logits are in the posterior group.

    Raises:
        ValueError: If there are fewer than two, or they do not have the same layers and numbers of draws.
    """
    if len(posteriors) < 2:
        raise ArgumentError(f"posteriors has {len(posteriors)}: give two or more, or call posterior.to_arviz.")
    made = [
        gather(each, data, num_draws, approximation, seed + index, batch_size, prior=False, probes=probes)
        for index, each in enumerate(posteriors)
    ]
    return from_groups(together(made))


def together(made: Sequence[Groups]) -> Groups:
    """Join groups of several posteriors along their chains."""
    first = made[0]
    for index, other in enumerate(made[1:], start=2):
        if other.coords.keys() != first.coords.keys() or any(
            list(other.coords[name]) != list(first.coords[name]) for name in first.coords
        ):
            raise ArgumentError(f"posteriors: number {index} does not have the layers, or the data, of the first.")
        if other.attrs["num_draws"] != first.attrs["num_draws"]:
            counts = f"{other.attrs['num_draws']} draws, and the first {first.attrs['num_draws']}"
            raise ArgumentError(f"posteriors: number {index} has {counts}: chains are of one length.")
    groups: dict[str, dict[str, np.ndarray]] = {}
    for group, values in first.groups.items():
        everywhere = [each.groups.get(group, {}) for each in made]
        shared = [name for name in values if all(name in part for part in everywhere)]
        joined = {name: np.concatenate([part[name] for part in everywhere]) for name in shared}
        if group == "observed_data":
            joined = values
        if joined:
            groups[group] = joined
    attrs = {name: _of_all([each.attrs.get(name) for each in made]) for name in first.attrs}
    return Groups(groups, first.coords, first.dims, attrs)


def _of_all(values: list[Any]) -> Any:
    return values[0] if all(value == values[0] for value in values) else ", ".join(map(str, values))


@public(lambda given: None)  # further settings are checked by what they are passed on to
def to_arviz(
    posteriors: PosteriorLike | Sequence[PosteriorLike],
    data: Data | None = None,
    num_draws: NumDraws = 100,
    **settings: Any,
) -> Any:
    """Return a posterior as an arviz object (`Posterior.to_arviz`), or a list of them as its chains (`chains`)."""
    if isinstance(posteriors, Sequence):
        return chains(posteriors, data, num_draws, **settings)
    return posteriors.to_arviz(data, num_draws, **settings)
