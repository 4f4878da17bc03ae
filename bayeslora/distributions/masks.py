"""Masks: entries that are dropped or kept."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pyro.distributions import Independent, RelaxedBernoulli
from torch import Tensor
from torch.distributions import constraints, register_kl

from bayeslora.distributions.noise import FixedNoise


class Mask(FixedNoise):
    r"""A vector whose entries are dropped (0) with probability p and kept (1) otherwise, independently, at a fixed p.

    Args:
        size: Entries.
        p: Probability that an entry is dropped, $0 \le p < 1$. At 0 nothing is drawn: every entry is 1.
        rescale: Whether kept entries are 1/(1−p), so that the mean is 1.
        like: A tensor with the dtype and device that draws get; None for torch's defaults.
    """

    support = constraints.independent(constraints.nonnegative, 1)

    def __init__(
        self,
        size: int,
        p: float,
        rescale: bool = False,
        like: Tensor | None = None,
        batch_shape: tuple[int, ...] = (),
    ):
        if not 0 <= p < 1:
            raise ValueError(f"p={p}: give a probability of at least 0 and less than 1.")
        self.p = p
        self.rescale = rescale
        super().__init__((size,), like, batch_shape)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "Mask":
        return Mask(self.event_shape[0], self.p, self.rescale, self.like, tuple(batch_shape))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        if self.p == 0:
            return self.like.new_ones(shape)
        kept = self.like.new_empty(shape).bernoulli_(1 - self.p)
        return kept.div_(1 - self.p) if self.rescale else kept

    def log_prob(self, value: Tensor) -> Tensor:
        kept = value.ne(0).to(value.dtype)
        p = kept.new_tensor(self.p)
        return (torch.xlogy(kept, 1 - p) + torch.xlogy(1 - kept, p)).sum(-1)

    @property
    def mean(self) -> Tensor:
        return self.like.new_full(self.batch_shape + self.event_shape, 1.0 if self.rescale else 1 - self.p)


class RelaxedMask(Independent):
    r"""A smoothed `Mask` with learned rates: entries $m_i = \sigma((\ell_i + \mathrm{logit}\, u_i) / \tau)$, u uniform.

    With $\ell = \ln((1 - p) / p)$, an entry tends, as $\tau \to 0$, to 1 with probability $1 - p$ and to 0 otherwise.
    The KL divergence to a `Mask` of rate $p^0$ is that of the hard masks, a sum over entries of
    $\mathrm{KL}(\mathrm{Bernoulli}(1 - p_i) \Vert \mathrm{Bernoulli}(1 - p^0))$. Only the draw is relaxed, so that
    gradients reach p: the divergence has gradients as it is.

    Args:
        logits: $\ell$, `[*batch, size]`.
        temperature: $\tau > 0$.

    References:
        Maddison et al. (2016), [The Concrete Distribution](https://arxiv.org/abs/1611.00712).
    """

    def __init__(self, logits: Float[Tensor, "*batch size"], temperature: float):
        self.logits = logits
        self.temperature = temperature
        base = RelaxedBernoulli(logits.new_full((), temperature), logits=logits, validate_args=False)
        super().__init__(base, 1, validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "RelaxedMask":
        return RelaxedMask(self.logits.expand(torch.Size(batch_shape) + self.event_shape), self.temperature)


@register_kl(RelaxedMask, Mask)
def _kl_mask(q: RelaxedMask, p: Mask) -> Tensor:
    log_kept, log_dropped = F.logsigmoid(q.logits), F.logsigmoid(-q.logits)
    kept = log_kept.exp()
    return (kept * (log_kept - math.log1p(-p.p)) + (1 - kept) * (log_dropped - math.log(p.p))).sum(-1)
