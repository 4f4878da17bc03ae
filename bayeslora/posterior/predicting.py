"""Predictions of a posterior, and scores of them."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from bayeslora import generation, rounds
from bayeslora.contracts import ArgumentError, Few
from bayeslora.data import Columns, Source
from bayeslora.generation import Answers, Equivalence, Generation
from bayeslora.isolation import public, seeded
from bayeslora.posterior.state import State
from bayeslora.prediction import centre_sites
from bayeslora.tasks.prediction import BasePrediction
from bayeslora.types import Approximation, BatchSize, Data, NumDraws, Prompts, Seed


class Predicting(State):
    """Predicts, scores and writes."""

    @public()
    def predict(
        self,
        data: Data,
        num_draws: NumDraws | Literal["auto"] = 32,
        *,
        center: bool = False,
        approximation: Approximation | None = None,
        antithetic: bool | None = None,
        seed: Seed | None = 0,
        batch_size: BatchSize = 64,
        text: str | Sequence[str] | None = None,
        label: str | Sequence[str] | None = None,
        id: str | None = None,
    ) -> BasePrediction:
        """Predict the labels of new examples: an equal mixture over draws of the weights.

        The likelihood decides the kind of prediction: a `Prediction` for classes, a `RegressionPrediction` for real
        numbers.

        Args:
            data: As in `fit`; columns are found by the names that they had there, and labels are not looked at.
            num_draws: Draws of the weights; or `"auto"`, for each example 4 (of antithetic draws), 8, 16 or 32: as
                many as settle its class and its probabilities (`rounds.TOLERANCE`), or a number's distribution
                function at its median and at both ends of its 90 % interval; of a mixture, some of each component.
                `prediction.used` says how many.
            center: Whether to predict once, with every site at its guide's mean, at LoRA's cost.
            approximation: `"draws"` runs the network on each draw. `"linear"` runs it once, and backwards once for each
                class but one, and takes the draws through its first-order expansion in the factors: if those are
                Gaussian with covariance C, the logits are N(f, J C Jᵀ), with f those of the centre. It warns if the
                network itself, run on a few draws, disagrees. None for the method's default.
            antithetic: Whether to draw in pairs, one the other's mirror image at the posterior's Gaussian sites: each
                draw has the same law, and averages over a pair vary less ([what that saves](cost.md)). None to do so
                with `"auto"`, if there is such a site.
            seed: Seed of the draws.
            batch_size: Examples per batch.
            text: The column of the texts, or two, if called otherwise than in the fit.
            label: The column of the labels, if called otherwise.
            id: A column that names the rows.

        Raises:
            TypeError: If the data has none of the forms that `fit` takes.
            ValueError: If it is empty, its inputs are not what the network takes, or draws have no mirror images.
        """
        check_pairs(center, antithetic)
        source = self._source(data, Columns.asked(text, label, id), with_labels=False)
        outputs, made, used = self._outputs(source, num_draws, seed, batch_size, center, approximation, antithetic)
        prediction = self._prediction(outputs).decided_by(self.held_out, made)
        return prediction if used is None else prediction.of_rounds(used)

    @public()
    def evaluate(
        self,
        data: Data,
        num_draws: NumDraws | Literal["auto"] = 32,
        *,
        approximation: Approximation | None = None,
        antithetic: bool | None = None,
        seed: Seed | None = 0,
        batch_size: BatchSize = 64,
        text: str | Sequence[str] | None = None,
        label: str | Sequence[str] | None = None,
        id: str | None = None,
    ) -> dict[str, float]:
        """Compute metrics on labelled data, of the draws' average and, prefixed `center_`, of the centre.

        The centre is the prediction with every site at its guide's mean. The metrics depend on the likelihood (see the
        page on tasks); `nll` is always in nats per example. Arguments are those of `predict`. Labels are matched by
        name: the data may have other classes first, or lack some.

        Raises:
            ValueError: If the data has no labels, or a label that the fit did not know.
        """
        source = self._source(data, Columns.asked(text, label, id))
        source.check_labels()
        outputs, *_ = self._outputs(source, num_draws, seed, batch_size, False, approximation, antithetic)
        scores = self._prediction(outputs).scores(outputs.labels)
        found, labels = self._labelled(source, 1, seed, batch_size, True, "draws")
        centre_scores = self._prediction(found).scores(labels)
        return scores | {f"center_{name}": value for name, value in centre_scores.items()}

    def _outputs(
        self,
        source: Source,
        num_draws: int | Literal["auto"],
        seed: int | None,
        batch_size: int,
        center: bool,
        approximation: str | None,
        antithetic: bool | None,
    ) -> tuple[Any, dict[str, Any], np.ndarray | None]:
        """Return the outputs that `predict` is asked for, how they were made, and how many draws each row used.

        That is None unless each needed a number of its own.
        """
        if num_draws == "auto" and not center:
            return self._in_rounds(source, seed, batch_size, approximation, antithetic)
        number = 1 if num_draws == "auto" else num_draws  # at the centre, it has no effect
        outputs = self._run(source, number, seed, batch_size, center, approximation, bool(antithetic))
        return outputs, self._made(number, seed, center, approximation) | in_pairs(antithetic), None

    def _in_rounds(
        self, source: Source, seed: int | None, batch_size: int, approximation: str | None, antithetic: bool | None
    ) -> tuple[Any, dict[str, Any], np.ndarray]:
        """Run as many draws as each example needs."""
        programs = self._predicting()
        pairs = all(program.has_mirrors() for program in programs) if antithetic is None else antithetic
        ends = rounds.ends(len(programs), pairs)
        parts = self._parts(ends[-1] * len(programs), seed, approximation, pairs)
        sizes = [part.num_draws for part in parts]

        def finished(outputs: Any, sizes: Sequence[int]) -> BasePrediction:
            return self._prediction(self._gathered(outputs, sizes))

        weights = self._weights(sizes)
        found, used = rounds.predict(parts, source, ends, finished, seed, batch_size, pairs, weights)
        made = self._made(rounds.MOST, seed, False, approximation) | {"num_draws": "auto"}
        return self._gathered(found, sizes), made | in_pairs(pairs), used

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
                or a mapping of the model's inputs, padded on the left if the model continues its prompt. Or
                conversations, which are answered: a list of messages, several, or records or a table as for `fit`; what
                the assistant says last is left out. All prompts run as one batch.
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

    @public(fields=generation.settings_of)
    def answers(
        self,
        inputs: Prompts,
        num_draws: NumDraws = 8,
        *,
        samples: Few = 1,
        equal: Equivalence = generation.same_words,
        seed: Seed | None = 0,
        **generation_settings: Any,
    ) -> Answers:
        """Sample answers to prompts from every draw, with the uncertainty about each whole answer.

        Tokens are sampled from the network's own probabilities unless settings given here say otherwise, whatever the
        model's `generation_config` has: estimates that take the texts for samples of the mixture, as `Answers` does,
        need that.

        Args:
            inputs: As in `generate`.
            num_draws: Draws of the weights, S; a finite posterior has its members, each once.
            samples: Texts that each draw writes for each prompt. Each is scored under all draws.
            equal: Says of two texts whether they mean the same: by default, whether they are the same but for case,
                punctuation and spaces; `generation.by_embedding` and `generation.by_entailment` make others.
            seed: Seed of the draws and of the tokens.
            generation_settings: Settings of the model's own `generate`, such as `max_new_tokens`.

        Raises:
            ValueError: As `generate`.
        """
        settings = generation.sampling(generation_settings)
        prompts = generation.repeated(generation.encode(inputs, self.network.model, self.tokenizer), samples)
        with seeded(seed):
            sites = self.draw(num_draws, seed=None)
            written = generation.generate(self.program, sites, prompts, False, self.tokenizer, settings)
        return generation.grouped(written, samples, equal)


def check_pairs(center: bool, antithetic: bool | None) -> None:
    """Raise an `ArgumentError` if antithetic pairs are asked for at the centre, which has no draws."""
    if center and antithetic:
        raise ArgumentError("antithetic=True is about draws, and center=True predicts without any: leave one out.")


def in_pairs(antithetic: bool | None) -> dict[str, bool]:
    """Return what says, beside `_made`, that draws are in pairs; nothing if they are not."""
    return {"antithetic": True} if antithetic else {}
