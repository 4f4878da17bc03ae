"""LoRA Dropout: random masks on the input and output features of the update."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from bayeslora import guides, priors
from bayeslora.adapters import Factors, Stack
from bayeslora.distributions import Mask, RelaxedMask
from bayeslora.methods.base import PerStackMethod
from bayeslora.types import PerLayer, Sites


@dataclass(frozen=True)
class LoRADropout(PerStackMethod):
    r"""Input features of `A` and output features of `B` dropped at random, in training and in prediction.

    For each layer, with masks $m_A \in \{0, 1\}^{d_{in}}$ and $m_B \in \{0, 1\}^{d_{out}}$:

    $$m_A, m_B \sim \mathrm{Bernoulli}(1 - p), \quad \hat A = A\, \mathrm{diag}(m_A), \quad
      \hat B = \mathrm{diag}(m_B)\, B, \quad h = W_0 x + s \hat B \hat A x.$$

    `A` and `B` are points under flat priors. The masks are masks of weights: one serves the whole batch and all tokens,
    and the rank dimension is never masked, so that an entry of $\Delta W$ is 0 with probability $2p - p^2$. The loss
    per example, with N draws of the masks per step, is

    $$\frac1N \sum_j \mathrm{NLL}(m^{(j)}) + \lambda (2p - p^2) \sum_{\mathrm{layers}} \lVert s B A \rVert_F^2.$$

    With `p="learn"` a layer has one rate for $m_A$ and one for $m_B$. Training draws relaxed masks (concrete
    distribution), prediction hard ones; the loss has, for every feature, the divergence of the hard masks,
    $\mathrm{KL}(\mathrm{Bernoulli}(1 - p) \Vert \mathrm{Bernoulli}(1 - p^0))$ times temperature / n.

    Args:
        p: Probability that a feature is dropped, $0 \le p < 1$, or `"learn"`.
        rescale: Whether kept features are multiplied by 1/(1−p): then $E[\hat B \hat A] = BA$. In the paper's form it
            is $(1-p)^2 BA$. The centre, which `predict(center=True)` and `merge` use, is this mean.
        sparsity: λ, of the penalty on dropped entries, in nats.
        train_dropout: Whether masks are drawn in training; otherwise they are 1.
        test_dropout: Whether masks are drawn in prediction; otherwise they are 1.
        prior_p: $p^0$ of `"learn"`; p starts there.
        relaxation: Temperature of the concrete distribution of `"learn"`.
        temperature: Multiplies the KL of `"learn"`.
        guide_learning_rate: Learning rate of the rates' log-odds; None for the common one.

    Raises:
        ValueError: If a field is out of its range, or does not go with `"learn"`.

    `fit` draws N = 4 masks a step unless `num_particles` says otherwise.

    Differs from the paper: `rescale` and `"learn"` are ours.

    References:
        Lin et al. (2024), [LoRA Dropout](https://arxiv.org/abs/2404.09610), §3.2-3.4, Eq. 11.
    """

    name = "lora_dropout"
    num_particles: ClassVar[int] = 4
    p: float | Literal["learn"] = 0.5
    rescale: bool = False
    sparsity: float = 0.0
    train_dropout: bool = True
    test_dropout: bool = True
    prior_p: float = 0.5
    relaxation: float = 0.1
    temperature: float = 1.0
    guide_learning_rate: float | None = None

    def __post_init__(self) -> None:
        def require(holds: bool, field: str, what: str) -> None:
            if not holds:
                raise ValueError(f"{field}={getattr(self, field)!r}: {what}.")

        if self.p == "learn":
            require(not self.rescale, "rescale", "p='learn' has no fixed rate to rescale by")
            require(self.train_dropout, "train_dropout", "p='learn' learns the rates from dropout in training")
        else:
            in_range = not isinstance(self.p, str) and 0 <= self.p < 1
            require(in_range, "p", "give a probability of at least 0 and less than 1, or 'learn'")
        require(0 < self.prior_p < 1, "prior_p", "give a probability between 0 and 1")
        require(self.sparsity >= 0, "sparsity", "give a number of at least 0")
        for field in ("relaxation", "temperature"):
            require(getattr(self, field) > 0, field, "give a positive number")

    def stack_prior(self, stack: Stack) -> Factors:
        p = self.prior_p if self.p == "learn" else self.p
        with stack.layers, poutine.scale(scale=self.temperature / stack.num_examples):
            A = pyro.sample(f"{stack.name}.A", priors.flat(stack.A_shape))
            B = pyro.sample(f"{stack.name}.B", priors.flat(stack.B_shape))
            mask_A = pyro.sample(f"{stack.name}.mask_A", Mask(stack.d_in, p, self.rescale))
            mask_B = pyro.sample(f"{stack.name}.mask_B", Mask(stack.d_out, p, self.rescale))
        return masked(Factors(A, B), mask_A, mask_B)

    def stack_guide(self, stack: Stack) -> nn.Module:
        return LoRADropoutGuide(self, stack)

    def summaries(self, stack: Stack, sites: Sites) -> Mapping[str, tuple[Tensor, tuple[str, ...]]]:
        dropped = {name: sites[f"mask_{name}"].eq(0).double().mean(-1) for name in ("A", "B")}
        return {f"dropped_{name}": (value, ()) for name, value in dropped.items()}


def masked(factors: Factors, mask_A: Tensor, mask_B: Tensor) -> Factors:
    """Drop input features, `[*draw, layer, d_in]`, and output features, `[*draw, layer, d_out]`, of the update."""
    return Factors(factors.A * mask_A[..., None, :], factors.B * mask_B[..., None])


class LoRADropoutGuide(nn.Module):
    """q over one stack's sites: points for `A` and `B`; masks at the prior's rate, or at learned ones."""

    scaling: Tensor

    def __init__(self, method: LoRADropout, stack: Stack):
        super().__init__()
        self.method = method
        self.stack = stack
        self.A = nn.Parameter(guides.kaiming(len(stack), *stack.A_shape))
        self.B = nn.Parameter(torch.zeros(len(stack), *stack.B_shape))
        if method.p == "learn":
            start = torch.full((len(stack),), math.log(method.prior_p / (1 - method.prior_p)))
            self.log_odds_A = nn.Parameter(start.clone())  # ln(p / (1 − p))
            self.log_odds_B = nn.Parameter(start)
        self.register_buffer("scaling", torch.tensor(stack.scaling), persistent=False)

    def forward(self) -> None:
        method, stack = self.method, self.stack
        with stack.layers:
            with poutine.scale(scale=method.temperature / stack.num_examples):
                pyro.sample(f"{stack.name}.A", dist.Delta(self.A, event_dim=2))
                pyro.sample(f"{stack.name}.B", dist.Delta(self.B, event_dim=2))
                pyro.sample(f"{stack.name}.mask_A", self.mask("A", stack.d_in))
                pyro.sample(f"{stack.name}.mask_B", self.mask("B", stack.d_out))
            if method.sparsity:
                # In the guide, a factor enters the loss with a plus sign.
                pyro.factor(f"{stack.name}.sparsity", method.sparsity * self.dropped_square(), has_rsample=True)

    def mask(self, factor: Literal["A", "B"], size: int) -> dist.Distribution:
        """The distribution of a factor's mask, in training or in prediction."""
        method = self.method
        p = self.rate(factor)
        if not isinstance(p, Tensor):
            return Mask(size, p, method.rescale, like=self.A)
        logits = -getattr(self, f"log_odds_{factor}")[..., None].expand(-1, size)
        if self.training:
            return RelaxedMask(logits, method.relaxation)
        return dist.Bernoulli(logits=logits).to_event(1)

    def rate(self, factor: Literal["A", "B"]) -> float | Tensor:
        """P of a factor's mask: a number, 0 where dropout is off, or the learned rates, `[layer]`."""
        method = self.method
        if not (method.train_dropout if self.training else method.test_dropout):
            return 0.0
        return getattr(self, f"log_odds_{factor}").sigmoid() if method.p == "learn" else method.p

    def dropped_square(self) -> PerLayer:
        r"""What the masks drop of the update, squared and expected: $(2p - p^2) \lVert s B A \rVert_F^2$, `[layer]`."""
        # ‖BA‖² = tr(BᵀB AAᵀ): Gram matrices of size r, not weights.
        square = ((self.B.mT @ self.B) * (self.A @ self.A.mT)).sum((-2, -1))
        dropped = 1 - (1 - self.rate("A")) * (1 - self.rate("B"))
        return dropped * self.scaling**2 * square

    def start(self, factors: Factors) -> None:
        """Begin at trained factors."""
        with torch.no_grad():
            self.A.copy_(factors.A)
            self.B.copy_(factors.B)
