"""What a method is: a prior and a guide."""

import abc
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from bayeslora import guides
from bayeslora.adapters import Family, LowRank, Stack, Stacks
from bayeslora.fitted import FittedProgram
from bayeslora.methods import fields
from bayeslora.types import Batch, FactorsByStack, FactorTuple, Sites


class Tuning(NamedTuple):
    """When a method looks at held-out data, and what that costs.

    Args:
        moments: Fractions of training after which `tune` is called.
        passes: Forward passes over its data that one call takes.
    """

    moments: tuple[float, ...]
    passes: int


class Method(abc.ABC):
    """A prior and a guide over the factors of a network's adapters.

    A method is a frozen dataclass: its fields are its hyperparameters, its command-line flags and its record in a saved
    posterior. Their annotations say what they may hold, which is checked (`fields`). It scales its own sites (the
    program averages the likelihood and nothing else), in prior and guide.

    Attributes:
        name: Its key in `METHODS`.
        family: Which factors a layer of the body has.
        head_family: Which factors a linear layer of the task head has, for a method that takes the head in as more
            stacks (`stack.in_head`); None, and the head is trained as a point.
        num_particles: Draws of the weights per training step, where `fit` is given no number.
        own_batches: Whether the particles are the members of an ensemble, `num_particles` of them, each of which trains
            on batches of its own.
        guide_learning_rate: Rate of the guide's spreads (`guides.spreads`); None for the common one.
        post_hoc: Whether trained adapters and task head stay as `fit(init=…)` gave them.
        approximation: How a posterior predicts by default: `"draws"`, running the network on draws, or `"linear"`.
    """

    name: ClassVar[str]
    family: ClassVar[Family] = LowRank()
    head_family: ClassVar[Family | None] = None
    num_particles: ClassVar[int] = 1
    own_batches: ClassVar[bool] = False
    guide_learning_rate: float | None = None
    post_hoc: bool = False
    approximation: ClassVar[str] = "draws"

    def __post_init__(self) -> None:
        """Check every field against its declaration; conditions across fields go into a method's own, after this."""
        fields.check(self)

    @abc.abstractmethod
    def prior(self, stacks: Stacks) -> FactorsByStack:
        """Sample every site from p, and return the factors of every stack, by its name."""

    @abc.abstractmethod
    def guide(self, stacks: Stacks) -> nn.Module:
        """The same sites from q; all learned adapter state lives in this module."""

    def start_rank(self, rank: int) -> int:
        """The rank at which a layer starts, given the one asked of `fit`; for methods that prune."""
        return rank

    def num_draws(self, guide: nn.Module) -> int | None:
        """Draws of a finite posterior, which are enumerated; None where draws are sampled."""
        return None

    def summaries(self, stack: Stack, sites: Sites) -> Mapping[str, tuple[Tensor, tuple[str, ...]]]:
        """Small, meaningful functions of one stack's sites for diagnostics.

        Args:
            stack: The stack.
            sites: Site name without the stack's to draws, `[draw, layer, …]`.

        Returns:
            Name to value `[draw, layer, …]` and the names of its dimensions after those two.
        """
        return {}

    def after_step(self, program: FittedProgram, step: int) -> None:
        """Called after each optimiser step, from 1 to `program.num_steps`, while the gradients are still there."""

    def tuning(self) -> Tuning | None:
        """When `tune` is to be called; None for a method that needs no held-out data."""
        return None

    def tune(self, program: FittedProgram, batches: Sequence[Batch]) -> None:
        """Set what training data cannot tell, from held-out batches; the program is in evaluation mode."""

    def refine(
        self, program: FittedProgram, guide: nn.Module, train: Iterable[Batch], validation: Iterable[Batch]
    ) -> nn.Module:
        """Called once after training, or instead of it where there is nothing to train; returns the guide to use.

        What it finds belongs into parameters and buffers that a new guide already has: a saved posterior is loaded into
        a new guide, by their names.

        Args:
            program: The fitted program, in evaluation mode.
            guide: Its guide.
            train: Batches of the training data on the network's device, which can be gone over again.
            validation: Likewise, of the held-out data; empty where there is none.
        """
        return guide

    def record(self) -> dict[str, Any]:
        """Its fields, ready for JSON."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    def require(self, holds: bool, field: str, what: str) -> None:
        """Refuse the value of a field, and say what to give, unless a condition holds that a declaration cannot say.

        Raises:
            ValueError: If it does not.
        """
        if not holds:
            raise ValueError(f"{field}={getattr(self, field)!r}: {what}.")

    def replace(self, **values: Any) -> "Method":
        """The same method with other values of some of its fields."""
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(self)})  # type: ignore[arg-type]
        if unknown:
            raise TypeError(unknown_fields(type(self), unknown))
        return dataclasses.replace(self, **values)  # type: ignore[type-var]


class PerStackMethod(Method):
    """A method whose stacks are independent: it writes one stack."""

    @abc.abstractmethod
    def stack_prior(self, stack: Stack) -> FactorTuple:
        """Sample one stack's sites from p, and return its factors."""

    @abc.abstractmethod
    def stack_guide(self, stack: Stack) -> nn.Module:
        """The same sites from q."""

    def prior(self, stacks: Stacks) -> FactorsByStack:
        return {name: self.stack_prior(stack) for name, stack in stacks.items()}

    def guide(self, stacks: Stacks) -> nn.Module:
        return guides.PerStack({name: self.stack_guide(stack) for name, stack in stacks.items()})


def unknown_fields(cls: type[Method], unknown: Iterable[str]) -> str:
    """The message about fields a method does not have."""
    known = ", ".join(field.name for field in dataclasses.fields(cls))  # type: ignore[arg-type]
    has = f"its fields are: {known}" if known else "it has no fields"
    return f"{cls.__name__} has no field {', '.join(map(repr, unknown))}; {has}."
