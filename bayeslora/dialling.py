"""Set the dial of a method by the predictive NLL of rows that were not trained on."""

import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bayeslora import several, storage
from bayeslora.data import Source
from bayeslora.dials import Dial, TuningResult, curve_of
from bayeslora.isolation import seeded
from bayeslora.metrics import FloatArray
from bayeslora.posterior import Posterior
from bayeslora.tasks.prediction import BasePrediction
from bayeslora.tuning import log_mean_exp

logger = logging.getLogger(__name__)

NUM_DRAWS, BATCH_SIZE = 8, 64
"""Draws for each value of a dial, and rows in a batch."""


def density(prediction: BasePrediction, labels: np.ndarray, sampled: bool) -> FloatArray:
    """Return the log predictive density of each example, in nats, `[example]`; as if draws that are sampled were many.

    Args:
        prediction: The prediction.
        labels: The labels.
        sampled: Whether draws are sampled, and few: then the bias of that is removed (`tuning.log_mean_exp`).
    """
    if not sampled or len(prediction.draws) < 2:
        return prediction.log_density(labels)
    return log_mean_exp(torch.as_tensor(prediction.log_likelihood(labels))).numpy()


def is_sampled(posterior: Posterior) -> bool:
    """Whether draws of a posterior are sampled."""
    return posterior.method.num_draws(posterior.guide) is None


def judged(posterior: Posterior, rows: Source, seed: int) -> FloatArray:
    """Return log predictive densities of rows, in nats, `[row]`, at the same draws for every value of a dial."""
    found, labels = posterior._labelled(rows, NUM_DRAWS, seed, BATCH_SIZE)
    return density(posterior._prediction(found), labels, is_sampled(posterior))


def settle(posterior: Posterior, rows: Source, seed: int) -> None:
    """Set the dial of a trained posterior by held-out rows, and say so in its `tuning`.

    A method that has found its dial in training keeps it; the curve then is what the noise would do after training.

    Args:
        posterior: The posterior, which is changed.
        rows: Held-out rows.
        seed: Seed of the draws.
    """
    dial = posterior.method.dial
    assert dial is not None
    own = dial.value(posterior.guide) if dial.in_training else None
    values = sorted({*dial.grid, *([] if own is None else [own])})
    found = []
    for value in values:
        dial.put(posterior.guide, value)
        found.append(judged(posterior, rows, seed))
    curve = curve_of(np.array(values), np.stack(found))
    chosen = values[int(curve["nll"].argmin())] if own is None else own
    dial.put(posterior.guide, chosen)
    posterior.tuning = TuningResult(dial.field, "held-out", chosen, posterior.temperature, curve)
    logger.info("%s: %.3g, by the NLL of %d held-out rows.", dial.field, chosen, len(found[0]))


def by_fits(
    fitting: Any,
    train: Source,
    held_out: Source | None,
    rows: Source,
    seed: int,
    output_dir: str | os.PathLike[str] | None,
) -> Posterior:
    """Fit at each value of a dial that acts in training, and return the fit that predicts held-out rows best.

    Args:
        fitting: The fit.
        train: Training data.
        held_out: Held-out data, whose NLL at the centre is recorded.
        rows: Held-out rows to judge by.
        seed: Seed of every fit.
        output_dir: Where each is saved in a folder of its own, and then the best.
    """
    dial: Dial = fitting.method.dial
    folder = fitting.args.output_dir if fitting.args is not None else output_dir
    record = several.fit_record(storage.method_record(fitting.method), train, seed, dial=dial.field)
    several.begin(folder, record, [named(dial, value) for value in dial.grid], fitting.resume)
    fits = [one(at(fitting, value), train, held_out, None, seed, folder, named(dial, value)) for value in dial.grid]
    judgements = [judged(posterior, rows, seed) for posterior in fits]
    curve = curve_of(np.array(dial.grid), np.stack(judgements))
    best = int(curve["nll"].argmin())
    chosen = dial.grid[best]
    fits[best].tuning = TuningResult(dial.field, "held-out", chosen, fits[best].temperature, curve)
    logger.info("%s: %.3g, by the NLL of %d held-out rows.", dial.field, chosen, len(judgements[0]))
    save(fits[best], folder)
    return fits[best]


def at(fitting: Any, value: float) -> Any:
    """Return a fit whose method has its dial at a value."""
    return dataclasses.replace(fitting, method=fitting.method.replace(**{fitting.method.dial.field: value}))


def named(dial: Dial, value: float) -> str:
    """Return the name of the folder of fits at a value."""
    return f"{dial.field}-{value:g}"


def one(
    fitting: Any,
    train: Source,
    held_out: Source | None,
    rows: Source | None,
    seed: int,
    folder: str | os.PathLike[str] | None,
    name: str,
) -> Posterior:
    """Fit one of several, in a folder of its own, with a random state and a likelihood of its own.

    Args:
        fitting: The fit.
        train: Its training data.
        held_out: Held-out data.
        rows: Rows for methods that learn from held-out data while they are trained.
        seed: Its seed.
        folder: That of the whole fit, if there is one.
        name: The name of its own folder in there.
    """
    own = None if folder is None else Path(folder) / name
    seed %= 2**32
    with seeded(seed):
        return fitting.apart(seed, own)(train, held_out, rows, seed, own, settles=False)


def save(posterior: Posterior, folder: str | os.PathLike[str] | None) -> None:
    """Save the posterior of several fits, once, where several processes have trained it."""
    if folder is not None and several.is_first():
        posterior.save(folder)


def best_of(values: Sequence[float], found: Sequence[FloatArray]) -> tuple[int, dict[str, FloatArray]]:
    """Return which value has the least NLL, and the curve, given each row's log-density at each value."""
    curve = curve_of(np.array(values, dtype=np.float64), np.stack(found))
    return int(curve["nll"].argmin()), curve
