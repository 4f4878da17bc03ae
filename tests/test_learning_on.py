"""The posterior of the first data is the prior of the next."""

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from torch import Tensor, nn

import bayeslora
from bayeslora import METHODS, Posterior
from bayeslora.carried import Carried
from bayeslora.curvature import Kronecker, nearest_sum
from bayeslora.distributions import ColumnNormal, kl_divergence
from bayeslora.elbo import MeanFieldELBO
from bayeslora.methods import AutoGuide, Laplace
from tests.diagnostics.conjugate import D_IN, D_OUT, NOISE, NUM_EXAMPLES, PRIOR, RANK, Conjugate, Homoscedastic, S

NUMBERS = RANK * D_IN
START: dict[str, Any] = {"rank": 2, "epochs": 0, "progress": False}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


def rows(size: int, seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    x = torch.randn(size, 5, generator=torch.Generator().manual_seed(seed))
    return {"input": x}, x[:, :3].argmax(1)


def sigma_points(shape: Any, dtype: Any, device: Any) -> Tensor:
    """±√d e_i, a particle each: the mean over them of a quadratic function is its expectation under N(0, I)."""
    d = int(np.prod(shape[1:]))
    assert shape[0] == 2 * d
    return torch.cat([torch.eye(d), -torch.eye(d)]).to(dtype).mul(d**0.5).view(*shape)


FIRST, SECOND = slice(0, NUM_EXAMPLES // 2), slice(NUM_EXAMPLES // 2, None)


class Halves(Conjugate):
    """The conjugate model, half of whose data comes first."""

    def data(self, which: slice) -> tuple[Tensor, Tensor]:
        """What a part of the data adds to the precision of vec(A), and to the precision times the mean."""
        x, residual = self.x[which], (self.labels - self.base(self.x).detach())[which]
        precision = S**2 / NOISE**2 * torch.kron(self.B.T @ self.B, x.T @ x)
        return precision, (S / NOISE**2 * self.B.T @ residual.T @ x).flatten()

    def log_evidence(self, which: slice) -> float:
        """Ln p(labels of a part), nats."""
        design = S * torch.kron(self.x[which], self.B.contiguous()).view(-1, D_OUT, D_IN, RANK)
        design = design.transpose(-1, -2).reshape(-1, NUMBERS)  # a row per number of a label, in order
        covariance = PRIOR**2 * design @ design.T + NOISE**2 * torch.eye(len(design))
        residual = (self.labels - self.base(self.x).detach())[which].flatten()
        return float(torch.distributions.MultivariateNormal(torch.zeros_like(residual), covariance).log_prob(residual))

    def posterior(self, which: slice, autoguide: str, prior: Posterior | None = None) -> Posterior:
        """The start of a fit to a part of the data."""
        settings: dict[str, Any] = {"prior": prior}
        if prior is None:
            method = AutoGuide(prior_program=self.prior(), autoguide=autoguide, temperature=1.0)
            layers = {"targets": ["0"], "head": (), "rank": RANK, "alpha": S * RANK}
            settings = {"method": method, "likelihood": Homoscedastic(), **layers}
        rows = {"input": self.x[which]}, self.labels[which]
        return bayeslora.fit(nn.Sequential(self.base), rows, epochs=0, progress=False, **settings)

    def put_at(self, posterior: Posterior, mean: Tensor, precision: Tensor) -> Posterior:
        """Give the guide a mean and a precision."""
        auto: Any = posterior.guide["3x2"].auto
        with torch.no_grad(), pyro.settings.context(module_local_params=True):
            if hasattr(auto, "scale_tril"):
                tril = torch.linalg.cholesky(precision.inverse())
                auto.loc.copy_(mean)
                auto.scale, auto.scale_tril = tril.diagonal(), tril / tril.diagonal()[:, None]
            else:
                getattr(auto.locs, "3x2").A = mean.view(1, RANK, D_IN)
                getattr(auto.scales, "3x2").A = precision.diagonal().rsqrt().view(1, RANK, D_IN)
        return posterior

    def loss(self, posterior: Posterior, which: slice, monkeypatch: pytest.MonkeyPatch) -> tuple[float, float]:
        """The negative bound per example, without noise, and the largest part of its gradient."""
        for module in (torch.distributions.normal, torch.distributions.multivariate_normal):
            monkeypatch.setattr(module, "_standard_normal", sigma_points)
        program = posterior.program.train()
        program.elbo = MeanFieldELBO(2 * NUMBERS)
        loss = program(input=self.x[which], labels=self.labels[which]).loss
        gradients = torch.autograd.grad(loss, [parameter for _, parameter in program.trainable()])
        monkeypatch.undo()
        program.eval().network.unbind()
        return loss.item(), max(float(gradient.abs().max()) for gradient in gradients)


def test_two_halves_in_turn_equal_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prior = Halves(), torch.eye(NUMBERS).double() / PRIOR**2
    (precision, response), (more, further) = model.data(FIRST), model.data(SECOND)
    first = model.posterior(FIRST, "AutoMultivariateNormal")
    model.put_at(first, torch.linalg.solve(prior + precision, response), prior + precision)
    half = model.loss(first, FIRST, monkeypatch)
    assert half[0] == pytest.approx(-model.log_evidence(FIRST) / 20, rel=1e-8)
    second = model.posterior(SECOND, "AutoMultivariateNormal", first)
    # The bound is ln p(second half | first half) at the posterior of all data, and below it everywhere else.
    at_once = prior + precision + more
    torch.testing.assert_close(at_once, model.precision)
    model.put_at(second, torch.linalg.solve(at_once, response + further), at_once)
    loss, gradient = model.loss(second, SECOND, monkeypatch)
    expected = model.log_evidence(slice(None)) - model.log_evidence(FIRST)
    assert loss == pytest.approx(-expected / 20, rel=1e-8)  # 0.6 and 0.7 are rounded to single precision
    assert gradient < 1e-7
    model.put_at(second, torch.linalg.solve(at_once, response + further) + 0.01, at_once)
    assert model.loss(second, SECOND, monkeypatch)[0] > loss


def test_mean_field_in_turn_is_its_own_fixed_point(monkeypatch: pytest.MonkeyPatch) -> None:
    # Each fit's optimum has the mean of its exact posterior, and the diagonal of that posterior's precision.
    model = Halves()
    mean, precision = torch.zeros(NUMBERS).double(), torch.eye(NUMBERS).double() / PRIOR**2
    posterior = None
    for which in (FIRST, SECOND):
        more, response = model.data(which)
        mean = torch.linalg.solve(precision + more, precision @ mean + response)
        precision = torch.diag((precision + more).diagonal())
        posterior = model.put_at(model.posterior(which, "AutoNormal", posterior), mean, precision)
        assert model.loss(posterior, which, monkeypatch)[1] < 1e-7
    # The spreads are those of all data at once; the means are not, as correlations were forgotten in between.
    torch.testing.assert_close(precision.diagonal(), model.precision.diagonal())
    assert float((mean - model.mean(model.labels)).abs().max()) > 1e-3


def moved(posterior: Posterior, by: float = 0.1) -> Posterior:
    """A posterior elsewhere, as if it had been trained."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in posterior.program.trainable():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator))
    return posterior


@pytest.fixture(scope="module")
def earlier() -> Callable[..., Posterior]:
    made: dict[str, Posterior] = {}

    def fit(method: str, **fields: Any) -> Posterior:
        key = f"{method}{fields}"
        if key not in made:
            made[key] = moved(bayeslora.fit(network(), rows(24), method, **START, **fields))
        return made[key]

    return fit


CARRIED = {
    "blob": {},
    "ivon": {},
    "scalabl": {},
    "autoguide": {},
    "laplace": {"prior_precision": 3.0},
    "monteclora": {"objective": "elbo"},
}
"""Methods with a density, and the fields with which they have one."""

VARIANTS = [
    *CARRIED.items(),
    ("autoguide", {"autoguide": "AutoLowRankMultivariateNormal"}),
    ("blob", {"prior_scale": "learn"}),
    ("laplace", {"last_layer": True, "prior_precision": 3.0}),
    ("monteclora", {"objective": "elbo", "df": float("inf")}),
]


@pytest.mark.parametrize(("method", "fields"), VARIANTS, ids=str)
def test_a_fit_starts_at_its_prior_and_is_saved_with_it(
    method: str, fields: dict[str, Any], earlier: Callable[..., Posterior], tmp_path: Path
) -> None:
    before = earlier(method, **fields)
    after = bayeslora.fit(network(), rows(16, seed=1), prior=before, **START | {"rank": 1})
    assert after.method.name == method
    assert after.network.stacks.num_examples == 16
    inputs = rows(8)[0]
    center = [each.predict(inputs, center=True, approximation="draws").probs for each in (before, after)]
    np.testing.assert_allclose(*center, rtol=1e-5, atol=1e-7)
    moved(after).save(tmp_path)
    loaded = bayeslora.load(tmp_path, network())
    assert loaded.record() == after.record()
    assert loaded.record()["prior"]["name"] == method
    batch = {**inputs, "labels": rows(8)[1]}
    terms = []
    for each in (after, loaded):
        torch.manual_seed(1)
        each.program.train()(**batch)
        terms.append(each.program.eval().terms)
    assert terms[0].keys() == terms[1].keys()
    for name in terms[0]:
        torch.testing.assert_close(terms[0][name], terms[1][name])
    report = after.forgotten(rows(24))
    assert report.num_examples == 24
    assert float(loaded.forgotten(rows(24), before)) == pytest.approx(report.change, abs=1e-6)
    with pytest.raises(ValueError, match=r"before=…"):
        loaded.forgotten(rows(24))


@pytest.mark.parametrize(("method", "fields"), [*CARRIED.items()], ids=str)
def test_the_divergence_is_that_from_the_earlier_guide(
    method: str, fields: dict[str, Any], earlier: Callable[..., Posterior]
) -> None:
    program = bayeslora.fit(
        network(), rows(16, seed=1), prior=earlier(method, **fields), epochs=0, progress=False
    ).program.train()
    batch = {**rows(4)[0], "labels": rows(4)[1]}
    program(**batch)
    assert program.prior is not None
    random = {name: value for name, value in program.terms.items() if name in program.prior.random}
    assert random
    if method != "laplace":  # whose sites are drawn, not trained
        assert max(abs(float(value)) for value in random.values()) < 1e-6
    with torch.no_grad():
        for parameter in program.guide.parameters():
            parameter.add_(0.5)  # by much more than a sampled divergence varies
    program(**batch)
    divergence = sum(float(program.terms[name]) for name in random)
    assert divergence > sum(map(float, random.values()))
    if method == "blob":
        kls = []
        for name in program.stacks:
            q, p = (guide[name].sites["A"]() for guide in (program.guide, program.prior.guide))
            kls.append(torch.distributions.kl_divergence(q.base_dist, p.base_dist).sum().item())
        assert divergence == pytest.approx(0.03 / 16 * sum(kls), rel=1e-5)


def test_points_keep_the_prior_that_the_method_gives_them(earlier: Callable[..., Posterior]) -> None:
    program = bayeslora.fit(
        network(), rows(16), prior=earlier("monteclora", objective="elbo"), epochs=0, progress=False
    ).program
    trace = pyro.poutine.trace(program.factors).get_trace()
    assert all(trace.nodes[f"{name}.B"]["fn"].base_dist.scale.eq(1).all() for name in program.stacks)
    assert all(not trace.nodes[f"{name}.A"]["fn"].loc.eq(0).all() for name in program.stacks)


@pytest.mark.parametrize("method", sorted(METHODS.keys() - CARRIED.keys()))
def test_methods_without_a_density_say_why_and_what_to_do(method: str) -> None:
    settings = {"targets": ["0"]} if method in ("houlsby", "pfeiffer") else {}
    posterior = bayeslora.fit(network(), rows(60), method, **START, **settings)
    with pytest.raises(ValueError, match=rf"posterior of '{method}' cannot be a prior: .* init=posterior"):
        bayeslora.fit(network(), rows(16), prior=posterior, epochs=0, progress=False)


def test_laplace_in_turn_is_laplace_at_once() -> None:
    # One output: R is a number, and the sum of the two Kronecker products is one.
    torch.manual_seed(0)
    x = torch.randn(40, 3).double()
    y = (x @ torch.tensor([1.0, -2.0, 0.5]).double() + 0.3 * torch.randn(40).double())[:, None]

    def one_output() -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1)).double()

    def fit(which: slice, prior: Posterior | None = None) -> Posterior:
        settings: dict[str, Any] = (
            {"prior": prior}
            if prior
            else {
                "method": Laplace(prior_precision=2.0, last_layer=True),
                "head": "1",
                "likelihood": Known(),
                "rank": 1,
            }
        )
        posterior = bayeslora.fit(one_output(), ({"input": x[which]}, y[which]), epochs=0, progress=False, **settings)
        return posterior

    first = fit(slice(0, 20))
    both, at_once = fit(slice(20, 40), first), fit(slice(0, 40))
    dense = [precision(posterior) for posterior in (both, at_once)]
    torch.testing.assert_close(dense[0], dense[1], rtol=1e-9, atol=1e-9)
    assert precision(first).diagonal().sum() < dense[0].diagonal().sum()


class Known(Homoscedastic):
    """y ~ N(f, NOISE²), registered under no name."""


def precision(posterior: Posterior) -> Tensor:
    """The precision of the head's weight and bias."""
    (matrix,) = (part.matrices["weight"] for part in posterior.guide.values() if part.stack.in_head)
    return dense(Kronecker(*(getattr(matrix, name)[0] for name in Kronecker._fields))) + matrix.precision * torch.eye(4)


def dense(product: Kronecker) -> Tensor:
    R, C = (basis * values @ basis.mT for basis, values in (product[:2], product[2:]))
    return torch.kron(R, C)


def random_product(rows: int, columns: int, seed: int) -> Kronecker:
    generator = torch.Generator().manual_seed(seed)
    parts: list[Tensor] = []
    for size in (rows, columns):
        root = torch.randn(size, size, generator=generator, dtype=torch.float64)
        values, basis = torch.linalg.eigh(root @ root.T)
        parts += [basis, values]
    return Kronecker(*parts)


@pytest.mark.parametrize(("rows", "columns"), [(1, 4), (4, 1), (3, 4)])
def test_the_nearest_kronecker_product_to_a_sum(rows: int, columns: int) -> None:
    first, second = (random_product(rows, columns, seed) for seed in (0, 1))
    total = dense(first) + dense(second)
    found = dense(nearest_sum(first, second))
    # The rearrangement of a matrix of blocks has their entries as rows: the nearest product is its best rank-1 matrix.
    blocks = total.view(rows, columns, rows, columns).permute(0, 2, 1, 3).reshape(rows**2, columns**2)
    U, values, Vt = torch.linalg.svd(blocks, full_matrices=False)
    best = (values[0] * U[:, :1] @ Vt[:1]).view(rows, rows, columns, columns).permute(0, 2, 1, 3).reshape(total.shape)
    torch.testing.assert_close(found, best, rtol=1e-9, atol=1e-9)
    assert bool((torch.linalg.eigvalsh(found) > -1e-9).all())
    if 1 in (rows, columns):
        torch.testing.assert_close(found, total, rtol=1e-9, atol=1e-9)


def test_the_divergence_of_matrices_with_gaussian_columns() -> None:
    torch.manual_seed(0)
    tril, other = (torch.randn(2, 3, 3).double().tril() for _ in range(2))
    for each in (tril, other):
        each.diagonal(dim1=-2, dim2=-1).abs_().add_(0.3)
    loc, scale = torch.randn(2, 3, 5).double(), torch.tensor([0.5, 2.0]).double()
    q, p = ColumnNormal(tril, 5, None, loc, scale), ColumnNormal(other, 5)

    def by_columns(own: ColumnNormal, mean: Tensor, spread: Tensor) -> torch.distributions.MultivariateNormal:
        full = spread[:, None, None] * own.cov_tril
        return torch.distributions.MultivariateNormal(mean.mT, scale_tril=full[:, None])

    expected = kl_divergence(
        by_columns(q, loc, scale), by_columns(p, torch.zeros_like(loc), torch.ones(2).double())
    ).sum(-1)
    torch.testing.assert_close(kl_divergence(q, p), expected)


def test_classes_are_matched_by_name(caplog: pytest.LogCaptureFixture) -> None:
    inputs, labels = rows(24)
    names = np.array(["b", "a", "c"])[labels.numpy()]
    before = bayeslora.fit(network(), (inputs, names), "blob", **START)
    only = names == "c"
    new = {"input": inputs["input"][only]}, names[only]
    with caplog.at_level(logging.INFO, "bayeslora"):
        after = bayeslora.fit(network(), new, prior=before, **START)
    assert after.class_names == before.class_names
    assert "The prior is the posterior of 24 examples; B, which are points, start from it." in caplog.text
    with pytest.raises(ValueError, match=r"'d' .* is not among the 3 classes"):
        bayeslora.fit(network(), (new[0], np.array(["d"] * only.sum())), prior=before, **START)


def test_what_does_not_go_with_a_prior_is_refused(earlier: Callable[..., Posterior]) -> None:
    blob = earlier("blob")
    for settings, message in (
        ({"method": "scalabl"}, r"method='scalabl': the prior is a posterior of 'blob'.*init=posterior"),
        ({"init": blob}, "init is given beside prior"),
        ({"likelihood": "regression"}, "about 'classification' labels, not 'regression'"),
    ):
        with pytest.raises(ValueError, match=message):
            bayeslora.fit(network(), rows(16), prior=blob, epochs=0, progress=False, **settings)
    other = network()
    with torch.no_grad():
        other[0].weight.add_(1.0)
    with pytest.raises(ValueError, match="belongs to another base model"):
        bayeslora.fit(other, rows(16), prior=blob, epochs=0, progress=False)


@pytest.mark.parametrize("start", ["prior", "init"])
def test_a_model_of_other_layers_is_said_to_be_one(earlier: Callable[..., Posterior], start: str) -> None:
    other = nn.Sequential(nn.Flatten(), network())
    with pytest.raises(ValueError, match=f"^{start} adapts '0', which the Sequential does not have: load a model"):
        bayeslora.fit(other, rows(16), **{start: earlier("blob")}, epochs=0, progress=False)


@pytest.mark.parametrize("start", ["prior", "init"])
def test_what_is_left_aside_is_named(
    earlier: Callable[..., Posterior], caplog: pytest.LogCaptureFixture, start: str
) -> None:
    blob = earlier("blob")
    given: dict[str, Any] = {start: blob, "epochs": 0, "progress": False}
    method = {} if start == "prior" else {"method": "blob"}
    rank = next(iter(blob.network.stacks.values())).rank
    bayeslora.fit(network(), rows(16), rank=rank, prior_scale=0.2, **given | method)  # as it is anyway
    assert "left aside" not in caplog.text
    after = bayeslora.fit(network(), rows(16), rank=rank + 1, alpha=3, targets="0", prior_scale=0.5, **given | method)
    assert [stack.rank for stack in after.network.stacks.values()] == [s.rank for s in blob.network.stacks.values()]
    said = f"targets='0', rank={rank + 1}, alpha=3 are left aside: layers, ranks and scaling are those of {start}."
    assert said in caplog.text
    assert ("prior_scale=0.5 left aside: what is random" in caplog.text) == (start == "prior")


def test_fields_may_change_and_the_temperature_weighs_the_new_divergence(earlier: Callable[..., Posterior]) -> None:
    after = bayeslora.fit(network(), rows(16), prior=earlier("blob"), temperature=0.5, epochs=0, progress=False)
    assert after.method.temperature == 0.5  # type: ignore[attr-defined]
    trace = pyro.poutine.trace(after.program.factors).get_trace()
    assert all(trace.nodes[f"{name}.A"]["scale"] == pytest.approx(0.5 / 16) for name in after.program.stacks)
    khat = after.khat(rows(16), num_draws=20)
    assert khat.temperature == pytest.approx(0.5)


def test_a_third_fit_learns_from_the_second_alone(earlier: Callable[..., Posterior]) -> None:
    second = moved(bayeslora.fit(network(), rows(16, seed=1), prior=earlier("blob"), **START))
    third = bayeslora.fit(network(), rows(16, seed=2), prior=second, **START)
    assert isinstance(third.program.prior, Carried)
    for name, value in second.guide.state_dict().items():
        assert torch.equal(third.program.prior.guide.state_dict()[name], value)
    assert third.learned_from is not None
    assert third.learned_from.learned_from is None


def test_what_was_forgotten_in_words(earlier: Callable[..., Posterior]) -> None:
    before = earlier("blob")
    inputs, labels = rows(200)
    same = before.forgotten((inputs, labels), before)
    assert same.change == 0.0
    assert same.verdict.startswith("Nothing forgotten that 200 examples could show")
    tempered = copy.copy(before)
    tempered.temperature = 5.0  # which is not forgetting
    assert before.forgotten((inputs, labels), tempered).change == 0.0
    one = before.forgotten(rows(1), before)
    assert one.verdict.startswith("Not known: one example says nothing about others")
    predicted = before.predict(inputs).predicted
    wrong = torch.as_tensor((predicted + 1) % 3)
    after = bayeslora.fit(network(), (inputs, wrong), prior=before, epochs=2, learning_rate=0.1, progress=False)
    report = after.forgotten((inputs, torch.as_tensor(predicted)))
    assert report.verdict.startswith("Forgotten: old data are predicted worse, by ")
    assert f"NLL {report.before['nll']:.3f} before" in report.verdict
    assert "accuracy 100.0% and" in report.verdict
    assert float(report) == report.change
    assert "nll" in repr(report)


def test_a_gaussian_that_no_prior_led_to_is_refused() -> None:
    student = bayeslora.fit(network(), rows(16), "distilled", **START)
    head = student.guide[next(name for name, stack in student.network.stacks.items() if stack.in_head)]
    with torch.no_grad():
        for value in (*head.parameters(), *head.buffers()):
            value.add_(0.1)
    with pytest.raises(ValueError, match=r"'distilled' cannot be a prior: .* or another posterior made its noise"):
        bayeslora.fit(network(), rows(16), prior=student, **START)


def test_a_mixture_is_not_a_prior(earlier: Callable[..., Posterior]) -> None:
    both = bayeslora.mixture([earlier("blob"), earlier("blob")])
    with pytest.raises(ValueError, match=r"mixture of 2 posteriors.*components\[0\]"):
        bayeslora.fit(network(), rows(16), prior=both, **START)
    assert both.forgotten(rows(16), earlier("blob")).change == pytest.approx(0.0, abs=0.2)


def test_a_checkpoint_knows_its_prior(earlier: Callable[..., Posterior], tmp_path: Path) -> None:
    settings = {"rank": 2, "epochs": 1, "batch_size": 8, "progress": False, "output_dir": tmp_path}
    bayeslora.fit(network(), rows(16), prior=earlier("blob"), **settings)
    other = moved(bayeslora.fit(network(), rows(16), "blob", **START), by=0.2)
    with pytest.raises(ValueError, match=r"another fit \(prior '.*', now '.*'\)"):
        bayeslora.fit(network(), rows(16), prior=other, resume=True, **settings)
