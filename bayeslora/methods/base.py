"""What a method is: a prior and a guide."""

import abc
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn
from torch.distributions import Distribution

from bayeslora import contracts, guides, natural
from bayeslora.adapters import Family, LowRank, Stack, Stacks
from bayeslora.dials import Dial
from bayeslora.fitted import FittedProgram
from bayeslora.methods import fields
from bayeslora.types import Batch, FactorsByStack, FactorTuple, Sites


class Tuning(NamedTuple):
    """When a method uses held-out data, and what that costs.

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
        head_family: Those of a linear layer of the task head, as further stacks (`stack.in_head`); None for a point.
        num_particles: Draws of the weights per training step, if `fit` is given no number.
        own_batches: Whether particles are members of an ensemble, each of which trains on its own batches.
        guide_learning_rate: That of `guides.spreads` by the Trainer's optimiser; None for the common or its own.
        spread_rate: Peak rate of natural steps, for methods that have them; None for one that is fit for the run.
        rate_factor, fewest_steps: Of `fit` by default: the rate in units of LoRA's; the steps (see `recipe`).
        dial: The number that says how loud it is; None if that is the temperature of its predictions.
        refit: Whether cross-fitting returns one fit of all data by default, not its members.
        post_hoc: Whether adapters and task head stay as they were passed to `fit(init=…)`.
        approximation: How a posterior predicts by default: `"draws"`, running the network on draws, or `"linear"`.
        claims: What its draws are: of a `"posterior"`, whose prior, temperature and likelihood the program states;
            `"noise"`, whose loudness a field, a search, the optimiser's path or another posterior sets; or `"points"`.
    """

    name: ClassVar[str]
    family: ClassVar[Family] = LowRank()
    head_family: ClassVar[Family | None] = None
    num_particles: ClassVar[int] = 1
    own_batches: ClassVar[bool] = False
    guide_learning_rate: float | None = None
    spread_rate: float | None = None
    rate_factor: ClassVar[float] = 1.0
    fewest_steps: ClassVar[int] = 200
    dial: ClassVar[Dial | None] = None
    refit: ClassVar[bool] = False
    post_hoc: bool = False
    approximation: ClassVar[str] = "draws"
    claims: ClassVar[str] = "posterior"

    def __post_init__(self) -> None:
        """Check every field against its declaration; a method adds its checks across fields after this one."""
        fields.check(self)

    @abc.abstractmethod
    def prior(self, stacks: Stacks) -> FactorsByStack:
        """Sample every site from p, and return the factors of every stack, by its name."""

    @abc.abstractmethod
    def guide(self, stacks: Stacks) -> nn.Module:
        """Return the module that samples the same sites from q; all learned adapter state lives in it."""

    def start_rank(self, rank: int) -> int:
        """Return the rank at which a layer starts, given the one passed to `fit`; for methods that prune."""
        return rank

    def num_draws(self, guide: nn.Module) -> int | None:
        """Return how many draws a finite posterior has, which are enumerated; None if draws are sampled."""
        return None

    def summaries(self, stack: Stack, sites: Sites) -> Mapping[str, tuple[Tensor, tuple[str, ...]]]:
        """Compute small, meaningful functions of one stack's sites for diagnostics.

        Args:
            stack: The stack.
            sites: Site name, without that of the stack, to draws, `[draw, layer, …]`.

        Returns:
            Name to value `[draw, layer, …]` and the names of its dimensions after those two.
        """
        return {}

    def claimed_priors(self, program: FittedProgram) -> Mapping[str, Distribution]:
        """Return the priors of a posterior that was made under other ones than `prior` has, by site.

        Their batch shape is `[layer]`, their temperature 1. Laplace, which chooses precisions last, returns Gaussians.
        """
        return {}

    def carry_on(self, guide: nn.Module) -> None:
        """Prepare a guide to be trained on: it is in the state of an earlier fit, whose guide is the prior."""

    def optimizer_groups(self, program: FittedProgram, learning_rate: float) -> list[natural.Group]:
        """Return groups of parameters that the Trainer's optimiser does not step; each names one of `natural.STEPS`.

        This is how a method brings an optimiser of its own. By default there are none. Their gradients are not clipped,
        and what is kept for their steps lies in the optimiser's state, which a checkpoint holds.

        Args:
            program: The program, whose `num_steps` are set.
            learning_rate: That of the Trainer's optimiser.
        """
        return []

    def after_step(self, program: FittedProgram, step: int) -> None:
        """React to an optimiser step, counted from 1 to `program.num_steps`, while its gradients are still there."""

    def tuning(self) -> Tuning | None:
        """Return when `tune` is to be called; None for a method that needs no held-out data."""
        return None

    def tune(self, program: FittedProgram, batches: Sequence[Batch]) -> None:
        """Set what cannot be learned from training data, using held-out batches; the program is in evaluation mode."""

    def refine(
        self, program: FittedProgram, guide: nn.Module, train: Iterable[Batch], validation: Iterable[Batch]
    ) -> nn.Module:
        """Return the guide to use, once after training, or instead of it if there is nothing to train.

        Its results belong in parameters and buffers of a new guide, which a saved posterior is loaded into by name.

        Args:
            program: The fitted program, in evaluation mode.
            guide: Its guide.
            train: Batches of the training data on the network's device, which can be iterated over repeatedly.
            validation: Batches of the held-out data; empty if there is none.
        """
        return guide

    def record(self) -> dict[str, Any]:
        """Return the fields, ready for JSON."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    def require(self, holds: bool, field: str, what: str) -> None:
        """Refuse the value of a field unless a condition holds that its declaration cannot express.

        Args:
            holds: The condition.
            field: The name of the field.
            what: What is wrong, or what to give instead.

        Raises:
            ValueError: If the condition does not hold.
        """
        if not holds:
            raise contracts.ArgumentError(f"{field}={getattr(self, field)!r}: {what}.")

    def replace(self, **values: Any) -> "Method":
        """Return the same method with some of its fields changed."""
        contracts.refuse_unknown(values, own_fields(type(self)))
        return dataclasses.replace(self, **values)  # type: ignore[type-var]


class PerStackMethod(Method):
    """A method whose stacks are independent, so that it only has to write one stack."""

    @abc.abstractmethod
    def stack_prior(self, stack: Stack) -> FactorTuple:
        """Sample one stack's sites from p, and return its factors."""

    @abc.abstractmethod
    def stack_guide(self, stack: Stack) -> nn.Module:
        """Return the module that samples the same sites from q."""

    def prior(self, stacks: Stacks) -> FactorsByStack:
        return {name: self.stack_prior(stack) for name, stack in stacks.items()}

    def guide(self, stacks: Stacks) -> nn.Module:
        return guides.PerStack({name: self.stack_guide(stack) for name, stack in stacks.items()})


def own_fields(cls: type[Method]) -> contracts.Fields:
    """Return the fields of a method, and what each may hold."""
    return contracts.Fields(fields.declarations(cls), cls.__name__)


def guarded(cls: type[Method]) -> type[Method]:
    """Let a method's constructor refuse fields that it does not have in the words of `fit`; return the method."""
    if dataclasses.is_dataclass(cls) and "__init__" in vars(cls) and not hasattr(cls.__init__, "__contract__"):
        setattr(cls, "__init__", contracts.checked(noun="field")(cls.__init__))  # noqa: B010 (mypy)
    return cls
