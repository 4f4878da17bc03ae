"""Collect the logits of one batch after another into the outputs that a prediction is made from."""

import abc
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bayeslora.metrics import FloatArray
from bayeslora.tasks.checking import rows_said
from bayeslora.types import Batch

if TYPE_CHECKING:
    import pandas as pd

    from bayeslora.tasks.base import Likelihood


@dataclass(frozen=True)
class Rows:
    """The positions of a prediction's rows in the data, if they are tokens.

    Args:
        example: Number of each row's example, `[row]`.
        position: Place of its token in the example, `[row]`.
        num_examples: Examples of the data, including those without rows.
    """

    example: np.ndarray
    position: np.ndarray
    num_examples: int

    def by_example(self, values: FloatArray) -> FloatArray:
        """Sum over each example's rows, `[draw, row]` to `[draw, example]`."""
        return np.stack([np.bincount(self.example, value, self.num_examples) for value in values])

    def take(self, examples: np.ndarray) -> "Rows":
        """Return the rows of some examples, `[example]` of truth values, which are numbered anew."""
        kept = examples[self.example]
        return Rows((np.cumsum(examples) - 1)[self.example[kept]], self.position[kept], int(examples.sum()))

    def beside(self, table: "pd.DataFrame") -> "pd.DataFrame":
        """Put the tokens' examples and positions in front of a table's columns."""
        table.insert(0, "example", self.example)
        table.insert(1, "position", self.position)
        return table


@dataclass(frozen=True)
class Outputs:
    """What a network returned at several draws, and for what.

    Args:
        logits: `[draw, row, …]`; a row is an example, or a token of one.
        labels: `[row, …]`, or None if the data has none.
        rows: Positions of the tokens, if rows are tokens.
        context: What else the task noted about the data when it read a table.
    """

    logits: FloatArray
    labels: np.ndarray | None
    rows: Rows | None = None
    context: Any = None

    def take(self, examples: np.ndarray) -> "Outputs | None":
        """Return the outputs of some examples, `[example]` of truth values; None if rows are windows of them, say."""
        if self.context is not None:
            return None
        kept = examples if self.rows is None else examples[self.rows.example]
        rows = None if self.rows is None else self.rows.take(examples)
        return Outputs(self.logits[:, kept], None if self.labels is None else self.labels[kept], rows)


class Collector(abc.ABC):
    """A collector of the network's logits, which come one batch after another.

    Args:
        likelihood: Labels given logits.
        with_labels: Whether labels are read.
        context: What the task noted about the data when it read a table.

    Attributes:
        weights: Weights of the draws, `[draw]`; None if they are equal.
    """

    weights: np.ndarray | None = None

    def __init__(self, likelihood: "Likelihood", with_labels: bool, context: Any = None):
        self.likelihood = likelihood
        self.with_labels = with_labels
        self.context = context
        self.examples: list[np.ndarray] = []
        self.positions: list[np.ndarray] = []
        self.num_examples = 0
        self.are_tokens = False

    @abc.abstractmethod
    def add(self, where: np.ndarray, batch: Batch, chunks: Iterator[Tensor]) -> None:
        """Take in a batch: positions of its examples in the data, and logits of a few draws at a time."""

    @abc.abstractmethod
    def result(self) -> Any:
        """Return everything in the data's order: `Outputs`, or whatever the likelihood makes its prediction from."""

    def place(self, where: np.ndarray, tokens: Tensor | None = None, shift: int = 0) -> None:
        """Note which examples the next rows belong to, or which of their tokens, `[batch, token]`."""
        self.num_examples += len(where)
        self.are_tokens = tokens is not None
        if tokens is None:
            example, position = np.arange(len(where)), np.zeros(len(where), int)
        else:
            example, position = tokens.cpu().numpy().nonzero()
        self.examples.append(where[example])
        self.positions.append(position + shift)

    def shares(self, first: int, count: int) -> Tensor:
        """Return the weights of some draws up to a common factor, `[draw]`."""
        if self.weights is None:
            return torch.ones(count, dtype=torch.float64)
        return torch.as_tensor(self.weights[first : first + count], dtype=torch.float64)

    @property
    def order(self) -> np.ndarray:
        """The indices that sort the rows by example, then by position."""
        return np.lexsort((np.concatenate(self.positions), np.concatenate(self.examples)))

    @property
    def rows(self) -> Rows:
        """Positions of the rows, in the data's order."""
        order = self.order
        return Rows(np.concatenate(self.examples)[order], np.concatenate(self.positions)[order], self.num_examples)


class Everything(Collector):
    """A collector that keeps all logits."""

    def __init__(self, likelihood: "Likelihood", with_labels: bool, context: Any = None):
        super().__init__(likelihood, with_labels, context)
        self.logits: list[np.ndarray] = []
        self.labels: list[np.ndarray] = []

    def add(self, where: np.ndarray, batch: Batch, chunks: Iterator[Tensor]) -> None:
        logits = torch.cat([chunk.cpu() for chunk in chunks], dim=0)
        labels = batch.get("labels") if self.with_labels else None
        labels = None if labels is None else self.likelihood.targets(torch.as_tensor(labels).cpu())
        tokens = self.likelihood.tokens(batch, logits, labels)
        if tokens is not None:
            logits, labels = logits[:, tokens], None if labels is None else labels[tokens]
        self.place(where, tokens)
        self.logits.append(logits.double().numpy())
        if labels is not None:
            self.labels.append(labels.numpy())

    def result(self) -> Outputs:
        logits, order = np.concatenate(self.likelihood.alike(self.logits), axis=1), self.order
        labels = np.concatenate(self.labels)[order] if self.labels else None
        odd = ~(logits < np.inf).all(axis=(0, *range(2, logits.ndim)))  # of choices that a row lacks, it is −∞
        if odd.any():
            warnings.warn(
                f"The network returns NaN or infinity for {rows_said(np.unique(np.concatenate(self.examples)[odd]))}: "
                "what is predicted of them means nothing. In float16, numbers overflow: load the model in float32 or "
                "bfloat16.",
                stacklevel=2,
            )
        return Outputs(logits[:, order], labels, self.rows if self.are_tokens else None, self.context)
