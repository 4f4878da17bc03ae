"""LoRA Dropout against its paper's statements (arXiv 2404.09610), and against its loss written out by hand."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from torch import Tensor

import bayeslora
from bayeslora.adapters import AdaptedNetwork, Stack, Stacks
from bayeslora.elbo import MeanFieldELBO, total
from bayeslora.methods import make_method
from bayeslora.methods.lora_dropout import LoRADropout
from bayeslora.posterior import Posterior
from bayeslora.program import Program
from bayeslora.tasks import Classification
from tests.helpers import assert_checkpointing_keeps_gradients, assert_mean_close, batch, tiny_bert, tiny_llama, tokens
from tests.methods.conftest import NO_DROPOUT, randomise

Make = Callable[..., Program]


def draws_of_factors(method: LoRADropout, stack: Stack, num_draws: int) -> tuple[Any, torch.nn.Module]:
    """Factors drawn for prediction, `[draw, layer, …]`, and the guide, whose `B` is not 0."""
    stacks = Stacks([stack])
    guide = method.guide(stacks).double().eval()
    with torch.no_grad(), pyro.validation_enabled(False):
        guide["6x5"].factors.B.normal_()
        with pyro.plate("draws", num_draws, dim=-2):
            trace = poutine.trace(guide).get_trace()
        sites = {name: site["value"] for name, site in trace.nodes.items() if name.startswith("6x5.")}
        return poutine.condition(method.prior, data=sites)(stacks)["6x5"], guide["6x5"]


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_an_entry_of_the_update_is_zero_with_probability_2p_minus_p_squared(stack: Stack, p: float) -> None:
    factors, _ = draws_of_factors(LoRADropout(p=p), stack, 10_000)
    assert_mean_close((factors.B @ factors.A).eq(0).double(), 2 * p - p**2)


@pytest.mark.parametrize(("rescale", "factor"), [(False, 0.7**2), (True, 1.0)])
def test_mean_of_the_update(stack: Stack, rescale: bool, factor: float) -> None:
    factors, guide = draws_of_factors(LoRADropout(p=0.3, rescale=rescale), stack, 10_000)
    assert_mean_close(factors.B @ factors.A, factor * guide.factors.B @ guide.factors.A)


def test_whole_features_are_dropped_and_the_rank_dimension_never_is(stack: Stack) -> None:
    factors, guide = draws_of_factors(LoRADropout(p=0.4), stack, 50)
    kept_in, kept_out = (factor.ne(0) for factor in factors)
    for kept, dim in ((kept_in, -2), (kept_out, -1)):
        assert torch.equal(kept.any(dim), kept.all(dim))
        assert not bool(kept.all())
    # What is kept is A and B as they are.
    assert torch.equal(factors.A, guide.factors.A * kept_in)
    assert torch.equal(factors.B, guide.factors.B * kept_out)


def test_masks_of_draws_and_layers_are_independent(stack: Stack) -> None:
    factors, _ = draws_of_factors(LoRADropout(p=0.5), stack, 10_000)
    masks = 2 * factors.A[..., 0, :].ne(0).double() - 1
    assert_mean_close(masks[:, 0] * masks[:, 1], 0.0)
    assert_mean_close(masks[1:] * masks[:-1], 0.0)
    assert_mean_close(masks[..., 1:] * masks[..., :-1], 0.0)


@pytest.mark.parametrize(
    ("fields", "factor"), [({}, 0.49), ({"rescale": True}, 1.0), ({"test_dropout": False}, 1.0)], ids=str
)
def test_centre_and_merged_weights_have_the_mean_of_the_update(
    make_program: Make, fields: dict[str, Any], factor: float
) -> None:
    program = randomise(make_program("lora_dropout", double=True, p=0.3, **fields)).eval()
    posterior = Posterior(program)
    merged = posterior.merge()
    base = tiny_bert(**NO_DROPOUT).double()
    for name, stack in program.stacks.items():
        guide = program.guide[name]
        centre = program.factors_at(program.centre())[name]
        torch.testing.assert_close(centre.B @ centre.A, factor * guide.factors.B @ guide.factors.A)
        for index, layer in enumerate(stack.layer_names):
            update = 8 / 4 * factor * guide.factors.B[index] @ guide.factors.A[index]
            weight = base.get_parameter(f"{layer}.weight") + update
            torch.testing.assert_close(merged.get_parameter(f"{layer}.weight"), weight)
    inputs = batch(5)
    labels = inputs.pop("labels")
    torch.testing.assert_close(merged(**inputs).logits, program(**inputs, labels=labels).logits)


def loss_by_hand(program: Program, inputs: dict[str, Tensor], num_particles: int, seed: int) -> Tensor:
    """§3.3 of the paper, with weights θ⁰ + s B̂ Â put into the plain network once for every instance of the masks."""
    method = program.method
    assert isinstance(method, LoRADropout)
    torch.manual_seed(seed)
    with pyro.validation_enabled(False), pyro.plate("instances", num_particles, dim=-2):
        trace = poutine.trace(program.guide).get_trace()
    base = tiny_bert(**NO_DROPOUT).double().train()
    head = {f"classifier.{n}": p for n, p in program.network.model.classifier.named_parameters()}
    words = {name: value for name, value in inputs.items() if name != "labels"}
    losses = []
    for instance in range(num_particles):
        weights = dict(head)
        penalty = torch.zeros((), dtype=torch.float64)
        for name, stack in program.stacks.items():
            guide = program.guide[name]
            masks = [trace.nodes[f"{name}.mask_{factor}"]["value"][instance] for factor in ("A", "B")]
            for layer, layer_name in enumerate(stack.layer_names):
                update = 8 / 4 * guide.factors.B[layer] @ guide.factors.A[layer]
                dropped = torch.diag(masks[1][layer]) @ update @ torch.diag(masks[0][layer])
                weights[f"{layer_name}.weight"] = base.get_parameter(f"{layer_name}.weight") + dropped
                penalty = penalty + (2 * method.p - method.p**2) * update.square().sum()
        logits = torch.func.functional_call(base, weights, kwargs=words).logits
        losses.append(F.cross_entropy(logits, inputs["labels"]) + method.sparsity * penalty)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("num_particles", [1, 3])
@pytest.mark.parametrize("sparsity", [0.0, 0.01])
def test_the_objective_is_the_papers_loss_on_the_same_masks(
    make_program: Make, num_particles: int, sparsity: float
) -> None:
    program = randomise(
        make_program("lora_dropout", double=True, num_particles=num_particles, p=0.3, sparsity=sparsity)
    )
    parameters = [parameter for _, parameter in program.trainable()]
    torch.manual_seed(11)
    loss = program(**batch(5)).loss
    by_hand = loss_by_hand(program, batch(5), num_particles, 11)
    assert loss.item() == pytest.approx(by_hand.item(), abs=1e-10)
    for ours, theirs in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(by_hand, parameters), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_masks_of_a_fixed_rate_add_nothing_to_the_loss(make_program: Make) -> None:
    program = make_program("lora_dropout")
    program(**batch(5))
    assert list(program.terms) == ["labels"]


def test_one_mask_serves_all_rows_and_tokens(make_program: Make) -> None:
    program = randomise(make_program("lora_dropout", p=0.4))
    updates = []
    for stack in program.stacks:
        for layer in program.network.layers(stack):
            layer.register_forward_hook(lambda layer, x, h: updates.append((h - layer.base(*x)).detach()))
    program(**batch(5))
    assert len(updates) == sum(len(stack) for stack in program.stacks.values())
    for update in updates:
        # h and W0 x are each rounded once: what is dropped is exactly 0.
        dropped = update.flatten(0, -2).eq(0)
        assert torch.equal(dropped.any(0), dropped.all(0))
    shares = torch.cat([update.flatten(0, -2).eq(0).double().mean(0) for update in updates])
    assert_mean_close(shares, 0.4)


def test_activation_checkpointing_sees_the_same_masks() -> None:
    def make() -> Program:
        network = AdaptedNetwork(tiny_llama(), rank=4)
        return randomise(Program(network, make_method("lora_dropout"), Classification(3)))

    assert_checkpointing_keeps_gradients(make)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("test", [True, False])
@pytest.mark.parametrize("rescale", [True, False])
def test_switches(make_program: Make, train: bool, test: bool, rescale: bool) -> None:
    program = make_program("lora_dropout", train_dropout=train, test_dropout=test, rescale=rescale, p=0.5)
    mask = poutine.trace(program.guide).get_trace().nodes["32x32.mask_A"]["value"]
    kept = 2.0 if rescale else 1.0
    assert set(mask.unique().tolist()) == ({0.0, kept} if train else {1.0})
    # Draws are for prediction, whatever the program's mode is.
    for mode in (True, False):
        mask = program.train(mode).draw(2)["32x32.mask_B"]
        assert set(mask.unique().tolist()) == ({0.0, kept} if test else {1.0})


def test_without_training_dropout_the_loss_is_loras(make_program: Make) -> None:
    program = randomise(make_program("lora_dropout", train_dropout=False, sparsity=0.5))
    lora = make_program("lora")
    lora.network.model.classifier.load_state_dict(program.network.model.classifier.state_dict())
    lora.guide.start({name: guide.factors for name, guide in program.guide.items()})
    assert program(**batch(5)).loss.item() == pytest.approx(lora(**batch(5)).loss.item(), rel=1e-6)


def test_fit_draws_one_mask_a_step_and_a_posterior_survives_the_disk(tmp_path: Path) -> None:
    settings = {"rank": 2, "epochs": 2, "learning_rate": 1e-2, "progress": False}
    for p in (0.5, "learn"):
        posterior = bayeslora.fit(tiny_bert(), tokens(), "lora_dropout", p=p, **settings)
        assert posterior.program.elbo.num_particles == 1
        posterior.save(tmp_path / str(p))
        loaded = bayeslora.load(tmp_path / str(p), tiny_bert())
        inputs, _ = tokens(4)
        assert (posterior.predict(inputs, 3).draws == loaded.predict(inputs, 3).draws).all()
        assert posterior.predict(inputs, 3).epistemic.max() > 0


# Learned rates


def learned(stack: Stack, **fields: Any) -> tuple[LoRADropout, torch.nn.Module]:
    method = LoRADropout(p="learn", **fields)
    guide = method.guide(Stacks([stack])).double()
    with torch.no_grad():
        guide["6x5"].log_odds_A.copy_(torch.tensor([-1.0, 0.5]))
        guide["6x5"].log_odds_B.copy_(torch.tensor([2.0, -3.0]))
    return method, guide


def test_learned_rates_pay_the_divergence_of_the_hard_masks(stack: Stack) -> None:
    method, guide = learned(stack, prior_p=0.2, temperature=0.7)
    terms, _ = MeanFieldELBO().terms(lambda: method.prior(Stacks([stack])), guide)
    for factor, size in (("A", 6), ("B", 5)):
        p = getattr(guide["6x5"], f"log_odds_{factor}").sigmoid()
        kl = p * (p / 0.2).log() + (1 - p) * ((1 - p) / 0.8).log()
        assert terms[f"6x5.mask_{factor}"].item() == pytest.approx((0.7 / 10 * size * kl).sum().item(), rel=1e-6)


def test_learned_rates_return_to_the_prior_without_data(stack: Stack) -> None:
    method, guide = learned(stack, prior_p=0.2)
    optimizer = torch.optim.Adam(guide.parameters(), lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        total(MeanFieldELBO().terms(lambda: method.prior(Stacks([stack])), guide)[0]).backward()
        optimizer.step()
    for factor in ("A", "B"):
        torch.testing.assert_close(
            guide["6x5"].rate(factor), torch.full((2,), 0.2, dtype=torch.float64), rtol=0, atol=1e-3
        )


def test_learned_masks_are_relaxed_in_training_and_hard_in_prediction(stack: Stack) -> None:
    _, guide = learned(stack, relaxation=0.2)
    for mode in (True, False):
        with pyro.validation_enabled(False), pyro.plate("draws", 20_000, dim=-2):
            trace = poutine.trace(guide.train(mode)).get_trace()
        for factor, size in (("A", 6), ("B", 5)):
            mask = trace.nodes[f"6x5.mask_{factor}"]["value"]
            assert bool(((mask == 0) | (mask == 1)).all()) is not mode
            kept = 1 - guide["6x5"].rate(factor)
            # The relaxation keeps the odds: an entry is above 1/2 as often as the hard one is 1.
            assert_mean_close(mask.gt(0.5).double(), kept[:, None].expand(2, size))
            if not mode:
                mean = trace.nodes[f"6x5.mask_{factor}"]["fn"].mean
                torch.testing.assert_close(mean[0], kept[:, None].expand(2, size))


@pytest.mark.parametrize("sparsity", [0.0, 0.1])
def test_gradients_reach_learned_rates(make_program: Make, sparsity: float) -> None:
    program = randomise(make_program("lora_dropout", p="learn", sparsity=sparsity, num_particles=2))
    program(**batch(5)).loss.backward()
    for name, parameter in program.trainable():
        assert bool(parameter.grad.isfinite().all()), name
        assert bool(parameter.grad.ne(0).any()), name
    rates = [name for name, _ in program.guide.named_parameters() if "log_odds" in name]
    assert len(rates) == 2 * len(program.stacks)


def test_sparsity_of_learned_rates_weighs_what_both_masks_drop(stack: Stack) -> None:
    _, guide = learned(stack)
    with torch.no_grad():
        guide["6x5"].factors.B.normal_()
    part = guide["6x5"]
    p_A, p_B = part.rate("A"), part.rate("B")
    update = torch.tensor([2.0, 3.0], dtype=torch.float64)[:, None, None] * part.factors.B @ part.factors.A
    torch.testing.assert_close(part.dropped_square(), (p_A + p_B - p_A * p_B) * update.square().sum((-2, -1)))


def test_dropped_shares_are_summaries(make_program: Make) -> None:
    program = make_program("lora_dropout", p=0.3)
    own = {name[6:]: value for name, value in program.draw(400).items() if name.startswith("32x32.")}
    for value, dims in program.method.summaries(program.stacks["32x32"], own).values():
        assert dims == ()
        assert_mean_close(value, 0.3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"p": 1.0}, "p=1.0: give a probability of at least 0 and less than 1, 'learn', or 'auto'"),
        ({"p": -0.1}, "p=-0.1: give a probability"),
        ({"p": "learn", "rescale": True}, "rescale=True: p='learn' has no fixed rate to rescale by"),
        ({"p": "learn", "train_dropout": False}, "train_dropout=False: p='learn' learns the rates"),
        ({"sparsity": -1.0}, "sparsity=-1.0: give a finite number of at least 0"),
        ({"prior_p": 0.0}, "prior_p=0.0: give a probability between 0 and 1"),
        ({"relaxation": 0.0}, "relaxation=0.0: give a positive finite number"),
        ({"p": math.nan}, "p=nan: give a probability"),
    ],
)
def test_fields_out_of_range_say_what_fits(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoRADropout(**fields)
