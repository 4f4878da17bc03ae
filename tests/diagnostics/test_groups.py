"""What arviz is given: predictions as `predict` makes them, priors, densities, names, chains."""

import functools
import json
import math
import warnings
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import bayeslora
from bayeslora import METHODS, Posterior, diagnostics, metrics
from bayeslora.adapters import AdaptedNetwork, Factors, LowRank, Stack
from bayeslora.methods import AutoGuide, make_method
from bayeslora.methods.distilled import Output
from bayeslora.program import Program
from bayeslora.tasks import Classification
from tests.methods.conftest import randomise

with warnings.catch_warnings():  # arviz announces its own next version
    warnings.simplefilter("ignore", FutureWarning)
    import arviz as az

EXAMPLES = 12
PROPER = {"monteclora", "lora map", "lora_dropout", "mc_dropout"}
"""What has a proper prior at its random sites, beside every posterior."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in sorted(METHODS)} | {
    "monteclora elbo": ("monteclora", {"objective": "elbo"}),
    "lora map": ("lora", {"prior_scale": 0.5}),
    "lora_dropout learn": ("lora_dropout", {"p": "learn"}),
    "autoguide full": ("autoguide", {"autoguide": "AutoMultivariateNormal"}),
}


FAST = {"lora", "monteclora", "mc_dropout", "deep_ensemble", "blob", "laplace", "autoguide full"}
"""One of every kind: point, noise in the weights and in the pass, members, with and without correlations."""

EVERY = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in VARIANTS]


def data() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(EXAMPLES, 6, generator=generator, dtype=torch.float64)
    return {"input": x, "labels": torch.arange(EXAMPLES) % 3}


class Network(nn.Module):
    """A small network in double precision, with a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.classifier = (nn.Linear(*sizes).double() for sizes in ((6, 5), (5, 5), (5, 3)))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.tanh(self.second(torch.tanh(self.first(input)))))


@functools.cache
def fitted(name: str, seed: int = 5) -> Posterior:
    """A posterior as after a fit, without one: parameters are moved, and post-hoc methods refined."""
    method = make_method(VARIANTS[name][0], **VARIANTS[name][1])
    settings: dict[str, Any] = {"head": ["classifier"], "head_family": method.head_family}
    if not method.family.has_rank or type(method.family).__name__ == "Bottleneck":
        settings["targets"] = ["first", "second"]
    network = AdaptedNetwork(Network(), method.family, rank=2, num_examples=EXAMPLES, **settings)
    count = method.num_particles if method.own_batches else 1
    program = Program(network, method, Classification(3).double(), count)
    program.num_steps = 4
    for step in range(1, 5):
        randomise(program, 0.1, seed + step)
        if "ensemble" in name or name == "swag":
            method.after_step(program, step)
    program.eval()
    program.guide = method.refine(program, program.guide, [data()], [])
    if name == "distilled":  # whose spread is set by what it was distilled from
        for part in program.guide.modules():
            if isinstance(part, Output):
                part.deviation.fill_(0.1)
    return Posterior(program, temperature=1.3)


def arviz_of(posterior: Posterior, **settings: Any) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is a point, whose one draw stands here twice")
        warnings.filterwarnings("ignore", "Linearised predictions are not to be trusted")
        return posterior.to_arviz((data()["input"], data()["labels"]), 7, seed=2, **settings)


@pytest.mark.parametrize("name", EVERY)
def test_log_likelihoods_mixed_over_draws_are_what_evaluate_scores(name: str) -> None:
    posterior = fitted(name)
    rows = (data()["input"], data()["labels"])
    approximations: tuple[Any, ...] = (None, "draws", "linear")
    if "ensemble" in name:
        with pytest.raises(ValueError, match="no common centre"):
            posterior.to_arviz(rows, approximation="linear")
        approximations = (None, "draws")
    if name == "mc_dropout":  # its noise is in the forward pass
        approximations = (None, "draws")
    for approximation in approximations:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Linearised predictions are not to be trusted")
            scores = posterior.evaluate(rows, 7, seed=2, approximation=approximation)
        idata = arviz_of(posterior, approximation=approximation, prior=False)
        terms = idata.log_likelihood["labels"].to_numpy()[0]
        assert metrics.mixture_nll(terms) == pytest.approx(scores["nll"], rel=1e-12, abs=1e-12)
        assert len(terms) == max(2, posterior.method.num_draws(posterior.guide) or 7)


@pytest.mark.parametrize("name", EVERY)
def test_every_method_has_names_attributes_and_what_it_says_of_itself(name: str) -> None:
    posterior = fitted(name)
    idata = arviz_of(posterior, raw=True)
    for group in idata.groups():
        for variable in [*idata[group].data_vars, *idata[group].dims]:
            assert variable.isidentifier(), variable
    says = idata.attrs
    assert says == {**says, **{n: v for n, v in idata.posterior.attrs.items() if n in says}}
    assert (says["method"], says["claims"]) == (posterior.method.name, posterior.method.claims)
    assert says["num_examples"] == EXAMPLES
    assert (says["temperature"], says["seed"], says["likelihood"]) == (1.3, 2, "classification")
    assert says["inference_library_version"] == bayeslora.__version__
    assert json.loads(says["method_fields"]).keys() == posterior.method.record().keys()
    assert says["claims"] in ("posterior", "noise", "points")
    has_densities = "sample_stats" in idata.groups()
    if says["claims"] != "noise":
        assert has_densities == (says["claims"] == "posterior")
    if has_densities:
        stats = {name: value.to_numpy() for name, value in idata.sample_stats.items()}
        assert all(np.isfinite(value).all() for value in stats.values())
        T = says["method_temperature"]
        np.testing.assert_allclose(T, getattr(posterior.method, "temperature", 1.0))
        np.testing.assert_allclose(T * (stats["lp"] - stats["log_q"]), stats["elbo"], rtol=1e-9)
    proper = name in PROPER or says["claims"] == "posterior"
    assert ("prior" in idata.groups()) == ("prior_predictive" in idata.groups()) == proper
    if proper:
        assert idata.prior.data_vars.keys() == idata.posterior.data_vars.keys()
        assert idata.prior_predictive["labels"].shape == idata.posterior_predictive["labels"].shape


def test_prior_draws_are_the_priors() -> None:
    posterior = fitted("blob")
    draws = posterior.to_arviz(num_draws=1_000, raw=True).prior
    spread = draws["A_6x5"].to_numpy().std()
    assert spread == pytest.approx(posterior.method.prior_scale, rel=0.04)  # type: ignore[attr-defined]
    assert draws["B_6x5"].to_numpy().std((0, 1)).max() < 1e-12
    laplace = fitted("laplace")
    tau = float(laplace.guide["5x5"].matrices["A"].precision)  # type: ignore[index]
    groups = laplace.to_arviz(num_draws=1_000, raw=True).prior
    assert groups["A_5x5"].to_numpy().std() == pytest.approx(tau**-0.5, rel=0.04)
    own = laplace.network.bases("head_5x3")  # the prior is about the head's whole weights, not their change
    mean = groups["weight_head_5x3"].to_numpy()[0, :, 0, :, :5].mean(0)
    frozen = -torch.cat([w.detach() for w in own.weights]).view(3, 5).numpy() if hasattr(own, "weights") else None
    if frozen is not None:
        np.testing.assert_allclose(mean, frozen, atol=5 * tau**-0.5 / math.sqrt(1_000))


def test_densities_are_the_distributions() -> None:
    posterior = fitted("blob")
    draws = posterior.draw(7, seed=2)
    stats = posterior.to_arviz(num_draws=7, seed=2).sample_stats
    prior, guide = np.zeros(7), np.zeros(7)
    for name in posterior.program.stacks:
        site = posterior.guide[name].sites["A"]  # type: ignore[index]
        prior += torch.distributions.Normal(0, 0.2).log_prob(draws[f"{name}.A"]).sum((1, 2, 3)).numpy()
        q = torch.distributions.Normal(site.loc, site.sqrt_scale.square())
        guide += q.log_prob(draws[f"{name}.A"]).sum((1, 2, 3)).detach().numpy()
    np.testing.assert_allclose(stats["log_prior"][0], prior, rtol=1e-6)
    np.testing.assert_allclose(stats["log_q"][0], guide, rtol=1e-9)


@pytest.mark.parametrize("name", ["autoguide", "autoguide full"])
def test_an_automatic_guides_density_is_that_of_its_latents(name: str) -> None:
    posterior = fitted(name)
    stats = posterior.to_arviz(num_draws=100, seed=0).sample_stats
    draws, log_q = posterior.draw(100, seed=0), np.zeros(100)
    for stack, part in posterior.guide.items():  # type: ignore[operator]
        flat = torch.cat([v.flatten(1) for n, v in draws.items() if n.startswith(stack)], 1)
        auto = part.auto
        if name == "autoguide":
            parts = [(getattr(getattr(auto, kind), stack)) for kind in ("locs", "scales")]
            loc, scale = (torch.cat([getattr(each, n).flatten() for n in "AB"]) for each in parts)
            q = torch.distributions.Independent(torch.distributions.Normal(loc, scale), 1)
        else:
            tril = auto.scale[:, None] * auto.scale_tril
            q = torch.distributions.MultivariateNormal(auto.loc, scale_tril=tril)
        log_q += q.log_prob(flat).detach().numpy()
    np.testing.assert_allclose(stats["log_q"][0], log_q, rtol=1e-9)


def nested(stack: Stack) -> Factors:
    """Rows of A in a plate of their own, left of the layers', with a scale that has no mean."""
    with stack.layers:
        tau = pyro.sample(stack.site("tau"), dist.HalfCauchy(torch.ones((), dtype=torch.float64)))
        with pyro.plate(stack.site("rows"), stack.rank, dim=-2):
            a = pyro.sample(stack.site("a"), dist.Normal(torch.zeros(stack.A_shape[1]).double(), 1.0).to_event(1))
    A = (a * tau.unsqueeze(-1)).transpose(-3, -2)
    return Factors(A, torch.ones(*A.shape[:-2], *stack.B_shape, dtype=A.dtype))


def test_plates_of_a_users_program_may_be_nested() -> None:
    network = AdaptedNetwork(Network(), LowRank(), rank=2, num_examples=EXAMPLES, targets=["first", "second"])
    program = Program(network, AutoGuide(prior_program=nested, temperature=1.0), Classification(3).double()).eval()
    posterior, rows = Posterior(program), (data()["input"], data()["labels"])
    found, draws = posterior.to_arviz(rows, 7, seed=2), posterior.draw(7, seed=2)
    expected = sum(
        torch.distributions.HalfCauchy(1.0).log_prob(draws[f"{name}.tau"]).flatten(1).sum(1)
        + torch.distributions.Normal(0, 1).log_prob(draws[f"{name}.a"]).flatten(1).sum(1)
        for name in program.stacks
    )
    np.testing.assert_allclose(found.sample_stats["log_prior"][0], expected)
    assert found.prior["delta_norm_6x5"].shape == (1, 7, 1)
    assert len(diagnostics.sbc(posterior, rows, num_simulations=2, num_draws=3, steps=1).ranks) > 3
    assert np.isfinite(posterior.khat(rows, 20).width)
    assert len(diagnostics.gold(posterior, rows, 4, 1).logits) == 4


def test_several_particles_of_nested_plates_are_refused() -> None:
    network = AdaptedNetwork(Network(), LowRank(), rank=2, num_examples=EXAMPLES, targets=["first", "second"])
    program = Program(network, AutoGuide(prior_program=nested), Classification(3).double(), 2)
    with pytest.raises(ValueError, match="num_particles=2: the program has plates within that of the layers"):
        program.train()(**data())


@pytest.mark.parametrize("name", ["blob", "laplace"])
def test_looking_at_densities_leaves_the_random_state(name: str) -> None:
    posterior, rows = fitted(name), (data()["input"], data()["labels"])
    before = torch.get_rng_state()
    for look in (posterior.to_arviz, posterior.khat):
        look(rows, 20)
        assert torch.equal(torch.get_rng_state(), before)


def test_one_draw_gets_a_sentence_instead_of_an_index_error() -> None:
    posterior = fitted("lora")
    with pytest.warns(UserWarning, match="'lora' is a point, whose one draw stands here twice"):
        idata = posterior.to_arviz((data()["input"], data()["labels"]))
    with pytest.warns(UserWarning, match="shape parameter of Pareto"):
        assert np.isfinite(az.loo(idata).elpd_loo)
    assert posterior.to_arviz().posterior.sizes["draw"] == 1


def test_fits_become_chains_that_are_compared_by_what_is_identified() -> None:
    first, same, other = fitted("blob"), fitted("blob"), fitted("blob", seed=50)
    rows = (data()["input"], data()["labels"])
    idata = diagnostics.to_arviz([first, same], rows, num_draws=100)
    assert idata.posterior.sizes["chain"] == 2
    assert not {"A_6x5", "B_6x5"} & set(idata.posterior.data_vars)
    alike = az.rhat(idata)
    assert float(alike["logits"].max()) < 1.1
    assert float(alike["delta_norm_6x5"].max()) < 1.1
    apart = az.rhat(diagnostics.chains([first, other], rows, num_draws=100))
    assert float(apart["logits"].max()) > 1.5
    with pytest.raises(ValueError, match="posteriors has 1: give two or more"):
        diagnostics.chains([first])
    with pytest.raises(ValueError, match="number 2 has 1 draws, and the first 100"):
        diagnostics.chains([first, fitted("lora")], num_draws=100)
