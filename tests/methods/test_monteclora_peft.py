"""What the documentation says about PEFT's MonteCLoRA, against the installed package, and ours beside it."""

import math

import peft
import pytest
import torch
from peft.tuners.lora.monteclora import MontecloraSampler

from bayeslora.distributions import Dirichlet, StandardColumns, expected_square_sum, kl_divergence
from bayeslora.methods import MonteCLoRA
from tests.helpers import assert_mean_close, batch, tiny_bert

RANK, D_IN = 4, 32


def sampler(components: int = 4, **settings: object) -> MontecloraSampler:
    return MontecloraSampler(D_IN, RANK, components, buffer_size=50, device="cpu", **settings)


def peft_model(**settings: object) -> torch.nn.Module:
    config = peft.LoraConfig(
        r=RANK,
        target_modules=["query"],
        task_type="SEQ_CLS",
        monteclora_config=peft.MontecloraConfig(**settings),
    )
    return peft.get_peft_model(tiny_bert(), config)


def test_its_degrees_of_freedom_are_the_rank() -> None:
    assert float(sampler().sampler.wish_sampler.df) == RANK


def test_its_covariance_keeps_the_diagonal_and_clips_it() -> None:
    theirs = sampler()
    covariance = theirs.wishart_reparameterization(torch.eye(RANK), 1e-9 * torch.ones(RANK, RANK))
    assert torch.equal(covariance, 1e-3 * torch.eye(RANK))


def test_its_dirichlet_draw_is_another_distribution() -> None:
    theirs = sampler()
    alpha = torch.ones(4)
    draws = torch.stack(
        [torch.softmax(theirs.dirichlet_reparameterization(alpha, torch.randn(4)), -1) for _ in range(20_000)]
    )
    assert_mean_close(Dirichlet(alpha).sample((20_000,)).square().sum(-1), 0.4)
    assert expected_square_sum(alpha) == pytest.approx(0.4)
    assert draws.square().sum(-1).mean().item() == pytest.approx(0.364, abs=0.004)


def test_its_dirichlet_divergence_has_the_signs_of_the_log_gammas_reversed() -> None:
    alpha = torch.tensor([0.5, 1.0, 2.0, 3.0])
    assert sampler(dirichlet_prior=1.0).dirichlet_kl(alpha).item() == pytest.approx(3.90, abs=0.01)
    assert kl_divergence(Dirichlet(alpha), Dirichlet(torch.ones(4))).item() == pytest.approx(1.37, abs=0.01)
    large = torch.full((4,), 40.0)  # Γ(160) is beyond single precision
    assert not math.isfinite(sampler(dirichlet_prior=1.0).dirichlet_kl(large).item())
    assert math.isfinite(kl_divergence(Dirichlet(large), Dirichlet(torch.ones(4))).item())


def test_its_normal_divergence_is_multiplied_by_the_components() -> None:
    # KL_N reads the number of components and the diagonal covariance; a column's is ½ (tr Σ − ln|Σ| − r).
    variance = torch.eye(RANK)
    one, eight = (sampler(components=k).multivariate_kl(variance.clamp(min=1e-6) * 2) for k in (1, 8))
    assert eight.item() == pytest.approx(8 * one.item(), rel=1e-5)


def test_it_draws_every_component_from_a_buffer() -> None:
    theirs = MontecloraSampler(D_IN, RANK, 8, buffer_size=150, device="cpu")
    assert theirs.sampler.buffer[0]["z_mvn"].shape == (8, D_IN, RANK)
    held = sum(value.numel() for sample in theirs.sampler.buffer for value in sample.values())
    assert held > 150 * 8 * D_IN * RANK


def test_its_defaults() -> None:
    config = peft.MontecloraConfig()
    assert (config.num_samples, config.dirichlet_prior, config.sample_scaler) == (8, 0.1, 1e-4)
    assert (config.use_entropy, config.kl_loss_weight, config.buffer_size) == (False, 1e-5, 150)


def test_it_predicts_at_the_centre() -> None:
    model = peft_model(sample_scaler=1.0, buffer_size=2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    inputs = {name: value for name, value in batch(4).items() if name != "labels"}
    for dropout in (module for module in model.modules() if isinstance(module, torch.nn.Dropout)):
        dropout.p = 0.0
    with torch.no_grad():
        model.train()
        assert not torch.equal(model(**inputs).logits, model(**inputs).logits)
        model.eval()
        assert torch.equal(model(**inputs).logits, model(**inputs).logits)


def test_ours_beside_it(stack: object) -> None:
    method = MonteCLoRA()
    assert method.degrees_of_freedom(stack) == stack.d_in  # type: ignore[attr-defined, arg-type]
    guide = method.stack_guide(stack)  # type: ignore[arg-type]
    assert guide.loc.shape[1:] == StandardColumns(3, 6).event_shape  # one draw of A's shape, whatever K
    assert (method.components, method.concentration, method.cooperative) == (4, 1.0, True)
