"""IVON: its steps against the authors' package, and its posterior against NUTS."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bayeslora import guides, natural
from bayeslora.adapters import AdaptedNetwork
from bayeslora.methods import IVON
from bayeslora.program import Program
from bayeslora.tasks import Classification

NaturalAdamW: Any = natural.with_natural_steps(torch.optim.AdamW)


def test_its_steps_are_those_of_the_authors_package() -> None:
    ivon = pytest.importorskip("ivon")
    torch.manual_seed(0)
    x, y = torch.randn(30, 4).double(), torch.randn(30).sign().double()
    start, weight_decay, ess, beta1, beta2, rate = torch.randn(4).double(), 0.02, 50.0, 0.9, 0.7, 0.3

    def nll(value: Tensor) -> Tensor:
        return nn.functional.softplus(-y * (x @ value)).mean()

    theirs = nn.Parameter(start.clone())
    package = ivon.IVON(
        [theirs], lr=rate, ess=ess, hess_init=0.5, beta1=beta1, beta2=beta2, weight_decay=weight_decay,
        rescale_lr=False, clip_radius=0.8,
    )  # fmt: skip
    spread = (ess * (0.5 + weight_decay)) ** -0.5
    ours = guides.Normal(start.clone()[None], spread).double()
    gaussian = natural.Gaussian(ours.log_scale, "log", 1 / ess, ours.loc)
    optimizer = NaturalAdamW(natural.of_both([gaussian], 1 - beta2, rate, beta1, ess * weight_decay, 0.8))
    for step in range(25):
        torch.manual_seed(step)
        with package.sampled_params(train=True):
            package.zero_grad()
            nll(theirs).backward()
        package.step()
        torch.manual_seed(step)
        noise = torch.randn(4, dtype=torch.float64)
        optimizer.zero_grad()
        prior = torch.distributions.Normal(0.0, (ess * weight_decay) ** -0.5)
        q = torch.distributions.Normal(ours.loc, ours.log_scale.exp())
        loss = nll((ours.loc + ours.log_scale.exp() * noise)[0])
        (loss + torch.distributions.kl_divergence(q, prior).sum() / ess).backward()
        optimizer.step()
        torch.testing.assert_close(ours.loc.detach()[0], theirs.detach(), rtol=1e-6, atol=1e-7)  # of values of 1
        precision = ess * (package.param_groups[0]["hess"] + weight_decay)
        torch.testing.assert_close(ours.log_scale.detach()[0].exp(), precision.rsqrt(), rtol=1e-6, atol=0)


@pytest.mark.slow
def test_its_posterior_is_that_of_nuts() -> None:
    record = json.loads((Path(__file__).parents[1] / "references" / "ivon_nuts.json").read_text())
    x, W, b, B, reference = (torch.tensor(record[name]).double() for name in ("x", "W", "b", "B", "draws"))
    labels = torch.tensor(record["labels"]).long()
    layer = nn.Linear(*W.T.shape).double()
    with torch.no_grad():
        layer.weight.copy_(W)
        layer.bias.copy_(b)
    network = AdaptedNetwork(
        nn.Sequential(layer), targets=["0"], rank=1, alpha=record["scale"], num_examples=len(x), head=()
    )
    steps = 800
    torch.manual_seed(0)
    program = Program(network, IVON(prior_scale=record["prior"], temperature=1.0, mean_rate=0.1), Classification(2), 4)
    (name,) = network.stacks
    program.guide[name].sites["B"] = guides.Point(B[None]).requires_grad_(False)
    program.num_steps = steps
    optimizer = NaturalAdamW(program.method.optimizer_groups(program, 0.1))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(steps):
        optimizer.zero_grad()
        program(input=x, labels=labels).loss.backward()
        optimizer.step()
        schedule.step()
    q = program.guide[name].sites["A"]()
    mean, sd = q.mean.detach().flatten(), q.variance.detach().sqrt().flatten()
    ratio = sd / reference.std(0)
    assert 0.9 < float(ratio.min()) <= float(ratio.max()) < 1.1
    held = ((reference - mean).abs() < 1.6449 * sd).double().mean()
    assert 0.87 < float(held) < 0.93


def test_every_number_of_the_guide_takes_its_steps(make_program: Any) -> None:
    with pytest.raises(ValueError, match=r"momentum=1.0: give "):
        IVON(momentum=1.0)
    program = make_program("ivon", double=True)
    program.num_steps = 100
    found = program.method.optimizer_groups(program, 1e-3)
    assert [group["steps"] for group in found] == ["spread", "mean"] * (len(found) // 2)
    learned = {id(parameter) for parameter in program.guide.parameters()}
    assert {id(parameter) for group in found for parameter in group["params"]} == learned


def test_means_move_no_farther_than_the_learning_rate(make_program: Any) -> None:
    program = make_program("ivon", double=True, mean_rate=0.5)
    program.num_steps = 100
    groups = program.method.optimizer_groups(program, 1e-3)
    means = [group["params"][0] for group in groups if group["steps"] == "mean"]
    optimizer = NaturalAdamW(groups)
    for group in groups:
        group["lr"] *= 0.25  # as a schedule does
    before = [mean.detach().clone() for mean in means]
    for group in groups:
        group["params"][0].grad = torch.zeros_like(group["params"][0])
    means[0].grad = torch.randn_like(means[0]) * 1e6
    optimizer.step()
    moved = (means[0].detach() - before[0]).square().mean().sqrt()
    assert float(moved) == pytest.approx(0.25e-3)
    # No data and a prior at 0: a Newton step to it is −m δ / (h + δ), and is not shortened where it is short enough.
    for mean, old in zip(means[1:], before[1:], strict=True):
        assert float((mean.detach() - old).square().mean().sqrt()) <= 0.25e-3 * (1 + 1e-9)


def test_its_defaults_learn() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 6).double()
    labels = (x[:, 0] > x[:, 1]).long()
    layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    network = AdaptedNetwork(layers, targets=["0"], rank=2, alpha=4, num_examples=len(x), head=())
    program = Program(network, IVON(), Classification(2), 1)
    program.num_steps = 200
    optimizer = NaturalAdamW(program.method.optimizer_groups(program, 2e-2))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 200)
    losses = []
    for _ in range(200):
        optimizer.zero_grad()
        output = program(input=x, labels=labels)
        losses.append(nn.functional.cross_entropy(output.logits.detach().reshape(64, 2), labels).item())
        output.loss.backward()
        optimizer.step()
        schedule.step()
    # In the labels there is no noise: the loss can fall to 0. At a spread too loud to learn it stays at ln 2.
    assert sum(losses[-20:]) / 20 < 0.5 * sum(losses[:3]) / 3
