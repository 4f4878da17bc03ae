"""How large MonteCLoRA's noise is, and which factor it is added to."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from bayeslora import priors
from bayeslora.adapters import SVD, DoRA, Family, Full, LowRank, Stack
from bayeslora.dials import Dial
from bayeslora.distributions import WishartCholesky
from bayeslora.fitted import FittedProgram
from bayeslora.methods.base import PerStackMethod, Tuning
from bayeslora.tuning import TUNE_AFTER, TUNE_DRAWS, tune_ratio
from bayeslora.types import Batch

FAMILIES: dict[str, Family] = {"lora": LowRank(), "full": Full(), "dora": DoRA(), "adalora": SVD()}
"""Families that MonteCLoRA can use; the noise is added to the factor with a column for every input feature."""


class NoisyColumns(PerStackMethod):
    r"""A method whose columns have noise $\epsilon \sqrt{\sum_k \pi_k^2}\, \Lambda z$, with z standard Normal.

    `MonteCLoRA` says what its fields mean.
    """

    refit = True
    fewest_steps = 400  # beside loud noise A and B learn more slowly: benchmarks/noise_study.py
    dial = Dial("noise_ratio", (1.0, 2.0, 4.0, 8.0, 16.0), "noise_ratio", in_training=True)
    base: Literal["lora", "full", "dora", "adalora"]
    components: int
    concentration: float
    df: Literal["features", "rank"] | float
    noise_ratio: float | Literal["auto"]
    objective: Literal["paper", "elbo"]
    prior_scale: float | None
    sample_scale: float | None
    sparse: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise_ratio == "auto":
            one = self.sample_scale is None
            self.require(one, "sample_scale", "it would replace noise_ratio='auto'; give one of them")
        if self.objective == "elbo":
            silent = 0 in (self.noise_ratio, self.sample_scale)
            self.require(not silent, "objective", "'elbo' needs noise: a point has no divergence from a Normal prior")

    @property
    def claims(self) -> str:  # type: ignore[override]
        """The full bound is that of a posterior; in the paper's objective, weights and ε set the loudness."""
        return "posterior" if self.objective == "elbo" else "noise"

    @property
    def family(self) -> Family:  # type: ignore[override]
        """The adapter family of `base`."""
        return FAMILIES[self.base]

    @property
    def noisy(self) -> str:
        """The factor whose columns are random."""
        assert self.family.columns is not None
        return self.family.columns

    def points(self, stack: Stack) -> list[str]:
        """Return the names of the factors without noise."""
        return [name for name in stack.shapes if name != self.noisy]

    def rows(self, stack: Stack) -> int:
        """Return the rows of the random factor, which are those of Σ: r, or $d_{out}$ of full weights."""
        return stack.shapes[self.noisy][0]

    def ratio(self, stack: Stack, found: Tensor | None = None) -> float | Tensor:
        """Return c: the field, or, where that is `"auto"`, a site, which in the guide is at the value found so far."""
        if self.noise_ratio != "auto":
            return self.noise_ratio
        return pyro.sample(stack.site("noise_ratio"), priors.flat(()) if found is None else dist.Delta(found))

    def covariance(self, stack: Stack, scale_diag: Tensor, is_prior: bool = False) -> dist.Distribution:
        """Return the distribution of Λ; without a Wishart one, the point diag(√v), which has no prior."""
        if self.degrees_of_freedom(stack) < math.inf:
            return WishartCholesky(self.degrees_of_freedom(stack), scale_diag)
        if is_prior:
            return priors.flat((self.rows(stack), self.rows(stack)))
        return dist.Delta(torch.diag_embed(scale_diag.sqrt()), event_dim=2)

    def degrees_of_freedom(self, stack: Stack) -> float:
        """Return ν of one stack.

        Raises:
            ValueError: If it is less than the rows of Σ.
        """
        rows, what = self.rows(stack), "rank" if stack.family.has_rank else "d_out"
        # The mean of Σ⁻¹, which the divergence from the hierarchical prior has in it, is finite from r + 2 on.
        least = rows + 2 if self.objective == "elbo" else rows
        if self.df == "features":
            return max(stack.d_in, least)
        df = rows if self.df == "rank" else self.df
        if not df >= least:
            more = " + 2" if least > rows else ""
            raise ValueError(f"df={self.df!r}: Σ needs at least {what}{more} = {least} degrees of freedom.")
        return df

    def square_sum(self, weights: Tensor) -> Tensor:
        r"""Return $\sum_k \pi_k^2$, which is 1 for a one-hot π, `[*draw, layer]`."""
        return torch.ones_like(weights[..., 0]) if self.sparse else weights.square().sum(-1)

    def scale_of_noise(self, stack: Stack, ratio: float | Tensor) -> float | Tensor:
        r"""Return ε of one stack: `sample_scale`, or c units over $\sqrt{\nu\, E[\sum \pi^2]}$ at v = 1.

        The unit is the standard deviation of the random factor's start.
        """
        if self.sample_scale is not None:
            return self.sample_scale
        # Expected under the prior, because a random start of α is meant to change the size of the noise.
        square_sum = 1.0 if self.sparse else (self.concentration + 1) / (self.components * self.concentration + 1)
        df = self.degrees_of_freedom(stack)
        of_prior = self.prior_scale if self.objective == "elbo" else None
        scale = ratio * stack.family.start_scale(stack.d_in) if of_prior is None else of_prior
        return scale / math.sqrt(square_sum * (df if df < math.inf else 1))

    def tuning(self) -> Tuning | None:
        return Tuning(TUNE_AFTER, TUNE_DRAWS + 1) if self.noise_ratio == "auto" else None

    def tune(self, program: FittedProgram, batches: Sequence[Batch]) -> None:
        """Set c by the NLL of held-out data."""
        parts: Any = program.guide.values()  # type: ignore[operator]
        tune_ratio(program, batches, [part.noise_ratio for part in parts])
