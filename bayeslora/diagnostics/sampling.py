"""A gold reference: the posterior that a method claims, by Hamiltonian Monte Carlo, where it is small enough."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide.initialization import init_to_value
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Distribution

from bayeslora.contracts import ArgumentError, Count
from bayeslora.data import Weight, to_device
from bayeslora.diagnostics.densities import densities, draw_with_latents
from bayeslora.diagnostics.groups import logits_of
from bayeslora.diagnostics.weights import refuse
from bayeslora.display import Shown
from bayeslora.isolation import public, seeded
from bayeslora.metrics import FloatArray
from bayeslora.prediction import labelled
from bayeslora.program import Program
from bayeslora.types import BatchSize, Data, NumDraws, PosteriorLike, Seed, Sites, TraceSite
from bayeslora.weights import ClassWeights, as_in_fit, weighing_tokens

FEWEST = 4
"""Draws of which an effective number is known."""

COVERAGE = 0.9
"""Probability of the intervals that are compared."""


EFFECTIVE = 100
"""Effective draws from which a chain is a reference; arviz asks for as many of each chain."""


@dataclass(frozen=True, repr=False)
class Gold(Shown):
    """Draws from a posterior by NUTS.

    Args:
        sites: Draws of every site, `[draw, layer, …]`; points are where they were.
        logits: Logits of the data at them, centred where a constant does not matter, `[draw, example, …]`.
        effective: The smallest effective number of draws of a logit.
        divergences: Transitions that diverged, of which there should be none.
    """

    sites: Sites
    logits: FloatArray
    effective: float
    divergences: int

    @property
    def good(self) -> bool:
        """Whether others can be held against it: 100 effective draws at least, and none that diverged."""
        return self.effective >= EFFECTIVE and not self.divergences

    @property
    def verdict(self) -> str:
        """What to make of it, in words."""
        if not self.effective:
            return "Not a reference: no draw differs from another. The sampler is stuck, or logits do not depend on z."
        if self.divergences:
            return (
                f"Not a reference: {self.divergences} of {len(self.logits)} transitions diverged, so that the sampler "
                "misses parts of the posterior. Ask for a longer warmup."
            )
        if not self.good:
            return f"Not a reference: its draws are worth {self.effective:.0f} independent ones. Ask for more."
        return f"A reference, worth {self.effective:.0f} independent draws, none of which diverged."

    def _shown(self) -> tuple[str, dict[str, str], None]:
        facts = {
            "verdict": self.verdict,
            "draws": f"{len(self.logits)}",
            "effective": f"{self.effective:.0f}",
            "divergences": f"{self.divergences}",
        }
        return type(self).__name__, facts, None

    @public()
    def against(
        self,
        posterior: PosteriorLike,
        data: Data,
        num_draws: NumDraws = 1000,
        *,
        seed: Seed = 0,
        batch_size: BatchSize = 64,
    ) -> dict[str, float]:
        """Compare logits of a posterior, as it predicts, with the reference's.

        Args:
            posterior: Any posterior over the same kind of network.
            data: The data of `gold`.
            num_draws: Draws of the posterior.
            seed: Seed of the draws.
            batch_size: Examples per batch.

        Raises:
            ValueError: If all draws of the reference have the same logits.

        Returns:
            `bias`, the root mean square distance of means in standard deviations of the reference; `sd`, the median
            ratio of standard deviations; `coverage`, the reference's probability of central 90 % intervals, averaged.
        """
        program = posterior.program
        drawn, _ = draw_with_latents(program, num_draws, seed)
        found, _ = labelled(program, posterior._source(data), drawn, seed, batch_size, None)
        logits = logits_of(found, posterior._prediction(found), program)
        moves = np.ptp(self.logits, axis=0) > 0  # others do not depend on what is random
        if not moves.any():
            raise ValueError(f"No distance from this reference is known. {self.verdict}")
        logits, own = logits[:, moves], self.logits[:, moves]
        deviation = own.std(0)
        low, high = np.quantile(logits, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2], axis=0)
        bias = (logits.mean(0) - own.mean(0)) / deviation
        return {
            "bias": float(np.sqrt((bias**2).mean())),
            "sd": float(np.median(logits.std(0) / deviation)),
            "coverage": float(((low <= own) & (own <= high)).mean()),
        }


class Under(Messenger):
    """A handler that gives sites other priors, of which the loss has the part 1/n, and all of them one dtype."""

    def __init__(self, priors: Mapping[str, Distribution], num_examples: int, dtype: torch.dtype):
        super().__init__()
        self.priors, self.num_examples, self.dtype = priors, num_examples, dtype

    def _pyro_sample(self, msg: TraceSite) -> None:
        if msg["name"] in self.priors:
            msg["fn"], msg["scale"] = self.priors[msg["name"]], msg["scale"] / self.num_examples

    def _pyro_post_sample(self, msg: TraceSite) -> None:
        if isinstance(msg["value"], Tensor) and msg["value"].is_floating_point():
            msg["value"] = msg["value"].to(self.dtype)


@public()
def gold(
    posterior: PosteriorLike,
    data: Data,
    num_samples: Count = 1000,
    warmup: Count = 500,
    *,
    weight: Weight | None = None,
    class_weights: ClassWeights | None = None,
    seed: Seed = 0,
) -> Gold:
    r"""Draw from the posterior that a method claims, $p(z)\, p(y \mid x, z)^{1/T}$, with Pyro's No-U-Turn sampler.

    It has the product's own prior, likelihood and temperature, given points, task head and likelihood as they are in
    the posterior, and the network itself where predictions linearise it. A step runs the network on all the data: this
    is for a few dozen numbers.

    Args:
        posterior: The posterior.
        data: The training data, which runs as one batch.
        num_samples: Draws to keep, at least 4.
        warmup: Draws in which the sampler adapts, before those.
        weight: How much rows counted in the fit, as it took it.
        class_weights: How much classes counted in the fit.
        seed: Seed of the sampler.

    Raises:
        ValueError: If the method claims no posterior, random sites have no densities, or the prior is an automatic
            guide of an earlier fit; if there are fewer than 4 samples; or if rows had weights in the fit, and none are
            given.

    References:
        Hoffman and Gelman (2014), [The No-U-Turn Sampler](https://arxiv.org/abs/1111.4246).
    """
    program: Program = posterior.program
    if num_samples < FEWEST:
        raise ArgumentError(
            f"num_samples={num_samples}: {FEWEST} draws at least have an effective number; ask for 1000."
        )
    refuse(program.method)
    two = densities(program, *draw_with_latents(program, 2, 0))
    source, counted = as_in_fit(posterior, data, weight, class_weights)
    (_, batch), *_ = source.weighted().batches_by_length(len(source))
    batch = to_device(batch, program.device)
    program.eval()
    centre = program.centre()
    random = [name for name in centre if name in two.log_prior and _is_drawn(program, name)]
    points = {name: value for name, value in centre.items() if name not in random}
    if program.prior is not None and (computed := [name for name in random if program.prior.computes(name)]):
        raise ValueError(
            f"{computed[0]!r} is computed from other numbers in the automatic guide that is the prior here, and the "
            "sampler draws sites themselves. Compare a fit to all the data, without prior=…, with its gold reference."
        )

    own = program.method.claimed_priors(program)

    def model() -> None:
        with (
            Under(own, program.stacks.num_examples, program.network.dtype),
            poutine.condition(data=points),
            weighing_tokens(program.likelihood, counted.tokens),
        ):
            program.model(batch)

    scaled = poutine.scale(model, program.stacks.num_examples / two.temperature)
    with seeded(seed), pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pyro's and torch's own
        start = {name: centre[name].detach() for name in random}
        kernel = NUTS(scaled, init_strategy=init_to_value(values=start))
        chain = MCMC(kernel, num_samples, warmup, disable_progbar=True)
        chain.run()
        drawn: dict[str, Tensor] = chain.get_samples()
        sites = {n: drawn.get(n, value.expand(num_samples, *value.shape)).detach() for n, value in centre.items()}
        divergences = sum(len(each) for each in chain.diagnostics()["divergences"].values())
    program.network.unbind()
    # The network itself, of which a method may predict by an expansion.
    found, _ = labelled(program, source, sites, seed, len(source), "draws")
    logits = logits_of(found, posterior._prediction(found), program)
    return Gold(sites, logits, _effective(logits), divergences)


def _is_drawn(program: Program, name: str) -> bool:
    with seeded(0):
        draws = program.draw(2)[name]
    return bool((draws[0] != draws[1]).any())


def _effective(logits: FloatArray) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arviz as az

        columns = logits.reshape(len(logits), -1)
        return float(min((az.ess(each[None]) for each in columns.T if np.ptp(each) > 0), default=0.0))
