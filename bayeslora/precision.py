r"""The precision τ of a prior $N(0, 1/\tau)$: by evidence, or by the NLL of held-out data."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor

from bayeslora.isolation import seeded
from bayeslora.networks import inputs_of
from bayeslora.tasks import Likelihood
from bayeslora.types import Batch, Sites

CANDIDATES = tuple(10 ** (k / 2) for k in range(-2, 13))
"""Precisions to choose from by held-out data: 0.1 to 10⁶, two per power of ten; evidence stays in this range."""

NUM_DRAWS = 64
"""Draws of the logits for judging a candidate."""


def largest_evidence(eigenvalues: Sequence[Tensor], weights: Sequence[Tensor]) -> float:
    r"""Return τ at the largest marginal likelihood of a Laplace approximation, by MacKay's fixed point.

    With $\ell$ all eigenvalues of the curvature and F the weights, it satisfies $\tau = \gamma / \lVert F \rVert^2$,
    $\gamma = \sum_i \ell_i / (\ell_i + \tau)$.

    Args:
        eigenvalues: $\ell$, matrix by matrix.
        weights: F, matrix by matrix.

    References:
        MacKay (1992), A practical Bayesian framework for backpropagation networks.
    """
    values = torch.cat([value.flatten().double() for value in eigenvalues])
    square = sum(float(weight.double().square().sum()) for weight in weights)
    precision = 1.0
    for _ in range(1_000):
        gamma = float((values / (values + precision)).sum())
        previous, precision = precision, min(max(gamma / max(square, 1e-30), CANDIDATES[0]), CANDIDATES[-1])
        if abs(math.log(precision / previous)) < 1e-6:
            break
    return precision


@runtime_checkable
class Linearisable(Protocol):
    """The part of a `FittedProgram` that `least_nll` needs: draws of its sites, and linearised logits at them."""

    if TYPE_CHECKING:  # a submodule, which a check at run time does not find
        likelihood: Likelihood

    def draw(self, num_draws: int) -> dict[str, Tensor]:
        """Draw every site from the guide, `[draw, layer, …]`."""

    def linearised(self, sites: Sites) -> Callable[[Batch], Tensor]:
        """Return the logits to first order in the factors, as a function of inputs, at draws of the sites."""


def least_nll(program: Linearisable, batches: Iterable[Batch], put: Callable[[float], None]) -> float:
    """Return the candidate with the least NLL of the linearised predictions; all are judged at the same draws.

    Args:
        program: The program, in evaluation mode.
        batches: Held-out batches, with labels.
        put: Sets the precision of the guide.
    """
    seed = int(torch.randint(2**31, ()))
    scores = {}
    for precision in CANDIDATES:
        put(precision)
        with torch.no_grad(), seeded(seed):
            linearised = program.linearised(program.draw(NUM_DRAWS))
            total, count = 0.0, 0
            for batch in batches:
                logits = linearised(inputs_of(batch))
                log_probs = program.likelihood.log_prob(logits, batch["labels"]).double()
                total -= float((log_probs.logsumexp(0) - math.log(NUM_DRAWS)).sum())
                count += log_probs.shape[1]
        scores[precision] = total / count
    return min(scores, key=lambda precision: scores[precision])
