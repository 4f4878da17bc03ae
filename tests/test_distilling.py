"""A student of one pass predicts what the draws of its teacher do."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import bayeslora
from bayeslora import distilling, tasks
from bayeslora.distributions import LowRankNormal
from bayeslora.divergence import DivergedError
from bayeslora.methods.distilled import Output
from bayeslora.tasks.collecting import Outputs
from tests.adapters.test_sharing import rows
from tests.helpers import assert_mean_close, tiny_bert, tiny_gpt2, tokens

QUIET: dict[str, Any] = {"progress": False, "epochs": 0, "rank": 2}


def teacher(model: nn.Module | None = None, method: str = "blob", **settings: Any) -> bayeslora.Posterior:
    """A posterior with draws far apart, which has not been trained."""
    inputs, labels = tokens(12)
    data = settings.pop("data", (inputs, labels))
    posterior = bayeslora.fit(model or tiny_bert(), data, method, **QUIET | settings)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in posterior.guide.named_parameters():
            parameter.add_(-parameter - 1 if "log" in name else 0.3 * torch.randn_like(parameter))
    return posterior


@pytest.fixture(scope="module")
def pair() -> tuple[bayeslora.Posterior, bayeslora.Posterior]:
    """A teacher and its student."""
    own = teacher()
    return own, own.distil(tokens(12)[0], num_draws=8, epochs=2)


@pytest.mark.parametrize("make", [tiny_bert, tiny_gpt2])
def test_a_student_starts_at_its_teachers_centre(make: Any) -> None:
    own = teacher(make().double())
    student = distilling.student(own.program, 12, bayeslora.methods.Distilled())
    inputs = tokens(4)[0]
    with torch.no_grad():
        expected = own.program.logits(own.program.centre(), inputs)
        torch.testing.assert_close(student.eval().logits(student.centre(), inputs), expected)


def test_a_student_of_other_adapters_starts_at_the_base_with_the_teachers_head() -> None:
    own = teacher(method="houlsby")
    student = distilling.student(own.program, 12, bayeslora.methods.Distilled())
    head = own.network.head_state()
    assert all(torch.equal(value, head[name]) for name, value in student.network.head_state().items())


def test_a_part_of_a_step_is_a_step() -> None:
    student = teacher().distil(tokens(12)[0], num_draws=2, epochs=0.01)
    assert len(student.history) == 1


@pytest.mark.parametrize("rate", [1e4, 1e30])
def test_a_student_that_runs_away_is_noticed(pair: tuple[Any, Any], rate: float) -> None:
    own, _ = pair
    with pytest.raises(DivergedError, match=r"^Distilling .*Lower the learning rate \(now 1e\+") as raised:
        own.distil(tokens(12)[0], num_draws=2, epochs=5, learning_rate=rate)
    assert raised.value.posterior is own
    assert np.isfinite(own.predict(tokens(2)[0], 2).probs).all()


def test_a_student_is_a_posterior_of_one_pass(pair: tuple[Any, Any], tmp_path: Path) -> None:
    _, student = pair
    inputs, labels = tokens(12, seed=1)
    prediction = student.predict(inputs, num_draws=8)
    assert prediction.draws.shape == (8, 12, 3)
    assert (prediction.epistemic > 0).all()
    np.testing.assert_allclose(prediction.entropy, prediction.aleatoric + prediction.epistemic, atol=1e-6)
    seen = rows(student.network.model.bert.embeddings.LayerNorm)
    student.predict(inputs, num_draws=8)
    assert seen == [12]
    student.save(tmp_path / "student")
    again = bayeslora.load(tmp_path / "student", model=tiny_bert())
    np.testing.assert_array_equal(again.predict(inputs, num_draws=8).probs, prediction.probs)
    student.decide((inputs, labels), num_draws=8)
    assert student.predict(inputs, num_draws=8).sets(0.5).shape == (12, 3)
    assert student.calibrate((inputs, labels), num_draws=8).temperature > 0


def test_the_merged_and_the_exported_student_is_its_centre(pair: tuple[Any, Any], tmp_path: Path) -> None:
    from peft import PeftModel

    _, student = pair
    inputs = tokens(5)[0]
    centre = student.predict(inputs, center=True).probs
    with torch.no_grad():
        merged = student.merge().eval()(**inputs).logits.softmax(-1)
        (folder,) = student.export_peft(tmp_path)
        exported = PeftModel.from_pretrained(tiny_bert(), folder).eval()(**inputs).logits.softmax(-1)
    np.testing.assert_allclose(merged, centre, atol=1e-5)
    np.testing.assert_allclose(exported, centre, atol=1e-5)


def test_the_teacher_is_as_before(pair: tuple[Any, Any]) -> None:
    own, student = pair
    fresh = teacher()
    inputs = tokens(5)[0]
    np.testing.assert_allclose(own.predict(inputs, 4).probs, fresh.predict(inputs, 4).probs, rtol=1e-6)
    heads = [posterior.network.model.classifier for posterior in (own, student)]
    assert not {p.data_ptr() for p in heads[0].parameters()} & {p.data_ptr() for p in heads[1].parameters()}


def test_without_a_spread_there_is_one_draw() -> None:
    student = teacher().distil(tokens(12)[0], num_draws=4, epochs=1, spread=False)
    prediction = student.predict(tokens(5)[0])
    assert len(prediction.draws) == 1
    np.testing.assert_allclose(prediction.epistemic, 0, atol=1e-12)


def test_a_mixture_is_distilled_into_one_adapter() -> None:
    mixed = bayeslora.mixture([teacher(), teacher(method="lora")], [1, 3])
    prediction = mixed.predict(tokens(12)[0], 4)
    assert prediction.weights is not None
    student = mixed.distil(tokens(12)[0], num_draws=4, epochs=1)
    assert not isinstance(student, type(mixed))
    assert student.predict(tokens(5)[0], 4).draws.shape == (4, 5, 3)


def test_labels_are_not_looked_at() -> None:
    own, (inputs, labels) = teacher(), tokens(12)
    students = [own.distil(data, num_draws=4, epochs=1) for data in (inputs, (inputs, labels), (inputs, 2 - labels))]
    draws = [student.predict(inputs, 4).probs for student in students]
    np.testing.assert_array_equal(draws[0], draws[1])
    np.testing.assert_array_equal(draws[0], draws[2])


def test_inputs_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read, own = [], teacher()
    source = type(own)._source
    monkeypatch.setattr(type(own), "_source", lambda *args, **kwargs: read.append(1) or source(*args, **kwargs))
    own.distil(tokens(3)[0], num_draws=2, epochs=1)
    assert len(read) == 1


@pytest.mark.parametrize(
    "likelihood", [tasks.Classification(3), tasks.MultiLabel(3), tasks.Regression(0.5), tasks.Ordinal(4)]
)
def test_a_prediction_says_the_logits_that_it_comes_from(likelihood: tasks.Likelihood) -> None:
    logits = torch.randn(4, 6, 3, dtype=torch.float64)
    logits = logits if likelihood.num_labels == 3 else logits[..., 0]
    found = likelihood.latent(likelihood.predict(Outputs(logits.numpy(), None)))
    draws, mixture = map(torch.as_tensor, found)
    if likelihood.up_to_constant:
        logits, draws = (value - value.mean(-1, keepdim=True) for value in (logits, draws))
    torch.testing.assert_close(draws, logits)
    assert mixture.shape == logits.shape[1:]


def test_kinds_without_logits_for_an_example_are_refused() -> None:
    own = teacher()
    own.program.likelihood = tasks.TokenClassification(3)
    with pytest.raises(ValueError, match="cannot be distilled"):
        own.distil(tokens(3)[0])


def test_the_divergence_is_least_at_the_teachers_logits() -> None:
    for likelihood in (tasks.Classification(3), tasks.MultiLabel(3), tasks.Regression(0.5), tasks.StudentT()):
        wanted = torch.randn(5, 3, dtype=torch.float64) if likelihood.num_labels == 3 else torch.randn(5)
        logits = wanted.clone().requires_grad_()
        distilling.divergence(likelihood, wanted, logits).sum().backward()
        torch.testing.assert_close(logits.grad, torch.zeros_like(wanted), atol=1e-6, rtol=0)


@pytest.mark.parametrize("inputs", [3, 200])
def test_the_spread_is_that_of_the_draws(inputs: int) -> None:
    own = teacher()
    program = distilling.student(own.program, 12, bayeslora.methods.Distilled(spread_rank=4))
    generator = torch.Generator().manual_seed(0)
    phi = torch.randn(inputs, 33, generator=generator, dtype=torch.float64)
    U = 0.2 * torch.randn(64, 3, 33, generator=generator, dtype=torch.float64)  # the draws' output layers
    distilling.spread(program, phi, torch.einsum("nf,scf->snc", phi, U), torch.full((64,), 1 / 64))
    site = next(part for part in program.guide.modules() if isinstance(part, Output))
    weights = LowRankNormal(site.loc, site.factor, site.deviation).sample((500,)).view(500, 3, 33).double()
    found, expected = (
        (logits - logits.mean(-1, keepdim=True)).std(0)
        for logits in (torch.einsum("nf,scf->snc", phi, w) for w in (weights, U))
    )
    # A constant would be off by a fifth.
    assert ((found / expected).log().abs().mean() < 0.15).item()
    assert (found.log() - found.log().mean()).flatten() @ (expected.log() - expected.log().mean()).flatten() > 0


def test_features_are_those_that_make_the_logits() -> None:
    for make in (tiny_bert, tiny_gpt2):  # the second one takes the last token
        own = teacher(make().double())
        inputs, _ = tokens(5)
        inputs["attention_mask"][:2, 3:] = 0
        inputs["input_ids"][:2, 3:] = 0
        source = own._source(inputs, with_labels=False)
        phi, logits = distilling.features(own.program, source, 2)
        layer: Any = own.network.output_layer()
        bias = torch.zeros(3) if layer.bias is None else layer.bias
        torch.testing.assert_close(phi @ torch.cat([layer.weight, bias[:, None]], 1).T.double(), logits)


def test_a_low_rank_normal_has_its_moments() -> None:
    generator = torch.Generator().manual_seed(0)
    loc, factor, scale = (torch.randn(*shape, generator=generator) for shape in ((2, 3), (2, 3, 2), (2, 3)))
    each = LowRankNormal(loc, factor, scale.abs())
    torch.manual_seed(0)
    draws = each.sample((4000,))
    assert_mean_close(draws, each.mean)
    assert_mean_close((draws - loc).square(), each.variance)
    covariance = factor @ factor.mT + torch.diag_embed(scale.square())
    assert_mean_close((draws - loc)[..., 0] * (draws - loc)[..., 1], covariance[:, 0, 1])
    expected = torch.distributions.MultivariateNormal(loc, covariance).log_prob(draws[0])
    torch.testing.assert_close(each.log_prob(draws[0]), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(LowRankNormal(loc, 0 * factor, 0 * scale).sample((2,)), loc.expand(2, 2, 3))
