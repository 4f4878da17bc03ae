"""Adapters: factors in, logits out."""

from bayeslora.adapters.families import Affine, AffineFactors, Factors, Family, LowRank
from bayeslora.adapters.network import AdaptedNetwork, choose_targets
from bayeslora.adapters.stack import Stack, Stacks

__all__ = [
    "AdaptedNetwork",
    "Affine",
    "AffineFactors",
    "Factors",
    "Family",
    "LowRank",
    "Stack",
    "Stacks",
    "choose_targets",
]
