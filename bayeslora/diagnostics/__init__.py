"""Whether a posterior can be trusted: draws for arviz, fits as chains."""

from bayeslora.diagnostics.chains import chains, to_arviz
from bayeslora.diagnostics.groups import single

__all__ = ["chains", "single", "to_arviz"]
