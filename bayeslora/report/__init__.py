"""Reports: one self-contained page of a posterior, or of a comparison."""

from bayeslora.report.fitted import report
from bayeslora.report.studies import of_comparison

__all__ = ["of_comparison", "report"]
