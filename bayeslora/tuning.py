"""Tune the size of a posterior's noise by the NLL of held-out data."""

import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bayeslora.fitted import FittedProgram
from bayeslora.isolation import seeded
from bayeslora.types import Batch

logger = logging.getLogger(__name__)

USUAL_RATIO = 4.0
"""The default c of MonteCLoRA, at which the search for it starts."""

TUNE_AFTER = (0.4, 0.6, 0.8, 1.0)
"""Fractions of training after which the search uses held-out data."""

TUNE_DRAWS = 4
"""Draws of the weights per batch in the search."""


def tune_ratio(program: FittedProgram, batches: Sequence[Batch], ratios: Sequence[Tensor]) -> None:
    """Multiply c by the factor from 1/2 to √2 with the least held-out NLL, under a log-normal prior on c.

    The prior, an octave around the usual ratio, decides if there are too few examples to say much. A larger c has to be
    confirmed by new draws at that c.

    Args:
        program: The program, in evaluation mode.
        batches: Labelled data that were not trained on.
        ratios: c of every stack, `[layer]`, all of the same value; changed in place.
    """
    num_examples = sum(len(batch["labels"]) for batch in batches)

    def loss(factors: Tensor) -> Tensor:
        octaves = (float(ratios[0][0]) * factors / USUAL_RATIO).log2()
        return nll_by_loudness(program, batches, factors, TUNE_DRAWS) + octaves.square() / (2 * num_examples)

    factors = torch.logspace(-1, 0.5, 25, base=2, dtype=torch.float64)
    losses = loss(factors)
    best = float(factors[losses.argmin()])
    torch._foreach_mul_(list(ratios), best)
    if best > 1 and loss(torch.ones(1)) > losses[factors == 1]:
        torch._foreach_div_(list(ratios), best)
    logger.info("Noise ratio: %.2f.", float(ratios[0][0]))


def nll_by_loudness(program: FittedProgram, batches: Sequence[Batch], factors: Tensor, num_draws: int) -> Tensor:
    r"""Return the predictive NLL per example with the noise multiplied by each of several factors φ, `[factor]`.

    To first order in the noise the logits of a draw are $f_0 + g$, with $f_0$ those of the centre, and at φ times the
    noise $f_0 + \varphi g$, so that the centre and draws at the present noise serve every φ. This is exact at φ = 1,
    and optimistic if φ is much larger. Every batch has its own draws, so that no single draw affects all examples; they
    are the same at every call.

    Args:
        program: The program, in evaluation mode.
        batches: Labelled data.
        factors: Values of φ, `[factor]`.
        num_draws: Draws of the weights per batch.
    """
    total = torch.zeros(len(factors), dtype=torch.float64)
    with torch.inference_mode():
        centre = {name: value.unsqueeze(0) for name, value in program.centre().items()}
        for seed, batch in enumerate(batches):
            at_centre = program.logits(centre, batch)
            with seeded(seed):
                draws = program.draw(num_draws)
            noise = program.logits(draws, batch) - at_centre
            noise = noise.masked_fill(at_centre.isinf(), 0)  # padding stays impossible
            for index, factor in enumerate(factors):
                log_prob = program.likelihood.log_prob(at_centre + factor * noise, batch["labels"])
                total[index] -= log_mean_exp(log_prob.double()).sum().cpu()
    program.network.unbind()
    return total / sum(len(batch["labels"]) for batch in batches)


def log_mean_exp(values: Tensor) -> Tensor:
    r"""Return $\ln$ of the mean of $e^v$ over the first dimension, corrected for the number of draws.

    The logarithm of an average of S draws is too small on average, by $\mathrm{Var}(e^v) / (2 S\, E(e^v)^2)$ to first
    order in 1/S: uncorrected, few draws would favour small noise. With $p_s$ the share of draw s in the sum, the
    correction is $(S \sum_s p_s^2 - 1) / (2 (S - 1))$: 0 if all draws agree, 1/2 if one outweighs the others.

    Args:
        values: `[draw, …]`, at least two draws.
    """
    num_draws = len(values)
    concentration = num_draws * values.softmax(0).square().sum(0)
    return values.logsumexp(0) - math.log(num_draws) + (concentration - 1) / (2 * (num_draws - 1))
