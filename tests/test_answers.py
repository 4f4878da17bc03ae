"""Uncertainty about whole answers, against sums over all texts and estimators written by others."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from transformers import GenerationConfig

from bayeslora.generation import Answers, Generation, by_embedding, by_entailment, same_words
from bayeslora.generation.meaning import meanings
from tests.test_generation import LOUD, PROMPTS, posterior

SETTINGS = {"num_draws": 3, "samples": 4, "max_new_tokens": 4}


def made(log_probs: Any, texts: list[list[str]], writer: Any) -> Answers:
    """Answers to one prompt: `[draw, text, token]` log-probabilities, NaN where the text has ended."""
    given = np.asarray(log_probs, dtype=float)[:, :, None]
    written = ~np.isnan(given[0])
    numbers = {text: index for index, text in enumerate(dict.fromkeys(itertools.chain(*texts)))}
    tokens = np.asarray([[[numbers[text]] * given.shape[-1]] for (text,) in texts])
    generation = Generation(tokens, written, given, given[0], given[0], tuple(map(tuple, texts)))
    meaning = meanings([text for (text,) in texts], same_words)[:, None]
    return Answers(generation, np.asarray(writer), meaning)


NAN = math.nan
SMALL = made(
    np.log([[[0.5, 0.5], [0.2, NAN], [0.2, NAN]], [[0.1, 0.5], [0.6, NAN], [0.6, NAN]]]),
    [["yes"], ["Yes."], ["no"]],
    [0, 1, 1],
)


def test_estimates_are_those_worked_out_by_hand() -> None:
    p = np.asarray([(0.25 + 0.05) / 2, 0.4, 0.4])
    np.testing.assert_allclose(SMALL.log_prob[:, 0], np.log(p))
    np.testing.assert_allclose(SMALL.log_prob_per_token[:, 0], np.log(p) / [2, 1, 1])
    assert SMALL.predictive_entropy(False)[0] == pytest.approx(-np.log(p).mean())
    assert SMALL.predictive_entropy()[0] == pytest.approx(-(np.log(p) / [2, 1, 1]).mean())
    draws = np.asarray([[0.25, 0.2, 0.2], [0.05, 0.6, 0.6]])
    terms = (draws / draws.sum(0) * np.log(draws / p)).sum(0)
    assert SMALL.mutual_information(False)[0] == pytest.approx(terms.mean())
    assert SMALL.mutual_information()[0] == pytest.approx((terms / [2, 1, 1]).mean())
    assert SMALL.disagreement()[0] == pytest.approx(2 / 4)  # of yes–Yes and yes–no, both ways round
    meaning = np.asarray([p[0] + p[1], p[2]])
    share = meaning / meaning.sum()
    assert SMALL.semantic_entropy()[0] == pytest.approx(-(share * np.log(share)).sum())
    assert SMALL.semantic_entropy("frequency")[0] == pytest.approx(-(2 / 3 * np.log(2 / 3) + np.log(1 / 3) / 3))
    assert SMALL.semantic_entropy("monte_carlo")[0] == pytest.approx(-np.log(meaning[[0, 0, 1]]).mean())
    assert SMALL.chosen.tolist() == [1]
    row = SMALL.to_pandas().iloc[0]
    assert (row["text"], row["meanings"]) == ("Yes.", 2)


def test_a_text_that_is_sampled_twice_counts_once() -> None:
    twice = made(np.log([[[0.5], [0.5], [0.2]]]), [["yes"], ["yes"], ["no"]], [0, 0, 0])
    share = np.asarray([5, 2]) / 7
    assert twice.semantic_entropy()[0] == pytest.approx(-(share * np.log(share)).sum())
    assert twice.mutual_information()[0] == pytest.approx(0, abs=1e-12)
    assert twice.disagreement()[0] == 0


def test_texts_are_those_of_each_draw_for_each_prompt() -> None:
    fitted = posterior("GPT2", **LOUD)
    answers = fitted.answers(PROMPTS, **SETTINGS)
    assert answers.writer.tolist() == np.repeat(range(3), 4).tolist()
    assert answers.generation.tokens.shape[:2] == (12, 3)
    assert answers.log_probs.shape == (3, 12, 3)
    # Each text, scored by itself, has the probabilities that it has here.
    for text, prompt in ((0, 0), (5, 1), (11, 2)):
        own = answers.generation.written[text, prompt]
        tokens = answers.generation.tokens[text, prompt][own].tolist()
        rows = {"input_ids": [PROMPTS[prompt] + tokens], "labels": [[-100] * len(PROMPTS[prompt]) + tokens]}
        scored = fitted.predict([{name: value[0] for name, value in rows.items()}], num_draws=3)
        np.testing.assert_allclose(answers.log_probs[:, text, prompt], scored.log_draws.sum(-1), atol=1e-9)
    again = fitted.answers(PROMPTS, **SETTINGS)
    np.testing.assert_array_equal(again.generation.tokens, answers.generation.tokens)
    assert (answers.mutual_information(False) >= 0).all()
    assert (answers.mutual_information(False) <= math.log(3) + 1e-12).all()
    assert (answers.semantic_entropy() <= math.log(12)).all()


def test_estimates_are_right_on_average() -> None:
    """Sums over all texts of one token are exact; estimates from samples of them are close."""
    fitted = posterior("GPT2", **LOUD)
    answers = fitted.answers(PROMPTS[:1], num_draws=3, samples=2000, max_new_tokens=1)
    p = np.exp(np.stack([fitted_log_probs(fitted, PROMPTS[0], draw) for draw in range(3)]))
    mixture = p.mean(0)
    entropy = -(mixture * np.log(mixture)).sum()
    information = entropy + (p * np.log(p)).sum(-1).mean()
    count = 6000
    spread = np.log(mixture).std() * 3
    assert answers.predictive_entropy(False)[0] == pytest.approx(entropy, abs=6 * spread / count**0.5)
    assert answers.mutual_information(False)[0] == pytest.approx(information, abs=6 * math.log(3) / count**0.5)


def fitted_log_probs(fitted: Any, prompt: list[int], draw: int) -> np.ndarray:
    """Log-probabilities of every next token under one of three draws."""
    from tests.test_generation import teacher_forced

    return teacher_forced(fitted, 3, prompt, np.asarray([0]))[draw, 0].numpy()


def test_answers_are_samples_whatever_the_models_own_settings_are() -> None:
    """Many models recommend a temperature, nuclei and penalties; estimates are of the network's own probabilities."""
    fitted = posterior("GPT2", **LOUD)
    plain = fitted.answers(PROMPTS, **SETTINGS)
    own: Any = fitted.network.model
    recommended = {"do_sample": True, "temperature": 0.1, "top_p": 0.5, "top_k": 2, "min_p": 0.5, "num_beams": 2}
    own.generation_config.update(**recommended, repetition_penalty=3.0, no_repeat_ngram_size=1)
    again = fitted.answers(PROMPTS, **SETTINGS)
    np.testing.assert_array_equal(again.generation.tokens, plain.generation.tokens)
    by_config = fitted.answers(PROMPTS, **SETTINGS, generation_config=GenerationConfig(pad_token_id=0))
    np.testing.assert_array_equal(by_config.generation.tokens, plain.generation.tokens)
    asked = fitted.answers(PROMPTS, **SETTINGS, generation_config=GenerationConfig(top_k=1))
    assert all(len(set(map(tuple, rows))) == 1 for rows in asked.generation.tokens[:4].swapaxes(0, 1)), "greedy"


def test_meanings_are_told_apart_as_asked() -> None:
    vectors = {"big": [1, 0.1], "large": [1, 0], "small": [0, 1]}
    by_cosine = by_embedding(lambda texts: np.asarray([vectors[text] for text in texts]))
    assert meanings(list(vectors), by_cosine).tolist() == [0, 0, 1]
    follows = {("a dog", "an animal"), ("a dog", "a hound"), ("a hound", "a dog")}
    both_ways = by_entailment(lambda premise, hypothesis: (premise, hypothesis) in follows)
    assert meanings(["a dog", "an animal", "a hound"], both_ways).tolist() == [0, 1, 0]
    assert meanings(["It's so.", "it s  SO", "", "!", " "], same_words).tolist() == [0, 0, 1, 2, 1]


def test_estimates_are_those_of_lm_polygraph() -> None:
    pytest.importorskip("lm_polygraph")
    from lm_polygraph.estimators.monte_carlo_normalized_sequence_entropy import MonteCarloNormalizedSequenceEntropy
    from lm_polygraph.estimators.monte_carlo_sequence_entropy import MonteCarloSequenceEntropy
    from lm_polygraph.estimators.semantic_entropy import SemanticEntropy

    answers = posterior("GPT2", **LOUD).answers(PROMPTS, **SETTINGS)
    prompts = range(len(PROMPTS))
    rows = [[str(t) for t in answers.generation.tokens[:, prompt].tolist()] for prompt in prompts]
    stats: dict[str, Any] = {
        "sample_log_probs": answers.log_prob.T.tolist(),
        "sample_tokens": [[[0] * length for length in lengths] for lengths in answers.lengths.T],
        "sample_texts": rows,
        "semantic_classes_entail": {
            "sample_to_class": answers.meaning.T.tolist(),
            "class_to_sample": [
                [np.flatnonzero(each == number).tolist() for number in range(each.max() + 1)]
                for each in answers.meaning.T
            ],
        },
    }
    pairs = [
        (answers.predictive_entropy(), MonteCarloNormalizedSequenceEntropy()),
        (answers.predictive_entropy(False), MonteCarloSequenceEntropy()),
        (answers.semantic_entropy("monte_carlo"), SemanticEntropy(use_unique_responses=True)),
        (answers.semantic_entropy("frequency"), SemanticEntropy(class_probability_estimation="frequency")),
    ]
    for own, theirs in pairs:
        np.testing.assert_allclose(own, theirs(stats), rtol=1e-12)
