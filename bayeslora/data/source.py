"""Data in any form, as a dataset of rows and as batches."""

import copy
import logging
import time
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, default_collate

from bayeslora.data import checks, collating, labelling, spans
from bayeslora.data.columns import NOTHING, Columns, Reading, said
from bayeslora.data.forms import Arrays, Examples, Part, Stream, numbers_of, order_by_length
from bayeslora.data.reading import Reader
from bayeslora.data.weighing import Weighted
from bayeslora.limits import limits, watch
from bayeslora.tasks import Likelihood, checking
from bayeslora.tasks.classes import Classes
from bayeslora.tasks.labels import RawLabels
from bayeslora.types import IGNORED, WEIGHTS, Batch, Data, Row, Tokenizer

logger = logging.getLogger(__name__)

AHEAD = 64
"""Rows that are read together where they are looked at before they are needed."""


class Source:
    """Data in any of the forms `fit` takes, as a dataset of rows and as batches.

    Args:
        data: A `datasets.Dataset` or pandas `DataFrame`; a torch `Dataset` of mappings or `(inputs, label)` pairs; a
            `DataLoader` of either; a stream, an `IterableDataset` of `datasets` or torch; `(inputs, labels)` or inputs
            alone, as arrays, a mapping of arrays or of lists of texts, or a list of texts.
        model: The network, whose `forward` says which inputs there are.
        tokenizer: For text.
        name: What to call the data in messages.
        num_examples: Examples of a stream; None if their number is not needed.
        likelihood: The likelihood of the labels, or its kind, if it is known.
        reading: How the data are to be read.

    Attributes:
        dataset: The rows, or None if a `DataLoader` was given.
        collate: Makes a batch of rows.

    Raises:
        TypeError: If the data has none of these forms.
        ValueError: If it is empty, contains NaN or infinite inputs, has text and no tokenizer, or has no column that
            the network takes.
    """

    def __init__(
        self,
        data: Data,
        model: nn.Module,
        tokenizer: Tokenizer | None = None,
        name: str = "data",
        num_examples: int | None = None,
        likelihood: Likelihood | type[Likelihood] | None = None,
        reading: Reading | None = None,
    ):
        self.name = name
        self.tokenizer = tokenizer
        self.likelihood = likelihood
        how = Reading() if reading is None else reading
        self.reader = Reader(model, tokenizer, name, how.asked, how.known, how.with_labels)
        self.collator = how.collator
        self.weights: np.ndarray | None = None
        found = self.reader.plain(data)
        data = found.inputs
        self.checks_batches = self.checks_labels = False
        self._given_loader = self._checked(data) if isinstance(data, DataLoader) else None
        if isinstance(data, IterableDataset):  # streams of `datasets` are, too
            self.dataset: Any = Stream(data, self.reader.streamed, num_examples, name)
        else:
            self.dataset = None if self._given_loader is not None else self.reader.dataset(found)
            if len(self) == 0:
                raise ValueError(f"{name} has no examples.")
        kind = type(likelihood) if isinstance(likelihood, Likelihood) else likelihood
        if kind or self.raw is None or not self.raw.are_named or self.reader.decoder_inputs is not None:
            self.label(kind or Likelihood, how.classes)
        elif hasattr(self.dataset, "column_names") and "labels" in self.dataset.column_names:
            self.dataset = self.dataset.remove_columns("labels")
        checks.columns_are_read(how.asked, found, name, how.with_labels)
        self._check()
        if read := said(self.reader.columns):
            logger.log(logging.DEBUG if how.known is NOTHING else logging.INFO, "%s: %s", name, read)

    @property
    def with_labels(self) -> bool:
        """Whether labels are read."""
        return self.reader.with_labels

    @property
    def columns(self) -> Columns:
        """The columns that were read."""
        return self.reader.columns.plain

    @property
    def raw(self) -> RawLabels | None:
        """The labels as the data has them, if they can be told without computing every row."""
        return self.reader.labels

    def all_labels(self) -> RawLabels | None:
        """Return the labels as the data has them; texts are also collected from rows that are computed one by one."""
        rows = None if self.raw is not None or self.is_stream else self.loader or self.dataset
        return self.raw if rows is None else labelling.collected(rows, self.loader is not None, self.name)

    def label(self, kind: type[Likelihood], classes: Classes | None) -> None:
        """Give every example its label as a kind of label, and the fit's classes, know it; a ValueError if none."""
        raw, reader = self.raw, self.reader
        if raw is not None and len(raw):
            self.dataset = labelling.labelled(self.dataset, raw, kind.encode(raw, classes), reader)
        elif self.with_labels:
            raw = RawLabels([], data=self.name) if raw is None else raw
            reader.encode = partial(labelling.encoded_row, raw, kind, classes)

    def about(self, likelihood: Likelihood | type[Likelihood] | None) -> "Source":
        """Return the same data, with the labels that a likelihood asks for."""
        same = copy.copy(self)
        same.__dict__.pop("loader", None)
        same.likelihood = likelihood
        return same

    @property
    def context(self) -> Any:
        """What else the task noted about the data when it read a table."""
        return self.reader.context

    @property
    def inputs_are_labels(self) -> bool:
        """Whether examples without labels are labelled with their tokens."""
        return self.likelihood is not None and self.likelihood.inputs_are_labels

    @cached_property
    def loader(self) -> DataLoader[Any] | None:
        """The user's own loader, if one was given, with batches that are mappings."""
        given = self._given_loader
        if given is None:
            return None
        return DataLoader(
            given.dataset,
            batch_sampler=given.batch_sampler,
            collate_fn=lambda rows: self._checked_batch(self._finished(self.reader.row(given.collate_fn(rows)))),
            num_workers=given.num_workers,
            worker_init_fn=given.worker_init_fn,
            generator=given.generator,
        )

    @property
    def is_stream(self) -> bool:
        """Whether the data is a stream, whose rows come in its own order and cannot be read by number."""
        return isinstance(self.dataset, Stream)

    def __bool__(self) -> bool:
        return True  # whatever the length, which may be unknown for a stream

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.dataset if self._given_loader is None else self._given_loader.dataset)  # type: ignore[arg-type]

    def take(self, indices: Sequence[int]) -> "Source":
        """Return the part of the data with the given rows.

        Raises:
            TypeError: If the data is a `DataLoader` or a stream, whose rows cannot be read by number.
        """
        if isinstance(self.dataset, Weighted):
            return self.weighing(self.weights).take(indices).weighted()
        part = copy.copy(self)
        part.weights = None if self.weights is None else self.weights[list(indices)]
        if self.dataset is None or self.is_stream:
            kind = "stream" if self.is_stream else "DataLoader"
            raise TypeError(f"{self.name} is a {kind}, of which no part can be taken: give a dataset.")
        if isinstance(self.dataset, Arrays):
            part.dataset = Arrays({name: column[indices] for name, column in self.dataset.columns.items()})
        elif isinstance(self.dataset, Examples):
            rows = self.dataset.rows
            chosen = [rows[i] for i in indices] if isinstance(rows, list) else Part(rows, indices)
            part.dataset = Examples(chosen, self.dataset.convert)
        else:
            part.dataset = self.dataset.select(indices)
        return part

    def weighing(self, weights: np.ndarray | None) -> "Source":
        """Return the same data with a weight for each row, which its batches have once it is `weighted`."""
        same = copy.copy(self)
        same.weights, same.dataset = weights, self._rows()
        return same

    def weighted(self) -> "Source":
        """Return the same data, whose batches have the weights of their rows over the mean of all, if there are any."""
        if self.weights is None:
            return self
        same = copy.copy(self)
        same.dataset = Weighted(self.dataset, self.weights / self.weights.mean())
        return same

    def _rows(self) -> Any:
        """Return the rows without weights."""
        return self.dataset.unweighted if isinstance(self.dataset, Weighted) else self.dataset

    @property
    def labels(self) -> np.ndarray | None:
        """All labels, if they are available without computing every row."""
        rows = self.label_rows()
        return None if rows is None else labelling.array(rows)

    def label_rows(self) -> Any:
        """All labels, an entry for each row, if they are available."""
        dataset = self._rows()
        if isinstance(dataset, Arrays):
            column = dataset.columns.get("labels")
            return None if column is None else column.cpu().numpy()
        rows = getattr(dataset, "rows", None)
        if isinstance(rows, list) and any("labels" in row for row in rows):
            return [row.get("labels") for row in rows]
        if dataset is not None and hasattr(dataset, "column_names"):
            return list(dataset["labels"]) if "labels" in dataset.column_names else None
        return None

    def batches(self, batch_size: int) -> Iterator[dict[str, Any]]:
        """Iterate over batches in order."""
        if self.loader is not None:
            return iter(self.loader)
        # Without a generator, a loader takes a seed from torch's global state.
        return iter(DataLoader(self.dataset, int(batch_size), collate_fn=self.collate, generator=torch.Generator()))

    def batches_by_length(self, batch_size: int) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
        """Yield batches of examples of similar length, to save padding, and the examples' positions in the data."""
        order = self.shortest_first()
        if order is None:
            start = 0
            for batch in self.batches(batch_size):
                size = max(len(value) for value in batch.values() if isinstance(value, Tensor) and value.dim())
                yield np.arange(start, start + size), batch
                start += size
            return
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            yield chosen, self.collate([self.dataset[int(index)] for index in chosen])

    def by_length(self) -> "Source":
        """Return the same examples, the shortest first, if their lengths are known."""
        order = self.shortest_first()
        return self if order is None else self.take(order.tolist())

    def shortest_first(self) -> np.ndarray | None:
        """Return the order of the examples in `by_length`; None if it is their own."""
        ids: Any = getattr(self._rows(), "rows", self._rows())
        return None if self.loader is not None or self.tokenizer is None else order_by_length(ids)

    def first_batch(self, batch_size: int = 2) -> dict[str, Any]:
        """Return a batch of the first few examples."""
        batch = next(self.batches(batch_size), None)
        if batch is None:
            raise ValueError(f"{self.name} has no examples.")
        return batch

    def collate(self, rows: Sequence[Any]) -> dict[str, Any]:
        """Make a batch of rows; with a tokenizer, sequences of tokens are padded, and their labels with −100."""
        if WEIGHTS in rows[0]:
            weights = self.reader.tensor(np.array([row.pop(WEIGHTS) for row in rows]))  # rows are made for the batch
            return {**self.collate(rows), WEIGHTS: weights}
        if self.checks_batches:
            checks.check_rows(self.name, rows, getattr(self.likelihood, "labels_tokens", False))
        if any(row.get("labels", 0) is None for row in rows):
            checking.check_present(self.name, [row["labels"] for row in rows], numbers_of(rows))
        if self.collator is not None:
            return self._checked_batch(self._finished(collating.collated(rows, self.collator, self.reader)), rows)
        names = [name for name in rows[0] if name != "labels" and all(name in row for row in rows)]  # others: no inputs
        inputs = [{name: row[name] for name in names} for row in rows]
        # Texts are numbered as soon as it is known of which classes they are.
        numbered = [row for row in rows if not isinstance(row.get("labels", ""), str)]
        labels = collating.tensors("labels", numbered, self.reader)
        if self.tokenizer is not None and "input_ids" in rows[0]:
            batch = collating.padded(inputs, self.tokenizer)
        else:
            batch = {}
            for name in names:
                values = collating.tensors(name, rows, self.reader)
                batch[name] = torch.stack(checks.of_one_shape(self.name, name, values, rows))
        if labels:
            batch["labels"] = collating.stacked_labels(labels, batch, rows, self.reader)
        return self._checked_batch(self._finished(batch), rows)

    def _finished(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Complete a batch with positions, labels and decoder inputs that follow from its other entries."""
        batch = collating.positioned(batch, self.reader)
        if self.inputs_are_labels and "labels" not in batch and "input_ids" in batch:
            labels = batch["input_ids"].clone()
            if "attention_mask" in batch:
                labels[batch["attention_mask"] == 0] = IGNORED
            batch["labels"] = labels
        labels = batch.get("labels")
        if isinstance(labels, Tensor) and not (labels.is_floating_point() or labels.is_complex()):
            batch["labels"] = labels.long()  # what PyTorch picks a class by
        if self.reader.decoder_inputs is not None and "labels" in batch and "decoder_input_ids" not in batch:
            labels = torch.as_tensor(batch["labels"])
            if labels.dim() == 2 and not labels.is_floating_point():
                batch["decoder_input_ids"] = self.reader.decoder_inputs(labels)
        return batch

    def _checked(self, loader: DataLoader[Any]) -> DataLoader[Any]:
        """Return a user's loader, or raise a TypeError if its batches cannot be used."""
        if self.collator is not None:
            raise TypeError(f"data_collator is for rows, and {self.name} is a DataLoader: give it as its collate_fn.")
        if isinstance(loader.dataset, IterableDataset):
            raise TypeError(f"{self.name} is a DataLoader over a stream: give the stream itself.")
        if loader.batch_sampler is None:
            raise TypeError(f"{self.name} is a DataLoader with batch_size=None: give it a batch size.")
        if isinstance(loader.batch_sampler, Iterator):
            raise TypeError(
                f"{self.name} is a DataLoader whose batch_sampler can be read only once, and several passes are "
                "needed: give it a list of lists of row numbers."
            )
        return loader

    def _check(self) -> None:
        """Raise a ValueError if the network cannot read the inputs, as far as they are stored; others as they come."""
        is_stored = checks.check_stored(self.name, self.dataset, self.reader.limits, self.reader.parameters)
        self.checks_batches = not is_stored or self.collator is not None
        batch = self.first_batch()
        watch(self.reader.model, batch)
        if (found := limits(self.reader.model)) != self.reader.limits:
            self.reader.limits = found
            if not checks.check_stored(self.name, self.dataset, found):
                self._checked_batch(batch)

    def check_labels_given(self) -> None:
        """Raise a ValueError if some of the labels that are available are missing."""
        if (rows := self.label_rows()) is not None:
            checking.check_present(self.name, rows)

    def check_labels(self) -> None:
        """Check, once, all labels that are available without computing every row; and all others as they come.

        Raises:
            ValueError: If there are none, if some are missing, or if they do not fit the likelihood.
        """
        if self.checks_labels:
            return
        self.checks_labels = True
        if (rows := self.label_rows()) is not None:
            checks.check_tags(self.name, self.dataset, getattr(self.likelihood, "labels_tokens", False))
            self._check_labels(rows).check_observed(self.name, rows)
            spans.check_stored(self.name, self.dataset, rows, getattr(self.likelihood, "labels_are_places", False))
        elif self.first_batch().get("labels") is None:
            name = "The data" if self.name == "data" else self.name
            raise ValueError(f"{name} has no labels: give (inputs, labels), a column 'labels', or label=….")

    def _check_labels(self, rows: Any, numbers: Sequence[int] | None = None) -> Likelihood:
        """Raise a ValueError unless labels fit the likelihood, and return that."""
        assert isinstance(self.likelihood, Likelihood)
        checking.check_present(self.name, rows, numbers)
        check = self.likelihood.check_labels
        where = self.name if numbers is not None or not self.checks_batches else "a batch"
        checking.check_rows(lambda part: check(labelling.array(part)), rows, numbers, where)
        return self.likelihood

    def look_ahead(self, seconds: float) -> None:
        """Read rows that are not stored, and so check them, for a while, or all of them.

        The state of a loader's generator is kept; other random states are for the caller to keep.
        """
        loader = self._given_loader
        if not self.checks_batches or (loader is not None and loader.num_workers):
            return
        source = self
        if loader is not None and loader.collate_fn is default_collate:  # whose rows have numbers
            source = self.about(self.likelihood)
            source._given_loader, source.dataset = None, Examples(loader.dataset, self.reader.row)
        generator = None if source is not self or loader is None else loader.generator
        state = None if generator is None else generator.get_state()
        end = time.monotonic() + seconds
        for _ in source.batches(AHEAD):
            if time.monotonic() > end:
                break
        if generator is not None and state is not None:
            generator.set_state(state)

    def _checked_batch(self, batch: dict[str, Any], rows: Sequence[Row] = ()) -> dict[str, Any]:
        """Return a batch, or raise a ValueError if it is the first look at its rows, and they cannot be used."""
        if self.checks_batches:
            of = "" if (numbers := numbers_of(rows)) else ", a batch"
            checks.check_batch(self.name, batch, self.reader.limits, numbers, of)
            if self.checks_labels and "labels" in batch:
                self._check_labels(batch["labels"], numbers)
                are_places = getattr(self.likelihood, "labels_are_places", False)
                spans.check_batch(self.name, batch, are_places, numbers, of)
        return batch


def to_device(batch: Batch, device: torch.device) -> dict[str, Any]:
    """Return the batch with its tensors on a device, without the graphs that made them."""
    return {name: value.detach().to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
