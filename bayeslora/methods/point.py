"""Point estimates: LoRA."""

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import nn

from bayeslora import guides, priors
from bayeslora.adapters import Factors, Stack
from bayeslora.methods.base import PerStackMethod


@dataclass(frozen=True)
class LoRA(PerStackMethod):
    r"""Low-rank adaptation: a point estimate of `A` and `B`.

    For each layer, $h = W_0 x + s B A x$ under flat priors (maximum likelihood) or, given `prior_scale`, under
    $p(A_{ij}) = p(B_{ij}) = N(0, \sigma_p^2)$ (maximum a posteriori), whose log-density enters as 1/n per example.

    Args:
        prior_scale: Standard deviation $\sigma_p$, in units of the weights; None for flat priors.

    References:
        Hu et al. (2021), [LoRA](https://arxiv.org/abs/2106.09685).
    """

    name = "lora"
    prior_scale: float | None = None

    def __post_init__(self) -> None:
        if self.prior_scale is not None and not self.prior_scale > 0:
            raise ValueError(f"prior_scale={self.prior_scale!r}: give a positive standard deviation, or None.")

    def stack_prior(self, stack: Stack) -> Factors:
        with stack.layers, poutine.scale(scale=1 / stack.num_examples):
            A = pyro.sample(f"{stack.name}.A", self._factor_prior(stack.A_shape))
            B = pyro.sample(f"{stack.name}.B", self._factor_prior(stack.B_shape))
        return Factors(A, B)

    def stack_guide(self, stack: Stack) -> nn.Module:
        return guides.Sites(
            stack,
            scale=1 / stack.num_examples,
            A=guides.Point(guides.kaiming(len(stack), *stack.A_shape)),
            B=guides.Point(torch.zeros(len(stack), *stack.B_shape)),
        )

    def num_draws(self, guide: nn.Module) -> int:
        return 1

    def _factor_prior(self, shape: tuple[int, ...]) -> dist.Distribution:
        return priors.flat(shape) if self.prior_scale is None else priors.normal(shape, self.prior_scale)
