"""What a step costs beyond LoRA's, counted: operations, floating-point work, and memory."""

from collections import Counter
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from bayeslora.adapters import AdaptedNetwork
from bayeslora.methods import make_method
from bayeslora.prediction import Part, chunks, run_parts
from bayeslora.program import Program
from bayeslora.tasks import Classification
from tests.helpers import batch, tiny_bert

DEEP = {"num_hidden_layers": 6, "hidden_size": 48, "intermediate_size": 96}


class OperationCounter(TorchDispatchMode):
    """Counts the operators that torch dispatches, views included."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.name()] += 1
        return func(*args, **(kwargs or {}))


def program(method: str, rank: int = 8, targets: str = "all-linear", layers: int = 6, **fields: Any) -> Program:
    made = make_method(method, **fields)
    base = tiny_bert(**DEEP | {"num_hidden_layers": layers})
    network = AdaptedNetwork(base, made.family, rank=rank, targets=targets, head_family=made.head_family)
    return Program(network, made, Classification(3)).train()


def peft_lora(rank: int = 8, layers: int = 6, dropout: float = 0.0) -> torch.nn.Module:
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=16,
        lora_dropout=dropout,
        target_modules=["query", "key", "value", "dense"],
        exclude_modules=".*pooler.*",
        task_type="SEQ_CLS",
    )
    return peft.get_peft_model(tiny_bert(**DEEP | {"num_hidden_layers": layers}), config).train()


def operations(model: torch.nn.Module) -> int:
    model(**batch(2)).loss.backward()  # the first step fills caches and makes gradients
    with OperationCounter() as counter:
        model(**batch(2)).loss.backward()
    return sum(counter.counts.values())


def flops(model: torch.nn.Module) -> int:
    with FlopCounterMode(display=False) as counter:
        model(**batch(16)).loss.backward()
    return counter.get_total_flops()


def saved_bytes(model: torch.nn.Module, length: int) -> int:
    """Bytes of distinct tensors, parameters aside, that a forward pass keeps for the backward pass."""
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_leaf:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**batch(16, length=length)).loss
    assert loss.requires_grad
    return sum(storages.values())


def test_operations_do_not_depend_on_the_number_of_components() -> None:
    assert operations(program("monteclora", components=4)) == operations(program("monteclora", components=64))


def test_floating_point_work_is_loras() -> None:
    ours, lora = flops(program("monteclora")), flops(program("lora"))
    assert ours <= 1.05 * lora
    assert lora <= 1.0 * flops(peft_lora())


def test_a_step_of_ours_dispatches_no_more_operations_than_pefts_lora() -> None:
    assert operations(program("lora")) <= operations(peft_lora())


def test_operations_of_a_deep_network_are_loras() -> None:
    # All linear layers at the depth of BERT-large.
    assert operations(program("monteclora", layers=24)) <= 1.05 * operations(peft_lora(layers=24))


def test_operations_of_lora_dropout_are_loras() -> None:
    # One instance of the masks: a draw and a product per factor and stack.
    assert operations(program("lora_dropout", layers=24)) <= 1.05 * operations(program("lora", layers=24))
    assert flops(program("lora_dropout")) == flops(program("lora"))


def test_operations_of_mc_dropout_are_those_of_pefts_lora_dropout() -> None:
    assert operations(program("mc_dropout", p=0.1)) <= operations(peft_lora(dropout=0.1))
    assert operations(program("mc_dropout", p=0.0)) <= 1.05 * operations(program("lora"))


def test_operations_do_not_grow_with_the_layers_of_a_stack() -> None:
    extra = operations(program("monteclora", targets="attention")) - operations(program("lora", targets="attention"))
    more = operations(program("monteclora", targets="query")) - operations(program("lora", targets="query"))
    assert extra == more


def test_noise_is_not_kept_in_buffers() -> None:
    lora, monteclora = program("lora"), program("monteclora")
    buffers = [sum(b.numel() for b in model.buffers()) for model in (lora, monteclora)]
    assert buffers[0] == buffers[1]


@pytest.mark.parametrize(("rank", "most"), [(8, 1.05), (32, 1.08)])
def test_what_is_saved_for_the_backward_pass(rank: int, most: float) -> None:
    # Sixteen rows of 30 tokens: activations, which dominate on real networks, dominate here too.
    assert saved_bytes(program("monteclora", rank=rank), 30) <= most * saved_bytes(peft_lora(rank), 30)


def test_predicting_long_batches_costs_a_pass_of_the_network_per_draw() -> None:
    fitted = program("monteclora").eval().requires_grad_(False)  # the counter follows gradients
    inputs = {name: value for name, value in batch(64, length=32).items() if name != "labels"}
    with torch.no_grad():
        factors = fitted.factors_at(fitted.draw(2))
        with FlopCounterMode(display=False) as drawn:
            list(chunks(fitted.network_logits, factors, inputs, 2))
        fitted.network.unbind()
        with FlopCounterMode(display=False) as alone:
            fitted.network.model(**inputs)
    assert drawn.get_total_flops() <= 1.02 * 2 * alone.get_total_flops()


@pytest.mark.parametrize(("targets", "most"), [("last:1", 0.25), ("last:2", 0.42)])
def test_draws_of_the_last_blocks_run_those_below_once(targets: str, most: float) -> None:
    # A rank of 2 in 48 features is what 16 is in the 384 of the small encoder.
    drawn, one, _ = prediction_flops(program("monteclora", rank=2, targets=targets), 32)
    assert drawn <= most * 32 * one


def test_draws_of_the_head_alone_cost_one_pass() -> None:
    drawn, _, alone = prediction_flops(program("laplace", last_layer=True), 32)
    assert drawn <= 1.1 * alone


def prediction_flops(fitted: Program, num_draws: int) -> tuple[int, int, int]:
    """Floating-point work of a prediction, of a pass of one draw, and of one of the base network."""
    fitted.eval().requires_grad_(False)
    inputs = {name: value for name, value in batch(16, length=32).items() if name != "labels"}
    sites = fitted.draw(num_draws)
    for name, value in sites.items():
        if name.startswith("head_"):  # points before there is a curvature
            sites[name] = value + torch.randn_like(value)
    counts = []
    for draws, size in ((sites, num_draws), ({name: value[:1] for name, value in sites.items()}, 1)):
        for _ in range(2):  # the first time measures what is shared
            with FlopCounterMode(display=False) as counter:
                run_parts([Part(fitted, draws, size)], [(np.arange(16), inputs)], with_labels=False)
        counts.append(counter.get_total_flops())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        fitted.network.model(**inputs)
    return counts[0], counts[1], counter.get_total_flops()
