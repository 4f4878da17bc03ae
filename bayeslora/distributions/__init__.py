"""Distributions that Pyro lacks, one file per kind, which also registers the kind's KL divergences."""

from torch.distributions import kl_divergence

from bayeslora.distributions.columns import ColumnNormal, SharedColumns, StandardColumns
from bayeslora.distributions.deviations import Deviations, SharedNoise
from bayeslora.distributions.dirichlet import Dirichlet, expected_square_sum
from bayeslora.distributions.kronecker import KroneckerNormal
from bayeslora.distributions.low_rank import LowRankNormal
from bayeslora.distributions.masks import Mask, RelaxedMask
from bayeslora.distributions.noise import FixedNoise, Seed
from bayeslora.distributions.points import Enumerated, Flat
from bayeslora.distributions.wishart import WishartCholesky

__all__ = [
    "ColumnNormal",
    "Deviations",
    "Dirichlet",
    "Enumerated",
    "FixedNoise",
    "Flat",
    "KroneckerNormal",
    "LowRankNormal",
    "Mask",
    "RelaxedMask",
    "Seed",
    "SharedColumns",
    "SharedNoise",
    "StandardColumns",
    "WishartCholesky",
    "expected_square_sum",
    "kl_divergence",
]
