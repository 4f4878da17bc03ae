"""Cross-fitting: members that have each been trained without a fold set a dial and a temperature, and lose no label."""

import dataclasses
import json
import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from bayeslora import checkpoints, dialling, metrics, several, storage
from bayeslora.contracts import ArgumentError
from bayeslora.data import Source
from bayeslora.dials import TuningResult, curve_of, wanted
from bayeslora.fitting import Fitting
from bayeslora.grouping import same_inputs
from bayeslora.hashing import hashed
from bayeslora.metrics import FloatArray
from bayeslora.mixture import mixture
from bayeslora.posterior import Posterior
from bayeslora.posterior.gathering import Together
from bayeslora.posterior.mixture import Mixture

logger = logging.getLogger(__name__)

NUM_DRAWS, BATCH_SIZE = 32, 64
"""Draws of each member for the rows of its fold, and rows in a batch."""

TEMPERATURES = np.geomspace(0.25, 4, 17)
"""Temperatures at which the curve is drawn where the temperature is the dial."""

MOST_ROWS = 256
"""Rows on which the sharpness of members and of their mixture is compared."""


class OutOfFold(NamedTuple):
    """A member, and what it predicts for the rows that it has not seen.

    Args:
        posterior: The member.
        outputs: Its outputs for the rows of its fold.
        labels: The labels of these rows.
        rows: Their numbers in the data.
    """

    posterior: Posterior
    outputs: Any
    labels: np.ndarray
    rows: np.ndarray


def cross_fit(
    fitting: Fitting,
    train: Source,
    held_out: Source | None,
    folds: int,
    refit: bool | None,
    seed: int,
    output_dir: str | os.PathLike[str] | None,
) -> Posterior:
    r"""Train K members, each without its fold, and return their mixture, or one refit, at the temperature found.

    The temperature T minimises the mean of $-\ln p_{k(i)}(y_i; T)$ over all rows i, with k(i) the member that has not
    seen row i. That of a mixture is lower, see `mixture_temperature`.

    Args:
        fitting: The fit.
        train: All training data.
        held_out: Held-out data, whose NLL at the centre is recorded.
        folds: K.
        refit: Whether to return one fit of all data; None for the method's default.
        seed: That of the split; member k has `seed` + k.
        output_dir: Where members are saved, in `fold-0`, `fold-1`, …, and, when all is done, the posterior.
    """
    check(fitting, train, folds)
    method = fitting.method
    refit = method.refit if refit is None else refit
    folder = fitting.args.output_dir if fitting.args is not None else output_dir
    fold = folds_of(train.labels, same_inputs(train.dataset), folds, seed)
    if (found := fold.max() + 1) < folds:
        raise ArgumentError(f"folds={folds}: equal inputs stay in one fold, and data has {found} different ones.")
    dial = wanted(method)
    values = [dialling.named(dial, value) for value in dial.grid] if dial and dial.buffer is None else []
    names = [*(values or [f"fold-{number}" for number in range(folds)]), *(["refit"] if refit else [])]
    record = several.fit_record(storage.method_record(method), train, seed, folds=folds, refit=refit)
    several.begin(folder, record, names, fitting.resume)
    trained = Trained(fitting, train, held_out, fold, seed, folder)
    members, found = chosen_members(trained)
    if refit:
        logger.info("Refit: all %d examples, at a temperature of %.3f.", len(train), found.temperature)
        again = dialling.at(fitting, found.chosen) if dial and not trained.acts_after else fitting
        posterior = dialling.one(again, train, held_out, None, seed, folder, "refit")
        if dial and trained.acts_after:
            dial.put(posterior.guide, found.chosen)
        posterior.temperature = found.temperature
    else:
        shared = mixture_temperature(members, train, fold, found.temperature, seed)
        logger.info("Temperature: %.3f of a member, %.3f of their mixture.", found.temperature, shared)
        posterior = Mixture([member.posterior for member in members], temperature=shared)
    posterior.tuning = dataclasses.replace(found, temperature=posterior.temperature)
    dialling.save(posterior, folder)
    return posterior


@dataclasses.dataclass(frozen=True)
class Trained:
    """What members are trained on, and how.

    Args:
        fitting: The fit.
        train: All training data.
        held_out: Held-out data, whose NLL at the centre is recorded.
        fold: The fold of each row, `[row]`.
        seed: Seed of the first member.
        folder: Where they are saved.
    """

    fitting: Fitting
    train: Source
    held_out: Source | None
    fold: np.ndarray
    seed: int
    folder: str | os.PathLike[str] | None

    @property
    def acts_after(self) -> bool:
        """Whether the dial is to be found, and can be set on trained members."""
        dial = wanted(self.fitting.method)
        return dial is not None and dial.buffer is not None and not dial.in_training

    def members(self, fitting: Fitting, within: str = "") -> list[OutOfFold]:
        """Train a member without each fold, and let it predict that."""
        members = []
        for number in range(int(self.fold.max()) + 1):
            out, rest = np.flatnonzero(self.fold == number), np.flatnonzero(self.fold != number)
            logger.info("Fold %d: %d examples, without %d.", number + 1, len(rest), len(out))
            rows, name, seed = self.train.take(out.tolist()), f"{within}fold-{number}", self.seed + number
            tuned = rows if fitting.method.tuning() else None
            member = dialling.one(
                fitting, self.train.take(rest.tolist()), self.held_out, tuned, seed, self.folder, name
            )
            members.append(predicted(member, rows, out, self.seed))
        return members


def chosen_members(trained: Trained) -> tuple[list[OutOfFold], TuningResult]:
    """Return the members at the dial chosen, and how it was: by the out-of-fold NLL at each value's own temperature.

    Where the temperature is the dial, the curve is over temperatures.
    """
    fitting, count = trained.fitting, len(trained.fold)
    dial = wanted(fitting.method)
    if dial is None:
        members = trained.members(fitting)
        temperature, curve = best_temperature(members, count)
        return members, _result("temperature", temperature, temperature, curve, members, trained)
    candidates: list[tuple[float, list[OutOfFold]]] = []
    if dial.buffer is None:
        for value in dial.grid:
            candidates.append((value, trained.members(dialling.at(fitting, value), f"{dialling.named(dial, value)}/")))
    else:
        members = trained.members(fitting)
        own = [dial.value(member.posterior.guide) for member in members] if dial.in_training else []
        if own:
            candidates.append((float(np.exp(np.log(own).mean())), members))
        for value in dial.grid:
            for member in members:
                dial.put(member.posterior.guide, value)
            few = [predicted(m.posterior, trained.train.take(m.rows.tolist()), m.rows, trained.seed) for m in members]
            candidates.append((value, few))
        for member, value in zip(members, own, strict=False):
            dial.put(member.posterior.guide, value)
        candidates.sort(key=lambda candidate: candidate[0])
    temperatures = [best_temperature(each, count)[0] for _, each in candidates]
    found = [densities(each, count, t) for (_, each), t in zip(candidates, temperatures, strict=True)]
    values = [value for value, _ in candidates]
    best, curve = dialling.best_of(values, found)
    if dial.in_training:
        best = next(index for index, (_, each) in enumerate(candidates) if each is members)
    elif dial.buffer is not None:
        for member in members:
            dial.put(member.posterior.guide, values[best])
    chosen = candidates[best][1]
    return chosen, _result(dial.field, values[best], temperatures[best], curve, chosen, trained)


def _result(
    dial: str,
    chosen: float,
    temperature: float,
    curve: dict[str, FloatArray],
    members: Sequence[OutOfFold],
    trained: Trained,
) -> TuningResult:
    return TuningResult(
        dial=dial,
        rows="out-of-fold",
        chosen=chosen,
        temperature=temperature,
        curve=curve,
        log_density=densities(members, len(trained.fold), temperature),
        fold=trained.fold.astype(np.float64),
        digest=digest(trained.train),
    )


def check(fitting: Fitting, train: Source, folds: int) -> None:
    """Raise an `ArgumentError` unless rows can be divided into folds, and members are trained without theirs."""
    if train.dataset is None or train.is_stream:
        kind = "a stream" if train.is_stream else "a DataLoader"
        raise ArgumentError(f"folds={folds} divides rows by number, and data is {kind}: give a dataset.")
    if len(train) < 2 * folds:
        raise ArgumentError(f"folds={folds}: data has {len(train)} examples, enough for {len(train) // 2} folds.")
    if fitting.method.post_hoc:
        raise ArgumentError(
            f"folds={folds}: with post_hoc=True the adapters of init=… stay, and have seen every row. Leave one out."
        )


def folds_of(labels: np.ndarray | None, same: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Return the fold of each row, `[row]`: equal rows have one, as a member would know its fold otherwise.

    Where all rows differ, the sizes of folds, and those of each class in them, differ by one at most.

    Args:
        labels: Labels of all rows; classes, if they are whole numbers, one for each row.
        same: The number of the first row that equals a row, `[row]`.
        folds: K.
        seed: Seed of the order within a class.
    """
    generator = np.random.default_rng(seed)
    first, own = np.unique(same, return_inverse=True)
    count = len(first)
    order = generator.permutation(count)
    if labels is not None and labels.ndim == 1 and labels.dtype.kind in "iub":
        order = order[np.argsort(labels[first][order], kind="stable")]
    fold = np.empty(count, np.int64)
    fold[order] = np.arange(count) % folds
    return (generator.permutation(folds) if count >= folds else np.arange(folds))[fold][own]


def predicted(posterior: Posterior, source: Source, rows: np.ndarray, seed: int) -> OutOfFold:
    """Run a member on the rows of its fold."""
    found, labels = posterior._labelled(source, NUM_DRAWS, seed, BATCH_SIZE)
    return OutOfFold(posterior, found, labels, rows)


def densities(members: Sequence[OutOfFold], count: int, temperature: float) -> FloatArray:
    """Return the log-density of each row under the member that has not seen it, in nats, `[row]`."""
    found = np.empty(count)
    for posterior, outputs, labels, rows in members:
        prediction = posterior._prediction(outputs, temperature)
        found[rows] = dialling.density(prediction, labels, dialling.is_sampled(posterior))
    return found


def best_temperature(members: Sequence[OutOfFold], count: int) -> tuple[float, dict[str, FloatArray]]:
    """Return the temperature with the least out-of-fold NLL, 1 if the likelihood has none, and its curve."""
    if not members[0].posterior._likelihood.has_temperature:
        return 1.0, curve_of(np.ones(1), densities(members, count, 1.0)[None])
    best = metrics.best_temperature(lambda temperature: -float(densities(members, count, temperature).mean()))
    values = np.unique(np.append(TEMPERATURES, best))
    return best, curve_of(values, np.stack([densities(members, count, value) for value in values]))


def mixture_temperature(
    members: Sequence[OutOfFold], train: Source, fold: np.ndarray, temperature: float, seed: int
) -> float:
    r"""Return the temperature at which the mixture of members is as sharp as a member is at its own.

    The members of a mixture differ, so that it is wider than they are: at a member's out-of-fold temperature T it is
    not sure enough. Every row has one member only that has not seen it; the others have seen it alike. Among those,
    with $H$ the mean entropy over rows, $T' \le T$ solves

    $$H\Big(\frac{1}{K-1} \sum_k p_k(\cdot\,; T')\Big) = \frac{1}{K-1} \sum_k H\big(p_k(\cdot\,; T)\big).$$

    Members agree more on rows that they have seen than on new ones: the correction is rather too small. With two
    members there is one that has seen a row, and none to compare it with: T' is T.

    Args:
        members: The members.
        train: All training data.
        fold: The fold of each row.
        temperature: T.
        seed: Seed of the draws, and of the rows that are compared.
    """
    if len(members) < 3 or not members[0].posterior._likelihood.has_temperature:
        return temperature
    chosen = np.sort(np.random.default_rng(seed).permutation(len(fold))[:MOST_ROWS])
    mixtures: list[Callable[[float], FloatArray]] = []
    own = []
    for number in range(len(members)):
        rows = chosen[fold[chosen] == number]
        if not len(rows):
            continue
        source, others = train.take(rows.tolist()), [m.posterior for k, m in enumerate(members) if k != number]
        together = mixture(others)
        found = together._run(source, NUM_DRAWS * len(others), seed, BATCH_SIZE, False, None)
        mixtures.append(partial(_entropy, together, found))
        own.append(np.mean([p.entropy for p in together._predictions(found, temperature)], axis=0))
    target = float(np.concatenate(own).mean())

    def too_wide(value: float) -> bool:
        return float(np.concatenate([entropy(value) for entropy in mixtures]).mean()) > target

    low, high = temperature / 16, temperature
    for _ in range(30):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if too_wide(middle) else (middle, high)
    return high if too_wide(low) or high < temperature else temperature


def _entropy(posterior: Mixture, outputs: Together, temperature: float) -> FloatArray:
    return posterior._prediction(outputs, temperature).entropy


def digest(train: Source) -> str:
    """Return what tells the data from others."""
    return hashed([json.dumps(checkpoints.data_record(train), sort_keys=True, default=str)])
