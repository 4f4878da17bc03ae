"""Turn the data that users have into rows: mappings from the names of a network's inputs to values, with `labels`."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset, TensorDataset

from bayeslora.data import checks
from bayeslora.data.columns import LABELS, NOT_INPUTS, NOTHING, Columns, Found, also_read, check_no_lists, is_text
from bayeslora.data.forms import Arrays, Examples
from bayeslora.data.plain import Plain, plain
from bayeslora.data.stored import numbers
from bayeslora.data.tokenizing import cutting, encoded, encoded_labels
from bayeslora.limits import limits
from bayeslora.networks import continues, decoder_inputs, forward_parameters, takes_any_name
from bayeslora.tasks import LIKELIHOODS, Likelihood
from bayeslora.tasks.checking import REPAIR, as_tensor, check_texts, is_missing
from bayeslora.tasks.choices import plain_name
from bayeslora.tasks.conversations import Answers, check_read, columns_in
from bayeslora.tasks.labels import RawLabels
from bayeslora.tasks.words import WORDS
from bayeslora.types import Batch, Data, LabelValues, Row, Tokenizer

if TYPE_CHECKING:
    import datasets


class Reader:
    """A reader of data for a network: the columns that the network takes, texts as tokens, and labels.

    Args:
        model: The network, whose `forward` says which inputs there are.
        tokenizer: For text.
        name: What to call the data in messages.
        asked: The columns that the user names.
        known: The columns of the fit.
        with_labels: Whether labels are read.

    Attributes:
        parameters: Names of the network's inputs.
        decoder_inputs: Turns labels into the inputs of a decoder, for a network that also reads its labels, shifted;
            None for any other.
        needs_positions: Whether the network, unless it is given positions, counts padding on the left.
        context: What else the task noted about a published table when it read the rows.
        columns: The columns that were read.
        labels: The labels as the data has them, if they can be told without computing every row.
        encode: Turns the label of a row that is computed when it is needed into the network's; None to leave it.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer | None = None,
        name: str = "data",
        asked: Columns = NOTHING,
        known: Columns = NOTHING,
        with_labels: bool = True,
    ):
        self.model = model
        self.limits = limits(model)
        self.tokenizer = tokenizer if tokenizer is None else cutting(tokenizer, self.limits.trained)
        self.name = name
        self.asked = asked
        self.known = known
        self.with_labels = with_labels
        self.answers: Answers = asked.answers or known.answers or "all"
        self.shots = asked.shots or known.shots
        are_labels = {name for columns in label_columns() for name in columns}
        self.parameters = [parameter for parameter in forward_parameters(model) if parameter not in are_labels]
        if not self.parameters and not takes_any_name(model):
            raise TypeError(
                f"{type(model).__name__}.forward names no inputs: give its arguments names, such as forward(self, x), "
                "or let it take a mapping, forward(self, **inputs)."
            )
        self.decoder_inputs = decoder_inputs(model)
        self.needs_positions = continues(model) and "position_ids" in self.parameters
        self.context: Any = None
        self.columns = Found()
        self.choices: tuple[int, ...] = ()  # how many each question has, where letters stand for them
        self.labels: RawLabels | None = None
        self.encode: Callable[[Any], Any] | None = None
        self.dtype = torch.float64 if any(p.dtype == torch.float64 for p in model.parameters()) else torch.float32

    def plain(self, data: Data) -> Plain:
        """Return data in one of a few forms, and note its columns and labels."""
        found = plain(data, self.asked, self.known, self.name, self.with_labels)
        self.columns = found.columns
        self.labels = found.labels if self.with_labels else None
        return found

    def dataset(self, found: Plain) -> Any:
        """Return the rows of data in any form but a `DataLoader` or a stream, without labels where `labels` has them.

        The labels of a table stay in its column `labels`.
        """
        data = found.inputs
        if hasattr(data, "column_names") and hasattr(data, "map"):
            return self.table(data)
        if isinstance(data, Dataset) and (arrays := self._stored(data)) is not None:
            return arrays
        if isinstance(data, list) and data and isinstance(data[0], Mapping):
            kind = self._kind_reading(data[0])
            return Examples(data, self.row) if kind is None else Examples(self._read_rows(kind, data), self.inputs)
        if isinstance(data, Dataset):
            return Examples(data, self.row)
        if found.are_texts:
            for texts in [*zip(*data, strict=True)] if isinstance(data[0], tuple) else (data,):
                check_texts(self.name, "the text", texts)
            return Examples(self.tokenize(data), dict)
        if isinstance(data, (np.ndarray, Tensor, Mapping, list)):
            return self.arrays(data)
        raise TypeError(
            f"{self.name} is {_kind(data)}. Give a datasets.Dataset or DatasetDict, a pandas DataFrame, a torch Dataset"
            " or DataLoader, or (inputs, labels) as arrays, a mapping of arrays, or a list of texts with a tokenizer."
        )

    def _stored(self, data: Any) -> Arrays | None:
        """Return the rows of a dataset that only puts two tensors side by side, or of a part of one; None of others."""
        if type(data) is Subset and (whole := self._stored(data.dataset)) is not None:
            if self.labels is not None:
                self.labels = RawLabels(self.labels.values[list(data.indices)], data=self.name)
            return Arrays({name: column[list(data.indices)] for name, column in whole.columns.items()})
        if type(data) is not TensorDataset or len(data.tensors) != 2 or not self.parameters:
            return None
        if self.with_labels:
            self.labels = RawLabels(data.tensors[1], data=self.name)
        return Arrays({self.parameters[0]: self.tensor(data.tensors[0])})

    def arrays(self, inputs: Any) -> Dataset[dict[str, Any]]:
        """Return the rows of arrays."""
        if not isinstance(inputs, Mapping):
            self._check_named()
        columns = _with_labels(dict(inputs)) if isinstance(inputs, Mapping) else {self.parameters[0]: inputs}
        if "input_ids" in self.parameters and not {*columns} & {*self.parameters}:
            raise self._unread([*columns])
        if not self.with_labels:
            columns.pop("labels", None)
        tensors = {name: self.numbers(name, value, isinstance(inputs, Mapping)) for name, value in columns.items()}
        lengths = {name: len(value) for name, value in tensors.items()}
        lengths |= {} if self.labels is None else {"labels": len(self.labels)}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"{self.name}: arrays differ in length, {lengths}.")
        return Arrays(tensors)

    def numbers(self, name: str, value: Any, is_named: bool = False) -> Tensor:
        """Return a column of numbers as a tensor; raise a ValueError if it is not one.

        Args:
            name: The network's input.
            value: The column.
            is_named: Whether the data calls it so, too.
        """
        if isinstance(value, list | tuple) and value and checks.is_image(value[0]):
            raise checks.unprocessed(self.name, name, "images")
        tensor = self.tensor(value if isinstance(value, Tensor) else numbers(self.name, name, value))
        if not tensor.dim():
            raise ValueError(f"{self.name}: {name!r} is one number: give an array with an entry for each example.")
        if name == "input_ids" and tensor.numel() and (tensor.is_floating_point() or tensor.dim() < 2):
            if is_named or not self.columns.features:
                raise ValueError(
                    f"{self.name}: {name!r} has shape {tuple(tensor.shape)} and is of "
                    f"{str(tensor.dtype).removeprefix('torch.')}: give the numbers of tokens, whole ones, [example, "
                    "token], or texts."
                )
            raise self._unread(self.columns.features)
        return tensor

    def table(self, table: "datasets.Dataset") -> "datasets.Dataset | Examples":
        """Return the rows of a `datasets.Dataset`: the network's inputs, or what a task or tokenizer makes of them."""
        self._check_named()
        table = self._with_label_column(table)
        if len(table) and not any(name in self.parameters for name in table.column_names):
            kind = self._kind_reading(table.column_names)
            if kind is not None:
                read = self._read_rows if kind.reads_rows else self._read_by
                return Examples(read(kind, table), self.inputs)
            table = self._tokenized(table)
        unknown = [name for name in table.column_names if name not in (*self.parameters, "labels")]
        return table.remove_columns(unknown)

    def _kind_reading(self, columns: Collection[str]) -> type[Likelihood] | None:
        """Return the kind of label that turns rows with these columns into the network's inputs, if there is one.

        Raises:
            ValueError: If they are conversations, and the network does not write.
        """
        if self.asked.text or any(name in self.parameters for name in columns):
            return None
        labelled = self.asked.label or (self.columns.label or "").casefold() in LABELS
        for kind in reversed(LIKELIHOODS.values()):
            if kind.reads(list(columns), self.model) and not (kind.reads_rows and labelled):
                return kind
        check_read(columns, self.name, type(self.model).__name__, bool(labelled))
        return None

    def _read_rows(self, kind: type[Likelihood], rows: Any) -> list[dict[str, Any]]:
        """Return the rows that a kind of label makes of a table, with labels of its own, which are noted apart."""
        columns = columns_in(rows.column_names if hasattr(rows, "column_names") else rows[0])
        names = rows.column_names if hasattr(rows, "column_names") else {**rows[0]}
        read, self.context = kind.read(rows, self)
        ignored = tuple(name for name in names if name not in (*columns, self.columns.id))
        self.columns = Found(id=self.columns.id, answers=self.answers, ignored=ignored, told=self.context)
        self.labels = RawLabels([row.pop("labels") for row in read], data=self.name)
        return read

    def _read_by(self, kind: type[Likelihood], table: "datasets.Dataset") -> list[dict[str, Any]]:
        """Return the rows that a kind of label makes of a published table; their labels are noted apart."""
        given, name = self.labels, "labels"
        if not self.with_labels:
            answers = [name for name in table.column_names if plain_name(name) in kind.answer_columns]
            table = table.remove_columns(answers)
        elif given is not None and "labels" not in table.column_names:
            values = given.plain
            table = table.add_column("labels", values if isinstance(values, list) else values.tolist())
        rows, self.context = kind.read(table, self)
        found = replace(self.columns, shots=self.shots if kind.takes_shots else ())
        self.columns = also_read(found, kind.columns_read(table.column_names))
        self.labels = None
        if self.with_labels and rows and "labels" in rows[0]:
            name, names = (name, None) if given is None else (given.name, given.names)
            self.labels = RawLabels([row.pop("labels") for row in rows], name, names, self.name)
        return rows

    def _with_label_column(self, table: "datasets.Dataset") -> "datasets.Dataset":
        """Return the table with its labels in the column `labels`, or without them."""
        for columns in label_columns():
            if {*columns} <= {*table.column_names} and "labels" not in table.column_names:
                table = table.map(_stacked, batched=True, remove_columns=list(columns), fn_kwargs={"columns": columns})
        if not self.with_labels:
            return table.remove_columns("labels") if "labels" in table.column_names else table
        if self.decoder_inputs is not None and is_text(table.features.get("labels")):
            # `datasets` hashes a mapped function with everything it holds, so that it must not hold the network.
            encode = partial(encoded_labels, tokenizer=self.needed_tokenizer())
            table = table.map(encode, batched=True, features=None, remove_columns=["labels"])
            self.labels = None
        return table

    def _tokenized(self, table: "datasets.Dataset") -> "datasets.Dataset":
        """Return the table with its one or two text columns turned into tokens."""
        texts = list(self.columns.text)
        if not texts:
            checks.check_processed(self.name, table.features)
            check_no_lists(table, self.name)
            raise self._unread(table.column_names)
        if len(texts) > 2:
            raise ValueError(
                f"{self.name} has {len(texts)} text columns, {', '.join(texts)}: name the one or two to read, "
                f"text={texts[0]!r}, or text={texts[:2]}."
            )
        for name in texts:
            if table.data.column(name).null_count:
                check_texts(self.name, repr(name), table[name])
        encode = partial(encoded, tokenizer=self.needed_tokenizer(), columns=texts)
        return table.map(encode, batched=True, remove_columns=texts)

    def _unread(self, columns: Sequence[Any]) -> ValueError:
        """The error about columns of which the network reads none."""
        first = next((str(each) for each in columns if each != "labels"), "…")
        return ValueError(
            f"{self.name} has columns {', '.join(map(str, columns))}; the network takes {', '.join(self.parameters)}. "
            f"Rename the columns, or give text columns; numbers are texts if the column is named so, text={first!r}."
        )

    def row(self, row: Any) -> dict[str, Any]:
        """Return a row of a torch `Dataset`, a stream, or a batch of a loader, as a mapping."""
        checks.check_asked(self.asked, row, self.name, self.with_labels)
        if isinstance(row, Mapping) and (kind := self._kind_reading(row)) is not None and kind.reads_rows:
            (row,), told = kind.read([row], self)
            self.columns = replace(self.columns, answers=self.answers, told=told)
        row = self.named(row)
        if not self.with_labels:
            row.pop("labels", None)
        elif self.encode is not None and "labels" in row:
            row["labels"] = self.encode(row["labels"])
        return row

    def named(self, row: Any) -> dict[str, Any]:
        """Return a row, or a batch, as a mapping from the names of the network's inputs, with `labels`."""
        if isinstance(row, Mapping):
            row = _with_labels(dict(row))
            row.pop(self.asked.id or self.known.id, None)
            asked = self.asked.label or self.known.label
            for label in (*((asked,) if asked else ()), *LABELS[1:]):
                if label in row and ("labels" not in row or label == self.asked.label):
                    row["labels"] = row.pop(label)
            return row
        self._check_named()
        if isinstance(row, (tuple, list)) and len(row) == 2:
            return {self.parameters[0]: row[0], "labels": row[1]}
        if isinstance(row, Tensor):
            return {self.parameters[0]: row}
        raise TypeError(
            f"{self.name}: a row is a {type(row).__name__}; give mappings from the network's inputs "
            f"({', '.join(self.parameters)}) and 'labels', or (inputs, label) pairs."
        )

    def streamed(self, row: Any) -> dict[str, Any]:
        """Return a row of a stream as the network's inputs; its texts are tokenised if it has none of them."""
        if isinstance((row := self.row(row)).get("labels"), str) and self.decoder_inputs is not None:
            row["labels"] = self.label_values([row["labels"]])[0]
        if not any(name in self.parameters for name in row):
            for name, value in row.items():
                if is_missing(value) and (name != "labels" or self.with_labels):
                    raise ValueError(f"{self.name}: {name!r} is missing. {REPAIR}.")
            texts = self._texts_of(row)
            if not 1 <= len(texts) <= 2:
                advice = f"keep one or two text columns to be tokenised; there are {', '.join(texts) or 'none'}"
                if {*WORDS} & {*row}:
                    advice = "give words and tags as a table, Dataset.from_list(list(stream), stream.features)"
                takes = f"a row has {', '.join(row)}; the network takes {', '.join(self.parameters)}"
                raise ValueError(f"{self.name}: {takes}. Rename the columns, or {advice}.")
            self.columns = replace(self.columns, text=tuple(texts))
            encoded = self.needed_tokenizer()(*([text] for text in texts.values()), truncation=True)
            row |= {name: values[0] for name, values in encoded.items()}
        return self.inputs(row)

    def _texts_of(self, row: Row) -> dict[str, str]:
        """Return the texts of a row of a stream by their columns, in the order in which the network reads them."""
        named = self.asked.text or self.known.text or self.columns.text
        if named and {*named} <= {*row}:
            return {name: row[name] for name in named}
        return {
            name: value
            for name, value in row.items()
            if isinstance(value, str) and name != "labels" and not NOT_INPUTS.fullmatch(name)
        }

    def inputs(self, row: Row) -> dict[str, Any]:
        """Return a row's labels and those of its entries that the network takes."""
        return {name: value for name, value in row.items() if name in (*self.parameters, "labels")}

    def label_values(self, labels: LabelValues) -> list[Any]:
        """Return labels as a list; for an encoder-decoder, texts become tokens."""
        values = list(labels) if isinstance(labels, (list, tuple)) else np.asarray(labels).tolist()
        if self.decoder_inputs is not None and values and isinstance(values[0], str):
            return self.needed_tokenizer()(text_target=values, truncation=True)["input_ids"]
        return values

    def tensor(self, value: Any) -> Tensor:
        """Return a tensor, in double precision only if the network is: numbers of NumPy and Python would always be."""
        if self.dtype == torch.float64 and isinstance(value, float | list | tuple):  # which PyTorch would round
            value = np.asarray(value)
        value = as_tensor(value).detach().cpu()  # of another network, with its graph and device; loaders pin the CPU's
        return value.to(self.dtype) if value.dtype in (torch.float32, torch.float64) else value

    def tokenize(self, texts: list[Any]) -> list[dict[str, Any]]:
        """Return the network's inputs for each text, or for each pair of texts."""
        parts = [texts] if isinstance(texts[0], str) else [list(part) for part in zip(*texts, strict=True)]
        encoded = self.needed_tokenizer()(*parts, truncation=True)
        return [{name: encoded[name][i] for name in encoded if name in self.parameters} for i in range(len(texts))]

    def _check_named(self) -> None:
        """Raise a ValueError if the network's `forward` does not say what its inputs are called."""
        if not self.parameters:
            raise ValueError(
                f"{self.name}: {type(self.model).__name__}.forward takes inputs of any name: give (inputs, labels) "
                "with a mapping from names to arrays as inputs, or name the arguments of forward."
            )

    def needed_tokenizer(self) -> Tokenizer:
        """Return the tokenizer.

        Raises:
            ValueError: If there is none.
        """
        if self.tokenizer is None:
            raise ValueError(
                f"{self.name} is text, and there is no tokenizer: pass tokenizer=AutoTokenizer.from_pretrained(…), or "
                "name the model by its path so that its tokenizer can be found."
            )
        return self.tokenizer


def label_columns() -> list[tuple[str, ...]]:
    """Return the groups of columns that together form the labels of some kind."""
    return [kind.label_columns for kind in LIKELIHOODS.values() if kind.label_columns]


def _with_labels(row: dict[str, Any]) -> dict[str, Any]:
    """Add to a row, or to columns, the label that several columns form together."""
    for columns in label_columns():
        if {*columns} <= {*row} and "labels" not in row:
            row["labels"] = torch.stack([torch.as_tensor(row.pop(name)) for name in columns], dim=-1)
    return row


def _stacked(rows: Batch, columns: Sequence[str]) -> dict[str, Any]:
    return {"labels": [list(values) for values in zip(*(rows[name] for name in columns), strict=True)]}


def _kind(data: Any) -> str:
    if data is None or isinstance(data, tuple):
        return "None" if data is None else f"a tuple of {len(data)}"
    name = type(data).__name__
    return f"an {name}" if name[0].lower() in "aeiou" else f"a {name}"
