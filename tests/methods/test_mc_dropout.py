"""Monte Carlo dropout: PEFT's dropout in training, seeded masks in prediction."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pyro import poutine
from torch import nn

import bayeslora
from bayeslora.adapters import AdaptedNetwork, InputDropout, SeededFactors
from bayeslora.methods import MCDropout, make_method
from bayeslora.posterior import Posterior
from bayeslora.program import Program
from bayeslora.tasks import Classification
from tests.helpers import assert_checkpointing_keeps_gradients, assert_mean_close, batch, tiny_bert, tiny_llama, tokens
from tests.methods.conftest import NO_DROPOUT, randomise

Make = Callable[..., Program]


def layer(p: float, num_draws: int) -> tuple[InputDropout, nn.Module, SeededFactors]:
    """A layer of 5 → 4 features, and factors whose draws differ in their seed alone."""
    A, B = torch.randn(2, 5, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    seed = torch.empty(num_draws, dtype=torch.float64).uniform_(-1, 1)
    factors = SeededFactors(A.expand(num_draws, 2, 5), B.expand(num_draws, 4, 2), seed)
    return InputDropout(p), nn.Linear(5, 4).double().eval(), factors


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # of PEFT's own code
def test_training_is_pefts_lora_dropout(make_program: Make) -> None:
    # Both draw their masks from torch's random state, in the order of the layers: with one seed, the same masks.
    from peft import LoraConfig, get_peft_model

    program = randomise(make_program("mc_dropout", p=0.3)).train()
    names = [name for stack in program.stacks.values() for name in stack.layer_names]
    config = LoraConfig(r=4, lora_alpha=8, target_modules=names, lora_dropout=0.3)
    peft = get_peft_model(tiny_bert(**NO_DROPOUT), config).train()
    loras = {name: peft.base_model.model.get_submodule(name) for name in names}
    with torch.no_grad():
        for name, stack in program.stacks.items():
            for index, layer_name in enumerate(stack.layer_names):
                for factor, part in (("A", loras[layer_name].lora_A), ("B", loras[layer_name].lora_B)):
                    part["default"].weight.copy_(program.guide[name].sites[factor].loc[index])
        for own, theirs in zip(
            program.network.model.classifier.parameters(), peft.base_model.model.classifier.parameters(), strict=True
        ):
            theirs.copy_(own)
    inputs = batch(5)
    labels = inputs.pop("labels")
    torch.manual_seed(3)
    expected = peft(**inputs).logits
    nn.functional.cross_entropy(expected, labels).backward()
    torch.manual_seed(3)
    output = program(**inputs, labels=labels)
    output.loss.backward()
    torch.testing.assert_close(output.logits, expected, rtol=1e-5, atol=1e-6)
    for name, stack in program.stacks.items():
        for index, layer_name in enumerate(stack.layer_names):
            gradient = loras[layer_name].lora_A["default"].weight.grad
            own = program.guide[name].sites["A"].loc.grad[index]
            torch.testing.assert_close(own, gradient, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(expected, program(**inputs, labels=labels).logits, atol=1e-4)  # another mask


def test_draws_have_the_law_of_dropout() -> None:
    p = 0.3
    family, base, factors = layer(p, 20_000)
    x = torch.randn(1, 5, dtype=torch.float64)
    with torch.no_grad():
        update = (family.forward(base, x.expand(20_000, 5), factors) - base(x)).view(20_000, 4)
    weight = factors.B[0] @ factors.A[0]
    assert_mean_close(update, (x @ weight.T)[0])
    variance = p / (1 - p) * (weight.square() @ x[0].square())
    assert_mean_close((update - x @ weight.T).square(), variance)


def test_entries_rows_and_tokens_have_masks_of_their_own() -> None:
    family, base, factors = layer(0.5, 3)
    x = torch.ones(3 * 2, 7, 5, dtype=torch.float64)
    with torch.no_grad():
        update = (family.forward(base, x, factors) - base(x)).flatten(0, 1)
    assert len(update.unique(dim=0)) > 20  # of 42 positions with 2⁵ masks


def test_a_draw_is_its_seed() -> None:
    family, base, factors = layer(0.5, 3)
    x = torch.randn(2, 7, 5, dtype=torch.float64)
    with torch.no_grad():
        together = family.forward(base, x.repeat(3, 1, 1), factors).view(3, 2, 7, 4)
        alone = [family.forward(base, x, SeededFactors(*(factor[i] for factor in factors))) for i in range(3)]
        again = family.forward(base, x.repeat(3, 1, 1), factors).view(3, 2, 7, 4)
    assert torch.equal(together, again)
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(together[0], together[1])


def test_predictions_are_reproducible_and_do_not_depend_on_torchs_state(make_program: Make) -> None:
    posterior = Posterior(randomise(make_program("mc_dropout", p=0.5), scale=0.5).eval())
    inputs, _ = tokens(20)
    first = posterior.predict(inputs, 4, seed=1).draws
    torch.manual_seed(99)
    assert np.array_equal(posterior.predict(inputs, 4, seed=1).draws, first)
    assert not np.allclose(posterior.predict(inputs, 4, seed=2).draws, first)
    assert all(np.abs(first[i] - first[j]).max() > 1e-4 for i in range(4) for j in range(i))
    # Seeds differ between layers, and from draw to draw.
    seeds = torch.cat([v.flatten() for name, v in posterior.draw(4).items() if name.endswith(".seed")])
    assert len(seeds.unique()) == len(seeds)


def test_the_centre_has_no_dropout(make_program: Make) -> None:
    program = randomise(make_program("mc_dropout", p=0.5))
    lora = make_program("lora")
    lora.guide.load_state_dict(program.guide.state_dict())
    lora.network.model.classifier.load_state_dict(program.network.model.classifier.state_dict())
    program.eval(), lora.eval()
    assert torch.equal(program(**batch(5)).logits, lora(**batch(5)).logits)
    weights = [Posterior(part).merge().state_dict() for part in (program, lora)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    summary = Posterior(program).to_arviz(num_draws=3).posterior
    assert float(np.abs(summary["noise_to_signal_32x32"]).max()) < 1e-6


def test_activation_checkpointing_sees_the_same_masks() -> None:
    def make() -> Program:
        method = MCDropout(p=0.3)
        network = AdaptedNetwork(tiny_llama(), method.family, rank=4)
        return randomise(Program(network, method, Classification(3))).train()

    assert_checkpointing_keeps_gradients(make)


def test_a_posterior_survives_the_disk_and_can_be_started_from(tmp_path: Path) -> None:
    settings = {"rank": 2, "epochs": 1, "learning_rate": 1e-2, "progress": False}
    posterior = bayeslora.fit(tiny_bert(), tokens(), "mc_dropout", p=0.4, **settings)
    posterior.save(tmp_path)
    loaded = bayeslora.load(tmp_path, tiny_bert())
    assert loaded.network.stacks["32x32"].family.p == 0.4
    inputs, _ = tokens(5)
    assert np.array_equal(loaded.predict(inputs, 3).draws, posterior.predict(inputs, 3).draws)
    settings |= {"learning_rate": 1e-30}
    lora = bayeslora.fit(tiny_bert(), tokens(), "lora", init=posterior, **settings)
    again = bayeslora.fit(tiny_bert(), tokens(), "mc_dropout", init=lora, **settings)
    for name in posterior.network.stacks:
        for started in (lora, again):
            assert torch.equal(started.guide[name].sites["A"].loc, posterior.guide[name].sites["A"].loc)
    (exported,) = posterior.export_peft(tmp_path / "peft")
    assert np.array_equal(
        bayeslora.fit(tiny_bert(), tokens(), "lora", init=exported, **settings).predict(inputs, center=True).probs,
        posterior.predict(inputs, center=True).probs,
    )


def test_no_seed_is_drawn_in_training(make_program: Make) -> None:
    program = make_program("mc_dropout")
    state = torch.get_rng_state()
    sites = poutine.trace(program.guide).get_trace().nodes
    assert torch.equal(torch.get_rng_state(), state)
    seeds = [site["value"] for name, site in sites.items() if name.endswith(".seed")]
    assert seeds
    assert all(bool((value == 0).all()) for value in seeds)


def test_rates_out_of_range_say_what_fits() -> None:
    for p in (1.0, -0.1):
        with pytest.raises(ValueError, match=f"p={p}: give a probability of at least 0 and less than 1"):
            make_method("mc_dropout", p=p)
