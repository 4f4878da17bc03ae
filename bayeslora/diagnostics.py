"""Posterior and predictive draws as arviz groups."""

import importlib
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from bayeslora.adapters import Stack, split_site
from bayeslora.program import Program
from bayeslora.tasks.prediction import BasePrediction
from bayeslora.types import Sites

if TYPE_CHECKING:
    import arviz as az


class Observed(NamedTuple):
    """Draws of the predictive distribution at observed examples.

    Args:
        log_likelihood: Nats, `[draw, example]`, or `[draw, token]`.
        predicted: Labels drawn from the predictive distribution, `[draw, example, …]`, or `[draw, token]`.
        labels: `[example, …]`, or `[token]`.
        are_tokens: Whether labels are tokens, of which each example has several.
        per_token: Whether `log_likelihood` has a term for each token.
    """

    log_likelihood: np.ndarray
    predicted: np.ndarray
    labels: np.ndarray
    are_tokens: bool = False
    per_token: bool = False

    @classmethod
    def of(cls, prediction: BasePrediction, labels: np.ndarray, seed: int | None, per_token: bool) -> "Observed":
        """Take from a prediction its log-likelihoods of labels, term by term, and labels drawn with a seed."""
        are_tokens = hasattr(prediction, "rows")
        per_token = per_token and are_tokens
        log_likelihood = prediction.row_log_likelihood if per_token else prediction.log_likelihood
        return cls(log_likelihood(labels), prediction.sample(seed), labels, are_tokens, per_token)


def summary_draws(program: Program, sites: Sites) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Compute a few meaningful numbers per layer and draw, and name their dimensions.

    Each stack has `delta_norm`, the Frobenius norm of the weight change ΔW in units of the weights (including the
    change of the bias, if the family has one); `noise_to_signal`, the norm of ΔW's difference from the centre's ΔW
    over the norm of the centre's; and the method's own `summaries`.

    Args:
        program: The program.
        sites: Draws, `[draw, layer, …]`.
    """
    values: dict[str, np.ndarray] = {}
    dims: dict[str, list[str]] = {}

    def add(stack: Stack, name: str, value: torch.Tensor, inner: tuple[str, ...] = ()) -> None:
        values[stack.site(name)] = value.detach().cpu().double().numpy()
        dims[stack.site(name)] = [f"{stack.name}_layer", *(f"{stack.name}_{dim}" for dim in inner)]

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


def raw_draws(program: Program, sites: Sites) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Return every site as it was drawn, and its dimensions: the stack's layers, then numbered dimensions."""
    values = {name: value.detach().cpu().numpy() for name, value in sites.items()}
    dims = {
        name: [f"{split_site(name)[0]}_layer", *(f"{name}_{axis}" for axis in range(value.ndim - 2))]
        for name, value in values.items()
    }
    return values, dims


def to_arviz(program: Program, sites: Sites, observed: Observed | None = None, raw: bool = False) -> "az.InferenceData":
    """Make the groups `posterior` and, given observations, `posterior_predictive`, `log_likelihood`, `observed_data`.

    The draws are independent and form one chain, so that arviz counts every draw as effective.

    Args:
        program: The program.
        sites: Draws, `[draw, layer, …]`.
        observed: What was predicted for data, and the data's labels.
        raw: Whether the posterior group also holds every site as drawn.
    """
    values, dims = summary_draws(program, sites)
    if raw:
        raw_values, raw_dims = raw_draws(program, sites)
        values, dims = values | raw_values, dims | raw_dims
    coords: dict[str, Sequence[Any] | np.ndarray] = {
        f"{stack.name}_layer": list(stack.layer_names) for stack in program.stacks.values()
    }
    groups: dict[str, dict[str, np.ndarray]] = {"posterior": {name: value[None] for name, value in values.items()}}
    if observed is not None:
        label = "tokens" if observed.are_tokens else "labels"
        term = "tokens" if observed.per_token else "labels"
        for name, size in ((label, len(observed.labels)), (term, observed.log_likelihood.shape[1])):
            dims[name] = ["token" if name == "tokens" else "example"]
            coords[dims[name][0]] = np.arange(size)
        groups |= {
            "posterior_predictive": {label: observed.predicted[None]},
            "log_likelihood": {term: observed.log_likelihood[None]},
            "observed_data": {label: observed.labels},
        }
    return from_dict(groups, coords, dims)


def from_dict(
    groups: dict[str, dict[str, np.ndarray]],
    coords: dict[str, Sequence[Any] | np.ndarray],
    dims: dict[str, list[str]],
    library: str = "arviz",
) -> Any:
    """Call arviz's `from_dict`, whose arguments differ between 0.x (which returns InferenceData) and 1.x (DataTree)."""
    build = importlib.import_module(library).from_dict
    if "data" in inspect.signature(build).parameters:
        return build(groups, coords=coords, dims=dims)
    return build(**groups, coords=coords, dims=dims)
