"""From what users have to batches: mappings from the names of the network's inputs to tensors."""

import copy
import inspect
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, get_worker_info

from bayeslora import tables
from bayeslora.types import IGNORED

logger = logging.getLogger(__name__)

LABELS = ("labels", "label", "label_ids")
SPAN = ("start_positions", "end_positions")


class Examples(Dataset[dict[str, Any]]):
    """Rows of a map-style dataset as mappings of network inputs, with `labels` if there are any."""

    def __init__(self, rows: Any, convert: Callable[[Any], dict[str, Any]]):
        self.rows = rows
        self.convert = convert

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.convert(self.rows[index])


class Arrays(Dataset[dict[str, Any]]):
    """Arrays of equal length as a dataset of their rows."""

    def __init__(self, columns: Mapping[str, Tensor]):
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: column[index] for name, column in self.columns.items()}


class Stream(IterableDataset[dict[str, Any]]):
    """Rows of a stream, in its own order, as mappings of network inputs, with `labels` if there are any.

    Args:
        rows: Anything that can be gone over again; what it does in `set_epoch` is its own affair.
        convert: Row to mapping.
        num_examples: Rows of a pass, after which it ends; None for all.

    Raises:
        ValueError: If that is no row.
    """

    def __init__(self, rows: Any, convert: Callable[[Any], dict[str, Any]], num_examples: int | None = None):
        if num_examples is not None and num_examples < 1:
            raise ValueError(f"num_examples={num_examples}: give a whole number of at least 1.")
        self.stream = rows
        self.convert = convert
        self.num_examples = num_examples

    def __len__(self) -> int:
        if self.num_examples is None:
            raise TypeError("The length of a stream is not known.")
        return self.num_examples

    def __iter__(self) -> Iterator[dict[str, Any]]:
        count = 0
        for row in itertools.islice(self.stream, self.num_examples):
            count += 1
            yield self.convert(row)
        # Workers of a loader have a part each.
        if self.num_examples is not None and count < self.num_examples and get_worker_info() is None:
            logger.warning("The stream ended after %d of %d examples.", count, self.num_examples)

    def set_epoch(self, epoch: int) -> None:
        """Tell the stream which pass is next: one of `datasets` that is shuffled has another order in each."""
        if hasattr(self.stream, "set_epoch"):
            self.stream.set_epoch(epoch)


class OwnOrders(Dataset[tuple[dict[str, Any], ...]]):
    """Rows of a dataset for several readers, each of which has an order of its own.

    However the items are shuffled, every reader gets every row once, and the first reader gets the rows in the items'
    own order. The other readers' orders are drawn from torch's random state.

    Args:
        rows: The dataset.
        readers: How many there are.
    """

    def __init__(self, rows: Any, readers: int):
        self.rows = rows
        self.orders = [list(range(len(rows))), *(torch.randperm(len(rows)).tolist() for _ in range(readers - 1))]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[dict[str, Any], ...]:
        return tuple(self.rows[order[index]] for order in self.orders)


class Source:
    """Data in any of the forms `fit` takes, as a dataset of rows and as batches.

    Args:
        data: A `datasets.Dataset` or pandas `DataFrame`; a torch `Dataset` of mappings or `(inputs, label)` pairs; a
            `DataLoader` of either; a stream, an `IterableDataset` of `datasets` or torch; `(inputs, labels)` or inputs
            alone, as arrays, a mapping of arrays or of lists of texts, or a list of texts.
        model: The network, whose `forward` says which inputs there are.
        tokenizer: For text.
        name: What to call the data in messages.
        num_examples: Examples of a stream; None where nobody needs to know.

    Attributes:
        dataset: The rows, or None where a `DataLoader` was given.
        collate: Rows to a batch.
        inputs_are_labels: Whether examples without labels are labelled with their tokens (causal language models).
        questions: What the rows are windows of, if the data are questions about contexts.

    Raises:
        TypeError: If the data has none of these forms.
        ValueError: If it is empty, contains NaN or infinite inputs, has text and no tokenizer, or has no column that
            the network takes.
    """

    def __init__(
        self,
        data: Any,
        model: nn.Module,
        tokenizer: Any = None,
        name: str = "data",
        num_examples: int | None = None,
    ):
        self.name = name
        self.tokenizer = tokenizer
        self.inputs_are_labels = False
        self.questions: tables.Questions | None = None
        self.model = model
        # An encoder-decoder reads its labels, shifted, beside its inputs.
        self.decoder_inputs: Any = None
        if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
            self.decoder_inputs = getattr(model, "prepare_decoder_input_ids_from_labels", None)
        self.parameters = forward_parameters(model)
        is_double = any(parameter.dtype == torch.float64 for parameter in model.parameters())
        self.dtype = torch.float64 if is_double else torch.get_default_dtype()
        self.loader = self._with_rows(data) if isinstance(data, DataLoader) else None
        if isinstance(data, IterableDataset):  # that of `datasets` is one, too
            self.dataset: Any = Stream(data, self._streamed, num_examples)
        else:
            self.dataset = None if self.loader else self._dataset(data)
            if len(self) == 0:
                raise ValueError(f"{name} has no examples.")
        self._check_first()

    @property
    def is_stream(self) -> bool:
        """Whether rows come in an order of their own, and cannot be had by number."""
        return isinstance(self.dataset, Stream)

    def __bool__(self) -> bool:
        return True  # whatever the length, which of a stream may not be known

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.loader.dataset if self.loader else self.dataset)  # type: ignore[arg-type]

    def take(self, indices: Sequence[int]) -> "Source":
        """The same data, these rows of it alone.

        Raises:
            TypeError: If the data is a `DataLoader` or a stream, whose rows are not at hand.
        """
        part = copy.copy(self)
        if self.dataset is None or self.is_stream:
            kind = "stream" if self.is_stream else "DataLoader"
            raise TypeError(f"{self.name} is a {kind}, of which no part can be taken: give a dataset.")
        if isinstance(self.dataset, Arrays):
            part.dataset = Arrays({name: column[indices] for name, column in self.dataset.columns.items()})
        elif isinstance(self.dataset, Examples):
            rows = self.dataset.rows
            chosen = [rows[i] for i in indices] if isinstance(rows, list) else Subset(rows, indices)
            part.dataset = Examples(chosen, self.dataset.convert)
        else:
            part.dataset = self.dataset.select(indices)
        return part

    @property
    def labels(self) -> np.ndarray | None:
        """All labels, where they can be had without computing every row."""
        if isinstance(self.dataset, Arrays):
            column = self.dataset.columns.get("labels")
            return None if column is None else column.cpu().numpy()
        rows = getattr(self.dataset, "rows", None)
        if isinstance(rows, list) and "labels" in rows[0]:
            return _array([row["labels"] for row in rows])
        if self.dataset is not None and hasattr(self.dataset, "column_names"):
            return _array(list(self.dataset["labels"])) if "labels" in self.dataset.column_names else None
        return None

    def batches(self, batch_size: int) -> Iterator[dict[str, Any]]:
        """Batches in order."""
        if self.loader is not None:
            return iter(self.loader)
        # A generator of its own: a loader otherwise takes a seed from torch's global state.
        return iter(DataLoader(self.dataset, batch_size, collate_fn=self.collate, generator=torch.Generator()))

    def batches_by_length(self, batch_size: int) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
        """Batches of examples of similar length, least padding, each with its examples' positions in the data."""
        order = self._order_by_length()
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
        """The same examples, the shortest first, where their lengths are known."""
        order = self._order_by_length()
        return self if order is None else self.take(order.tolist())

    def _order_by_length(self) -> np.ndarray | None:
        ids: Any = getattr(self.dataset, "rows", self.dataset)
        if self.loader is not None or self.tokenizer is None or not _has_tokens(ids):
            return None
        return np.argsort([_length(row["input_ids"]) for row in ids], kind="stable")

    def first_batch(self, batch_size: int = 2) -> dict[str, Any]:
        """The first few examples."""
        batch = next(self.batches(batch_size), None)
        if batch is None:
            raise ValueError(f"{self.name} has no examples.")
        return batch

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Rows to a batch; sequences of tokens are padded when there is a tokenizer, and their labels with −100."""
        inputs = [{name: value for name, value in row.items() if name != "labels"} for row in rows]
        labels = [self._tensor(row["labels"]) for row in rows if "labels" in row]
        if self.tokenizer is not None and "input_ids" in rows[0]:
            batch = self._padded(inputs)
        else:
            batch = {}
            for name in inputs[0]:
                values = [self._tensor(row[name]) for row in inputs]
                if len({value.shape for value in values}) > 1:
                    raise ValueError(
                        f"{self.name}: rows of {name!r} have different lengths, and padding them needs the tokenizer: "
                        "pass tokenizer=…."
                    )
                batch[name] = torch.stack(values)
        if labels:
            batch["labels"] = self._stacked_labels(labels, batch)
        return self._finished(batch)

    def _padded(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Sequences of tokens, or several to an example, padded by the tokenizer."""
        from transformers import DataCollatorWithPadding

        pad = DataCollatorWithPadding(self.tokenizer)
        if np.ndim(rows[0]["input_ids"][0]) == 0:
            return dict(pad(rows))
        # One sequence for each choice.
        flat = [dict(zip(row, values, strict=True)) for row in rows for values in zip(*row.values(), strict=True)]
        return {name: value.view(len(rows), -1, value.shape[-1]) for name, value in pad(flat).items()}

    def _stacked_labels(self, labels: list[Tensor], batch: Mapping[str, Any]) -> Tensor:
        """Labels of all rows; those of tokens, padded as the tokens are."""
        tokens = batch.get("input_ids")
        padded = tokens is not None and tokens.dim() == 2 and self.tokenizer is not None
        if labels[0].dim() != 1 or labels[0].is_floating_point() or not (padded or len({*map(len, labels)}) > 1):
            return torch.stack(labels)
        length = max(map(len, labels))
        mask = batch.get("attention_mask")
        same = mask is not None and self.decoder_inputs is None and mask.sum(1).tolist() == [*map(len, labels)]
        left = same and self.tokenizer.padding_side == "left"
        length = tokens.shape[1] if same and tokens is not None else length
        missing = [length - len(row) for row in labels]
        return torch.stack(
            [
                torch.nn.functional.pad(row, (count, 0) if left else (0, count), value=IGNORED)
                for row, count in zip(labels, missing, strict=True)
            ]
        )

    def _finished(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with what follows from the rest of it."""
        if self.inputs_are_labels and "labels" not in batch and "input_ids" in batch:
            labels = batch["input_ids"].clone()
            if "attention_mask" in batch:
                labels[batch["attention_mask"] == 0] = IGNORED
            batch["labels"] = labels
        if self.decoder_inputs is not None and "labels" in batch and "decoder_input_ids" not in batch:
            labels = torch.as_tensor(batch["labels"])
            if labels.dim() == 2 and not labels.is_floating_point():
                batch["decoder_input_ids"] = self.decoder_inputs(labels=labels)
        return batch

    def _with_rows(self, loader: DataLoader[Any]) -> DataLoader[Any]:
        """A user's loader, its batches made into mappings."""
        if isinstance(loader.dataset, IterableDataset):
            raise TypeError(f"{self.name} is a DataLoader over a stream: give the stream itself.")
        if loader.batch_sampler is None:
            raise TypeError(f"{self.name} is a DataLoader with batch_size=None: give it a batch size.")
        return DataLoader(
            loader.dataset,
            batch_sampler=loader.batch_sampler,
            collate_fn=lambda rows: self._finished(self._row(loader.collate_fn(rows))),
            num_workers=loader.num_workers,
            worker_init_fn=loader.worker_init_fn,
            generator=loader.generator,
        )

    def _dataset(self, data: Any) -> Any:
        data = tabular(data)
        if hasattr(data, "column_names") and hasattr(data, "map"):
            return self._from_table(data)
        if isinstance(data, Dataset):
            return Examples(data, self._row)
        if isinstance(data, tuple) and len(data) == 2:
            return self._from_arrays(*data)
        if isinstance(data, (np.ndarray, Tensor, Mapping, list)):
            return self._from_arrays(data, None)
        raise TypeError(
            f"{self.name} is a {type(data).__name__}. Give a datasets.Dataset or DatasetDict, a pandas DataFrame, a "
            "torch Dataset or DataLoader, or (inputs, labels) as arrays, a mapping of arrays, or a list of texts with "
            "a tokenizer."
        )

    def _from_arrays(self, inputs: Any, labels: Any) -> Dataset[dict[str, Any]]:
        if isinstance(inputs, (list, tuple)) and inputs and isinstance(inputs[0], str):
            rows = self._tokenize(list(inputs))
            if labels is not None:
                values = self._label_values(labels)
                rows = [{**row, "labels": label} for row, label in zip(rows, values, strict=True)]
            return Examples(rows, dict)
        columns = _with_span(dict(inputs)) if isinstance(inputs, Mapping) else {self.parameters[0]: inputs}
        if labels is not None:
            columns["labels"] = labels
        tensors = {
            name: self._tensor(np.asarray(value) if isinstance(value, list) else value)
            for name, value in columns.items()
        }
        lengths = {name: len(value) for name, value in tensors.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"{self.name}: arrays differ in length, {lengths}.")
        for name, value in tensors.items():
            _check_finite(self.name, name, value)
        return Arrays(tensors)

    def _from_table(self, table: Any) -> Any:
        for label in LABELS[1:]:
            if label in table.column_names and "labels" not in table.column_names:
                table = table.rename_column(label, "labels")
        if all(name in table.column_names for name in SPAN) and "labels" not in table.column_names:
            table = table.map(
                lambda rows: {"labels": [list(ends) for ends in zip(*(rows[name] for name in SPAN), strict=True)]},
                batched=True,
                remove_columns=list(SPAN),
            )
        if self.decoder_inputs is not None and _is_text(table.features.get("labels")):
            table = table.map(
                lambda rows: {"labels": self._label_values(list(rows["labels"]))},
                batched=True,
                features=None,
                remove_columns=["labels"],
            )
        if len(table) and not any(name in self.parameters for name in table.column_names):
            if tables.is_questions(table.column_names) and is_a(self.model, "QUESTION_ANSWERING"):
                rows, self.questions = tables.read_questions(table, self._needed_tokenizer(), self.name)
                return Examples(rows, self._inputs)
            if tables.is_choices(table.column_names):
                return Examples(self._choices(table), self._inputs)
        texts = [name for name in table.column_names if name != "labels" and _is_text(table.features[name])]
        if len(table) and not any(name in self.parameters for name in table.column_names):
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
            table = table.map(
                lambda rows: self._encode(*(rows[name] for name in texts)), batched=True, remove_columns=texts
            )
        unknown = [name for name in table.column_names if name not in (*self.parameters, "labels")]
        table = table.remove_columns(unknown)
        for name in table.column_names:
            if name != "labels" and _is_float(table.features[name]):
                finite = [bool(np.isfinite(np.asarray(value, dtype=float)).all()) for value in table[name]]
                _raise_unless(self.name, name, np.asarray(finite))
        return table

    def _choices(self, table: Any) -> list[dict[str, Any]]:
        """Questions with choices: a sequence for each choice, or for a causal language model one prompt with letters.

        Raises:
            ValueError: If the network is neither.
        """
        prompts, choices, labels = tables.read_choices(table, self.name)
        if is_a(self.model, "CAUSAL_LM"):
            rows = self._tokenize([*map(tables.prompt_with_letters, prompts, choices)])
        elif is_a(self.model, "MULTIPLE_CHOICE"):
            rows = tables.encode_choices(prompts, choices, self._needed_tokenizer())
        else:
            raise ValueError(
                f"{self.name} has choices, and {type(self.model).__name__} scores none: load the model as multiple "
                "choice (fit(name, …, likelihood='multiple_choice')) or as a causal language model "
                "(likelihood='answer_letters'), or leave its columns of choices out."
            )
        return rows if labels is None else [{**row, "labels": n} for row, n in zip(rows, labels, strict=True)]

    def _inputs(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row's labels, and of the rest what the network takes."""
        return {name: value for name, value in row.items() if name in (*self.parameters, "labels")}

    def _label_values(self, labels: Any) -> list[Any]:
        """Labels as a list; texts, for an encoder-decoder, as tokens."""
        values = list(labels) if isinstance(labels, (list, tuple)) else np.asarray(labels).tolist()
        if self.decoder_inputs is not None and values and isinstance(values[0], str):
            return self._encode(text_target=values)["input_ids"]
        return values

    def _tensor(self, value: Any) -> Tensor:
        """A tensor, in double precision only for a network that is: NumPy's and Python's numbers are, by themselves."""
        value = torch.as_tensor(value)
        return value.to(self.dtype) if value.dtype in (torch.float32, torch.float64) else value

    def _tokenize(self, texts: list[str]) -> list[dict[str, Any]]:
        encoded = self._encode(texts)
        return [{name: encoded[name][i] for name in encoded if name in self.parameters} for i in range(len(texts))]

    def _encode(self, *texts: list[str], text_target: list[str] | None = None) -> Mapping[str, Any]:
        tokenizer = self._needed_tokenizer()
        if text_target is not None:
            return tokenizer(text_target=text_target, truncation=True)
        return tokenizer(*texts, truncation=True)

    def _needed_tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise ValueError(
                f"{self.name} is text, and there is no tokenizer: pass tokenizer=AutoTokenizer.from_pretrained(…), or "
                "name the model by its path so that its tokenizer can be found."
            )
        return self.tokenizer

    def _row(self, row: Any) -> dict[str, Any]:
        if isinstance(row, Mapping):
            row = _with_span(dict(row))
            for label in LABELS[1:]:
                if label in row and "labels" not in row:
                    row["labels"] = row.pop(label)
            return row
        if isinstance(row, (tuple, list)) and len(row) == 2:
            return {self.parameters[0]: row[0], "labels": row[1]}
        if isinstance(row, Tensor):
            return {self.parameters[0]: row}
        raise TypeError(
            f"{self.name}: a row is a {type(row).__name__}; give mappings from the network's inputs "
            f"({', '.join(self.parameters)}) and 'labels', or (inputs, label) pairs."
        )

    def _streamed(self, row: Any) -> dict[str, Any]:
        """A row of a stream, its texts tokenised, of its other columns those that the network takes."""
        row = self._row(row)
        if isinstance(row.get("labels"), str) and self.decoder_inputs is not None:
            row["labels"] = self._label_values([row["labels"]])[0]
        if not any(name in self.parameters for name in row):
            texts = {name: value for name, value in row.items() if isinstance(value, str) and name != "labels"}
            if not 1 <= len(texts) <= 2:
                raise ValueError(
                    f"{self.name}: a row has {', '.join(row)}; the network takes {', '.join(self.parameters)}. Rename "
                    "the columns, or keep one or two of text to be tokenised."
                )
            encoded = self._encode(*([text] for text in texts.values()))
            row |= {name: values[0] for name, values in encoded.items()}
        return self._inputs(row)

    def _check_first(self) -> None:
        for name, value in self.first_batch().items():
            if isinstance(value, Tensor) and name != "labels":
                _check_finite(self.name, name, value)


def split(data: Any, name: str) -> Any:
    """That split of a `datasets.DatasetDict`, None where it has no such split; any other data as it is for `train`."""
    if isinstance(data, Mapping) and all(hasattr(value, "column_names") for value in data.values()):
        if name == "train" and name not in data:
            raise ValueError(f"The data has no 'train' split, only {', '.join(data)}.")
        return data.get(name)
    return tabular(data) if name == "train" else None


def tabular(data: Any) -> Any:
    """A pandas table, or texts by name, as a `datasets.Dataset`; a table of numbers as arrays; other data as it is."""
    if isinstance(data, Mapping):
        columns = [value for value in data.values() if isinstance(value, list)]
        if len(columns) < len(data) or not all(value and isinstance(value[0], str) for value in columns):
            return data
    elif not (hasattr(data, "columns") and hasattr(data, "to_numpy")):
        return data
    import datasets

    if isinstance(data, Mapping):
        return datasets.Dataset.from_dict(data)
    label = next((name for name in LABELS if name in data.columns), None)
    inputs = data if label is None else data.drop(columns=label)
    if all(dtype.kind in "fiub" for dtype in inputs.dtypes):
        values = inputs.to_numpy(np.float32, copy=True)
        return values if label is None else (values, data[label].to_numpy(copy=True))
    return datasets.Dataset.from_pandas(data, preserve_index=False)


def is_a(model: nn.Module, task: str) -> bool:
    """Whether `transformers` lists a model's class for a task, such as `"CAUSAL_LM"`."""
    if not hasattr(model, "config"):
        return False
    from transformers.models.auto import modeling_auto

    listed = getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES")
    return type(model).__name__ in listed.values()


def read(name: str) -> Any:
    """A `datasets.DatasetDict` from a CSV, JSON or Parquet file, a folder of them, or a hub name.

    Raises:
        ValueError: If a file has another ending.
    """
    from datasets import load_dataset

    path = Path(name)
    if not path.is_file():
        try:
            return load_dataset(name)
        except (ConnectionError, FileNotFoundError) as error:
            raise ValueError(f"{name!r} is no file or folder here, and cannot be had from the hub: {error}") from None
    kinds = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
    if path.suffix not in kinds:
        raise ValueError(f"{name} ends in {path.suffix!r}; files can be {', '.join(kinds)}.")
    return load_dataset(kinds[path.suffix], data_files=name)


def forward_parameters(model: nn.Module) -> list[str]:
    """Names of the inputs that a network's `forward` takes."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(model.forward).parameters.values()
    return [p.name for p in parameters if p.kind in kinds and p.name not in ("labels", *SPAN)]


def to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch with its tensors on that device."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def with_padding(model: nn.Module, tokenizer: Any) -> tuple[nn.Module, Any]:
    """A model and a tokenizer that can pad: where there is no padding token, the one that ends a text serves.

    What was given is left as it was. `transformers` models that classify by the last token of a text need to know the
    padding token, too.
    """
    if tokenizer is None:
        return model, tokenizer
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.pad_token = tokenizer.eos_token
        logger.info("The tokenizer has no padding token: padding with %r.", tokenizer.eos_token)
    config: Any = getattr(model, "config", None)
    if tokenizer.pad_token is not None and getattr(config, "pad_token_id", 0) is None:
        model = copy.copy(model)  # another module around the same parts
        config = copy.deepcopy(config)
        config.pad_token_id = tokenizer.pad_token_id
        model.config = config
    return model, tokenizer


def _with_span(row: dict[str, Any]) -> dict[str, Any]:
    """First and last token of an answer as one label."""
    if all(name in row for name in SPAN) and "labels" not in row:
        row["labels"] = torch.stack([torch.as_tensor(row.pop(name)) for name in SPAN], dim=-1)
    return row


def _array(labels: list[Any]) -> np.ndarray:
    """Labels of all examples; those of tokens, where examples differ in length, one after another."""
    if labels and isinstance(labels[0], (list, tuple, np.ndarray, Tensor)) and len({*map(len, labels)}) > 1:
        return np.concatenate([np.asarray(row) for row in labels])
    return np.asarray(labels)


def _is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", "") in ("string", "large_string")


def _length(ids: Sequence[Any]) -> int:
    """Number of tokens of an example: of several sequences, of the longest."""
    return max(map(len, ids)) if len(ids) and np.ndim(ids[0]) else len(ids)


def _has_tokens(rows: Any) -> bool:
    """Whether every row's tokens are at hand: a list, or a `datasets.Dataset`, which reads them from a file."""
    return (isinstance(rows, list) and "input_ids" in rows[0]) or "input_ids" in getattr(rows, "column_names", ())


def _is_float(feature: Any) -> bool:
    """Whether a column of a `datasets.Dataset` holds floating-point numbers, or lists of them."""
    while hasattr(feature, "feature"):
        feature = feature.feature
    return str(getattr(feature, "dtype", "")).startswith("float")


def _check_finite(data: str, name: str, value: Tensor) -> None:
    if value.is_floating_point() and value.dim() and value.numel():
        _raise_unless(data, name, value.isfinite().reshape(len(value), -1).all(1).cpu().numpy())


def _raise_unless(data: str, name: str, finite: np.ndarray) -> None:
    """Raise a ValueError that names the first row which is not finite."""
    if not finite.all():
        rows = np.flatnonzero(~finite)
        raise ValueError(
            f"{data}: {name!r} is NaN or infinite in {len(rows)} row(s), the first is row {rows[0]}. Remove or "
            "fill them first."
        )
