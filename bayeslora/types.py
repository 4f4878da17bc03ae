"""Axis names, array aliases, and names for what passes between the parts of the library.

Axes keep one order: `draw` first, then `layer` (factors) or `batch` (data), features or labels last. `*draw` stands
for no draw dimension or one.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from torch import Tensor

Data: TypeAlias = Any
"""Examples in any form that `fit` reads: tables, datasets, loaders, streams, arrays, texts; `Source` lists them."""

Batch: TypeAlias = Mapping[str, Any]
"""Keyword arguments of the network's forward, with `labels` beside them."""

Row: TypeAlias = Mapping[str, Any]
"""One example: names of the network's inputs to values, with `labels` beside them."""

History: TypeAlias = dict[str, list[float]]
"""Columns of equal length with an entry for each training step."""

LabelValues: TypeAlias = ArrayLike
"""Labels of several examples: an array, a tensor, or a list with an entry for each."""

Targets: TypeAlias = str | Sequence[str]
"""Which layers to adapt: `"all-linear"`, `"attention"`, a suffix, a list of suffixes, or a regular expression."""

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


@runtime_checkable
class LabelColumn(Protocol):
    """All labels of the data, one after another: a column of a table, an array or a list."""

    def __len__(self) -> int:
        """Return the number of examples."""

    def __getitem__(self, index: Any, /) -> Any:
        """Return the label of one example."""

    def __iter__(self) -> Iterator[Any]:
        """Yield the labels."""
