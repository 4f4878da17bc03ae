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
from bayeslora.adapters.frozen import BaseChangedError, FrozenWeights, check_frozen
from bayeslora.adapters.linearised import Linearised
from bayeslora.adapters.network import AdaptedNetwork
from bayeslora.adapters.sharing import Shared
from bayeslora.adapters.stack import Stack, Stacks, split_site
from bayeslora.adapters.targets import choose_targets

__all__ = [
    "SVD",
    "AdaptedNetwork",
    "Affine",
    "AffineFactors",
    "BaseChangedError",
    "Bias",
    "BiasFactors",
    "Bottleneck",
    "BottleneckFactors",
    "DoRA",
    "DoRAFactors",
    "Factors",
    "Family",
    "FrozenWeights",
    "Full",
    "FullFactors",
    "InputDropout",
    "Linearised",
    "LowRank",
    "SVDFactors",
    "SeededFactors",
    "Shared",
    "Stack",
    "Stacks",
    "check_frozen",
    "choose_targets",
    "split_site",
]
