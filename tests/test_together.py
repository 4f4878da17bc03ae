"""Programs of a user's own: those for one draw are refused before training, and densities count all that they say."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn

import bayeslora
from bayeslora import diagnostics, facts, guides, priors, together
from bayeslora.adapters import AdaptedNetwork, Factors, Stack
from bayeslora.diagnostics.densities import densities, draw_with_latents
from bayeslora.elbo import MeanFieldELBO, total
from bayeslora.methods import AutoGuide
from bayeslora.program import Program
from bayeslora.tasks import Classification

N, T = 20, 0.3
X = torch.randn(N, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
ROWS = X, (X[:, 0] > 0).long()


def network() -> nn.Module:
    torch.manual_seed(0)
    widths = (6, 8, 8, 8, 2)
    return nn.Sequential(*(nn.Linear(d_in, d_out) for d_in, d_out in pairwise(widths)))


def sampled(stack: Stack) -> tuple[torch.Tensor, torch.Tensor]:
    shapes = (torch.zeros(shape, dtype=torch.float64) for shape in (stack.A_shape, stack.B_shape))
    A, B = (
        pyro.sample(stack.site(name), dist.Normal(zeros, 0.25).to_event(2))
        for name, zeros in zip("AB", shapes, strict=True)
    )
    return A, B


def plain(stack: Stack) -> Factors:
    with stack.layers:
        return Factors(*sampled(stack))


def penalised(stack: Stack) -> Factors:
    with stack.layers:
        A, B = sampled(stack)
        pyro.factor(stack.site("penalty"), -A.square().sum((-2, -1)))
    return Factors(A, B)


def observed(stack: Stack) -> Factors:
    with stack.layers:
        A, B = sampled(stack)
        pyro.sample(stack.site("sum"), dist.Normal(A.sum((-2, -1)), 1.0), obs=torch.ones(len(stack)).to(A))
        pyro.deterministic(stack.site("largest"), A.amax((-2, -1)))
    return Factors(A, B)


def scaled(stack: Stack) -> Factors:
    with poutine.scale(scale=0.5), stack.layers:
        return Factors(*sampled(stack))


def masked(stack: Stack) -> Factors:
    with poutine.mask(mask=torch.arange(len(stack)) == 0), stack.layers:
        return Factors(*sampled(stack))


def nested(stack: Stack) -> Factors:
    """Rows of A in a plate that B is not in."""
    with stack.layers:
        with pyro.plate(stack.site("rows"), stack.rank, dim=-2):
            a = pyro.sample(stack.site("a"), dist.Normal(torch.zeros(stack.A_shape[1]).to(X), 0.25).to_event(1))
        B = pyro.sample(stack.site("B"), dist.Normal(torch.zeros(stack.B_shape).to(X), 0.25).to_event(2))
    return Factors(a.transpose(-3, -2), B)


def common(stack: Stack) -> Factors:
    """A vector that all layers of a stack share."""
    weights = pyro.sample(stack.site("weights"), dist.LogNormal(torch.zeros(stack.rank).to(X), 0.25).to_event(1))
    with stack.layers:
        A, B = sampled(stack)
    return Factors(A * weights[..., :, None], B)


def program_of(prior_program: Callable[[Stack], Any]) -> Program:
    adapted = AdaptedNetwork(network().double(), rank=2, alpha=4, num_examples=N)
    method = AutoGuide(prior_program=prior_program, init_scale=0.1, temperature=T)
    return Program(adapted, method, Classification(2).double())


def batch() -> dict[str, torch.Tensor]:
    return {"input": ROWS[0], "labels": ROWS[1]}


@pytest.mark.parametrize("prior_program", [plain, penalised, observed, scaled, masked, common])
def test_the_loss_is_that_of_pyro_s_own_elbo(prior_program: Any) -> None:
    program = program_of(prior_program)
    found = []
    for loss in (lambda *run: total(MeanFieldELBO().terms(*run)[0]).item(), Trace_ELBO().loss):
        torch.manual_seed(2)
        found.append(loss(program.model, lambda _: program.guide(), batch()))
    assert found[0] == pytest.approx(found[1], abs=1e-12)


@pytest.mark.parametrize("prior_program", [plain, penalised, observed, scaled, masked, common, nested])
def test_densities_count_factors_observations_masks_and_scales(prior_program: Any) -> None:
    """By hand: what Pyro says of the program at each draw alone, in units of the divergence's weight."""
    program = program_of(prior_program)
    sites, latents = draw_with_latents(program, 3, 0)
    found = densities(program, sites, latents)
    assert found.temperature == pytest.approx(T)
    for index in range(3):
        own = {name: value[index] for name, value in sites.items()}
        trace = poutine.trace(poutine.condition(program.factors, data=own)).get_trace()
        expected = trace.log_prob_sum() / (T / N)
        assert sum(found.log_prior.values())[index] == pytest.approx(expected.item(), abs=1e-9)
    together.check(program)


def test_a_factor_is_part_of_the_target() -> None:
    """A Gaussian penalty is a Gaussian prior of another width, and has the same weights."""

    def narrower(stack: Stack) -> Factors:
        # exp(-a²) N(a; 0, 1/4) is, up to a constant, N(a; 0, 1 / √(16 + 2)).
        with stack.layers:
            shape = torch.full(stack.A_shape, 18**-0.5, dtype=torch.float64)
            A = pyro.sample(stack.site("A"), dist.Normal(0.0, shape).to_event(2))
            B = pyro.sample(stack.site("B"), dist.Normal(torch.zeros(stack.B_shape).to(X), 0.25).to_event(2))
        return Factors(A, B)

    weights = []
    for prior_program in (penalised, narrower):
        program = program_of(prior_program)
        found = densities(program, *draw_with_latents(program, 20, 0))
        weights.append(found.divergence - found.divergence.mean())
    torch.testing.assert_close(*weights)


@pytest.mark.parametrize("prior_program", [plain, penalised, observed, scaled])
def test_what_a_program_weighs_counts_once_in_what_is_learned_on(prior_program: Any) -> None:
    settings: dict[str, Any] = {"rank": 2, "epochs": 0, "progress": False}
    first = bayeslora.fit(network().double(), ROWS, AutoGuide(prior_program=prior_program), **settings)
    second = bayeslora.fit(network().double(), ROWS, prior=first, **settings)
    program = second.program
    terms, _ = MeanFieldELBO().terms(program.model, lambda _: program.guide(), batch())
    divergence = sum(value.detach() for name, value in terms.items() if name != "labels")
    assert float(divergence) == pytest.approx(0.0, abs=1e-12)
    found = densities(program, *draw_with_latents(program, 5, 0))
    torch.testing.assert_close(found.divergence, torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-9)


def test_the_sampler_refuses_the_prior_that_an_automatic_guide_left() -> None:
    settings: dict[str, Any] = {"rank": 2, "epochs": 0, "progress": False}
    first = bayeslora.fit(network().double(), ROWS, AutoGuide(prior_program=plain), **settings)
    second = bayeslora.fit(network().double(), ROWS, prior=first, **settings)
    with pytest.raises(ValueError, match="is computed from other numbers in the automatic guide that is the prior"):
        diagnostics.gold(second, ROWS, 4, 1)


def test_a_prior_that_weighs_its_draws_is_not_drawn_from() -> None:
    posterior = bayeslora.fit(network().double(), ROWS, AutoGuide(prior_program=penalised), epochs=0, progress=False)
    assert "prior" not in posterior.to_arviz(ROWS, 5).groups()
    with pytest.raises(ValueError, match=r"has no prior to simulate from: .* by factors or observations of its own"):
        diagnostics.sbc(posterior, ROWS, num_simulations=2, num_draws=3, steps=1)


def test_a_program_is_shown_by_its_name() -> None:
    method = AutoGuide(prior_program=plain, autoguide=partial(AutoNormal, init_scale=0.1))
    assert facts.method(method) == "autoguide, prior_program=plain, autoguide=partial"


@pytest.mark.parametrize("prior_program", [nested, common])
def test_sites_of_other_plates_than_the_layers_are_predicted_and_shown(prior_program: Any) -> None:
    posterior = bayeslora.fit(
        network().double(), ROWS, AutoGuide(prior_program=prior_program), rank=2, epochs=1, progress=False
    )
    draws, probs = posterior.draw(4, seed=0), posterior.predict(ROWS, num_draws=4, seed=0).draws
    for index in range(4):
        program = posterior.program
        factors = program.factors_at({name: value[index] for name, value in draws.items()})
        with torch.no_grad():
            alone = program.network_logits(factors, {"input": ROWS[0]}).softmax(-1)
        np.testing.assert_allclose(probs[index], alone, atol=1e-12)
    shown = posterior.to_arviz(num_draws=4, raw=True).posterior
    assert shown["delta_norm_8x8"].shape == (1, 4, 2)
    assert shown["B_8x8"].dims[2:] == ("layer_8x8", "B_8x8_0", "B_8x8_1")
    own = shown["a_8x8" if prior_program is nested else "weights_8x8"]
    assert own.dims[2:] == (("a_8x8_0", "layer_8x8", "a_8x8_1") if prior_program is nested else ("weights_8x8_0",))


def for_one_draw(stack: Stack) -> Factors:
    scale = pyro.sample(stack.site("scale"), dist.HalfNormal(0.5))
    with stack.layers:
        zeros = (torch.zeros(shape) for shape in (stack.A_shape, stack.B_shape))
        A, B = (
            pyro.sample(stack.site(name), dist.Normal(zero, scale * torch.ones_like(zero)).to_event(2))
            for name, zero in zip("AB", zeros, strict=True)
        )
    return Factors(A, B)


def over_all(stack: Stack) -> Factors:
    with stack.layers:
        A, B = sampled(stack)
    return Factors(A / (1 + A.norm()), B)


def along_the_first(stack: Stack) -> Factors:
    with stack.layers:
        A, B = sampled(stack)
    return Factors(A.cumsum(0), B)


def factor_over_all(stack: Stack) -> Factors:
    with stack.layers:
        A, B = sampled(stack)
    pyro.factor(stack.site("penalty"), -A.square().sum())
    return Factors(A, B)


def stacked_on_the_left(stack: Stack) -> Factors:
    rows = [sampled_alone(stack, index) for index in range(len(stack))]
    return Factors(*(torch.stack(factor) for factor in zip(*rows, strict=True)))


def sampled_alone(stack: Stack, index: int) -> tuple[torch.Tensor, ...]:
    return tuple(
        pyro.sample(stack.site(f"{name}{index}"), dist.Normal(torch.zeros(shape), 0.25).to_event(2))
        for name, shape in (("A", stack.A_shape), ("B", stack.B_shape))
    )


def noisy(stack: Stack) -> Factors:
    with stack.layers:
        A, B = sampled(stack)
    return Factors(A + torch.randn(()), B)


ONE = "The prior of 'autoguide' is not written for several draws at once: "


@pytest.mark.parametrize(
    ("prior_program", "message"),
    [
        (for_one_draw, rf"{ONE}The size of tensor a \(3\) must match .*\. Every draw adds a dimension on the left: "),
        (over_all, f"{ONE}A of stack '6x8' is not that of each draw alone"),
        (along_the_first, f"{ONE}A of stack '6x8' is not that of each draw alone"),
        (factor_over_all, f"{ONE}the density of '6x8.penalty' is not that of each draw alone"),
        (stacked_on_the_left, rf"{ONE}at 3 draws, A of stack '6x8' has shape \(1, 3, 2, 6\), not \(3, 1, 2, 6\)"),
        (noisy, "The prior of 'autoguide' returns other factors for the same sites each time: what is random in it"),
    ],
)
def test_programs_for_one_draw_are_refused_before_training(prior_program: Any, message: str) -> None:
    model = network().double() if prior_program in (over_all, along_the_first, factor_over_all, noisy) else network()
    with pytest.raises(ValueError, match=message):
        bayeslora.fit(model, ROWS, AutoGuide(prior_program=prior_program), rank=2, targets=["0"], progress=False)


def with_parameter(stack: Stack) -> Factors:
    pyro.param("scale", lambda: torch.tensor(1.0), constraint=dist.constraints.positive)
    return plain(stack)


def discrete(stack: Stack) -> Factors:
    with stack.layers:
        kept = pyro.sample(stack.site("kept"), dist.Bernoulli(0.5))
        A, B = sampled(stack)
    return Factors(A * kept[..., None, None], B)


def improper(stack: Stack) -> Factors:
    with stack.layers:
        pyro.sample(stack.site("width"), dist.ImproperUniform(dist.constraints.positive, (), ()))
        return Factors(*sampled(stack))


def mixed(stack: Stack) -> Factors:
    weights, scales = dist.Categorical(torch.ones(*stack.A_shape, 2)), torch.tensor([0.01, 0.3])
    slabs = dist.MixtureSameFamily(weights, dist.Normal(torch.zeros(*stack.A_shape, 2), scales))
    with stack.layers:
        _, B = sampled(stack)
        return Factors(pyro.sample(stack.site("spikes"), slabs.to_event(2)), B)


def without_its_stack(stack: Stack) -> Factors:
    with stack.layers:
        pyro.sample("labels", dist.Normal(0.0, 1.0))
        return Factors(*sampled(stack))


def the_other_way_round(stack: Stack) -> Factors:
    return Factors(*reversed(plain(stack)))


@pytest.mark.parametrize(
    ("prior_program", "error", "message"),
    [
        (with_parameter, ValueError, "The prior program has a pyro.param, 'scale', but what is learned belongs to the"),
        (discrete, ValueError, "Site '6x8.kept' of the prior program is drawn from Bernoulli, which is discrete"),
        (improper, ValueError, "The prior program: ImproperUniform does not support sampling. Give a proper"),
        (mixed, ValueError, "Site '6x8.spikes' of the prior program is drawn from MixtureSameFamily, whose support"),
        (without_its_stack, ValueError, r"calls something 'labels': name it stack.site\('labels'\), because every"),
        (the_other_way_round, ValueError, r"A of shape \(1, 8, 2\) for stack '6x8': give it the shape \(1, 2, 6\)"),
        (lambda stack: tuple(plain(stack)), TypeError, r"returns a tuple, not the factors of its stack: stack.family."),
        (lambda stack: None, TypeError, r"returns a NoneType, not the factors of its stack"),
    ],
)
def test_what_no_automatic_guide_can_use_is_said(prior_program: Any, error: type, message: str) -> None:
    model, before = network().double(), torch.get_rng_state()
    with pytest.raises(error, match=message):
        bayeslora.fit(model, ROWS, AutoGuide(prior_program=prior_program), rank=2, progress=False)
    assert not pyro.get_param_store().keys()
    assert torch.equal(torch.get_rng_state(), before)


@dataclass(frozen=True)
class Apart(bayeslora.PerStackMethod):
    """A method whose guide was written for one draw: a site beside that of all layers, counted from the left."""

    name = "apart"

    def stack_prior(self, stack: Stack) -> Factors:
        width = pyro.sample(stack.site("width"), dist.LogNormal(torch.zeros(()), 1.0))
        with stack.layers:
            A = pyro.sample(stack.site("A"), priors.normal(stack.A_shape, 0.2))
            B = pyro.sample(stack.site("B"), priors.flat(stack.B_shape))
        return Factors(A * width[..., None, None], B)

    def stack_guide(self, stack: Stack) -> nn.Module:
        return ApartGuide(stack)


class ApartGuide(nn.Module):
    def __init__(self, stack: Stack):
        super().__init__()
        self.stack = stack
        self.A = nn.Parameter(guides.kaiming(len(stack), *stack.A_shape))
        self.B = nn.Parameter(torch.zeros(len(stack), *stack.B_shape))

    def forward(self) -> None:
        width = pyro.sample(self.stack.site("width"), dist.LogNormal(torch.zeros(()), 0.1))
        with self.stack.layers:
            pyro.sample(self.stack.site("A"), dist.Normal(self.A, width * torch.ones_like(self.A)).to_event(2))
            pyro.sample(self.stack.site("B"), dist.Delta(self.B, event_dim=2))


def test_a_method_of_one_s_own_is_held_to_it_too() -> None:
    with pytest.raises(ValueError, match="The guide of 'apart' is not written for several draws at once: "):
        bayeslora.fit(network(), (X.float(), ROWS[1]), Apart(), rank=2, progress=False)


@dataclass(frozen=True)
class Unequal(bayeslora.PerStackMethod):
    """A method that weighs its divergence in the prior, and not in the guide, which is the one that counts."""

    name = "unequal"
    guides_scale: float = 1.0

    def stack_prior(self, stack: Stack) -> Factors:
        with stack.layers, poutine.scale(scale=1 / stack.num_examples):
            A = pyro.sample(stack.site("A"), priors.normal(stack.A_shape, 0.2))
            B = pyro.sample(stack.site("B"), priors.flat(stack.B_shape))
        return Factors(A, B)

    def stack_guide(self, stack: Stack) -> nn.Module:
        return guides.Sites(
            stack,
            scale=self.guides_scale,
            A=guides.Normal(guides.kaiming(len(stack), *stack.A_shape), 0.02),
            B=guides.Point(torch.zeros(len(stack), *stack.B_shape)),
        )


def test_a_divergence_of_two_weights_has_the_guide_s_and_is_said(caplog: pytest.LogCaptureFixture) -> None:
    settings: dict[str, Any] = {"rank": 2, "epochs": 0, "progress": False}
    posterior = bayeslora.fit(network(), (X.float(), ROWS[1]), Unequal(), **settings)
    said = [record.getMessage() for record in caplog.records if "poutine" in record.getMessage()]
    assert said[0] == (
        "'unequal' has site '6x8.A' at scale 0.05 in its prior, and at 1 in its guide, whose counts: set the same "
        "poutine.scale around it in both."
    )
    program, sites = posterior.program, posterior.draw(3, seed=0)
    found = densities(program, sites, {})
    expected = sum(
        dist.Normal(0.0, 0.2).log_prob(value).flatten(1).sum(1) for name, value in sites.items() if name[-1] == "A"
    )
    assert found.temperature == N
    torch.testing.assert_close(sum(found.log_prior.values()), expected.double(), rtol=1e-5, atol=0)
    caplog.clear()
    bayeslora.fit(network(), (X.float(), ROWS[1]), Unequal(1 / N), **settings)
    assert not any("poutine" in record.getMessage() for record in caplog.records)
