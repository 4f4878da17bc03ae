"""Corners with a known answer."""

from collections.abc import Callable

import pytest
import torch

from bayeslora.adapters import Stack, Stacks
from bayeslora.elbo import MeanFieldELBO, total
from bayeslora.methods import Method, MonteCLoRA
from bayeslora.methods.point import LoRA
from bayeslora.program import Program
from tests.helpers import batch
from tests.methods.conftest import randomise

Make = Callable[..., Program]


def settle(method: Method, stack: Stack, steps: int = 1500) -> torch.nn.Module:
    """The guide that a method's own terms lead to, without any data."""
    stacks = Stacks([stack])
    guide = method.guide(stacks)
    optimizer = torch.optim.Adam(guide.parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        terms, _ = MeanFieldELBO().terms(lambda: method.prior(stacks), guide)
        total(terms).backward()
        optimizer.step()
    return guide


def test_without_noise_monteclora_is_lora(make_program: Make) -> None:
    lora = randomise(make_program("lora", double=True))
    monteclora = make_program("monteclora", double=True, noise_ratio=0.0)
    with torch.no_grad():
        for name in lora.stacks:
            source, target = lora.guide[name].sites, monteclora.guide[name]
            target.loc.copy_(source["A"].loc)
            target.B.copy_(source["B"].loc)
        monteclora.network.model.classifier.load_state_dict(lora.network.model.classifier.state_dict())
    outputs = lora(**batch(6)), monteclora(**batch(6))
    assert torch.equal(outputs[0].logits, outputs[1].logits)
    for output in outputs:
        output.loss.backward()
    for name in lora.stacks:
        source, target = lora.guide[name].sites, monteclora.guide[name]
        torch.testing.assert_close(source["A"].loc.grad, target.loc.grad, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(source["B"].loc.grad, target.B.grad, rtol=1e-12, atol=1e-15)


def test_without_data_the_paper_objective_settles_beside_the_prior(stack: Stack) -> None:
    # KL_W pulls v to 1, KL_N pulls ν v to 1: together (ν + 1) / (2ν).
    guide = settle(MonteCLoRA(kl_weight=1.0, cooperative=False), stack)["6x5"]
    nu = stack.d_in
    torch.testing.assert_close(guide.log_scale_diag.exp(), torch.full((2, 3), (nu + 1) / (2 * nu)), rtol=1e-3, atol=0)


def test_without_data_concentrations_settle_at_the_prior(stack: Stack) -> None:
    method = MonteCLoRA(kl_weight=1.0, cooperative=False, concentration=0.7, concentration_init="random")
    guide = settle(method, stack)["6x5"]
    torch.testing.assert_close(guide.log_concentration.exp(), torch.full((2, 4), 0.7), rtol=1e-3, atol=0)


def test_without_data_the_map_estimate_is_the_priors_mode(stack: Stack) -> None:
    guide = settle(LoRA(prior_scale=0.5), stack)["6x5"]
    for site in guide.sites.values():
        torch.testing.assert_close(site.loc, torch.zeros_like(site.loc), rtol=0, atol=1e-3)


def test_a_map_prior_adds_its_log_density_per_example(make_program: Make) -> None:
    plain = randomise(make_program("lora", double=True))
    withprior = randomise(make_program("lora", double=True, prior_scale=0.5))
    withprior.load_state_dict(plain.state_dict())
    difference = (withprior(**batch(6)).loss - plain(**batch(6)).loss).item()
    density = sum(
        torch.distributions.Normal(0.0, 0.5).log_prob(parameter).sum() for parameter in plain.guide.parameters()
    )
    assert difference == pytest.approx(-density.item() / 48, rel=1e-9)
