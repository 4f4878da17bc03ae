r"""A real number per example."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayeslora import metrics
from bayeslora.contracts import Freedom, Probability, Scale, checked
from bayeslora.contracts.arrays import fitting_labels
from bayeslora.metrics import FloatArray
from bayeslora.networks import is_a, solves
from bayeslora.tasks.amounts import real
from bayeslora.tasks.base import Likelihood, precise
from bayeslora.tasks.classes import Classes
from bayeslora.tasks.collecting import Outputs
from bayeslora.tasks.labels import RawLabels
from bayeslora.tasks.noise import Noise, mixture_crps, mixture_information, mixture_quantile
from bayeslora.tasks.prediction import BasePrediction, LabelArray, Names, fit_labels, uncertainty
from bayeslora.tasks.settling import Component, settled
from bayeslora.types import Batch, LabelColumn, LabelValues, RealLogits, Tokenizer

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

COARSE = 100
"""How often the distance of two numbers has to fit into the spread of labels."""


@dataclass(frozen=True, repr=False)
class RegressionPrediction(BasePrediction):
    r"""A real number per example: a mixture over draws of $f_s + \sigma \epsilon$.

    The noise ε is standard Normal, or Student's t. Densities are per unit of the labels, so `entropy` and `aleatoric`
    depend on that unit and may be negative; `epistemic`, their difference, neither depends on it nor is negative.

    Args:
        draws: $f_s$, `[draw, example]`.
        scale: σ, in units of the labels: a number, or one for each draw, `[draw]`.
        df: Degrees of freedom of the noise, infinite for Normal noise.
    """

    per_draw: ClassVar[tuple[str, ...]] = ("draws", "scale")
    draws: Float[np.ndarray, "draw example"]
    scale: float | FloatArray
    df: float = math.inf

    @property
    def noise(self) -> Noise:
        """The noise ε."""
        return Noise(self.df)

    @property
    def scales(self) -> FloatArray:
        """σ of each draw, `[draw]`."""
        return np.broadcast_to(np.asarray(self.scale, dtype=np.float64), len(self.draws))

    def _per_draw(self, name: str) -> Any:
        return self.scales if name == "scale" else super()._per_draw(name)

    @cached_property
    def mean(self) -> FloatArray:
        """Mean, `[example]`."""
        return self.average(self.draws)

    @property
    def predicted(self) -> FloatArray:
        """The mean, `[example]`."""
        return self.mean

    @property
    def aleatoric_variance(self) -> FloatArray:
        """Variance of the noise, `[example]`."""
        return np.full(len(self), self.average(self.scales**2) * self.noise.variance)

    @cached_property
    def epistemic_variance(self) -> FloatArray:
        """Variance of the draws' means, `[example]`."""
        return self.average((self.draws - self.mean) ** 2)

    @property
    def variance(self) -> FloatArray:
        """Variance, `[example]`: aleatoric + epistemic."""
        return self.aleatoric_variance + self.epistemic_variance

    @property
    def aleatoric(self) -> FloatArray:
        """Entropy of the noise in nats, `[example]`."""
        return np.full(len(self), self.noise.entropy + self.average(np.log(self.scales)))

    @cached_property
    def epistemic(self) -> FloatArray:
        r"""Mutual information of label and weights in nats, `[example]`, by quadrature over the noise."""
        return mixture_information(self.draws, self.scales, self.noise, self.weights)

    @checked()
    def quantile(self, q: Probability) -> FloatArray:
        """Return the q-quantile of the mixture, `[example]`, by bisection of its distribution function."""
        return mixture_quantile(self.draws, self.scales, q, self.noise, self.weights)

    @checked()
    def interval(self, level: Probability = 0.9) -> Float[np.ndarray, "example 2"]:
        """Return the lower and upper end of the central interval that holds a given share of the probability."""
        return np.stack([self.quantile((1 - level) / 2), self.quantile((1 + level) / 2)], axis=-1)

    def _settled(self, tolerance: float, pairs: bool, components: Sequence[Component]) -> np.ndarray:
        """Return whether the distribution function is settled at its median and at both ends of `interval`, `[row]`."""
        places = np.stack([*self.interval().T, self.quantile(0.5)], axis=-1)
        below = self.noise.cdf((places - self.draws[..., None]) / self.scales[:, None, None])
        return settled(below, np.ones_like(below), tolerance, pairs, components, self.weights)

    def _fitting(self, labels: np.ndarray) -> np.ndarray:
        return fitting_labels(labels, self.draws.shape[1:], "the number")

    def conformity(self, labels: np.ndarray) -> dict[str, FloatArray]:
        return {"scaled": np.abs(labels - self.mean) / np.sqrt(self.variance)}

    @checked()
    def sets(self, coverage: Probability = 0.9) -> Float[np.ndarray, "example 2"]:
        r"""Return the lower and upper end of an interval for each label, $\mu \pm q \, \mathrm{sd}$.

        q is the conformal quantile of $|y - \mu| / \mathrm{sd}$ over the rows of `Posterior.decide`, with the mean μ
        and the standard deviation sd of each row's prediction. The label is inside with probability `coverage` at
        least, on average over those rows and new ones; `interval` is only as right as the model.

        Raises:
            ValueError: If there are no held-out rows, or they were predicted otherwise.

        References:
            Lei et al. (2018), [Distribution-Free Predictive Inference](https://arxiv.org/abs/1604.04173).
        """
        half = self._largest_score(coverage, "scaled") * np.sqrt(self.variance)
        return np.stack([self.mean - half, self.mean + half], axis=-1)

    @checked(also=fit_labels)
    def crps(self, labels: LabelArray) -> FloatArray:
        """Return the continuous ranked probability score in units of the labels, `[example]`."""
        return mixture_crps(self.draws, labels, self.scales, self.noise, self.weights)

    def log_likelihood(self, labels: np.ndarray) -> FloatArray:
        scale = self.scales[:, None]
        return self.noise.log_density((labels - self.draws) / scale) - np.log(scale)

    def sample(self, seed: int | None = 0) -> FloatArray:
        return self.draws + self.scales[:, None] * self.noise.sample(self.draws.shape, seed)

    def scores(self, labels: np.ndarray) -> dict[str, float]:
        """Return NLL, RMSE, MAE, both correlations, CRPS, and the share of labels in the 90 % interval."""
        lower, upper = self.interval(0.9).T
        return {
            "nll": self.mixture_nll(self.log_likelihood(labels)),
            **metrics.regression_scores(self.mean, labels),
            "crps": float(self.crps(labels).mean()),
            "coverage_90": float(((lower <= labels) & (labels <= upper)).mean()),
        }

    def to_pandas(self) -> "pd.DataFrame":
        """Return a table with a row per example: mean, standard deviation, 90 % interval, and uncertainties."""
        import pandas as pd

        lower, upper = self.interval(0.9).T
        columns = {"predicted": self.mean, "sd": np.sqrt(self.variance), "lower_90": lower, "upper_90": upper}
        return pd.DataFrame(columns | uncertainty(self))


class RealValued(Likelihood):
    r"""One real number per example, the network's one logit plus noise: $y = f + \sigma \epsilon$.

    Attributes:
        log_scale: ln σ, σ in units of the labels.
        df: Degrees of freedom of the noise's Student t distribution; infinite for Normal noise.
    """

    has_temperature = False
    df: float = math.inf

    @checked()
    def __init__(self, scale: Scale = 1.0, learned: bool = True):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)), requires_grad=learned)
        self.unit = max(scale, 1.0)

    @classmethod
    def fitting(cls, logits: Tensor, labels: LabelValues, tokenizer: Tokenizer | None = None) -> "RealValued":
        values = np.asarray(labels, dtype=np.float64)
        spread, apart = float(values.std()), torch.finfo(precise(logits).dtype).eps * float(np.abs(values).max())
        if 0 < spread < COARSE * apart:
            logger.warning(
                "Labels reach %.4g and their spread is %.3g, but the network's numbers there are %.2g apart: subtract "
                "the labels' mean, and add it to predictions.",
                *(float(np.abs(values).max()), spread, apart),
            )
        return cls(spread if 0 < spread < math.inf else 1.0)

    @classmethod
    def encode(cls, labels: RawLabels, classes: Classes | None) -> Any:
        return real(labels)

    @property
    def num_labels(self) -> int | None:
        return 1

    @property
    def scale(self) -> float:
        """σ, in units of the labels."""
        return math.exp(self.log_scale.item())

    def select(self, logits: Tensor, batch: Batch) -> RealLogits:
        if logits.dim() < 2 or logits.shape[-1] != 1:
            raise ValueError(
                f"Regression needs one output per example, [batch, 1], but the network returns {tuple(logits.shape)}: "
                "load it with num_labels=1, or let its forward end with .unsqueeze(-1)."
            )
        return precise(logits.squeeze(-1))

    def residuals(self, logits: Tensor, batch: Batch) -> RealLogits:
        """Return the labels minus the logits."""
        logits = self.select(logits, batch)
        return batch["labels"].to(logits) - logits

    def log_prob(self, logits: RealLogits, labels: Tensor) -> Tensor:
        return super().log_prob(logits, labels.to(logits.dtype))

    def observe(self, logits: RealLogits, labels: Tensor) -> None:
        super().observe(logits, labels.to(logits.dtype))

    def check_labels(self, labels: LabelValues) -> None:
        values = np.asarray(labels)
        if values.dtype.kind not in "fiub" or values.ndim != 1:
            raise ValueError(
                f"Labels are {values.dtype} of shape {values.shape}; regression needs one number per example."
            )
        if not np.isfinite(values.astype(np.float64)).all():
            row = int(np.flatnonzero(~np.isfinite(values.astype(np.float64)))[0])
            raise ValueError(f"Labels are NaN or infinite, the first in row {row}: remove such rows, or fill them in.")

    def config(self) -> dict[str, Any]:
        return {"scale": self.scale, "learned": self.log_scale.requires_grad}

    @classmethod
    def model_settings(cls, model: str, names: Sequence[str] | None, labels: LabelColumn | None) -> dict[str, Any]:
        return {"num_labels": 1}

    def latent(self, prediction: RegressionPrediction) -> tuple[FloatArray, FloatArray]:
        return prediction.draws, prediction.predicted

    def predict(self, outputs: Outputs, temperature: float = 1.0, class_names: Names = None) -> BasePrediction:
        return RegressionPrediction(outputs.logits, self.scale, self.df)


class Regression(RealValued):
    r"""A real number with Normal noise: $y \sim N(f, \sigma^2)$.

    Labels: a real number.
    Logits: `[batch, 1]`.

    Args:
        scale: σ, in units of the labels: its start, or its value if it is not learned.
        learned: Whether σ is learned, one for all examples.
    """

    name = "regression"

    def distribution(self, logits: RealLogits) -> dist.Distribution:
        return dist.Normal(logits, self.log_scale.exp())

    def baseline(self, labels: LabelValues) -> float | None:
        spread = float(np.std(np.asarray(labels, dtype=np.float64)))
        scale = spread if self.log_scale.requires_grad else self.scale
        return math.log(scale) + ((spread / scale) ** 2 + math.log(2 * math.pi)) / 2 if scale > 0 else None

    @classmethod
    def suggested_by(cls, columns: Sequence[str], label: Any) -> bool:
        return label is not None and np.ndim(label) == 0 and np.asarray(label).dtype.kind == "f"

    @classmethod
    def is_of(cls, model: nn.Module) -> bool:
        return solves(model, "regression") and getattr(model.config, "num_labels", None) == 1

    @classmethod
    def fits(cls, model: nn.Module, logits: Tensor, labels: Tensor) -> bool:
        if cls.is_of(model):
            return logits.dim() == 2 and labels.dim() == 1
        # A vector of outputs is said to need another dimension, by `select`.
        one = logits.shape in ((len(labels), 1), (len(labels),)) and labels.dim() == 1
        return one and labels.is_floating_point() and not is_a(model, "MULTIPLE_CHOICE")


class StudentT(RealValued):
    r"""A real number with Student t noise, for labels with outliers: $(y - f) / \sigma \sim t_\nu$.

    Labels: a real number.
    Logits: `[batch, 1]`.

    Args:
        scale: σ, in units of the labels: its start, or its value if it is not learned.
        df: ν, degrees of freedom, above 2 (a finite variance).
        learned: Whether σ is learned, one for all examples. ν is not.
    """

    name = "student_t"

    @checked()
    def __init__(self, scale: Scale = 1.0, df: Freedom = 4.0, learned: bool = True):
        super().__init__(scale, learned)
        self.df = df

    def distribution(self, logits: RealLogits) -> dist.Distribution:
        return dist.StudentT(self.df, logits, self.log_scale.exp())

    def config(self) -> dict[str, Any]:
        return {**super().config(), "df": self.df}
