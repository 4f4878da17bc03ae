"""Likelihoods: what is learned with them, what they infer, and what they refuse."""

import logging
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bayeslora
from bayeslora.adapters import AdaptedNetwork
from bayeslora.methods import make_method
from bayeslora.program import Program
from bayeslora.tasks import (
    LIKELIHOODS,
    CausalLM,
    Classification,
    Likelihood,
    MultiLabel,
    MultipleChoice,
    Observation,
    Ordinal,
    QuestionAnswering,
    Regression,
    StudentT,
    TokenClassification,
)
from bayeslora.tasks.base import NUM_SAMPLES
from tests.helpers import tiny_bert, tiny_llama, tokens
from tests.test_data import TEXTS, tiny_tokenizer


def line(num_outputs: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Linear(8, num_outputs))


def numbers(num_examples: int = 160, noise: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(num_examples, 3))
    return x, 2 * x[:, 0] - x[:, 1] + noise * generator.normal(size=num_examples)


def fit(model: nn.Module, data: Any, method: str = "lora", **settings: Any) -> bayeslora.Posterior:
    settings = {"rank": 1, "epochs": 20, "learning_rate": 2e-2, "progress": False} | settings
    return bayeslora.fit(model, data, method, **settings)


# How far two predictions are apart

SIZE = 400


def categorical_divergence(logits: torch.Tensor, others: torch.Tensor) -> float:
    p, q = (values.softmax(-1).mean(0) for values in (logits, others))
    return float(torch.where(p > 0, p * (p / q).log(), 0).sum(-1).mean())


def impossible(logits: torch.Tensor) -> torch.Tensor:
    return logits.masked_fill(torch.arange(3) == 2, -math.inf)


@pytest.mark.parametrize(
    ("likelihood", "draws", "num_outputs", "last", "exact"),
    [
        (Classification(3), 4, (3,), None, categorical_divergence),
        (MultipleChoice(3), 4, (3,), impossible, categorical_divergence),
        (Regression(1.5), 1, (), None, lambda a, b: float((a - b).square().mean() / (2 * 1.5**2))),
        (
            MultiLabel(3),
            1,
            (3,),
            None,
            lambda a, b: float((a.sigmoid() * (a - b) - F.softplus(a) + F.softplus(b)).sum(-1).mean()),
        ),
        (
            Observation(lambda logits, y: pyro.sample("labels", dist.Poisson(logits[..., 0].exp()), obs=y)),
            1,
            (1,),
            None,
            lambda a, b: float((a.exp() * (a - b) - a.exp() + b.exp()).mean()),
        ),
    ],
    ids=["classes", "choices", "real numbers", "several labels", "counts"],
)
def test_the_divergence_of_two_predictions(
    likelihood: Likelihood, draws: int, num_outputs: tuple[int, ...], last: Any, exact: Any
) -> None:
    torch.manual_seed(0)
    logits = torch.randn(draws, SIZE, *num_outputs, dtype=torch.float64)
    others = logits + 0.5 * torch.randn_like(logits)
    if last is not None:
        logits, others = last(logits), last(others)
    expected = exact(logits, others)
    # A log-ratio has a variance of about twice its mean.
    error = math.sqrt(2 * expected / (NUM_SAMPLES * draws * SIZE))
    assert likelihood.divergence(logits, others) == pytest.approx(expected, abs=5 * error)
    assert expected > 10 * error
    assert likelihood.divergence(logits, logits) == 0


# Real numbers


@pytest.mark.parametrize(
    ("likelihood", "method"), [(None, "monteclora"), ("student_t", "lora"), (StudentT(df=6), "lora")]
)
def test_real_labels_are_fitted_and_come_back_from_disk(likelihood: Any, method: str, tmp_path: Path) -> None:
    x, y = numbers()
    posterior = fit(line(), (x, y), method, likelihood=likelihood, epochs=20)
    scores = posterior.evaluate((x, y), num_draws=8)
    assert scores["pearson"] > 0.95
    assert scores["nll"] < constant_nll(y) - 0.2
    posterior.save(tmp_path)
    loaded = bayeslora.load(tmp_path, line())
    assert type(loaded.program.likelihood) is type(posterior.program.likelihood)
    assert loaded.program.likelihood.scale == posterior.program.likelihood.scale
    assert loaded.evaluate((x, y), num_draws=8) == scores


def constant_nll(y: np.ndarray) -> float:
    """NLL of the labels under one Normal distribution for all."""
    return 0.5 * math.log(2 * math.pi * math.e * y.var())


def test_the_noise_is_learned_to_the_size_of_the_residuals() -> None:
    x, y = numbers(noise=0.3)
    posterior = fit(line(), (x, y), epochs=30)
    residuals = y - posterior.predict(x).mean
    likelihood = posterior.program.likelihood
    assert isinstance(likelihood, Regression)
    assert likelihood.scale == pytest.approx(residuals.std(), rel=0.1)
    assert likelihood.scale < 0.2 * y.std()  # its start


def test_noise_that_is_not_learned_stays() -> None:
    given = Regression(0.25, learned=False)
    posterior = fit(line(), numbers(), likelihood=given, epochs=2)
    assert posterior.program.likelihood.scale == pytest.approx(0.25)
    assert not any(name.startswith("likelihood") for name, _ in posterior.program.trainable())


def test_the_users_likelihood_is_left_alone() -> None:
    given = Regression(3.0)
    posterior = fit(line(), numbers(), likelihood=given, epochs=2)
    assert given.scale == pytest.approx(3.0)
    assert posterior.program.likelihood.scale < 2.9


@pytest.mark.parametrize(
    ("method", "unit"),
    [
        ("lora", 1.0),
        *((method, 1e4) for method in ("lora", "laplace", "deep_ensemble")),  # the latter two have factors on the head
        *(pytest.param(method, 1.0, marks=pytest.mark.slow) for method in ("laplace", "deep_ensemble")),
    ],
)
def test_labels_may_be_large(method: str, unit: float) -> None:
    ids, labels = tokens(64)
    y = unit * (4.0 + np.asarray(labels))
    posterior = fit(tiny_bert(num_labels=1), (ids, y), method, rank=2, learning_rate=1e-2)
    # At the rate that suits labels near 1, outputs would have stayed at their mean.
    assert posterior.evaluate((ids, y), num_draws=8)["center_rmse"] < 0.9 * y.std()


def test_a_head_without_a_bias_cannot_be_shifted(caplog: pytest.LogCaptureFixture) -> None:
    ids, labels = tokens(64)
    with caplog.at_level(logging.WARNING, logger="bayeslora"):
        fit(tiny_llama(num_labels=1), (ids, 4.0 + np.asarray(labels)), likelihood="regression", epochs=0)
        assert not caplog.records
        fit(tiny_llama(num_labels=1), (ids, 90.0 + np.asarray(labels)), likelihood="regression", epochs=0)
    assert "and the head has no bias: subtract the labels' mean" in caplog.text


def test_outputs_start_at_the_mean_of_what_labels_leave() -> None:
    ids, labels = tokens(64)
    y = np.asarray(labels) + 100.0
    model = tiny_bert(num_labels=1)
    before = model.classifier.bias.clone()
    started = fit(model, (ids, y), epochs=0)
    assert started.predict(ids).mean.mean() == pytest.approx(y.mean(), rel=1e-5)
    assert torch.equal(model.classifier.bias, before)  # the user's model is left alone
    again = fit(started.merge(), (ids, y), epochs=0)  # a head that is right stays
    torch.testing.assert_close(again.network.head_state(), started.network.head_state(), rtol=1e-5, atol=1e-5)


def test_its_own_parameters_take_no_weight_decay_and_a_rate_of_their_own() -> None:
    from transformers import TrainingArguments

    from bayeslora.data import Source
    from bayeslora.trainer import ProgramTrainer

    program = Program(AdaptedNetwork(line(), rank=1), make_method("lora"), Regression())
    source = Source(numbers(8), line())
    args = TrainingArguments("unused", weight_decay=0.5, learning_rate=1e-4, report_to=[], disable_tqdm=True)
    trainer = ProgramTrainer(bayeslora.Posterior(program), source, None, args=args)
    groups = trainer.create_optimizer().param_groups
    own = next(group for group in groups if any(p is program.likelihood.log_scale for p in group["params"]))
    assert (own["weight_decay"], own["lr"], len(own["params"])) == (0.0, Regression.learning_rate, 1)
    assert groups[0]["weight_decay"] == 0.5


def test_nll_is_the_loss_at_the_centre_and_what_loo_sums() -> None:
    x, y = numbers(60)
    posterior = fit(line(), (x, y), "monteclora", epochs=5)
    batch = {"input": torch.as_tensor(x).float(), "labels": torch.as_tensor(y).float()}
    with torch.no_grad():
        loss = posterior.program.eval()(**batch).loss.item()
    scores = posterior.evaluate((x, y), num_draws=9, seed=3)
    assert scores["center_nll"] == pytest.approx(loss, rel=1e-5)
    idata = posterior.to_arviz((x, y), num_draws=9, seed=3)
    terms = idata.log_likelihood["labels"].to_numpy()[0]
    pointwise = np.log(np.exp(terms).mean(0))
    assert -pointwise.mean() == pytest.approx(scores["nll"], rel=1e-5)


def test_a_temperature_is_nothing_to_real_numbers() -> None:
    with pytest.raises(ValueError, match="likelihood 'regression' has no temperature"):
        fit(line(), numbers(), epochs=1).calibrate(numbers())


# Inference


def test_the_likelihood_is_inferred_and_stated(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="bayeslora"):
        posterior = fit(tiny_bert(num_labels=1), (tokens(8)[0], np.linspace(0, 1, 8)), epochs=1)
    assert isinstance(posterior.program.likelihood, Regression)
    assert re.search(r"labels +regression \(scale=0\.327, ", caplog.text)


def test_a_name_loads_a_model_that_fits_the_labels(tmp_path: Path) -> None:
    tiny_bert().bert.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    for likelihood, labels in ((None, [0.5, 1.5, 0.1, 2.0, 1.0]), ("student_t", [0, 1, 0, 2, 1])):
        posterior = fit(str(tmp_path), (TEXTS, labels), likelihood=likelihood, epochs=1)
        assert posterior.network.model.config.num_labels == 1
        posterior.save(tmp_path / "out")
        assert len(bayeslora.load(tmp_path / "out").predict(TEXTS)) == 5


# What does not fit


def test_an_unknown_likelihood_lists_those_known() -> None:
    with pytest.raises(ValueError, match=r"likelihood='gamma' is not known\. Likelihoods: classification, .*instance"):
        fit(line(), numbers(), likelihood="gamma")


def test_regression_needs_one_output() -> None:
    with pytest.raises(ValueError, match=r"Regression needs one output per example.*returns \(2, 3\).*num_labels=1"):
        fit(line(3), numbers(), likelihood="regression")
    squeezed = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1), nn.Flatten(0))
    for likelihood in (None, "regression"):
        with pytest.raises(ValueError, match=r"Regression needs .*returns .2,.: .*end with \.unsqueeze\(-1\)"):
            fit(squeezed, (torch.randn(5, 3), torch.randn(5)), likelihood=likelihood)


@pytest.mark.parametrize(
    ("end", "labels", "start"),
    [(torch.exp, 50.0, 1.0), (lambda f: 10 * f, 50.0, 0.0), (torch.relu, -50.0, 0.0), (lambda f: f - 3, 50.0, 50.0)],
)
def test_outputs_are_shifted_where_the_shift_comes_through(end: Any, labels: float, start: float) -> None:
    """`exp` would turn a shift of 50 into a factor of 3e21, and a ReLU has no gradient where it is 0."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 1)
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

        def forward(self, x: Tensor) -> Tensor:
            return end(self.head(torch.tanh(self.body(x))))

    data = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), labels + torch.tensor([-1.0, 1.0]).repeat(4)
    posterior = bayeslora.fit(Network(), data, "lora", epochs=0, rank=2, progress=False)
    np.testing.assert_allclose(posterior.predict(data[0], center=True).predicted, start, rtol=1e-6)


def test_only_outputs_that_predict_labels_are_shifted(monkeypatch: pytest.MonkeyPatch) -> None:
    shifted: list[str] = []
    monkeypatch.setattr(
        "bayeslora.fitting.shift_outputs", lambda network, likelihood, *_: shifted.append(likelihood.name)
    )
    fit(line(3), (np.random.default_rng(0).normal(size=(6, 3)), [0, 1, 2] * 2), epochs=0)
    assert shifted == []  # which would take another pass
    fit(line(), numbers(), epochs=0)
    assert shifted == ["regression"]


def test_a_models_own_problem_type_says_what_its_labels_are() -> None:
    inputs, _ = tokens(4)
    model = tiny_bert(1, problem_type="regression")
    posterior = fit(model, (inputs, torch.tensor([1, 5, 2, 9])), epochs=0)
    assert posterior.program.likelihood.name == "regression"
    assert posterior.network.output_layer().bias.item() == pytest.approx(model.classifier.bias.item() + 4.25, abs=1)
    with pytest.raises(ValueError, match=r"No likelihood is known for outputs \(2, 3\) and labels \(2, 3\)"):
        fit(tiny_bert(3, problem_type="regression"), (inputs, torch.eye(4)[:, :3]), epochs=0)
    with pytest.raises(ValueError, match=r"give your own, likelihood=…"):
        fit(tiny_bert(2), (inputs, torch.randn(4, 2)), epochs=0)


def test_labels_that_are_no_numbers() -> None:
    with pytest.raises(ValueError, match="Labels are NaN or infinite, the first in row 1"):
        Regression().check_labels([0.5, math.nan])
    with pytest.raises(ValueError, match=r"Labels are .*U1 of shape \(2,\); regression needs one number"):
        Regression().check_labels(["a", "b"])


@pytest.mark.parametrize("arguments", [{"scale": 0.0}, {"scale": math.inf}, {"df": 2.0}])
def test_noise_out_of_range(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"(scale|df)=.*: give a"):
        StudentT(**arguments)


def test_every_likelihood_is_listed_under_its_name() -> None:
    assert all(cls.name == name for name, cls in LIKELIHOODS.items())
    assert LIKELIHOODS["classification"] is Classification


LARGE = 3000.0


@pytest.mark.parametrize(
    ("likelihood", "logits", "labels", "expected"),
    [
        (Classification(2), [[LARGE, 0.0]], [1], LARGE),
        (MultiLabel(2), [[LARGE, -LARGE]], [[0, 1]], 2 * LARGE),
        (TokenClassification(2), [[[LARGE, 0.0], [0.0, LARGE]]], [[1, 0]], 2 * LARGE),
        (CausalLM(2), [[[LARGE, 0.0], [0.0, LARGE], [0.0, 0.0]]], [[0, 1, 0]], 2 * LARGE),
        (QuestionAnswering(), [[[LARGE, 0.0], [0.0, LARGE]]], [[1, 0]], 2 * LARGE),
        (Ordinal(3, [-1.0, 1.0]), [[LARGE]], [0], LARGE + 1),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
@pytest.mark.parametrize("num_draws", [1, 3])
def test_the_nll_is_not_cut_off(
    likelihood: Likelihood, logits: list, labels: list, expected: float, num_draws: int
) -> None:
    batch = {"labels": torch.tensor(labels)}
    outputs = likelihood.select(torch.tensor([logits] * num_draws, dtype=torch.float64), batch)
    collector = likelihood.collector(True)
    collector.add(np.arange(1), batch, iter([outputs]))
    result = collector.result()
    prediction = likelihood.predict(result)
    observed = getattr(result, "labels", None)
    given = prediction.labels if observed is None else observed
    assert prediction.scores(given)["nll"] == pytest.approx(expected, rel=1e-9)
    np.testing.assert_allclose(prediction.log_likelihood(given), -expected, rtol=1e-9)
    nll = -likelihood.log_prob(outputs, batch["labels"])
    torch.testing.assert_close(nll, torch.full_like(nll, expected))  # what training has
