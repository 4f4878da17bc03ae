"""Densities at draws: the prior's, the guide's, and those of the target that a method claims to approximate."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from bayeslora.adapters import split_site
from bayeslora.distributions import Enumerated, FixedNoise, Flat
from bayeslora.drawing import Drawn
from bayeslora.elbo import OWN_WEIGHT
from bayeslora.elbo import sites as sites_of
from bayeslora.isolation import seeded
from bayeslora.program import Program, evaluating
from bayeslora.types import Sites, TraceSite

DRAWS = "_draws"
"""The plate over draws."""


class NoDensityError(ValueError):
    """A posterior has no densities that could be compared; the message says which, and why."""


@dataclass(frozen=True)
class Densities:
    r"""Log-densities of random sites at draws from the guide, in nats, and how the likelihood enters beside them.

    The target is $p(z)\, p(y \mid z)^{1/T}$ over the sites $z$ that the guide draws. Sites at a point are not among
    them: whatever is said of the others is said given the points.

    Args:
        log_prior: ln p by site, `[draw]`.
        log_guide: ln q by site, `[draw]`. Pyro's automatic guides may have other sites than the prior.
        temperature: T, the weight of the divergence in the loss times the number of examples; 1 is Bayes' rule.
    """

    log_prior: Mapping[str, Tensor]
    log_guide: Mapping[str, Tensor]
    temperature: float

    @property
    def divergence(self) -> Tensor:
        """Return ln q − ln p over all sites, `[draw]`."""
        return sum(self.log_guide.values()) - sum(self.log_prior.values())  # type: ignore[return-value]

    def of_stack(self, stack: str) -> "Densities":
        """Return the densities of one stack's sites."""
        prior, guide = (
            {name: value for name, value in part.items() if _stack(name) == stack}
            for part in (self.log_prior, self.log_guide)
        )
        return Densities(prior, guide, self.temperature)


def _stack(site: str) -> str:
    """Return the stack of a site; Pyro's names of joint samples are `_<guide>.<stack>_latent`."""
    stack, name = split_site(site)
    return name.removesuffix("_latent") if stack.startswith("_") else stack


def draw_with_latents(program: Program, num_draws: int, seed: int | None) -> tuple[Sites, Sites]:
    """Draw every site as `Posterior.draw` does, and with them what an automatic guide computes them from.

    Returns:
        Sites, `[draw, layer, …]`, and latents, which are no sites of the prior.
    """
    drawn = Drawn(program, num_draws, seed, auxiliary=True).together()
    own = {name: value for name, value in drawn.items() if name in program.centre()}
    return own, {name: value for name, value in drawn.items() if name not in own}


@seeded(0)  # everything that counts is given: what programs draw besides must not advance the caller's state
def densities(program: Program, sites: Sites, latents: Sites) -> Densities:
    """Return the densities at draws.

    Args:
        program: The program.
        sites: Draws of every site, `[draw, layer, …]`.
        latents: What an automatic guide drew them from.

    Raises:
        NoDensityError: If nothing is random, or a random site has no density in the guide, or none in the prior, or if
            several temperatures make no one target.
    """
    num_draws = len(next(iter(sites.values())))
    q = dict(_run(program, program.guide, {**sites, **latents}, num_draws, keep_points=False))
    random = {name: site for name, site in q.items() if is_random(site)}
    if not random.keys() & (sites.keys() | latents.keys()):  # a guide's own factors are nothing that it draws
        raise NoDensityError("Every site is at a point, or is noise about which nothing is learned.")
    log_guide = {name: _log_prob(site, num_draws) for name, site in random.items()}
    own = program.method.claimed_priors(program)
    log_prior, weights, scales = {}, {}, set()
    for name, site in _run(program, program.factors, {**sites, **latents}, num_draws):
        if name in q and isinstance(q[name]["fn"], FixedNoise):
            continue  # drawn as the prior draws it
        if name not in own and isinstance(site["fn"], Flat):
            if is_random(q[name]) or _varies(sites[name]):
                raise NoDensityError(f"{name!r} has a flat prior, which is not a distribution.")
            continue
        # What a program of the user's scales, masks and observes itself counts beside the weight of the divergence.
        is_common = name in own or (name in q and not q[name]["infer"].get(OWN_WEIGHT))
        if name in own or name in q:
            scales.add(1 / program.stacks.num_examples if name in own else float(q[name]["scale"]))
        if not is_common:
            weights[name] = float(site["scale"])
        mask = q[name]["mask"] if is_common else site["mask"]
        log_prior[name] = _log_prob({**site, "mask": mask, "fn": own.get(name, site["fn"])}, num_draws)
    if len(scales) > 1:
        raise NoDensityError(
            f"Divergences of different sites have different weights, from {min(scales):.3g} to {max(scales):.3g}: the "
            "loss is not that of one tempered posterior."
        )
    (scale,) = scales
    log_prior = {name: value * (weights.get(name, scale) / scale) for name, value in log_prior.items()}
    return Densities(log_prior, log_guide, scale * program.stacks.num_examples)


def is_random(site: TraceSite) -> bool:
    """Return whether a guide has learned a site's distribution: not a point, nor several in turn, nor fixed noise."""
    fn = site["fn"]
    if isinstance(fn, Enumerated | FixedNoise):
        return False
    # An automatic guide draws from its own latents, and says in a point's density what the change of variables costs.
    return not isinstance(fn, Delta) or bool(torch.as_tensor(fn.log_density).ne(0).any())


def prior_sites(program: Program, num_draws: int, seed: int | None) -> dict[str, Tensor] | None:
    """Draw every site from the prior, `[draw, layer, …]`; points under flat priors stay where the posterior has them.

    Returns:
        None if all sites are such points, if a site that the guide draws has a flat prior, or if the prior weighs its
        draws by factors or observations of its own.
    """
    with pyro.validation_enabled(False), seeded(0):
        own, centre = program.method.claimed_priors(program), program.centre()
        prior = dict(sites_of(poutine.trace(program.factors).get_trace()))
        drawn = program.draw(2)
    improper = {name for name in centre if name not in own and isinstance(prior[name]["fn"], Flat)}
    observed = any(site["is_observed"] and not site["infer"].get("_deterministic") for site in prior.values())
    if observed or improper == centre.keys() or any(_varies(drawn[name]) for name in improper):
        return None
    points = {name: centre[name].expand(num_draws, *centre[name].shape) for name in improper}
    with seeded(seed), torch.no_grad():
        found = {name: fn.sample((num_draws,)) for name, fn in own.items()} | points
        found |= {name: site["value"] for name, site in _run(program, program.factors, found, num_draws)}
    return {
        # Plates that a site is in none of have a dimension of size 1.
        name: found[name]
        .reshape(-1, *found[name].shape[found[name].dim() - value.dim() :])
        .to(value)
        .expand(num_draws, *value.shape)
        for name, value in centre.items()
    }


def layer_axes(program: Program) -> dict[str, int]:
    """Return, for the sites of the prior that are in a plate of layers, its axis counted from the right, below 0."""
    plates = {stack.layers.name for stack in program.stacks.values()}
    with pyro.validation_enabled(False), seeded(0):
        prior = sites_of(poutine.trace(program.factors).get_trace())
    return {
        name: frame.dim - site["fn"].event_dim
        for name, site in prior
        for frame in site["cond_indep_stack"]
        if frame.name in plates and frame.dim is not None
    }


def _varies(draws: Tensor) -> bool:
    return bool((draws[1:] != draws[:1]).any())


def _run(
    program: Program, run: Any, values: Sites, num_draws: int, keep_points: bool = True
) -> Iterator[tuple[str, TraceSite]]:
    """Run prior or guide under a plate of draws, at given values of its sites, and iterate over its sites.

    Args:
        program: The program.
        run: Its prior or guide.
        values: Values, `[draw, …]`.
        num_draws: Size of the plate.
        keep_points: Whether sites at points get values, too; a guide computes its own.
    """
    with pyro.validation_enabled(False), evaluating(program.guide), torch.no_grad():
        plain = dict(sites_of(poutine.trace(run).get_trace()))
        depth = max([1, *(-frame.dim for site in plain.values() for frame in site["cond_indep_stack"] if frame.dim)])
        # The plate is left of all others, also where a site is in none.
        given = {
            name: value.reshape(
                len(value), *(1,) * (1 + depth + plain[name]["fn"].event_dim - value.dim()), *value.shape[1:]
            )
            for name, value in values.items()
            if name in plain and (keep_points or not isinstance(plain[name]["fn"], Delta))
        }
        with pyro.plate(DRAWS, num_draws, dim=-1 - depth):
            trace = poutine.trace(poutine.condition(run, data=given)).get_trace()
    return sites_of(trace)


def _log_prob(site: TraceSite, num_draws: int) -> Tensor:
    """Return the log-density of each draw, summed over layers, without the scale with which it enters the loss."""
    fn = site["fn"]
    if isinstance(fn, Delta):
        log_prob = torch.as_tensor(fn.log_density)
    elif hasattr(fn, "log_prob") and type(fn).log_prob is not torch.distributions.Distribution.log_prob:
        log_prob = fn.log_prob(site["value"])
    else:
        raise NoDensityError(f"{site['name']!r} is drawn from {type(fn).__name__}, which has no density.")
    (dim,) = (frame.dim for frame in site["cond_indep_stack"] if frame.name == DRAWS)
    log_prob = scale_and_mask(log_prob, 1.0, site["mask"])
    log_prob = log_prob.expand(torch.broadcast_shapes(log_prob.shape, (num_draws, *(1,) * (-1 - dim))))
    return log_prob.reshape(num_draws, -1).sum(1).detach().cpu().double()
