"""Learning on: a fit whose prior is the posterior of an earlier one."""

import copy
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from bayeslora import bases, contracts, storage
from bayeslora.adapters import split_site
from bayeslora.carried import carried
from bayeslora.data import Columns, Reading
from bayeslora.distributions import Flat
from bayeslora.elbo import sites
from bayeslora.isolation import seeded
from bayeslora.methods import Method, make_method, own_fields
from bayeslora.mixture import Mixture
from bayeslora.posterior import Posterior
from bayeslora.program import Program
from bayeslora.tasks import Likelihood
from bayeslora.tasks.choosing import Given, asked
from bayeslora.tasks.classes import Classes
from bayeslora.types import Batch

logger = logging.getLogger(__name__)

NO_PRIOR = {
    "points": "its fit ends at a point, or several, which have no density that could be a prior",
    "noise": "a field, a search, the optimiser's path or another posterior made its noise as loud as it is, and "
    "not what data taught",
}
"""Why draws that a method does not claim to be those of a posterior are not a prior, by what it claims."""


class Earlier:
    """An earlier posterior, as the prior and the starting point of a fit.

    It stands where trained adapters do (`interop.Adapters`): it says which layers there are, and starts a program.

    Args:
        posterior: The earlier posterior; it is not changed.
    """

    reference = None

    def __init__(self, posterior: Posterior):
        self.posterior = posterior

    def method(self, given: Method | str | None, fields: Mapping[str, Any]) -> Method:
        """Return the earlier method, with some of its fields set.

        Raises:
            ValueError: If another one is asked for, or this one leaves no density.
        """
        own = self.posterior.method
        name = given if isinstance(given, str) else own.name if given is None else given.name
        if name != own.name:
            raise ValueError(
                f"method={name!r}: the prior is a posterior of {own.name!r}, whose sites {name!r} does not have: leave "
                "method out, or start from its centre, fit(…, init=posterior)."
            )
        if own.claims in NO_PRIOR:
            raise self._refused(NO_PRIOR[own.claims])
        chosen = make_method(own if given is None or isinstance(given, str) else given, **fields)
        asked_for_more = {*fields} if given is None or isinstance(given, str) else {"post_hoc"}
        names = own_fields(type(chosen)).names
        explicit = [n for n in names if n.startswith("prior_") and (n in fields or isinstance(given, Method))]
        if lost := [name for name in explicit if getattr(chosen, name) != getattr(own, name)]:
            values = ", ".join(f"{name}={getattr(chosen, name)!r:.100}" for name in lost)
            logger.warning("%s left aside: what is random has the posterior given as its prior.", values)
        is_field = "post_hoc" in names
        return chosen if not is_field or "post_hoc" in asked_for_more else chosen.replace(post_hoc=False)

    def likelihood(self, given: Given) -> Likelihood:
        """Return the earlier likelihood, which goes on learning what it learns.

        Raises:
            ValueError: If another kind is asked for.
        """
        own, kind = self.posterior.program.likelihood, asked(given)
        if kind is not None and kind is not type(own):
            raise ValueError(
                f"likelihood: the prior is a posterior about {own.name!r} labels, not {kind.name!r}: leave it out."
            )
        return copy.deepcopy(own)

    @property
    def classes(self) -> Classes | None:
        """The classes of the earlier fit; None if labels have no names."""
        names = self.posterior.class_names
        return Classes(names, self.posterior.columns.by_index) if names else None

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of the classes of the earlier fit."""
        return self.posterior.class_names

    @property
    def columns(self) -> Columns:
        """The columns that the earlier fit read."""
        return self.posterior.columns

    def reading(self, asked_for: Reading) -> Reading:
        """Return how data are to be read, given what is asked for: as the earlier fit did."""
        collator = asked_for.collator or self.posterior.data_collator
        return replace(asked_for, known=self.posterior.columns, classes=self.classes, collator=collator)

    @property
    def head(self) -> Mapping[str, Tensor]:
        """The parameters of the earlier task head, by their names in the model."""
        return self.posterior.network.head_state()

    def network_settings(self) -> dict[str, Any]:
        """Return targets, ranks and alphas for an `AdaptedNetwork` with the same layers."""
        record = storage.network_record(self.posterior.network)
        return {name: record[name] for name in ("targets", "rank", "alpha")}

    def start(self, program: Program) -> None:
        """Make the posterior the prior of a program over the same layers, and its state where the program starts.

        Raises:
            ValueError: If the program's base is another one, or the guide has no density.
        """
        before, network = self.posterior.program, program.network
        with storage.of_this_base():
            bases.put_new(network, bases.new_weights(before.network))
            storage.check_base(network, storage.fingerprint(before.network))
            bases.check(network, bases.fingerprint(before.network))
        state = {name: value.to(program.device) for name, value in storage.state(before).items()}
        storage.load_state(program, state)
        program.method.carry_on(program.guide)
        try:
            program.prior = carried(before.method, program, before.guide.state_dict())
        except ValueError as error:
            raise self._refused(str(error)) from None
        if (own := _without_prior(before)) is not None:
            raise self._refused(f"{own!r} has a flat prior, so that its Gaussian is the posterior of nothing")
        points = sorted({split_site(name)[1] for name in before.centre() if name not in program.prior.random})
        logger.info(
            "The prior is the posterior of %d examples%s.",
            before.stacks.num_examples,
            f"; {', '.join(points)}, which are points, start from it" if points else "",
        )

    def kept(self) -> Posterior:
        """Return the posterior to compare with later, without those that it learned from itself."""
        kept = copy.copy(self.posterior)
        kept.learned_from = None
        return kept

    def check(self, program: Program, batch: Batch) -> None:
        """Do nothing: there is no other network to compare with."""

    def _refused(self, why: str) -> ValueError:
        return ValueError(
            f"A posterior of {self.posterior.method.name!r} cannot be a prior: {why}. Start from its centre, "
            "fit(…, init=posterior), or fit the first data with a method that learns a density, such as 'blob', "
            "'scalabl', 'autoguide' or 'laplace'."
        )


def _without_prior(program: Program) -> str | None:
    """Return a site whose distribution followed from no prior: it was drawn from a flat one; None if there is none."""
    if program.prior is not None:
        return None
    claimed, centre = program.method.claimed_priors(program), program.centre()
    with pyro.validation_enabled(False), seeded(0), torch.no_grad():
        flat = {
            name for name, site in sites(poutine.trace(program.factors).get_trace()) if isinstance(site["fn"], Flat)
        }
        drawn = program.draw(2)
    varying = [name for name in centre if name in flat and not torch.equal(*drawn[name])]
    return next((name for name in varying if name not in claimed), None)


def of(prior: Posterior | None, init: Any) -> Earlier | None:
    """Return the earlier posterior that a fit is asked to learn on from; None without one.

    Raises:
        ArgumentError: If adapters to start from are given beside it.
    """
    if prior is None:
        return None
    if isinstance(prior, Mixture):
        raise contracts.ArgumentError(
            f"prior is a mixture of {len(prior.components)} posteriors, which has no one guide: give one of its "
            "components, prior=posterior.components[0]."
        )
    if init is not None:
        raise contracts.ArgumentError("init is given beside prior, where the fit starts: leave one out.")
    return Earlier(prior)
