"""Adapters that are tried on the first examples: which of them get a gradient, and what to do where some get none."""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from bayeslora.adapters import gradients
from bayeslora.adapters.folding import moved
from bayeslora.adapters.inspection import oddity
from bayeslora.choice import NO_GRADIENT, Choice, line, listed
from bayeslora.isolation import random_states, set_random_states
from bayeslora.networks import inputs_of
from bayeslora.program import Program
from bayeslora.types import Batch, FactorsByStack

logger = logging.getLogger(__name__)

T = TypeVar("T")


def check(program: Program, choice: Choice, batch: Batch) -> bool:
    """Try the adapters on a few examples: who gets a gradient, in a pass of its own.

    Where embeddings have to have a gradient for that, they get one.

    Returns:
        Whether they got one.

    Raises:
        ValueError: If no adapter gets a gradient.
    """
    network = program.network
    factors = moved(network, program.factors_at(program.centre()), None)
    found, given = _reached(program, factors, batch), False
    if found is None:
        return False
    if not _called(program, choice) <= found:
        handles = gradients.let_inputs_have_gradients(network.model)
        more = _reached(program, factors, batch) or set()
        given = not more <= found
        if not given:
            for handle in handles:
                handle.remove()
        found |= more
    names = _names(program)
    if not found and not program.method.post_hoc:
        raise ValueError(
            f"None of the {len(names)} adapters gets a gradient from the first examples, so that nothing would be "
            f"learned: {type(network.model).__name__} computes its logits from them in a way that PyTorch does not "
            "record, such as in torch.no_grad(), or not at all. Choose other `targets`."
        )
    choice.silent = tuple(name for name in names if name not in found)
    return given


def check_folds(program: Program, batch: Batch) -> None:
    """Find out whether several draws can run as one batch, if training has several: otherwise, prediction does."""
    if program.elbo.num_particles > 1:
        factors = moved(program.network, program.factors_at(program.centre()), None)
        program.network.folds(factors, inputs_of(batch))


class FirstStep:
    """The first step of training, whose own backward pass shows which adapters get a gradient.

    If all do, there is nothing more to find out. Where some do not, or the step fails, `check` decides, before the
    optimiser has changed anything; the step is made anew if that has let embeddings have a gradient.

    Args:
        program: The program.
        choice: Which layers are adapted.
        batch: The first examples, for `check`.
    """

    def __init__(self, program: Program, choice: Choice, batch: Batch):
        self.program = program
        self.choice = choice
        self.batch = batch
        self.found: set[str] = set()
        self.odd: set[str] = set()
        choice.silent = tuple(name for name in _names(program) if name in choice.seen.uncalled)

    def __call__(self, step: Callable[[], T]) -> T:
        """Return what a step returns that runs the program forward and backward.

        Raises:
            ValueError: If no adapter gets a gradient, or the network writes into what gradients are computed from.
        """
        states, silent, failure = random_states(), self.choice.silent, None
        try:
            with self._watching():
                result = step()
        except RuntimeError as error:  # such as that there is nothing to differentiate
            if gradients.IN_PLACE in str(error):
                raise ValueError(gradients.writes_in_place(self.program.network.model)) from error
            failure = error
        if self.odd:
            logger.warning(
                "In training, the output of some layers is not the product of their input and their weight, plus their "
                "bias, as it is in evaluation: adapters are trained beside one thing and predict beside another at %s.",
                listed(sorted(self.odd)),
            )
        if failure is None and (self._has_diverged(result) or _called(self.program, self.choice) <= self.found):
            return result
        given = check(self.program, self.choice, self.batch)
        if more := [name for name in self.choice.silent if name not in (*silent, *self.program.network.head_names)]:
            logger.info("%s", line(NO_GRADIENT, f"from the first examples, at {listed(more)}"))
        if given:
            for _, parameter in self.program.trainable():
                parameter.grad = None
            set_random_states(states)
            return step()
        if failure is not None:
            raise failure
        return result

    @staticmethod
    def _has_diverged(loss: Any) -> bool:
        """Whether a loss is not finite, which is said elsewhere."""
        return isinstance(loss, Tensor) and not bool(loss.isfinite().all())

    @contextmanager
    def _watching(self) -> Iterator[None]:
        self.program.watch = self._watched
        network, known = self.program.network, set[str]()
        hooks = [
            layer.base.register_forward_hook(partial(self._compare, known, name), with_kwargs=True)
            for stack in network.stacks.values()
            for name, layer in zip(stack.layer_names, network.layers(stack.name), strict=True)
        ]
        try:
            with warnings.catch_warnings():  # of activation checkpointing, where embeddings have to have a gradient
                warnings.filterwarnings("ignore", "None of the inputs have requires_grad")
                yield
        finally:
            self.program.watch = None
            for hook in hooks:
                hook.remove()

    @torch.no_grad()
    def _compare(self, known: set[str], name: str, layer: Any, args: Any, kwargs: Any, output: Any) -> None:
        """Compare a layer's first output with its product: some compute something else in training."""
        if name not in known and oddity(layer, args, kwargs, output) is not None:
            self.odd.add(name)
        known.add(name)

    def _watched(self, factors: FactorsByStack) -> FactorsByStack:
        """Return the same factors, whose gradient is that of the network alone: a divergence gives one to any."""
        watched: dict[str, Any] = {}
        for name, stack in self.program.network.stacks.items():
            parts = zip(factors[name], stack.family.layer_dims, strict=True)
            watched[name] = type(factors[name])(*(self._seen(name, value, dims) for value, dims in parts))
        return watched

    def _seen(self, stack: str, factor: Any, dims: int) -> Any:
        if not (isinstance(factor, Tensor) and factor.requires_grad):
            return factor
        own = factor.view_as(factor)
        own.register_hook(partial(self._note, stack, dims))
        return own

    def _note(self, stack: str, dims: int, gradient: Tensor | None) -> None:
        if gradient is None:  # an operator on the way has no backward pass
            return
        sizes = gradient.abs().movedim(-1 - dims, 0).flatten(1).amax(1)
        names = self.program.network.stacks[stack].layer_names
        self.found |= {name for name, size in zip(names, sizes.tolist(), strict=True) if size != 0}  # or NaN


def _names(program: Program) -> list[str]:
    return [name for stack in program.network.stacks.values() for name in stack.layer_names]


def _called(program: Program, choice: Choice) -> set[str]:
    return {name for name in _names(program) if name not in choice.seen.uncalled}


def _reached(program: Program, factors: Mapping[str, Any], batch: Batch) -> set[str] | None:
    """Return the names of the layers that get a gradient; None if the backward pass fails in both modes."""
    for training in (True, False):  # some networks have a backward pass in one of the modes alone
        try:
            return gradients.reached(
                program.network, factors, lambda leaves: program.network_logits(leaves, batch), training
            )
        except Exception as error:  # which training, if there is any, meets as well
            said = error
    logger.info("Gradients could not be tried on the first examples: %s", said)
    return None
