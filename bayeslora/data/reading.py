"""Turn the data that users have into rows: mappings from the names of a network's inputs to values, with `labels`."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from bayeslora.data.files import LABELS, tabular
from bayeslora.data.forms import Arrays, Examples
from bayeslora.networks import decoder_inputs, forward_parameters, takes_any_name
from bayeslora.tasks import LIKELIHOODS
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
        self.tokenizer = tokenizer
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
        data = tabular(data)
        if hasattr(data, "column_names") and hasattr(data, "map"):
            return self.table(data)
        if isinstance(data, Dataset):
            return Examples(data, self.row)
        if isinstance(data, tuple) and len(data) == 2:
            return self.arrays(*data)
        if isinstance(data, (np.ndarray, Tensor, Mapping, list)):
            return self.arrays(data, None)
        raise TypeError(
            f"{self.name} is a {type(data).__name__}. Give a datasets.Dataset or DatasetDict, a pandas DataFrame, a "
            "torch Dataset or DataLoader, or (inputs, labels) as arrays, a mapping of arrays, or a list of texts with "
            "a tokenizer."
        )

    def arrays(self, inputs: Any, labels: LabelValues | None) -> Dataset[dict[str, Any]]:
        """Return the rows of arrays, or of a list of texts."""
        if isinstance(inputs, (list, tuple)) and inputs and isinstance(inputs[0], str):
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
            name: self.tensor(np.asarray(value) if isinstance(value, list) else value)
            for name, value in columns.items()
        }
        lengths = {name: len(value) for name, value in tensors.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"{self.name}: arrays differ in length, {lengths}.")
        for name, value in tensors.items():
            check_finite(self.name, name, value)
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
        table = table.remove_columns(unknown)
        for name in table.column_names:
            if name != "labels" and _is_float(table.features[name]):
                finite = [bool(np.isfinite(np.asarray(value, dtype=float)).all()) for value in table[name]]
                _raise_unless(self.name, name, np.asarray(finite))
        return table

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
            texts = {name: value for name, value in row.items() if isinstance(value, str) and name != "labels"}
            if not 1 <= len(texts) <= 2:
                raise ValueError(
                    f"{self.name}: a row has {', '.join(row)}; the network takes {', '.join(self.parameters)}. Rename "
                    "the columns, or keep one or two text columns to be tokenised."
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


def _is_float(feature: Any) -> bool:
    """Return whether a column of a `datasets.Dataset` holds floating-point numbers, or lists of them."""
    while hasattr(feature, "feature"):
        feature = feature.feature
    return str(getattr(feature, "dtype", "")).startswith("float")


def check_finite(data: str, name: str, value: Tensor) -> None:
    """Raise a ValueError if numbers are NaN or infinite."""
    if value.is_floating_point() and value.dim() and value.numel():
        _raise_unless(data, name, value.isfinite().reshape(len(value), -1).all(1).cpu().numpy())


def _raise_unless(data: str, name: str, finite: np.ndarray) -> None:
    """Raise a ValueError that names the first row which is not finite."""
    if not finite.all():
        rows = np.flatnonzero(~finite)
        raise ValueError(
            f"{data}: {name!r} is NaN or infinite in {len(rows)} row(s), the first is row {rows[0]}. Remove such "
            "rows, or fill them in."
        )
