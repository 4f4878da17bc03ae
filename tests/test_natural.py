"""Natural steps of Gaussian spreads: where they lead, and that a fit takes them as it should."""

import logging
import re
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from transformers import TrainingArguments

import bayeslora
from bayeslora import natural, storage, verdict
from bayeslora.distributions import kl_divergence
from bayeslora.methods import AutoGuide, BLoB, Method
from tests.methods.test_gaussian import PRIOR, Problem, hold, holding, make_program, problem

__all__ = ["problem"]

NaturalAdamW: Any = natural.with_natural_steps(torch.optim.AdamW)


def train(method: Method, problem: Problem, steps: int, precision: Tensor) -> tuple[Tensor, float | None]:
    """Spreads after a short fit with the means held at the posterior's, in units of the optimum, and their distance."""
    program = make_program(method, problem, num_particles=4)
    if isinstance(method, BLoB):
        sites = program.guide["3x4"].sites
        hold(sites["B"].loc, problem.B)
        hold(sites["A"].loc, problem.mean.view(1, 2, 3))
    program.num_steps = steps
    groups = method.optimizer_groups(program, 1e-3)
    taken = {id(parameter) for group in groups for parameter in group["params"]}
    others = [parameter for _, parameter in program.trainable() if id(parameter) not in taken]
    for parameter in others:
        hold(parameter, problem.mean.view(parameter.shape))
    optimizer = NaturalAdamW(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(steps):
        optimizer.zero_grad()
        program(**problem.batch).loss.backward()
        optimizer.step()
        schedule.step()
    gaussian = next(iter(bayeslora.guides.gaussians(program.guide)))
    spread = natural.standard_deviation(gaussian.spread.detach(), gaussian.form)
    return spread.flatten() * precision.sqrt(), natural.distance(optimizer)


@pytest.mark.parametrize(
    ("autoguide", "temperature"), [(None, 1.0), (None, 0.1), ("AutoNormal", 0.1), ("AutoDiagonalNormal", 1.0)]
)
def test_spreads_reach_the_known_optimum_within_a_default_fit(
    problem: Problem, autoguide: str | None, temperature: float
) -> None:
    fields: dict[str, Any] = {"temperature": temperature}
    if autoguide is None:
        method: Method = BLoB(prior_scale=PRIOR, **fields)
    else:
        method = AutoGuide(prior_program=holding(problem.B), autoguide=autoguide, **fields)
    data = problem.precision.diagonal() - PRIOR**-2
    torch.manual_seed(0)
    found, distance = train(method, problem, 200, data / temperature + PRIOR**-2)
    torch.testing.assert_close(found, torch.ones(6).double(), rtol=0, atol=0.15)
    assert verdict.have_settled(distance)
    assert float(found.std()) < 0.1  # whereas the optima themselves differ by more than that
    assert float(data.rsqrt().std() / data.rsqrt().mean()) > 0.1


def test_it_does_not_matter_what_is_learned_of_a_spread() -> None:
    torch.manual_seed(0)
    scale, target = torch.rand(5).double() + 0.1, torch.rand(5).double() + 0.1
    starts: dict[Any, Tensor] = {
        "log": scale.log(),
        "root": scale.sqrt(),
        "softplus": scale + torch.log(-torch.expm1(-scale)),
    }
    ends = []
    for form, start in starts.items():
        value = nn.Parameter(start.clone())
        optimizer = NaturalAdamW(natural.of_spreads([natural.Gaussian(value, form, 0.3)], 0.2))
        for _ in range(7):
            optimizer.zero_grad()
            q = dist.Normal(0.0, natural.standard_deviation(value, form))
            (0.3 * kl_divergence(q, dist.Normal(0.0, target)).sum()).backward()
            optimizer.step()
        ends.append(natural.standard_deviation(value.detach(), form))
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-12, atol=0)
    left = (ends[0].pow(-2) - target.pow(-2)) / (scale.pow(-2) - target.pow(-2))
    assert bool((left < 0.4).all()), "of a precision's distance, about .8⁷ is left"
    assert bool((left > 0).all())


def test_a_gradient_of_any_size_leaves_a_spread_positive_and_finite() -> None:
    for form, start in (("log", -3.0), ("root", 0.2), ("softplus", -3.0)):
        for gradient in (-1e12, -1.0, 0.0, 1e12):
            value = nn.Parameter(torch.tensor([start]).double())
            value.grad = torch.tensor([gradient]).double()
            NaturalAdamW(natural.of_spreads([natural.Gaussian(value, form, 1e-4)], 0.5)).step()  # type: ignore[arg-type]
            spread = float(natural.standard_deviation(value.detach(), form))  # type: ignore[arg-type]
            assert 0 < spread < 10


def test_a_gradient_scaler_unscales_them_and_skips_what_overflows() -> None:
    def step(scale: float, gradient: float) -> Tensor:
        values = [nn.Parameter(torch.ones(2)) for _ in range(2)]
        groups = natural.of_spreads([natural.Gaussian(values[1], "log", 1.0)], 0.1)
        optimizer = natural.with_natural_steps(torch.optim.AdamW)([{"params": values[:1]}, *groups], fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale(gradient * sum(value.sum() for value in values)).backward()
        scaler.step(optimizer)
        return torch.cat([value.detach() for value in values])

    assert torch.equal(step(1.0, 0.5), step(2.0**12, 0.5))
    assert torch.equal(step(1.0, float("inf")), torch.ones(4))


# In a fit


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 2))


def rows(num_examples: int = 24) -> tuple[Tensor, Tensor]:
    x = torch.randn(num_examples, 3, generator=torch.Generator().manual_seed(0))
    return x, (x[:, 0] > 0).long()


def fit(method: str, folder: Path | None = None, **settings: Any) -> Any:
    defaults = {"rank": 1, "epochs": 2, "batch_size": 4, "learning_rate": 0.01, "progress": False}
    return bayeslora.fit(network(), rows(), method, output_dir=folder, **(defaults | settings))


def state(posterior: Any) -> dict[str, Tensor]:
    return storage.state(posterior.program)


def roots(posterior: Any) -> Tensor:
    """All roots of the spreads of a BLoB."""
    return torch.cat([v.flatten() for name, v in state(posterior).items() if name.endswith("sqrt_scale")])


@pytest.mark.parametrize("method", ["ivon"])
def test_a_fit_resumes_to_the_same_bits(method: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    whole = state(fit(method, folder))
    (folder / "checkpoint-12" / "complete.json").unlink()
    (folder / storage.MANIFEST).unlink()
    resumed = state(fit(method, folder, resume=True))
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_gradients_of_spreads_are_not_clipped(tmp_path: Path) -> None:
    def spreads(largest: float) -> Tensor:
        args = TrainingArguments(
            str(tmp_path), max_steps=4, learning_rate=0.0, max_grad_norm=largest, report_to=[], save_strategy="no",
            disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        return roots(fit("blob", args=args))

    assert torch.equal(spreads(0.0), spreads(1e-9))


def test_accumulated_gradients_make_the_steps_of_one_batch(tmp_path: Path) -> None:
    # Without a draw's noise, which differs: of the divergence alone, at a likelihood that a huge temperature drowns.
    def spreads(size: int, accumulated: int) -> Tensor:
        args = TrainingArguments(
            str(tmp_path), max_steps=4, learning_rate=0.0, per_device_train_batch_size=size, report_to=[],
            gradient_accumulation_steps=accumulated, save_strategy="no", disable_tqdm=True,
            dataloader_pin_memory=False,
        )  # fmt: skip
        return roots(fit("blob", args=args, temperature=1e6))

    torch.testing.assert_close(spreads(8, 1), spreads(4, 2), rtol=1e-4, atol=0)


def test_a_rate_for_the_spreads_leaves_them_to_the_trainers_optimiser() -> None:
    start = roots(fit("blob", epochs=0))
    held = roots(fit("blob", guide_learning_rate=0.0))
    by_adam = roots(fit("blob", guide_learning_rate=0.001))
    assert torch.equal(held, start)
    assert 0 < float((by_adam - start).abs().max()) < 12 * 0.001 * 1.01


def test_a_fit_that_ends_too_soon_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "bayeslora"):
        fit("blob", spread_rate=0.01)
    assert re.search(r"The spreads have not come to rest: .* prior and data ask for 0\.0\d times", caplog.text)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "bayeslora"):
        fit("blob", epochs=60, batch_size=8, temperature=1.0, num_particles=8)  # which quiets the last steps
    assert "come to rest" not in caplog.text


@pytest.mark.parametrize("method", ["blob", "scalabl", "autoguide"])
def test_a_learned_prior_has_the_scale_of_the_best_bound(method: str) -> None:
    posterior = fit(method, prior_scale="learn")
    draws = posterior.program.draw(4000)
    names = [name for name in draws if ".prior_scale_" in name]
    assert names
    for name in names:
        scale, values = draws[name], draws[name.replace("prior_scale_", "")].flatten(2)
        assert torch.equal(scale, scale[:1].expand_as(scale))
        mean_square = values.square().mean((0, 2)).sqrt()
        torch.testing.assert_close(scale[0], mean_square, rtol=0.05, atol=0)
    again = fit(method, prior_scale="learn", epochs=0).program.draw(1)
    assert float(again[names[0]].max()) == float(again[names[0]].min()) == pytest.approx(posterior.method.usual_scale)


def test_what_has_no_scale_has_none_to_learn() -> None:
    with pytest.raises(ValueError, match="prior_scale='learn': AutoDelta is not a Normal"):
        fit("autoguide", autoguide="AutoDelta", prior_scale="learn")
