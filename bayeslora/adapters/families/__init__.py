"""Adapter families, one file each: which factors a layer has, and the layer's forward pass given them."""

from bayeslora.adapters.families.base import Family, Shapes, kaiming
from bayeslora.adapters.families.bottleneck import Bottleneck, BottleneckFactors
from bayeslora.adapters.families.dora import DoRA, DoRAFactors
from bayeslora.adapters.families.full import Affine, AffineFactors, Bias, BiasFactors, Full, FullFactors
from bayeslora.adapters.families.input_dropout import InputDropout, SeededFactors
from bayeslora.adapters.families.low_rank import Factors, LowRank
from bayeslora.adapters.families.svd import SVD, SVDFactors

IN_PEFT: tuple[Family, ...] = (DoRA(), LowRank())
"""Families of PEFT's LoRA adapters; the first whose settings are in an adapter's configuration is its family."""

__all__ = [
    "IN_PEFT",
    "SVD",
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
    "LowRank",
    "SVDFactors",
    "SeededFactors",
    "Shapes",
    "kaiming",
]
