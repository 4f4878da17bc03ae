"""Figures, in matplotlib."""

from bayeslora.plots.fits import dial, layers, losses, simplex
from bayeslora.plots.scores import regression, reliability, risk_coverage, uncertainties
from bayeslora.plots.studies import boxes, differences

__all__ = [
    "boxes",
    "dial",
    "differences",
    "layers",
    "losses",
    "regression",
    "reliability",
    "risk_coverage",
    "simplex",
    "uncertainties",
]
