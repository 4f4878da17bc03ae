"""LoRA Dropout: random masks on the input and output features of the update."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from bayeslora import priors
from bayeslora.adapters import Family, Stack
from bayeslora.dials import Dial
from bayeslora.distributions import Mask, RelaxedMask
from bayeslora.fitted import FittedProgram
from bayeslora.methods.adalora import AdaLoRA
from bayeslora.methods.base import PerStackMethod
from bayeslora.methods.fields import DropRate, NonNegative, Positive, Within
from bayeslora.methods.point import LoRA
from bayeslora.types import FactorTuple, PerLayer, Sites

BASES: dict[str, PerStackMethod] = {"lora": LoRA(), "adalora": AdaLoRA()}
"""Methods that dropout can be applied to; it masks columns of one of their factors, and rows of another."""


@dataclass(frozen=True)
class LoRADropout(PerStackMethod):
    r"""Dropout of input features of `A` and output features of `B`, in training and in prediction.

    For each layer, with masks $m_A \in \{0, 1\}^{d_{in}}$ and $m_B \in \{0, 1\}^{d_{out}}$:

    $$m_A, m_B \sim \mathrm{Bernoulli}(1 - p), \quad \hat A = A\, \mathrm{diag}(m_A), \quad
      \hat B = \mathrm{diag}(m_B)\, B, \quad h = W_0 x + s \hat B \hat A x.$$

    `A` and `B` are points under flat priors. The masks belong to the weights: one draw holds for the whole batch and
    all tokens. The rank dimension is never masked: an entry of $\Delta W$ is 0 with probability $2p - p^2$. The loss
    per example, with N draws of the masks per step, is

    $$\frac1N \sum_j \mathrm{NLL}(m^{(j)}) + \lambda (2p - p^2) \sum_{\mathrm{layers}} \lVert s B A \rVert_F^2.$$

    With `p="learn"` a layer has one rate for $m_A$ and one for $m_B$. Training draws relaxed masks (concrete
    distribution), prediction hard ones; the loss has, for every feature, the divergence of the hard masks,
    $\mathrm{KL}(\mathrm{Bernoulli}(1 - p) \Vert \mathrm{Bernoulli}(1 - p^0))$ times temperature / n.

    On `base="adalora"` the update is $s P\, \mathrm{diag}(\lambda)\, Q$. One mask is on the columns of $Q$, one on the
    rows of $P$, and none on λ.

    Args:
        p: Probability that a feature is dropped, below 1; `"learn"`; or `"auto"`, the best of several fits at
            predicting rows that they were not trained on.
        rescale: Whether kept features are multiplied by 1/(1−p): then $E[\hat B \hat A] = BA$. In the paper's form it
            is $(1-p)^2 BA$. The centre, which `predict(center=True)` and `merge` use, is this mean.
        sparsity: λ, of the penalty on dropped entries, in nats.
        train_dropout: Whether masks are drawn in training; otherwise they are 1.
        test_dropout: Whether masks are drawn in prediction; otherwise they are 1.
        prior_p: $p^0$ of `"learn"`; p starts there.
        relaxation: Temperature of the concrete distribution of `"learn"`.
        temperature: Multiplies the KL of `"learn"`.
        guide_learning_rate: Learning rate of the rates' log-odds; None for the common rate.
        base: Whose features are dropped: `"lora"`, or `"adalora"`, with the defaults of its penalty and its budget.

    Raises:
        ValueError: If a field is out of its range, or does not go with `"learn"`.

    `num_particles` of `fit` is N, the masks drawn per step. Differs from the paper: `rescale` and `"learn"` are ours.

    References:
        Lin et al. (2024), [LoRA Dropout](https://arxiv.org/abs/2404.09610), §3.2-3.4, Eq. 4-6 and 11.
    """

    name = "lora_dropout"
    claims = property(lambda self: "posterior" if self.p == "learn" else "noise")
    dial = Dial("p", (0.1, 0.25, 0.5))
    p: DropRate | Literal["learn", "auto"] = 0.5
    rescale: bool = False
    sparsity: NonNegative = 0.0
    train_dropout: bool = True
    test_dropout: bool = True
    prior_p: Annotated[float, Within(above=0, below=1, noun="probability")] = 0.5
    relaxation: Positive = 0.1
    temperature: Positive = 1.0
    guide_learning_rate: NonNegative | None = None
    base: Literal["lora", "adalora"] = "lora"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.p == "learn":
            self.require(not self.rescale, "rescale", "p='learn' has no fixed rate to rescale by")
            self.require(self.train_dropout, "train_dropout", "p='learn' learns the rates from dropout in training")

    @property
    def points(self) -> PerStackMethod:
        """The method of the points, `base`."""
        return BASES[self.base]

    @property
    def family(self) -> Family:  # type: ignore[override]
        """The adapter family of `base`."""
        return self.points.family

    def start_rank(self, rank: int) -> int:
        return self.points.start_rank(rank)

    def after_step(self, program: FittedProgram, step: int) -> None:
        self.points.after_step(program, step)

    def summaries(self, stack: Stack, sites: Sites) -> Mapping[str, tuple[Tensor, tuple[str, ...]]]:
        own = {f"dropped_{n}": (sites[f"mask_{n}"].eq(0).double().mean(-1), ()) for n in self.masked(stack)}
        return {**self.points.summaries(stack, sites), **own}

    def masked(self, stack: Stack) -> dict[str, int]:
        """Return the masked factors, and how many features each mask has: `A` and d_in, `B` and d_out."""
        columns, rows = stack.family.columns, stack.family.rows
        assert columns is not None and rows is not None  # noqa: PT018
        return {columns: stack.d_in, rows: stack.d_out}

    def stack_prior(self, stack: Stack) -> FactorTuple:
        A, B = self.masked(stack)
        p = self.prior_p if self.p == "learn" else float(self.p)
        with stack.layers:
            with poutine.scale(scale=1 / stack.num_examples):
                factors = priors.flat_factors(stack)
            with poutine.scale(scale=self.temperature / stack.num_examples):
                m_A = pyro.sample(stack.site(f"mask_{A}"), Mask(stack.d_in, p, self.rescale))
                m_B = pyro.sample(stack.site(f"mask_{B}"), Mask(stack.d_out, p, self.rescale))
        dropped = {A: getattr(factors, A) * m_A[..., None, :], B: getattr(factors, B) * m_B[..., :, None]}
        return factors._replace(**dropped)

    def stack_guide(self, stack: Stack) -> nn.Module:
        return LoRADropoutGuide(self, stack)


class LoRADropoutGuide(nn.Module):
    """q over one stack's sites: the points of `base`, and masks at the prior's rate or at learned rates."""

    scaling: Tensor

    def __init__(self, method: LoRADropout, stack: Stack):
        super().__init__()
        self.method = method
        self.stack = stack
        self.points: Any = method.points.stack_guide(stack)
        if method.p == "learn":
            start = torch.full((len(stack),), math.log(method.prior_p / (1 - method.prior_p)))
            for name in method.masked(stack):
                self.register_parameter(f"log_odds_{name}", nn.Parameter(start.clone()))  # ln(p / (1 − p))
        self.register_buffer("scaling", torch.tensor(stack.scaling), persistent=False)

    def forward(self) -> None:
        method, stack = self.method, self.stack
        with stack.layers:
            self.points.sample()
            with poutine.scale(scale=method.temperature / stack.num_examples):
                for name, size in method.masked(stack).items():
                    pyro.sample(stack.site(f"mask_{name}"), self.mask(name, size))
            if method.sparsity:
                # In the guide, a factor enters the loss with a plus sign.
                pyro.factor(stack.site("sparsity"), method.sparsity * self.dropped_square(), has_rsample=True)

    @property
    def factors(self) -> FactorTuple:
        """The points, `[layer, …]` each."""
        return self.stack.family.factors(**{name: site.loc for name, site in self.points.sites.items()})

    def mask(self, factor: str, size: int) -> dist.Distribution:
        """Return the distribution of a factor's mask, in training or in prediction."""
        method = self.method
        p = self.rate(factor)
        if not isinstance(p, Tensor):
            return Mask(size, p, method.rescale, like=next(self.parameters()))
        logits = -self.get_parameter(f"log_odds_{factor}")[..., None].expand(-1, size)
        if self.training:
            return RelaxedMask(logits, method.relaxation)
        return dist.Bernoulli(logits=logits).to_event(1)

    def rate(self, factor: str) -> float | Tensor:
        """Return p of a factor's mask: a number, 0 if dropout is off, or the learned rates, `[layer]`."""
        method = self.method
        if not (method.train_dropout if self.training else method.test_dropout):
            return 0.0
        return self.get_parameter(f"log_odds_{factor}").sigmoid() if method.p == "learn" else float(method.p)

    def spreads(self) -> Iterator[nn.Parameter]:
        """Yield the log-odds of the learned rates."""
        return (parameter for name, parameter in self.named_parameters(recurse=False) if name.startswith("log_odds_"))

    def dropped_square(self) -> PerLayer:
        r"""Return the expected square of what masks drop, $(2p - p^2) \lVert s B A \rVert_F^2$, `[layer]`."""
        A, B = self.stack.family.product(self.factors)
        # ‖BA‖² = tr(BᵀB AAᵀ): Gram matrices of size r are enough.
        square = ((B.mT @ B) * (A @ A.mT)).sum((-2, -1))
        kept = [1 - self.rate(name) for name in self.method.masked(self.stack)]
        return (1 - kept[0] * kept[1]) * self.scaling**2 * square

    def start(self, factors: FactorTuple) -> None:
        """Start from trained factors."""
        self.points.start(factors)
