"""The low-rank family against PEFT's LoRA with the same factors: same logits, same gradients."""

from typing import Any

import pytest
import torch
from torch import nn

from bayeslora.adapters import AdaptedNetwork, Factors
from tests.helpers import batch, tiny_bert, tiny_gpt2, tiny_llama

RANK, ALPHA = 4, 12


def peft_model(model: nn.Module, network: AdaptedNetwork, factors: dict[str, Factors], **settings: Any) -> nn.Module:
    """PEFT's LoRA on the same layers of the same model, its adapters set to the factors."""
    from peft import LoraConfig, get_peft_model

    names = [name for stack in network.stacks.values() for name in stack.layer_names]
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=names, lora_dropout=0.0, **settings)
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for name, stack in network.stacks.items():
            for layer, A, B in zip(stack.layer_names, *factors[name], strict=True):
                lora = adapted.base_model.model.get_submodule(layer)
                lora.lora_A["default"].weight.copy_(A)
                lora.lora_B["default"].weight.copy_(B)
    return adapted.eval()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # of PEFT's own code
@pytest.mark.parametrize(
    ("make", "settings"),
    [(tiny_bert, {}), (tiny_llama, {}), (tiny_gpt2, {"fan_in_fan_out": True})],
)
def test_logits_and_gradients_equal_those_of_peft(make: Any, settings: dict[str, Any]) -> None:
    model = make().double()
    network = AdaptedNetwork(model, targets="all-linear", rank=RANK, alpha=ALPHA).eval()
    factors = {
        name: Factors(
            (0.3 * torch.randn(len(stack), *stack.A_shape, dtype=torch.float64)).requires_grad_(),
            (0.3 * torch.randn(len(stack), *stack.B_shape, dtype=torch.float64)).requires_grad_(),
        )
        for name, stack in network.stacks.items()
    }
    data = batch(length=7)
    labels = data.pop("labels")
    base = model(**data).logits

    logits = network(factors, data)
    nn.functional.cross_entropy(logits, labels).backward()
    reference = peft_model(model, network, factors, **settings)
    expected = reference(**data).logits
    nn.functional.cross_entropy(expected, labels).backward()

    assert not torch.allclose(expected, base, atol=1e-3)  # the adapters do something
    torch.testing.assert_close(logits, expected, atol=1e-10, rtol=1e-8)
    for name, stack in network.stacks.items():
        for index, layer in enumerate(stack.layer_names):
            lora = reference.base_model.model.get_submodule(layer)
            for own, theirs in zip(factors[name], (lora.lora_A, lora.lora_B), strict=True):
                gradient = theirs["default"].weight.grad
                assert gradient.abs().max() > 0
                torch.testing.assert_close(own.grad[index], gradient, atol=1e-10, rtol=1e-8)
