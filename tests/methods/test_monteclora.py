"""MonteCLoRA against its paper's statements (arXiv 2411.04358), and against its loss written out by hand."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from torch import Tensor

import bayeslora
from bayeslora.adapters import Stack, Stacks
from bayeslora.elbo import MeanFieldELBO
from bayeslora.methods import MonteCLoRA
from bayeslora.program import Program
from tests.helpers import assert_mean_close, batch, tiny_bert, tokens
from tests.methods.conftest import NO_DROPOUT, randomise

Make = Callable[..., Program]


def guide_draws(program: Program, seed: int) -> dict[str, Tensor]:
    """The guide's draws at a seed, attached to its parameters."""
    torch.manual_seed(seed)
    with pyro.validation_enabled(False):
        trace = poutine.trace(program.guide).get_trace()
    return {name: site["value"] for name, site in trace.nodes.items() if site["type"] == "sample"}


def loss_by_hand(program: Program, draws: dict[str, Tensor], inputs: dict[str, Tensor]) -> Tensor:
    """§4.4.3 of the paper on given draws, with weights W0 + s B Ã put into the plain network."""
    method = program.method
    assert isinstance(method, MonteCLoRA)
    base = tiny_bert(**NO_DROPOUT).double().train()
    weights = {f"classifier.{n}": p for n, p in program.network.model.classifier.named_parameters()}
    regulariser = torch.zeros((), dtype=torch.float64)
    num_layers = sum(len(stack) for stack in program.stacks.values())
    for name, stack in program.stacks.items():
        guide = program.guide[name]
        pi, tril, noise = (draws[f"{name}.{site}"] for site in ("weights", "cov_tril", "noise"))
        v, alpha = guide.log_scale_diag.exp(), guide.log_concentration.exp()
        nu, r, K = method.degrees_of_freedom(stack), stack.rank, method.components
        for layer, layer_name in enumerate(stack.layer_names):
            square_sum = (pi[layer] ** 2).sum()
            A = guide.loc[layer] + method.scale_of_noise(stack, method.noise_ratio) * square_sum.sqrt() * noise[layer]
            weight = base.get_parameter(f"{layer_name}.weight")
            weights[f"{layer_name}.weight"] = weight + 8 / 4 * guide.B[layer] @ A
            a, a0 = alpha[layer], torch.ones(K, dtype=torch.float64) * method.concentration
            kl_dirichlet = (  # Eq. 21
                torch.lgamma(a.sum())
                - torch.lgamma(a).sum()
                - torch.lgamma(a0.sum())
                + torch.lgamma(a0).sum()
                + ((a - a0) * (torch.digamma(a) - torch.digamma(a.sum()))).sum()
            )
            kl_wishart = nu / 2 * (v[layer].sum() - v[layer].log().sum() - r)  # Eq. 20
            sigma = tril[layer] @ tril[layer].T
            kl_normal = (sigma.trace() - torch.logdet(sigma) - r) / 2  # Eq. 19
            regulariser = regulariser + method.kl_weight * (kl_dirichlet + kl_wishart + kl_normal)
            if method.cooperative:
                regulariser = regulariser + square_sum  # Eq. 22
    words = {name: value for name, value in inputs.items() if name != "labels"}
    logits = torch.func.functional_call(base, weights, kwargs=words).logits
    return F.cross_entropy(logits, inputs["labels"]) + regulariser / num_layers


@pytest.mark.parametrize("cooperative", [True, False])
def test_the_objective_is_the_papers_loss_on_the_same_draws(make_program: Make, cooperative: bool) -> None:
    program = make_program("monteclora", double=True, analytic=False, kl_weight=0.03, cooperative=cooperative)
    randomise(program)
    inputs = batch(5)
    parameters = [parameter for _, parameter in program.trainable()]
    torch.manual_seed(11)
    loss = program(**inputs).loss
    gradients = torch.autograd.grad(loss, parameters)
    by_hand = loss_by_hand(program, guide_draws(program, 11), inputs)
    assert loss.item() == pytest.approx(by_hand.item(), abs=1e-10)
    for ours, theirs in zip(gradients, torch.autograd.grad(by_hand, parameters), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_analytic_regularisers_are_the_expectation_of_those_at_draws(stack: Stack) -> None:
    stacks = Stacks([stack])
    at_draws, analytic = MonteCLoRA(analytic=False, kl_weight=1.0), MonteCLoRA(analytic=True, kl_weight=1.0)
    guide = at_draws.guide(stacks).double()
    with torch.no_grad():
        guide["6x5"].log_scale_diag.add_(torch.tensor([0.5, -0.7, 0.1]))
        guide["6x5"].log_concentration.add_(torch.tensor([0.5, -0.7, 0.1, 0.9]))
    other = analytic.guide(stacks).double()
    other.load_state_dict(guide.state_dict())
    with torch.no_grad(), pyro.validation_enabled(False):
        drawn = [MeanFieldELBO().terms(lambda: at_draws.prior(stacks), guide)[0] for _ in range(500)]
        expected, _ = MeanFieldELBO().terms(lambda: analytic.prior(stacks), other)
        again, _ = MeanFieldELBO().terms(lambda: analytic.prior(stacks), other)
    assert set(expected) == set(drawn[0])
    for name, value in expected.items():
        assert value == again[name], f"{name} has noise"
        assert_mean_close(torch.stack([terms[name] for terms in drawn]), value)


def draws_of_A(method: MonteCLoRA, stack: Stack, num_draws: int) -> tuple[dict[str, Tensor], Tensor, torch.nn.Module]:
    stacks = Stacks([stack])
    guide = method.guide(stacks).double()
    with torch.no_grad():
        guide["6x5"].log_scale_diag.add_(torch.tensor([0.5, -0.7, 0.1]))
        guide["6x5"].log_concentration.add_(torch.tensor([0.5, -0.7, 0.1, 0.9]))
        guide["6x5"].B.normal_()
        with pyro.validation_enabled(False):
            with pyro.plate("draws", num_draws, dim=-2):
                trace = poutine.trace(guide).get_trace()
            sites = {name: site["value"] for name, site in trace.nodes.items() if name.startswith("6x5.")}
            factors = poutine.condition(method.prior, data=sites)(stacks)
    return sites, factors["6x5"].A, guide["6x5"]


def test_draws_have_the_mean_of_lemmas_5_and_6(stack: Stack) -> None:
    _, A, guide = draws_of_A(MonteCLoRA(sample_scale=0.1), stack, 20_000)
    assert_mean_close(A, guide.loc)
    x = torch.randn(6, dtype=torch.float64)
    assert_mean_close(guide.B @ A @ x, guide.B @ guide.loc @ x)


def test_marginal_covariance_of_a_column(stack: Stack) -> None:
    epsilon = 0.1
    _, A, guide = draws_of_A(MonteCLoRA(sample_scale=epsilon, df=4.5), stack, 40_000)
    alpha, v = guide.log_concentration.exp(), guide.log_scale_diag.exp()
    square_sum = (alpha * (alpha + 1)).sum(-1) / (alpha.sum(-1) * (alpha.sum(-1) + 1))
    expected = epsilon**2 * square_sum[:, None, None] * 4.5 * torch.diag_embed(v)
    for column in (0, 5):
        centred = (A - guide.loc)[..., column]
        assert_mean_close(centred[..., :, None] * centred[..., None, :], expected)
    # Columns are uncorrelated, and layers are.
    centred = A - guide.loc
    assert_mean_close(centred[:, :, :, 0] * centred[:, :, :, 1], 0.0)
    assert_mean_close(centred[:, 0] * centred[:, 1], 0.0)


def test_covariance_given_pi_and_sigma(stack: Stack) -> None:
    epsilon = 0.1
    sites, A, guide = draws_of_A(MonteCLoRA(sample_scale=epsilon), stack, 20_000)
    # Whitened by ε √(Σπ²) Λ, every column is standard normal, whatever π and Σ were.
    spread = epsilon * sites["6x5.weights"].square().sum(-1).sqrt()[..., None, None]
    white = torch.linalg.solve_triangular(spread * sites["6x5.cov_tril"], A - guide.loc, upper=False)
    assert_mean_close(
        white[..., :, None, :] * white[..., None, :, :], torch.eye(3, dtype=torch.float64)[..., None].expand(3, 3, 6)
    )


def test_one_draw_is_in_law_the_average_of_k_draws() -> None:
    # Σ_k π_k S_k with S_k ~ N(0, Σ) has covariance (Σ π²) Σ given π and Σ; it is Gaussian, so that is its law.
    pi = torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64)
    tril = torch.tensor([[1.0, 0.0], [0.5, 2.0]], dtype=torch.float64)
    S = (tril @ torch.randn(20_000, 3, 2, 1, dtype=torch.float64)).squeeze(-1)
    average = (pi[:, None] * S).sum(1)
    assert_mean_close(average[:, :, None] * average[:, None, :], (pi**2).sum() * tril @ tril.T)


@pytest.mark.parametrize("df", ["features", "rank", 11.5])
@pytest.mark.parametrize("components", [1, 4, 64])
def test_noise_ratio_is_the_noise_in_units_of_lora_initialisation(
    stack: Stack, df: str | float, components: int
) -> None:
    method = MonteCLoRA(noise_ratio=2.0, df=df, components=components)
    epsilon, nu = method.scale_of_noise(stack, method.noise_ratio), method.degrees_of_freedom(stack)
    square_sum = 2 / (components + 1)  # of Dirichlet(1, …, 1)
    assert epsilon * math.sqrt(nu * square_sum) == pytest.approx(2.0 / math.sqrt(3 * stack.d_in))


def test_noise_of_a_new_guide_has_that_ratio(stack: Stack) -> None:
    method = MonteCLoRA(noise_ratio=2.0)
    stacks = Stacks([stack])
    guide = method.guide(stacks)
    with torch.no_grad(), pyro.validation_enabled(False), pyro.plate("draws", 20_000, dim=-2):
        trace = poutine.trace(guide).get_trace()
        sites = {name: site["value"] for name, site in trace.nodes.items() if name.startswith("6x5.")}
        A = poutine.condition(method.prior, data=sites)(stacks)["6x5"].A
    assert_mean_close((A - guide["6x5"].loc) ** 2, 4.0 / (3 * 6))


def test_sample_scale_replaces_the_noise_ratio_and_is_the_papers_preset(stack: Stack) -> None:
    assert MonteCLoRA(sample_scale=0.02).scale_of_noise(stack, 9.0) == 0.02
    paper = MonteCLoRA.paper()
    assert (paper.sample_scale, paper.components, paper.concentration, paper.kl_weight) == (5e-3, 4, 1.0, 1e-5)
    assert (paper.cooperative, paper.df, paper.analytic, paper.objective) == (True, "features", False, "paper")
    assert MonteCLoRA.paper(components=8).components == 8


def test_default_noise_at_384_features_is_the_prototypes_scale(stack: Stack) -> None:
    wide = dataclasses.replace(stack, d_in=384)
    assert MonteCLoRA().scale_of_noise(wide, 4.0) == pytest.approx(0.01, rel=0.05)


def test_output_shift_is_proportional_to_the_sample_scale_to_first_order(make_program: Make) -> None:
    # Lemma 4: halving ε halves the shift, up to a relative error of order ε.
    shifts = {}
    for epsilon in (1e-4, 5e-5):
        program = randomise(make_program("monteclora", double=True, sample_scale=epsilon), seed=5).eval()
        torch.manual_seed(2)
        sites = program.draw(1)
        shifts[epsilon] = program.logits(sites, batch(4))[0] - program(**batch(4)).logits
    assert (shifts[1e-4] - 2 * shifts[5e-5]).norm() < 1e-2 * shifts[1e-4].norm()


def test_cooperative_loss_is_minimal_at_uniform_weights() -> None:
    # Lemma 9.
    pi = torch.distributions.Dirichlet(torch.ones(5)).sample((1_000,))
    uniform = torch.full((5,), 0.2).square().sum()
    assert bool((pi.square().sum(-1) >= uniform).all())
    assert uniform.item() == pytest.approx(1 / 5)


@pytest.mark.parametrize(
    ("second_derivative", "supremum"),
    [(lambda x: 1 / torch.cosh(x) ** 2, 1.0), (lambda x: -torch.cos(x), 1.0)],
    ids=["log-cosh", "cosine"],
)
@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_gaussian_smoothing_does_not_raise_the_supremum_of_curvature(
    second_derivative: Callable[[Tensor], Tensor], supremum: float, scale: float
) -> None:
    # Lemmas 2 and 8, for functions with a bounded Hessian: the smoothed second derivative is an average of it.
    # Nodes and weights of E f(x), x ~ N(0, 1).
    nodes, weights = (torch.tensor(part) for part in np.polynomial.hermite_e.hermegauss(80))
    points = torch.linspace(-6, 6, 241, dtype=torch.float64)
    smoothed = (weights / math.sqrt(2 * math.pi) * second_derivative(points[:, None] + scale * nodes)).sum(-1)
    assert smoothed.max() <= supremum + 1e-12
    assert second_derivative(points).max() == pytest.approx(supremum, abs=1e-2)


def test_learned_numbers_beyond_lora_are_rank_plus_components_per_layer(make_program: Make) -> None:
    def count(program: Program) -> int:
        return sum(parameter.numel() for parameter in program.guide.parameters())

    lora, monteclora = make_program("lora"), make_program("monteclora", components=7)
    num_layers = sum(len(stack) for stack in lora.stacks.values())
    assert count(monteclora) - count(lora) == num_layers * (4 + 7)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"components": 0}, "components=0: give a whole number of at least 1"),
        ({"concentration": 0.0}, "concentration=0.0: give a positive finite number"),
        ({"noise_ratio": -1.0}, "noise_ratio=-1.0: give a finite number of at least 0"),
        ({"sample_scale": -1.0}, "sample_scale=-1.0: give a finite number of at least 0"),
        ({"kl_weight": -1.0}, "kl_weight=-1.0: give a positive finite number"),
    ],
)
def test_fields_out_of_range_say_what_fits(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MonteCLoRA(**fields)  # type: ignore[arg-type]


def test_degrees_of_freedom_below_the_rank_are_refused(stack: Stack) -> None:
    with pytest.raises(ValueError, match="at least rank = 3 degrees of freedom"):
        MonteCLoRA(df=2.0).degrees_of_freedom(stack)


# Other bases


@pytest.mark.parametrize(("base", "point"), [("lora", "lora"), ("full", "full"), ("dora", "dora")])
def test_without_noise_it_is_the_point_estimate_of_its_base(make_program: Make, base: str, point: str) -> None:
    reference = randomise(make_program(point, double=True))
    program = make_program("monteclora", double=True, base=base, noise_ratio=0.0)
    program.network.load_head(reference.network.head_state())
    program.guide.start(reference.factors_at(reference.centre()))
    outputs = [p(**batch(6)) for p in (reference, program)]
    assert torch.equal(outputs[0].logits, outputs[1].logits)


@pytest.mark.parametrize(
    ("base", "site", "rows", "unit"),
    [
        ("lora", "A", 3, 1 / math.sqrt(18)),
        ("dora", "A", 3, 1 / math.sqrt(18)),
        ("adalora", "Q", 3, 0.02),
        ("full", "weight", 5, 0.01 / math.sqrt(18)),
    ],
)
def test_noise_on_the_columns_has_the_loudness_asked_for(
    stack: Stack, base: str, site: str, rows: int, unit: float
) -> None:
    method = MonteCLoRA(base=base, noise_ratio=2.0)  # type: ignore[arg-type]
    measured = {"m": torch.ones(2, 5, dtype=torch.float64)} if base == "dora" else {}
    stack = dataclasses.replace(stack, family=method.family, measured=measured)
    stacks = Stacks([stack])
    guide = method.guide(stacks).double()
    assert guide["6x5"].log_scale_diag.shape == (2, rows)
    with torch.no_grad(), pyro.validation_enabled(False):
        with pyro.plate("draws", 40_000, dim=-2):
            trace = poutine.trace(guide).get_trace()
        sites = {name: s["value"] for name, s in trace.nodes.items() if name.startswith("6x5.")}
        factors = poutine.condition(method.prior, data=sites)(stacks)["6x5"]
    noise = getattr(factors, site) - guide["6x5"].loc
    assert noise.shape[1:] == (2, rows, 6)
    assert_mean_close(noise, 0.0)
    assert_mean_close(noise.square(), (2.0 * unit) ** 2)
    assert_mean_close(noise[:, :, 0, 0] * noise[:, :, 0, 1], 0.0)  # columns are independent given Σ
    for name, factor in factors._asdict().items():
        assert name == site or bool((factor == factor[0]).all())


@pytest.mark.parametrize("base", ["full", "dora", "adalora"])
@pytest.mark.parametrize("fields", [{"objective": "elbo"}, {"df": math.inf}, {"sparse": True}, {"analytic": False}])
def test_every_variant_runs_on_every_base(make_program: Make, base: str, fields: dict[str, Any]) -> None:
    program = randomise(make_program("monteclora", base=base, **fields), scale=0.05)
    program(**batch(6)).loss.backward()
    for name, parameter in program.trainable():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name


def test_the_covariance_of_full_weights_has_enough_degrees_of_freedom(stack: Stack) -> None:
    method = MonteCLoRA(base="full")
    wide = dataclasses.replace(stack, d_in=6, d_out=9, family=method.family)
    assert method.rows(wide) == 9
    assert method.degrees_of_freedom(wide) == 9  # d_in = 6 would make Σ singular
    assert method.degrees_of_freedom(dataclasses.replace(wide, d_in=12)) == 12
    with pytest.raises(ValueError, match="at least d_out = 9 degrees of freedom"):
        MonteCLoRA(base="full", df=7.0).degrees_of_freedom(wide)


def test_a_posterior_remembers_its_base(tmp_path: Path) -> None:
    posterior = bayeslora.fit(tiny_bert(), tokens(), base="dora", epochs=1, progress=False)
    posterior.save(tmp_path)
    loaded = bayeslora.load(tmp_path, tiny_bert())
    test = tokens(6, seed=2)
    assert (loaded.predict(test, 3).draws == posterior.predict(test, 3).draws).all()
    assert posterior.draw(2)["32x32.m"].shape == (2, 8, 32)
