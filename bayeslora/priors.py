"""The distributions that priors are written with, one layer's worth: a plate makes them a stack's."""

import pyro
import pyro.distributions as dist

from bayeslora.adapters import Stack
from bayeslora.distributions import Flat
from bayeslora.types import FactorTuple


def normal(shape: tuple[int, ...], scale: float) -> dist.Distribution:
    """Independent N(0, `scale`²) entries, in one event of that shape.

    Args:
        shape: Shape of one layer's factor.
        scale: Standard deviation, in units of the weights.
    """
    return dist.Normal(0.0, scale).expand(shape).to_event(len(shape))


def flat(shape: tuple[int, ...]) -> Flat:
    """The improper uniform prior: with a point guide, plain maximum likelihood."""
    return Flat(shape)


def flat_factors(stack: Stack) -> FactorTuple:
    """All factors of a stack as sites of their names under the improper uniform prior; within `stack.layers`."""
    sites = {name: pyro.sample(stack.site(name), flat(shape)) for name, shape in stack.shapes.items()}
    return stack.family.factors(**sites)
