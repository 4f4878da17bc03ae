"""Monte Carlo dropout: LoRA whose input dropout stays on in prediction."""

from dataclasses import dataclass
from typing import Literal

import pyro
import torch
from torch import Tensor, nn

from bayeslora import guides, priors
from bayeslora.adapters import InputDropout, SeededFactors, Stack
from bayeslora.dials import Dial
from bayeslora.distributions import Seed
from bayeslora.methods.base import PerStackMethod
from bayeslora.methods.fields import DropRate


@dataclass(frozen=True)
class MCDropout(PerStackMethod):
    r"""Point estimates of `A` and `B`, with dropout on the adapter's input that stays on in prediction.

    For each layer, with a mask per row and token, drawn anew for every draw:

    $$h = W_0 x + s B A\, (x \odot m), \qquad (1 - p)\, m_i \sim \mathrm{Bernoulli}(1 - p).$$

    The dropout is part of the layer's forward pass, not a site. In training it is the `lora_dropout` of PEFT. In
    prediction a draw has one number per layer, `seed`, from which the layer's masks are drawn, so that the same draw
    gives the same prediction of the same batch. The centre has no dropout.

    Args:
        p: Probability that an entry of the adapter's input is dropped, $0 \le p < 1$; or `"auto"`, that of several
            fits which predicts rows that were not trained on best.

    Raises:
        ValueError: If p is out of its range.

    Differs from the paper: only the adapters' inputs have dropout; the network's own dropout is off in prediction.

    References:
        Gal and Ghahramani (2015), [Dropout as a Bayesian Approximation](https://arxiv.org/abs/1506.02142).
    """

    name = "mc_dropout"
    claims = "noise"
    dial = Dial("p", (0.05, 0.1, 0.25, 0.5))
    p: DropRate | Literal["auto"] = 0.1

    @property
    def family(self) -> InputDropout:  # type: ignore[override]
        return InputDropout(0.1 if self.p == "auto" else self.p)

    def stack_prior(self, stack: Stack) -> SeededFactors:
        with stack.layers:
            A = pyro.sample(stack.site("A"), priors.flat(stack.A_shape))
            B = pyro.sample(stack.site("B"), priors.flat(stack.B_shape))
            seed = pyro.sample(stack.site("seed"), Seed())
        return SeededFactors(A, B, seed)

    def stack_guide(self, stack: Stack) -> nn.Module:
        return guides.Sites(
            stack,
            A=guides.Point(guides.kaiming(len(stack), *stack.A_shape)),
            B=guides.Point(torch.zeros(len(stack), *stack.B_shape)),
            seed=Seeds(),
        )


class Seeds(guides.Site):
    """Seeds for prediction; none is drawn in training, where masks come from torch's random state."""

    like: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("like", torch.zeros(()), persistent=False)

    def forward(self) -> Seed:
        return Seed(silent=self.training, like=self.like)
