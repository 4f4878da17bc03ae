"""Studies: several methods, seeds and settings on the same data, in runs that are kept as they end."""

from bayeslora.study.comparing import compare
from bayeslora.study.comparison import Comparison

__all__ = ["Comparison", "compare"]
