"""Turn the data that users have into batches: mappings from the names of the network's inputs to tensors."""

from bayeslora.data.files import LABELS, read, split, tabular
from bayeslora.data.forms import Arrays, Examples, OwnOrders, Stream
from bayeslora.data.source import Source, to_device

__all__ = ["LABELS", "Arrays", "Examples", "OwnOrders", "Source", "Stream", "read", "split", "tabular", "to_device"]
