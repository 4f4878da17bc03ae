"""Draws of a fitted program, and the network run on them."""

import operator
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from bayeslora.adapters.rows import has_rows
from bayeslora.data import Source, to_device
from bayeslora.isolation import seeded
from bayeslora.limits import naming_inputs
from bayeslora.program import Program, evaluating
from bayeslora.types import Batch, FactorsByStack, Sites

# Rows × positions up to which draws are folded into one pass. Folding is faster only as long as overhead dominates a
# pass: it takes 0.57 × the time of a loop at 16 × 6 tokens, and the same time at 16 × 64.
FOLDED_POSITIONS = 2048


# Linearised prediction is compared with the network itself on this many examples of the first batch and draws.
CHECKED_EXAMPLES, CHECKED_DRAWS = 16, 8
# The divergence above which it warns, in nats per example: the growth of the NLL if the network is right.
TRUSTED_DIVERGENCE = 0.01


def draw(program: Program, num_draws: int, seed: int | None) -> dict[str, Tensor]:
    """Draw every site, `[draw, layer, …]`; of a finite posterior, return the members, each once."""
    if num_draws < 1:
        raise ValueError(f"num_draws={num_draws}: give a whole number of at least 1.")
    finite = program.method.num_draws(program.guide)
    with seeded(seed):
        return {name: value.detach() for name, value in program.draw(finite or operator.index(num_draws)).items()}


def run(program: Program, source: Source, sites: Sites, seed: int | None, batch_size: int, approximation: str) -> Any:
    """Run the network on data at draws of the sites, and return its outputs as the likelihood's `predict` takes them.

    Args:
        program: The program.
        source: The data.
        sites: Draws, `[draw, layer, …]`.
        seed: Seed of a loader that shuffles.
        batch_size: Examples per batch.
        approximation: `"draws"` or `"linear"`.

    Raises:
        ValueError: If the method has no centre to linearise the network at.
    """
    if approximation == "linear" and (program.method.num_draws(program.guide) or 1) > 1:
        raise ValueError(
            f"The members of {program.method.name!r} lie around no common centre to linearise the network at: predict "
            "with approximation='draws'."
        )
    size, linear = len(next(iter(sites.values()))), approximation == "linear"
    with seeded(seed):  # a loader that shuffles takes its seed from the global state
        batches = source.batches_by_length(batch_size)
        return run_batches(program, sites, batches, size, source.with_labels, linear, source.context)


def run_batches(
    program: Program,
    sites: Sites,
    batches: Iterable[tuple[np.ndarray, Batch]],
    num_draws: int,
    with_labels: bool = True,
    linear: bool = False,
    context: Any = None,
) -> Any:
    """Run the network at draws of the sites, and return its outputs as the likelihood's `predict` takes them.

    Args:
        program: The program; it keeps its mode.
        sites: Draws, `[draw, layer, …]`.
        batches: The data: positions of the examples, and their batch.
        num_draws: Size of the `draw` dimension.
        with_labels: Whether labels are read. Without them, the rows of a token task are all tokens but padding.
        linear: Whether to run the network's first-order expansion in the factors at the draws, instead of the network.
        context: What else the task noted about the data when it read a table.
    """
    collector = program.likelihood.collector(with_labels, context)
    try:
        with evaluating(program), torch.inference_mode(not linear):
            factors = program.factors_at(sites)
            linearised = program.linearised(sites) if linear else None
            for where, batch in batches:
                on_device = to_device(batch, program.device)
                if linearised is None:
                    collector.add(where, batch, chunks(program.network_logits, factors, on_device, num_draws))
                    continue
                inputs = {name: value for name, value in on_device.items() if name != "labels"}
                logits = linearised(inputs)
                if not collector.num_examples and program.method.approximation != "linear":
                    _check_linear(program, factors, inputs, logits)
                collector.add(where, batch, iter([logits]))
    finally:
        program.network.unbind()
    return collector.result()


def chunks(
    logits: Callable[[FactorsByStack, Batch], Tensor], factors: FactorsByStack, batch: Batch, num_draws: int
) -> Iterator[Tensor]:
    """Yield the logits of a batch, a few draws at a time, `[draw, batch, …]`; `logits` is a function of factors."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    positions = max(value[:, :1].numel() if value.is_floating_point() else value.numel() for value in tensors(inputs))
    chunk = max(1, FOLDED_POSITIONS // positions)
    for start in range(0, num_draws, chunk):
        part = {
            name: type(value)(*(factor[start : start + chunk] for factor in value)) for name, value in factors.items()
        }
        with naming_inputs(inputs):
            part_logits = logits(part, batch)
        yield part_logits


def _check_linear(program: Program, factors: FactorsByStack, inputs: Batch, linear: Tensor) -> None:
    """Warn if linearised predictions are far from the network's own, on a few draws and examples."""
    linear = linear[:CHECKED_DRAWS, :CHECKED_EXAMPLES]
    few_draws = {name: type(value)(*(f[:CHECKED_DRAWS] for f in value)) for name, value in factors.items()}
    size = max(len(value) for value in tensors(inputs))
    few = {n: v[:CHECKED_EXAMPLES] if has_rows(v) and len(v) == size else v for n, v in inputs.items()}
    with torch.inference_mode():
        exact = torch.cat(list(chunks(program.network_logits, few_draws, few, len(linear))))
    with seeded(0), pyro.validation_enabled(False):
        divergence = program.likelihood.divergence(exact.double(), linear.double())
    if divergence > TRUSTED_DIVERGENCE:
        warnings.warn(
            f"Linearised predictions are not to be trusted here: on {exact.shape[1]} examples, averaged over the same "
            f"{len(linear)} draws, they diverge from the network's by {divergence:.3f} nats per example. The noise is "
            "too loud for a first-order expansion: predict with approximation='draws'.",
            stacklevel=2,
        )


def tensors(batch: Batch) -> list[Tensor]:
    """Return the tensors of a batch that have rows."""
    return [value for value in batch.values() if isinstance(value, Tensor) and value.dim() > 0]


def centre_sites(program: Program) -> dict[str, Tensor]:
    """Return every site at its guide's mean, as one draw, `[1, layer, …]`."""
    with torch.no_grad():
        return {name: value.unsqueeze(0) for name, value in program.centre().items()}
