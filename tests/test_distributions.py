"""Densities against scipy, draws and divergences against Monte Carlo, gradients against finite differences."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from bayeslora.distributions import (
    ColumnNormal,
    Dirichlet,
    Flat,
    KroneckerNormal,
    Mask,
    RelaxedMask,
    Seed,
    StandardColumns,
    WishartCholesky,
    expected_square_sum,
    kl_divergence,
)
from bayeslora.distributions.wishart import mvdigamma, mvlgamma
from tests.helpers import assert_mean_close, assert_uniform

V = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)


def log_jacobian(cov_tril: torch.Tensor) -> torch.Tensor:
    """Ln |dΣ/dΛ| by automatic differentiation of Σ = ΛΛᵀ over the lower triangles."""
    rows, columns = torch.tril_indices(*cov_tril.shape)

    def covariance(lower: torch.Tensor) -> torch.Tensor:
        tril = torch.zeros_like(cov_tril).index_put((rows, columns), lower)
        return (tril @ tril.T)[rows, columns]

    return torch.linalg.slogdet(torch.func.jacrev(covariance)(cov_tril[rows, columns])).logabsdet


@pytest.mark.parametrize("df", [3, 4.5, 384])
def test_wishart_density_is_scipys_times_the_jacobian(df: float) -> None:
    wishart = WishartCholesky(df, V)
    for cov_tril in wishart.sample((5,)):
        sigma = (cov_tril @ cov_tril.T).numpy()
        expected = stats.wishart.logpdf(sigma, df, np.diag(V.numpy())) + log_jacobian(cov_tril)
        assert wishart.log_prob(cov_tril).item() == pytest.approx(float(expected), rel=1e-9)


def test_wishart_draws_have_the_moments_of_a_wishart() -> None:
    df = 7.5
    wishart = WishartCholesky(df, V)
    cov_tril = wishart.sample((20_000,))
    assert bool((cov_tril.triu(1) == 0).all())
    sigma = cov_tril @ cov_tril.mT
    assert_mean_close(sigma, df * torch.diag(V))
    variance = df * (torch.outer(V, V) + torch.diag(V) ** 2)
    assert_mean_close((sigma - df * torch.diag(V)) ** 2, variance)
    assert_mean_close(cov_tril, wishart.mean)
    assert_mean_close(sigma.diagonal(dim1=-2, dim2=-1).sum(-1), wishart.expected_trace)
    assert_mean_close(torch.logdet(sigma), wishart.expected_logdet)


def test_wishart_draws_of_one_entry_are_chi_squared() -> None:
    draws = WishartCholesky(5.0, V).sample((5_000,))
    assert_uniform(stats.chi2.cdf((draws[:, 0, 0] ** 2 / V[0]).numpy(), 5))
    assert_uniform(stats.chi2.cdf((draws[:, 2, 2] ** 2 / V[2]).numpy(), 3))
    assert_uniform(stats.norm.cdf((draws[:, 2, 0] / V[2].sqrt()).numpy()))


def test_wishart_gradient_reaches_the_scale_pathwise() -> None:
    scale = V.clone().requires_grad_()
    draws = WishartCholesky(6, scale.expand(4_000, 3)).rsample()
    per_draw = torch.autograd.grad(draws.square().sum(), scale)[0] / 4_000
    # E[tr Σ] = ν tr V, so the gradient is ν; tr Σ is linear in v, and its slope is a χ² sum of mean ν.
    assert per_draw.numpy() == pytest.approx(np.full(3, 6.0), abs=5 * math.sqrt(12 / 4_000))


@pytest.mark.parametrize(("df_q", "df_p"), [(5.0, 5.0), (9.0, 4.0)])
def test_wishart_kl(df_q: float, df_p: float) -> None:
    q, p = WishartCholesky(df_q, V), WishartCholesky(df_p, torch.tensor([1.0, 1.5, 1.0], dtype=torch.float64))
    draws = q.sample((20_000,))
    assert_mean_close(q.log_prob(draws) - p.log_prob(draws), kl_divergence(q, p))
    assert kl_divergence(q, q).item() == pytest.approx(0, abs=1e-12)


def test_wishart_kl_is_equation_20() -> None:
    nu, r = 12.0, 3
    kl = kl_divergence(WishartCholesky(nu, V), WishartCholesky(nu, torch.ones(3, dtype=torch.float64)))
    assert kl.item() == pytest.approx((nu / 2 * (V.sum() - V.log().sum() - r)).item(), rel=1e-12)


@pytest.mark.parametrize("df", [2.5, math.inf, math.nan])
def test_wishart_refuses_degrees_of_freedom_below_the_rank(df: float) -> None:
    with pytest.raises(ValueError, match="at least the rank, 3"):
        WishartCholesky(df, V)


def test_multivariate_gamma_functions() -> None:
    assert mvlgamma(4.2, 3) == pytest.approx(float(torch.mvlgamma(torch.tensor(4.2, dtype=torch.float64), 3)))
    step = 1e-6
    slope = (mvlgamma(4.2 + step, 3) - mvlgamma(4.2 - step, 3)) / (2 * step)
    assert mvdigamma(4.2, 3) == pytest.approx(slope, rel=1e-7)


def column_normal() -> ColumnNormal:
    tril = torch.tensor([[1.0, 0, 0], [0.5, 2.0, 0], [-0.3, 0.2, 0.7]], dtype=torch.float64)
    return ColumnNormal(tril, 4)


def test_column_normal_density_is_scipys() -> None:
    columns = column_normal()
    sigma = (columns.cov_tril @ columns.cov_tril.T).numpy()
    value = columns.sample()
    expected = sum(stats.multivariate_normal.logpdf(value[:, i].numpy(), cov=sigma) for i in range(4))
    assert columns.log_prob(value).item() == pytest.approx(expected, rel=1e-12)


def test_columns_are_independent_with_that_covariance() -> None:
    columns = column_normal()
    draws = columns.sample((20_000,))
    assert_mean_close(draws, 0.0)
    assert_mean_close(draws[:, :, 1, None] * draws[:, None, :, 1], columns.cov_tril @ columns.cov_tril.T)
    assert_mean_close(draws[:, :, 1, None] * draws[:, None, :, 2], 0.0)


def test_column_normal_kl_at_a_draw() -> None:
    q, p = column_normal(), StandardColumns(3, 4, scale=1.5)
    draws = q.sample((20_000,))
    assert_mean_close(q.log_prob(draws) - p.log_prob(draws), kl_divergence(q, p))


def test_column_normal_kl_in_expectation_over_the_wishart() -> None:
    wishart, p = WishartCholesky(6.0, V), StandardColumns(3, 4)
    at_draws = kl_divergence(ColumnNormal(wishart.sample((20_000,)), 4), p)
    in_expectation = kl_divergence(ColumnNormal(wishart.sample(), 4, covariance=wishart), p)
    assert_mean_close(at_draws, in_expectation)


def test_standard_columns_are_normal() -> None:
    p = StandardColumns(3, 4, scale=0.5)
    value = p.sample()
    assert p.log_prob(value).item() == pytest.approx(dist.Normal(0.0, 0.5).log_prob(value).sum().item(), rel=1e-5)
    assert_uniform(stats.norm.cdf(p.expand([300]).sample().flatten().numpy(), scale=0.5))


def test_dirichlet_draws() -> None:
    alpha = torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64)
    draws = Dirichlet(alpha).sample((20_000,))
    assert_uniform(stats.beta.cdf(draws[:5_000, 0].numpy(), 0.3, 3.5))
    assert_mean_close(draws.square().sum(-1), expected_square_sum(alpha))


def test_dirichlet_gradient_is_that_of_the_expectation() -> None:
    alpha = torch.tensor([0.4, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    exact = torch.autograd.grad(expected_square_sum(alpha), alpha)[0]
    many = alpha.detach().expand(20_000, 3).clone().requires_grad_()
    torch.manual_seed(1)
    pathwise = torch.autograd.grad(Dirichlet(many).rsample().square().sum(), many)[0]
    assert_mean_close(pathwise, exact)


def test_dirichlet_survives_functional_transforms() -> None:
    alpha = torch.ones(5, 3)
    gradient = torch.func.grad(lambda a: Dirichlet(a).rsample().square().sum())(alpha)
    assert bool(gradient.isfinite().all())
    draws = torch.func.vmap(lambda a: Dirichlet(a).rsample(), randomness="different")(alpha)
    assert draws.sum(-1).numpy() == pytest.approx(np.ones(5), rel=1e-5)


def test_dirichlet_of_tiny_concentrations_still_has_proportions() -> None:
    draws = Dirichlet(torch.full((1_000, 4), 1e-3)).sample()
    assert bool(draws.isfinite().all())
    assert draws.sum(-1).numpy() == pytest.approx(np.ones(1_000), rel=1e-5)


def test_dirichlet_kl_is_torchs() -> None:
    a = torch.rand(6, 4, dtype=torch.float64) + 0.1
    b = torch.full((4,), 0.7, dtype=torch.float64)
    ours = kl_divergence(Dirichlet(a), Dirichlet(b))
    theirs = torch.distributions.kl_divergence(torch.distributions.Dirichlet(a), torch.distributions.Dirichlet(b))
    assert ours.numpy() == pytest.approx(theirs.numpy(), rel=1e-10)


def test_flat_prior_has_density_one_and_can_be_sampled() -> None:
    flat = Flat((2, 3)).expand([4])
    assert flat.log_prob(torch.randn(4, 2, 3)).tolist() == [0.0] * 4
    assert flat.sample().shape == (4, 2, 3)


@pytest.mark.parametrize("rescale", [True, False])
def test_mask_is_bernoulli(rescale: bool) -> None:
    mask = Mask(3, 0.2, rescale, like=torch.zeros(0, dtype=torch.float64)).expand([2])
    value = mask.rsample(torch.Size([20_000]))
    assert value.dtype == torch.float64
    assert set(value.unique().tolist()) == {0.0, 1.25 if rescale else 1.0}
    assert_mean_close(value, mask.mean)
    assert mask.mean.unique().item() == pytest.approx(1.0 if rescale else 0.8)
    expected = dist.Bernoulli(torch.tensor(0.8, dtype=torch.float64)).log_prob(value.ne(0).double()).sum(-1)
    torch.testing.assert_close(mask.log_prob(value), expected)


def test_mask_of_rate_zero_draws_no_random_numbers() -> None:
    state = torch.get_rng_state()
    mask = Mask(3, 0.0)
    value = mask.rsample(torch.Size([2]))
    assert torch.equal(value, torch.ones(2, 3))
    assert torch.equal(torch.get_rng_state(), state)
    assert mask.log_prob(value).tolist() == [0.0, 0.0]


def test_mask_needs_a_rate_below_one() -> None:
    with pytest.raises(ValueError, match=r"p=1\.0: give a probability of at least 0 and less than 1"):
        Mask(3, 1.0)


def test_seeds_are_uniform_around_a_mean_that_is_none() -> None:
    seed = Seed(like=torch.zeros((), dtype=torch.float64)).expand([2])
    values = seed.rsample(torch.Size([2_000]))
    assert_uniform((values.flatten().numpy() + 1) / 2)
    assert seed.log_prob(values).exp().unique().item() == pytest.approx(1 / 2)
    assert seed.mean.tolist() == [0.0, 0.0]
    assert Seed(silent=True).rsample(torch.Size([3])).tolist() == [0.0] * 3


def test_relaxed_mask_diverges_as_the_hard_one() -> None:
    logits = torch.randn(2, 5, dtype=torch.float64)
    hard = kl_divergence(dist.Bernoulli(logits=logits), dist.Bernoulli(torch.tensor(0.7, dtype=torch.float64))).sum(-1)
    torch.testing.assert_close(kl_divergence(RelaxedMask(logits, 0.5), Mask(5, 0.3)), hard)


def test_gradients_of_a_relaxed_mask_are_pathwise() -> None:
    logits = torch.tensor([0.3, -1.0], dtype=torch.float64, requires_grad=True)
    torch.manual_seed(0)
    draws = RelaxedMask(logits, 0.5).rsample(torch.Size([20_000]))
    draws.sum().backward()
    # d/dℓ σ((ℓ + noise) / τ) = m (1 − m) / τ
    expected = (draws * (1 - draws) / 0.5).sum(0).detach()
    torch.testing.assert_close(logits.grad, expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Dirichlet(torch.ones(3)),
        lambda: WishartCholesky(5, torch.ones(3)),
        lambda: ColumnNormal(torch.eye(3), 4),
        lambda: ColumnNormal(torch.eye(3), 4, covariance=WishartCholesky(5, torch.ones(3))),
        lambda: StandardColumns(3, 4),
        lambda: Flat((3, 4)),
        lambda: Mask(4, 0.3),
        lambda: RelaxedMask(torch.zeros(4), 0.5),
        lambda: Seed(),
    ],
)
def test_expanded_distributions_draw_and_score_that_shape(make: object) -> None:
    distribution = make().expand([7, 2])  # type: ignore[operator]
    value = distribution.rsample(torch.Size([5]))
    assert value.shape == (5, 7, 2, *distribution.event_shape)
    assert distribution.log_prob(value).shape == (5, 7, 2)


@pytest.mark.parametrize("rank", [4, 2])
def test_kronecker_normal_is_the_multivariate_normal_with_that_precision(rank: int) -> None:
    torch.manual_seed(6)
    rows, columns = (
        torch.linalg.qr(torch.randn(3, 3).double())[0],
        torch.linalg.qr(torch.randn(4, 4).double())[0][:, :rank],
    )
    row_values, column_values, tau = torch.rand(3).double(), 3 * torch.rand(rank).double(), torch.tensor(0.5).double()
    loc = torch.randn(3, 4).double()
    normal = KroneckerNormal(loc, rows, row_values, columns, column_values, tau)
    R, C = rows @ torch.diag(row_values) @ rows.T, columns @ torch.diag(column_values) @ columns.T
    precision = torch.kron(R, C) + tau * torch.eye(12).double()
    dense = dist.MultivariateNormal(loc.flatten(), precision_matrix=precision)
    values = torch.randn(5, 3, 4).double()
    torch.testing.assert_close(normal.log_prob(values), dense.log_prob(values.flatten(1)))
    centred = (normal.rsample((20_000,)) - loc).flatten(1)
    assert_mean_close(centred, 0.0)
    assert_mean_close(centred[:, :, None] * centred[:, None, :], dense.covariance_matrix)
    assert normal.expand((2,)).rsample((7,)).shape == (7, 2, 3, 4)
