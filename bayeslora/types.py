"""Axis names, array aliases, and names for what passes between the parts of the library.

Axes keep one order: `draw` first, then `layer` (factors) or `batch` (data), features or labels last. `*draw` stands
for no draw dimension or one.
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from numbers import Number
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, TypeAlias, runtime_checkable

from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from torch import Tensor, nn

from bayeslora.contracts import (
    Count,
    Kind,
    Within,
    derives_from,
    expanded,
    instance_of,
    is_name,
    is_path,
    name_instances,
)


def _may_hold_rows(value: Any) -> bool:
    if isinstance(value, str | os.PathLike):
        return is_name(value)  # a text may be long
    if isinstance(value, bool | bytes | Number | type | nn.Module | set | frozenset):
        return False
    return any(hasattr(value, name) for name in ("__iter__", "__getitem__", "__arrow_c_stream__", "__dataframe__"))


Data: TypeAlias = Annotated[
    Any,
    Kind(
        "a datasets.Dataset or DatasetDict, a pandas DataFrame, a torch Dataset or DataLoader, (inputs, labels) as "
        "arrays, a mapping of arrays, or a list of texts",
        _may_hold_rows,
    ),
]
"""Examples in any form that `fit` reads: tables, datasets, loaders, streams, arrays, texts; `Source` lists them."""

Prompts: TypeAlias = Annotated[
    Any,
    Kind(
        "a text or a list of texts, an array or list of token ids for each prompt, a mapping of the model's inputs, or "
        "conversations",
        lambda value: (
            isinstance(value, str | Sequence | Mapping)
            or getattr(value, "ndim", 0) > 0
            or hasattr(value, "column_names")
        ),
    ),
]
"""What `generate` continues."""

Folder: TypeAlias = Annotated[str | os.PathLike[str], Kind("the path of a folder", is_path, expanded)]

FileName: TypeAlias = Annotated[str | os.PathLike[str], Kind("the path of a file", is_path, expanded)]

ModelName: TypeAlias = Annotated[str | os.PathLike[str], Kind("the path or hub name of a model", is_path, expanded)]

Seed: TypeAlias = Annotated[int, Within(at_least=0, at_most=2**32 - 1)]
"""What NumPy takes, whose range is the smallest: the same seed is for all random states."""

NumDraws: TypeAlias = Annotated[int, Within(at_least=1, at_most=1_000_000)]
"""Draws of the weights, which are in memory together."""

NumParticles: TypeAlias = Annotated[int, Within(at_least=1, at_most=10_000)]
"""Draws of the weights in a training step, which run as one batch."""

Folds: TypeAlias = Annotated[int, Within(at_least=2, at_most=1000)]
"""Parts of the data that members of a cross-fit are trained without."""

BatchSize: TypeAlias = Count

Epochs: TypeAlias = Annotated[float, Within(at_least=0, at_most=1_000_000, below=math.inf)]
"""Passes over the data, or a part of one; a fit of more would not end."""

Approximation: TypeAlias = Literal["draws", "linear"]
"""How predictions are made: by running the network on draws, or by its first-order expansion."""

PosteriorLike: TypeAlias = Annotated[Any, Kind("a Posterior", instance_of("bayeslora.Posterior"))]
"""A `Posterior`, for what `Posterior` itself is made of."""

Batch: TypeAlias = Mapping[str, Any]
"""Keyword arguments of the network's forward, with `labels` beside them."""

Row: TypeAlias = Mapping[str, Any]
"""One example: names of the network's inputs to values, with `labels` beside them."""

History: TypeAlias = dict[str, list[float]]
"""Columns of equal length with an entry for each training step."""

LabelValues: TypeAlias = ArrayLike
"""Labels of several examples: an array, a tensor, or a list with an entry for each."""

Targets: TypeAlias = str | Sequence[str]
"""Which layers to adapt: `"all-linear"`, `"attention"`, `"last:k"`, a suffix, several, or a regular expression."""

if TYPE_CHECKING:
    from transformers import TrainerCallback, TrainingArguments

    Arguments: TypeAlias = TrainingArguments
    Callback: TypeAlias = TrainerCallback | type[TrainerCallback]
else:  # whoever has one has imported its class, which takes seconds
    _arguments = Kind("transformers' TrainingArguments", derives_from("transformers.TrainingArguments"))
    _callback = Kind("a TrainerCallback of transformers", derives_from("transformers.TrainerCallback"))
    Arguments: TypeAlias = Annotated[Any, _arguments]
    Callback: TypeAlias = Annotated[Any, _callback]

Logits = Float[Tensor, "*draw batch class"]
TokenLogits = Float[Tensor, "*draw batch token class"]
RealLogits = Float[Tensor, "*draw batch"]
Labels = Int[Tensor, "batch"]
PerLayer = Float[Tensor, "*draw layer"]
Scaling = Float[Tensor, "layer"]

Sites: TypeAlias = Mapping[str, Tensor]
"""Site name to value, `[layer, …]`, or `[draw, layer, …]` for several draws."""

if TYPE_CHECKING:
    # The family decides on the fields, which are read by name: no single type has them all.
    FactorTuple: TypeAlias = Any
else:
    FactorTuple: TypeAlias = tuple[Tensor, ...]
"""The factors of a stack or of a layer: the `NamedTuple` of its family, such as `Factors(A, B)`."""

FactorsByStack: TypeAlias = Mapping[str, FactorTuple]
"""Stack name to its factors, `[layer, …]` each, or `[draw, layer, …]` for several draws."""

TraceSite: TypeAlias = dict[str, Any]
"""A site of a Pyro trace: its name, its distribution `fn`, its value, and how it enters the loss."""

WEIGHTS = "weights_of_rows"
"""The entry of a training batch that says how much each row counts, `[batch]`, if rows do not count alike."""

IGNORED = -100
"""The label of a token that is not observed, as everywhere in `transformers`."""


@runtime_checkable
class Tokenizer(Protocol):
    """What the library asks of a tokenizer; those of `transformers` have it."""

    if TYPE_CHECKING:  # at run time a check would read every attribute, and some are computed
        model_max_length: int
        padding_side: str
        pad_token: str | None
        pad_token_id: int | None
        eos_token: str | None

    def __call__(self, *texts: Any, **settings: Any) -> Any:
        """Return the encoding of texts, a mapping from the names of the network's inputs."""

    def decode(self, token_ids: Any, *others: Any, **settings: Any) -> Any:
        """Return the text of token ids."""

    def save_pretrained(self, save_directory: Any, *others: Any, **settings: Any) -> Any:
        """Write the tokenizer's own files into a folder."""


name_instances(Tokenizer, "a tokenizer, such as AutoTokenizer.from_pretrained loads")


@runtime_checkable
class LabelColumn(Protocol):
    """All labels of the data, one after another: a column of a table, an array or a list."""

    def __len__(self) -> int:
        """Return the number of examples."""

    def __getitem__(self, index: Any, /) -> Any:
        """Return the label of one example."""

    def __iter__(self) -> Iterator[Any]:
        """Yield the labels."""
