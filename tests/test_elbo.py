"""The lean ELBO is Pyro's, and refuses what would be wrong."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO

from bayeslora.distributions import Flat
from bayeslora.elbo import MeanFieldELBO

DATA = torch.tensor([0.3, -1.2, 0.8])


def model() -> None:
    with pyro.plate("layers", 2, dim=-1), poutine.scale(scale=0.3):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        w = pyro.sample("w", dist.LogNormal(0.0, 1.0))  # no closed-form KL to a Gamma
    with pyro.plate("examples", 3, dim=-1), poutine.scale(scale=1 / 3):
        pyro.sample("y", dist.Normal((z * w).sum(-1, keepdim=True), 1.0), obs=DATA)


class Guide(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.loc = torch.nn.Parameter(torch.tensor([0.1, -0.4]))
        self.rate = torch.nn.Parameter(torch.tensor([1.5, 2.5]))

    def forward(self) -> None:
        with pyro.plate("layers", 2, dim=-1), poutine.scale(scale=0.3):
            pyro.sample("z", dist.Normal(self.loc, 0.5))
            pyro.sample("w", dist.Gamma(2.0, self.rate))
        pyro.factor("extra", self.loc.square().sum(), has_rsample=True)


@pytest.mark.parametrize("num_particles", [1, 5])
def test_value_and_gradient_are_pyros(num_particles: int) -> None:
    results = []
    for elbo in (
        MeanFieldELBO(num_particles),
        TraceMeanField_ELBO(num_particles, max_plate_nesting=1, vectorize_particles=True),
    ):
        guide = Guide()
        torch.manual_seed(3)
        loss = elbo.differentiable_loss(model, guide)
        results.append((loss, *torch.autograd.grad(loss, guide.parameters())))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_terms_sum_to_the_loss_and_carry_the_sites_names() -> None:
    torch.manual_seed(0)
    terms, _ = MeanFieldELBO().terms(model, Guide())
    assert set(terms) == {"z", "w", "y", "extra"}
    torch.manual_seed(0)
    assert sum(terms.values()).item() == pytest.approx(MeanFieldELBO().differentiable_loss(model, Guide()).item())


def test_a_point_under_a_flat_prior_has_no_term() -> None:
    def prior() -> None:
        pyro.sample("x", Flat((2,)))

    def guide() -> None:
        pyro.sample("x", dist.Delta(torch.ones(2), event_dim=1))

    assert MeanFieldELBO().terms(prior, guide)[0] == {}


def test_sites_must_be_in_both_programs() -> None:
    def one() -> None:
        pyro.sample("x", dist.Normal(0.0, 1.0))

    def none() -> None: ...

    with pytest.raises(ValueError, match="prior samples 'x', which the guide does not have"):
        MeanFieldELBO().terms(one, none)
    with pytest.raises(ValueError, match="guide samples 'x', which the prior does not have"):
        MeanFieldELBO().terms(none, one)


def test_draws_without_a_gradient_are_refused() -> None:
    def program() -> None:
        pyro.sample("x", dist.Bernoulli(torch.tensor(0.5)))

    with pytest.raises(ValueError, match="Bernoulli, which has no reparameterised draws"):
        MeanFieldELBO().terms(program, program)
