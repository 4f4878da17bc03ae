"""Whether draws of the factors can run as rows of one batch: measured on a few examples.

What is measured runs on a random state of its own: some networks draw numbers in evaluation too, and those of a
prediction shall not depend on whether it was the first.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bayeslora.adapters.layer import NotFoldedError
from bayeslora.adapters.rows import copied, has_rows, num_rows, sequences_in
from bayeslora.adapters.stack import draws_at, each_factor
from bayeslora.isolation import seeded
from bayeslora.limits import clause
from bayeslora.surroundings import autocast_dtype
from bayeslora.types import Batch

EXAMPLES = 2
"""Examples on which draws together are compared with draws one by one, two of them."""

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Largest difference of the logits, relative to their size, that comes from the order of summation alone."""

COARSE = 3e-2
"""The same in half precision."""

LARGEST = 0.25
"""What no rounding explains, however deep a network is: mixed-up draws differ by about 1."""

SPREAD = 0.5
"""How far the draws are apart: what the factors add to a layer's output has about this size, relative to its input."""


class Verdict(NamedTuple):
    """Whether draws run together give what they give one by one; the layers that saw rows; and what was in the way."""

    holds: bool
    seen: frozenset[str]
    reason: str = ""


@seeded(0)
def measure(network: Any, factors: Mapping[str, Any], inputs: Batch) -> Verdict:
    """Compare two draws run as one batch with draws run one by one, on two examples, in evaluation mode.

    Rows may be sorted, mixed by statistics of the batch, sent to experts, or flattened with the tokens in front, and
    their shapes show nothing of it. Each draw's adapter would then change rows of the other. The draws are run in both
    orders, so that no sorting of the rows goes unseen.

    Args:
        network: An `AdaptedNetwork`; its factors are unbound afterwards.
        factors: Stack name to factors, `[*draw, layer, …]`; the draws are made around the first.
        inputs: Keyword arguments of the model.
    """
    layers = {
        name: layer
        for stack in network.stacks.values()
        for name, layer in zip(stack.layer_names, network.layers(stack.name), strict=True)
    }
    seen: set[str] = set()
    hooks = [layer.register_forward_hook(lambda *_, name=name: seen.add(name)) for name, layer in layers.items()]
    try:
        with torch.no_grad(), still(network):
            draws = moved(network, factors, 2)
            few = few_examples(inputs)
            size = num_rows(few)
            rows = together(network, draws, few, size)
            turned = together(network, each_factor(draws, lambda factor: factor.flip(0)), few, size).flip(0)
            alone = logits(network, draws_at(draws, 0), few)
            differences = [distance(each[0], alone) for each in (rows, turned)] + [distance(turned, rows)]
            largest, worst = tolerance(network.model), max(differences)
            if _may_be_rounding(network.model, worst, alone):
                same = together(network, _all_equal(draws, 0), few, size)
                worst = max(distance(rows[0], same[0]), distance(turned[0], same[1]))
    except NotFoldedError as error:
        return Verdict(False, frozenset(), error.reason)
    except Exception as error:  # whatever a network may raise on two examples: all of them may do
        return Verdict(False, frozenset(), f"it could not be tried on {EXAMPLES} examples: {clause(error)}")
    finally:
        for hook in hooks:
            hook.remove()
        network.unbind()
    return Verdict(worst <= largest, frozenset(seen), f"draws together and one by one differ by {worst:.2g}")


@seeded(0)
def confirm(network: Any, found: Tensor, factors: Mapping[str, Any], inputs: Batch) -> float:
    """Return how far the last of the draws that ran as rows of one batch is from a pass of its own.

    Args:
        network: An `AdaptedNetwork`; its factors are unbound afterwards.
        found: Logits of all draws, `[draw, batch, …]`.
        factors: Stack name to factors, `[draw, layer, …]`.
        inputs: The last draw's inputs.
    """
    try:
        alone = logits(network, draws_at(factors, -1), inputs)
        worst = distance(found[-1], alone)
        if _may_be_rounding(network.model, worst, alone):
            same, size, times = _all_equal(factors, -1), *found.shape[1::-1]
            network.bind(same, times * size, sequences_in(inputs))
            worst = distance(found[-1], network.logits(repeated(inputs, size, times))[-size:])
        return worst
    finally:
        network.unbind()


@contextlib.contextmanager
def still(module: nn.Module) -> Iterator[None]:
    """A module in evaluation mode; afterwards, every part in the mode it was in."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def moved(network: Any, factors: Mapping[str, Any], num_draws: int | None) -> dict[str, Any]:
    """Factors some way from the given ones, or from the first draw of them, so that every one of them matters.

    Random numbers are from a generator of their own.

    Args:
        network: An `AdaptedNetwork`.
        factors: Stack name to factors, `[*draw, layer, …]`.
        num_draws: Draws to make, or None for factors without that dimension.
    """
    generator = torch.Generator().manual_seed(0)
    draws: dict[str, Any] = {}
    several = network.num_draws(factors) is not None
    for name, stack in network.stacks.items():
        largest = max(1.0, float(network.scaling(name).max()))
        parts = []
        for factor, dims in zip(factors[name], stack.family.layer_dims, strict=True):
            start = (factor[0] if several else factor).detach()
            shape = (num_draws or 1, *start.shape)
            if dims == 0:  # names a draw of the family's own noise
                parts.append(start.expand(shape))
                continue
            width = start.shape[-1] if dims > 1 else 1
            scale = max(SPREAD * float(start.square().mean().sqrt()), SPREAD / width**0.5 / largest)
            noise = torch.randn(shape, generator=generator, dtype=torch.float64).to(start)
            parts.append(start + scale * noise)
        draws[name] = type(factors[name])(*(part if num_draws else part[0] for part in parts))
    return draws


def few_examples(inputs: Batch) -> Batch:
    """Two examples of a batch, the shortest and the longest where their masks tell; one of them twice if it is alone.

    Where the lengths of all are the same, the last token of one is masked: rows may be sorted by length.
    """
    size = num_rows(inputs)
    chosen = [0, min(1, size - 1)]
    mask = inputs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2 and len(mask) == size:
        shortest, longest = int(mask.sum(1).argmin()), int(mask.sum(1).argmax())
        if shortest != longest:
            chosen = [shortest, longest]
        mask = mask[chosen].clone()
        if mask.shape[1] > 2 and int(mask[0].sum()) == int(mask[1].sum()):
            mask[0, -1] = 0
        masked = {"attention_mask": mask}
    else:
        masked = {}
    few = {name: value[chosen] if has_rows(value) and len(value) == size else value for name, value in inputs.items()}
    return few | masked


def together(network: Any, draws: Mapping[str, Any], inputs: Batch, size: int) -> Tensor:
    """Return the logits of two draws run as one batch, `[draw, batch, …]`."""
    network.bind(draws, 2 * size, sequences_in(inputs))
    found = network.logits(repeated(inputs, size, 2))
    return found.unflatten(0, (2, size))


def repeated(inputs: Batch, size: int, times: int) -> Batch:
    """Return inputs with their rows, `size` of them, several times over."""
    return {
        name: torch.cat([value] * times) if has_rows(value) and len(value) == size else value
        for name, value in inputs.items()
    }


def logits(network: Any, factors: Mapping[str, Any], inputs: Batch) -> Tensor:
    """Return the logits at the factors of one draw, `[batch, …]`."""
    network.bind(factors)
    return network.logits(copied(inputs))


def _all_equal(draws: Mapping[str, Any], index: int) -> dict[str, Any]:
    """As many draws, all equal to one."""
    return each_factor(draws, lambda factor: factor[index].expand_as(factor))


def _may_be_rounding(model: nn.Module, difference: float, logits: Tensor) -> bool:
    """Whether sums depend on how many rows there are: the same draw in all rows is to be compared then."""
    largest = tolerance(model)
    return largest < difference <= LARGEST and (largest == COARSE or logits.device.type != "cpu")


def doubles(one: Any, two: Any, tolerance: float) -> bool | None:
    """Return whether an output doubles with the rows; False if it stays as it is, and None if it does neither."""
    if not isinstance(one, Tensor) or not isinstance(two, Tensor):
        return False if isinstance(one, Tensor) == isinstance(two, Tensor) else None
    if _same(one, two, tolerance):
        return False
    return True if one.dim() and _same(torch.cat([one, one]), two, tolerance) else None


def _same(one: Tensor, two: Tensor, tolerance: float) -> bool:
    if one.shape != two.shape or one.dtype != two.dtype:
        return False
    return torch.equal(one, two) or (one.is_floating_point() and distance(two, one) <= tolerance)


def distance(given: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected number; logits may be infinite where they are masked."""
    finite = expected.isfinite()
    if given.shape != expected.shape or bool((given.isfinite() != finite).any()) or not bool(finite.any()):
        return float("inf")
    difference = (given - expected)[finite].abs().max()
    return float(difference / expected[finite].abs().max().clamp(min=torch.finfo(expected.dtype).tiny))


def tolerance(model: nn.Module) -> float:
    """Return the largest difference of logits that the coarsest numbers of a network explain."""
    device = next(model.parameters()).device.type
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    if (cast := autocast_dtype(device)) is not None:
        dtypes.add(cast)
    return max(TOLERANCE.get(dtype, COARSE) for dtype in dtypes)
