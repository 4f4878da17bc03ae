"""Finding the loudness of the noise on held-out data."""

import logging
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bayeslora
from bayeslora import MonteCLoRA
from bayeslora.adapters import AdaptedNetwork
from bayeslora.methods import make_method
from bayeslora.program import Program
from bayeslora.tasks import Classification
from bayeslora.tuning import log_mean_exp, nll_by_loudness
from tests.helpers import assert_mean_close, tiny_bert, tokens
from tests.tasks.cases import named

SETTINGS: dict[str, Any] = {"epochs": 4, "learning_rate": 1e-2, "progress": False}


def linear_program(**fields: Any) -> Program:
    """Logits that are linear in `A`, and so in the noise."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 3, bias=False))
    nn.init.normal_(model[0].weight, std=3.0)  # a confident centre
    network = AdaptedNetwork(model, targets=["0"], rank=2, num_examples=8)
    program = Program(network, make_method(MonteCLoRA(**fields)), Classification(3)).eval()
    with torch.no_grad():
        next(iter(program.guide.values())).B.normal_(std=0.3)
    return program


def batches(program: Program, right: bool) -> list[dict[str, torch.Tensor]]:
    """Two batches whose labels are what the centre predicts, or anything but that."""
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(200, 6, generator=generator) for _ in range(2)]
    labels = [program(input=x, labels=torch.zeros(200, dtype=torch.long)).logits.argmax(-1) for x in inputs]
    return [{"input": x, "labels": y if right else (y + 1) % 3} for x, y in zip(inputs, labels, strict=True)]


def ratio(program: Program) -> float:
    return float(program.centre()["6x3.noise_ratio"])


def test_most_of_the_bias_of_few_draws_is_removed() -> None:
    # E ln mean e^v of S draws v ~ N(0, σ²) is below ln E e^v = σ²/2 by about (e^σ² − 1) / 2S.
    values = 0.5 * torch.randn(4, 40_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    naive = values.logsumexp(0) - math.log(4)
    bias = (math.exp(0.25) - 1) / 8
    assert abs(float(naive.mean()) - 0.125 + bias) < 0.3 * bias
    assert abs(float(log_mean_exp(values).mean()) - 0.125) < 0.2 * bias


def test_log_mean_exp_of_equal_draws_is_their_value() -> None:
    torch.testing.assert_close(log_mean_exp(torch.full((5, 3), -700.0)), torch.full((3,), -700.0))


def test_where_logits_are_linear_in_the_noise_its_scaling_is_exact() -> None:
    program = linear_program(noise_ratio="auto")
    data = batches(program, right=True)
    guessed = nll_by_loudness(program, data, torch.tensor([0.5, 1.4]), 4)
    for factor, expected in zip((0.5, 1.4), guessed, strict=True):
        guide = program.guide["6x3"]
        guide.noise_ratio.mul_(factor)
        actual = nll_by_loudness(program, data, torch.ones(1), 4)
        guide.noise_ratio.div_(factor)
        assert float(actual) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("name", ["Bert-choice", "Bert-span"])
def test_padding_has_no_noise(name: str) -> None:
    case = named(name)
    program = Program(AdaptedNetwork(case.make(), rank=2), make_method("monteclora"), case.likelihood).eval()
    with torch.no_grad():
        for guide in program.guide.values():
            guide.B.normal_(std=0.1)
    mask = case.data[0]["attention_mask"].clone()
    mask[:2, -1:] = 0  # a choice, or a token
    batch = {**case.data[0], "attention_mask": mask, "labels": torch.zeros_like(case.data[1])}
    nlls = nll_by_loudness(program, [batch], torch.tensor([0.0, 1.0]), 4)
    assert float(nlls[0]) == pytest.approx(program(**batch).loss.item(), rel=1e-5)
    assert bool(nlls.isfinite().all())


def test_held_out_labels_that_the_centre_gets_right_make_the_noise_quieter() -> None:
    program = linear_program(noise_ratio="auto")
    program.method.tune(program, batches(program, right=True))
    assert ratio(program) == pytest.approx(2.0)


def test_held_out_labels_that_the_centre_gets_wrong_make_the_noise_louder() -> None:
    program = linear_program(noise_ratio="auto")
    program.method.tune(program, batches(program, right=False))
    assert ratio(program) == pytest.approx(4 * 2**0.5)


def test_a_louder_ratio_that_its_own_draws_do_not_confirm_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    program = linear_program(noise_ratio="auto")

    def optimistic(program: Program, data: Any, factors: torch.Tensor, num_draws: int) -> torch.Tensor:
        # Falling in the factor; but at a ratio above the first, high.
        return torch.ones(1) if ratio(program) > 4 else -factors.double() / 10

    monkeypatch.setattr("bayeslora.tuning.nll_by_loudness", optimistic)
    program.method.tune(program, batches(program, right=True))
    assert ratio(program) == pytest.approx(4.0)


def test_few_examples_leave_the_ratio_near_the_default() -> None:
    program = linear_program(noise_ratio="auto")
    few = [{name: value[:1] for name, value in batch.items()} for batch in batches(program, right=True)]
    program.method.tune(program, few)
    assert ratio(program) == pytest.approx(4.0, rel=0.2)


def test_random_numbers_of_the_caller_are_left_alone() -> None:
    program = linear_program(noise_ratio="auto")
    data = batches(program, right=True)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    program.method.tune(program, data)
    assert torch.equal(torch.rand(1), expected)


def test_fit_finds_one_ratio_for_all_layers_and_keeps_it(tmp_path: Any) -> None:
    posterior = bayeslora.fit(tiny_bert(), tokens(64), noise_ratio="auto", validation=tokens(40, seed=1), **SETTINGS)
    draws = posterior.draw(3)
    found = [value for name, value in draws.items() if name.endswith(".noise_ratio")]
    assert len(found) == len(posterior.network.stacks)
    assert all(bool((value == found[0][0, 0]).all()) for value in found)
    posterior.save(tmp_path)
    loaded = bayeslora.load(tmp_path, tiny_bert())
    assert all(torch.equal(value, draws[name]) for name, value in loaded.draw(3).items())
    name = next(iter(posterior.network.stacks))
    assert f"noise_ratio_{name}" in posterior.to_arviz().posterior


def test_fit_passes_tuning_data_at_the_methods_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[bool, int]] = []

    def tune(self: MonteCLoRA, program: Program, data: list[dict[str, torch.Tensor]]) -> None:
        calls.append((program.training, sum(len(batch["labels"]) for batch in data)))

    monkeypatch.setattr(MonteCLoRA, "tune", tune)
    bayeslora.fit(tiny_bert(), tokens(64), noise_ratio="auto", validation=tokens(300, seed=1), **SETTINGS)
    # 4 epochs of 64 examples: a share of 0.3 of 2.5 passes each is 48 passes a moment, 5 an example; at least 50.
    assert calls == [(False, 50)] * 4


def test_without_validation_a_tenth_is_held_out(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "bayeslora"):
        posterior = bayeslora.fit(tiny_bert(), tokens(60), noise_ratio="auto", **SETTINGS)
    assert "6 of 60 training examples are held out" in caplog.text
    assert "Noise ratio: " in caplog.text
    assert posterior.network.stacks.num_examples == 54


def test_under_fifty_examples_the_default_is_kept_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    posterior = bayeslora.fit(tiny_bert(), tokens(49), noise_ratio="auto", **SETTINGS)
    assert "49 examples are too few to hold out a tenth" in caplog.text
    assert all(float(guide.noise_ratio[0]) == 4.0 for guide in posterior.guide.values())


def test_a_loader_needs_validation_data() -> None:
    rows = TensorDataset(torch.randn(60, 4), torch.randint(0, 2, (60,)))
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    loader = DataLoader(rows, batch_size=10)
    with pytest.raises(TypeError, match="no part can be taken"):
        bayeslora.fit(model, loader, noise_ratio="auto", targets=["0"], rank=2, **SETTINGS)
    held_out = (rows.tensors[0].numpy(), rows.tensors[1].numpy())
    bayeslora.fit(model, loader, noise_ratio="auto", targets=["0"], rank=2, validation=held_out, **SETTINGS)


def test_the_ratio_is_no_site_where_it_is_fixed() -> None:
    assert not any("noise_ratio" in name for name in linear_program().draw(1))


def test_a_sample_scale_beside_an_automatic_ratio_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sample_scale=0.1: it would replace noise_ratio='auto'"):
        MonteCLoRA(noise_ratio="auto", sample_scale=0.1)


def test_draws_of_an_automatic_ratio_have_the_loudness_of_the_same_fixed_one() -> None:
    auto, fixed = linear_program(noise_ratio="auto"), linear_program(noise_ratio=4.0)
    fixed.guide.load_state_dict({n: v for n, v in auto.guide.state_dict().items() if "noise_ratio" not in n})
    factors = [program.factors_at(program.draw(4000))["6x3"].A for program in (auto, fixed)]
    second_moments = [(A - A.mean(0)).square().flatten(1).mean(1) for A in factors]
    difference = second_moments[0] - second_moments[1]
    assert_mean_close(difference, 0.0)
