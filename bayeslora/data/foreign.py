"""Tables and columns of other libraries, in the forms that the rest of the package reads: those of pandas and lists."""

import dataclasses
from collections import UserList, deque
from collections.abc import ItemsView, KeysView, Mapping, ValuesView
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayeslora.contracts import ArgumentError
from bayeslora.data.columns import LABELS

LISTS = (deque, KeysView, ValuesView, ItemsView, UserList)
"""Collections in an order that can be read several times, and are not lists."""

INDEXED = (*LABELS, "text", "sentence")
"""Names of an index of a pandas table by which it is seen to be one of the columns."""


def familiar(data: Any, name: str = "data") -> Any:
    """Return data in which what comes from other libraries is in a form of pandas, or in a list.

    These are Arrow's tables and arrays, whatever hands out its columns by Arrow's interface (polars, DuckDB) or by
    `__dataframe__`, tables that are computed when they are asked for (dask, polars' lazy ones), queues and views of a
    mapping, arrays of xarray; and rows with named fields, of named tuples and data classes, which become mappings.

    Args:
        data: Data in any form; of a pair, each part is looked at, and of a mapping, each column.
        name: What to call it in messages.
    """
    try:
        return _each_familiar(data)
    except ArgumentError as error:
        raise ArgumentError(f"{name}: {error}") from None


def _each_familiar(data: Any) -> Any:
    if type(data) is tuple and len(data) == 2:
        parts = tuple(map(_familiar, data))
        return data if all(new is old for new, old in zip(parts, data, strict=True)) else parts
    if type(data) is dict:
        columns = {name: _familiar(column) for name, column in data.items()}
        return data if all(columns[name] is data[name] for name in data) else columns
    return _familiar(data)


def _familiar(value: Any) -> Any:
    if type(value).__module__.startswith("xarray."):
        value = _of_xarray(value)
    if type(value) is dict:  # the inputs of a pair
        columns = {name: _array(column) for name, column in value.items()}
        return value if all(columns[name] is value[name] for name in value) else columns
    if value is None or isinstance(value, str | bytes | Mapping):
        return value
    if isinstance(value, Tensor | np.ndarray) and (plain := _array(value)) is not value:
        return plain
    if hasattr(value, "__torch_function__"):
        return value
    if hasattr(value, "iloc") and not hasattr(value, "dask"):
        return _with_index(_with_one_name(value))
    if hasattr(value, "column_names") and hasattr(value, "map"):  # of `datasets`
        return value
    if getattr(getattr(value, "dtype", None), "names", None):  # NumPy's tables
        import pandas as pd

        return pd.DataFrame.from_records(value)
    if isinstance(value, LISTS):
        value = list(value)
    if isinstance(value, list):
        return _rows(value)
    if hasattr(value, "dask") and hasattr(value, "compute"):
        return _familiar(value.compute())
    if hasattr(value, "collect_schema") and not hasattr(value, "__arrow_c_stream__"):  # a lazy table of polars
        return _familiar(value.collect())
    is_table = any(hasattr(value, name) for name in ("columns", "column_names", "schema"))
    if hasattr(value, "__arrow_c_stream__") or hasattr(value, "__arrow_c_array__"):
        import pyarrow as pa  # type: ignore[import-untyped]

        if is_table:
            return _of_arrow(pa.table(value))
        return (pa.chunked_array if hasattr(value, "__arrow_c_stream__") else pa.array)(value).to_pandas()
    if hasattr(value, "__dataframe__"):
        from pyarrow.interchange import from_dataframe  # type: ignore[import-untyped]

        return from_dataframe(value).to_pandas()
    return value


def _array(value: Any) -> Any:
    """Return an array or a tensor with all its numbers in their places.

    Raises:
        ArgumentError: If some are masked, or its rows differ in length.
    """
    if isinstance(value, np.ma.MaskedArray):
        if np.ma.is_masked(value):
            raise ArgumentError(
                f"{int(np.ma.getmaskarray(value).sum())} of {value.size} numbers of a masked array are masked, which "
                "no network sees: fill them, array.filled(…), or leave their rows out."
            )
        return value.filled()
    if isinstance(value, Tensor) and value.is_nested:
        raise ArgumentError(
            "The rows of a nested tensor differ in length: pad them, tensor.to_padded_tensor(0), and give the network "
            "a mask beside, or give a list of rows."
        )
    if isinstance(value, Tensor) and value.is_meta:
        raise ArgumentError("A tensor on the device 'meta' has a shape, and no numbers: give one on the CPU.")
    return value.to_dense() if isinstance(value, Tensor) and value.layout is not torch.strided else value


def _of_arrow(table: Any) -> Any:
    """Return a table of Arrow as one of pandas, which lacks lists of the texts that polars hands out."""
    import pyarrow as pa

    try:
        return table.to_pandas()
    except pa.ArrowNotImplementedError:  # how Arrow says that pandas has no such type
        import pandas as pd

        return pd.DataFrame(table.to_pydict())


def _of_xarray(value: Any) -> Any:
    """Return an array with named axes as one of NumPy, and a set of them as a table of pandas."""
    return value.to_dataframe().reset_index() if hasattr(value, "data_vars") else value.values


def _rows(rows: list[Any]) -> list[Any]:
    """Return rows whose fields have names as mappings, and others as they are."""
    first = rows[0] if rows else None
    if hasattr(first, "_asdict"):
        return [row._asdict() for row in rows]
    if hasattr(first, "iloc") and all(
        hasattr(row, "iloc") and all(isinstance(k, str) for k in row.index) for row in rows
    ):
        return [row.to_dict() for row in rows]  # rows of a table of pandas
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        return [{field.name: getattr(row, field.name) for field in dataclasses.fields(row)} for row in rows]
    return rows


def _with_one_name(frame: Any) -> Any:
    """Return a table of pandas whose columns have one name each, `a b` where they have several."""
    if getattr(getattr(frame, "columns", None), "nlevels", 1) < 2:
        return frame
    return frame.set_axis([" ".join(map(str, column)).strip() for column in frame.columns], axis=1)


def _with_index(frame: Any) -> Any:
    """Return a table of pandas with the levels of its index that are called as columns are among its columns."""
    names = [] if not hasattr(frame, "columns") else [name for name in frame.index.names if name in INDEXED]
    names = [name for name in names if name not in frame.columns]
    return frame.reset_index(level=names) if names else frame
