"""Make one posterior of several over one base."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from bayeslora.contracts import ArgumentError, NonNegative
from bayeslora.isolation import public
from bayeslora.metrics import FloatArray
from bayeslora.posterior import Posterior
from bayeslora.posterior.mixture import Mixture, check
from bayeslora.stacking import stacking_weights
from bayeslora.types import BatchSize, Data, NumDraws, Seed


@public()
def mixture(
    posteriors: Sequence[Posterior],
    weights: Literal["stacking"] | Sequence[NonNegative] | None = None,
    *,
    validation: Data | None = None,
    num_draws: NumDraws = 32,
    seed: Seed | None = 0,
    batch_size: BatchSize = 64,
) -> Mixture:
    r"""Make one posterior of several over one base: $p(y \mid x) = \sum_k w_k\, p_k(y \mid x)$.

    They may be of different methods, ranks and layers. Mixtures among them are taken apart.

    Args:
        posteriors: The posteriors.
        weights: w, one for each; None for equal ones; or `"stacking"`, those that maximise the mean log predictive
            density of rows that none of them was trained on.
        validation: Such rows, labelled. None for out-of-fold predictions, if all were fitted with the same `folds` of
            the same data.
        num_draws: Draws of each, for stacking with `validation`.
        seed: Seed of those draws.
        batch_size: Examples per batch, for those.

    Raises:
        ArgumentError: If there are no posteriors, or weights do not fit them, or are all 0.
        ValueError: If they have different bases or kinds of labels, or nothing to stack by.

    References:
        Yao et al. (2018), [Using Stacking to Average Bayesian Predictive Distributions](https://arxiv.org/abs/1704.02030).
    """
    if not posteriors:
        raise ArgumentError("posteriors=[]: give one posterior at least.")
    if validation is not None and weights != "stacking":
        raise ArgumentError("validation is for weights='stacking': leave it out, or stack.")
    stack: FloatArray | None = None
    if weights == "stacking":
        stack = _densities(posteriors, validation, num_draws, seed, batch_size)
        shares = stacking_weights(stack)
    else:
        shares = np.ones(len(posteriors)) if weights is None else np.asarray(weights, dtype=np.float64)
        if len(shares) != len(posteriors) or not 0 < shares.sum() < math.inf:
            raise ArgumentError(
                f"weights={weights!r}: give one for each of {len(posteriors)} posteriors, and one above 0."
            )
    components, own, sizes = [], [], []
    for posterior, share in zip(posteriors, shares / shares.sum(), strict=True):
        parts = _taken_apart(posterior)
        sizes.append(len(parts))
        for component, weight in parts:
            components.append(component)
            own.append(share * weight)
    check(components)
    return Mixture(components, own, densities=stack, sizes=sizes)


def _densities(
    posteriors: Sequence[Posterior], validation: Data | None, num_draws: int, seed: int | None, batch_size: int
) -> FloatArray:
    """Return log predictive densities of rows that no posterior was trained on, in nats, `[posterior, row]`."""
    if validation is not None:
        return np.stack([_density(each, validation, num_draws, seed, batch_size) for each in posteriors])
    found = [each.tuning.log_density for each in posteriors if each.tuning is not None]
    rows = [each for each in found if each is not None]
    if len(rows) < len(posteriors):
        raise ValueError(
            "weights='stacking' needs predictions of rows that no posterior was trained on: pass validation=…, or fit "
            "each with folds=…."
        )
    digests = {(each.tuning.digest, len(row)) for each, row in zip(posteriors, rows, strict=True) if each.tuning}
    if len(digests) > 1:
        raise ValueError(
            "weights='stacking': the posteriors were fitted with folds of different data: pass validation=…, or fit "
            "them on the same."
        )
    return np.stack(rows)


def _density(posterior: Posterior, data: Data, num_draws: int, seed: int | None, batch_size: int) -> FloatArray:
    found, labels = posterior._labelled(posterior._source(data, name="validation"), num_draws, seed, batch_size)
    prediction = posterior._prediction(found)
    return prediction.log_density(labels)


def _taken_apart(posterior: Posterior) -> list[tuple[Posterior, float]]:
    """Return the components of a mixture, at its temperature, and their weights; or the posterior itself."""
    if not isinstance(posterior, Mixture):
        return [(posterior, 1.0)]
    found = []
    for component, weight in zip(posterior.components, posterior.weights.tolist(), strict=True):
        if posterior.temperature != 1:
            component = component._at_temperature(component.temperature * posterior.temperature)
        found.append((component, weight))
    return found
