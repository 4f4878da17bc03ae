"""Pyro's automatic guides over any prior: what they sample, where they start, and how they are saved."""

from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoGuideList, AutoLowRankMultivariateNormal, AutoNormal

import bayeslora
from bayeslora import guides
from bayeslora.adapters import AdaptedNetwork, Factors, Stack
from bayeslora.elbo import MeanFieldELBO, total
from bayeslora.methods import AutoGuide
from bayeslora.program import Program
from bayeslora.tasks import Classification
from tests.helpers import batch, tiny_bert, tokens

GUIDES = ["AutoNormal", "AutoDiagonalNormal", "AutoLowRankMultivariateNormal", "AutoDelta"]
FIT: dict[str, Any] = {"epochs": 2, "learning_rate": 5e-3, "rank": 2, "targets": "attention", "progress": False}


def horseshoe(stack: Stack) -> Factors:
    """A scale per layer, common to its entries, and one for the whole stack."""
    name = stack.name
    overall = pyro.sample(f"{name}.overall", dist.HalfNormal(0.5))
    with stack.layers:
        scale = pyro.sample(f"{name}.scale", dist.LogNormal(-2.0, 0.5))
        width = (overall * scale)[..., None, None]
        A = pyro.sample(f"{name}.A", dist.Normal(0.0, width * torch.ones(stack.A_shape)).to_event(2))
        B = pyro.sample(f"{name}.B", dist.Normal(0.0, width * torch.ones(stack.B_shape)).to_event(2))
    return Factors(A, B)


def make_program(**fields: Any) -> Program:
    network = AdaptedNetwork(tiny_bert(), targets="attention", rank=2, alpha=4, num_examples=48)
    return Program(network, AutoGuide(**fields), Classification(3))


@pytest.mark.parametrize("autoguide", GUIDES)
@pytest.mark.parametrize("prior_program", [None, horseshoe])
def test_every_guide_starts_at_the_base_network_and_trains(autoguide: str, prior_program: Any) -> None:
    program = make_program(autoguide=autoguide, prior_program=prior_program)
    inputs = batch(5)
    words = {name: value for name, value in inputs.items() if name != "labels"}
    program.network.eval()
    torch.testing.assert_close(program.eval()(**inputs).logits, tiny_bert()(**words).logits)
    program.train()(**inputs).loss.backward()
    assert all(parameter.grad is not None for _, parameter in program.trainable())
    draws = program.draw(3)
    assert draws["32x32.A"].shape == (3, 6, 2, 32)
    assert not any("unconstrained" in name or "latent" in name for name in draws)
    assert program.eval().logits(draws, words).shape == (3, 5, 3)


def apart(stack: Stack) -> Factors:
    """A prior program whose site has another name than a factor, so that it starts at the mean of its prior."""
    with stack.layers:
        noise = pyro.sample(stack.site("noise"), dist.Normal(torch.zeros(stack.A_shape), 1.0).to_event(2))
    return Factors(noise / 10, torch.ones(*noise.shape[:-2], *stack.B_shape))


@pytest.mark.parametrize("autoguide", ["AutoNormal", "AutoDelta"])
def test_every_layer_has_numbers_of_its_own(autoguide: str) -> None:
    """A mean that a plate expands is one row of memory: layers would share it, and an optimiser write beyond it."""
    program = make_program(autoguide=autoguide, prior_program=apart)
    for name, parameter in program.guide.named_parameters():
        assert parameter.untyped_storage().nbytes() == parameter.numel() * parameter.element_size(), name
    program.train()(**batch(5)).loss.backward()
    optimizer = torch.optim.SGD(program.guide.parameters(), 0.1)
    optimizer.step()
    first, *others = program.centre()["32x32.noise"]
    assert not any(torch.equal(first, other) for other in others)


def test_joint_guides_tie_the_numbers_of_a_stack() -> None:
    torch.manual_seed(4)
    program = make_program(autoguide=partial(AutoLowRankMultivariateNormal, rank=1), init_scale=1e-3)
    with torch.no_grad():
        program.guide["32x32"].auto.cov_factor.fill_(30.0)  # in units of the scale
        draws, centre = program.draw(50), program.centre()
    A, B = ((draws[f"32x32.{name}"] - centre[f"32x32.{name}"].detach()).flatten(1) for name in "AB")
    assert float(torch.corrcoef(torch.stack([A[:, 0], B[:, -1]]))[0, 1]) > 0.99


def test_constrained_sites_count_their_jacobian() -> None:
    # Pyro's Trace_ELBO evaluates every density at the draw.
    program = make_program(prior_program=horseshoe, init_scale=0.3)
    inputs = batch(5)
    losses = []
    for elbo in (MeanFieldELBO(), Trace_ELBO()):
        torch.manual_seed(2)
        program.network.eval()
        if isinstance(elbo, MeanFieldELBO):
            losses.append(total(elbo.terms(program.model, lambda _: program.guide(), inputs)[0]).item())
        else:
            losses.append(elbo.loss(program.model, lambda _: program.guide(), inputs))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_trained_lora_is_the_median_it_starts_from() -> None:
    lora = bayeslora.fit(tiny_bert(), tokens(), "lora", **FIT)
    program = bayeslora.fit(tiny_bert(), tokens(), "autoguide", init=lora, **(FIT | {"epochs": 0})).program
    for name, factors in lora.program.factors_at(lora.program.centre()).items():
        torch.testing.assert_close(program.factors_at(program.centre())[name], factors)


@pytest.mark.parametrize(
    ("autoguide", "spreads"),
    [
        ("AutoNormal", {"scales"}),
        ("AutoDiagonalNormal", {"scale"}),
        ("AutoLowRankMultivariateNormal", {"scale", "cov"}),
        ("AutoDelta", set()),
    ],
)
@pytest.mark.parametrize("prior_program", [None, horseshoe])
def test_spreads_of_pyros_guides_are_known_whatever_the_sites_are_called(
    autoguide: str, spreads: set[str], prior_program: Any
) -> None:
    # The horseshoe has a site named "scale", whose place is none.
    guide = make_program(autoguide=autoguide, prior_program=prior_program).guide
    found = {id(parameter) for parameter in guides.spreads(guide)}
    names = [name.split(".auto.")[1] for name, parameter in guide.named_parameters() if id(parameter) in found]
    assert {name.split(".")[0].split("_")[0] for name in names} == spreads
    assert len(names) == len(found)


def test_spreads_of_guides_within_pyros_list_are_found() -> None:
    def make(program: Any, init_loc_fn: Any) -> AutoGuideList:
        parts = AutoGuideList(program)
        parts.append(AutoNormal(poutine.block(program, expose=["32x32.A"]), init_loc_fn=init_loc_fn))
        parts.append(AutoNormal(poutine.block(program, hide=["32x32.A"]), init_loc_fn=init_loc_fn))
        return parts

    stack = AdaptedNetwork(tiny_bert(), targets="attention", rank=2).stacks["32x32"]
    with pyro.settings.context(module_local_params=True):
        guide = make(partial(AutoGuide().sites, stack), pyro.infer.autoguide.init_to_mean)
        guide()
    found = {id(parameter) for parameter in guides.spreads(guide)}
    assert found == {id(parameter) for name, parameter in guide.named_parameters() if ".scales." in name}
    assert len(found) == 2


def test_a_guide_given_by_name_comes_back_from_disk(tmp_path: Path) -> None:
    posterior = bayeslora.fit(tiny_bert(), tokens(), "autoguide", autoguide=AutoNormal, output_dir=tmp_path, **FIT)
    loaded = bayeslora.load(tmp_path, tiny_bert())
    assert loaded.method == AutoGuide(autoguide="AutoNormal")
    draws, again = posterior.draw(2), loaded.draw(2)
    assert all(torch.equal(draws[name], again[name]) for name in draws)


def test_a_function_of_ones_own_is_passed_again(tmp_path: Path) -> None:
    method = AutoGuide(prior_program=horseshoe)
    posterior = bayeslora.fit(tiny_bert(), tokens(), method, output_dir=tmp_path, **FIT)
    with pytest.raises(
        ValueError, match=r"prior_program='tests.methods.test_autoguide.horseshoe' is the name of a fun"
    ):
        bayeslora.load(tmp_path, tiny_bert())
    with pytest.raises(ValueError, match="'prior_program': None"):
        bayeslora.load(tmp_path, tiny_bert(), method=AutoGuide())
    loaded = bayeslora.load(tmp_path, tiny_bert(), method=method)
    draws, again = posterior.draw(2), loaded.draw(2)
    assert all(torch.equal(draws[name], again[name]) for name in draws)


def test_guides_that_do_not_fit_say_what_does() -> None:
    with pytest.raises(ValueError, match=r"autoguide='Nonsense' is not one of Pyro's \(AutoDiagonalNormal, "):
        AutoGuide(autoguide="Nonsense")

    class Flow(AutoNormal):
        def median(self) -> dict[str, torch.Tensor]:
            raise NotImplementedError  # as those of Pyro without a median do

    with pytest.raises(ValueError, match="Flow has no median"):
        make_program(autoguide=Flow)
    with pytest.raises(ValueError, match="autoguide: AutoGuideList takes no init_loc_fn, which says where it starts"):
        make_program(autoguide="AutoGuideList")
    with pytest.raises(ValueError, match=r"temperature=0.0: give a positive finite number"):
        AutoGuide(temperature=0.0)
