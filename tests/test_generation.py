"""Texts written by draws and by their average, and how probable their tokens are."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bayeslora import Posterior
from bayeslora.adapters import AdaptedNetwork
from bayeslora.contracts import ArgumentError
from bayeslora.drawing import draw
from bayeslora.methods import make_method
from bayeslora.program import Program
from bayeslora.tasks import CausalLM, Classification, Seq2SeqLM
from tests.helpers import tiny_bert
from tests.methods.conftest import randomise
from tests.tasks.cases import model
from tests.tasks.templates import byte_tokenizer
from tests.test_data import tiny_tokenizer

MODELS: dict[str, Callable[[], nn.Module]] = {
    "GPT2": model("GPT2", "LMHeadModel", eos_token_id=1, pad_token_id=0, initializer_range=0.2),
    "Llama": model("Llama", "ForCausalLM", eos_token_id=1, pad_token_id=0, initializer_range=0.2),
    "T5": model("T5", "ForConditionalGeneration", eos_token_id=1, pad_token_id=0),
}
PROMPTS = [[5, 9, 21, 8], [7, 30], [11, 12, 13]]
LOUD = {"noise_ratio": 30.0}


def posterior(name: str, method: str = "monteclora", tokenizer: Any = None, **fields: Any) -> Posterior:
    """A posterior that no training has made, its adapters far from doing nothing.

    In double precision: loud noise multiplies the rounding of single precision up to what differs between processors.
    """
    base, chosen = MODELS[name]().double(), make_method(method, **fields)
    network = AdaptedNetwork(base, chosen.family, rank=4, alpha=8, num_examples=10)
    likelihood = Seq2SeqLM(60) if name == "T5" else CausalLM(60)
    return Posterior(randomise(Program(network, chosen, likelihood)).eval(), tokenizer=tokenizer)


def teacher_forced(fitted: Posterior, num_draws: int, prompt: list[int], text: np.ndarray) -> Tensor:
    """Log-probabilities of every next token, `[draw, token, vocabulary]`: one draw, one prompt, one pass, no cache."""
    program = fitted.program
    factors = program.factors_at(draw(program, num_draws, seed=0))
    kept, ids = torch.tensor([prompt]), torch.as_tensor(text)[None]
    inputs = {"input_ids": torch.cat([kept, ids], 1)}
    if program.likelihood.name == "seq2seq_lm":
        start = torch.zeros(1, 1, dtype=torch.long)
        inputs = {"input_ids": kept, "decoder_input_ids": torch.cat([start, ids[:, :-1]], 1)}
    logits = []
    for index in range(num_draws):
        one = {name: type(value)(*(factor[index] for factor in value)) for name, value in factors.items()}
        with torch.no_grad():
            logits.append(program.network(one, inputs)[0])
    program.network.unbind()
    first = 0 if "decoder_input_ids" in inputs else len(prompt) - 1
    return torch.stack(logits)[:, first : first + len(text)].log_softmax(-1)


def texts(generation: Any, text: int) -> list[np.ndarray]:
    return [row[kept] for row, kept in zip(generation.tokens[text], generation.written[text], strict=True)]


def given(tokens: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.arange(len(tokens)), torch.as_tensor(tokens)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("method", "fields"), [("lora", {}), ("monteclora", {"noise_ratio": 0.0})])
@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("settings", [{}, {"repetition_penalty": 1.5, "exponential_decay_length_penalty": (2, 1.5)}])
def test_without_noise_it_is_the_merged_model_that_writes(
    name: str, method: str, fields: dict[str, Any], average: bool, settings: dict[str, Any]
) -> None:
    fitted = posterior(name, method, **fields)
    generation = fitted.generate(PROMPTS, num_draws=2, average=average, max_new_tokens=7, **settings)
    assert len(generation.tokens) == (1 if average or method == "lora" else 2)
    merged: Any = fitted.merge()
    for index, prompt in enumerate(PROMPTS):
        expected = merged.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=7, **settings
        )[0, (1 if name == "T5" else len(prompt)) :]
        for text in range(len(generation.tokens)):
            np.testing.assert_array_equal(texts(generation, text)[index], expected)
    assert np.nanmax(generation.epistemic) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("fields", [{"method": "monteclora", **LOUD}, {"method": "lora_dropout", "p": 0.5}])
def test_one_draw_of_the_weights_writes_a_whole_text(name: str, fields: dict[str, Any]) -> None:
    fitted = posterior(name, **fields)
    generation = fitted.generate(PROMPTS, num_draws=3, max_new_tokens=8)
    assert len({tuple(row.ravel()) for row in generation.tokens}) > 1, "draws should differ"
    for index, prompt in enumerate(PROMPTS):
        for text in range(3):
            tokens = texts(generation, text)[index]
            log_probs = teacher_forced(fitted, 3, prompt, tokens)
            np.testing.assert_array_equal(log_probs[text].argmax(-1), tokens)
            of_tokens = log_probs[(slice(None), *given(tokens))]
            np.testing.assert_allclose(generation.log_probs[:, text, index], of_tokens.sum(-1), rtol=0, atol=1e-9)
            entropy = torch.special.entr(log_probs.exp().mean(0)).sum(-1)
            aleatoric = torch.special.entr(log_probs.exp()).sum(-1).mean(0)
            np.testing.assert_allclose(generation.entropy[text, index, : len(tokens)], entropy, rtol=0, atol=1e-9)
            np.testing.assert_allclose(generation.aleatoric[text, index, : len(tokens)], aleatoric, rtol=0, atol=1e-9)
            assert np.isnan(generation.entropy[text, index, len(tokens) :]).all()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("num_draws", [1, 3])
def test_the_average_writes_with_the_draws_averaged_probabilities(name: str, num_draws: int) -> None:
    fitted = posterior(name, **LOUD)
    generation = fitted.generate(PROMPTS, num_draws=num_draws, average=True, max_new_tokens=8)
    assert generation.token_log_probs.shape[:3] == (num_draws, 1, 3)
    for index, prompt in enumerate(PROMPTS):
        tokens = texts(generation, 0)[index]
        log_probs = teacher_forced(fitted, num_draws, prompt, tokens)
        mixture = log_probs.exp().mean(0)
        np.testing.assert_array_equal(mixture.argmax(-1), tokens)
        length = len(tokens)
        np.testing.assert_allclose(
            generation.token_log_probs[:, 0, index, :length],
            log_probs[(slice(None), *given(tokens))],
            rtol=0,
            atol=1e-9,
        )
        np.testing.assert_allclose(
            generation.entropy[0, index, :length], torch.special.entr(mixture).sum(-1), rtol=0, atol=1e-9
        )
        aleatoric = torch.special.entr(log_probs.exp()).sum(-1).mean(0)
        np.testing.assert_allclose(generation.aleatoric[0, index, :length], aleatoric, rtol=0, atol=1e-9)
    assert (np.nanmax(generation.epistemic) > 0.01) == (num_draws > 1)


def test_draws_and_prompts_may_be_as_many_as_tokens() -> None:
    fitted = posterior("Llama", **LOUD)
    together = fitted.generate(PROMPTS[:2], num_draws=2, average=True, min_new_tokens=4, max_new_tokens=4)
    apart = fitted.generate(PROMPTS[:1], num_draws=2, average=True, min_new_tokens=4, max_new_tokens=4)
    assert together.tokens.shape == (1, 2, 4)
    np.testing.assert_allclose(together.token_log_probs[:, :, :1], apart.token_log_probs, rtol=0, atol=1e-9)
    # Without a cache, the tokens of a text become as many as the rows while it is written.
    cached, whole = (
        fitted.generate([PROMPTS[1]], num_draws=4, average=True, min_new_tokens=4, max_new_tokens=4, use_cache=use)
        for use in (True, False)
    )
    np.testing.assert_array_equal(whole.tokens, cached.tokens)
    np.testing.assert_allclose(whole.token_log_probs, cached.token_log_probs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("average", [False, True])
def test_a_text_ends_with_its_end_token(average: bool) -> None:
    fitted = posterior("GPT2", **LOUD)
    settings = {"average": average, "max_new_tokens": 8, "suppress_tokens": [1]}  # 1 is the model's own end
    whole = fitted.generate(PROMPTS, num_draws=3, **settings)
    assert whole.written.all()
    end = int(whole.tokens[0, 0, 3])
    first = int((whole.tokens[0, 0] == end).argmax())
    generation = fitted.generate(PROMPTS, num_draws=3, eos_token_id=end, **settings)
    np.testing.assert_array_equal(texts(generation, 0)[0], whole.tokens[0, 0, : first + 1])
    assert (generation.tokens[~generation.written] == 0).all()
    np.testing.assert_array_equal(
        np.isnan(generation.token_log_probs), np.broadcast_to(~generation.written, generation.token_log_probs.shape)
    )
    total = whole.token_log_probs[:, 0, 0, : first + 1].sum(-1)
    np.testing.assert_allclose(generation.log_probs[:, 0, 0], total, rtol=1e-9)
    np.testing.assert_allclose(generation.log_prob[0, 0], np.log(np.exp(total).mean()), rtol=1e-9)


@pytest.mark.parametrize("average", [False, True])
def test_a_text_ends_with_a_string(average: bool) -> None:
    fitted = posterior("GPT2", tokenizer=byte_tokenizer(), **LOUD)
    settings = {"average": average, "max_new_tokens": 8, "suppress_tokens": [1]}
    whole = fitted.generate(PROMPTS, num_draws=3, **settings)
    assert whole.texts is not None
    word = byte_tokenizer().decode(whole.tokens[0, 0, 3:4])
    first = whole.tokens[0, 0].tolist().index(int(whole.tokens[0, 0, 3]))
    # The end is at once padding, which must not count as a token of the text.
    ended = fitted.generate(PROMPTS, num_draws=3, stop_strings=[word], pad_token_id=1, eos_token_id=1, **settings)
    np.testing.assert_array_equal(texts(ended, 0)[0], whole.tokens[0, 0, : first + 1])
    np.testing.assert_array_equal(np.isnan(ended.token_log_probs[0]), ~ended.written)
    total = whole.token_log_probs[:, 0, 0, : first + 1].sum(-1)
    np.testing.assert_allclose(ended.log_probs[:, 0, 0], total, rtol=1e-9)


@pytest.mark.parametrize(
    ("asked", "message"),
    [("", r"'': every text ends in an empty one"), (["a", ""], "every text"), ("good", "does not know every letter")],
)
def test_strings_that_cannot_be_found_are_refused(asked: Any, message: str) -> None:
    fitted = posterior("GPT2", tokenizer=tiny_tokenizer())
    with pytest.raises(ArgumentError, match=rf"^stop_strings=.*{message}"):
        fitted.generate([[5]], 1, stop_strings=asked)
    fitted.tokenizer = None
    with pytest.raises(ArgumentError, match=r"stop_strings='a': the posterior has no tokenizer: fit with tokenizer=…"):
        fitted.generate([[5]], 1, stop_strings="a")


class OddSum:
    """A stopping criterion of a user's own: the sum of all tokens, those of the prompt included, is odd."""

    def __call__(self, ids: Tensor, scores: Any, **settings: Any) -> Tensor:
        return ids.sum(-1) % 2 == 1


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("settings", [{"average": True}, {}, {"num_beams": 3}])
def test_a_text_ends_where_a_criterion_of_the_users_ends_it(name: str, settings: dict[str, Any]) -> None:
    fitted = posterior(name, **LOUD)
    generation = fitted.generate(
        PROMPTS, 2, max_new_tokens=12, suppress_tokens=[1], stopping_criteria=[OddSum()], pad_token_id=2, **settings
    )
    for text, prompt in np.ndindex(*generation.tokens.shape[:2]):
        start = 0 if name == "T5" else sum(PROMPTS[prompt])
        tokens = texts(generation, text)[prompt]
        odd = (start + tokens.cumsum()) % 2 == 1
        assert not odd[:-1].any()
        assert odd[-1] or len(tokens) == 12
    np.testing.assert_array_equal(np.isnan(generation.token_log_probs[0]), ~generation.written)
    assert (generation.written.sum(-1) < 12).any(), "some texts should end early"


@pytest.mark.parametrize("average", [False, True])
def test_a_string_that_begins_in_the_prompt_ends_a_text(average: bool) -> None:
    fitted = posterior("GPT2", tokenizer=byte_tokenizer(), **LOUD)
    settings = {"average": average, "suppress_tokens": [1], "max_new_tokens": 6}
    whole = fitted.generate(PROMPTS[:2], 1, **settings)
    ids = [PROMPTS[0][-1], int(whole.tokens[0, 0, 0])]
    ended = fitted.generate(PROMPTS[:2], 1, stop_strings=[byte_tokenizer().decode(ids)], **settings)
    assert ended.written[0, 0].sum() == 1
    assert ended.written[0, 1].sum() == 6


@pytest.mark.parametrize("average", [False, True])
def test_tokens_are_sampled_from_the_seed(average: bool) -> None:
    fitted = posterior("GPT2", "lora")
    settings = {"average": average, "max_new_tokens": 8, "do_sample": True, "temperature": 5.0, "top_k": 0}
    before = torch.get_rng_state()
    first, again, other = (fitted.generate(PROMPTS, 4, seed=seed, **settings) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.tokens, again.tokens)
    np.testing.assert_array_equal(first.token_log_probs, again.token_log_probs)
    assert not np.array_equal(first.tokens, other.tokens)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_averages_tokens_are_sampled_from_the_average() -> None:
    fitted = posterior("GPT2", **LOUD)
    many = fitted.generate([PROMPTS[0]] * 4000, 3, average=True, max_new_tokens=1, do_sample=True, top_k=0)
    mixture = teacher_forced(fitted, 3, PROMPTS[0], np.array([0])).exp().mean(0)[0].double().numpy()
    counts = np.bincount(many.tokens.ravel(), minlength=60)
    expected = 4000 * mixture / mixture.sum()
    z = (counts - expected) / np.sqrt(np.maximum(expected * (1 - mixture), 1e-12))
    assert np.abs(z[expected > 25]).max() < 5.5


def test_the_centre_writes_what_the_merged_model_does() -> None:
    fitted = posterior("Llama", **LOUD)
    merged: Any = fitted.merge()
    expected = merged.generate(torch.tensor(PROMPTS[:1]), max_new_tokens=6, do_sample=False)[0, 4:]
    for average in (False, True):
        generation = fitted.generate(PROMPTS[:1], center=True, average=average, max_new_tokens=6)
        assert generation.token_log_probs.shape[:3] == (1, 1, 1)
        np.testing.assert_array_equal(texts(generation, 0)[0], expected)


@pytest.mark.parametrize("average", [False, True])
def test_the_network_is_left_without_factors_and_hooks(average: bool) -> None:
    fitted = posterior("T5", **LOUD)
    network: Any = fitted.network
    fitted.program.train()
    before = network.model.generation_config.to_dict()
    fitted.generate(PROMPTS, 2, average=average, max_new_tokens=2)
    with pytest.raises(TypeError):
        fitted.generate(PROMPTS, 2, average=average, max_new_tokens="two")
    assert all(layer.slot.factors is None for stack in network.stacks for layer in network.layers(stack))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert fitted.program.training
    assert network.model.generation_config.to_dict() == before


@pytest.mark.parametrize("name", ["Llama", "T5"])
def test_texts_go_in_and_come_out(name: str) -> None:
    tokenizer = tiny_tokenizer()
    words = ["good film", "bad"]
    fitted = posterior(name, tokenizer=tokenizer, **LOUD)
    generation = fitted.generate(words, 2, max_new_tokens=5, suppress_tokens=list(range(6, 60)))
    assert tokenizer.padding_side == "right"
    ids = [tokenizer(text)["input_ids"] for text in words]
    by_ids = fitted.generate(ids, 2, max_new_tokens=5, suppress_tokens=list(range(6, 60)))
    np.testing.assert_array_equal(generation.tokens, by_ids.tokens)
    assert generation.texts is not None
    for text in range(2):
        expected = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in texts(generation, text)]
        assert list(generation.texts[text]) == expected
    assert any(any(row) for row in generation.texts)
    one = fitted.generate("good film", 2, max_new_tokens=5, suppress_tokens=list(range(6, 60)))
    np.testing.assert_array_equal(one.tokens[:, 0], generation.tokens[:, 0])


def test_a_mapping_is_the_models_inputs() -> None:
    fitted = posterior("Llama", **LOUD)
    ids = torch.tensor([PROMPTS[0], [0, 0, *PROMPTS[1]]])
    mapping = {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": ids}
    by_mapping, by_ids = (fitted.generate(given, 2, max_new_tokens=4) for given in (mapping, PROMPTS[:2]))
    np.testing.assert_array_equal(by_mapping.tokens, by_ids.tokens)
    assert by_mapping.texts is None


def test_what_is_written_has_the_type_of_the_prompts_last_token() -> None:
    fitted = posterior("GPT2", **LOUD)
    ids = torch.tensor([PROMPTS[0], [0, 0, *PROMPTS[1]]])
    mapping = {"input_ids": ids, "attention_mask": (ids > 0).long(), "token_type_ids": (ids > 8).long()}
    scored, in_passing = (fitted.generate(mapping, 1, average=average, max_new_tokens=4) for average in (False, True))
    np.testing.assert_array_equal(scored.tokens, in_passing.tokens)
    np.testing.assert_allclose(scored.token_log_probs, in_passing.token_log_probs, rtol=0, atol=1e-9)


def test_the_table_has_a_row_per_token() -> None:
    generation = posterior("GPT2", **LOUD).generate(PROMPTS, 2, max_new_tokens=3)
    table = generation.to_pandas()
    assert list(table) == [
        *("text", "prompt", "position", "token"),
        *("p(token)", "entropy", "aleatoric", "epistemic"),
    ]
    assert len(table) == generation.written.sum()
    row = table[(table.text == 1) & (table.prompt == 2) & (table.position == 0)].iloc[0]
    assert row.token == generation.tokens[1, 2, 0]
    assert row["p(token)"] == pytest.approx(np.exp(generation.token_log_probs[:, 1, 2, 0]).mean())
    assert row.entropy == pytest.approx(row.aleatoric + row.epistemic, abs=1e-12)
    assert table.entropy.max() <= math.log(60)


def test_beams_are_for_draws_that_write_by_themselves() -> None:
    fitted = posterior("T5", **LOUD)
    assert fitted.generate(PROMPTS, 2, max_new_tokens=4, num_beams=3).tokens.shape[:2] == (2, 3)
    with pytest.raises(ValueError, match="ask for beam_search"):
        fitted.generate(PROMPTS, 2, average=True, num_beams=3)
    for name in ("Llama", "T5"):  # guidance asks the model for other rows beside these
        with pytest.raises(ValueError, match="or guidance: leave them out"):
            posterior(name, **LOUD).generate(PROMPTS, 2, average=True, max_new_tokens=2, guidance_scale=1.5)


def test_what_does_not_fit_says_so() -> None:
    chosen = make_method("lora")
    classifier = Program(AdaptedNetwork(tiny_bert(), chosen.family), chosen, Classification(3))
    with pytest.raises(ValueError, match="BertForSequenceClassification does not write text"):
        Posterior(classifier).generate(PROMPTS)
    plain = Program(AdaptedNetwork(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))), chosen, Classification(3))
    with pytest.raises(ValueError, match="Sequential does not write text"):
        Posterior(plain).generate(PROMPTS)
    fitted = posterior("GPT2", "lora")
    for wrong, message in [
        ("a text", "no tokenizer"),
        ([], "no prompts"),
        ([1, 2], "not a row of token ids"),
        ([[True]], "not a row of token ids"),
        ({"input_ids": [[True]]}, r"'input_ids' is \(1, 1\), torch.bool: give whole numbers"),
        ([[5], []], "prompt 1 has no tokens"),
        ({"input_ids": np.zeros((1, 0), dtype=int)}, "a prompt has no tokens"),
        ({"input_ids": [[3, 4], [3, 4]], "attention_mask": [[1, 1], [0, 0]]}, "prompt 1 has no tokens"),
        ({"attention_mask": [[1, 1]]}, "give 'input_ids'"),
        ({"input_ids": [[3, 4]], "attention_mask": [[1, 0]]}, "pad them on the left"),
    ]:
        with pytest.raises(ValueError, match=message):
            fitted.generate(wrong)
    with pytest.raises(
        ValueError, match=r"has 4 tokens, and 40 more are to be written, but the model has 40 positions"
    ):
        fitted.generate(PROMPTS, max_new_tokens=40)
    with pytest.raises(ValueError, match="num_return_sequences=2"):
        fitted.generate(PROMPTS, num_return_sequences=2, do_sample=True)
    with pytest.raises(ValueError, match="num_draws=0"):
        fitted.generate(PROMPTS, 0)
