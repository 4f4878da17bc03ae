"""Prior programs that users write: what an automatic guide, and the factors of a stack, ask of one."""

import inspect
from collections.abc import Callable
from typing import Any

import pyro
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to

from bayeslora.adapters import Stack, split_site
from bayeslora.elbo import OWN_WEIGHT
from bayeslora.isolation import seeded
from bayeslora.types import TraceSite


class OwnWeights(Messenger):
    """A handler of a guide that lets scales and masks of the prior count for ln p: a user's program has set them."""

    def _pyro_sample(self, msg: TraceSite) -> None:
        msg["infer"] = {**msg["infer"], OWN_WEIGHT: True}


class Apart(Messenger):
    """A handler that keeps `pyro.param` from Pyro's global store."""

    def _pyro_param(self, msg: TraceSite) -> None:
        start = msg["args"][1]
        msg["value"], msg["done"] = start() if callable(start) else start, True


def check(stack: Stack, run: Callable[[], Any]) -> None:
    """Run the prior program of a stack once, and refuse what no automatic guide or no stack can use.

    Raises:
        ValueError: If a site has another stack's name or no continuous distribution to draw from, if something is
            learned by `pyro.param`, or if the factors have other shapes than the stack's.
        TypeError: If it does not return factors.
    """
    try:
        with seeded(0), pyro.validation_enabled(False), Apart():
            trace = poutine.trace(run).get_trace()
    except NotImplementedError as error:  # Pyro's way to say that a distribution has no draws
        what = str(error).partition("\n")[0]
        raise ValueError(f"The prior program: {what}. Give a proper distribution, however wide.") from error
    for name, site in trace.nodes.items():
        if site["type"] == "param":
            raise ValueError(
                f"The prior program has a pyro.param, {name!r}, but what is learned belongs to the guide: give it a "
                "prior, such as pyro.sample(stack.site('scale'), dist.HalfNormal(1.0)), or a fixed value."
            )
        if site["type"] != "sample":
            continue
        if split_site(name)[0] != stack.name:
            raise ValueError(
                f"The prior program calls something {name!r}: name it stack.site({name!r}), because every stack has "
                "sites and plates of its own."
            )
        if not (site["is_observed"] or type(site["fn"]).__name__ == "_Subsample"):
            _check_distribution(name, site["fn"])
    _check_factors(stack, trace.nodes["_RETURN"]["value"])


def check_guide(make: Callable[..., Any]) -> None:
    """Raise a ValueError if an automatic guide cannot be told where to start."""
    taken = inspect.signature(make).parameters.values()
    if not any(each.name == "init_loc_fn" or each.kind is each.VAR_KEYWORD for each in taken):
        raise ValueError(
            f"autoguide: {getattr(make, '__name__', make)} takes no init_loc_fn, which says where it starts, so that "
            "the network would not start as its base does. Choose one such as 'AutoNormal'."
        )


def _check_distribution(site: str, fn: Any) -> None:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    what = f"Site {site!r} of the prior program is drawn from {type(fn).__name__}"
    if fn.support.is_discrete:
        raise ValueError(
            f"{what}, which is discrete: automatic guides have continuous sites alone. Sum over its values in the "
            "prior, as a mixture does, or write a method of your own."
        )
    try:
        biject_to(fn.support)
    except NotImplementedError:  # torch's way to say that no map from the reals is registered for a support
        raise ValueError(
            f"{what}, whose support Pyro cannot map to the reals, as an automatic guide has to: choose another "
            "distribution."
        ) from None


def _check_factors(stack: Stack, factors: Any) -> None:
    what = f"stack.family.factors({', '.join(f'{name}=…' for name in stack.shapes)})"
    if getattr(factors, "_fields", None) != tuple(stack.shapes):
        raise TypeError(f"The prior program returns a {type(factors).__name__}, not the factors of its stack: {what}.")
    for name, value in factors._asdict().items():
        shape, given = (len(stack), *stack.shapes[name]), tuple(value.shape) if isinstance(value, Tensor) else ()
        if given != shape:
            raise ValueError(
                f"The prior program returns {name} of shape {given} for stack {stack.name!r}: give it the shape "
                f"{shape}, the layers first."
            )
