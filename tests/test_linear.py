"""Prediction to first order in the factors, against the network itself and against N(f, J C Jᵀ) written out."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import bayeslora
from bayeslora import Posterior, metrics
from bayeslora.adapters import AdaptedNetwork, linearised
from bayeslora.methods import make_method
from bayeslora.program import Program
from bayeslora.tasks import Classification
from tests.helpers import assert_mean_close, batch, tiny_bert, tokens
from tests.methods.conftest import NO_DROPOUT, randomise
from tests.tasks.cases import named

INPUTS = {name: value for name, value in batch(5).items() if name != "labels"}


def make_program(method: str = "blob", num_labels: int = 3, **fields: Any) -> Program:
    network = AdaptedNetwork(tiny_bert(num_labels, **NO_DROPOUT).double(), rank=4, alpha=8, num_examples=48)
    return randomise(Program(network, make_method(method, **fields), Classification(num_labels))).eval()


def contrasts(logits: Tensor) -> Tensor:
    return logits - logits[..., :1]


def sites_near_centre(program: Program, scale: float, num_draws: int = 3) -> dict[str, Tensor]:
    torch.manual_seed(1)
    centre, draws = program.centre(), program.draw(num_draws)
    return {name: (centre[name] + scale * (value - centre[name])).detach() for name, value in draws.items()}


def assert_first_order(program: Program, inputs: dict[str, Tensor]) -> None:
    errors = []
    for scale in (1e-2, 1e-3):  # some networks, such as Llama's norms, compute in single precision in places
        sites = sites_near_centre(program, scale)
        with torch.no_grad():
            exact = program.logits(sites, inputs)
        errors.append(float((contrasts(exact) - contrasts(program.linearised(sites)(inputs))).abs().max()))
    # What is left is of second order.
    assert errors[1] <= 0.02 * errors[0] + 1e-13


@pytest.mark.parametrize("method", ["blob", "scalabl", "monteclora", "autoguide", "lora"])
def test_it_is_the_networks_derivative(method: str) -> None:
    assert_first_order(make_program(method), INPUTS)


@pytest.mark.parametrize("name", ["Bert-choice", "Bert-multilabel", "Bert-regression", "GPT2-letters", "Llama-letters"])
def test_it_is_the_derivative_of_what_the_labels_are_about(name: str) -> None:
    case = named(name)
    network = AdaptedNetwork(case.make().double(), rank=4, num_examples=32)
    program = randomise(Program(network, make_method("blob"), case.likelihood)).eval()
    assert_first_order(program, {name: value[:5] for name, value in case.data[0].items()})


def jacobian(program: Program, example: int) -> Tensor:
    """∂ contrasts / ∂ A of one example, `[class − 1, number]`, over all stacks, by autograd on that example alone."""
    factors = {
        name: type(value)(*(f.detach() for f in value)) for name, value in program.factors_at(program.centre()).items()
    }
    wanted = [value.A.requires_grad_() for value in factors.values()]
    logits = contrasts(program.network(factors, {name: value[[example]] for name, value in INPUTS.items()}))[0, 1:]
    rows = [torch.autograd.grad(logit, wanted, retain_graph=True) for logit in logits]
    return torch.stack([torch.cat([gradient.flatten() for gradient in row]) for row in rows])


def test_gaussian_factors_give_gaussian_logits_with_covariance_JCJ() -> None:
    program = make_program("blob")
    variance = torch.cat([guide.sites["A"]().variance.flatten() for guide in program.guide.values()]).detach()
    torch.manual_seed(2)
    with torch.no_grad():
        centred = (
            contrasts(program.linearised(program.draw(4_000))(INPUTS))[..., 1:]
            - contrasts(program(**batch(5)).logits)[..., 1:]
        )
    assert_mean_close(centred, 0.0)
    J = torch.stack([jacobian(program, example) for example in range(5)])
    covariance = torch.einsum("ecp,p,fdp->ecfd", J, variance, J)  # examples share their draws
    assert_mean_close(torch.einsum("sec,sfd->secfd", centred, centred), covariance)


def test_rows_go_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    program = make_program()
    sites = sites_near_centre(program, 1.0)
    whole = program.linearised(sites)(INPUTS)
    monkeypatch.setattr(linearised, "GRADIENT_NUMBERS", 2 * sum(v.numel() // 3 for v in sites.values()))
    in_chunks = program.linearised(sites)
    assert 1 < in_chunks.rows < 5
    torch.testing.assert_close(in_chunks(INPUTS), whole)


def flops(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def test_two_classes_cost_at_most_three_forward_passes() -> None:
    program = make_program("blob", num_labels=2)
    sites = sites_near_centre(program, 1.0, num_draws=32)
    with torch.no_grad():
        linearised = program.linearised(sites)
        forward = flops(lambda: program.network(linearised.centre, INPUTS))
        linearised(INPUTS)  # the first call tries whether rows stay rows
        assert flops(lambda: linearised(INPUTS)) <= 3 * forward


# What the user sees


@pytest.fixture(scope="module")
def posterior() -> Posterior:
    settings: dict[str, Any] = {"epochs": 12, "learning_rate": 5e-3, "temperature": 0.01, "progress": False}
    return bayeslora.fit(tiny_bert(), tokens(), "blob", **settings)


TEST = tokens(40, seed=3)


def test_predictions_are_close_to_those_of_draws(posterior: Posterior) -> None:
    exact = posterior.predict(TEST, 64)
    approximate = posterior.predict(TEST, 64, approximation="linear")
    assert approximate.draws.shape == exact.draws.shape
    assert not np.array_equal(approximate.draws, exact.draws)
    distance = np.abs(approximate.draws - exact.draws).mean()
    to_centre = np.abs(exact.draws - posterior.predict(TEST, center=True).draws).mean()
    assert distance < 0.5 * to_centre
    scores = posterior.evaluate(TEST, 64, approximation="linear")
    assert scores["nll"] == pytest.approx(metrics.nll(approximate.probs, TEST[1].numpy()))
    assert scores["center_nll"] == pytest.approx(posterior.evaluate(TEST, 2)["center_nll"], abs=1e-6)


def test_the_centre_is_not_moved(posterior: Posterior) -> None:
    centre = posterior.predict(TEST, center=True)
    np.testing.assert_allclose(
        posterior.predict(TEST, center=True, approximation="linear").probs, centre.probs, atol=1e-6
    )


def test_it_warns_where_the_network_itself_disagrees() -> None:
    program = make_program("blob", num_labels=2)
    with torch.no_grad():
        for guide in program.guide.values():
            guide.sites["A"].sqrt_scale.fill_(3.0)
    with pytest.warns(UserWarning, match=r"not to be trusted here: on 16 examples, averaged over the same 8 draws"):
        Posterior(program).predict(tokens(20, num_labels=2), 16, approximation="linear")


@pytest.mark.parametrize("name", ["Bert-choice", "Bert-multilabel", "Bert-regression"])
def test_it_says_how_far_from_the_network_it_is(name: str) -> None:
    case = named(name)
    program = randomise(Program(AdaptedNetwork(case.make(), rank=4), make_method("blob"), case.likelihood)).eval()
    posterior = Posterior(program)

    def set_noise(sqrt_scale: float) -> None:
        for guide in program.guide.values():
            guide.sites["A"].sqrt_scale.data.fill_(sqrt_scale)

    set_noise(1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert posterior.predict(case.data[0], 8, approximation="linear").draws.shape == (8, *case.shape)
    set_noise(30.0)
    with pytest.warns(UserWarning, match=r"not to be trusted here.*they diverge from the network's by \d+\.\d{3} nats"):
        posterior.predict(case.data[0], 8, approximation="linear")


def test_members_have_no_common_centre(posterior: Posterior, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(posterior.method), "num_draws", lambda self, guide: 3)
    with pytest.raises(ValueError, match="members of 'blob' lie around no common centre"):
        posterior.predict(TEST, approximation="linear")


def test_noise_beside_the_factors_has_no_first_order() -> None:
    posterior = bayeslora.fit(tiny_bert(), tokens(), "mc_dropout", epochs=1, progress=False)
    with pytest.raises(ValueError, match="InputDropout has noise of its own"):
        posterior.predict(tokens()[0], approximation="linear")


def test_unknown_approximations_say_what_there_is(posterior: Posterior) -> None:
    with pytest.raises(ValueError, match="approximation='quadratic': give 'draws', 'linear' or None"):
        posterior.predict(TEST, approximation="quadratic")


def test_networks_without_a_gradient_per_example_say_so() -> None:
    class SequenceFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x.transpose(0, 1)).mean(0))

    program = randomise(Program(AdaptedNetwork(SequenceFirst(), rank=2), make_method("blob"), Classification(2)))
    with pytest.raises(ValueError, match="does not keep the batch first"):
        program.linearised(program.draw(2))({"x": torch.randn(4, 6, 3)})
