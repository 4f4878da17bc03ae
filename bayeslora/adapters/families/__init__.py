"""Adapter families, one file each: which factors a layer has, and the layer's forward pass given them."""

from bayeslora.adapters.families.base import Family, Shapes, kaiming
from bayeslora.adapters.families.bottleneck import Bottleneck, BottleneckFactors
from bayeslora.adapters.families.dora import DoRA, DoRAFactors
from bayeslora.adapters.families.full import Affine, AffineFactors, Bias, BiasFactors, Full, FullFactors
from bayeslora.adapters.families.input_dropout import InputDropout, SeededFactors
from bayeslora.adapters.families.low_rank import Factors, LowRank
from bayeslora.adapters.families.svd import SVD, SVDFactors

IN_PEFT: tuple[Family, ...] = (DoRA(), LowRank())
"""What an adapter of PEFT's LoRA may be; the first fits whose settings its configuration has."""

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
