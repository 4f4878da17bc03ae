"""The dial of a method: the one number that says how loud it is, and how it was set by prediction."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor, nn

from bayeslora.display import Shown
from bayeslora.metrics import FloatArray

if TYPE_CHECKING:
    import pandas as pd

CURVE = ("value", "nll", "se", "difference", "se_difference")
"""Columns of a curve."""

OUT_OF_FOLD = ("log_density", "fold")
"""Columns of rows that a member predicted which had not seen them."""

MOST_FOLDS = 1000
"""Of a cross-fit (`types.Folds`)."""


@dataclass(frozen=True)
class Dial:
    """The one number that says how loud a method is: how it is set, and which values are worth a try.

    Args:
        field: The field of the method that holds it, where `"auto"` has it set by prediction.
        grid: Values to try, at least two, in order.
        buffer: The name of the buffers of a guide that hold it, so that it can be set on a trained one. None if it acts
            in training alone: then each value takes a fit.
        in_training: Whether a fit finds it while it trains (`Method.tune`), and leaves it in the buffers.
    """

    field: str
    grid: tuple[float, ...]
    buffer: str | None = None
    in_training: bool = False

    def put(self, guide: nn.Module, value: float) -> None:
        """Set it on a trained guide."""
        for buffer in self._buffers(guide):
            buffer.fill_(value)

    def value(self, guide: nn.Module) -> float:
        """Return what a guide has."""
        return float(self._buffers(guide)[0].flatten()[0])

    def _buffers(self, guide: nn.Module) -> list[Tensor]:
        return [value for name, value in guide.named_buffers() if name.rpartition(".")[2] == self.buffer]


def wanted(method: Any) -> Dial | None:
    """Return the dial of a method, if it is to be set by prediction, and None otherwise."""
    dial: Dial | None = method.dial
    return dial if dial is not None and getattr(method, dial.field) == "auto" else None


def with_default(method: Any) -> Any:
    """Return the same method with its dial at the default, where there is nothing to set it by.

    A dial that is found in training stays: it starts from its default.
    """
    dial = wanted(method)
    if dial is None or dial.in_training:
        return method
    return method.replace(**{dial.field: getattr(type(method), dial.field)})


@dataclass(frozen=True, repr=False)
class TuningResult(Shown):
    r"""How a dial was set: the NLL of rows that were not trained on, at each of its values.

    With $\ell_{iv}$ the negative log predictive density of row i at value v, in nats, and $v^*$ the value with the
    least mean, the curve has the mean of $\ell_{iv}$ over n rows and its standard error, sd / √n, and the same of
    $\ell_{iv} - \ell_{iv^*}$, which says more: what makes a row hard is in both.

    Args:
        dial: What was set: a field of the method, or `temperature`.
        rows: Which rows judged: the `"held-out"`, or all, `"out-of-fold"`: each by the member that had not seen it.
        chosen: The value chosen.
        temperature: The temperature of the posterior.
        curve: `value`, and `nll`, `se`, `difference` and `se_difference` in nats per example, `[value]` each.
        log_density: Log predictive density of each row at what was chosen, in nats, `[row]`; None where it is not kept.
        fold: The fold of each row, `[row]`; None without folds.
        digest: What tells the data from others; empty without folds.
    """

    dial: str
    rows: Literal["held-out", "out-of-fold"]
    chosen: float
    temperature: float
    curve: Mapping[str, FloatArray]
    log_density: FloatArray | None = None
    fold: FloatArray | None = None
    digest: str = ""

    @property
    def elpd(self) -> float | None:
        """Expected log predictive density, the mean over rows in nats; None where rows are not kept."""
        return None if self.log_density is None else float(self.log_density.mean())

    @property
    def elpd_se(self) -> float | None:
        """Standard error of `elpd`, sd / √n."""
        return None if self.log_density is None else standard_error(self.log_density)

    def to_pandas(self) -> "pd.DataFrame":
        """Return the curve as a table, with a row per value."""
        import pandas as pd

        return pd.DataFrame({name: self.curve[name] for name in CURVE})

    def _shown(self) -> "tuple[str, dict[str, str], pd.DataFrame]":
        facts = {"dial": f"{self.dial} = {self.chosen:.3g}", "by": f"the NLL of {self.rows} rows"}
        if self.dial != "temperature":
            facts["temperature"] = f"{self.temperature:.3f}"
        if self.elpd is not None and self.log_density is not None:
            facts["elpd"] = f"{self.elpd:.3f} ± {self.elpd_se:.3f} nats per row, of {len(self.log_density):,} rows"
        return type(self).__name__, facts, self.to_pandas()

    def record(self) -> dict[str, Any]:
        """Return what is saved beside the columns, ready for JSON."""
        return {
            "dial": self.dial,
            "rows": self.rows,
            "chosen": self.chosen,
            "temperature": self.temperature,
            "digest": self.digest,
            "curve": list(CURVE),
            "out_of_fold": [] if self.log_density is None or self.fold is None else list(OUT_OF_FOLD),
        }

    def columns(self) -> dict[str, FloatArray]:
        """Return the columns that are saved as tensors, by their names there."""
        columns = {f"curve/{name}": self.curve[name] for name in CURVE}
        if self.log_density is not None and self.fold is not None:
            columns |= {"out_of_fold/log_density": self.log_density, "out_of_fold/fold": self.fold}
        return columns

    @classmethod
    def restored(cls, record: Mapping[str, Any] | None, tensors: Mapping[str, Tensor]) -> "TuningResult | None":
        """Return what `record` and `columns` describe; None where nothing was saved.

        Raises:
            ValueError: If columns are missing, or folds are not numbered.
        """
        if record is None:
            return None
        for part, names in (("curve", CURVE), ("out_of_fold", OUT_OF_FOLD)):
            if record[part] and tuple(record[part]) != names:
                raise ValueError(f"tuning.{part} is {record[part]!r:.100}: give {', '.join(names)}")
        if not record["curve"]:
            raise ValueError("tuning.curve has no columns")
        curve = {name: tensors[f"curve/{name}"].numpy() for name in CURVE}
        kept = {name: tensors[f"out_of_fold/{name}"].numpy() for name in record["out_of_fold"]}
        numbers = kept.get("fold", np.zeros(1))
        if len(numbers) == 0 or not np.isin(numbers, np.arange(MOST_FOLDS)).all():
            raise ValueError(f"'out_of_fold/fold' holds other numbers than those of folds, 0 to {MOST_FOLDS - 1}")
        settings: dict[str, Any] = {n: record[n] for n in ("dial", "rows", "chosen", "temperature", "digest")}
        return cls(**settings, curve=curve, log_density=kept.get("log_density"), fold=kept.get("fold"))


def curve_of(values: FloatArray, log_densities: FloatArray) -> dict[str, FloatArray]:
    """Return the curve of a dial.

    Args:
        values: `[value]`.
        log_densities: Log predictive density of each row at each value, in nats, `[value, row]`.
    """
    nll = -log_densities.mean(1)
    apart = log_densities[nll.argmin()] - log_densities
    errors = [np.array([standard_error(row) for row in rows]) for rows in (log_densities, apart)]
    columns = (np.asarray(values, dtype=np.float64), nll, errors[0], apart.mean(1), errors[1])
    return dict(zip(CURVE, columns, strict=True))


def standard_error(values: FloatArray) -> float:
    """Return the standard error of a mean, sd / √n; 0 for one value."""
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
