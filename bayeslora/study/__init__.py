"""Studies: several methods, seeds and settings on the same data, in runs that are kept as they end."""

from bayeslora.study.comparing import compare
from bayeslora.study.comparison import Comparison
from bayeslora.study.robustness import Sweep
from bayeslora.study.sweeping import sweep

__all__ = ["Comparison", "Sweep", "compare", "sweep"]
