r"""The posterior of earlier data as the prior of new data.

A guide q over random sites z and points is carried on as the prior $p'(z) = q(z)$: the program of the prior runs the
guide itself, so that dependent sites stay dependent, and the loss has the divergence of the new guide from the old
one, in closed form where there is one. Points have no density: they have the prior that the method gives them.
"""

from collections.abc import Callable, Mapping

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from torch import Tensor, nn

from bayeslora.distributions import Enumerated, FixedNoise
from bayeslora.elbo import is_plate, sites
from bayeslora.fitted import FittedProgram
from bayeslora.isolation import seeded
from bayeslora.methods import Method
from bayeslora.types import FactorsByStack, TraceSite


class Carried(nn.Module):
    """A guide that has been fitted, as a prior: it is frozen, and stays in evaluation mode.

    Args:
        guide: The guide; it is not copied.
        method: The method that it is of.

    Attributes:
        random: Names of the sites that it has a density over, and of what it computes them from.

    Raises:
        ValueError: If there are none.
    """

    def __init__(self, guide: nn.Module, method: Method):
        super().__init__()
        self.method = method
        self.guide = guide.eval().requires_grad_(False)
        with pyro.validation_enabled(False), seeded(0), torch.no_grad():
            first, second = (dict(sites(poutine.trace(guide).get_trace())) for _ in range(2))
        self.random = {name for name, site in first.items() if _is_random(site, second[name])}
        if all(first[name]["infer"].get("is_auxiliary") for name in self.random):
            raise ValueError(
                "it has no density over its sites, which are points, or noise about which nothing is learned"
            )

    def train(self, mode: bool = True) -> "Carried":
        """Stay in evaluation mode."""
        return super().train(False)

    def factors(self, prior: Callable[[], FactorsByStack]) -> FactorsByStack:
        """Sample the random sites from the guide and all others from a method's prior, and return the factors.

        Args:
            prior: The method's prior.
        """
        with poutine.block(hide_fn=lambda site: site["type"] == "sample" and not self._is_seen(site)):
            trace = poutine.trace(self.guide).get_trace()
        drawn = {name: site["value"] for name, site in sites(trace) if name in self.random}

        def is_hidden(site: TraceSite) -> bool:
            # A trace has room for one plate of a name, and for one site; and what a program observes has counted once.
            return site["type"] == "sample" and (site["name"] in drawn or is_plate(site) or site["is_observed"])

        with poutine.block(hide_fn=is_hidden):
            return poutine.condition(prior, data=drawn)()

    def distribution(self, site: str) -> pyro.distributions.Distribution:
        """Return the guide's distribution of one site, batch shape `[layer]`, at the means of those before it."""
        with pyro.validation_enabled(False), torch.no_grad():
            return dict(sites(poutine.trace(self.guide).get_trace()))[site]["fn"]

    def computes(self, site: str) -> bool:
        """Whether the guide computes a site from what it draws, as Pyro's automatic guides do."""
        return isinstance(self.distribution(site), Delta)

    def _is_seen(self, site: TraceSite) -> bool:
        return site["name"] in self.random or is_plate(site)


def carried(method: Method, program: FittedProgram, state: Mapping[str, Tensor]) -> Carried:
    """Return the guide of an earlier fit as the prior of a program over the same layers.

    Its terms weigh what those of the program's own method do.

    Args:
        method: The method of the earlier fit.
        program: The program, whose method has the same sites.
        state: The state of the guide.

    Raises:
        ValueError: If the guide has no density.
    """
    temperature = getattr(program.method, "temperature", None)
    own = method if temperature is None else method.replace(temperature=temperature)
    guide = own.guide(program.stacks).to(program.device, program.network.dtype)
    guide.load_state_dict(state)
    return Carried(guide, method)


def _is_random(site: TraceSite, again: TraceSite) -> bool:
    """Whether a site has a density, given two draws; a point may be computed from a latent that is random."""
    if isinstance(site["fn"], FixedNoise | Enumerated):
        return False
    return not isinstance(site["fn"], Delta) or not torch.equal(site["value"], again["value"])
