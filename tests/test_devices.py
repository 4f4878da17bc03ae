"""Devices: whatever a posterior is on, it is the same posterior.

Where there is an accelerator, BAYESLORA_TEST_ACCELERATOR=1 runs these tests on it, too.
"""

import copy
import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import bayeslora
from bayeslora import devices
from bayeslora.adapters import AdaptedNetwork
from bayeslora.drawing import draw
from bayeslora.methods import METHODS, make_method
from bayeslora.posterior import Posterior
from bayeslora.program import Program
from bayeslora.tasks import Classification
from tests.helpers import tiny_bert, tokens
from tests.tasks import cases

ACCELERATOR = devices.usual()
HAS_ONE = ACCELERATOR.type != "cpu"  # otherwise one case stands for all
DATA = tokens(16)
QUICK: dict[str, Any] = {"epochs": 1, "learning_rate": 0.01, "progress": False}


def on(device: torch.device) -> nn.Module:
    return tiny_bert().double().to(device)


def fitted(method: str = "monteclora", model: nn.Module | None = None, data: Any = DATA, **settings: Any) -> Posterior:
    return bayeslora.fit(on(torch.device("cpu")) if model is None else model, data, method, **QUICK, **settings)


def tensors(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


@pytest.mark.parametrize("method", METHODS)
def test_all_tensors_are_made_where_the_network_is(method: str) -> None:
    kind = make_method(method)
    network = AdaptedNetwork(tiny_bert().to("meta"), kind.family, rank=2, head_family=kind.head_family)
    program = Program(network, kind, Classification(3), kind.num_particles)
    assert {value.device.type for value in tensors(program)} == {"meta"}


@pytest.mark.parametrize("method", METHODS if HAS_ONE else ["monteclora"])
def test_a_posterior_is_the_same_on_every_device(method: str, tmp_path: Path) -> None:
    posterior = fitted(method)
    assert posterior.program.device == ACCELERATOR
    decides = method != "mc_dropout"  # whose inputs are dropped in the network
    sites = draw(posterior.program, 3, 0)
    batch = {name: value.to(ACCELERATOR) for name, value in DATA[0].items()}
    with torch.inference_mode():
        expected = posterior.program.logits(sites, batch).cpu()
    centre = posterior.predict(DATA[0], center=True).probs
    posterior.save(tmp_path)
    for model, device in ((on(torch.device("cpu")), None), (on(ACCELERATOR), None), (on(ACCELERATOR), "cpu")):
        loaded = bayeslora.load(tmp_path, model, device=device)
        place = next(model.parameters()).device if device is None else torch.device(device)
        assert {value.device for value in tensors(loaded.program)} == {place}
        np.testing.assert_allclose(loaded.predict(DATA[0], center=True).probs, centre, rtol=0, atol=1e-9)
        there = {name: value.to(place) for name, value in sites.items()}
        with torch.inference_mode():
            logits = loaded.program.logits(there, {name: value.to(place) for name, value in DATA[0].items()}).cpu()
        assert not decides or torch.allclose(logits, expected, rtol=0, atol=1e-8)
    for _ in range(2):
        assert (posterior.predict(DATA[0], 4).probs == loaded.to(ACCELERATOR).predict(DATA[0], 4).probs).all()


@pytest.mark.parametrize("case", cases.CASES if HAS_ONE else cases.CASES[:1], ids=lambda case: case.name)
def test_labels_of_every_kind_are_scored_alike(case: cases.Case) -> None:
    likelihood = case.likelihood if case.asked else None
    posterior = fitted("lora", case.make().double(), case.data, likelihood=likelihood)
    scores = posterior.evaluate(case.data, 2)
    again = posterior.to("cpu").evaluate(case.data, 2)
    for name, value in scores.items():
        assert again[name] == pytest.approx(value, rel=1e-6, abs=1e-6), name


def test_posteriors_meet_on_one_device(tmp_path: Path) -> None:
    one, other = fitted("lora"), fitted("blob")
    mixed = bayeslora.mixture([one, other])
    expected = mixed.predict(DATA[0], center=True).probs
    mixed.save(tmp_path)
    loaded = bayeslora.load(tmp_path, on(torch.device("cpu")), device=str(ACCELERATOR))
    weights = [part.network.model.classifier.weight for part in loaded.components]
    frozen = [next(p for p in part.network.model.parameters() if not p.requires_grad) for part in loaded.components]
    assert weights[0].data_ptr() != weights[1].data_ptr()
    assert frozen[0].data_ptr() == frozen[1].data_ptr()  # there is one base
    np.testing.assert_allclose(loaded.predict(DATA[0], center=True).probs, expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(loaded.to("cpu").predict(DATA[0], center=True).probs, expected, rtol=0, atol=1e-9)
    assert frozen[0].dtype == torch.float64


def test_a_mixture_of_two_devices_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"Posteriors 0 and 1 are on cuda:0 and cpu: a mixture is on one device\. Move"
    ):
        devices.check_same(torch.device("cuda:0"), torch.device("cpu"), 1)


def test_moved_modules_share_what_they_shared() -> None:
    one, other = nn.Linear(3, 2), nn.Linear(3, 2)
    other.weight = nn.Parameter(one.weight.detach(), requires_grad=False)
    devices.move([one, other], torch.device("meta"))
    assert {value.device.type for value in tensors(one) + tensors(other)} == {"meta"}
    storages = [module.weight.untyped_storage()._cdata for module in (one, other)]
    assert storages[0] == storages[1]
    assert one.bias.untyped_storage()._cdata != other.bias.untyped_storage()._cdata


@pytest.mark.parametrize("name", ["xpu:7", "cuda:99", "mps:3", "meta"])
def test_a_device_that_is_not_here_is_said(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"device='{name}': PyTorch finds no such device here, only 'cpu'"):
        bayeslora.load(tmp_path, device=name)
    with pytest.raises(ValueError, match="device="):
        fitted("lora", None).to(name)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", 1.5, True])
def test_what_is_no_device_is_refused(device: Any, tmp_path: Path) -> None:
    with pytest.raises((ValueError, TypeError), match=r"device=.*such as 'cpu', 'cuda' or 'cuda:1'"):
        bayeslora.load(tmp_path, device=device)


def test_accelerate_can_be_told_to_leave_accelerators_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert devices.usual() == torch.device("cpu")


def test_what_begins_on_an_accelerator_stays_there(tmp_path: Path) -> None:
    model = on(ACCELERATOR)
    data = {name: value.to(ACCELERATOR) for name, value in DATA[0].items()}, DATA[1].to(ACCELERATOR)
    posterior = fitted("monteclora", model, data, num_particles=2)
    assert (posterior.predict(data[0], 3).probs == posterior.predict(DATA[0], 3).probs).all()
    assert posterior.evaluate(data, 3) == posterior.evaluate(DATA, 3)
    merged = posterior.merge()
    probs = posterior.predict(DATA[0], center=True).probs
    logits = merged(**{name: value.to(next(merged.parameters()).device) for name, value in DATA[0].items()}).logits
    np.testing.assert_allclose(logits.softmax(-1).detach().cpu(), probs, rtol=0, atol=1e-8)
    for other in (copy.deepcopy(posterior), pickle.loads(pickle.dumps(posterior))):
        assert (other.predict(DATA[0], 3).probs == posterior.predict(DATA[0], 3).probs).all()


def test_posteriors_of_another_device_are_started_from() -> None:
    for before, start in itertools.product({ACCELERATOR, torch.device("cpu")}, ("init", "prior")):
        earlier = fitted("blob").to(before)
        settings = {"init": earlier, "epochs": 0} if start == "init" else {"prior": earlier, "epochs": 0}
        again = bayeslora.fit(on(torch.device("cpu")), DATA, "blob", progress=False, **settings)
        np.testing.assert_allclose(
            again.predict(DATA[0], center=True).probs, earlier.predict(DATA[0], center=True).probs, rtol=0, atol=1e-8
        )


def test_the_random_state_of_the_caller_is_left() -> None:
    def numbers() -> torch.Tensor:
        return torch.rand(3, device=ACCELERATOR)

    model = on(torch.device("cpu"))
    torch.manual_seed(5)
    expected = [numbers(), numbers()]
    torch.manual_seed(5)
    first = numbers()
    fitted(model=model).predict(DATA[0], 3)
    assert torch.equal(first, expected[0])
    assert torch.equal(numbers(), expected[1])


def test_what_else_a_posterior_does() -> None:
    posterior = fitted("laplace")
    posterior.calibrate(DATA).predict(DATA[0], 3)
    posterior.decide(DATA)
    posterior.to_arviz(DATA, 4)
    posterior.khat(DATA, 30)
    student = fitted().distil(DATA[0], epochs=1)
    assert student.program.device == ACCELERATOR
    student.to("cpu").predict(DATA[0])
    folds = fitted("lora", folds=2)
    assert folds.components[0].program.device == ACCELERATOR
    folds.to("cpu").predict(DATA[0])


def test_texts_are_written_on_any_device() -> None:
    prompts = DATA[0]["input_ids"][:2]
    writer = fitted("monteclora", cases.model("Llama", "ForCausalLM")().double(), {"input_ids": DATA[0]["input_ids"]})
    for device in (ACCELERATOR, "cpu"):
        assert writer.to(device).generate(prompts, 2, max_new_tokens=3).tokens.shape[0] == 2
