"""Point estimates: LoRA, full fine-tuning, BitFit, DoRA and bottleneck adapters."""

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
from pyro import poutine
from torch import nn

from bayeslora import guides, priors
from bayeslora.adapters import Stack, families
from bayeslora.methods.base import PerStackMethod
from bayeslora.methods.fields import StandardDeviation
from bayeslora.types import FactorTuple


@dataclass(frozen=True)
class PointEstimate(PerStackMethod):
    r"""A point estimate of every factor of the family, which starts where the family does.

    Priors are flat (maximum likelihood) or, given `prior_scale`, $N(0, \sigma_p^2)$ on every entry of every factor
    (maximum a posteriori), whose log-density enters as 1/n per example. A factor that starts from the frozen weights,
    as DoRA's `m` does, is not a deviation from them: its prior is always flat.

    Args:
        prior_scale: Standard deviation $\sigma_p$, in units of the weights; None for flat priors.
    """

    claims = "points"
    prior_scale: StandardDeviation | None = None

    def stack_prior(self, stack: Stack) -> FactorTuple:
        with stack.layers, poutine.scale(scale=1 / stack.num_examples):
            factors = {name: pyro.sample(stack.site(name), self._prior(stack, name)) for name in stack.shapes}
        return stack.family.factors(**factors)

    def stack_guide(self, stack: Stack) -> nn.Module:
        points = {name: guides.Point(value) for name, value in stack.initial()._asdict().items()}
        return guides.Sites(stack, scale=1 / stack.num_examples, **points)

    def num_draws(self, guide: nn.Module) -> int:
        return 1

    def _prior(self, stack: Stack, name: str) -> dist.Distribution:
        if self.prior_scale is None or name in stack.measured:
            return priors.flat(stack.shapes[name])
        return priors.normal(stack.shapes[name], self.prior_scale)


@dataclass(frozen=True)
class LoRA(PointEstimate):
    r"""Low-rank adaptation: a point estimate of `A` and `B`.

    For each layer, $h = W_0 x + s B A x$ under flat priors (maximum likelihood) or, given `prior_scale`, under
    $p(A_{ij}) = p(B_{ij}) = N(0, \sigma_p^2)$ (maximum a posteriori), whose log-density enters as 1/n per example.

    Args:
        prior_scale: Standard deviation $\sigma_p$, in units of the weights; None for flat priors.

    References:
        Hu et al. (2021), [LoRA](https://arxiv.org/abs/2106.09685).
    """

    name = "lora"


@dataclass(frozen=True)
class FullFineTuning(PointEstimate):
    r"""Full fine-tuning of the chosen layers' weights: a point estimate of their change Δ, $h = (W_0 + \Delta) x$.

    Args:
        prior_scale: Standard deviation $\sigma_p$ of $\Delta_{ij}$, which ties the weights to the pre-trained ones, in
            units of the weights; None for flat priors.

    Differs from common use: embeddings, normalisation layers and biases stay as they are.

    References:
        Li et al. (2018), [the prior around the pre-trained weights, L2-SP](https://arxiv.org/abs/1802.01483).
    """

    name = "full"
    family = families.Full()
    rate_factor = 0.1


@dataclass(frozen=True)
class BitFit(PointEstimate):
    r"""A point estimate of the biases' change δ, $h = W_0 x + b_0 + \delta$; a layer without a bias gets one.

    Args:
        prior_scale: Standard deviation $\sigma_p$ of $\delta_i$, in units of the biases; None for flat priors.

    Differs from the paper: only biases of linear layers are trained, not those of normalisation layers.

    References:
        Ben Zaken et al. (2021), [BitFit](https://arxiv.org/abs/2106.10199).
    """

    name = "bitfit"
    family = families.Bias()


@dataclass(frozen=True)
class DoRA(PointEstimate):
    r"""Weight-decomposed low-rank adaptation: a point estimate of `A`, `B` and the rows' norms `m`.

    For each layer, $h = m \odot (W_0 + s B A)\, x \,/\, \lVert W_0 + s B A \rVert_{row}$, the norm a constant to the
    gradient.

    Args:
        prior_scale: Standard deviation $\sigma_p$ of $A_{ij}$ and $B_{ij}$, in units of the weights; None for flat
            priors. `m` has a flat one.

    References:
        Liu et al. (2024), [DoRA](https://arxiv.org/abs/2402.09353).
    """

    name = "dora"
    family = families.DoRA()


@dataclass(frozen=True)
class Houlsby(PointEstimate):
    r"""Bottleneck adapters after attention and MLP: $h + W_{up}\, \mathrm{gelu}(W_{down} h + b_{down}) + b_{up}$.

    h is the output of the layer that ends attention, or the MLP, before the residual is added; `rank` is the width of
    the bottleneck. `targets="all-linear"` finds these layers by their names.

    Args:
        prior_scale: Standard deviation $\sigma_p$ of all weights and biases of the adapters; None for flat priors.

    Differs from the paper: normalisation layers stay as they are; $W_{up} = 0$ at the start, exactly.

    References:
        Houlsby et al. (2019), [Parameter-Efficient Transfer Learning](https://arxiv.org/abs/1902.00751).
    """

    name = "houlsby"
    family = families.Bottleneck("gelu")


@dataclass(frozen=True)
class Pfeiffer(PointEstimate):
    r"""Bottleneck adapters after the MLP only: $h + W_{up}\, \mathrm{relu}(W_{down} h + b_{down}) + b_{up}$.

    h is the output of the layer that ends the MLP, before the residual is added; `rank` is the width of the bottleneck.
    `targets="all-linear"` finds these layers by their names.

    Args:
        prior_scale: Standard deviation $\sigma_p$ of all weights and biases of the adapters; None for flat priors.

    Differs from the paper: the adapter stands before the residual and its normalisation, not after; no new
    normalisation layer.

    References:
        Pfeiffer et al. (2020), [AdapterFusion](https://arxiv.org/abs/2005.00247).
    """

    name = "pfeiffer"
    family = families.Bottleneck("relu", after_attention=False)
