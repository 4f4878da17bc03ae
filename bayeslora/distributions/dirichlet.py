"""Proportions: the Dirichlet distribution."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from pyro.distributions import Dirichlet as PyroDirichlet
from torch import Tensor
from torch.distributions import register_kl


class Dirichlet(PyroDirichlet):
    r"""Dirichlet distribution, drawn as normalised gammas.

    $g_k \sim \mathrm{Gamma}(\alpha_k, 1)$, $\pi = g / \sum_k g_k$: gradients are exact implicit reparameterisation,
    and unlike torch's own operator they survive `torch.func.grad` and `vmap`.

    Args:
        concentration: $\alpha > 0$, `[*batch, K]`.
    """

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        concentration = self.concentration.expand(self._extended_shape(torch.Size(sample_shape)))
        # Gammas of small concentration underflow; if all were zero, their proportions would be undefined.
        gammas = torch._standard_gamma(concentration) + torch.finfo(concentration.dtype).tiny
        return gammas / gammas.sum(-1, keepdim=True)


def expected_square_sum(concentration: Float[Tensor, "*batch component"]) -> Float[Tensor, "*batch"]:
    r"""Return $E[\sum_k \pi_k^2] = \sum_k \alpha_k (\alpha_k + 1) / (\alpha_0 (\alpha_0 + 1))$ under Dirichlet(α).

    Args:
        concentration: $\alpha$, `[*batch, K]`.

    Returns:
        `[*batch]`, between 1/K and 1.
    """
    total = concentration.sum(-1)
    return (concentration * (concentration + 1)).sum(-1) / (total * (total + 1))


@register_kl(Dirichlet, Dirichlet)
def _kl_dirichlet(q: Dirichlet, p: Dirichlet) -> Tensor:
    # torch's formula, with components and their total in one tensor: a third of its operations.
    # The prior's constants are in single precision even where the guide is in double.
    concentrations = (q.concentration, p.concentration.to(q.concentration.dtype))
    a, b = (torch.cat([c, c.sum(-1, keepdim=True)], dim=-1) for c in concentrations)
    terms = torch.lgamma(b) - torch.lgamma(a) + (a - b) * torch.digamma(a)
    return terms[..., :-1].sum(-1) - terms[..., -1]
