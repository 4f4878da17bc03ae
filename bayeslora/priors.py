"""Distributions for writing priors, for a single layer: a plate makes them a stack's."""

import pyro
import pyro.distributions as dist

from bayeslora.adapters import Stack
from bayeslora.distributions import Flat
from bayeslora.types import FactorTuple


def normal(shape: tuple[int, ...], scale: float) -> dist.Distribution:
    """Return the distribution of independent N(0, `scale`²) entries, as one event of a given shape.

    Args:
        shape: Shape of one layer's factor.
        scale: Standard deviation, in units of the weights.
    """
    return dist.Normal(0.0, scale).expand(shape).to_event(len(shape))


def flat(shape: tuple[int, ...]) -> Flat:
    """Return the improper uniform prior, which means maximum likelihood for a point guide."""
    return Flat(shape)


def flat_factors(stack: Stack) -> FactorTuple:
    """Sample all factors of a stack from the improper uniform prior, each at a site with its name.

    To be called within `stack.layers`.
    """
    sites = {name: pyro.sample(stack.site(name), flat(shape)) for name, shape in stack.shapes.items()}
    return stack.family.factors(**sites)
