"""Every task end to end, on a small model of each kind."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

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


# Draws of every method have the same shapes: those of a point, and of masks, on a network of each kind.
OF_EACH_KIND = ("Bert-sequence", "Bert-token", "Bert-span", "T5", "MLP")


def _fits() -> Iterator[Any]:
    for case, method in itertools.product(CASES, METHODS):
        fast = not case.name.startswith("Roberta") and (method == "monteclora" or case.name in OF_EACH_KIND)
        yield pytest.param((case, method), marks=() if fast else pytest.mark.slow, id=f"{case.name}-{method}")


class Fitted(NamedTuple):
    """A case, and what was fitted to it."""

    case: Case
    posterior: bayeslora.Posterior


@pytest.fixture(scope="module", params=_fits())
def fitted(request: pytest.FixtureRequest) -> Fitted:
    case, method = request.param
    posterior = bayeslora.fit(
        case.make(),
        case.data,
        make_method(method, **METHODS[method]),
        likelihood=case.likelihood if case.asked else None,
        num_particles=PARTICLES.get(method),
        rank=2,
        epochs=8,
        batch_size=8,
        learning_rate=1e-2,
        progress=False,
    )
    return Fitted(case, posterior)


def test_the_likelihood_is_inferred_and_the_loss_falls(fitted: Fitted) -> None:
    case, posterior = fitted
    likelihood = posterior.program.likelihood
    assert type(likelihood) is type(case.likelihood)
    if not hasattr(likelihood, "scale"):
        assert likelihood.config() == case.likelihood.config()
    nll = posterior.history["nll"]
    assert len(nll) == 32
    assert nll[-8:].mean() < nll[:4].mean()


def test_predictions_have_their_shape_and_their_parts_add_up(fitted: Fitted) -> None:
    case, posterior = fitted
    prediction = posterior.predict(case.data, num_draws=3)
    num_draws = 1 if posterior.method.name == "lora" else 3  # a point is one draw, masks that drop nothing are several
    assert prediction.draws.shape == (num_draws, *case.shape)
    assert len(prediction) == len(prediction.predicted) == len(prediction.to_pandas()) == case.shape[0]
    for values in (prediction.entropy, prediction.aleatoric, prediction.epistemic):
        assert values.shape == case.shape[:1]
        assert np.isfinite(values).all()
    np.testing.assert_allclose(prediction.entropy, prediction.aleatoric + prediction.epistemic, atol=1e-5)
    assert (prediction.epistemic >= 0).all()
    if posterior.method.name != "monteclora":
        np.testing.assert_allclose(np.ptp(prediction.draws, axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(prediction.epistemic, 0, atol=1e-5)
    assert prediction.sample(seed=0).shape[:2] == (num_draws, case.shape[0])


def test_scores_are_those_of_the_loss(fitted: Fitted) -> None:
    case, posterior = fitted
    scores = posterior.evaluate(case.data, num_draws=3)
    # Where all are right, there are no errors to tell.
    assert all(np.isfinite(value) for name, value in scores.items() if not name.endswith("auroc_errors"))
    batch = as_batch(case)
    with torch.no_grad():
        loss = posterior.program.eval()(**batch).loss.item()
    assert scores["center_nll"] == pytest.approx(loss, rel=1e-4)


def test_saving_keeps_them(fitted: Fitted, tmp_path: Path) -> None:
    case, posterior = fitted
    posterior.save(tmp_path)
    loaded = bayeslora.load(tmp_path, case.make())
    np.testing.assert_array_equal(
        loaded.predict(case.data, num_draws=2).draws, posterior.predict(case.data, num_draws=2).draws
    )
    assert loaded.record() == posterior.record()


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
