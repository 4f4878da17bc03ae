"""Ensembles: members trained from several starts, or kept from one run."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora import guides, priors
from bayeslora.adapters import Affine, Stack
from bayeslora.fitted import FittedProgram
from bayeslora.methods.base import PerStackMethod
from bayeslora.methods.fields import Few, PartOfRun
from bayeslora.types import FactorTuple


@dataclass(frozen=True)
class Ensemble(PerStackMethod):
    """A finite posterior: every member has its own points for all factors, including those of the task head.

    Args:
        members: M, the number of members.
    """

    head_family = Affine()
    claims = "points"
    members: Few = 3

    def stack_prior(self, stack: Stack) -> FactorTuple:
        with stack.layers:
            return priors.flat_factors(stack)


@dataclass(frozen=True)
class DeepEnsemble(Ensemble):
    r"""M LoRAs, each with its own start, task head and order of the data, trained together around one frozen network.

    The posterior is $\frac1M \sum_m \delta(\theta - \theta_m)$, with $\theta_m$ all of member m's `A` and `B` and the
    change of its head. The loss per example is the average over members of a member's NLL on its own batch, in nats. A
    draw is a member: M draws are the members in order, each once. The centre is the last member.

    A step takes M batches, one per member, in one pass of M times as many rows. It costs as much as M steps of LoRA,
    with one frozen network in memory. If the data is a `DataLoader`, all members get the same batch.

    Args:
        members: M.
        fresh_heads: Whether all members but the last start from their own heads, made by shuffling the entries of the
            model's; otherwise, all start from the model's head. With `fit(init=…)`, all start from the trained head
            and adapters.

    Raises:
        ValueError: If there are no members.

    Differs from the paper: no adversarial training; members share the frozen network.

    References:
        Lakshminarayanan et al. (2016), [deep ensembles](https://arxiv.org/abs/1612.01474).
    """

    name = "deep_ensemble"
    own_batches = True
    fresh_heads: bool = True

    @property
    def num_particles(self) -> int:  # type: ignore[override]
        return self.members

    def stack_guide(self, stack: Stack) -> nn.Module:
        others = [self._start(stack) for _ in range(self.members - 1)]
        starts = zip(*others, stack.initial(), strict=True)
        # Shuffled weights are where the network is; what else there is will be moved there.
        values = {
            name: torch.stack([value.to(start[0].device) for value in start])
            for name, start in zip(stack.shapes, starts, strict=True)
        }
        sites: dict[str, Any] = {name: guides.Members(value) for name, value in values.items()}
        return guides.Sites(stack, **sites)

    def num_draws(self, guide: nn.Module) -> int:
        return self.members

    def _start(self, stack: Stack) -> FactorTuple:
        factors = stack.initial()
        if not (stack.in_head and self.fresh_heads):
            return factors
        return factors._replace(weight=shuffled(stack.measured["W0"]) - stack.measured["W0"])


def shuffled(weights: Tensor) -> Tensor:
    """Shuffle the entries of each layer's weight, `[layer, d_out, d_in]`, which keeps their distribution."""
    return torch.stack([weight.flatten()[torch.randperm(weight.numel())].view_as(weight) for weight in weights])


@dataclass(frozen=True)
class CheckpointEnsemble(Ensemble):
    r"""The last M checkpoints of one run of LoRA, adapters and task head, at LoRA's cost of training.

    The posterior is $\frac1M \sum_m \delta(\theta - \theta_{t_m})$, with $\theta_t$ the factors after step t of T, and
    $t_m = T\,(1 - f\,(1 - m/M))$, rounded, m = 1 … M. The loss is the NLL per example. A draw is a member: M draws are
    the checkpoints in order, each once. The centre is the last member, the end of the run.

    Args:
        members: M; there are fewer if the run has fewer steps.
        last_part: f, the part of the run, up to its end, over which the checkpoints are spread evenly.

    Raises:
        ValueError: If there are no members, or f is not in (0, 1].

    References:
        Chen et al. (2017), [Checkpoint Ensembles](https://arxiv.org/abs/1710.03282).
    """

    name = "checkpoint_ensemble"
    members: Few = 5
    last_part: PartOfRun = 0.5

    def stack_guide(self, stack: Stack) -> nn.Module:
        starts = stack.initial()._asdict()
        sites: dict[str, Any] = {name: guides.Snapshots(value, self.members) for name, value in starts.items()}
        return guides.Sites(stack, **sites)

    def num_draws(self, guide: nn.Module) -> int:
        return max(1, snapshots(guide)[0].size)

    def after_step(self, program: FittedProgram, step: int) -> None:
        if step in guides.last_steps(program.num_steps, self.members, self.last_part):
            for site in snapshots(program.guide):
                site.take()


def snapshots(guide: nn.Module) -> list[guides.Snapshots]:
    """Return the sites of a guide that keep snapshots."""
    return [site for site in guide.modules() if isinstance(site, guides.Snapshots)]
