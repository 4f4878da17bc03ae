"""The posterior that a fit returns."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from bayeslora import diagnostics, facts, generation, interop, networks, storage
from bayeslora.adapters import AdaptedNetwork
from bayeslora.contracts import checked
from bayeslora.data import NOTHING, Columns, Reading, Source, to_device
from bayeslora.decisions import HeldOut
from bayeslora.display import Shown
from bayeslora.generation import Generation
from bayeslora.isolation import isolated, public, seeded
from bayeslora.methods import Method
from bayeslora.prediction import best_temperature, centre_sites, distance, draw, how_made, labelled, run
from bayeslora.program import Program
from bayeslora.tasks.classes import Classes
from bayeslora.tasks.prediction import BasePrediction
from bayeslora.types import Approximation, BatchSize, Data, Folder, NumDraws, Prompts, Seed, Tokenizer

if TYPE_CHECKING:
    import arviz as az
    import pandas as pd


class Posterior(Shown):
    """A posterior over the adapters of a network.

    Args:
        program: The fitted program.
        history: What happened in training, a mapping of equally long columns.
        temperature: Divides every logit; see `calibrate`.
        tokenizer: For data that is text.
        class_names: Names of the classes, or None.
        columns: The columns of the training data that were read; None if that is not known.

    Attributes:
        program: Model, guide and ELBO as one module.
        state: What broke the fit off, and where, if it was not finished; None if it was.
        held_out: The rows that predictions decide by; None without `decide`.
        example: Inputs of two examples of the fit, on which merged and exported models are compared; None after `load`.
            Then they are compared on random tokens or pixels, where the model takes them.
    """

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
        self.example: Mapping[str, Any] | None = None
        self.held_out: HeldOut | None = None
        self._history = {} if history is None else history

    @isolated()
    def __deepcopy__(self, memo: dict[int, Any]) -> "Posterior":
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
    def draw(self, num_draws: NumDraws = 32, *, seed: Seed | None = 0) -> dict[str, Tensor]:
        """Draw every site, `[draw, layer, …]`, by site name.

        Args:
            num_draws: Number of draws; a finite posterior returns its members, each once.
            seed: The same seed gives the same draws; None uses and advances torch's global state.
        """
        return draw(self.program, num_draws, seed)

    @public()
    def predict(
        self,
        data: Data,
        num_draws: NumDraws = 32,
        *,
        center: bool = False,
        approximation: Approximation | None = None,
        seed: Seed | None = 0,
        batch_size: BatchSize = 64,
        text: str | Sequence[str] | None = None,
        label: str | None = None,
        id: str | None = None,
    ) -> BasePrediction:
        """Predict the labels of new examples: an equal mixture over draws of the weights.

        The likelihood decides the kind of prediction: a `Prediction` for classes, a `RegressionPrediction` for real
        numbers.

        Args:
            data: As in `fit`; columns are found by the names that they had there, and labels are not looked at.
            num_draws: Draws of the weights.
            center: Whether to predict once, with every site at its guide's mean, at LoRA's cost.
            approximation: `"draws"` runs the network on each draw. `"linear"` runs it once, and backwards once for each
                class but one, and takes the draws through its first-order expansion in the factors: if those are
                Gaussian with covariance C, the logits are N(f, J C Jᵀ), with f those of the centre. It warns if the
                network itself, run on a few draws, disagrees. None for the method's default.
            seed: Seed of the draws.
            batch_size: Examples per batch.
            text: The column of the texts, or two, if called otherwise than in the fit.
            label: The column of the labels, if called otherwise.
            id: A column that names the rows.

        Raises:
            TypeError: If the data has none of the forms that `fit` takes.
            ValueError: If it is empty, or its inputs are not what the network takes.
        """
        sites = centre_sites(self.program) if center else self.draw(num_draws, seed=seed)
        source = self._source(data, Columns.asked(text, label, id), with_labels=False)
        found = run(self.program, source, sites, seed, batch_size, approximation or self.method.approximation)
        made = how_made(self.program, num_draws, center, approximation, seed, self.temperature)
        return self._prediction(found).decided_by(self.held_out, made)

    @public()
    def evaluate(
        self,
        data: Data,
        num_draws: NumDraws = 32,
        *,
        approximation: Approximation | None = None,
        seed: Seed | None = 0,
        batch_size: BatchSize = 64,
        text: str | Sequence[str] | None = None,
        label: str | None = None,
        id: str | None = None,
    ) -> dict[str, float]:
        """Compute metrics on labelled data, of the draws' average and, prefixed `center_`, of the centre.

        The centre is the prediction with every site at its guide's mean. The metrics depend on the likelihood (see the
        page on tasks); `nll` is always in nats per example. Arguments are those of `predict`. Labels are matched by
        name: the data may have other classes first, or lack some.

        Raises:
            ValueError: If the data has no labels, or a label that the fit did not know.
        """
        centre, sites = centre_sites(self.program), self.draw(num_draws, seed=seed)
        source = self._source(data, Columns.asked(text, label, id))
        found, labels = labelled(self.program, source, sites, seed, batch_size, approximation)
        scores = self._prediction(found).scores(labels)
        found, labels = labelled(self.program, source, centre, seed, batch_size, "draws")
        centre_scores = self._prediction(found).scores(labels)
        return scores | {f"center_{name}": value for name, value in centre_scores.items()}

    @public(fields=generation.settings_of)
    def generate(
        self,
        inputs: Prompts,
        num_draws: NumDraws = 8,
        *,
        average: bool = False,
        center: bool = False,
        seed: Seed | None = 0,
        **generation_settings: Any,
    ) -> Generation:
        """Continue prompts with a language model, with the uncertainty about every token.

        Every draw of the weights writes its own text, from the first token to the last. Each text is then scored under
        all draws, which takes one pass over its tokens per draw. With `average=True` the draws write one text together:
        the distribution of each next token is the average of theirs, and its entropy and mutual information come from
        the same pass. Both use the model's cache.

        Args:
            inputs: A text or texts, with the posterior's tokenizer; token ids, as an array or a list for each prompt;
                or a mapping of the model's inputs, padded on the left if the model continues its prompt. All prompts
                run as one batch.
            num_draws: Draws of the weights; a finite posterior has its members, each once.
            average: Whether the draws write one text together.
            center: Whether to write one text, with every site at its guide's mean, at LoRA's cost.
            seed: Seed of the draws, and of the tokens where they are sampled.
            generation_settings: Settings of the model's own `generate`, such as `max_new_tokens`, `do_sample` and
                `temperature`; without `average`, also those of beam search.

        Raises:
            ValueError: If the model does not write text, the prompts do not fit it, or the settings ask for several
                texts per prompt, or for anything but greedy search and sampling of an average.
        """
        prompts = generation.encode(inputs, self.network.model, self.tokenizer)
        with seeded(seed):  # tokens are sampled from the random state after the draws
            sites = centre_sites(self.program) if center else self.draw(num_draws, seed=None)
            return generation.generate(self.program, sites, prompts, average, self.tokenizer, generation_settings)

    @public()
    def calibrate(
        self,
        validation: Data,
        num_draws: NumDraws = 32,
        *,
        approximation: Approximation | None = None,
        seed: Seed | None = 0,
        batch_size: BatchSize = 64,
    ) -> "Posterior":
        """Return a new posterior whose logits are divided by the temperature that fits held-out data best.

        The temperature T minimises the NLL of the mean over draws of softmax(logits / T): probabilities remain the
        average of the draws' probabilities, and entropy the sum of its two parts. This posterior is not changed. The
        labelled data are rows that the fit has not seen; the other arguments are those of `predict`.

        Raises:
            ValueError: If the likelihood has no logits that a temperature could divide.

        References:
            Guo et al. (2017), [On Calibration of Modern Neural Networks](https://arxiv.org/abs/1706.04599).
        """
        likelihood = self.program.likelihood
        if not likelihood.has_temperature:
            raise ValueError(f"The likelihood {likelihood.name!r} has no temperature: there is nothing to calibrate.")
        sites, source = self.draw(num_draws, seed=seed), self._source(validation)
        found, labels = labelled(self.program, source, sites, seed, batch_size, approximation)
        calibrated = copy.copy(self)
        calibrated.temperature, calibrated.held_out = best_temperature(likelihood, found, labels), None
        return calibrated

    @public()
    def decide(
        self,
        validation: Data,
        num_draws: NumDraws = 32,
        *,
        center: bool = False,
        approximation: Approximation | None = None,
        seed: Seed = 0,
        batch_size: BatchSize = 64,
    ) -> "Posterior":
        """Keep what is predicted for held-out rows, so that predictions from now on can `abstain` and give `sets`.

        Predict with the same arguments: what is promised holds for the same draws. `calibrate` first, on other rows.
        The rows are labelled, the fit has not seen them, and new rows will be like them. Returns this posterior; raises
        a ValueError if this kind of label knows no such decisions.
        """
        sites = centre_sites(self.program) if center else self.draw(num_draws, seed=seed)
        found, labels = labelled(self.program, self._source(validation), sites, seed, batch_size, approximation)
        made = how_made(self.program, num_draws, center, approximation, seed, self.temperature)
        self.held_out = self._prediction(found).decided_by(None, made).as_held_out(labels)
        return self

    @public()
    def distance(self, data: Data, familiar: Data, *, batch_size: BatchSize = 64) -> np.ndarray:
        """Return how far inputs are from familiar ones: Mahalanobis distances of features at the centre, `[example]`.

        Features are the inputs of the network's output layer, which has to be linear. The distance is that to the
        nearest mean of a class of `familiar`, data such as those of the fit, in standard deviations of features around
        their class's mean; if that has no classes, to the mean of all. Padding and the labels of `data` do not count.
        """
        return distance(self.program, self._source(data, with_labels=False), self._source(familiar), batch_size)

    @public()
    def to_arviz(
        self,
        data: Data | None = None,
        num_draws: NumDraws = 100,
        *,
        seed: Seed | None = 0,
        batch_size: BatchSize = 64,
        raw: bool = False,
        per_token: bool = False,
    ) -> "az.InferenceData":
        """Return draws as arviz groups: `posterior`, and, with data, predictions, log-likelihoods and labels.

        The posterior group holds small, meaningful numbers per layer: `delta_norm`, ‖ΔW‖_F; `noise_to_signal`, the norm
        of its difference from the centre over that of the centre; and the method's own (of MonteCLoRA `weights`, π, and
        `mean_variance`, tr Σ / r). Each stack has dimensions of its own, with module names as coordinates.

        Args:
            data: Labelled data, on which the network runs once a draw; None for the posterior group alone.
            num_draws: Draws of the weights.
            seed: Seed of the draws.
            batch_size: Examples per batch.
            raw: Whether to add every site as drawn, which is large, and slow to summarise.
            per_token: Whether `log_likelihood` has a term per token, where labels are tokens, instead of one per
                example. `az.loo` then leaves out tokens, which are not independent of the rest of their example.
        """
        sites = self.draw(num_draws, seed=seed)
        if data is None:
            return diagnostics.to_arviz(self.program, sites, raw=raw)
        found, labels = labelled(self.program, self._source(data), sites, seed, batch_size, "draws")
        observed = diagnostics.Observed.of(self._prediction(found), labels, seed, per_token)
        return diagnostics.to_arviz(self.program, sites, observed, raw)

    @checked()
    def summary(self) -> dict[str, float]:
        """Count the learned numbers and those of the base model.

        `adapters` are parameters of the guide; `head`, those of a task head that is trained as a point; `base`, those
        of the given model, including its head; `share` is (adapters + head) / base.
        """
        return facts.learned(self.program)

    @public()
    def merge(self) -> nn.Module:
        """Fold the centre's adapters into the weights of a plain model, for one prediction at the base model's cost.

        Raises:
            ValueError: If base layers are quantised, or the model differs from the centre on `example`.
        """
        return interop.merge(self.network, self.program.factors_at(self.program.centre()), self._example())

    @public()
    def export_peft(self, folder: Folder, num_draws: NumDraws | None = None, *, seed: Seed | None = 0) -> list[Path]:
        """Write adapters and task head as ordinary PEFT LoRA adapters; DoRA's as PEFT's DoRA.

        Beside them go the tokenizer, if there is one, and a card. Where PEFT is installed, it reads the first adapter
        back, and its layers, and after a fit its logits, are compared with ours. A temperature is not folded in.

        Args:
            folder: Where to write.
            num_draws: Draws to write, each to a folder of its own, `draw-0`, `draw-1`, …; None for the centre, in
                `folder` itself. A finite posterior writes its members.
            seed: Seed of the draws.

        Returns:
            The folders written, each for `PeftModel.from_pretrained(base, …)`.

        Raises:
            ValueError: If the adapters have no form in PEFT's LoRA, or PEFT reads something else.
        """
        sites = self.program.centre() if num_draws is None else self.draw(num_draws, seed=seed)
        about = interop.About(self.method.name, temperature=self.temperature)
        settings: dict[str, Any] = {"about": about, "tokenizer": self.tokenizer, "batch": self._example()}
        return interop.export_draws(self.program, sites, Path(folder), num_draws is not None, **settings)

    @public()
    def save(self, folder: Folder) -> None:
        """Write adapters, head, method and history: safetensors and JSON, and the tokenizer's own files.

        All of it takes effect together, by one rename: whoever loads from the folder, during the save or after the
        process was killed in it, gets the posterior that was there before or this one.

        Raises:
            NotSavedError: If a file cannot be written; what was saved there before is as it was.
        """
        tensors = storage.state(self.program) | {"fingerprint": storage.fingerprint(self.network)}
        tensors |= storage.held_out_state(self.held_out) | {
            f"history/{name}": torch.tensor(column, dtype=torch.float64) for name, column in self._history.items()
        }
        storage.save_files(folder, tensors, self.record(), self.tokenizer)

    def _example(self) -> Mapping[str, Any] | None:
        example = networks.made_up_inputs(self.network.model) if self.example is None else self.example
        return example and to_device(example, self.program.device)

    @checked()
    def record(self) -> dict[str, Any]:
        """Return what is saved with the learned state, ready for JSON."""
        return storage.posterior_record(self)

    def _source(self, data: Data, asked: Columns = NOTHING, with_labels: bool = True) -> Source:
        likelihood = self.program.likelihood
        classes = self.class_names and Classes(self.class_names, self.columns.by_index)
        how = Reading(asked, self.columns, with_labels or likelihood.reads_labels, classes or None)
        with seeded(0):  # a loader that shuffles
            return Source(data, self.network.model, self.tokenizer, likelihood=likelihood, reading=how)

    def _prediction(self, outputs: Any) -> BasePrediction:
        return self.program.likelihood.predict(outputs, self.temperature, self.class_names)
