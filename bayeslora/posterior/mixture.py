"""Several posteriors over one base as one posterior."""

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from bayeslora import bases, devices, storage, tables
from bayeslora.contracts import ArgumentError
from bayeslora.data import NOTHING, Columns, Source
from bayeslora.diagnostics.groups import Groups, describe_mixture, from_groups
from bayeslora.dials import TuningResult, standard_error
from bayeslora.drawing import Drawn
from bayeslora.facts import dial
from bayeslora.isolation import public, seeded
from bayeslora.metrics import FloatArray
from bayeslora.posterior import Posterior
from bayeslora.posterior.gathering import Together
from bayeslora.prediction import Part
from bayeslora.program import Program
from bayeslora.record import MANIFEST, MixtureRecord, Record, reading
from bayeslora.stacking import mixed, resampled
from bayeslora.tasks import Likelihood
from bayeslora.tasks.collecting import Outputs
from bayeslora.tasks.prediction import BasePrediction
from bayeslora.types import Approximation, BatchSize, Data, Folder, NumDraws, Seed

if TYPE_CHECKING:
    import arviz as az
    import pandas as pd


class Mixture(Posterior):
    r"""Several posteriors over one base, as one: $p(y \mid x) = \sum_k w_k\, p_k(y \mid x)$.

    It is made by `mixture` or by `fit(…, folds=…)`. Each component keeps its method, its temperature and its way of
    predicting. It predicts, evaluates, calibrates, decides and is saved as any posterior; what is about one set of
    adapters, such as `merge`, is asked of one of its `components`. Its centre is the mixture of their centres.

    Args:
        components: The posteriors.
        weights: w, one for each, at least 0; they are divided by their sum.
        temperature: Divides every logit, beside the components' own.
        tuning: How its dial was set by folds, if it was.
        densities: Log predictive densities of rows that set the weights, in nats, `[posterior, row]`.
        sizes: How many components, one after another, belong to each posterior of `densities`; None for one.

    Attributes:
        components: The posteriors.
        weights: w, `[component]`, which sum to 1.
    """

    def __init__(
        self,
        components: Sequence[Posterior],
        weights: Sequence[float] | FloatArray | None = None,
        temperature: float = 1.0,
        tuning: TuningResult | None = None,
        densities: FloatArray | None = None,
        sizes: Sequence[int] | None = None,
    ):
        self.components = tuple(components)
        given = np.ones(len(self.components)) if weights is None else np.asarray(weights, dtype=np.float64)
        self.weights: FloatArray = given / given.sum()
        first = self.components[0]
        self.temperature, self.tuning, self.densities = temperature, tuning, densities
        self.sizes = tuple(sizes or [1] * len(self.components))
        self.tokenizer, self.class_names, self.columns = first.tokenizer, first.class_names, first.columns
        unfinished = [component.state for component in self.components if component.state is not None]
        self.state = unfinished[0] if unfinished else None
        self.example = self.held_out = None

    @property
    def program(self) -> Program:  # type: ignore[override]
        """Refused: there is one for each component."""
        raise ValueError(
            f"A mixture has {len(self.components)} components, each with a program, adapters and centre of its own: "
            "ask one of them, such as mixture.components[0]."
        )

    @property
    def history(self) -> "pd.DataFrame":
        """The histories of all components, one below the other; `component` says whose a row is."""
        import pandas as pd

        parts = [component.history for component in self.components]
        for number, part in enumerate(parts):
            part.insert(0, "component", number)
        return pd.concat(parts, ignore_index=True)

    @property
    def elpd(self) -> "pd.DataFrame":
        """Expected log predictive densities of what was put together, by the rows that set the weights, in nats a row.

        A row per posterior that was given, which may be a mixture itself: its `weight`, `elpd` with its standard error
        `se`, and its `difference` from the whole mixture's, with its own standard error, `se_difference`. The weights
        were chosen on these rows.

        Raises:
            ValueError: If the weights were not set by any.
        """
        import pandas as pd

        if self.densities is None:
            raise ValueError("The weights were not set by predictive densities: make it with weights='stacking'.")
        starts = np.cumsum([0, *self.sizes[:-1]])
        weights = np.add.reduceat(self.weights, starts)
        kinds = [self.components[start].method.name for start in starts]
        names = [kind if size == 1 else f"{size} × {kind}" for kind, size in zip(kinds, self.sizes, strict=True)]
        apart = self.densities - mixed(self.densities, weights)
        return pd.DataFrame(
            {
                "method": names,
                "weight": weights,
                "elpd": self.densities.mean(1),
                "se": [standard_error(row) for row in self.densities],
                "difference": apart.mean(1),
                "se_difference": [standard_error(row) for row in apart],
            }
        )

    def _shown(self) -> tuple[str, dict[str, str], None]:
        first = self.components[0]._shown()[1]
        kinds = Counter(component.method.name for component in self.components)
        weights = ", ".join(f"{weight:.3g}" for weight in self.weights[:10]) + ("…" if len(self.weights) > 10 else "")
        return (
            type(self).__name__,
            {
                "components": ", ".join(f"{count} × {name}" for name, count in kinds.items()),
                "weights": "equal" if np.ptp(self.weights) < 1e-12 else weights,
                "network": first["network"],
                "labels": first["labels"],
                **({} if self.temperature == 1 else {"temperature": f"{self.temperature:.3f}"}),
                **({} if self.tuning is None else {"dial": dial(self.tuning)}),
                **({} if self.held_out is None else {"decides by": f"{len(self.held_out):,} held-out rows"}),
                "state": "finished" if self.state is None else f"not finished: {self.state}",
            },
            None,
        )

    @public()
    def draw(self, num_draws: NumDraws = 32, *, antithetic: bool = False, seed: Seed | None = 0) -> dict[str, Tensor]:
        """Draw every site of every component, `[draw, layer, …]`, by the component's number and the site's name.

        Args:
            num_draws: Draws in all, shared equally by the components whose weight is not 0; a finite posterior returns
                its members, each once.
            antithetic: Whether to draw in pairs, as `predict` does.
            seed: The same seed gives the same draws; None uses and advances torch's global state.
        """
        return {
            f"{number}/{name}": value
            for number, drawn in self._drawn(num_draws, seed, antithetic).items()
            for name, value in drawn.together().items()
        }

    def _drawn(self, num_draws: int, seed: int | None, antithetic: bool = False) -> dict[int, Drawn]:
        size = math.ceil(num_draws / len(self._used))
        with seeded(seed):  # one after another: components of one method do not share their noise
            return {
                number: Drawn(component.program, size, None, antithetic=antithetic)
                for number, component in self._used.items()
            }

    def _source(self, data: Data, asked: Columns = NOTHING, with_labels: bool = True, name: str = "data") -> Source:
        return self.components[0]._source(data, asked, with_labels, name)

    def _programs(self) -> list[Program]:
        return [component.program for component in self.components]

    @property
    def _likelihood(self) -> Likelihood:
        return self.components[0]._likelihood

    def _start(self) -> Posterior:
        """Return the component with the largest weight."""
        return self.components[int(self.weights.argmax())]

    @property
    def _used(self) -> dict[int, Posterior]:
        """The components that have a weight, by their numbers."""
        return {number: self.components[number] for number in np.flatnonzero(self.weights).tolist()}

    def _predicting(self) -> list[Program]:
        return [component.program for component in self._used.values()]

    def _parts(
        self, num_draws: int | None, seed: int | None, approximation: str | None, antithetic: bool
    ) -> list[Part]:
        drawn = {} if num_draws is None else self._drawn(num_draws, seed, antithetic)
        return [component._part(drawn.get(number), approximation) for number, component in self._used.items()]

    def _gathered(self, outputs: Any, sizes: Sequence[int]) -> Together:
        return Together(outputs, list(zip(self._used.values(), sizes, strict=True)), self._weights(sizes))

    def _weights(self, sizes: Sequence[int]) -> FloatArray:
        return np.repeat(self.weights[self.weights > 0] / sizes, sizes)

    def _made(self, num_draws: int, seed: int | None, center: bool, approximation: str | None) -> dict[str, Any]:
        own = {approximation or component.method.approximation for component in self.components}
        linear = "draws" if center else own.pop() if len(own) == 1 else "own"
        made = {"num_draws": num_draws, "center": center, "seed": seed, "approximation": linear}
        return {**made, "temperature": self.temperature}

    def _prediction(self, outputs: Together, temperature: float | None = None) -> BasePrediction:
        temperature = self.temperature if temperature is None else temperature
        if not isinstance(outputs.outputs, Outputs):  # summarised as it was computed
            finished: BasePrediction = outputs.outputs
            return finished.pooled([], outputs.weights)
        predictions = self._predictions(outputs, temperature)
        return predictions[0].pooled(predictions[1:], outputs.weights)

    def _predictions(self, outputs: Together, temperature: float) -> list[BasePrediction]:
        """Return the prediction of each component that was run, at its own temperature times another."""
        predictions, first = [], 0
        for component, size in outputs.components:
            own = dataclasses.replace(outputs.outputs, logits=outputs.outputs.logits[first : first + size])
            predictions.append(component._prediction(own, component.temperature * temperature))
            first += size
        return predictions

    @public()
    def to_arviz(
        self,
        data: Data | None = None,
        num_draws: NumDraws = 100,
        *,
        approximation: Approximation | None = None,
        seed: Seed | None = 0,
        batch_size: BatchSize = 64,
        raw: bool = False,
        per_token: bool = False,
        prior: bool = False,
    ) -> "az.InferenceData":
        """Return draws as arviz groups, each component as often as its weight says.

        arviz takes draws as equally probable: the draws are resampled by their weights, systematically. The `posterior`
        group holds `component`, the number of the component that each of them is of. So that `log_likelihood`, mixed
        over the draws, is what `evaluate` scores in spite of the rounding, each of its terms has a constant, the same
        for all draws. What is in a component, its prior included, is shown by its own `to_arviz`.

        Args:
            data: Labelled data; None for the posterior group alone.
            num_draws: Draws in all.
            approximation: As in `predict`.
            seed: Seed of the draws.
            batch_size: Examples per batch.
            raw: Has to be False: components have different sites.
            per_token: As for a posterior.
            prior: Has to be False.
        """
        if raw or prior:
            name = "raw" if raw else "prior"
            raise ArgumentError(f"{name}=True: components have different sites: call it of one, mixture.components[0].")
        says = describe_mixture(self, num_draws, seed, approximation)
        if data is None:
            drawn = {"posterior": {"component": resampled(self.weights, num_draws)[None]}}
            return from_groups(Groups(drawn, {}, {}, says))
        source = self._source(data)
        found, labels = self._labelled(source, num_draws, seed, batch_size, approximation=approximation)
        prediction = self._prediction(found)
        chosen = resampled(found.weights, max(len(found.weights), num_draws, 2))
        numbers = [self.components.index(component) for component, _ in found.components]
        component = np.repeat(numbers, [size for _, size in found.components])
        are_tokens = hasattr(prediction, "rows")
        label, term = "tokens" if are_tokens else "labels", "tokens" if are_tokens and per_token else "labels"
        terms = prediction.row_log_likelihood(labels) if term == "tokens" else prediction.log_likelihood(labels)
        values = {
            "posterior": {"component": component[chosen][None]},
            "posterior_predictive": {label: prediction.sample(seed)[chosen][None]},
            "log_likelihood": {term: (terms[chosen] + _rounded_off(terms, found.weights, chosen))[None]},
            "observed_data": {label: labels},
        }
        dims = {name: ["token" if name == "tokens" else "example"] for name in (label, term)}
        coords = {dims[label][0]: np.arange(len(labels)), dims[term][0]: np.arange(terms.shape[1])}
        return from_groups(Groups(values, coords, dims, says))

    @public()
    def save(self, folder: Folder) -> None:
        """Write every component, as its own `save` would, and what is the mixture's; raises as that does."""
        self._save(Path(folder))

    @public()
    def record(self) -> dict[str, Any]:
        """Return what is saved of it, and of each component with its weight, ready for JSON."""
        shares = zip(self.weights.tolist(), self.components, strict=True)
        own = {"temperature": self.temperature, "densities": [] if self.densities is None else _ranges(self.sizes)}
        return {**own, **tables.record(self), "components": [{"weight": w, **each.record()} for w, each in shares]}

    def _save(self, folder: Path, about: Mapping[str, bytes] | None = None) -> None:
        columns = {} if self.densities is None else dict(zip(_ranges(self.sizes), self.densities, strict=True))
        tensors = tables.state(self) | {f"densities/{name}": torch.from_numpy(row) for name, row in columns.items()}
        components = list(zip([each.save for each in self.components], self.weights.tolist(), strict=True))
        storage.save_files(folder, tensors, self.record(), components=components, about=about)

    @classmethod
    def restored(
        cls,
        components: Sequence[Posterior],
        tensors: Mapping[str, Tensor],
        record: MixtureRecord,
        folder: str | os.PathLike[str],
    ) -> "Mixture":
        """Return a saved mixture of these components."""
        with reading(folder, record["tensors"]):
            names = record["densities"]
            ends = [int(name.rpartition("-")[2]) + 1 if name.rpartition("-")[2].isdecimal() else 0 for name in names]
            sizes = np.diff([0, *ends]).tolist()
            if names and (names != _ranges(sizes) or min(sizes) < 1 or ends[-1] != len(components)):
                raise ValueError(f"densities is {names!r:.100}: give a range of components for each posterior, or none")
            densities = np.stack([tensors[f"densities/{name}"].numpy() for name in names]) if names else None
            tuning = TuningResult.restored(record.get("tuning"), tensors)
            weights = [each["weight"] for each in record["components"]]
            found = cls(components, weights, record["temperature"], tuning, densities, sizes if names else None)
            found.held_out = tables.held_out(tensors, cast(Record, record))
        with reading(folder, MANIFEST):
            check(components)
        return found


def check(components: Sequence[Posterior]) -> None:
    """Raise a ValueError unless components have one base and one kind of labels."""
    first, looked_at = components[0], {id(components[0])}
    for number, other in enumerate(components):
        if id(other) in looked_at:
            continue
        looked_at.add(id(other))
        own, its_own = (storage.likelihood_record(each._likelihood) for each in (first, other))
        learned = "scale" in own["config"]
        same = own["name"] == its_own["name"] and (learned or own["config"] == its_own["config"])
        if not same or first.class_names != other.class_names:
            raise ValueError(
                f"Posteriors 0 and {number} have other labels, {_labels(first)} and {_labels(other)}: a mixture is of "
                "posteriors for the same."
            )
        devices.check_same(first.network.device, other.network.device, number)
        try:
            bases.check_same(first.network, other.network)
        except ValueError as error:
            raise ValueError(
                f"Posteriors 0 and {number} belong to different base models: {error} Fit them on the same."
            ) from None


def _labels(posterior: Posterior) -> str:
    settings = [f"{name}={value!r:.40}" for name, value in posterior._likelihood.config().items()]
    return " of ".join(filter(None, [posterior._likelihood.name, ", ".join(posterior.class_names or settings)]))


def _rounded_off(terms: FloatArray, weights: FloatArray, chosen: np.ndarray) -> FloatArray:
    """Return by how much resampled draws are too low in the logarithm of their mean density, `[term]`."""
    exact, found = mixed(terms, weights), mixed(terms[chosen], np.full(len(chosen), 1 / len(chosen)))
    return np.where(np.isfinite(exact) & np.isfinite(found), exact - found, 0.0)


def _ranges(sizes: Sequence[int]) -> list[str]:
    """Return the first and last component of each posterior, `0-4`, `5-5`."""
    ends = np.cumsum(sizes).tolist()
    return [f"{end - size}-{end - 1}" for end, size in zip(ends, sizes, strict=True)]
