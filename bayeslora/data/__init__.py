"""Turn the data that users have into batches: mappings from the names of the network's inputs to tensors."""

from bayeslora.data.columns import LABELS, NOTHING, Columns, Reading, said
from bayeslora.data.files import given, opened, read, split, split_of
from bayeslora.data.forms import Arrays, Examples, OwnOrders, Stream
from bayeslora.data.plain import Plain, plain
from bayeslora.data.shots import shots_in
from bayeslora.data.source import Source, to_device
from bayeslora.data.weighing import Weight, Weighted, apart

__all__ = [
    "LABELS",
    "NOTHING",
    "Arrays",
    "Columns",
    "Examples",
    "OwnOrders",
    "Plain",
    "Reading",
    "Source",
    "Stream",
    "Weight",
    "Weighted",
    "apart",
    "given",
    "opened",
    "plain",
    "read",
    "said",
    "shots_in",
    "split",
    "split_of",
    "to_device",
]
