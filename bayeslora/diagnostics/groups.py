"""Posterior and predictive draws as arviz groups."""

import contextlib
import importlib
import inspect
import itertools
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bayeslora.adapters import Stack, split_site
from bayeslora.diagnostics.densities import (
    Densities,
    NoDensityError,
    densities,
    draw_with_latents,
    layer_axes,
    prior_sites,
)
from bayeslora.prediction import labelled, run
from bayeslora.program import Program
from bayeslora.tasks.prediction import BasePrediction
from bayeslora.types import Data, Sites

PROBES = 8
"""Examples whose logits are compared between chains."""

COMMON = ("method", "claims", "approximation", "network")
"""What is said of all components of a mixture in one line."""

Values = dict[str, np.ndarray]
Dims = dict[str, list[str]]


class Groups(NamedTuple):
    """What an arviz object is made of.

    Args:
        groups: Group to variable to value, `[chain, draw, …]`, or `[…]` of observed data.
        coords: Dimension to its coordinates.
        dims: Variable to its dimensions after chain and draw.
        attrs: What the object says of itself.
    """

    groups: dict[str, Values]
    coords: dict[str, Any]
    dims: Dims
    attrs: dict[str, Any]


def variable(stack: Stack, name: str) -> str:
    """Return the name of a stack's variable or dimension, an identifier: `delta_norm_384x384`."""
    return re.sub(r"\W", "_", f"{name}_{stack.name}")


def summary_draws(program: Program, sites: Sites) -> tuple[Values, Dims]:
    """Compute a few meaningful numbers per layer and draw, and name their dimensions.

    Each stack has `delta_norm`, the Frobenius norm of the weight change ΔW in units of the weights (including the
    change of the bias, if the family has one); `noise_to_signal`, the norm of ΔW's difference from the centre's ΔW
    over the norm of the centre's; and the method's own `summaries`.

    Args:
        program: The program.
        sites: Draws, `[draw, layer, …]`.
    """
    values: Values = {}
    dims: Dims = {}

    def add(stack: Stack, name: str, value: Tensor, inner: tuple[str, ...] = ()) -> None:
        values[variable(stack, name)] = value.detach().cpu().double().numpy()
        dims[variable(stack, name)] = [variable(stack, dim) for dim in ("layer", *inner)]

    with torch.no_grad():
        factors = program.network.scaled(program.factors_at(sites))
        centre = program.network.scaled(program.factors_at(program.centre()))
        for name, stack in program.stacks.items():
            family, bases = stack.family, program.network.bases(name)
            signal = family.difference_norm(centre[name], bases=bases)
            noise = family.difference_norm(factors[name], centre[name], bases)
            add(stack, "delta_norm", family.difference_norm(factors[name], bases=bases))
            add(stack, "noise_to_signal", noise / signal.clamp(min=torch.finfo(signal.dtype).tiny))
            for summary, (value, inner) in program.method.summaries(stack, stack.own(sites)).items():
                add(stack, summary, value, inner)
    return values, dims


def raw_draws(program: Program, sites: Sites) -> tuple[Values, Dims]:
    """Return every site as it was drawn, and its dimensions: its stack's layers, if it has them, and numbered ones."""
    values: Values = {}
    dims: Dims = {}
    axes = layer_axes(program)
    for site, value in sites.items():
        stack = program.stacks[split_site(site)[0]]
        name = variable(stack, split_site(site)[1])
        values[name] = value.detach().cpu().numpy()
        numbers = (f"{name}_{number}" for number in itertools.count())
        layers = value.ndim + axes[site] if site in axes else None
        dims[name] = [variable(stack, "layer") if axis == layers else next(numbers) for axis in range(1, value.ndim)]
    return values, dims


def statistics(found: Densities, log_likelihood: np.ndarray | None) -> Values:
    """Return statistics of every draw in nats, `[draw]`.

    Args:
        found: Densities at the draws.
        log_likelihood: ln p(labels) at them, summed over examples and without a temperature, or None without data.
    """
    log_prior, divergence = (value.numpy() for value in (sum(found.log_prior.values()), found.divergence))  # type: ignore[union-attr]
    values = {"log_prior": log_prior, "log_q": log_prior + divergence}
    if log_likelihood is None:
        return values
    return values | {
        "log_likelihood_sum": log_likelihood,
        "lp": log_prior + log_likelihood / found.temperature,
        "elbo": log_likelihood - found.temperature * divergence,
    }


def describe(posterior: Any, num_draws: int, seed: int | None, approximation: str | None) -> dict[str, Any]:
    """Return what an arviz object says of where it comes from; files of arviz take numbers and texts alone."""
    program = posterior.program
    return {
        "method": program.method.name,
        "method_fields": json.dumps(program.method.record(), default=str),
        "claims": program.method.claims,
        "approximation": approximation or program.method.approximation,
        "num_examples": program.stacks.num_examples,
        "network": type(program.network.model).__name__,
        **_made(posterior, num_draws, seed),
    }


def describe_mixture(mixture: Any, num_draws: int, seed: int | None, approximation: str | None) -> dict[str, Any]:
    """Return the same of a mixture, with the weight of each component."""
    each = [describe(component, num_draws, seed, approximation) for component in mixture.components]
    alike = {name: ", ".join(dict.fromkeys(str(one[name]) for one in each)) for name in COMMON}
    weights = json.dumps(mixture.weights.tolist())
    return {"components": len(each), "weights": weights, **alike, **_made(mixture, num_draws, seed)}


def _made(posterior: Any, num_draws: int, seed: int | None) -> dict[str, Any]:
    from bayeslora import __version__

    return {
        "likelihood": posterior._likelihood.name,
        "temperature": float(posterior.temperature),
        "num_draws": num_draws,
        "seed": "none" if seed is None else seed,
        "inference_library": "bayeslora",
        "inference_library_version": __version__,
    }


def gather(
    posterior: Any,
    data: Data | None,
    num_draws: int,
    approximation: str | None,
    seed: int | None,
    batch_size: int,
    raw: bool = False,
    per_token: bool = False,
    prior: bool = True,
    probes: int = 0,
) -> Groups:
    """Collect the groups of one posterior, as one chain; `Posterior.to_arviz` says what they and the arguments are.

    Of `probes` examples the posterior group holds the logits.
    """
    program = posterior.program
    sites, latents = draw_with_latents(program, num_draws, seed)
    num_draws = len(next(iter(sites.values())))
    coords: dict[str, Any] = {variable(stack, "layer"): list(stack.layer_names) for stack in program.stacks.values()}
    dims: Dims = {}

    def of(drawn: Sites) -> Values:
        values, names = summary_draws(program, drawn)
        if raw:
            raw_values, raw_names = raw_draws(program, drawn)
            values, names = values | raw_values, names | raw_names
        dims.update(names)
        return values

    groups = {"posterior": of(sites)}
    log_likelihood = None
    before = prior_sites(program, num_draws, seed) if prior else None
    if before is not None:
        groups["prior"] = of(before)
    if data is not None:
        source = posterior._source(data)
        found, labels = labelled(program, source, sites, seed, batch_size, approximation)
        prediction: BasePrediction = posterior._prediction(found)
        are_tokens = hasattr(prediction, "rows")
        per_token = per_token and are_tokens
        label, term = "tokens" if are_tokens else "labels", "tokens" if per_token else "labels"
        terms = prediction.row_log_likelihood(labels) if per_token else prediction.log_likelihood(labels)
        for name, size in ((label, len(labels)), (term, terms.shape[1])):
            dims[name] = ["token" if name == "tokens" else "example"]
            coords[dims[name][0]] = np.arange(size)
        if probes:
            groups["posterior"]["logits"] = logits_of(found, prediction, program)[:, :probes]
        groups |= {"posterior_predictive": {label: prediction.sample(seed)}, "log_likelihood": {term: terms}}
        log_likelihood = program.likelihood.predict(found).log_likelihood(labels).sum(1)
        if before is not None:
            outputs = run(program, source, before, seed, batch_size, approximation or program.method.approximation)
            groups["prior_predictive"] = {label: posterior._prediction(outputs).sample(seed)}
    attrs = describe(posterior, num_draws, seed, approximation)
    with contextlib.suppress(NoDensityError):  # there is no group then
        weighed = densities(program, sites, latents)
        groups["sample_stats"] = statistics(weighed, log_likelihood)
        attrs["method_temperature"] = weighed.temperature
    chain = {group: {name: value[None] for name, value in values.items()} for group, values in groups.items()}
    if data is not None:
        chain["observed_data"] = {label: labels}
    return Groups(chain, coords, dims, attrs)


def logits_of(found: Any, prediction: BasePrediction, program: Program) -> np.ndarray:
    """Return what the labels' distribution depends on, and nothing else, `[draw, row, …]`.

    These are logits, centred where a constant does not matter; or the draws of the prediction, where a task keeps less.
    """
    logits = np.asarray(getattr(found, "logits", prediction.draws), dtype=np.float64)
    return logits - logits.mean(-1, keepdims=True) if program.likelihood.up_to_constant else logits


def single(posterior: Any, data: Data | None, *settings: Any, **further: Any) -> Any:
    """Return draws of one posterior as an arviz object; `Posterior.to_arviz` says what is in it."""
    made = gather(posterior, data, *settings, **further)
    return from_groups(made if data is None else _twice(made))


def _twice(made: Groups) -> Groups:
    """Let a single draw stand twice, and say what that means; arviz's functions ask for a second one."""
    if made.attrs["num_draws"] > 1:
        return made
    what = "is a point, whose one draw" if made.attrs["claims"] == "points" else "has num_draws=1, and this"
    warnings.warn(
        f"{made.attrs['method']!r} {what} stands here twice, because arviz takes no single draws. "
        "What az.loo says of it is the fit to the data given, not how left-out examples would be predicted: for that, "
        "predict examples that the fit has not seen.",
        stacklevel=5,
    )
    groups = {
        group: values if group == "observed_data" else {name: value.repeat(2, 1) for name, value in values.items()}
        for group, values in made.groups.items()
    }
    return made._replace(groups=groups)


def from_groups(made: Groups) -> Any:
    """Make the arviz object, with its attributes on itself and on each group."""
    made_object = from_dict(made.groups, made.coords, made.dims)
    made_object.attrs.update(made.attrs)
    for group in made.groups:
        made_object[group].attrs.update(made.attrs)
    return made_object


def from_dict(
    groups: Mapping[str, Values],
    coords: Mapping[str, Sequence[Any] | np.ndarray],
    dims: Mapping[str, list[str]],
    library: str = "arviz",
) -> Any:
    """Call arviz's `from_dict`, whose arguments differ between 0.x (which returns InferenceData) and 1.x (DataTree)."""
    build = importlib.import_module(library).from_dict
    if "data" in inspect.signature(build).parameters:
        return build(groups, coords=coords, dims=dims)
    return build(**groups, coords=coords, dims=dims)
