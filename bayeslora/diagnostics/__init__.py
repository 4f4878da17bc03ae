"""Whether a posterior can be trusted: draws for arviz, fits as chains, weights against the target."""

from bayeslora.diagnostics.groups import single
from bayeslora.diagnostics.joining import chains, to_arviz
from bayeslora.diagnostics.predictive import PredictiveCheck, Statistic, predictive_check
from bayeslora.diagnostics.sampling import Gold, gold
from bayeslora.diagnostics.simulation import Calibration, sbc
from bayeslora.diagnostics.weights import KHat, LeaveOneOut, Weighed, khat, leave_one_out

__all__ = [
    "Calibration",
    "Gold",
    "KHat",
    "LeaveOneOut",
    "PredictiveCheck",
    "Statistic",
    "Weighed",
    "chains",
    "gold",
    "khat",
    "leave_one_out",
    "predictive_check",
    "sbc",
    "single",
    "to_arviz",
]
