"""Draws and predictions from a fitted program."""

import abc
import contextlib
import dataclasses
import math
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, singledispatch
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bayeslora import metrics
from bayeslora.data import to_device
from bayeslora.likelihoods import Categorical, Likelihood, RealValued
from bayeslora.metrics import FloatArray, Noise
from bayeslora.program import Program, evaluating
from bayeslora.types import Batch, Sites

if TYPE_CHECKING:
    import pandas as pd

# Rows × positions up to which draws are folded into one pass. Folding is faster only while a pass is bound by
# overhead: 0.57 × a loop's time at 16 × 6 tokens, the same at 16 × 64.
FOLDED_POSITIONS = 2048


@dataclass(frozen=True)
class Outputs:
    """What a network returned at several draws, and what it was asked about.

    Args:
        logits: `[draw, row, …]`; a row is an example, or a token of one.
        labels: `[row, …]`, or None where the data has none.
    """

    logits: FloatArray
    labels: np.ndarray | None

    def __getitem__(self, draws: slice) -> "Outputs":
        """The same at some of the draws."""
        return dataclasses.replace(self, logits=self.logits[draws])


class BasePrediction(abc.ABC):
    """The predictive distribution of the labels: an equal mixture over draws of the weights, row by row.

    A row is an example, or a token of one. Entropies are in nats.

    Attributes:
        draws: What every draw says, `[draw, row, …]`.
    """

    draws: np.ndarray

    @property
    @abc.abstractmethod
    def predicted(self) -> np.ndarray:
        """The one label to give if one must be given, `[row, …]`."""

    @property
    @abc.abstractmethod
    def aleatoric(self) -> FloatArray:
        """Entropy per draw, averaged, in nats, `[row]`: what would remain if the weights were known."""

    @property
    @abc.abstractmethod
    def epistemic(self) -> FloatArray:
        """Mutual information of label and weights in nats, `[row]`: entropy − aleatoric, 0 for one draw."""

    @property
    def entropy(self) -> FloatArray:
        """Entropy of the mixture in nats, `[row]`: all uncertainty about the label."""
        return self.aleatoric + self.epistemic

    @abc.abstractmethod
    def log_likelihood(self, labels: np.ndarray) -> FloatArray:
        """Log-likelihood ln p(labels) of every draw in nats, `[draw, example]`."""

    @abc.abstractmethod
    def sample(self, seed: int | None = 0) -> np.ndarray:
        """One label per draw and row from the predictive distribution, `[draw, row, …]`."""

    @abc.abstractmethod
    def scores(self, labels: np.ndarray) -> dict[str, float]:
        """The task's metrics; `nll` is in nats per example."""

    @abc.abstractmethod
    def to_pandas(self) -> "pd.DataFrame":
        """A row per row of the prediction."""

    def __len__(self) -> int:
        """Number of rows."""
        return self.draws.shape[1]


@dataclass(frozen=True)
class Prediction(BasePrediction):
    """Class probabilities, `S` draws of them, for `N` examples and `C` classes.

    Args:
        draws: Probabilities per draw, `[draw, example, class]`.
        class_names: Names of the classes, or None.
    """

    draws: Float[np.ndarray, "draw example class"]
    class_names: tuple[str, ...] | None = None

    @cached_property
    def probs(self) -> FloatArray:
        """Probabilities averaged over draws, `[example, class]`."""
        return self.draws.mean(0)

    @property
    def predicted(self) -> np.ndarray:
        """Most probable class, `[example]`, as a number."""
        return self.probs.argmax(-1)

    @cached_property
    def entropy(self) -> FloatArray:
        """Entropy of the averaged probabilities in nats, `[example]`: all uncertainty about the label."""
        return metrics.entropy(self.probs)

    @cached_property
    def aleatoric(self) -> FloatArray:
        return metrics.entropy(self.draws).mean(0)

    @cached_property
    def epistemic(self) -> FloatArray:
        # As the mean KL from the draws to their average, which rounding cannot make negative.
        return metrics.relative_entropy(self.draws, self.probs).mean(0)

    def log_likelihood(self, labels: np.ndarray) -> FloatArray:
        return np.stack([-metrics.nll_per_example(probs, labels) for probs in self.draws])

    def sample(self, seed: int | None = 0) -> np.ndarray:
        return _sample_classes(self.draws, seed)

    def scores(self, labels: np.ndarray) -> dict[str, float]:
        """As `metrics.classification_scores`."""
        return metrics.classification_scores(self.probs, labels)

    def to_pandas(self) -> "pd.DataFrame":
        """A row per example: predicted class, a probability per class, and the three uncertainties."""
        import pandas as pd

        names = self.class_names or tuple(str(index) for index in range(self.probs.shape[-1]))
        columns: dict[str, Any] = {"predicted": [names[index] for index in self.predicted]}
        columns |= {f"p({name})": self.probs[:, index] for index, name in enumerate(names)}
        return pd.DataFrame(columns | _uncertainty(self))


@dataclass(frozen=True)
class RegressionPrediction(BasePrediction):
    r"""A real number per example: an equal mixture over draws of $f_s + \sigma \epsilon$.

    The noise ε is standard Normal, or Student's t. Densities are per unit of the labels: entropies in nats depend on
    that unit and may be negative; `epistemic`, a difference of two, does not and is not.

    Args:
        draws: $f_s$, `[draw, example]`.
        scale: σ, in units of the labels.
        df: Degrees of freedom of the noise, infinite for Normal noise.
    """

    draws: Float[np.ndarray, "draw example"]
    scale: float
    df: float = math.inf

    @property
    def noise(self) -> Noise:
        """The noise ε."""
        return Noise(self.df)

    @cached_property
    def mean(self) -> FloatArray:
        """Mean, `[example]`."""
        return self.draws.mean(0)

    @property
    def predicted(self) -> FloatArray:
        """The mean, `[example]`."""
        return self.mean

    @property
    def aleatoric_variance(self) -> FloatArray:
        """Variance of the noise, `[example]`."""
        return np.full(len(self), self.scale**2 * self.noise.variance)

    @cached_property
    def epistemic_variance(self) -> FloatArray:
        """Variance of the draws' means, `[example]`."""
        return self.draws.var(0)

    @property
    def variance(self) -> FloatArray:
        """Variance, `[example]`: aleatoric + epistemic."""
        return self.aleatoric_variance + self.epistemic_variance

    @property
    def aleatoric(self) -> FloatArray:
        """Entropy of the noise in nats, `[example]`."""
        return np.full(len(self), self.noise.entropy + math.log(self.scale))

    @cached_property
    def epistemic(self) -> FloatArray:
        r"""Mutual information of label and weights in nats, `[example]`, by quadrature over the noise."""
        return metrics.mixture_information(self.draws, self.scale, self.noise)

    def quantile(self, q: float) -> FloatArray:
        """The q-quantile of the mixture, `[example]`, by bisection of its distribution function."""
        return metrics.mixture_quantile(self.draws, self.scale, q, self.noise)

    def interval(self, level: float = 0.9) -> Float[np.ndarray, "example 2"]:
        """Lower and upper end of the central interval that holds that share of the probability."""
        if not 0 < level < 1:
            raise ValueError(f"level={level!r}: give a probability between 0 and 1.")
        return np.stack([self.quantile((1 - level) / 2), self.quantile((1 + level) / 2)], axis=-1)

    def crps(self, labels: np.ndarray) -> FloatArray:
        """Continuous ranked probability score in units of the labels, `[example]`."""
        return metrics.mixture_crps(self.draws, labels, self.scale, self.noise)

    def log_likelihood(self, labels: np.ndarray) -> FloatArray:
        return self.noise.log_density((labels - self.draws) / self.scale) - math.log(self.scale)

    def sample(self, seed: int | None = 0) -> FloatArray:
        return self.draws + self.scale * self.noise.sample(self.draws.shape, seed)

    def scores(self, labels: np.ndarray) -> dict[str, float]:
        """NLL, RMSE, MAE, Pearson and Spearman correlation, CRPS, and the share of labels in the 90 % interval."""
        lower, upper = self.interval(0.9).T
        return {
            "nll": metrics.mixture_nll(self.log_likelihood(labels)),
            **metrics.regression_scores(self.mean, labels),
            "crps": float(self.crps(labels).mean()),
            "coverage_90": float(((lower <= labels) & (labels <= upper)).mean()),
        }

    def to_pandas(self) -> "pd.DataFrame":
        """A row per example: mean, standard deviation, 90 % interval, and the three uncertainties."""
        import pandas as pd

        lower, upper = self.interval(0.9).T
        columns = {"predicted": self.mean, "sd": np.sqrt(self.variance), "lower_90": lower, "upper_90": upper}
        return pd.DataFrame(columns | _uncertainty(self))


@singledispatch
def make_prediction(
    likelihood: Likelihood, outputs: Outputs, temperature: float = 1.0, class_names: tuple[str, ...] | None = None
) -> BasePrediction:
    """The prediction that a likelihood makes of the network's outputs.

    Args:
        likelihood: Labels given logits.
        outputs: Logits at several draws.
        temperature: Divides the logits of likelihoods that have one.
        class_names: Names of the classes, or None.
    """
    raise NotImplementedError(f"There is no prediction for {type(likelihood).__name__}.")


@make_prediction.register
def _(
    likelihood: Categorical, outputs: Outputs, temperature: float = 1.0, class_names: tuple[str, ...] | None = None
) -> BasePrediction:
    return Prediction(metrics.softmax(outputs.logits, temperature), class_names)


@make_prediction.register
def _(
    likelihood: RealValued, outputs: Outputs, temperature: float = 1.0, class_names: tuple[str, ...] | None = None
) -> BasePrediction:
    return RegressionPrediction(outputs.logits, likelihood.scale, likelihood.df)


def _uncertainty(prediction: BasePrediction) -> dict[str, FloatArray]:
    return {name: getattr(prediction, name) for name in ("entropy", "aleatoric", "epistemic")}


def _sample_classes(probs: FloatArray, seed: int | None) -> np.ndarray:
    """Classes by inversion of the distribution function, the last axis taken out."""
    uniform = np.random.default_rng(seed).random((*probs.shape[:-1], 1))
    return np.minimum((probs.cumsum(-1) < uniform).sum(-1), probs.shape[-1] - 1)


@contextlib.contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Random numbers from a seed, on every device; the caller's random states are as before afterwards.

    With None, the caller's states are used and move on.
    """
    if seed is None:
        yield
        return
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (libraries draw from the global state)
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def draw(program: Program, num_draws: int, seed: int | None) -> dict[str, Tensor]:
    """Draws of every site, `[draw, layer, …]`; a finite posterior's members, each once, instead."""
    if num_draws < 1:
        raise ValueError(f"num_draws={num_draws}: give a whole number of at least 1.")
    finite = program.method.num_draws(program.guide)
    with seeded(seed):
        return {name: value.detach() for name, value in program.draw(finite or num_draws).items()}


def run(program: Program, sites: Sites, batches: Iterable[tuple[np.ndarray, Batch]], num_draws: int) -> Outputs:
    """The network's outputs at draws of the sites.

    Args:
        program: The program; it is left in the mode it was in.
        sites: Draws, `[draw, layer, …]`.
        batches: The data: positions of the examples, and their batch.
        num_draws: Size of the `draw` dimension.
    """
    positions: list[np.ndarray] = []
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    try:
        with evaluating(program), torch.inference_mode():
            factors = program.factors_at(sites)
            for where, batch in batches:
                positions.append(where)
                on_device = to_device(batch, program.device)
                logits.append(_batch_logits(program, factors, on_device, num_draws).cpu())
                if batch.get("labels") is not None:
                    labels.append(torch.as_tensor(batch["labels"]).cpu())
    finally:
        program.network.unbind()
    order = np.argsort(np.concatenate(positions))
    values = torch.cat(logits, dim=1).double().numpy()[:, order]
    return Outputs(values, torch.cat(labels).numpy()[order] if labels else None)


def _batch_logits(program: Program, factors: Mapping[str, Any], batch: Batch, num_draws: int) -> Tensor:
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    positions = max(value[:, :1].numel() if value.is_floating_point() else value.numel() for value in tensors(inputs))
    chunk = max(1, FOLDED_POSITIONS // positions)
    chunks = []
    for start in range(0, num_draws, chunk):
        part = {
            name: type(value)(*(factor[start : start + chunk] for factor in value)) for name, value in factors.items()
        }
        chunks.append(program.network_logits(part, batch))
    return torch.cat(chunks)


def tensors(batch: Batch) -> list[Tensor]:
    """The tensors of a batch that have rows."""
    return [value for value in batch.values() if isinstance(value, Tensor) and value.dim() > 0]


def centre_sites(program: Program) -> dict[str, Tensor]:
    """Every site at its guide's mean, as one draw, `[1, layer, …]`."""
    with torch.no_grad():
        return {name: value.unsqueeze(0) for name, value in program.centre().items()}
