r"""Likelihoods: from the network's logits to a distribution over the labels.

The unit is the example, everywhere. An example's log-likelihood is that of all its labels together, summed over tokens
where there are several, in nats; the training loss is its mean over the examples of a batch, negated. So the loss of a
batch, `evaluate`'s `nll` and the pointwise terms of `arviz.loo` are the same quantity, a KL enters as KL / n whatever
the task, and every token of the data weighs the same. (`transformers` divides by the tokens of the batch instead.)
"""

import abc
import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from bayeslora.tasks.collecting import Collector, Everything, Outputs
from bayeslora.tasks.prediction import BasePrediction, Names, ObservationPrediction
from bayeslora.types import Batch, LabelColumn, LabelValues, Tokenizer

if TYPE_CHECKING:
    from datasets import Dataset

NUM_SAMPLES = 32
"""Samples for each draw of a mixture, to estimate a divergence: for one of 0.01, to within about 0.002."""


@runtime_checkable
class Reader(Protocol):
    """What a likelihood is given to read a table with: the network, and how texts become its inputs."""

    name: str
    model: nn.Module
    parameters: list[str]

    def needed_tokenizer(self) -> Tokenizer:
        """The tokenizer; a ValueError that says what to do where there is none."""

    def tokenize(self, texts: list[str]) -> list[dict[str, Any]]:
        """Inputs of the network for each text."""


class Likelihood(nn.Module, abc.ABC):
    """p(labels given logits), one independent factor per example, and all that follows from the kind of label.

    It is a module: parameters of its own, such as a noise scale, are trained with the adapters and saved with them.
    Named `log_*`, they take no weight decay.

    A kind of label is one file: `distribution`, `fitting`, `config` and `check_labels` are needed; every other method
    and attribute has a default for one label per example. `bayeslora.register` makes it known by its name.

    Attributes:
        name: What `fit(likelihood=…)` calls it, and a saved posterior.
        auto_class: What `transformers` calls the models that a name is loaded as.
        learning_rate: Peak learning rate of its own parameters. A noise scale that starts at the labels' standard
            deviation may have to shrink tenfold, which at the rate of the adapters would take thousands of steps.
        has_temperature: Whether dividing its logits by a temperature sharpens or flattens its distribution.
        up_to_constant: Whether adding a constant to all logits of an example leaves its distribution as it is.
        inputs_are_labels: Whether examples without labels are labelled with their tokens.
        label_columns: Columns of published data that together are its labels, stacked last.
        needs_code: Whether it holds a function of the user's, which is not saved and has to be given to `load`.
        unit: The size of differences between logits that matter, by which the output layer's learning rate is
            multiplied; that of log-odds is 1.
    """

    name: ClassVar[str]
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    learning_rate: ClassVar[float] = 5e-2
    has_temperature: ClassVar[bool] = True
    up_to_constant: ClassVar[bool] = False
    inputs_are_labels: ClassVar[bool] = False
    label_columns: ClassVar[tuple[str, ...]] = ()
    needs_code: ClassVar[bool] = False
    unit: float = 1.0

    # What it is.

    @abc.abstractmethod
    def distribution(self, logits: Tensor) -> dist.Distribution:
        """The distribution of an example's labels, batch shape `[*draw, batch]`."""

    @classmethod
    @abc.abstractmethod
    def fitting(cls, logits: Tensor, labels: LabelValues, tokenizer: Tokenizer | None = None) -> "Likelihood":
        """Make one for a network with such outputs and data with such labels.

        Args:
            logits: What the network returns for a few examples.
            labels: Labels of the training data, as many as are at hand.
            tokenizer: The data's tokenizer, if there is one.
        """

    @abc.abstractmethod
    def config(self) -> dict[str, Any]:
        """What its constructor needs, for a saved posterior."""

    @classmethod
    def restored(cls, config: Mapping[str, Any], code: Callable[..., Any] | None = None) -> "Likelihood":
        """Make one from a saved posterior's record; `code` is the user's function, for one that `needs_code`."""
        return cls(**config)

    @abc.abstractmethod
    def check_labels(self, labels: LabelValues) -> None:
        """Raise a ValueError that says what is wrong with the labels, if anything is."""

    # Where it fits.

    @classmethod
    def suggested_by(cls, columns: Sequence[str], label: Any) -> bool:
        """Whether data with such columns and such a first label, None if there is none, asks for it, before any model
        is at hand. Classification is what is left when no kind says yes.
        """
        return False

    @classmethod
    def is_of(cls, model: nn.Module) -> bool:
        """Whether it is the kind that a model was made for, whatever the labels."""
        return False

    @classmethod
    def fits(cls, model: nn.Module, logits: Tensor, labels: Tensor) -> bool:
        """Whether it is the kind for a model, and outputs and labels of a few examples of such shapes and types.

        Kinds that say no, as by default, have to be asked for by name.
        """
        return False

    @classmethod
    def model_class(cls, columns: Sequence[str]) -> str:
        """The class of `transformers` that a name is loaded as, for data with such columns."""
        return "AutoModelForImageClassification" if _are_images(cls, columns) else cls.auto_class

    @classmethod
    def model_settings(cls, model: str, names: Sequence[str] | None, labels: LabelColumn | None) -> dict[str, Any]:
        """Settings with which a model is loaded by name, such as its number of outputs.

        Args:
            model: Its name, for messages.
            names: Names of the classes, where the data has them.
            labels: All labels, where they are at hand.
        """
        return {}

    @property
    def num_labels(self) -> int | None:
        """The `num_labels` with which `transformers` loads a model for it; None where it takes none."""
        return None

    # Published tables.

    @classmethod
    def reads(cls, columns: Sequence[str], model: nn.Module) -> bool:
        """Whether it makes inputs of such a model from tables with such columns."""
        return False

    @classmethod
    def read(cls, table: "Dataset", reader: Reader) -> tuple[list[dict[str, Any]], Any]:
        """Make a table's rows into network inputs, with `labels` where they are known.

        Returns:
            The rows, and what its prediction has to know of the table beside them (`Outputs.context`).
        """
        raise TypeError(f"{cls.__name__}.reads says yes to {reader.name}: write {cls.__name__}.read.")

    # In training.

    def select(self, logits: Tensor, batch: Batch) -> Tensor:
        """The part of the network's logits that the labels are about, `[*draw, batch, …]`; by default, all of it."""
        return logits

    def targets(self, labels: Tensor) -> Tensor:
        """The labels at the places of the logits that are about them; by default, as they are."""
        return labels

    def observe(self, logits: Tensor, labels: Tensor) -> None:
        """Make the observation, averaged over the batch: log-likelihood in nats per example."""
        size = len(labels)
        with pyro.plate("examples", size, dim=-1), poutine.scale(scale=1 / size):
            pyro.sample("labels", self.distribution(logits), obs=labels)

    def log_prob(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Log-likelihood per example in nats, `[*draw, batch]`."""
        return self.distribution(logits).log_prob(labels)

    def residuals(self, logits: Tensor, batch: Batch) -> Tensor | None:
        """Labels minus logits, where the one is a place for the other; None where it is not."""
        return None

    @torch.no_grad()
    def divergence(self, logits: Tensor, others: Tensor) -> float:
        """KL divergence of a mixture over draws from another, `[draw, batch, …]`, in nats per example.

        It is what predicting the other one adds to the NLL of labels that come from the first. Estimated from samples.
        """
        mixture, other = self.distribution(logits), self.distribution(others)
        labels = mixture.sample((NUM_SAMPLES,)).flatten(0, 1).unsqueeze(1)
        log_prob, other_log_prob = (d.log_prob(labels).logsumexp(1) for d in (mixture, other))
        return float((log_prob - other_log_prob).mean())

    # In prediction.

    def collector(self, with_labels: bool, context: Any = None) -> Collector:
        """What takes in the network's outputs, batch by batch."""
        return Everything(self, with_labels, context)

    def tokens(self, batch: Batch, logits: Tensor, labels: Tensor | None) -> Tensor | None:
        """Which tokens are rows of the prediction, `[batch, token]`; None where rows are examples."""
        return None

    def alike(self, logits: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Batches of logits, `[draw, row, …]`, made equal in shape but for their rows."""
        return logits

    def predict(self, outputs: Outputs, temperature: float = 1.0, class_names: Names = None) -> BasePrediction:
        """Make the prediction from the network's outputs; by default, one that samples from `distribution`.

        Args:
            outputs: Logits at several draws, as the `collector` returned them.
            temperature: Divides the logits, of a likelihood that has one.
            class_names: Names of the classes, or None.
        """
        # On the processor and in double precision, as the logits are; without gradients, which NumPy does not know.
        own = copy.deepcopy(self).to("cpu", torch.float64).requires_grad_(False)
        return ObservationPrediction([own.distribution(logits) for logits in torch.as_tensor(outputs.logits)])


def _are_images(cls: type[Likelihood], columns: Sequence[str]) -> bool:
    return "pixel_values" in columns and cls.auto_class == Likelihood.auto_class


def precise(logits: Tensor) -> Tensor:
    """Logits in single precision at least."""
    return logits if logits.dtype == torch.float64 else logits.float()


def class_settings(model: str, names: Sequence[str] | None, labels: LabelColumn | None) -> dict[str, Any]:
    """Number and names of the outputs of a model with one for each class.

    Raises:
        ValueError: If the data does not say how many classes there are.
    """
    if names:
        by_index = dict(enumerate(names))
        return {"num_labels": len(names), "id2label": by_index, "label2id": {n: i for i, n in by_index.items()}}
    if labels is None or len(labels) == 0 or isinstance(labels[0], str):
        raise ValueError(
            f"The number of classes for {model!r} cannot be told from the data: name the classes in its features "
            "(data.class_encode_column('label')), or pass a model loaded with num_labels=…."
        )
    return {"num_labels": max(max(int(np.max(row)) for row in labels) + 1, 2)}


def check_classes(labels: LabelValues, num_classes: int, task: str, ignored: int | None = None) -> None:
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
