"""AdaLoRA: singular triplets pruned by their importance, to a rank that differs from layer to layer."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor, nn

from bayeslora import guides, priors
from bayeslora.adapters import SVD, Stack, SVDFactors
from bayeslora.fitted import FittedProgram
from bayeslora.methods.base import PerStackMethod
from bayeslora.methods.fields import Count, NonNegative, Share, Within
from bayeslora.types import PerLayer, Sites


@dataclass(frozen=True)
class AdaLoRA(PerStackMethod):
    r"""A point estimate of `P`, `lam` and `Q` whose least important triplets are pruned during training.

    For each layer $h = W_0 x + s P\, \mathrm{diag}(\lambda)\, Q x$, with flat priors. The loss per example, in nats, is

    $$\ell = \mathrm{NLL} + \gamma \sum_{\mathrm{layers}}
      \big( \lVert P^\top P - I \rVert_F^2 + \lVert Q Q^\top - I \rVert_F^2 \big).$$

    After every step the sensitivity $I = \lvert w\, \partial \ell / \partial w \rvert$ of each entry $w$ is smoothed,

    $$\bar I \leftarrow \beta_1 \bar I + (1 - \beta_1) I, \qquad
      U \leftarrow \beta_2 U + (1 - \beta_2) \lvert I - \bar I \rvert,$$

    and $\bar I\, U$ is its score. The importance of triplet i, $(P_{:,i}, \lambda_i, Q_{i,:})$, is the score of
    $\lambda_i$ plus the mean scores of $P_{:,i}$ and of $Q_{i,:}$. Of T steps, the first $t_i$ prune nothing. Then, at
    every ΔT-th step t, all $\lambda_i$ but those of the b(t) most important triplets of the whole network become 0:

    $$b(t) = b_T + (b_0 - b_T) \Big( 1 - \frac{t - t_i}{T - t_i - t_f} \Big)^3,$$

    rounded down. Pruned triplets go on learning, and may return. From step $T - t_f$ on the scores are frozen, and
    every step prunes to the same $b_T$ triplets.

    Args:
        init_ratio: $b_0 / b_T$. The `rank` of `fit` is the mean rank at the end, $b_T$ over the number of layers;
            layers start at `init_ratio` times it, rounded up, and s is alpha over the rank they start at. Adapters from
            `fit(init=…)` are the start, and end with their rank over `init_ratio`, rounded down.
        orthogonality: γ, in nats.
        warmup: $t_i / T$.
        final: $t_f / T$.
        interval: ΔT, in steps.
        beta1: $\beta_1$, of the mean.
        beta2: $\beta_2$, of the spread.

    Raises:
        ValueError: If a field is out of its range; after a step, if the program has not been told T.

    Differs from the released code: the penalty is that of the paper's formula, the sum over layers of squared norms,
    not the mean of the norms.

    References:
        Zhang et al. (2023), [AdaLoRA](https://arxiv.org/abs/2303.10512).
    """

    name = "adalora"
    claims = "points"
    rate_factor = 3.0  # singular values start at 0
    family = SVD()
    init_ratio: Annotated[float, Within(at_least=1, below=math.inf)] = 1.5
    orthogonality: NonNegative = 0.5
    warmup: Share = 0.1
    final: Share = 0.5
    interval: Count = 10
    beta1: Share = 0.85
    beta2: Share = 0.85

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            self.warmup + self.final <= 1, "final", f"with warmup={self.warmup} it is more than the whole training"
        )

    def start_rank(self, rank: int) -> int:
        return math.ceil(self.init_ratio * rank - 1e-9)

    def target_rank(self, start_rank: int) -> int:
        """Return the mean rank at the end, given the rank at the start: the inverse of `start_rank`."""
        return max(1, math.floor(start_rank / self.init_ratio + 1e-9))

    def stack_prior(self, stack: Stack) -> SVDFactors:
        with stack.layers, poutine.scale(scale=1 / stack.num_examples):
            return priors.flat_factors(stack)

    def stack_guide(self, stack: Stack) -> nn.Module:
        return AdaLoRAGuide(self, stack)

    def num_draws(self, guide: nn.Module) -> int | None:
        return 1

    def after_step(self, program: FittedProgram, step: int) -> None:
        # A method that builds on this one holds its guides inside its own.
        stacks = [module for module in program.guide.modules() if isinstance(module, AdaLoRAGuide)]
        first, last = self.phases(program.num_steps)
        if step <= last:
            for stack in stacks:
                stack.update_scores()
        if step >= last or (step > first and step % self.interval == 0):
            prune(stacks, self.budget(step, program.num_steps, [guide.stack for guide in stacks]))

    def phases(self, num_steps: int) -> tuple[int, int]:
        """Return the last step that prunes nothing, $t_i$, and the first at the final budget, $T - t_f$."""
        return round(self.warmup * num_steps), num_steps - round(self.final * num_steps)

    def budget(self, step: int, num_steps: int, stacks: Sequence[Stack]) -> int:
        """Return b(t), how many triplets of these stacks are left after a step."""
        start = sum(len(stack) * stack.rank for stack in stacks)
        target = sum(len(stack) * self.target_rank(stack.rank) for stack in stacks)
        first, last = self.phases(num_steps)
        if step >= last:
            return target
        left = 1 - max(0, step - first) / (last - first) if last > first else 1
        return target + int((start - target) * left**3)

    def summaries(self, stack: Stack, sites: Sites) -> Mapping[str, tuple[Tensor, tuple[str, ...]]]:
        return {"rank": (sites["lam"].ne(0).double().sum(-1), ())}


def prune(stacks: Sequence["AdaLoRAGuide"], budget: int) -> None:
    """Set λ to 0 except for the most important triplets of all stacks, as many as the budget allows."""
    importance = [stack.importance() for stack in stacks]
    scores = torch.cat([part.flatten() for part in importance])
    dropped = torch.ones_like(scores, dtype=torch.bool)
    dropped[scores.topk(budget).indices] = False
    for stack, mask in zip(stacks, dropped.split([part.numel() for part in importance]), strict=True):
        lam = stack.point("lam")
        lam.data.masked_fill_(mask.view_as(lam), 0)


class AdaLoRAGuide(guides.Sites):
    """Points for the factors of one stack, the penalty on them, and the scores of their entries as buffers."""

    def __init__(self, method: AdaLoRA, stack: Stack):
        factors = stack.initial()._asdict()
        points = {name: guides.Point(value) for name, value in factors.items()}
        super().__init__(stack, scale=1 / stack.num_examples, **points)
        self.method = method
        for name, value in factors.items():
            self.register_buffer(f"sensitivity_{name}", torch.zeros_like(value))
            self.register_buffer(f"uncertainty_{name}", torch.zeros_like(value))

    def point(self, name: str) -> nn.Parameter:
        """Return the parameter of a factor, `[layer, …]`."""
        return self.get_parameter(f"sites.{name}.loc")

    def sample(self) -> dict[str, Tensor]:
        factors = super().sample()
        if self.method.orthogonality:
            # In the guide, a factor enters the loss with a plus sign.
            penalty = self.method.orthogonality * self.distance_from_orthogonal()
            pyro.factor(self.stack.site("orthogonality"), penalty, has_rsample=True)
        return factors

    def distance_from_orthogonal(self) -> PerLayer:
        r"""Return $\lVert P^\top P - I \rVert_F^2 + \lVert Q Q^\top - I \rVert_F^2$, `[layer]`."""
        P, Q = self.point("P"), self.point("Q")
        identity = torch.eye(self.stack.rank, dtype=P.dtype, device=P.device)
        return (P.mT @ P - identity).square().sum((-2, -1)) + (Q @ Q.mT - identity).square().sum((-2, -1))

    @torch.no_grad()
    def update_scores(self) -> None:
        """Update the smoothed sensitivity of every entry, and its distance from the mean, with the new gradients."""
        method = self.method
        for name in self.sites:
            point = self.point(name)
            gradient = torch.zeros_like(point) if point.grad is None else point.grad  # of a layer that none reaches
            # Gradients overflow now and then in half-precision training, which then skips the step.
            sensitivity = (point * gradient).abs().nan_to_num(0, 0, 0)
            mean, spread = self.get_buffer(f"sensitivity_{name}"), self.get_buffer(f"uncertainty_{name}")
            mean.lerp_(sensitivity, 1 - method.beta1)
            spread.lerp_((sensitivity - mean).abs(), 1 - method.beta2)

    def importance(self) -> Float[Tensor, "layer rank"]:
        """Return each triplet's score of λ plus the mean scores of its column of `P` and its row of `Q`."""
        P, lam, Q = (self.get_buffer(f"sensitivity_{n}") * self.get_buffer(f"uncertainty_{n}") for n in self.sites)
        return P.mean(-2) + lam + Q.mean(-1)
