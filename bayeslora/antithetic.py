"""Draws in pairs, of which one is the mirror image of the other."""

import torch
from pyro.distributions import Delta, Independent, LowRankMultivariateNormal, MultivariateNormal, Normal
from pyro.infer.predictive import _predictive_vectorize_plate_name as DRAWS
from pyro.poutine.messenger import Messenger
from torch import Tensor

from bayeslora.distributions import ColumnNormal, Deviations, KroneckerNormal, LowRankNormal
from bayeslora.elbo import is_plate
from bayeslora.types import TraceSite

GAUSSIANS = (
    *(Normal, MultivariateNormal, LowRankMultivariateNormal),
    *(ColumnNormal, Deviations, KroneckerNormal, LowRankNormal),
)


class Antithetic(Messenger):
    r"""A handler under which the draws of a vectorised `Predictive` come in pairs, one after the other.

    The second of a pair is $2m - x$ at every Gaussian site, with x the first and m their mean, and equals x at all
    other random sites. Since these are shared, so is the Gaussian's covariance, and a Gaussian is symmetric: both have
    the guide's law. The average over a pair of what is linear in the Gaussian sites has no error, given the others; of
    an odd number, the last draw has no partner.

    Attributes:
        mirrored: Whether a Gaussian site has been met.
    """

    mirrored: bool = False

    def _pyro_post_sample(self, msg: TraceSite) -> None:
        if msg["is_observed"] or is_plate(msg) or not any(frame.name == DRAWS for frame in msg["cond_indep_stack"]):
            return
        fn, value = msg["fn"], msg["value"]
        while isinstance(fn, Independent):
            fn = fn.base_dist
        if isinstance(fn, Delta):  # a point, or a function of sites before it
            return
        is_gaussian = isinstance(fn, GAUSSIANS)
        self.mirrored |= is_gaussian
        msg["value"] = paired(value, msg["fn"].mean.expand_as(value) if is_gaussian else None)


def paired(value: Tensor, mean: Tensor | None) -> Tensor:
    """Replace every second draw, `[draw, …]`, by the mirror image of the one before it, or by that one itself."""
    first, second = value[0:-1:2], value[1::2]
    other = first if mean is None else mean[1::2] - (first - mean[0:-1:2])
    return torch.cat([torch.stack([first, other.to(second)], 1).flatten(0, 1), value[2 * len(second) :]])
