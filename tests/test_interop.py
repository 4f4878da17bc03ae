"""PEFT's LoRA as a starting point, from memory and from disk."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

import bayeslora
from bayeslora import interop
from bayeslora.adapters import AdaptedNetwork
from tests.helpers import tiny_bert, tiny_gpt2, tokens

SETTINGS = {"epochs": 1, "learning_rate": 5e-3, "progress": False}


def peft_model(make: Any = tiny_bert, **settings: Any) -> Any:
    """A PEFT model whose factors and head are off their start."""
    targets = ["c_attn"] if make is tiny_gpt2 else ["query", "value"]
    config = peft.LoraConfig(
        **{
            "r": 4,
            "lora_alpha": 12,
            "target_modules": targets,
            "task_type": "SEQ_CLS",
            "fan_in_fan_out": make is tiny_gpt2,
            **settings,
        }
    )
    model = peft.get_peft_model(make(), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def frozen_fit(model: Any, **settings: Any) -> bayeslora.Posterior:
    """A post-hoc fit, whose centre must be what it started from."""
    return bayeslora.fit(model, tokens(), "monteclora", post_hoc=True, **SETTINGS, **settings)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**tokens(7)[0]).logits


def centre_logits(posterior: bayeslora.Posterior) -> torch.Tensor:
    inputs, labels = tokens(7)
    with torch.no_grad():
        return posterior.program.eval()(**inputs, labels=labels).logits


@pytest.mark.parametrize("make", [tiny_bert, tiny_gpt2])
def test_a_peft_model_is_base_and_starting_point_in_one(make: Any) -> None:
    model = peft_model(make)
    before = logits(model)
    posterior = frozen_fit(model)
    torch.testing.assert_close(centre_logits(posterior), before, rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(model), before), "the PEFT model has changed"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"query": 2}, "alpha_pattern": {"layer.1.attention.self.value": 3}},
    ],
    ids=["plain", "rslora", "patterns"],
)
def test_a_saved_peft_adapter_is_read(tmp_path: Path, settings: dict[str, Any]) -> None:
    model = peft_model(**settings)
    model.save_pretrained(tmp_path)
    posterior = frozen_fit(tiny_bert(), init=tmp_path)
    torch.testing.assert_close(centre_logits(posterior), logits(model), rtol=1e-5, atol=1e-5)


def test_another_peft_model_can_be_the_starting_point() -> None:
    model = peft_model()
    posterior = frozen_fit(tiny_bert(), init=model)
    torch.testing.assert_close(centre_logits(posterior), logits(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("saved", [False, True])
def test_a_posterior_is_a_starting_point(tmp_path: Path, saved: bool) -> None:
    lora = bayeslora.fit(tiny_bert(), tokens(), "lora", targets="attention", rank=3, alpha=5, **SETTINGS)
    lora.save(tmp_path)
    posterior = frozen_fit(tiny_bert(), init=tmp_path if saved else lora)
    assert torch.equal(centre_logits(posterior), centre_logits(lora))
    assert posterior.network.stacks["32x32"].rank == 3


def test_training_goes_on_from_the_starting_point() -> None:
    lora = bayeslora.fit(tiny_bert(), tokens(), "lora", **SETTINGS)
    further = bayeslora.fit(tiny_bert(), tokens(), "lora", init=lora, **SETTINGS | {"learning_rate": 1e-9})
    torch.testing.assert_close(centre_logits(further), centre_logits(lora), rtol=1e-4, atol=1e-5)
    changed = bayeslora.fit(tiny_bert(), tokens(), "lora", init=lora, **SETTINGS)
    assert not torch.allclose(centre_logits(changed), centre_logits(lora), atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"use_dora": True}, "use_dora=True: its update is not B A alone"), ({"bias": "all"}, "bias='all'")],
)
def test_other_kinds_of_peft_adapters_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        interop.from_peft(peft_model(**settings))
    ia3 = peft.get_peft_model(
        tiny_bert(), peft.IA3Config(target_modules=["query"], feedforward_modules=[], task_type="SEQ_CLS")
    )
    with pytest.raises(ValueError, match=r"of type PeftType\.IA3; only LORA"):
        interop.from_peft(ia3)


def test_what_is_no_starting_point_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no PEFT adapter: there is no adapter_config\.json"):
        bayeslora.fit(tiny_bert(), tokens(), init=tmp_path, **SETTINGS)
    with pytest.raises(TypeError, match="init is a int; give a Posterior, a PEFT model, or a folder"):
        bayeslora.fit(tiny_bert(), tokens(), init=3, **SETTINGS)
    with pytest.raises(ValueError, match="post_hoc=True keeps trained adapters as they are: pass them"):
        bayeslora.fit(tiny_bert(), tokens(), post_hoc=True, **SETTINGS)
    lora = bayeslora.fit(tiny_bert(), tokens(), "lora", **SETTINGS)
    with pytest.raises(ValueError, match=r"task head .* the model's is"):
        interop.from_program(lora.program).start(
            bayeslora.fit(tiny_bert(num_labels=4), tokens(num_labels=4), "lora", **SETTINGS).program
        )


def test_adapters_of_a_program_give_the_same_network() -> None:
    lora = bayeslora.fit(tiny_bert(), tokens(), "lora", targets="attention", **SETTINGS)
    adapters = interop.from_program(lora.program)
    network = AdaptedNetwork(tiny_bert(), **adapters.network_settings())
    assert list(network.stacks) == list(lora.network.stacks)
    factors = adapters.stacked(network.stacks)
    assert all(torch.equal(factors[name].A, lora.guide[name].sites["A"].loc) for name in factors)
