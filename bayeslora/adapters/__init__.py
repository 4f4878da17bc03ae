"""Adapters: factors in, logits out."""

from bayeslora.adapters.families import (
    SVD,
    Affine,
    AffineFactors,
    Bias,
    BiasFactors,
    Bottleneck,
    BottleneckFactors,
    DoRA,
    DoRAFactors,
    Factors,
    Family,
    Full,
    FullFactors,
    InputDropout,
    LowRank,
    SeededFactors,
    SVDFactors,
)
from bayeslora.adapters.linear import Linearised
from bayeslora.adapters.network import AdaptedNetwork, choose_targets
from bayeslora.adapters.stack import Stack, Stacks, split_site

__all__ = [
    "SVD",
    "AdaptedNetwork",
    "Affine",
    "AffineFactors",
    "Bias",
    "BiasFactors",
    "Bottleneck",
    "BottleneckFactors",
    "DoRA",
    "DoRAFactors",
    "Factors",
    "Family",
    "Full",
    "FullFactors",
    "InputDropout",
    "Linearised",
    "LowRank",
    "SVDFactors",
    "SeededFactors",
    "Stack",
    "Stacks",
    "choose_targets",
    "split_site",
]
