"""Whether a posterior can be trusted: draws for arviz, fits as chains, weights against the target."""

from bayeslora.diagnostics.groups import single
from bayeslora.diagnostics.joining import chains, to_arviz
from bayeslora.diagnostics.sampling import Gold, gold
from bayeslora.diagnostics.simulation import Calibration, sbc
from bayeslora.diagnostics.weights import KHat, LeaveOneOut, Weighed, khat, leave_one_out

__all__ = [
    "Calibration",
    "Gold",
    "KHat",
    "LeaveOneOut",
    "Weighed",
    "chains",
    "gold",
    "khat",
    "leave_one_out",
    "sbc",
    "single",
    "to_arviz",
]
