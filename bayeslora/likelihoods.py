r"""Likelihoods: from the network's logits to a distribution over the labels.

The unit is the example, everywhere. An example's log-likelihood is that of all its labels together, summed over tokens
where there are several, in nats; the training loss is its mean over the examples of a batch, negated. So the loss of a
batch, `evaluate`'s `nll` and the pointwise terms of `arviz.loo` are the same quantity, a KL enters as KL / n whatever
the task, and every token of the data weighs the same. (`transformers` divides by the tokens of the batch instead.)
"""

import abc
import math
from typing import Any, ClassVar

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from bayeslora.types import Batch, Logits, RealLogits


class Likelihood(nn.Module, abc.ABC):
    """p(labels given logits), one independent factor per example.

    It is a module: parameters of its own, such as a noise scale, are trained with the adapters and saved with them.
    Named `log_*`, as in a guide, they take no weight decay.

    Attributes:
        name: What `fit(likelihood=…)` calls it, and a saved posterior.
        learning_rate: Peak learning rate of its own parameters. A noise scale that starts at the labels' standard
            deviation may have to shrink tenfold, which at the rate of the adapters would take thousands of steps.
        has_temperature: Whether dividing its logits by a temperature sharpens or flattens its distribution.
    """

    name: ClassVar[str]
    learning_rate: ClassVar[float] = 5e-2
    has_temperature: ClassVar[bool] = True

    @classmethod
    @abc.abstractmethod
    def fitting(cls, logits: Tensor, labels: Any) -> "Likelihood":
        """One for a network with such outputs and data with such labels.

        Args:
            logits: What the network returns for a few examples.
            labels: Labels of the training data, as many as are at hand.
        """

    @abc.abstractmethod
    def distribution(self, logits: Tensor) -> dist.Distribution:
        """The distribution of an example's labels, batch shape `[*draw, batch]`."""

    @abc.abstractmethod
    def check_labels(self, labels: Any) -> None:
        """Raise a ValueError that says what is wrong with the labels, if anything is."""

    @abc.abstractmethod
    def config(self) -> dict[str, Any]:
        """What its constructor needs, for a saved posterior."""

    @property
    def num_labels(self) -> int | None:
        """The `num_labels` with which `transformers` loads a model for it; None where it takes none."""
        return None

    def select(self, logits: Tensor, batch: Batch) -> Tensor:
        """The part of the network's logits that the labels are about, `[*draw, batch, …]`; by default, all of it."""
        return logits

    def observe(self, logits: Tensor, labels: Tensor) -> None:
        """The observation, averaged over the batch: log-likelihood in nats per example."""
        size = len(labels)
        with pyro.plate("examples", size, dim=-1), poutine.scale(scale=1 / size):
            pyro.sample("labels", self.distribution(logits), obs=labels)

    def log_prob(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Log-likelihood per example in nats, `[*draw, batch]`."""
        return self.distribution(logits).log_prob(labels)


class Categorical(Likelihood):
    r"""One of several classes per example: $p(y) = \mathrm{softmax}(f)_y$."""

    num_classes: int

    @property
    def num_labels(self) -> int | None:
        return self.num_classes

    def distribution(self, logits: Logits) -> dist.Distribution:
        return dist.Categorical(logits=_precise(logits))

    def check_labels(self, labels: Any) -> None:
        _check_classes(labels, self.num_classes, "classification")


class Classification(Categorical):
    r"""One class per example: $p(y) = \mathrm{softmax}(f)_y$.

    Args:
        num_classes: Number of classes.
    """

    name = "classification"

    def __init__(self, num_classes: int):
        super().__init__()
        if num_classes < 2:
            raise ValueError(
                f"Classification needs at least two classes, and the network has {num_classes} output(s): load it "
                "with `num_labels` set to the number of classes; or, for real numbers, set likelihood='regression'."
            )
        self.num_classes = num_classes

    @classmethod
    def fitting(cls, logits: Tensor, labels: Any) -> "Classification":
        return cls(logits.shape[-1])

    def config(self) -> dict[str, Any]:
        return {"num_classes": self.num_classes}


class RealValued(Likelihood):
    r"""One real number per example, the network's one logit plus noise: $y = f + \sigma \epsilon$.

    Attributes:
        log_scale: ln σ, σ in units of the labels.
        df: Degrees of freedom of the noise's Student t distribution; infinite for Normal noise.
    """

    has_temperature = False
    df: float = math.inf

    def __init__(self, scale: float = 1.0, learned: bool = True):
        super().__init__()
        if not 0 < scale < math.inf:
            raise ValueError(f"scale={scale!r}: give a positive number, the noise's scale in units of the labels.")
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)), requires_grad=learned)

    @classmethod
    def fitting(cls, logits: Tensor, labels: Any) -> "RealValued":
        spread = float(np.std(np.asarray(labels, dtype=np.float64)))
        return cls(spread if 0 < spread < math.inf else 1.0)

    @property
    def num_labels(self) -> int | None:
        return 1

    @property
    def scale(self) -> float:
        """σ, in units of the labels."""
        return math.exp(self.log_scale.item())

    def select(self, logits: Tensor, batch: Batch) -> RealLogits:
        if logits.shape[-1] != 1:
            raise ValueError(
                f"Regression needs one output per example, [batch, 1], and the network returns {tuple(logits.shape)}: "
                "load it with num_labels=1, or let its forward end with .unsqueeze(-1)."
            )
        return _precise(logits.squeeze(-1))

    def log_prob(self, logits: RealLogits, labels: Tensor) -> Tensor:
        return super().log_prob(logits, labels.to(logits.dtype))

    def observe(self, logits: RealLogits, labels: Tensor) -> None:
        super().observe(logits, labels.to(logits.dtype))

    def check_labels(self, labels: Any) -> None:
        values = np.asarray(labels)
        if values.dtype.kind not in "fiub" or values.ndim != 1:
            raise ValueError(
                f"Labels are {values.dtype} of shape {values.shape}; regression needs one number per example."
            )
        if not np.isfinite(values.astype(np.float64)).all():
            row = int(np.flatnonzero(~np.isfinite(values.astype(np.float64)))[0])
            raise ValueError(f"Labels are NaN or infinite, the first in row {row}: remove those rows, or fill them.")

    def config(self) -> dict[str, Any]:
        return {"scale": self.scale, "learned": self.log_scale.requires_grad}


class Regression(RealValued):
    r"""A real number with Normal noise: $y \sim N(f, \sigma^2)$.

    Args:
        scale: σ, in units of the labels: its start, or its value if it is not learned.
        learned: Whether σ is learned, one for all examples.
    """

    name = "regression"

    def distribution(self, logits: RealLogits) -> dist.Distribution:
        return dist.Normal(logits, self.log_scale.exp())


class StudentT(RealValued):
    r"""A real number with Student t noise, for labels with outliers: $(y - f) / \sigma \sim t_\nu$.

    Args:
        scale: σ, in units of the labels: its start, or its value if it is not learned.
        df: ν, degrees of freedom, above 2 (a finite variance).
        learned: Whether σ is learned, one for all examples. ν is not.
    """

    name = "student_t"

    def __init__(self, scale: float = 1.0, df: float = 4.0, learned: bool = True):
        super().__init__(scale, learned)
        if not 2 < df < math.inf:
            raise ValueError(f"df={df!r}: give a number above 2.")
        self.df = df

    def distribution(self, logits: RealLogits) -> dist.Distribution:
        return dist.StudentT(self.df, logits, self.log_scale.exp())

    def config(self) -> dict[str, Any]:
        return {**super().config(), "df": self.df}


LIKELIHOODS: dict[str, type[Likelihood]] = {cls.name: cls for cls in (Classification, Regression, StudentT)}
"""Name to class: what `fit(likelihood=…)` takes."""


def _precise(logits: Tensor) -> Tensor:
    """Logits in single precision at least."""
    return logits if logits.dtype == torch.float64 else logits.float()


def _check_classes(labels: Any, num_classes: int, task: str, ignored: int | None = None) -> None:
    """Raise a ValueError unless labels are whole numbers below the number of classes, or the ignored one."""
    values = np.asarray(labels)
    if values.dtype.kind in "OSU":
        raise ValueError(
            f"Labels are text, such as {str(values.flat[0])!r}: number them from 0, for a datasets.Dataset with "
            "data.class_encode_column('label')."
        )
    labels = torch.as_tensor(labels)
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"Labels are {labels.dtype}; {task} needs whole numbers from 0 to {num_classes - 1}.")
    if ignored is not None:
        labels = labels[labels != ignored]
    if labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) < num_classes):
        raise ValueError(
            f"Labels range from {int(labels.min())} to {int(labels.max())}, and the network has "
            f"{num_classes} classes, 0 to {num_classes - 1}: renumber the labels, or load the model with "
            f"num_labels={int(labels.max()) + 1}."
        )
