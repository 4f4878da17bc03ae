"""Simulation-based calibration: does a method recover what its own prior made?"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor

from bayeslora.contracts import ArgumentError, Count, Positive
from bayeslora.data import to_device
from bayeslora.diagnostics.densities import prior_sites
from bayeslora.diagnostics.groups import summary_draws
from bayeslora.diagnostics.weights import refuse
from bayeslora.display import Shown
from bayeslora.distributions import Flat
from bayeslora.elbo import sites as sites_of
from bayeslora.isolation import public, seeded
from bayeslora.limits import naming_inputs
from bayeslora.networks import inputs_of
from bayeslora.program import Program
from bayeslora.types import Batch, Data, PosteriorLike, Seed, Sites

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

FAILURE_RATE = 0.01
"""Probability with which a calibrated method fails, over all quantities together."""

SHIFTED = 0.4
"""Mean score of the ranks, in standard deviations, from which draws are said to be shifted, not narrow or wide."""

COARSEST = 2.0
"""The largest `resolution` with which it can be said that draws are calibrated."""

SHOWN_QUANTITIES = 6
"""Quantities that a figure has room for, the worst first."""


@dataclass(frozen=True, repr=False)
class Calibration(Shown):
    """Ranks of true values among draws, which are uniform if the draws are those of the posterior.

    Args:
        ranks: Quantity to the number of draws below its true value, `[simulation]`, from 0 to `num_draws`.
        num_draws: Draws per simulation.
    """

    ranks: Mapping[str, np.ndarray]
    num_draws: int

    def table(self) -> "pd.DataFrame":
        """Return a row per quantity, the worst first.

        `p` is the probability of such ranks if they are uniform; `spread`, how far out true values lie among the draws,
        1 if calibrated: draws are about that factor too narrow, or, below 1, too wide; `shift`, how far above the
        draws' middle they lie on average, in standard deviations.
        """
        import pandas as pd

        rows = [{"quantity": name, **self._judged(ranks)} for name, ranks in self.ranks.items()]
        return pd.DataFrame(rows).sort_values("p", ignore_index=True)

    def _judged(self, ranks: np.ndarray) -> dict[str, float]:
        """Test for a shift, for a spread, and for any other difference, and correct for there being three tests."""
        from scipy import stats

        scores, second, square = self._scores(len(ranks))
        z, size = scores[ranks], len(ranks)
        shift = 2 * stats.norm.sf(abs(z.mean()) * np.sqrt(size / second))
        spread = 2 * min(square.cdf((z**2).sum()), square.sf((z**2).sum()))
        jittered = (ranks + np.random.default_rng(0).random(size)) / (self.num_draws + 1)
        p = min(1.0, 3 * min(shift, spread, stats.kstest(jittered, "uniform").pvalue))
        return {"p": float(p), "spread": float(z.std() / np.sqrt(second)), "shift": float(z.mean())}

    def _scores(self, size: int) -> tuple[np.ndarray, float, Any]:
        """Return the score of each rank, their mean square, and the distribution of the sum of so many squares."""
        from scipy import stats

        scores = stats.norm.ppf((np.arange(self.num_draws + 1) + 0.5) / (self.num_draws + 1))
        second, fourth = float((scores**2).mean()), float((scores**4).mean())
        ratio = max(fourth / second - second, 1e-6)  # a gamma distribution of the sum's mean and variance
        return scores, second, stats.gamma(size * second / ratio, scale=ratio)

    @property
    def resolution(self) -> float:
        """How far out true values lie, on average over the simulations, from where on draws are called too narrow.

        A `spread` nearer to 1 passes. It is infinite where no ranks at all would be called so.
        """
        size = len(next(iter(self.ranks.values())))
        scores, second, square = self._scores(size)
        least = float(np.sqrt(square.isf(FAILURE_RATE / len(self.ranks) / 3 / 2) / size))
        return least / second**0.5 if least < scores.max() else math.inf

    @property
    def is_known(self) -> bool:
        """Whether there are simulations enough for a verdict: draws half as wide as they should be would be seen."""
        return not self.passes() or self.resolution <= COARSEST

    def passes(self, failure_rate: float = FAILURE_RATE) -> bool:
        """Return whether no quantity has ranks as rare as that, over all quantities together, if calibrated."""
        return bool(self.table()["p"].min() * len(self.ranks) > failure_rate)

    @property
    def verdict(self) -> str:
        """What to make of it, in words."""
        size = len(next(iter(self.ranks.values())))
        if not self.is_known:
            return (
                f"Not known: {size} simulations of {self.num_draws} draws do not show whether draws are half as wide "
                "as they should be. Ask for 100 of 99."
            )
        if self.passes():
            return (
                f"Calibrated, as far as {size} simulations can tell: true values have uniform ranks among the draws. "
                f"Draws that are {self.resolution:.2f} times too narrow would show."
            )
        table = self.table()
        worst = table.iloc[0]
        failed = table[table["p"] * len(table) <= FAILURE_RATE]
        spread = float(failed["spread"].median())
        many = f"{len(failed)} of {len(table)} quantities"
        if failed["shift"].abs().median() > SHIFTED:
            way = "below" if worst["shift"] > 0 else "above"
            return f"Not calibrated: draws lie {way} the true values, of {worst['quantity']} above all ({many})."
        if abs(np.log(spread)) < np.log(1.1):
            return f"Not calibrated: draws of {worst['quantity']} have another shape (p = {worst['p']:.1g}; {many})."
        how = "narrow" if spread > 1 else "wide"
        far = f"true values lie {spread:.2f} times as far out as they should"
        return f"Not calibrated: draws are too {how}: {far} ({many})."

    def bands(self, coverage: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Return bounds between which the whole ECDF of uniform ranks lies with a probability, `[rank]` each.

        References:
            Säilynoja et al. (2022), [Graphical test for discrete uniformity](https://arxiv.org/abs/2103.10522).
        """
        from scipy import stats

        size, grid = len(next(iter(self.ranks.values()))), np.arange(1, self.num_draws + 1) / (self.num_draws + 1)
        drawn = np.random.default_rng(0).integers(0, self.num_draws + 1, (1000, size))
        counts = np.stack([np.bincount(each, minlength=self.num_draws + 1).cumsum()[:-1] for each in drawn])
        tails = np.minimum(stats.binom.cdf(counts, size, grid), stats.binom.sf(counts - 1, size, grid))
        tail = np.quantile(tails.min(1), 1 - coverage)
        return stats.binom.ppf(tail, size, grid) / size, stats.binom.isf(tail, size, grid) / size

    def plot(self) -> "Figure":
        """Plot histograms of ranks, and their ECDF minus the uniform one with its simultaneous 95 % band."""
        from matplotlib.figure import Figure

        names = list(self.table()["quantity"][:SHOWN_QUANTITIES])
        figure = Figure(figsize=(7, 1.9 * len(names) + 0.6), layout="constrained")
        axes = figure.subplots(len(names), 2, squeeze=False)
        low, high = self.bands()
        grid = np.arange(1, self.num_draws + 1) / (self.num_draws + 1)
        for (histogram, ecdf), name in zip(axes, names, strict=True):
            ranks = self.ranks[name]
            bins = max(5, min(20, len(ranks) // 10))
            histogram.hist((ranks + 0.5) / (self.num_draws + 1), bins=bins, range=(0, 1), color="#0072B2")
            histogram.axhline(len(ranks) / bins, color="0.3", linestyle="--", linewidth=1)
            histogram.set_title(name, fontsize="small")
            found = np.bincount(ranks, minlength=self.num_draws + 1).cumsum()[:-1] / len(ranks)
            ecdf.fill_between(grid, low - grid, high - grid, color="0.85", label="95 % of calibrated ones")
            ecdf.plot(grid, found - grid, color="#D55E00", label="found")
            ecdf.axhline(0, color="0.3", linestyle="--", linewidth=1)
        axes[0, 1].legend(fontsize="x-small")
        axes[-1, 0].set_xlabel("rank of the true value")
        axes[-1, 1].set_xlabel("rank: ECDF minus uniform")
        return figure

    def _shown(self) -> "tuple[str, dict[str, str], pd.DataFrame]":
        size = len(next(iter(self.ranks.values())))
        facts = {"verdict": self.verdict, "simulations": str(size), "draws": str(self.num_draws)}
        return type(self).__name__, facts, self.table().head(SHOWN_QUANTITIES)


@public()
def sbc(
    posterior: PosteriorLike,
    data: Data,
    fit: Callable[[Mapping[str, Any]], Any] | None = None,
    num_simulations: Count = 100,
    num_draws: Count = 99,
    *,
    steps: Count = 500,
    learning_rate: Positive = 1e-2,
    probes: Count = 3,
    seed: Seed = 0,
) -> Calibration:
    r"""Check a method by simulation: draw sites from its prior and labels from them, fit, and rank the truth.

    $z \sim p(z)$, $y \sim p(y \mid x, z)$, draws from $q(z \mid y)$: if q is the posterior, the rank of any function of
    the true z among those of the draws is uniform. The functions are those that are identified: the centred logits of
    the first examples, $\lVert \Delta W \rVert_F$ of each layer, and the log-likelihood of the labels.

    Points under flat priors, the task head and the likelihood's own parameters stay as they are in the posterior, in
    simulations and fits.

    Args:
        posterior: Whose prior, network, head and points are used.
        data: Inputs, such as the training data; labels are not looked at. They are one batch.
        fit: Called with a batch, its `labels` simulated; returns what has `draw(num_draws)`: a program, or a posterior
            such as your own `bayeslora.fit` makes. None for Adam on the loss, from the posterior's guide, followed by
            the method's `refine`.
        num_simulations: Number of simulations, each with a fit.
        num_draws: Draws per fit.
        steps: Steps of Adam.
        learning_rate: Its rate at the start, which falls to 0.
        probes: Examples whose logits are ranked.
        seed: Seed of everything random.

    Raises:
        ValueError: If the method claims no posterior, a random site has no proper prior, or the prior weighs draws; if
            `fit` returns other sites than the posterior's, or changed what is not drawn.

    References:
        Talts et al. (2018), [Validating Bayesian inference algorithms](https://arxiv.org/abs/1804.06788);
        Modrák et al. (2023), [Simulation-based calibration checking](https://arxiv.org/abs/2211.02383).
    """
    program: Program = posterior.program
    refuse(program.method)
    truth = prior_sites(program, num_simulations, seed)
    if truth is None:
        raise ValueError(
            f"{program.method.name!r} has no prior to simulate from: one at a random site is not proper, or the "
            "program weighs its draws by factors or observations of its own."
        )
    source = posterior._source(data, with_labels=False)
    (_, batch), *_ = source.batches_by_length(len(source))
    inputs = inputs_of(to_device(batch, program.device))
    labels = simulated(program, truth, inputs, seed)
    ranks: dict[str, list[int]] = {}
    generator = np.random.default_rng(seed)  # of its own: what is ranked has no say in the fits
    with seeded(seed + 1):
        for index in range(num_simulations):
            seen = {**inputs, "labels": labels[index]}
            found = (fit or (lambda each: fitted(program, each, steps, learning_rate)))(seen)
            if not hasattr(found, "draw"):
                raise ArgumentError(f"fit returned a {type(found).__name__}: return what has draw(num_draws).")
            drawn = found.draw(num_draws)
            _check_sites(drawn, truth, num_draws)
            if fit is not None and not index:
                _check_same(program, getattr(found, "program", found), drawn, seen)
            both = {n: torch.cat([z[index : index + 1].to(drawn[n]), drawn[n]]) for n, z in truth.items()}
            for name, values in quantities(program, both, seen, probes).items():
                ranks.setdefault(name, []).append(rank(values, generator))
    return Calibration({name: np.array(each) for name, each in ranks.items()}, num_draws)


def _check_sites(drawn: Mapping[str, Tensor], truth: Sites, num_draws: int) -> None:
    """Raise a ValueError unless the draws of a fit are of all sites of the truth, in its shapes."""
    for name, value in truth.items():
        if name not in drawn:
            raise ArgumentError(
                f"fit returned draws of {', '.join(drawn)}, and the truth has {name!r}: fit the method of the "
                "posterior, to its layers."
            )
        if len(drawn[name]) != num_draws:
            raise ValueError(f"A fit gave {len(drawn[name])} of {num_draws} draws: ranks need all of them.")
        if drawn[name].shape[1:] != value.shape[1:]:
            shapes = f"{tuple(drawn[name].shape[1:])}, and of the truth {tuple(value.shape[1:])}"
            raise ArgumentError(f"fit returned draws of {name!r} of shape {shapes}: fit it as the posterior was.")


def _check_same(program: Program, other: Any, drawn: Sites, batch: Batch) -> None:
    """Raise a ValueError if a fit's own network or likelihood is another function of its draws than the truth's."""
    if not isinstance(other, Program):
        return
    one = {name: value[:1] for name, value in drawn.items()}
    ours, theirs = (quantities(each, one, batch, 1) for each in (program, other))
    if ours.keys() != theirs.keys() or any(
        not np.allclose(value, theirs[name], rtol=1e-3, atol=1e-4) for name, value in ours.items()
    ):
        raise ArgumentError(
            "fit changed what is not drawn, such as a task head, alpha or the noise of numbers: its draws would be "
            "ranked in a network that is not theirs. Hold it in the posterior and in fit (head=[] trains no head), or "
            "leave fit out."
        )


def rank(values: np.ndarray, generator: np.random.Generator) -> int:
    """Return the rank of the first value among the others, anywhere among those that equal it, as masks make them."""
    below, equal = ((values[1:] < values[0]).sum(), (values[1:] == values[0]).sum())
    return int(below + generator.integers(equal + 1))


def simulated(program: Program, truth: Sites, inputs: Batch, seed: int) -> Tensor:
    """Draw labels at every draw of the sites, `[simulation, example, …]`."""
    with torch.no_grad(), seeded(seed), pyro.validation_enabled(False):
        logits = _logits(program, truth, inputs)
        return cast(Tensor, program.likelihood.distribution(logits).sample())


def quantities(program: Program, sites: Sites, batch: Batch, probes: int) -> dict[str, np.ndarray]:
    """Return functions of the sites that are identified, `[draw]` each, by name."""
    found: dict[str, np.ndarray] = {}
    with torch.no_grad(), pyro.validation_enabled(False):
        logits = _logits(program, sites, batch)
        found["log_likelihood"] = program.likelihood.log_prob(logits, batch["labels"]).flatten(1).sum(1).cpu().numpy()
        if program.likelihood.up_to_constant:
            logits = (logits - logits.mean(-1, keepdim=True))[..., :-1]  # the last is minus the sum of the others
    for place in np.ndindex(*logits[0, :probes].shape):
        found[f"logits[{', '.join(map(str, place))}]"] = logits[(slice(None), *place)].cpu().numpy()
    norms, _ = summary_draws(program, sites)
    for name, values in norms.items():
        if name.startswith("delta_norm"):
            found |= {f"{name}[{layer}]": column for layer, column in enumerate(values.T)}
    return found


def _logits(program: Program, sites: Sites, batch: Batch) -> Tensor:
    with naming_inputs(inputs_of(batch)):
        try:
            return program.eval().logits(sites, batch)
        finally:
            program.network.unbind()


def fitted(program: Program, batch: Batch, steps: int, learning_rate: float) -> Program:
    """Return a copy of a program whose guide is fitted to a batch by Adam; points, head and likelihood stay."""
    own = copy.deepcopy(program)
    own.likelihood.token_weights = None  # simulated labels have none
    held = {id(parameter) for parameter in _of_points(own)}
    learned = [
        parameter for parameter in own.guide.parameters() if parameter.requires_grad and id(parameter) not in held
    ]
    if learned:
        own.train()
        optimizer = torch.optim.Adam(learned, lr=learning_rate)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
        for _ in range(steps):
            optimizer.zero_grad()
            own(**batch).loss.backward()
            optimizer.step()
            schedule.step()
    own.eval()
    own.network.unbind()
    own.guide = own.method.refine(own, own.guide, [batch], [])
    return own


def _of_points(program: Program) -> list[Tensor]:
    """Return the parameters of the guide that sites under flat priors depend on, if the prior is meant to be flat."""
    parameters = [parameter for parameter in program.guide.parameters() if parameter.requires_grad]
    with pyro.validation_enabled(False):
        prior = dict(sites_of(poutine.trace(program.factors).get_trace()))
        guide = dict(sites_of(poutine.trace(program.guide).get_trace()))
    claimed = program.method.claimed_priors(program)
    flat = [
        guide[n]["value"] for n, s in prior.items() if n not in claimed and n in guide and isinstance(s["fn"], Flat)
    ]
    if not any(value.requires_grad for value in flat):
        return []
    total = sum((value.sum() for value in flat if value.requires_grad), torch.zeros(()))
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    return [parameter for parameter, gradient in zip(parameters, gradients, strict=True) if gradient is not None]
