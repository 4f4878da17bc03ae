"""Which adapted layers a gradient reaches."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora.adapters.folding import still
from bayeslora.adapters.stack import each_factor

IN_PLACE = "modified by an inplace operation"
"""What PyTorch says where numbers have changed that a gradient is computed from."""


def writes_in_place(model: nn.Module) -> str:
    """Return a sentence about a network that writes into a layer's input, or into what else a gradient needs."""
    return (
        f"{type(model).__name__} writes into a tensor that gradients are computed from, such as the input of an "
        "adapted layer, so that there are none: let its forward make a new one, x = x + y instead of x += y and "
        "inplace=False instead of True, or write into x.clone()."
    )


def reached(
    network: Any, factors: Mapping[str, Any], logits: Callable[[Mapping[str, Any]], Tensor], training: bool = False
) -> set[str]:
    """Return the names of the adapted layers whose factors get a gradient from the logits.

    It is the gradient of a random combination of all logits. A trained head that is zero lets none through until its
    first step: here, it is not. Other parameters, their gradients, buffers and random states stay as they were.

    Args:
        network: An `AdaptedNetwork`; its factors are unbound afterwards.
        factors: Stack name to factors, `[layer, …]`, none of which is zero.
        logits: Logits as a function of them.
        training: Whether the network is in training mode, without which some have no backward pass.
    """
    leaves = each_factor(factors, lambda factor: factor.detach().clone().requires_grad_())
    kept = [(parameter, parameter.grad) for parameter in network.parameters() if parameter.requires_grad]
    for parameter, _ in kept:
        parameter.grad = None
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()] if training else []
    zeros = [parameter for parameter, _ in kept if not parameter.any()]
    devices = [] if network.device.type == "cpu" else [network.device]
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices), torch.enable_grad(), still(network):
            warnings.simplefilter("ignore")  # for instance, that nothing has a gradient
            torch.manual_seed(0)
            network.train(training)
            with torch.no_grad():
                for parameter in zeros:
                    parameter.normal_()
            output = logits(leaves)
            if output.requires_grad:
                output = output.masked_fill(~output.isfinite(), 0)
                weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output)
                (output * weights).sum().backward()  # reversible layers get around `autograd.grad`
    finally:
        for parameter, gradient in kept:
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
            for parameter in zeros:
                parameter.zero_()
        network.unbind()
    found = set()
    for name, stack in network.stacks.items():
        gradients = [factor.grad.flatten(1).abs().amax(1) for factor in leaves[name] if factor.grad is not None]
        if gradients:
            sizes = torch.stack(gradients).amax(0)
            # A gradient that is NaN has reached the layer, too.
            found |= {layer for layer, size in zip(stack.layer_names, sizes.tolist(), strict=True) if size != 0}
    return found


def let_inputs_have_gradients(model: nn.Module) -> list[Any]:
    """Let real inputs, and what embeddings return, have a gradient, though nobody looks at it.

    Some operators record nothing for the backward pass unless an input of theirs needs a gradient: reversible layers,
    and activation checkpointing of the re-entrant kind.

    Returns:
        Handles of the hooks, which remove them.
    """
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    return [
        model.register_forward_pre_hook(_inputs_with_gradients, with_kwargs=True),
        *(module.register_forward_hook(_with_gradient) for module in embeddings),
    ]


def _inputs_with_gradients(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if not torch.is_grad_enabled():
        return None

    def own(value: Any) -> Any:
        needs = isinstance(value, Tensor) and value.is_floating_point() and not value.requires_grad
        return value.detach().requires_grad_() if needs else value

    return tuple(map(own, args)), {name: own(value) for name, value in kwargs.items()}


def _with_gradient(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output.requires_grad_() if torch.is_grad_enabled() and output.is_leaf else output
