"""What a posterior holds, and how it reads data."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from torch import Tensor, nn

from bayeslora import devices, facts, networks, storage
from bayeslora.adapters import AdaptedNetwork, FrozenWeights, check_frozen
from bayeslora.contracts import checked
from bayeslora.data import NOTHING, Columns, Reading, Source, given, to_device
from bayeslora.decisions import HeldOut
from bayeslora.devices import Device
from bayeslora.dials import TuningResult
from bayeslora.display import Shown
from bayeslora.drawing import Drawn, draw
from bayeslora.isolation import isolated, public, seeded
from bayeslora.methods import Method
from bayeslora.metrics import FloatArray
from bayeslora.prediction import Part, centre_sites, how_made, part_of, run_parts
from bayeslora.program import Program
from bayeslora.tasks import Likelihood
from bayeslora.tasks.classes import Classes
from bayeslora.tasks.prediction import BasePrediction
from bayeslora.types import Data, History, NumDraws, Seed, Tokenizer

if TYPE_CHECKING:
    import pandas as pd


S = TypeVar("S", bound="State")


class State(Shown):
    """The fitted program, with what it takes to read data and to describe itself; see `Posterior`."""

    learned_from: "State | None" = None

    def __init__(
        self,
        program: Program,
        history: Mapping[str, Sequence[float]] | None = None,
        temperature: float = 1.0,
        tokenizer: Tokenizer | None = None,
        class_names: tuple[str, ...] | None = None,
        columns: Columns | None = None,
    ):
        self.program = program
        self.temperature = temperature
        self.tokenizer = tokenizer
        self.class_names = class_names
        self.columns = columns or NOTHING
        self.state: str | None = None
        self.weighted = False
        self.labels_seen: str | None = None
        self.example: Mapping[str, Any] | None = None
        self.held_out: HeldOut | None = None
        self.data_collator: Callable[[list[Any]], Any] | None = None
        self.tuning: TuningResult | None = None
        self._history: History = {name: list(column) for name, column in (history or {}).items()}
        program.network.frozen = FrozenWeights(program.network)

    @isolated()
    def __deepcopy__(self, memo: dict[int, Any]) -> "State":
        other = memo[id(self)] = object.__new__(type(self))
        vars(other).update(copy.deepcopy(vars(self), memo))
        return other

    def _shown(self) -> tuple[str, dict[str, str], None]:
        return type(self).__name__, facts.facts(self), None

    @property
    def method(self) -> Method:
        """The method and its hyperparameters."""
        return self.program.method

    @property
    def guide(self) -> nn.Module:
        """The guide: all learned adapter state."""
        return self.program.guide

    @property
    def network(self) -> AdaptedNetwork:
        """The adapted network: factors in, logits out."""
        return self.program.network

    @property
    def history(self) -> "pd.DataFrame":
        """A row per training step: `step`, `epoch`, `loss` and `nll` in nats per example, and a column per KL.

        KL columns are named after their sites and weighted as they enter the loss; `validation_nll`, at the centre,
        stands in the last row of each epoch if there was validation data.
        """
        import pandas as pd

        table = pd.DataFrame(self._history)
        return table.astype({"step": int}) if "step" in table else table

    @public()
    def draw(self, num_draws: NumDraws = 32, *, antithetic: bool = False, seed: Seed | None = 0) -> dict[str, Tensor]:
        """Draw every site, `[draw, layer, …]`, by site name.

        Args:
            num_draws: Number of draws; a finite posterior returns its members, each once.
            antithetic: Whether to draw in pairs, as `predict` does.
            seed: The same seed gives the same draws; None uses and advances torch's global state.
        """
        return draw(self.program, num_draws, seed, antithetic)

    @public()
    def to(self: S, device: Device) -> S:
        """Move the posterior to a device, in place, and return it, as modules do.

        A model that was passed to `fit` or `load` stays where it is; from then on, its weights are there twice. The
        same seed gives other draws on another kind of device, whose generator of random numbers is another.

        Args:
            device: Such as `"cpu"`, `"cuda"` or `"cuda:1"`.

        Raises:
            ArgumentError: If this machine has no such device.
        """
        place = devices.found(device)
        for program in self._programs():
            program.network.unbind()
            program.network.mapped = None  # what pays on one device may not on another
        devices.move(self._programs(), place)
        return self

    def _programs(self) -> list[Program]:
        """Return all there are."""
        return [self.program]

    @checked()
    def summary(self) -> dict[str, float]:
        """Count the learned numbers and those of the base model.

        `adapters` are parameters of the guide; `head`, those of a task head that is trained as a point; `base`, those
        of the given model, including its head; `share` is (adapters + head) / base.
        """
        return facts.learned(self.program)

    @checked()
    def record(self) -> dict[str, Any]:
        """Return what is saved with the learned state, ready for JSON."""
        return storage.posterior_record(self)

    def _example(self) -> Mapping[str, Any] | None:
        example = networks.made_up_inputs(self.network.model) if self.example is None else self.example
        return example and to_device(example, self.program.device)

    def _source(self, data: Data, asked: Columns = NOTHING, with_labels: bool = True, name: str = "data") -> Source:
        check_frozen(self.network)  # before the first pass, which may be one that looks at the inputs
        data = given(data, "test", "validation", "train", name=name)
        likelihood = self.program.likelihood
        classes = Classes(self.class_names, self.columns.by_index) if self.class_names else None
        with_labels = with_labels or likelihood.reads_labels
        how = Reading(asked, self.columns, with_labels, classes, self.data_collator)
        with seeded(0):  # a loader that shuffles
            source = Source(data, self.network.model, self.tokenizer, name, likelihood=likelihood, reading=how)
        likelihood.check_read(source.reader)
        return source

    def _run(
        self,
        source: Source,
        num_draws: int,
        seed: int | None,
        batch_size: int,
        center: bool,
        approximation: str | None,
        antithetic: bool = False,
    ) -> Any:
        """Run the network on data at draws, or at the centre, and return its outputs as `_prediction` takes them."""
        parts = self._parts(None if center else num_draws, seed, approximation, antithetic)
        sizes = [part.num_draws for part in parts]
        with seeded(seed):  # a loader that shuffles
            batches = source.batches_by_length(batch_size)
            found = run_parts(parts, batches, source.with_labels, source.context, self._weights(sizes))
        return self._gathered(found, sizes)

    def _predicting(self) -> list[Program]:
        """Return the programs that a prediction runs."""
        return [self.program]

    def _weights(self, sizes: Sequence[int]) -> FloatArray | None:
        """Return the weights of their draws, `[draw]`, given how many each has; None if they are equal."""
        return None

    def _parts(
        self, num_draws: int | None, seed: int | None, approximation: str | None, antithetic: bool
    ) -> list[Part]:
        """Return them with draws of their sites; with None, at their centres."""
        drawn = None if num_draws is None else Drawn(self.program, num_draws, seed, antithetic=antithetic)
        return [self._part(drawn, approximation)]

    def _part(self, drawn: Drawn | None, approximation: str | None) -> Part:
        sites = drawn or centre_sites(self.program)
        return part_of(self.program, sites, approximation or self.method.approximation)

    def _gathered(self, outputs: Any, sizes: Sequence[int]) -> Any:
        """Return their outputs, with how many draws each has, as `_prediction` takes them."""
        return outputs

    def _labelled(
        self,
        source: Source,
        num_draws: int,
        seed: int | None,
        batch_size: int,
        center: bool = False,
        approximation: str | None = None,
        antithetic: bool = False,
    ) -> tuple[Any, np.ndarray]:
        """Return the network's outputs, and the labels, which data has to have."""
        source.check_labels()
        found = self._run(source, num_draws, seed, batch_size, center, approximation, antithetic)
        assert found.labels is not None  # they have been checked
        return found, found.labels

    def _made(self, num_draws: int, seed: int | None, center: bool, approximation: str | None) -> dict[str, Any]:
        """Return what decides, beside the posterior, which function of an example a prediction is."""
        return how_made(self.program, num_draws, center, approximation, seed, self.temperature)

    def _at_temperature(self: S, temperature: float) -> S:
        """Return this posterior at another temperature, without what was decided by."""
        other = copy.copy(self)
        other.temperature, other.held_out = temperature, None
        return other

    @property
    def _likelihood(self) -> Likelihood:
        return self.program.likelihood

    def _prediction(self, outputs: Any, temperature: float | None = None) -> BasePrediction:
        """Make a prediction of outputs, at the posterior's temperature or another."""
        temperature = self.temperature if temperature is None else temperature
        return self.program.likelihood.predict(outputs, temperature, self.class_names)
