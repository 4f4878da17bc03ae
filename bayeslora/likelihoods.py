"""Likelihoods: from logits to a distribution over the labels."""

import abc
from typing import Any, ClassVar

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from bayeslora.types import Logits


class Likelihood(abc.ABC):
    """p(label given logits), one independent factor per example.

    Attributes:
        name: Its name in a saved posterior.
    """

    name: ClassVar[str]

    @abc.abstractmethod
    def distribution(self, logits: Tensor) -> dist.Distribution:
        """The distribution of the labels, batch shape `[*draw, batch]`."""

    @abc.abstractmethod
    def check_labels(self, labels: Any) -> None:
        """Raise a ValueError that says what is wrong with the labels, if anything is."""

    @abc.abstractmethod
    def config(self) -> dict[str, Any]:
        """What its constructor needs, for a saved posterior."""

    def observe(self, logits: Tensor, labels: Tensor) -> None:
        """The observation, averaged over the batch: log-likelihood in nats per example."""
        size = len(labels)
        with pyro.plate("examples", size, dim=-1), poutine.scale(scale=1 / size):
            pyro.sample("labels", self.distribution(logits), obs=labels)

    def log_prob(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Log-likelihood per example in nats, `[*draw, batch]`."""
        return self.distribution(logits).log_prob(labels)


class Classification(Likelihood):
    r"""One class per example: $p(y) = \mathrm{softmax}(f)_y$.

    Args:
        num_classes: Number of classes.
    """

    name = "classification"

    def __init__(self, num_classes: int):
        if num_classes < 2:
            raise ValueError(
                f"Classification needs at least two classes, and the network has {num_classes} output(s): load it "
                "with `num_labels` set to the number of classes."
            )
        self.num_classes = num_classes

    def distribution(self, logits: Logits) -> dist.Distribution:
        return dist.Categorical(logits=logits.float() if logits.dtype != torch.float64 else logits)

    def check_labels(self, labels: Any) -> None:
        values = np.asarray(labels)
        if values.dtype.kind in "OSU":
            raise ValueError(
                f"Labels are text, such as {str(values.flat[0])!r}: number them from 0, for a datasets.Dataset with "
                "data.class_encode_column('label')."
            )
        labels = torch.as_tensor(labels)
        if labels.is_floating_point() or labels.is_complex():
            raise ValueError(
                f"Labels are {labels.dtype}; classification needs whole numbers from 0 to {self.num_classes - 1}."
            )
        if labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) < self.num_classes):
            raise ValueError(
                f"Labels range from {int(labels.min())} to {int(labels.max())}, and the network has "
                f"{self.num_classes} classes, 0 to {self.num_classes - 1}: renumber the labels, or load the model with "
                f"num_labels={int(labels.max()) + 1}."
            )

    def config(self) -> dict[str, Any]:
        return {"num_classes": self.num_classes}


LIKELIHOODS: dict[str, type[Likelihood]] = {Classification.name: Classification}
"""Name in a saved posterior to class."""
