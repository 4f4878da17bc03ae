"""TFB: noise around a trained LoRA, as large as the likelihood tolerates."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from bayeslora import guides, priors
from bayeslora.adapters import Factors, Stack
from bayeslora.dials import Dial
from bayeslora.fitted import FittedProgram
from bayeslora.isolation import seeded
from bayeslora.methods.base import PerStackMethod
from bayeslora.methods.fields import Positive
from bayeslora.types import WEIGHTS, Batch

logger = logging.getLogger(__name__)

FIRST_SIGMA, OCTAVES, STEPS_PER_OCTAVE = 0.01, 10, 16
"""The grid of σ: where the search begins, how far it goes in both directions, and how fine it is."""


@dataclass(frozen=True)
class TFB(PerStackMethod):
    r"""Training-free Bayesianisation: a trained LoRA, with noise whose size is set by one number.

    For each layer, with the singular value decomposition $B = U \mathrm{diag}(d) V^\top$ of the trained $B$:

    $$A' = V^\top A, \quad B' = U \mathrm{diag}(d), \qquad q(A'_{ij}) = N(V^\top A, \sigma^2 / d_i^2)_{ij},$$

    with no noise on rows whose $d_i$ is numerically 0. The product $B' A'$ has mean $B A$ and noise $U Z$, with
    $Z_{ij} \sim N(0, \sigma^2)$, equally large in every direction of $U$. The whole network has one σ: the largest for
    which the NLL on anchor examples is at most 1 + `tolerance` times that without noise. The anchors are the validation
    data, or the training data if there is none.

    σ is searched for on a grid of 16 values per octave about 0.01, from 1/1024 to 1024 times that, with the same random
    numbers at every σ and new ones for every batch: by octaves up or down, then by bisection, in at most 16 runs over
    the anchors. The returned σ is within the tolerance, and the next larger one is not. If not even the smallest is, σ
    is 0.

    Args:
        sigma: σ, in units of the weights: None for the search above, a number, or `"auto"`, the one of several at which
            rows that were not trained on are predicted best.
        tolerance: By how much the NLL may rise, relative to the NLL: 0.003 is 0.3 %.
        post_hoc: Whether `A`, `B` and the task head stay as they were passed to `fit(init=…)`: nothing is trained.
            Otherwise they are trained first, as a LoRA.

    Raises:
        ValueError: If the tolerance is not positive.

    Differs from the released code: the tolerance is for the mean NLL and is not divided by the number of anchors, and
    the returned σ does not violate it.

    References:
        Shi et al. (2024), [Training-Free Bayesianization for Low-Rank Adapters](https://arxiv.org/abs/2412.05723).
    """

    name = "tfb"
    claims = "noise"
    dial = Dial("sigma", tuple(0.00125 * 2**k for k in range(9)), "sigma")
    sigma: Positive | Literal["auto"] | None = None
    tolerance: Positive = 0.003
    post_hoc: bool = False

    def stack_prior(self, stack: Stack) -> Factors:
        with stack.layers:
            return priors.flat_factors(stack)

    def stack_guide(self, stack: Stack) -> nn.Module:
        return TFBGuide(stack, learned=not self.post_hoc)

    def num_draws(self, guide: nn.Module) -> int | None:
        return None if any(bool(part.sigma > 0) for part in guide.values()) else 1  # type: ignore[operator]

    def refine(
        self, program: FittedProgram, guide: nn.Module, train: Iterable[Batch], validation: Iterable[Batch]
    ) -> nn.Module:
        """Rotate the factors, and find σ."""
        for part in guide.values():  # type: ignore[operator]
            part.rotate()
        if self.sigma is not None:
            self.dial.put(guide, FIRST_SIGMA if self.sigma == "auto" else self.sigma)
            return guide
        anchors = validation or train
        seed = int(torch.randint(2**31, ()))

        def nll(sigma: float) -> float:
            self.dial.put(guide, sigma)
            return _nll(program, anchors, seed)

        without_noise = nll(0.0)
        sigma = _largest(lambda sigma: nll(sigma) <= (1 + self.tolerance) * without_noise)
        self.dial.put(guide, sigma)
        source = "validation" if validation else "training (there is no validation data)"
        logger.info("TFB: σ = %.3g, with %s examples as anchors, whose NLL is %.4f.", sigma, source, without_noise)
        return guide


class TFBGuide(nn.Module):
    """Points for the factors of one stack, with noise on the rotated `A` once σ is found.

    Attributes:
        sigma: σ, 0 until it is found.
    """

    sigma: Tensor
    nonnegative = ("sigma",)

    def __init__(self, stack: Stack, learned: bool):
        super().__init__()
        self.stack = stack
        self.A = nn.Parameter(guides.kaiming(len(stack), *stack.A_shape), requires_grad=learned)
        self.B = nn.Parameter(torch.zeros(len(stack), *stack.B_shape), requires_grad=learned)
        self.register_buffer("sigma", torch.zeros(()))

    def forward(self) -> None:
        with self.stack.layers:
            pyro.sample(self.stack.site("A"), self.noisy() if self.sigma > 0 else dist.Delta(self.A, event_dim=2))
            pyro.sample(self.stack.site("B"), dist.Delta(self.B, event_dim=2))

    def noisy(self) -> dist.Distribution:
        """Return N(A', σ² / d_i²), for rotated factors."""
        d = self.B.norm(dim=-2)
        zero = d <= d.amax(-1, keepdim=True) * max(self.stack.B_shape) * torch.finfo(d.dtype).eps
        scale = (self.sigma / d).masked_fill(zero, 0.0)
        return dist.Normal(self.A, scale[..., None]).to_event(2)

    def rotate(self) -> None:
        """Replace `A` and `B` by A' and B', which have the same product."""
        with torch.no_grad():
            U, d, Vh = torch.linalg.svd(self.B.double(), full_matrices=False)
            self.A.copy_(Vh @ self.A.double())
            self.B.copy_(U * d[..., None, :])

    def start(self, factors: Factors) -> None:
        """Start from trained factors."""
        with torch.no_grad():
            self.A.copy_(factors.A)
            self.B.copy_(factors.B)


def _nll(program: FittedProgram, batches: Iterable[Batch], seed: int) -> float:
    """Return the NLL per example at one draw per batch; the same seed gives the same draws."""
    total, count = 0.0, 0
    with torch.no_grad(), seeded(seed):
        for batch in batches:
            sites = {name: value[0] for name, value in program.draw(1).items()}
            log_prob = program.likelihood.log_prob(program.logits(sites, batch), batch["labels"])
            log_prob = log_prob * batch.get(WEIGHTS, 1.0)
            total, count = total - float(log_prob.double().sum()), count + len(log_prob)
    return total / count


def _largest(holds: Callable[[float], bool]) -> float:
    """Return the largest σ of the grid at which `holds` is true, 0 if there is none; it is called at most 15 times."""

    def sigma(index: int) -> float:
        return FIRST_SIGMA * 2 ** (index / STEPS_PER_OCTAVE)

    end = OCTAVES * STEPS_PER_OCTAVE
    index, rising = 0, holds(sigma(0))
    while abs(index) < end:
        index += STEPS_PER_OCTAVE if rising else -STEPS_PER_OCTAVE
        if holds(sigma(index)) != rising:
            break
    else:
        return sigma(end) if rising else 0.0
    low = index - STEPS_PER_OCTAVE if rising else index
    high = low + STEPS_PER_OCTAVE
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(sigma(middle)) else (low, middle)
    return sigma(low)
