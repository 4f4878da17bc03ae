"""Programs that users write: does a draw get among others what it gets alone?

Prediction runs guide and prior with a dimension for draws on the left, which a program that was written for one draw
may take for another dimension. It would fail after training, or give every draw something of the others.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from torch import Tensor

from bayeslora.diagnostics.densities import NoDensityError, densities, draw_with_latents
from bayeslora.distributions import FixedNoise
from bayeslora.elbo import OWN_WEIGHT
from bayeslora.elbo import sites as sites_of
from bayeslora.isolation import seeded
from bayeslora.methods import Method
from bayeslora.methods.base import own_fields
from bayeslora.program import Program, evaluating
from bayeslora.types import Sites, TraceSite

logger = logging.getLogger(__name__)

DRAWS = 3
"""Draws that are compared: enough to be mistaken for no dimension of size 1 or 2."""

ALIKE = 1e-4
"""Largest difference that rounding may make, relative to the largest number, or to 1."""

ADVICE = (
    "Every draw adds a dimension on the left: count dimensions from the right, as in scale[..., None, None], dim=-1 or "
    ".sum((-2, -1)), and compute nothing over all of a tensor."
)


def check(program: Program) -> None:
    """Compare what a user's program gives several draws at once with what it gives each by itself.

    Raises:
        ValueError: If they differ, if several at once fail, or if factors do not follow from the sites.
    """
    method = program.method
    if not _is_users(method) or method.num_draws(program.guide) is not None:
        return
    with torch.no_grad(), pyro.validation_enabled(False), evaluating(program.guide):
        with _explained(method, "guide"):
            sites, latents = draw_with_latents(program, DRAWS, 0)
        with seeded(1):
            alone = [program.factors_at(_draw_of(sites, index)) for index in range(DRAWS)]
        with seeded(2), _explained(method, "prior"):
            together = program.factors_at(sites)
            again = program.factors_at(sites)
        for name, factors in together.items():
            if not all(map(_alike, factors, again[name])):
                raise ValueError(
                    f"The prior of {method.name!r} returns other factors for the same sites each time: what is random "
                    "in it has to be a site of pyro.sample."
                )
            for factor, value in factors._asdict().items():
                each = torch.stack([getattr(one[name], factor) for one in alone])
                if value.shape != each.shape:
                    shapes = f"{tuple(value.shape)}, not {tuple(each.shape)}"
                    raise _refusal(method, "prior", f"at {DRAWS} draws, {factor} of stack {name!r} has shape {shapes}")
                if not _alike(value, each):
                    raise _refusal(method, "prior", f"{factor} of stack {name!r} is not that of each draw alone")
        _check_weights(program)
        with contextlib.suppress(NoDensityError):
            _check_densities(program, sites, latents)


def _check_weights(program: Program) -> None:
    """Say of which sites the divergence, which is computed in one piece, has two weights."""
    with seeded(0):
        prior, guide = _trace(program.factors, {}), _trace(program.guide, {})
    for name, site in guide.items():
        if name not in prior or isinstance(site["fn"], Delta | FixedNoise):
            continue
        for what in ("scale", "mask"):
            both = (prior[name][what], site[what])
            if not _same(*both):
                logger.warning(
                    "%r has site %r at %s %s in its prior, and at %s in its guide, whose counts: set the same "
                    "poutine.%s around it in both.",
                    *(program.method.name, name, what, _short(both[0]), _short(both[1]), what),
                )


def _same(first: Any, second: Any) -> bool:
    if first is None or second is None:
        return first is second
    return torch.allclose(torch.as_tensor(first, dtype=torch.double), torch.as_tensor(second, dtype=torch.double))


def _short(value: Any) -> str:
    return (
        f"{value:.3g}" if isinstance(value, float | int) else "one of its own" if isinstance(value, Tensor) else "none"
    )


def _is_users(method: Method) -> bool:
    """Whether a user wrote a method, or functions that it was given."""
    if not type(method).__module__.startswith("bayeslora."):
        return True
    return any(callable(getattr(method, name)) for name in own_fields(type(method)).names)


def _check_densities(program: Program, sites: Sites, latents: Sites) -> None:
    with _explained(program.method, "prior or the guide"):
        found = densities(program, sites, latents)
    weight = found.temperature / program.stacks.num_examples
    guide = _trace(program.guide, {})
    points = {name for name, site in guide.items() if isinstance(site["fn"], Delta)}
    weighted = {name for name in found.log_prior if name not in guide or guide[name]["infer"].get(OWN_WEIGHT)}
    given = {**sites, **latents}
    own = {name: value for name, value in given.items() if name not in points}
    parts = (("prior", program.factors, given, found.log_prior), ("guide", program.guide, own, found.log_guide))
    for what, run, values, log_probs in parts:
        alone = [_trace(run, _draw_of(values, index)) for index in range(DRAWS)]
        for name in log_probs.keys() - program.method.claimed_priors(program).keys():
            # Densities are in units of the divergence's weight, or without any.
            unit = weight if what == "prior" and name in weighted else float(alone[0][name]["scale"])
            each = [float(trace[name]["log_prob_sum"]) / unit for trace in alone]
            if not _alike(log_probs[name], torch.tensor(each, dtype=torch.double)):
                raise _refusal(program.method, what, f"the density of {name!r} is not that of each draw alone")


def _trace(run: Callable[[], Any], values: Sites) -> dict[str, TraceSite]:
    trace = poutine.trace(poutine.condition(run, data=dict(values))).get_trace()
    trace.compute_log_prob(lambda _, site: hasattr(site["fn"], "log_prob"))
    return dict(sites_of(trace))


def _draw_of(values: Sites, index: int) -> dict[str, Tensor]:
    return {name: value[index] for name, value in values.items()}


def _alike(first: Tensor, second: Tensor) -> bool:
    largest = float(second.abs().max()) if second.numel() else 0.0
    return bool(((first - second).abs() <= ALIKE * max(1.0, largest)).all())


@contextlib.contextmanager
def _explained(method: Method, what: str) -> Iterator[None]:
    """Say that a program, which has run with one draw, fails with several."""
    try:
        yield
    except NoDensityError:
        raise
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        raise _refusal(method, what, str(error).partition("\n")[0]) from error


def _refusal(method: Method, what: str, why: str) -> ValueError:
    return ValueError(f"The {what} of {method.name!r} is not written for several draws at once: {why}. {ADVICE}")
