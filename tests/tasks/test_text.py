"""Tasks on text of varied length, from names, and with tokenizers that lack something."""

import copy
import logging
import warnings
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from transformers import PreTrainedTokenizerFast

import bayeslora
from bayeslora import tasks as likelihoods
from bayeslora.data import Source
from bayeslora.loading import with_padding
from bayeslora.methods import Method, make_method
from tests.helpers import tiny_gpt2
from tests.tasks.cases import model
from tests.tasks.templates import byte_tokenizer
from tests.test_data import LABELS, TEXTS, Rows, tiny_tokenizer

LENGTHS = [2, 1, 4, 3, 1]
"""Words of each text."""


def fit(given: Any, data: Any, method: Any = "lora", **settings: Any) -> bayeslora.Posterior:
    settings = {"rank": 2, "epochs": 1, "learning_rate": 1e-2, "progress": False} | settings
    return bayeslora.fit(given, data, method, **settings)


def tagged() -> datasets.Dataset:
    """Texts with a class for each word."""
    encoded = tiny_tokenizer()(TEXTS)
    labels = [[word % 2 for word in words] for words in encoded["input_ids"]]
    columns = {name: encoded[name] for name in ("input_ids", "attention_mask")}
    return datasets.Dataset.from_dict({**columns, "labels": labels})


def questions() -> datasets.Dataset:
    """Texts with the first and last word of an answer."""
    rows = tagged().remove_columns("labels")
    return rows.add_column("start_positions", [0] * 5).add_column("end_positions", [n - 1 for n in LENGTHS])


def choices() -> datasets.Dataset:
    """Two texts for each example."""
    rows = tagged()
    pairs = [[i, (i + 1) % 5] for i in range(5)]
    columns = {name: [[rows[name][i] for i in pair] for pair in pairs] for name in ("input_ids", "attention_mask")}
    return datasets.Dataset.from_dict({**columns, "label": LABELS})


def no_padding() -> PreTrainedTokenizerFast:
    """A tokenizer with a token that ends a text, and none that pads."""
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.eos_token = "very"
    return tokenizer


# Batches


@pytest.mark.parametrize("side", ["left", "right"])
def test_labels_of_tokens_are_padded_as_the_tokens_are(side: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = side
    batch = next(Source(tagged(), model("Bert", "ForTokenClassification")(), tokenizer).batches(5))
    assert batch["labels"].shape == batch["input_ids"].shape == (5, 4)
    seen = batch["labels"] != -100
    assert torch.equal(seen, batch["attention_mask"] == 1)
    assert torch.equal(batch["labels"][seen], batch["input_ids"][seen] % 2)


@pytest.mark.parametrize("family", ["GPT2", "Llama"])
def test_padding_on_the_left_changes_no_token_of_a_causal_model(family: str) -> None:
    # A decoder with a table of positions counts padding, unless it is told the positions.
    network = model(family, "LMHeadModel" if family == "GPT2" else "ForCausalLM")().double()
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"
    batch = next(Source(TEXTS, network, tokenizer).about(likelihoods.CausalLM).batches(5))
    assert not batch["attention_mask"][:, 0].all()
    batch.pop("labels")
    with torch.no_grad():
        logits = network(**batch).logits
        batch.pop("position_ids")
        for index, mask in enumerate(batch["attention_mask"] == 1):
            alone = network(**{name: value[index, mask][None] for name, value in batch.items()}).logits[0]
            torch.testing.assert_close(logits[index, mask], alone, rtol=0, atol=1e-10)


def test_two_columns_of_positions_become_one_of_labels() -> None:
    network = model("Bert", "ForQuestionAnswering")()
    expected = [[0, n - 1] for n in LENGTHS]
    table = questions()
    inputs = {name: torch.ones(5, 4, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    positions = {name: torch.as_tensor(table[name][:]) for name in ("start_positions", "end_positions")}
    for data in (table, {**inputs, **positions}, list(table)):
        data = [dict(row) for row in data] if isinstance(data, list) else data
        source = Source(Rows(data) if isinstance(data, list) else data, network, tiny_tokenizer())
        assert next(source.batches(5))["labels"].tolist() == expected


def test_choices_are_padded_together() -> None:
    batch = next(Source(choices(), model("Bert", "ForMultipleChoice")(), tiny_tokenizer()).batches(5))
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (5, 2, 4)
    assert batch["attention_mask"].sum(-1)[:, 0].tolist() == LENGTHS
    assert batch["labels"].tolist() == LABELS


def test_a_causal_models_texts_are_their_own_labels_and_padding_is_none() -> None:
    source = Source(TEXTS, model("GPT2", "LMHeadModel")(), tiny_tokenizer())
    source = source.about(likelihoods.CausalLM)
    batch = next(source.batches(5))
    assert torch.equal(batch["labels"], batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100))


@pytest.mark.parametrize("form", ["lists", "table"])
def test_texts_are_labels_of_an_encoder_decoder(form: str) -> None:
    targets = ["bad", "good film", "bad", "good", "film"]
    data = (TEXTS, targets) if form == "lists" else datasets.Dataset.from_dict({"text": TEXTS, "labels": targets})
    batch = next(Source(data, model("T5", "ForConditionalGeneration")(), tiny_tokenizer()).batches(2))
    assert batch["labels"].tolist() == [[3, -100], [2, 4]]
    assert batch["decoder_input_ids"].tolist() == [[0, 3], [0, 2]]


# Predictions


@pytest.mark.parametrize(
    ("family", "head", "data"),
    [
        ("Bert", "ForTokenClassification", tagged()),
        ("Bert", "ForQuestionAnswering", questions()),
        ("Bert", "ForMultipleChoice", choices()),
        ("GPT2", "LMHeadModel", TEXTS),
        ("Llama", "ForCausalLM", (TEXTS, LABELS)),
        ("T5", "ForConditionalGeneration", (TEXTS, TEXTS[::-1])),
    ],
    ids=["token", "span", "choice", "causal", "letters", "seq2seq"],
)
def test_predictions_do_not_depend_on_the_batch(family: str, head: str, data: Any) -> None:
    given = {"likelihood": likelihoods.AnswerLetters([2, 3])} if family == "Llama" else {}
    posterior = fit(model(family, head)(), data, tokenizer=tiny_tokenizer(), **given)
    together, apart = (posterior.predict(data, batch_size=size) for size in (5, 1))
    np.testing.assert_allclose(together.draws, apart.draws, atol=1e-5)
    scores = posterior.evaluate(data, batch_size=2)
    assert scores == pytest.approx(posterior.evaluate(data, batch_size=5), rel=1e-4, nan_ok=True)
    if hasattr(together, "rows"):
        skipped = 1 if family == "GPT2" else 0  # the first token has none before it
        lengths = LENGTHS[::-1] if family == "T5" else LENGTHS
        assert together.rows.position.tolist() == [i for n in lengths for i in range(skipped, n)]


def test_arviz_has_a_term_per_example_or_per_token() -> None:
    import arviz as az

    posterior = fit(model("Bert", "ForTokenClassification")(), tagged(), "monteclora", tokenizer=tiny_tokenizer())
    idata = posterior.to_arviz(tagged(), num_draws=40)
    assert idata.log_likelihood["labels"].shape == (1, 40, 5)
    assert idata.posterior_predictive["tokens"].shape == (1, 40, sum(LENGTHS))
    assert idata.observed_data["tokens"].shape == (sum(LENGTHS),)
    terms = idata.log_likelihood["labels"].to_numpy()[0]
    nll = posterior.evaluate(tagged(), num_draws=40)["nll"]
    assert nll == pytest.approx(-np.log(np.exp(terms).mean(0)).mean(), rel=1e-5)
    per_token = posterior.to_arviz(tagged(), num_draws=40, per_token=True)
    np.testing.assert_allclose(per_token.log_likelihood["tokens"].sum("token"), terms.sum(1)[None], rtol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about how well importance sampling works
        assert np.isfinite(az.loo(idata).elpd_loo)


@pytest.mark.parametrize("head", ["ForTokenClassification", "ForQuestionAnswering"])
def test_a_temperature_serves_every_kind_of_class(head: str) -> None:
    data = tagged() if "Token" in head else questions()
    posterior = fit(model("Bert", head)(), data, tokenizer=tiny_tokenizer())
    assert posterior.calibrate(data).evaluate(data)["nll"] <= posterior.evaluate(data)["nll"] + 1e-9


def test_a_language_models_probabilities_are_not_kept_to_calibrate() -> None:
    posterior = fit(model("GPT2", "LMHeadModel")(), TEXTS, tokenizer=tiny_tokenizer())
    with pytest.raises(ValueError, match="'causal_lm' has no temperature"):
        posterior.calibrate(TEXTS)


# Names


@pytest.mark.parametrize(
    ("likelihood", "body", "data", "kind"),
    [
        (None, "ForTokenClassification", tagged(), "token_classification"),
        (None, "ForQuestionAnswering", questions(), "question_answering"),
        ("multiple_choice", "ForMultipleChoice", choices(), "multiple_choice"),
        (None, "Model", (TEXTS, [[1.0, 0, 1]] * 5), "multilabel"),
        ("causal_lm", "LMHeadModel", TEXTS, "causal_lm"),
        ("answer_letters", "LMHeadModel", (TEXTS, LABELS), "answer_letters"),
        ("seq2seq_lm", "ForConditionalGeneration", (TEXTS, TEXTS), "seq2seq_lm"),
    ],
    ids=["token", "span", "choice", "multilabel", "causal", "letters", "seq2seq"],
)
def test_a_name_is_loaded_with_the_head_that_the_data_needs(
    likelihood: str | None, body: str, data: Any, kind: str, tmp_path: Path
) -> None:
    family = {"LMHeadModel": "GPT2", "ForConditionalGeneration": "T5"}.get(body, "Bert")
    model(family, body)().save_pretrained(tmp_path)
    letters(tiny_tokenizer()).save_pretrained(tmp_path)
    posterior = fit(str(tmp_path), data, likelihood=likelihood)
    assert posterior.program.likelihood.name == kind
    assert type(posterior.network.model).__name__.endswith(body if body != "Model" else "ForSequenceClassification")
    posterior.save(tmp_path / "out")
    loaded = bayeslora.load(tmp_path / "out")
    np.testing.assert_array_equal(loaded.predict(data).draws, posterior.predict(data).draws)


def test_images_are_loaded_by_name_without_a_tokenizer(tmp_path: Path) -> None:
    model("ViT", "ForImageClassification")().save_pretrained(tmp_path)
    columns = {"pixel_values": torch.randn(6, 3, 8, 8).tolist(), "label": [0, 1, 2, 0, 1, 2]}
    posterior = fit(str(tmp_path), datasets.Dataset.from_dict(columns))
    posterior.save(tmp_path / "out")
    assert bayeslora.load(tmp_path / "out").predict(datasets.Dataset.from_dict(columns)).probs.shape == (6, 3)


def letters(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    tokenizer.add_tokens(["A", "B"])
    return tokenizer


def test_answers_are_the_tokens_of_their_letters() -> None:
    tokenizer = letters(tiny_tokenizer())
    network = model("GPT2", "LMHeadModel")()
    posterior = fit(network, (TEXTS, LABELS), tokenizer=tokenizer)
    assert posterior.program.likelihood.token_ids == tokenizer.convert_tokens_to_ids(["A", "B"])
    with pytest.raises(ValueError, match="not known which tokens stand for the answers"):
        likelihoods.AnswerLetters.fitting(torch.zeros(2, 3, 9), LABELS)
    with pytest.raises(ValueError, match="two or more different tokens"):
        likelihoods.AnswerLetters([4, 4])


@pytest.mark.parametrize(
    ("answers", "tokens"),
    [
        (["A", "B"], "A B"),
        ([" A", "B", "  C"], "A B C"),
        ([" yes", " no"], "y n"),
        (["(A)", "(B)"], "A B"),
        (["option one", "option two"], "o t"),
        ([" A", " A"], None),
        (["A1", "A2", "B1"], None),
    ],
)
def test_the_token_that_tells_an_answer_from_others_is_read(answers: list[str], tokens: str | None) -> None:
    tokenizer = byte_tokenizer()
    if tokens is None:
        with pytest.raises(ValueError, match="no token tells them all apart"):
            likelihoods.AnswerLetters.of(tokenizer, answers)
    else:
        found = likelihoods.AnswerLetters.of(tokenizer, answers)
        assert found.token_ids == tokenizer.convert_tokens_to_ids(tokens.split())


# Padding


def test_a_text_is_padded_with_what_ends_it_if_there_is_nothing_else(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    tokenizer, network = no_padding(), tiny_gpt2(num_labels=2, pad_token_id=None)
    with caplog.at_level(logging.INFO, logger="bayeslora"):
        posterior = fit(network, (TEXTS, LABELS), tokenizer=tokenizer)
    assert "padding with 'very'" in caplog.text
    assert tokenizer.pad_token is None
    assert network.config.pad_token_id is None
    assert posterior.network.model.config.pad_token_id == tokenizer.eos_token_id
    together, apart = (posterior.predict(TEXTS[:2], batch_size=size).draws for size in (2, 1))
    np.testing.assert_allclose(together, apart, atol=1e-5)
    posterior.save(tmp_path)
    loaded = bayeslora.load(tmp_path, network)
    np.testing.assert_array_equal(loaded.predict(TEXTS).draws, posterior.predict(TEXTS).draws)


def test_a_tokenizer_that_ends_no_text_pads_with_what_begins_it() -> None:
    tokenizer = byte_tokenizer("<s>", None)
    assert tokenizer.pad_token is None
    posterior = fit(model("GPT2", "LMHeadModel", vocab_size=300)(), TEXTS, likelihood="causal_lm", tokenizer=tokenizer)
    assert posterior.tokenizer is not None
    assert posterior.tokenizer.pad_token == "<s>"


def test_what_can_pad_is_left_as_it_is() -> None:
    tokenizer, network = tiny_tokenizer(), tiny_gpt2()
    assert with_padding(network, tokenizer) == (network, tokenizer)
    assert with_padding(network, None) == (network, None)


# A likelihood of one's own


def counts(logits: torch.Tensor, labels: torch.Tensor | None) -> None:
    pyro.sample("labels", dist.Poisson(logits[..., 0].exp()), obs=labels)


@pytest.mark.parametrize("method", [make_method("lora"), make_method("monteclora", noise_ratio=0.3)])
def test_a_callable_observes_the_labels(method: Method, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Linear(8, 1))
    x = torch.randn(200, 3)
    y = torch.poisson((1 + 0.7 * x[:, 0]).exp())
    posterior = fit(network, (x, y), method, likelihood=counts, epochs=15, rank=1, learning_rate=2e-2, batch_size=32)
    prediction = posterior.predict(x, num_draws=4)
    assert np.corrcoef(prediction.predicted, (1 + 0.7 * x[:, 0]).exp())[0, 1] > 0.9
    scores = posterior.evaluate((x, y), num_draws=4)
    batch = {"input": x, "labels": y}
    with torch.no_grad():
        assert scores["center_nll"] == pytest.approx(posterior.program.eval()(**batch).loss.item(), rel=1e-5)
    posterior.save(tmp_path)
    with pytest.raises(ValueError, match=r"a callable as likelihood: pass it, load\(…, likelihood=…\)"):
        bayeslora.load(tmp_path, network)
    loaded = bayeslora.load(tmp_path, network, likelihood=counts)
    np.testing.assert_array_equal(loaded.predict(x, num_draws=4).draws, prediction.draws)
    assert prediction.sample(seed=1).shape == (1 if method.name == "lora" else 4, 200)


class Laplace(torch.nn.Module):
    """Real labels with a learned scale."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = torch.nn.Parameter(torch.zeros(()))

    def forward(self, logits: torch.Tensor, labels: torch.Tensor | None) -> None:
        pyro.sample("labels", dist.Laplace(logits[..., 0], self.log_scale.exp()), obs=labels)


def test_what_a_callable_module_learns_is_saved(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Linear(8, 1))
    data = (torch.randn(40, 3), 0.01 * torch.randn(40))
    given = Laplace()
    posterior = fit(network, data, likelihood=given, epochs=4, rank=1)
    assert given.log_scale == 0
    scale = posterior.program.likelihood.make.log_scale
    assert scale < -0.1
    posterior.save(tmp_path)
    loaded = bayeslora.load(tmp_path, network, likelihood=Laplace())
    assert loaded.program.likelihood.make.log_scale == scale
    assert loaded.evaluate(data) == posterior.evaluate(data)


def test_a_callable_that_does_not_fit_says_so() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Linear(8, 2))
    data = (torch.randn(8, 3), torch.zeros(8, 2))

    def apart(logits: torch.Tensor, labels: torch.Tensor | None) -> None:
        pyro.sample("labels", dist.Normal(logits, 1.0), obs=labels)

    def misnamed(logits: torch.Tensor, labels: torch.Tensor | None) -> None:
        pyro.sample("y", dist.Normal(logits, 1.0).to_event(1), obs=labels)

    with pytest.raises(ValueError, match=r"'observation' does not fit outputs \(2, 2\).*gives \(2, 2\) log-l"):
        fit(network, data, likelihood=apart)
    with pytest.raises(ValueError, match=r"makes sites \['y'\]: let it make one, 'labels'"):
        fit(network, data, likelihood=misnamed)
    with pytest.raises(ValueError, match="needs the callable itself"):
        fit(network, data, likelihood="observation")


def test_models_are_left_as_they_were() -> None:
    network = model("GPT2", "LMHeadModel")()
    before = copy.deepcopy(network.state_dict())
    fit(network, TEXTS, tokenizer=tiny_tokenizer())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
