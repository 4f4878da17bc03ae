"""A lean mean-field ELBO."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask
from pyro.infer import TraceMeanField_ELBO
from pyro.poutine import Trace
from torch import Tensor

from bayeslora.distributions import FixedNoise, Flat, kl_divergence
from bayeslora.types import TraceSite

OWN_WEIGHT = "own_weight"
"""In `infer` of a guide's site at a point: the prior's scale and mask count for ln p, and not those of the guide."""


class MeanFieldELBO(TraceMeanField_ELBO):
    """Pyro's mean-field ELBO without the densities that an analytic KL makes useless.

    `TraceMeanField_ELBO` evaluates the log-density of every site in model and guide, and then uses the closed-form KL
    where there is one. This one evaluates densities only of observed sites, and of sites whose KL has no closed form
    (estimated at the draw). The value is the same.

    Args:
        num_particles: Draws per evaluation, in one vectorised plate.
    """

    def __init__(self, num_particles: int = 1):
        # One plate: layers in the guide, examples in the likelihood. Not given this, Pyro runs the model to find out.
        super().__init__(num_particles, max_plate_nesting=1, vectorize_particles=True)

    def terms(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any) -> tuple[dict[str, Tensor], Any]:
        """Return the terms of the negative ELBO by site, and what the model returned.

        The terms sum to the negative ELBO. Observed sites have their negative log-likelihood, latent sites their KL,
        and factors of the guide their value.

        Raises:
            ValueError: If prior and guide differ in their sites, or several particles meet plates within one another.
        """
        try:
            guide_trace = poutine.trace(self._vectorized_num_particles(guide)).get_trace(*args)
        except ValueError as error:
            if "num_particles_vectorized" not in str(error):
                raise
            raise ValueError(
                f"num_particles={self.num_particles}: the program has plates within that of the layers, where several "
                "draws have no dimension of their own. Use num_particles=1, and more epochs."
            ) from error
        replayed = poutine.replay(self._vectorized_num_particles(model), trace=guide_trace)
        model_trace = poutine.trace(replayed).get_trace(*args)
        terms = {}
        for name, site in sites(model_trace):
            if site["is_observed"]:
                terms[name] = -_log_prob_sum(site)
            elif name not in guide_trace:
                raise ValueError(f"The prior samples {name!r}, which the guide does not have.")
            elif not _is_free(site, guide_trace.nodes[name]):
                terms[name] = _kl(site, guide_trace.nodes[name])
        for name, site in sites(guide_trace):
            if name not in model_trace:
                if not site["infer"].get("is_auxiliary"):
                    raise ValueError(f"The guide samples {name!r}, which the prior does not have.")
                terms[name] = _log_prob_sum(site)
        if self.num_particles > 1:
            terms = {name: term / self.num_particles for name, term in terms.items()}
        return terms, model_trace.nodes["_RETURN"]["value"]

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        terms, _ = self.terms(model, guide, *args)
        return total(terms)


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """Return the sum of the terms of a loss."""
    return torch.stack(list(terms.values())).sum()


def _kl(site: TraceSite, guide_site: TraceSite) -> Tensor:
    if not guide_site["fn"].has_rsample:
        raise ValueError(
            f"Site {site['name']!r} is drawn from {type(guide_site['fn']).__name__}, which has no reparameterised "
            "draws: the ELBO's gradient would be wrong. Give the guide a distribution with `rsample`."
        )
    try:
        kl = kl_divergence(guide_site["fn"], site["fn"])
    except NotImplementedError:  # torch's way to say that this pair has no closed form
        return _log_prob_sum(guide_site) - _log_prob_sum({**site, "scale": guide_site["scale"]})
    if isinstance(guide_site["fn"], Delta):
        density = guide_site["fn"].log_density  # which Pyro's divergence of a point ignores
        if guide_site["infer"].get(OWN_WEIGHT):  # what a program scales or masks itself is ln p alone
            own = scale_and_mask(kl, site["scale"], site["mask"]).sum()
            return own + scale_and_mask(density, guide_site["scale"], guide_site["mask"]).sum()
        kl = kl + density
    return scale_and_mask(kl, guide_site["scale"], guide_site["mask"]).sum()


def sites(trace: Trace) -> Iterator[tuple[str, TraceSite]]:
    """Iterate over the names and records of a trace's sample sites, except those of plates."""
    return ((name, site) for name, site in trace.nodes.items() if site["type"] == "sample" and not is_plate(site))


def is_plate(site: TraceSite) -> bool:
    """Return whether a sample site is only a plate's record of its subsample."""
    return type(site["fn"]).__name__ == "_Subsample"


def _is_free(site: TraceSite, guide_site: TraceSite) -> bool:
    """Return whether a site has no term: a point under a flat prior, or noise about which nothing is learned."""
    if isinstance(guide_site["fn"], FixedNoise):
        return True
    return isinstance(site["fn"], Flat) and isinstance(guide_site["fn"], Delta)


def _log_prob_sum(site: TraceSite) -> Tensor:
    return scale_and_mask(site["fn"].log_prob(site["value"]), site["scale"], site["mask"]).sum()
