"""Turn the data that users have into rows: mappings from the names of a network's inputs to values, with `labels`."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset, TensorDataset

from bayeslora.data.checks import numbers
from bayeslora.data.files import LABELS, tabular
from bayeslora.data.forms import Arrays, Examples
from bayeslora.limits import limits
from bayeslora.networks import decoder_inputs, forward_parameters, takes_any_name
from bayeslora.tasks import LIKELIHOODS
from bayeslora.tasks.checking import REPAIR, check_texts, is_missing
from bayeslora.types import Batch, Data, LabelValues, Row, Tokenizer

if TYPE_CHECKING:
    import datasets


class Reader:
    """A reader of data for a network: the columns that the network takes, texts as tokens, and labels.

    Args:
        model: The network, whose `forward` says which inputs there are.
        tokenizer: For text.
        name: What to call the data in messages.

    Attributes:
        parameters: Names of the network's inputs.
        decoder_inputs: Turns labels into the inputs of a decoder, for a network that also reads its labels, shifted;
            None for any other.
        context: What else the task noted about a published table when it read the rows.
    """

    def __init__(self, model: nn.Module, tokenizer: Tokenizer | None = None, name: str = "data"):
        self.model = model
        self.limits = limits(model)
        self.tokenizer = tokenizer if tokenizer is None else cutting(tokenizer, self.limits.trained)
        self.name = name
        are_labels = {name for columns in label_columns() for name in columns}
        self.parameters = [parameter for parameter in forward_parameters(model) if parameter not in are_labels]
        if not self.parameters and not takes_any_name(model):
            raise TypeError(
                f"{type(model).__name__}.forward names no inputs: give its arguments names, such as forward(self, x), "
                "or let it take a mapping, forward(self, **inputs)."
            )
        self.decoder_inputs = decoder_inputs(model)
        self.context: Any = None
        is_double = any(parameter.dtype == torch.float64 for parameter in model.parameters())
        self.dtype = torch.float64 if is_double else torch.get_default_dtype()

    def dataset(self, data: Data) -> Any:
        """Return the rows of data in any form but a `DataLoader` or a stream."""
        check_form(data, self.name)
        data = tabular(data)
        if hasattr(data, "column_names") and hasattr(data, "map"):
            return self.table(data)
        if isinstance(data, Dataset):
            arrays = self._stored(data)
            if arrays is not None:
                return arrays
            return Examples(data, self.row)
        if isinstance(data, tuple) and len(data) == 2:
            return self.arrays(*data)
        if isinstance(data, (np.ndarray, Tensor, Mapping, list)):
            return self.arrays(data, None)
        raise TypeError(
            f"{self.name} is {_kind(data)}. Give a datasets.Dataset or DatasetDict, a pandas DataFrame, a "
            "torch Dataset or DataLoader, or (inputs, labels) as arrays, a mapping of arrays, or a list of texts with "
            "a tokenizer."
        )

    def _stored(self, data: "Dataset[Any]") -> Arrays | None:
        """Return the rows of a dataset that only puts two tensors side by side, or of a part of one; None of others."""
        if type(data) is Subset and (whole := self._stored(data.dataset)) is not None:
            return Arrays({name: column[list(data.indices)] for name, column in whole.columns.items()})
        if type(data) is not TensorDataset or len(data.tensors) != 2 or not self.parameters:
            return None
        return Arrays(
            {name: self.tensor(v) for name, v in zip((self.parameters[0], "labels"), data.tensors, strict=True)}
        )

    def arrays(self, inputs: Any, labels: LabelValues | None) -> Dataset[dict[str, Any]]:
        """Return the rows of arrays, or of a list of texts."""
        if isinstance(inputs, (list, tuple)) and any(isinstance(text, str) for text in inputs):
            check_texts(self.name, "the text", inputs)
            if labels is not None and len(labels) != len(inputs):  # type: ignore[arg-type]
                raise ValueError(f"{self.name}: there are {len(inputs)} texts, and {len(labels)} labels.")  # type: ignore[arg-type]
            rows = self.tokenize(list(inputs))
            if labels is not None:
                values = self.label_values(labels)
                rows = [{**row, "labels": label} for row, label in zip(rows, values, strict=True)]
            return Examples(rows, dict)
        if not isinstance(inputs, Mapping):
            self._check_named()
        columns = _with_labels(dict(inputs)) if isinstance(inputs, Mapping) else {self.parameters[0]: inputs}
        if labels is not None:
            columns["labels"] = labels
        tensors = {
            name: self.tensor(value if isinstance(value, Tensor) else numbers(self.name, name, value))
            for name, value in columns.items()
        }
        for name, value in tensors.items():
            if not value.dim():
                raise ValueError(f"{self.name}: {name!r} is one number: give an array with an entry for each example.")
        lengths = {name: len(value) for name, value in tensors.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"{self.name}: arrays differ in length, {lengths}.")
        return Arrays(tensors)

    def table(self, table: "datasets.Dataset") -> "datasets.Dataset | Examples":
        """Return the rows of a `datasets.Dataset`: the network's inputs, or what a task or tokenizer makes of them."""
        self._check_named()
        table = self._with_label_column(table)
        if len(table) and not any(name in self.parameters for name in table.column_names):
            for kind in reversed(LIKELIHOODS.values()):
                if kind.reads(table.column_names, self.model):
                    rows, self.context = kind.read(table, self)
                    return Examples(rows, self.inputs)
            table = self._tokenized(table)
        unknown = [name for name in table.column_names if name not in (*self.parameters, "labels")]
        return table.remove_columns(unknown)

    def _with_label_column(self, table: "datasets.Dataset") -> "datasets.Dataset":
        """Return the table with its labels in the column `labels`."""
        for label in LABELS[1:]:
            if label in table.column_names and "labels" not in table.column_names:
                table = table.rename_column(label, "labels")
        for columns in label_columns():
            if {*columns} <= {*table.column_names} and "labels" not in table.column_names:
                table = table.map(_stacked, batched=True, remove_columns=list(columns), fn_kwargs={"columns": columns})
        if self.decoder_inputs is not None and _is_text(table.features.get("labels")):
            # `datasets` hashes a mapped function with everything it holds, so that it must not hold the network.
            encode = partial(_encoded_labels, tokenizer=self.needed_tokenizer())
            table = table.map(encode, batched=True, features=None, remove_columns=["labels"])
        return table

    def _tokenized(self, table: "datasets.Dataset") -> "datasets.Dataset":
        """Return the table with its one or two text columns turned into tokens."""
        texts = [name for name in table.column_names if name != "labels" and _is_text(table.features[name])]
        if not texts:
            raise ValueError(
                f"{self.name} has columns {', '.join(table.column_names)}; the network takes "
                f"{', '.join(self.parameters)}. Rename the columns, or give text columns and a tokenizer."
            )
        if len(texts) > 2:
            raise ValueError(
                f"{self.name} has {len(texts)} text columns, {', '.join(texts)}: keep the one or two to classify, "
                "data.select_columns([…, 'labels'])."
            )
        for name in texts:
            if table.data.column(name).null_count:
                check_texts(self.name, repr(name), table[name])
        encode = partial(_encoded, tokenizer=self.needed_tokenizer(), columns=texts)
        return table.map(encode, batched=True, remove_columns=texts)

    def row(self, row: Any) -> dict[str, Any]:
        """Return a row of a torch `Dataset` as a mapping."""
        if isinstance(row, Mapping):
            row = _with_labels(dict(row))
            for label in LABELS[1:]:
                if label in row and "labels" not in row:
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
        row = self.row(row)
        if isinstance(row.get("labels"), str) and self.decoder_inputs is not None:
            row["labels"] = self.label_values([row["labels"]])[0]
        if not any(name in self.parameters for name in row):
            for name, value in row.items():
                if is_missing(value):
                    raise ValueError(f"{self.name}: {name!r} is missing. {REPAIR}.")
            texts = {name: value for name, value in row.items() if isinstance(value, str) and name != "labels"}
            if not 1 <= len(texts) <= 2:
                raise ValueError(
                    f"{self.name}: a row has {', '.join(row)}; the network takes {', '.join(self.parameters)}. Rename "
                    "the columns, or keep one or two text columns to be tokenised; there are "
                    f"{', '.join(texts) or 'none'}."
                )
            encoded = self.needed_tokenizer()(*([text] for text in texts.values()), truncation=True)
            row |= {name: values[0] for name, values in encoded.items()}
        return self.inputs(row)

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
        value = torch.as_tensor(value)
        return value.to(self.dtype) if value.dtype in (torch.float32, torch.float64) else value

    def tokenize(self, texts: list[str]) -> list[dict[str, Any]]:
        """Return the network's inputs for each text."""
        encoded = self.needed_tokenizer()(texts, truncation=True)
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


def _encoded_labels(rows: Batch, tokenizer: Tokenizer) -> dict[str, Any]:
    return {"labels": tokenizer(text_target=list(rows["labels"]), truncation=True)["input_ids"]}


def _encoded(rows: Batch, tokenizer: Tokenizer, columns: Sequence[str]) -> Any:
    return tokenizer(*(rows[name] for name in columns), truncation=True)


def _is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", "") in ("string", "large_string")


def _kind(data: Any) -> str:
    if data is None:
        return "None"
    if isinstance(data, tuple):
        return f"a tuple of {len(data)}"
    name = type(data).__name__
    return f"an {name}" if name[0].lower() in "aeiou" else f"a {name}"


def cutting(tokenizer: Tokenizer, longest: int | None) -> Tokenizer:
    """Return a tokenizer that cuts texts to what a network reads, if it would let longer ones pass."""
    if longest is None or not tokenizer.model_max_length > longest:
        return tokenizer
    tokenizer = copy.copy(tokenizer)  # with the same words
    tokenizer.model_max_length = longest
    return tokenizer


def check_form(data: Data, name: str) -> None:
    """Raise a TypeError if data, or a part of it, can be read only once."""
    parts = {"": data}
    if isinstance(data, tuple):
        parts |= {f", entry {index},": part for index, part in enumerate(data)}
    elif isinstance(data, Mapping):
        parts |= {f", column {column!r},": part for column, part in data.items()}
    for where, part in parts.items():
        if isinstance(part, Iterator):
            raise TypeError(
                f"{name}{where} is a {type(part).__name__}, which can be read only once, and several passes are "
                "needed: give a list, list(…)."
            )
