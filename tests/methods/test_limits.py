"""Corners with a known answer."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from scipy import stats

import bayeslora
from bayeslora.adapters import Stack, Stacks
from bayeslora.elbo import MeanFieldELBO, total
from bayeslora.methods import BLoB, Method, MonteCLoRA, ScalaBL, make_method
from bayeslora.methods.point import LoRA
from bayeslora.program import Program
from tests.helpers import FAILURE_RATE, assert_mean_close, assert_uniform, batch, tiny_bert, tokens
from tests.methods.conftest import randomise

Make = Callable[..., Program]


def settle(method: Method, stack: Stack, steps: int = 250, rate: float = 0.1) -> torch.nn.Module:
    """The guide that a method's own terms lead to, without any data."""
    stacks = Stacks([stack])
    guide = method.guide(stacks)
    optimizer = torch.optim.Adam(guide.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(steps):
        optimizer.zero_grad()
        terms, _ = MeanFieldELBO().terms(lambda: method.prior(stacks), guide)
        total(terms).backward()
        optimizer.step()
        schedule.step()
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


def test_without_spread_scalabl_is_lora(make_program: Make) -> None:
    lora, scalabl = randomise(make_program("lora", double=True)), make_program("scalabl", double=True)
    with torch.no_grad():
        for name in lora.stacks:
            source, target = lora.guide[name].sites, scalabl.guide[name].sites
            for factor in "AB":
                target[factor].loc.copy_(source[factor].loc)
            target["g"].log_scale.fill_(-60)  # less than a rounding error of its mean, 1, at a finite divergence
        scalabl.network.model.classifier.load_state_dict(lora.network.model.classifier.state_dict())
    outputs = lora(**batch(6)), scalabl(**batch(6))
    assert torch.equal(outputs[0].logits, outputs[1].logits)
    assert torch.equal(lora.terms["labels"], scalabl.terms["labels"])
    for output in outputs:
        output.loss.backward()
    for name in lora.stacks:
        for factor in "AB":
            source, target = (program.guide[name].sites[factor].loc for program in (lora, scalabl))
            assert torch.equal(source.grad, target.grad)


@pytest.mark.parametrize("name", ["lora_dropout", "mc_dropout"])
def test_without_dropout_the_dropout_methods_are_lora(make_program: Make, name: str) -> None:
    methods = (("lora", {}), (name, {"p": 0.0}))
    programs = [randomise(make_program(method, **fields)).train() for method, fields in methods]
    parameters = [dict(program.trainable()) for program in programs]
    for values in zip(*(p.values() for p in parameters), strict=True):
        assert torch.equal(*values)
    outputs = [program(**batch(6)) for program in programs]
    assert torch.equal(outputs[0].logits, outputs[1].logits)
    assert torch.equal(outputs[0].loss, outputs[1].loss)
    for output in outputs:
        output.loss.backward()
    for values in zip(*(p.values() for p in parameters), strict=True):
        assert torch.equal(values[0].grad, values[1].grad)
    draws = [program.eval().logits(program.draw(2), batch(6)) for program in programs]
    assert torch.equal(*draws)


@pytest.mark.parametrize("name", ["lora_dropout", "mc_dropout"])
def test_a_fit_without_dropout_is_loras_bit_for_bit(name: str) -> None:
    # The network's own dropout and the order of the data draw from the same stream: no mask may take from it.
    settings = {"epochs": 2, "learning_rate": 1e-2, "rank": 2, "progress": False}
    lora = bayeslora.fit(tiny_bert(), tokens(), "lora", **settings)
    dropout = bayeslora.fit(tiny_bert(), tokens(), name, p=0.0, num_particles=1, **settings)
    for values in zip(lora.program.trainable(), dropout.program.trainable(), strict=True):
        assert torch.equal(values[0][1], values[1][1])
    assert dropout.history["loss"].tolist() == lora.history["loss"].tolist()


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


def test_without_data_a_mean_field_guide_returns_its_prior(stack: Stack) -> None:
    blob = settle(BLoB(prior_scale=0.3), stack)["6x5"].sites["A"]()
    torch.testing.assert_close(blob.mean, torch.zeros(2, 3, 6), rtol=0, atol=1e-3)
    torch.testing.assert_close(blob.stddev, torch.full((2, 3, 6), 0.3), rtol=1e-3, atol=0)
    scalabl = settle(ScalaBL(prior_scale=0.5), stack)["6x5"].sites["g"]()
    torch.testing.assert_close(scalabl.mean, torch.zeros(2, 3), rtol=0, atol=1e-3)
    torch.testing.assert_close(scalabl.stddev, torch.full((2, 3), 0.5), rtol=1e-3, atol=0)


def test_a_map_prior_adds_its_log_density_per_example(make_program: Make) -> None:
    plain = randomise(make_program("lora", double=True))
    withprior = randomise(make_program("lora", double=True, prior_scale=0.5))
    withprior.load_state_dict(plain.state_dict())
    difference = (withprior(**batch(6)).loss - plain(**batch(6)).loss).item()
    density = sum(
        torch.distributions.Normal(0.0, 0.5).log_prob(parameter).sum() for parameter in plain.guide.parameters()
    )
    assert difference == pytest.approx(-density.item() / 48, rel=1e-9)


def draws_of_A(method: MonteCLoRA, stack: Stack, num_draws: int = 20_000) -> tuple[torch.Tensor, torch.nn.Module]:
    """Draws of `A` from a guide moved off its start, v alone."""
    stacks = Stacks([stack])
    guide = method.guide(stacks).double()
    with torch.no_grad():
        guide["6x5"].log_scale_diag.add_(torch.tensor([0.5, -0.7, 0.1]))
        guide["6x5"].loc.zero_()
        with pyro.validation_enabled(False):
            with pyro.plate("draws", num_draws, dim=-2):
                trace = poutine.trace(guide).get_trace()
            sites = {name: site["value"] for name, site in trace.nodes.items() if name.startswith("6x5.")}
            return poutine.condition(method.prior, data=sites)(stacks)["6x5"].A, guide["6x5"]


def test_sparse_weights_are_one_component_in_law(stack: Stack) -> None:
    settings = {"sample_scale": 0.1, "df": 4.0}
    sparse, _ = draws_of_A(MonteCLoRA(sparse=True, components=5, **settings), stack)
    single, _ = draws_of_A(MonteCLoRA(components=1, **settings), stack)
    for layer in range(2):
        for row in range(3):
            samples = [draws[:, layer, row, 0].numpy() for draws in (sparse, single)]
            assert stats.ks_2samp(*samples).pvalue > FAILURE_RATE
    # Their loudness is the same function of c, too.
    ratios = [MonteCLoRA(sparse=s, components=k).scale_of_noise(stack, 4.0) for s, k in ((True, 5), (False, 1))]
    assert ratios[0] == pytest.approx(ratios[1])


def test_infinite_degrees_of_freedom_with_one_component_are_a_row_scaled_gaussian(stack: Stack) -> None:
    A, guide = draws_of_A(MonteCLoRA(df=math.inf, components=1, sample_scale=0.3), stack)
    standard_deviation = 0.3 * guide.log_scale_diag.exp().sqrt()
    white = (A / standard_deviation[..., None]).detach()
    assert_uniform(stats.norm.cdf(white[:4_000, 1, 2, 3].numpy()))
    assert_mean_close(white.square(), 1.0)
    assert_mean_close(white[:, :, 0] * white[:, :, 1], 0.0)


def test_infinite_degrees_of_freedom_have_no_wishart_divergence(stack: Stack) -> None:
    method = MonteCLoRA(df=math.inf, kl_weight=1.0)
    stacks = Stacks([stack])
    terms, _ = MeanFieldELBO().terms(lambda: method.prior(stacks), method.guide(stacks))
    assert "6x5.cov_tril" not in terms
    # KL_N of N(0, V) to N(0, I) alone: v settles at 1.
    guide = settle(MonteCLoRA(df=math.inf, kl_weight=1.0, cooperative=False), stack)["6x5"]
    torch.testing.assert_close(guide.log_scale_diag, torch.zeros(2, 3), rtol=0, atol=1e-3)


@pytest.mark.slow
def test_elbo_is_the_brute_force_bound(make_program: Make) -> None:
    # E log p(y | A, B) − temperature / n (log q − log p), all of it from densities at draws.
    program = randomise(make_program("monteclora", double=True, objective="elbo", temperature=0.3, noise_ratio=0.5))
    inputs = batch(6)
    with torch.no_grad(), pyro.validation_enabled(False):
        analytic = torch.stack([program(**inputs).loss for _ in range(600)])
        by_hand = torch.stack([brute_force(program, inputs) for _ in range(600)])
    error = (analytic.var() / 600 + by_hand.var() / 600).sqrt()
    assert abs(analytic.mean() - by_hand.mean()) < 4.3 * error
    assert analytic.var() < by_hand.var()


def brute_force(program: Program, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """One draw of the negative bound per example, from the log-densities of prior and guide."""
    guide_trace = poutine.trace(program.guide).get_trace()
    model = poutine.trace(poutine.replay(program.factors, trace=guide_trace))
    model_trace = model.get_trace()
    logits = program.network(model_trace.nodes["_RETURN"]["value"], {k: v for k, v in inputs.items() if k != "labels"})
    divergence = torch.zeros((), dtype=torch.float64)
    for name, site in guide_trace.nodes.items():
        if site["type"] != "sample" or name.endswith(".layers"):
            continue
        prior = model_trace.nodes[name]["fn"]
        divergence = divergence - prior.log_prob(site["value"]).sum()
        if not name.endswith(".B"):  # a point has no density
            divergence = divergence + site["fn"].log_prob(site["value"]).sum()
    nll = torch.nn.functional.cross_entropy(logits, inputs["labels"])
    return nll + 0.3 / 48 * divergence


@pytest.mark.parametrize("scale", [None, 0.3])
def test_elbo_has_a_prior_of_the_stated_scale(stack: Stack, scale: float | None) -> None:
    method = MonteCLoRA(objective="elbo", noise_ratio=2.0, prior_scale=scale)
    with pyro.plate("draws", 20_000, dim=-2):
        trace = poutine.trace(method.prior).get_trace(Stacks([stack]))
    expected = 2 / math.sqrt(18) if scale is None else scale
    assert_mean_close(trace.nodes["6x5.A"]["value"].square(), expected**2)
    assert trace.nodes["6x5.A"]["scale"] == pytest.approx(1 / 10)


def test_elbo_needs_a_finite_mean_of_the_inverse_covariance(stack: Stack) -> None:
    with pytest.raises(ValueError, match=r"df=4.0: Σ needs at least rank \+ 2 = 5 degrees of freedom"):
        MonteCLoRA(objective="elbo", df=4.0).guide(Stacks([stack]))
    assert MonteCLoRA(objective="elbo", df=5.0).degrees_of_freedom(stack) == 5


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("blob", {}),
        ("scalabl", {}),
        ("ivon", {}),
        ("autoguide", {}),
        ("monteclora", {"objective": "elbo"}),
        ("monteclora", {"objective": "elbo", "analytic": False, "df": 9.0}),
        ("lora_dropout", {"p": "learn", "prior_p": 0.3}),
    ],
)
def test_without_data_the_law_of_a_posterior_is_its_prior(stack: Stack, method: str, fields: dict[str, Any]) -> None:
    chosen, stacks = make_method(method, **fields, temperature=1.0), Stacks([stack])
    assert chosen.claims == "posterior"
    torch.manual_seed(0)
    guide = settle(chosen, stack, steps=800, rate=0.02).eval()
    with torch.no_grad(), pyro.validation_enabled(False):
        q, p = (draws_of(run) for run in (guide, lambda: chosen.prior(stacks)))
    random = [name for name, value in q.items() if not bool((value == value[:1]).all())]
    assert random
    for name in random:
        for power in (1, 2):
            sites = [site[name].double() for site in (q, p)]
            values = [value.pow(power) for value in sites]
            # All entries of a site are alike under the prior: together they show a spread that is 3 % off.
            by_draw = [value.flatten(1).mean(1) for value in values]
            error = sum(each.var() / len(each) for each in by_draw).sqrt()
            floor = 0.02 * float(sites[1].square().mean()) ** (power / 2)  # what Adam's last steps leave
            assert abs(float(by_draw[0].mean() - by_draw[1].mean())) < 4.3 * float(error) + floor, (name, power)


def draws_of(run: Callable[[], Any], num_draws: int = 4_000) -> dict[str, torch.Tensor]:
    """Draws of the sites of a program, `[draw, layer, …]`."""
    with pyro.plate("draws", num_draws, dim=-2):
        nodes = poutine.trace(run).get_trace().nodes
    return {name: site["value"] for name, site in nodes.items() if name.startswith("6x5.") and is_latent(site)}


def is_latent(site: Any) -> bool:
    return site["type"] == "sample" and type(site["fn"]).__name__ != "_Subsample" and not is_auxiliary(site)


def is_auxiliary(site: Any) -> bool:
    return bool(site["infer"].get("is_auxiliary"))


def test_post_hoc_trains_nothing_but_the_spread(make_program: Make) -> None:
    program = make_program("monteclora", post_hoc=True)
    names = {name.rpartition(".")[2] for name, parameter in program.guide.named_parameters() if parameter.requires_grad}
    assert names == {"log_concentration", "log_scale_diag"}


def test_post_hoc_leaves_adapters_and_head_bit_identical() -> None:
    lora = bayeslora.fit(tiny_bert(), tokens(), "lora", epochs=1, progress=False)
    posterior = bayeslora.fit(
        tiny_bert(), tokens(), post_hoc=True, init=lora, epochs=2, learning_rate=0.1, kl_weight=1.0, progress=False
    )
    for name in lora.network.stacks:
        assert torch.equal(posterior.guide[name].loc, lora.guide[name].sites["A"].loc)
        assert torch.equal(posterior.guide[name].B, lora.guide[name].sites["B"].loc)
        assert bool((posterior.guide[name].log_scale_diag != 0).all())
    heads = lora.network.head_state(), posterior.network.head_state()
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])
