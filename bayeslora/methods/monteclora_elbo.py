r"""MonteCLoRA's other objective: the evidence lower bound per example, with all KLs in full.

The site of the noise is replaced by one of the random factor itself, whose prior is hierarchical:

$$p(a_i \mid \pi, \Sigma) = N\Big(0, \epsilon^2 \sum_k \pi_k^2\, \Sigma\Big), \qquad
  q(a_i \mid \pi, \Sigma) = N\Big(\mu_i, \epsilon^2 \sum_k \pi_k^2\, \Sigma\Big),$$

with the priors of π and Σ above. The guide contains the prior, and is the prior where there are no data.
"""

from typing import TYPE_CHECKING

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine

from bayeslora import priors
from bayeslora.adapters import Stack
from bayeslora.distributions import ColumnNormal, Dirichlet, SharedColumns
from bayeslora.types import FactorTuple

if TYPE_CHECKING:
    from bayeslora.methods.monteclora import MonteCLoRA, MonteCLoRAGuide


def prior(method: "MonteCLoRA", stack: Stack) -> FactorTuple:
    """Sample one stack's sites from p, and return its factors.

    Args:
        method: The `MonteCLoRA`.
        stack: The stack.
    """
    rows = method.rows(stack)
    with stack.layers:
        epsilon = method.scale_of_noise(stack, method.ratio(stack))
        with poutine.scale(scale=method.temperature / stack.num_examples):
            alpha = torch.full((method.components,), float(method.concentration))
            pi = pyro.sample(stack.site("weights"), Dirichlet(alpha))
            cov_tril = pyro.sample(stack.site("cov_tril"), method.covariance(stack, torch.ones(rows), is_prior=True))
            spread = epsilon * method.square_sum(pi).sqrt()
            A = pyro.sample(stack.site(method.noisy), SharedColumns(cov_tril, stack.d_in, scale=spread))
            points = {
                name: pyro.sample(stack.site(name), _of_point(stack, name, method.prior_scale_B))
                for name in method.points(stack)
            }
    return stack.family.factors(**{method.noisy: A}, **points)


def guide(q: "MonteCLoRAGuide") -> None:
    """Sample one stack's sites from q.

    Args:
        q: The `MonteCLoRAGuide`, which holds what is learned.
    """
    method, stack = q.method, q.stack
    q_pi, q_covariance, integrated = q.mixture()
    with stack.layers:
        epsilon = method.scale_of_noise(stack, method.ratio(stack, q.noise_ratio))
        with poutine.scale(scale=method.temperature / stack.num_examples):
            pi = pyro.sample(stack.site("weights"), q_pi)
            cov_tril = pyro.sample(stack.site("cov_tril"), q_covariance)
            spread = epsilon * method.square_sum(pi).sqrt()
            mu = q.loc.expand(*spread.shape, -1, -1)
            pyro.sample(stack.site(method.noisy), ColumnNormal(cov_tril, stack.d_in, integrated, mu, spread))
            q.sample_points()


def _of_point(stack: Stack, name: str, scale: float) -> dist.Distribution:
    """Return a Normal prior, or a flat one for a factor that starts from the frozen weights, not from no change."""
    shape = stack.shapes[name]
    return priors.flat(shape) if name in stack.measured else priors.normal(shape, scale)
