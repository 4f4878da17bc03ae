"""The program as an `nn.Module`: the centre, draws, devices of constants, and what is trained."""

from typing import Any

import pyro
import pytest
import torch

from bayeslora.adapters import AdaptedNetwork
from bayeslora.methods import make_method
from bayeslora.program import Program
from bayeslora.tasks import Classification
from tests.helpers import assert_checkpointing_keeps_gradients, batch, tiny_bert, tiny_llama


def make(method: str = "monteclora", **settings: object) -> Program:
    return Program(AdaptedNetwork(tiny_bert(), rank=4), make_method(method), Classification(3), **settings)


def test_evaluation_gives_the_centre_and_its_nll() -> None:
    program = make().eval()
    with torch.no_grad():
        for name in program.stacks:
            program.guide[name].B.normal_()
    outputs = [program(**batch(6)) for _ in range(2)]
    assert torch.equal(outputs[0].logits, outputs[1].logits)
    expected = torch.nn.functional.cross_entropy(outputs[0].logits, batch(6)["labels"])
    assert outputs[0].loss.item() == pytest.approx(expected.item(), rel=1e-5)
    # At the centre, A is μ: the noise is at its mean, zero.
    factors = program.factors_at(program.centre())
    assert all(torch.equal(factors[name].A, program.guide[name].loc) for name in program.stacks)


def test_training_draws_anew_at_every_call() -> None:
    program = make()
    with torch.no_grad():
        for name in program.stacks:
            program.guide[name].B.normal_()
    program.network.eval()  # no dropout: what differs is the draw
    assert not torch.equal(program(**batch(6)).logits, program(**batch(6)).logits)


class Moody(torch.nn.Module):
    """A guide whose site is its mode: 1 in training, 0 in evaluation."""

    def forward(self) -> None:
        pyro.sample("mode", pyro.distributions.Delta(torch.tensor(float(self.training))))


def test_draws_and_centre_are_those_of_evaluation() -> None:
    program = make()
    program.guide = Moody()
    assert program.draw(3)["mode"].tolist() == [0.0] * 3
    assert program.centre()["mode"].item() == 0.0
    assert program.guide.training
    program.eval().draw(1)
    assert not program.guide.training


class SequenceFirst(torch.nn.Module):
    """A network whose layers see `[token, batch, …]`."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x.transpose(0, 1)).mean(0))


@pytest.mark.parametrize(
    ("method", "by_draw"),
    [("monteclora", False), ("lora_dropout", False), ("deep_ensemble", False), ("deep_ensemble", True)],
)
def test_draws_that_cannot_share_a_pass_train_one_by_one(method: str, by_draw: bool) -> None:
    network, chosen = AdaptedNetwork(SequenceFirst(), targets="body", rank=2), make_method(method)
    program = Program(network, chosen, Classification(2), num_particles=3)
    rows = {"x": torch.randn(6, 5, 3), "labels": torch.zeros(6, dtype=torch.long)}
    output = program(**rows, rows_by_draw=by_draw)
    assert output.logits.shape == (3, 2 if by_draw else 6, 2)
    output.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for _, p in program.trainable())
    program.eval()
    assert torch.equal(program(**rows, rows_by_draw=by_draw).logits, program(**rows).logits)  # the centre has all rows


def test_no_pyro_setting_changes() -> None:
    before = pyro.settings.get()
    program = make(num_particles=2)
    program(**batch(6)).loss.backward()
    program.draw(3)
    program.eval()(**batch(6))
    assert pyro.settings.get() == before


def test_a_batch_without_labels_says_so() -> None:
    inputs = batch(3)
    del inputs["labels"]
    with pytest.raises(ValueError, match="no 'labels', only input_ids, attention_mask"):
        make()(**inputs)


def test_particles_must_be_at_least_one() -> None:
    with pytest.raises(ValueError, match="num_particles=0"):
        make(num_particles=0)


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    def make() -> Program:
        program = Program(AdaptedNetwork(tiny_llama(), rank=4), make_method("monteclora"), Classification(3))
        with torch.no_grad():
            for name in program.stacks:
                torch.manual_seed(1)
                program.guide[name].B.normal_()
        return program

    assert_checkpointing_keeps_gradients(make)


def test_activation_checkpointing_has_an_older_name() -> None:
    class Older(torch.nn.Sequential):
        def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any]) -> None:
            self.given = gradient_checkpointing_kwargs

    model = Older(torch.nn.Linear(4, 4), torch.nn.Linear(4, 3))
    program = Program(AdaptedNetwork(model, rank=2), make_method("lora"), Classification(3))
    program.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    assert program.network.model.given == {"use_reentrant": False}


@pytest.mark.skipif(
    not torch._C._dispatch_has_kernel_for_dispatch_key("aten::_standard_gamma", "Meta"), reason="PyTorch < 2.13"
)
def test_priors_constants_are_made_on_the_networks_device() -> None:
    program = make().to("meta")
    with pyro.validation_enabled(False):
        factors = program.factors()
    assert {factor.device.type for value in factors.values() for factor in value} == {"meta"}


def test_mean_of_the_loss_over_draws_does_not_depend_on_the_number_of_particles() -> None:
    one, many = make(num_particles=1), make(num_particles=4)
    many.load_state_dict(one.state_dict())
    for program in (one, many):
        program.network.eval()
    single = torch.stack([one(**batch(6)).loss.detach() for _ in range(160)])
    several = torch.stack([many(**batch(6)).loss.detach() for _ in range(40)])
    error = (single.var() / 160 + several.var() / 40).sqrt()
    assert abs(single.mean() - several.mean()) < 4.3 * error + 1e-6
    assert several.var() < single.var() or single.var() < 1e-12
