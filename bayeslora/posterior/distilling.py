"""A posterior at the price of one pass."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bayeslora import distilling
from bayeslora.contracts import Scale
from bayeslora.data import Columns, Source
from bayeslora.isolation import public, seeded
from bayeslora.methods import Distilled
from bayeslora.posterior.predicting import Predicting
from bayeslora.runaway import DivergedError
from bayeslora.tasks.prediction import BasePrediction
from bayeslora.types import BatchSize, Data, Epochs, NumDraws, Seed

if TYPE_CHECKING:
    from bayeslora.posterior import Posterior


class Distilling(Predicting):
    """Distils."""

    @public()
    def distil(
        self,
        data: Data,
        num_draws: NumDraws = 32,
        *,
        spread: bool = True,
        epochs: Epochs | None = None,
        learning_rate: Scale | None = None,
        batch_size: BatchSize = 16,
        seed: Seed = 0,
        text: str | Sequence[str] | None = None,
        label: str | Sequence[str] | None = None,
        id: str | None = None,
    ) -> "Posterior":
        r"""Return a student: a posterior of one LoRA, whose draws cost one pass together and predict what these do.

        Its points learn the average over draws: they minimise the divergence of their distribution of the label from
        that of the draws' mean logits. Then its output layer gets a Gaussian whose logits have, at each input, the
        variance of the draws' logits. The student is saved, merged (at its centre), exported, calibrated and asked for
        decisions as any posterior. Its method is `Distilled`.

        Args:
            data: Inputs like those to be predicted, as in `predict`: those of the fit, and as many without a label as
                there are. Labels are not looked at.
            num_draws: Draws of this posterior to learn from.
            spread: Whether draws of the student differ. Without, it has one, whose probabilities are the average's:
                a plain model after `merge`, with no epistemic part.
            epochs: Passes over the data; by default as many as make 1000 steps, from 3 to 30.
            learning_rate: Peak rate of AdamW, decaying linearly to 0; by default that of a fit.
            batch_size: Examples per step.
            seed: Seed of the draws and of the data's order.
            text: The column of the texts, or two, if called otherwise than in the fit.
            label: The column of the labels, if called otherwise.
            id: A column that names the rows.

        Raises:
            ValueError: If the likelihood's logits cannot be told from a prediction (those of classification,
                multilabel, ordinal and real labels can), or the network's logits are not those of a linear output
                layer, which could be given a spread.
            DivergedError: If the loss becomes NaN or infinite, or runs away; its posterior is this one, unchanged.
        """
        distilling.check(self._likelihood)
        source = self._source(data, Columns.asked(text, label, id), with_labels=False)
        prediction = self._prediction(self._run(source, num_draws, seed, distilling.BATCH, False, None))
        settings = distilling.Settings(spread, epochs, learning_rate, int(batch_size))
        return self._distilled(source, prediction, settings, seed)

    def _distilled(
        self, source: Source, prediction: BasePrediction, settings: distilling.Settings, seed: int
    ) -> "Posterior":
        """Return the student of a prediction of data."""
        from bayeslora.posterior import Posterior

        start = self._start()
        try:
            with seeded(seed):
                program, history = distilling.distil(start.program, source, prediction, Distilled(), settings)
        except DivergedError as error:
            error.posterior = self
            raise
        student = Posterior(program, history, 1.0, start.tokenizer, start.class_names, start.columns)
        student.example = start.example
        return student

    def _start(self) -> Predicting:
        """Return the posterior at whose centre a student starts."""
        return self
