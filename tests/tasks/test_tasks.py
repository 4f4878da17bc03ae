"""Every task end to end, on a small model of each kind."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bayeslora
from bayeslora.adapters import AdaptedNetwork
from bayeslora.methods import make_method
from bayeslora.networks import logits_of
from bayeslora.program import Program
from tests.tasks.cases import CASES, Case

# In networks with random weights, the default noise drowns what a few steps can learn.
METHODS: dict[str, dict[str, Any]] = {"lora": {}, "monteclora": {"noise_ratio": 0.5}, "lora_dropout": {"p": 0.0}}
PARTICLES = {"lora_dropout": 2}


# Roberta's differ from Bert's in the names of the head's layers alone.
ALIKE = [pytest.param(case, marks=pytest.mark.slow) if case.name.startswith("Roberta") else case for case in CASES]


@pytest.fixture(scope="module", params=ALIKE, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(scope="module", params=METHODS)
def fitted(case: Case, request: pytest.FixtureRequest) -> bayeslora.Posterior:
    return bayeslora.fit(
        case.make(),
        case.data,
        make_method(request.param, **METHODS[request.param]),
        likelihood=case.likelihood if case.asked else None,
        num_particles=PARTICLES.get(request.param),
        rank=2,
        epochs=8,
        batch_size=8,
        learning_rate=1e-2,
        progress=False,
    )


def test_the_likelihood_is_inferred_and_the_loss_falls(case: Case, fitted: bayeslora.Posterior) -> None:
    likelihood = fitted.program.likelihood
    assert type(likelihood) is type(case.likelihood)
    if not hasattr(likelihood, "scale"):
        assert likelihood.config() == case.likelihood.config()
    nll = fitted.history["nll"]
    assert len(nll) == 32
    assert nll[-8:].mean() < nll[:4].mean()


def test_predictions_have_their_shape_and_their_parts_add_up(case: Case, fitted: bayeslora.Posterior) -> None:
    prediction = fitted.predict(case.data, num_draws=3)
    num_draws = 1 if fitted.method.name == "lora" else 3  # a point is one draw, masks that drop nothing are several
    assert prediction.draws.shape == (num_draws, *case.shape)
    assert len(prediction) == len(prediction.predicted) == len(prediction.to_pandas()) == case.shape[0]
    for values in (prediction.entropy, prediction.aleatoric, prediction.epistemic):
        assert values.shape == case.shape[:1]
        assert np.isfinite(values).all()
    np.testing.assert_allclose(prediction.entropy, prediction.aleatoric + prediction.epistemic, atol=1e-5)
    assert (prediction.epistemic >= 0).all()
    if fitted.method.name != "monteclora":
        np.testing.assert_allclose(np.ptp(prediction.draws, axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(prediction.epistemic, 0, atol=1e-5)
    assert prediction.sample(seed=0).shape[:2] == (num_draws, case.shape[0])


def test_scores_are_those_of_the_loss(case: Case, fitted: bayeslora.Posterior) -> None:
    scores = fitted.evaluate(case.data, num_draws=3)
    # Where all are right, there are no errors to tell.
    assert all(np.isfinite(value) for name, value in scores.items() if not name.endswith("auroc_errors"))
    batch = as_batch(case)
    with torch.no_grad():
        loss = fitted.program.eval()(**batch).loss.item()
    assert scores["center_nll"] == pytest.approx(loss, rel=1e-4)


def test_saving_keeps_them(case: Case, fitted: bayeslora.Posterior, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    loaded = bayeslora.load(tmp_path, case.make())
    np.testing.assert_array_equal(
        loaded.predict(case.data, num_draws=2).draws, fitted.predict(case.data, num_draws=2).draws
    )
    assert loaded.record() == fitted.record()


@pytest.mark.parametrize("method", METHODS)
def test_without_training_they_are_the_plain_models(case: Case, method: str) -> None:
    model = case.make()
    program = Program(AdaptedNetwork(model, rank=2), make_method(method), case.likelihood)
    prediction = bayeslora.Posterior(program).predict(case.data, num_draws=2)
    batch = as_batch(case)
    with torch.no_grad():
        logits = logits_of(model(**{name: value for name, value in batch.items() if name != "labels"}))
    for draw in prediction.draws:
        np.testing.assert_allclose(draw, case.plain(logits, batch["labels"]), atol=2e-6)


def test_particles_are_averaged(case: Case) -> None:
    batch = as_batch(case)
    losses = []
    for num_particles in (1, 3):
        network = AdaptedNetwork(case.make(), rank=2)
        program = Program(network, make_method("monteclora"), case.likelihood, num_particles)
        loss, logits = program(**batch)
        loss.backward()
        assert logits.shape[0] == (32 if num_particles == 1 else num_particles)
        losses.append(program.terms["labels"].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def as_batch(case: Case) -> dict[str, Any]:
    """All of a case's data, as the network takes it."""
    given, labels = case.data
    batch = {**given, "labels": labels} if isinstance(given, dict) else {"input": given, "labels": labels}
    if case.name == "T5":
        batch["decoder_input_ids"] = torch.nn.functional.pad(labels[:, :-1], (1, 0))
    return batch
