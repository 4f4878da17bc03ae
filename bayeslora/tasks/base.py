r"""Likelihoods: from the network's logits to a distribution over the labels.

The unit is always the example. An example's log-likelihood is that of all its labels together, summed over tokens if
there are several, in nats; the training loss is its negated mean over the examples of a batch. The loss of a batch,
`evaluate`'s `nll` and the pointwise terms of `arviz.loo` are therefore the same quantity, a KL enters as KL / n
whatever the task, and every token of the data has the same weight. (`transformers` divides by the number of tokens in
the batch instead.)
"""

import abc
import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from bayeslora.metrics import FloatArray
from bayeslora.tasks.checking import as_tensor
from bayeslora.tasks.classes import Classes
from bayeslora.tasks.collecting import Collector, Everything, Outputs
from bayeslora.tasks.conversations import Answers
from bayeslora.tasks.ends import NOT_LOGITS
from bayeslora.tasks.labels import RawLabels
from bayeslora.tasks.observed import ObservationPrediction
from bayeslora.tasks.prediction import BasePrediction, Names
from bayeslora.types import Batch, LabelColumn, LabelValues, Tokenizer

if TYPE_CHECKING:
    from datasets import Dataset

NUM_SAMPLES = 32
"""Samples per draw for estimating the divergence of a mixture; a divergence of 0.01 is then within about 0.002."""


@runtime_checkable
class Reader(Protocol):
    """What a likelihood is given for reading a table: the network, and how texts become its inputs."""

    name: str
    model: nn.Module
    parameters: list[str]
    with_labels: bool
    answers: Answers
    shots: tuple[str, ...]
    choices: tuple[int, ...]

    def needed_tokenizer(self) -> Tokenizer:
        """Return the tokenizer; raise a ValueError that says what to do if there is none."""

    def tokenize(self, texts: list[str]) -> list[dict[str, Any]]:
        """Return the network's inputs for each text."""


class Likelihood(nn.Module, abc.ABC):
    """p(labels given logits), one independent factor per example, and everything that depends on the kind of label.

    It is a module: its own parameters, such as a noise scale, are trained and saved with the adapters. They take no
    weight decay.

    A kind of label is one file. It has to write `distribution`, `fitting`, `config` and `check_labels`; every other
    method and attribute has a default for one label per example. `bayeslora.register` makes it known by its name.

    Attributes:
        name: Its name in `fit(likelihood=…)` and in a saved posterior.
        auto_class: The class of `transformers` that loads a model for it by name.
        learning_rate: Peak learning rate of its own parameters. A noise scale that starts at the labels' standard
            deviation may have to shrink tenfold, which at the rate of the adapters would take thousands of steps.
        has_temperature: Whether dividing the logits by a temperature sharpens or flattens the distribution.
        up_to_constant: Whether adding a constant to all logits of an example leaves its distribution unchanged.
        inputs_are_labels: Whether examples without labels are labelled with their tokens.
        labels_tokens: Whether every token of `input_ids` has a label.
        labels_are_places: Whether labels are places of tokens in `input_ids`.
        label_columns: Columns of published data that together form its labels, stacked along the last dimension.
        answer_columns: Columns of published tables that `read` takes labels from, besides `labels`; in small letters.
        reads_labels: Whether a prediction is about given labels, so that `predict` reads them, too.
        reads_rows: Whether `read` takes any rows as mappings, one by one, and makes their labels itself.
        one_of: The kind of its labels where every example has exactly one of them; None if there is no such kind.
        needs_code: Whether it holds a function of the user's, which is not saved and has to be passed to `load`.
        takes_shots: Whether `read` puts questions with their answers before every question.
        weighs_classes: Whether labels are classes, one each, that `class_weights` can weigh.
        not_logits: What may be at the end of a network whose outputs are not logits, by its name in `NOT_LOGITS`.
        token_weights: Weights of the classes of tokens in training, `[class]`, where labels are tokens; None for 1.
        unit: How large a difference between logits has to be to matter: 1 for log-odds. It multiplies the learning rate
            of the output layer.
    """

    name: ClassVar[str]
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    learning_rate: ClassVar[float] = 5e-2
    has_temperature: ClassVar[bool] = True
    up_to_constant: ClassVar[bool] = False
    inputs_are_labels: ClassVar[bool] = False
    labels_tokens: ClassVar[bool] = False
    labels_are_places: ClassVar[bool] = False
    label_columns: ClassVar[tuple[str, ...]] = ()
    answer_columns: ClassVar[tuple[str, ...]] = ()
    reads_labels: ClassVar[bool] = False
    reads_rows: ClassVar[bool] = False
    one_of: ClassVar["type[Likelihood] | None"] = None
    needs_code: ClassVar[bool] = False
    takes_shots: ClassVar[bool] = False
    weighs_classes: ClassVar[bool] = False
    not_logits: ClassVar[Collection[str]] = ()
    num_classes: int
    token_weights: Tensor | None = None
    unit: float = 1.0

    # What it is.

    @abc.abstractmethod
    def distribution(self, logits: Tensor) -> dist.Distribution:
        """Return the distribution of each example's labels, batch shape `[*draw, batch]`."""

    @classmethod
    @abc.abstractmethod
    def fitting(cls, logits: Tensor, labels: LabelValues, tokenizer: Tokenizer | None = None) -> "Likelihood":
        """Make the likelihood that suits a network's outputs and the labels of the data.

        Args:
            logits: What the network returns for a few examples.
            labels: Labels of the training data, as many as are available.
            tokenizer: The data's tokenizer, if there is one.
        """

    @abc.abstractmethod
    def config(self) -> dict[str, Any]:
        """Return what its constructor needs, for the record of a saved posterior."""

    @classmethod
    def restored(cls, config: Mapping[str, Any], code: Callable[..., Any] | None = None) -> "Likelihood":
        """Make the likelihood of a saved posterior's record; `code` is the user's function if it `needs_code`."""
        return cls(**config)

    @abc.abstractmethod
    def check_labels(self, labels: LabelValues) -> None:
        """Raise a ValueError that says what is wrong with the labels, if anything is wrong."""

    def check_observed(self, data: str, rows: Any) -> None:
        """Raise a ValueError, or warn, if rows of labels that fit observe nothing; by default, every row does."""

    def baseline(self, labels: LabelValues) -> float | None:
        """Return the NLL of the best prediction that is the same for all examples, in nats per example.

        None if this kind of label has none that can be told from the labels alone.
        """
        return None

    # Labels as people have them.

    @classmethod
    def classes(cls, labels: RawLabels, names: Sequence[str] | None, count: int | None) -> Classes | None:
        """Return the classes that the training labels are of; by default None: labels are taken as they are.

        Args:
            labels: The labels of the training data.
            names: The names that the model has for its outputs, if it has any.
            count: The number of its outputs; None if the model can be given as many as it needs.
        """
        return None

    @classmethod
    def encode(cls, labels: RawLabels, classes: Classes | None) -> Any:
        """Return labels as the network and `check_labels` know them, an entry for each example; by default unchanged.

        Args:
            labels: Labels of any data.
            classes: What `classes` returned for those of the training data.

        Raises:
            ValueError: If a label is missing or of no known class; it names the label and its row.
        """
        return labels.values

    # Where it fits.

    @classmethod
    def suggested_by(cls, columns: Sequence[str], label: Any) -> bool:
        """Return whether data with these columns and this first label suggest it, before there is a model.

        The label is None if the data has none. If no kind says yes, the data are taken for classification. A column
        `text` stands for texts, whatever it is called, that still have to be turned into tokens.
        """
        return False

    @classmethod
    def is_of(cls, model: nn.Module) -> bool:
        """Return whether a model was made for this kind of label, whatever the labels are."""
        return False

    @classmethod
    def fits(cls, model: nn.Module, logits: Tensor, labels: Tensor) -> bool:
        """Return whether it suits a model, given the outputs and labels of a few examples: their shapes and types.

        By default it does not: such a kind has to be asked for by name.
        """
        return False

    def doubt(self, logits: Tensor, end: str | None = None) -> str | None:
        """Return what outputs for a few examples look like, if it is not logits.

        Args:
            logits: The outputs.
            end: What made them: `"sigmoid"`, `"softmax"` or the like; None if it was none of these.
        """
        return NOT_LOGITS[end] if end in self.not_logits else None

    @classmethod
    def model_class(cls, columns: Sequence[str]) -> str:
        """Return the name of the `transformers` class that loads a model for data with these columns."""
        return "AutoModelForImageClassification" if _are_images(cls, columns) else cls.auto_class

    @classmethod
    def model_settings(cls, model: str, names: Sequence[str] | None, labels: LabelColumn | None) -> dict[str, Any]:
        """Return the settings with which a model is loaded by name, such as its number of outputs.

        Args:
            model: Its name, for messages.
            names: Names of the classes, if the data has them.
            labels: All labels, if they are available.
        """
        return {}

    @property
    def num_labels(self) -> int | None:
        """The `num_labels` with which `transformers` loads a model for it; None if it takes none."""
        return None

    # Published tables.

    @classmethod
    def reads(cls, columns: Sequence[str], model: nn.Module) -> bool:
        """Return whether it can turn a table with these columns into inputs of a model."""
        return False

    @classmethod
    def columns_read(cls, columns: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """Return the columns of a table that `read` reads beside the labels, by what the log calls them."""
        return {}

    @classmethod
    def read(cls, table: "Dataset", reader: Reader) -> tuple[list[dict[str, Any]], Any]:
        """Turn the rows of a table into network inputs, with `labels` if they are known.

        Returns:
            The rows, and what else its prediction has to know about the table (`Outputs.context`); with `reads_rows`,
            what the log says of them.
        """
        raise TypeError(f"{cls.__name__}.reads says yes to {reader.name}: write {cls.__name__}.read.")

    def check_read(self, reader: Reader) -> None:
        """Raise a ValueError if a table that was read asks for what it does not know; by default, none does."""

    # In training.

    def select(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the part of the network's logits that the labels are about, `[*draw, batch, …]`; by default, all."""
        return logits

    def targets(self, labels: Tensor) -> Tensor:
        """Move each label to the position of its logits; by default, return the labels unchanged."""
        return labels

    def observe(self, logits: Tensor, labels: Tensor) -> None:
        """Observe the labels in a Pyro program, averaged over the batch: log-likelihood in nats per example."""
        size = len(labels)
        with pyro.plate("examples", size, dim=-1), poutine.scale(scale=1 / size):
            pyro.sample("labels", self.distribution(logits), obs=labels)

    def log_prob(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the log-likelihood of each example in nats, `[*draw, batch]`."""
        return self.distribution(logits).log_prob(labels)

    def residuals(self, logits: Tensor, batch: Batch) -> Tensor | None:
        """Return the labels minus the logits, if logits are predictions of labels in their unit; None otherwise."""
        return None

    def for_metrics(self, logits: Tensor, labels: Tensor) -> tuple[Any, Any]:
        """Return what `compute_metrics` gets of a batch: predictions and labels as the Trainer's users know them.

        By default the logits, of which numbers form a column, and the labels.
        """
        return logits.unsqueeze(-1) if logits.dim() == 1 else logits, labels

    @torch.no_grad()
    def divergence(self, logits: Tensor, others: Tensor) -> float:
        """Estimate the KL divergence of one mixture over draws from another, in nats per example.

        It is how much the NLL of labels drawn from the first grows if they are predicted by the other. Both are logits,
        `[draw, batch, …]`; the estimate is from samples.
        """
        mixture, other = self.distribution(logits), self.distribution(others)
        labels = mixture.sample((NUM_SAMPLES,)).flatten(0, 1).unsqueeze(1)
        log_prob, other_log_prob = (d.log_prob(labels).logsumexp(1) for d in (mixture, other))
        return float((log_prob - other_log_prob).mean())

    # In prediction.

    def collector(self, with_labels: bool, context: Any = None) -> Collector:
        """Make the collector of the network's outputs, which come batch by batch."""
        return Everything(self, with_labels, context)

    def latent(self, prediction: Any) -> tuple[FloatArray, FloatArray]:
        """Return the logits that a prediction of this kind comes from: those of each draw, and those of their average.

        They are `[draw, example, …]` and `[example, …]`, up to a constant where that does not count, and at a
        temperature of 1. A kind whose predictions say what the logits of an example are writes this, and can be
        distilled.
        """
        raise ValueError(
            f"The likelihood {self.name!r} cannot be distilled: its predictions do not say what the logits of one "
            "example are. Predict with the posterior itself."
        )

    def tokens(self, batch: Batch, logits: Tensor, labels: Tensor | None) -> Tensor | None:
        """Return which tokens are rows of the prediction, `[batch, token]`; None if rows are examples."""
        return None

    def alike(self, logits: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Pad batches of logits, `[draw, row, …]`, until they differ in their number of rows only."""
        return logits

    def predict(self, outputs: Outputs, temperature: float = 1.0, class_names: Names = None) -> BasePrediction:
        """Make the prediction from the network's outputs; by default, one that samples from `distribution`.

        Args:
            outputs: Logits at several draws, as the `collector` returned them.
            temperature: Divides the logits, if the likelihood has a temperature.
            class_names: Names of the classes, or None.
        """
        # On the CPU and in double precision, as the logits are; without gradients, which NumPy cannot hold.
        own = copy.deepcopy(self).to("cpu", torch.float64).requires_grad_(False)
        return ObservationPrediction([own.distribution(logits) for logits in torch.as_tensor(outputs.logits)])


def _are_images(cls: type[Likelihood], columns: Sequence[str]) -> bool:
    return "pixel_values" in columns and cls.auto_class == Likelihood.auto_class


def precise(logits: Tensor) -> Tensor:
    """Return logits in single precision, or in double if they are in double."""
    return logits if logits.dtype == torch.float64 else logits.float()


def class_settings(model: str, names: Sequence[str] | None, labels: LabelColumn | None) -> dict[str, Any]:
    """Return the number and names of a model's outputs, one for each class.

    Raises:
        ValueError: If the data does not say how many classes there are.
    """
    if names:
        by_index = dict(enumerate(names))
        return {"num_labels": len(names), "id2label": by_index, "label2id": {n: i for i, n in by_index.items()}}
    if labels is None or len(labels) == 0 or isinstance(labels[0], str):
        raise ValueError(
            f"The data has no labels, and does not say how many classes {model!r} should have: give (texts, labels), "
            "or name the classes of a stream in its features, or pass a model loaded with num_labels=…."
        )
    return {"num_labels": max(max(int(np.max(np.asarray(row))) for row in labels) + 1, 2)}


def check_classes(labels: LabelValues, num_classes: int, task: str, ignored: int | None = None) -> None:
    """Raise a ValueError unless all labels are whole numbers below the number of classes, or the ignored label."""
    values = np.asarray(labels)
    if values.dtype.kind in "OSU":
        raise ValueError(
            f"Labels are text, such as {str(values.flat[0])!r}: number them from 0, for a datasets.Dataset with "
            "data.class_encode_column('label')."
        )
    labels = as_tensor(labels)
    if labels.is_floating_point() or labels.is_complex():
        odd = labels.flatten() if labels.is_complex() else labels[labels != labels.round()]
        raise ValueError(
            f"Labels are {labels.dtype}; {task} needs whole numbers from 0 to {num_classes - 1}, or texts"
            + (f", and one is {odd[0].item():.6g}" if len(odd) else "")
            + ". If they are amounts, set likelihood='regression'."
        )
    if ignored is not None:
        labels = labels[labels != ignored]
    if labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) < num_classes):
        raise ValueError(
            f"Labels range from {int(labels.min())} to {int(labels.max())}, and the network has "
            f"{num_classes} classes, 0 to {num_classes - 1}: "
            + (
                f"renumber the labels, or load the model with num_labels={int(labels.max()) + 1}."
                if int(labels.max()) >= num_classes
                else "renumber the labels, or remove rows whose label is not known."
            )
        )
