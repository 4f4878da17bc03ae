"""Draws of a fitted program, and the network run on them."""

import contextlib
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from torch import Tensor

from bayeslora import metrics
from bayeslora.adapters import Linearised, Shared, check_frozen
from bayeslora.adapters.rows import has_rows, positions
from bayeslora.adapters.sharing import differing
from bayeslora.adapters.stack import draws_at, each_factor
from bayeslora.data import Source, to_device
from bayeslora.decisions import Familiar
from bayeslora.drawing import Drawn
from bayeslora.isolation import seeded
from bayeslora.limits import check_rows, naming_inputs
from bayeslora.networks import inputs_of
from bayeslora.program import Program, evaluating
from bayeslora.tasks.prediction import BasePrediction
from bayeslora.types import Batch, FactorsByStack, Sites

# Rows × positions up to which draws are folded into one pass. Folding is faster only as long as overhead dominates a
# pass: it takes 0.57 × the time of a loop at 16 × 6 tokens, and the same time at 16 × 64.
FOLDED_POSITIONS = 2048

ACCELERATED_POSITIONS = 16384
"""The same on an accelerator, where fewer leave it idle."""


# Linearised prediction is compared with the network itself on this many examples of the first batch and draws.
CHECKED_EXAMPLES, CHECKED_DRAWS = 16, 8
# The divergence above which it warns, in nats per example: the growth of the NLL if the network is right.
TRUSTED_DIVERGENCE = 0.01


_watcher: ContextVar[Callable[[int], None] | None] = ContextVar("_watcher", default=None)


@contextmanager
def watched(watcher: Callable[[int], None]) -> Iterator[None]:
    """Call a function after each batch that is predicted in this context, with the number of its examples."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def run(
    program: Program, source: Source, sites: Sites | Drawn, seed: int | None, batch_size: int, approximation: str
) -> Any:
    """Run the network on data at draws of the sites, and return its outputs as the likelihood's `predict` takes them.

    Args:
        program: The program.
        source: The data.
        sites: Draws, `[draw, layer, …]`, or what makes them.
        seed: Seed of a loader that shuffles.
        batch_size: Examples per batch.
        approximation: `"draws"` or `"linear"`.

    Raises:
        ValueError: If the method has no centre to linearise the network at.
    """
    part = part_of(program, sites, approximation)
    with seeded(seed):  # a loader that shuffles takes its seed from the global state
        return run_parts([part], source.batches_by_length(batch_size), source.with_labels, source.context)


def part_of(program: Program, sites: Sites | Drawn, approximation: str) -> "Part":
    """Return what `run_parts` takes; the arguments are those of `run`."""
    if approximation == "linear" and (program.method.num_draws(program.guide) or 1) > 1:
        raise ValueError(
            f"The members of {program.method.name!r} lie around no common centre to linearise the network at: predict "
            "with approximation='draws'."
        )
    num_draws = sites.num_draws if isinstance(sites, Drawn) else len(next(iter(sites.values())))
    return Part(program, sites, num_draws, approximation == "linear")


class Part(NamedTuple):
    """A program and draws of its sites, `[draw, layer, …]`, and whether to run its first-order expansion at them."""

    program: Program
    sites: Sites | Drawn
    num_draws: int
    linear: bool = False

    def blocks(self) -> Callable[[], Iterator[FactorsByStack]]:
        """Return what iterates over factors at the draws, as many at once as are held."""
        program, held = self.program, self.sites
        if isinstance(held, Drawn):
            drawn = held
            if drawn.kept is None:
                return lambda: map(program.factors_at, drawn)
            held = drawn.kept
        factors = program.factors_at(held)
        return lambda: iter([factors])


def run_parts(
    parts: Sequence[Part],
    batches: Iterable[tuple[np.ndarray, Batch]],
    with_labels: bool = True,
    context: Any = None,
    weights: np.ndarray | None = None,
) -> Any:
    """Run several networks on the same batches, and return their outputs, draws after draws.

    Args:
        parts: Programs over one base whose likelihoods are of one kind.
        batches: The data: positions of the examples, and their batch.
        with_labels: Whether labels are read. Without them, the rows of a token task are all tokens but padding.
        context: What else the task noted about the data when it read a table.
        weights: Weights of all draws, `[draw]`; None if they are equal.
    """
    collector = parts[0].program.likelihood.collector(with_labels, context)
    collector.weights = weights
    several = len({part.linear for part in parts}) > 1
    with contextlib.ExitStack() as stack:
        for part in parts:
            check_frozen(part.program.network)
            stack.callback(part.program.network.unbind)
            stack.enter_context(evaluating(part.program))
        stack.enter_context(torch.inference_mode(not any(part.linear for part in parts)))
        runs = [_Run.of(part, several) for part in parts]
        for where, batch in _told(batches):
            on_device, is_first = to_device(batch, parts[0].program.device), not collector.num_examples
            # Closed if it is not exhausted: suspended, it would leave what is shared in place for later passes.
            with contextlib.closing(_logits(runs, on_device, is_first)) as logits:
                checked = _of_rows(logits, parts[0].program, batch, len(where)) if is_first else logits
                collector.add(where, batch, checked)
    return collector.result()


def _logits(runs: Sequence["_Run"], batch: Batch, is_first: bool) -> Generator[Tensor, None, None]:
    """Yield the logits of a batch, of one part after another."""
    for run in runs:
        yield from run.logits(batch, is_first)


def _of_rows(logits: Iterator[Tensor], program: Program, batch: Batch, size: int) -> Iterator[Tensor]:
    """Yield logits, and check that the first are about the rows of their batch."""
    first, likelihood = next(logits), program.likelihood
    if likelihood.needs_code:  # a function of the user's would draw
        check_rows(first.shape[1:2], size, batch)
    else:
        with pyro.validation_enabled(False):
            check_rows(likelihood.distribution(first[:1]).batch_shape[1:], size, batch)
    yield first
    yield from logits


class _Run(NamedTuple):
    """A part, its factors at all draws, and what serves every batch.

    Args:
        part: The part.
        blocks: Iterates over factors at the draws, some at a time.
        expansion: The first-order expansion, if that is run.
        shared: What the draws have in common, if several are run.
        at_once: Whether another part of the same batches needs gradients, which this one does without.
    """

    part: Part
    blocks: Callable[[], Iterator[FactorsByStack]]
    expansion: Linearised | None
    shared: Shared | None
    at_once: bool

    @classmethod
    def of(cls, part: Part, at_once: bool) -> "_Run":
        program, linear = part.program, part.linear
        blocks = part.blocks()
        expansion = program.linearised(blocks) if linear else None
        shared = _in_common(program, blocks()) if part.num_draws > 1 and not linear else None
        return cls(part, blocks, expansion, shared, at_once)

    def logits(self, batch: Batch, is_first: bool) -> Iterable[Tensor]:
        """Return the logits of a batch, a few draws at a time.

        On the first batch, an expansion that was asked for is compared with the network itself.
        """
        if self.expansion is None:
            if not self.at_once:
                return self._chunks(batch)
            with torch.inference_mode():
                return list(self._chunks(batch))
        program, inputs = self.part.program, inputs_of(batch)
        logits = self.expansion(inputs)
        if is_first and program.method.approximation != "linear":
            _check_linear(program, next(self.blocks()), inputs, logits)
        return [logits]

    def _chunks(self, batch: Batch) -> Iterator[Tensor]:
        inputs = inputs_of(batch)
        with (
            self.shared.over(inputs, folded_positions(self.part.program.device))
            if self.shared
            else nullcontext() as together
        ):
            for factors in self.blocks():
                size = len(next(iter(factors.values()))[0])
                yield from chunks(self.part.program.network_logits, factors, batch, size, together)
                del factors  # and the copies that are bound, before the next ones are made
                self.part.program.network.unbind()


def _in_common(program: Program, blocks: Iterator[FactorsByStack]) -> Shared:
    """Return what draws have in common; layers whose factors are the same in the first ones may differ later."""
    network, first = program.network, next(blocks)
    differ = differing(network, first)
    one = each_factor(first, lambda factor: factor[:1].clone())
    del first
    for block in blocks:
        if all(bool(layers.all()) for layers in differ.values()):
            break
        both = {n: type(value)(*map(torch.cat, zip(one[n], value, strict=True))) for n, value in block.items()}
        differ = {name: layers | differ[name] for name, layers in differing(network, both).items()}
        del block, both
    return Shared(network, one, differ)


def _told(batches: Iterable[tuple[np.ndarray, Batch]]) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yield batches, and tell who watches of each when it is done."""
    watcher = _watcher.get()
    for where, batch in batches:
        yield where, batch
        if watcher is not None:
            watcher(len(where))


def chunks(
    logits: Callable[[FactorsByStack, Batch], Tensor],
    factors: FactorsByStack,
    batch: Batch,
    num_draws: int,
    together: int | None = None,
) -> Iterator[Tensor]:
    """Yield the logits of a batch, a few draws at a time, `[draw, batch, …]`.

    Args:
        logits: The logits as a function of factors and a batch.
        factors: Stack name to factors, `[draw, layer, …]`.
        batch: The batch; its labels are ignored.
        num_draws: Size of the `draw` dimension.
        together: Draws run together; by default, as many as `folded_positions` allows.
    """
    inputs = inputs_of(batch)
    chunk = together or max(1, folded_positions(next(filter(has_rows, inputs.values())).device) // positions(inputs))
    for start in range(0, num_draws, chunk):
        with naming_inputs(inputs):
            part_logits = logits(draws_at(factors, slice(start, start + chunk)), batch)
        yield part_logits


def folded_positions(device: torch.device) -> int:
    """Return how many positions draws that run together have at most."""
    return FOLDED_POSITIONS if device.type == "cpu" else ACCELERATED_POSITIONS


def _check_linear(program: Program, factors: FactorsByStack, inputs: Batch, linear: Tensor) -> None:
    """Warn if linearised predictions are far from the network's own, on a few draws and examples."""
    linear = linear[:CHECKED_DRAWS, :CHECKED_EXAMPLES]
    few_draws = draws_at(factors, slice(CHECKED_DRAWS))
    size = max(map(len, filter(has_rows, inputs.values())))
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


def centre_sites(program: Program) -> dict[str, Tensor]:
    """Return every site at its guide's mean, as one draw, `[1, layer, …]`."""
    with torch.no_grad():
        return {name: value.unsqueeze(0) for name, value in program.centre().items()}


def labelled(
    program: Program, source: Source, sites: Sites, seed: int | None, batch_size: int, approximation: str | None
) -> tuple[Any, np.ndarray]:
    """Return the network's outputs at draws of the sites, and the labels, which data has to have."""
    source.check_labels()
    found = run(program, source, sites, seed, batch_size, approximation or program.method.approximation)
    assert found.labels is not None  # they have been checked
    return found, found.labels


def best_temperature(predict: Callable[[float], BasePrediction], labels: np.ndarray) -> float:
    """Return the temperature at which the mean over draws predicts labels best; `predict` is a function of it."""

    def nll(temperature: float) -> float:
        prediction = predict(temperature)
        return prediction.mixture_nll(prediction.log_likelihood(labels))

    return metrics.best_temperature(nll)


def how_made(
    program: Program, num_draws: int, center: bool, approximation: str | None, seed: int | None, temperature: float
) -> dict[str, Any]:
    """Return what decides, beside the posterior, which function of an example a prediction is.

    Arguments without effect are left at one value: at the centre, or where the members are all drawn.
    """
    finite = 1 if center else program.method.num_draws(program.guide)
    made = {"num_draws": finite or num_draws, "center": center, "seed": 0 if finite else seed}
    linear = "draws" if center else approximation or program.method.approximation
    return {**made, "approximation": linear, "temperature": temperature}


def check_familiar(familiar: Source) -> None:
    """Raise a ValueError if labels of familiar data, which may have none, are not the likelihood's."""
    if familiar.first_batch().get("labels") is not None:
        familiar.check_labels()


def distance(program: Program, source: Source, familiar: Source, batch_size: int) -> np.ndarray:
    """Return Mahalanobis distances of features from those of familiar data, `[example]`.

    Raises:
        ValueError: If the network has no linear layer at its end, or labels of familiar data are not the likelihood's.
    """
    check_familiar(familiar)
    known, labels = features(program, familiar, batch_size)
    are_classes = labels is not None and labels.ndim == 1 and hasattr(program.likelihood, "num_classes")
    return Familiar.of(known, labels if are_classes else None).distance(features(program, source, batch_size)[0])


def features(program: Program, source: Source, batch_size: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the inputs of the output layer at the centre, `[example, feature]`, and the labels, if data has them.

    Several of an example, of its tokens or choices, are averaged; padding is left out.

    Raises:
        ValueError: If the network has no linear layer at its end.
    """
    name = program.network.output_name
    if name is None:
        raise ValueError("The network has no linear output layer, whose inputs would be features.")
    seen: list[Tensor] = []
    hook = program.network.model.get_submodule(name).register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((*args, *kwargs.values())[0].detach()), with_kwargs=True
    )
    found, labels, places = [], [], []
    try:
        with evaluating(program), torch.inference_mode():
            factors = program.factors_at(program.centre())
            for where, batch in source.batches_by_length(batch_size):
                seen.clear()
                inputs = inputs_of(to_device(batch, program.device))
                with naming_inputs(inputs):
                    program.network_logits(factors, inputs)
                found.append(_by_example(seen[-1], len(where), inputs.get("attention_mask")))
                labels.append(batch.get("labels"))
                places.append(where)
    finally:
        hook.remove()
        program.network.unbind()
    order = np.argsort(np.concatenate(places))
    if any(label is None for label in labels):
        return np.concatenate(found)[order], None
    return np.concatenate(found)[order], np.concatenate([np.asarray(label) for label in labels])[order]


def _by_example(values: Tensor, size: int, mask: Tensor | None) -> np.ndarray:
    """Average features over what belongs to an example, `[example, feature]`."""
    width = values.shape[-1]
    if mask is not None and mask.shape == values.shape[:-1]:
        weights = mask.to(values).reshape(size, -1, 1)
    else:
        weights = values.new_ones(()).expand(size, values.numel() // (size * width), 1)
    weighted = (values.reshape(size, -1, width) * weights).sum(1) / weights.sum(1)
    return weighted.cpu().double().numpy()
