"""A network to first order in its factors."""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

from bayeslora.adapters.layer import NotFoldedError
from bayeslora.adapters.network import AdaptedNetwork
from bayeslora.adapters.rows import has_rows, num_rows, sequences_in
from bayeslora.adapters.stack import each_factor
from bayeslora.isolation import working
from bayeslora.types import Batch, FactorsByStack

# Numbers in the gradients held at once: examples × factors.
GRADIENT_NUMBERS = 2**26


class Linearised:
    r"""Logits to first order in the factors, about their centre.

    $$f_s(x) = f(x) + J(x)\, \delta_s, \qquad J = \partial f / \partial(\mathrm{factors}),$$

    with $\delta_s$ the difference of draw s from the centre. For Gaussian factors with covariance C, the logits are
    draws from $N(f, J C J^\top)$, jointly over examples. The network runs forwards once, and backwards once per class,
    however many draws there are. Every example gets its own copy of the centre's factors, so that one backward pass
    gives a gradient per example.

    Args:
        network: The network.
        centre: Factors at which it is expanded, by stack, `[layer, …]`.
        draws: Iterates over factors, by stack, `[draw, layer, …]`, some draws at a time.
        select: Selects the wanted part of the network's output, given output and inputs: a number, or one for each
            class or choice, per example.
        contrasts: Whether logits matter only up to a constant, as under a softmax. This saves one backward pass; the
            first logit is then the same in every draw.

    Raises:
        ValueError: If a family has noise besides its factors.
    """

    def __init__(
        self,
        network: AdaptedNetwork,
        centre: FactorsByStack,
        draws: Callable[[], Iterable[FactorsByStack]],
        select: Callable[[Tensor, Batch], Tensor],
        contrasts: bool = False,
    ):
        for stack in network.stacks.values():
            if stack.family.without_noise() is not stack.family:
                raise ValueError(
                    f"{type(stack.family).__name__} has noise of its own, in which the network has no gradient: "
                    "predict with approximation='draws'."
                )
        self.network = network
        self.centre = each_factor(centre, Tensor.detach)
        self.select = select
        self.contrasts = contrasts
        self.draws = draws
        self.num_draws = 0
        wanted: set[tuple[str, int]] = set()
        for size, found in map(self._moving, draws()):
            self.num_draws += size
            wanted |= found
        places = [(name, index) for name, value in self.centre.items() for index in range(len(value))]
        self.wanted = [place for place in places if place in wanted]
        numbers = sum(self.centre[name][index].numel() for name, index in self.wanted)
        self.rows = max(1, GRADIENT_NUMBERS // max(numbers, 1))

    def _moving(self, block: FactorsByStack) -> tuple[int, set[tuple[str, int]]]:
        """Return the number of draws, and the factors that are not at the centre: points need no gradient."""
        found = {
            (name, index)
            for name, value in block.items()
            for index, (factor, at_centre) in enumerate(zip(value, self.centre[name], strict=True))
            if bool((factor != at_centre).any())
        }
        return len(next(iter(block.values()))[0]), found

    def __call__(self, inputs: Batch) -> Tensor:
        """Return logits, `[draw, batch, class]`, or `[draw, batch]` if they are numbers, without a gradient.

        Raises:
            ValueError: If an example has more than a vector of logits, or an adapted layer's input is not batch first.
        """
        size = num_rows(inputs)
        chunks = []
        for start in range(0, size, self.rows):
            part = {
                name: value[start : start + self.rows] if has_rows(value) and len(value) == size else value
                for name, value in inputs.items()
            }
            chunks.append(self._chunk(part, min(self.rows, size - start)))
        return torch.cat(chunks, dim=1)

    @working
    def _chunk(self, inputs: Batch, size: int) -> Tensor:
        factors = each_factor(self.centre, lambda factor: factor.expand(size, *factor.shape))
        wanted = [factors[name][index].requires_grad_() for name, index in self.wanted]
        with torch.enable_grad():
            folds = self.network.folds(self.centre, inputs)
            self.network.bind(factors, size, sequences_in(inputs), apart=not folds)
            try:
                output = self.network.logits(inputs)
            except NotFoldedError:
                raise ValueError(
                    f"{type(self.network.model).__name__} does not keep the batch first in every adapted layer, so "
                    "that it has no gradient per example: predict with approximation='draws'."
                ) from None
            logits = self.select(output, inputs)
            if logits.dim() > 2:
                raise ValueError(
                    f"The network's output is {tuple(output.shape)}; linearised prediction needs one vector of "
                    "logits per example: predict with approximation='draws'."
                )
            columns = logits.view(size, -1)
            columns = (columns[:, 1:] - columns[:, :1]) if self.contrasts else columns
            changes = [self._change(column.sum(), wanted) for column in columns.unbind(1)] if wanted else []
        self.network.unbind()
        # The factors of a network in half precision, and their effect, are in single precision.
        result = (
            logits.detach()
            .to(torch.promote_types(logits.dtype, torch.float32))
            .repeat(self.num_draws, *[1] * logits.dim())
        )
        for index, change in enumerate(changes, start=int(self.contrasts)):
            result.view(self.num_draws, size, -1)[..., index] += change
        return result

    def _change(self, output: Tensor, wanted: list[Tensor]) -> Tensor:
        """Return J δ of one output, `[draw, batch]`."""
        found = torch.autograd.grad(output, wanted, retain_graph=True, allow_unused=True)
        gradients = tuple(torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found, strict=True))
        with torch.no_grad():
            return torch.cat([*map(partial(self._along, gradients), self.draws())])

    def _along(self, gradients: tuple[Tensor, ...], block: FactorsByStack) -> Tensor:
        parts = zip(self.wanted, gradients, strict=True)
        return torch.stack(
            [(block[n][i] - self.centre[n][i]).flatten(1) @ gradient.flatten(1).T for (n, i), gradient in parts]
        ).sum(0)
