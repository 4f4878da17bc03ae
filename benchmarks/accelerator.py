"""Steps, memory, predictions and generation on an accelerator, as ratios to PEFT and to the base network, in one run.

    python benchmarks/accelerator.py [--shapes roberta-base deberta-v3-base llama-7b]
        [--parts steps predictions writing] [--print-only]

Networks have the published shapes and random bfloat16 weights, because time and memory do not depend on what they say;
learned numbers are float32, and passes run under autocast. All contenders share the frozen weights and take turns. On a
machine without an accelerator the script runs tiny networks of the same kinds, to see that it works; it writes nothing.
What is measured replaces the same rows of the machine's earlier runs; others stay.
"""

import argparse
import copy
import gc
import json
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pandas as pd
import peft
import torch
from demo_study import ROOT, fill, markdown
from timing import median_ratio, taking_turns
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DebertaV2Config,
    LlamaConfig,
    PreTrainedConfig,
    RobertaConfig,
)
from transformers.utils import logging

from bayeslora import generation
from bayeslora.adapters import AdaptedNetwork
from bayeslora.drawing import draw
from bayeslora.methods import make_method
from bayeslora.prediction import chunks
from bayeslora.program import Program, evaluating
from bayeslora.tasks import CausalLM, Classification

STORE = ROOT / "benchmarks" / "results" / "accelerator"
REAL = torch.cuda.is_available()
DEVICE = torch.device("cuda" if REAL else "cpu")
NUM_DRAWS, NEW_TOKENS, STEPS, REPEATS = (10, 32, 20, 10) if REAL else (3, 4, 2, 2)
DEBERTA = {
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "max_relative_positions": -1,
    "type_vocab_size": 0,
}
# Configuration, rows and tokens of a training step, rank.
SHAPES: dict[str, tuple[PreTrainedConfig, tuple[int, int], int]] = {
    "roberta-base": (
        RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, num_labels=2),
        (32, 128),
        8,
    ),
    "deberta-v3-base": (DebertaV2Config(vocab_size=128100, num_labels=2, **DEBERTA), (32, 128), 8),
    "llama-7b": (LlamaConfig(pad_token_id=0), (4, 256), 32),
}
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 500,
}
Call = Callable[[], object]


def base(name: str) -> nn.Module:
    """A network of a published shape, or a tiny one of its kind, with random weights and without dropout."""
    config = copy.deepcopy(SHAPES[name][0])
    for setting, value in ({} if REAL else SMALL).items():
        setattr(config, setting, value)
    if hasattr(config, "num_key_value_heads"):
        config.num_key_value_heads = config.num_attention_heads
    if hasattr(config, "pooler_hidden_size"):
        config.pooler_hidden_size = config.hidden_size
    for setting in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        if hasattr(config, setting):
            setattr(config, setting, 0.0)
    kind = AutoModelForCausalLM if is_causal(name) else AutoModelForSequenceClassification
    with DEVICE:
        return kind.from_config(config, dtype=torch.bfloat16).eval()


def is_causal(name: str) -> bool:
    """Whether a network writes text."""
    return name.startswith("llama")


def shared(model: nn.Module) -> nn.Module:
    """A copy of the modules around the same weights; a new head's are its own, because they are trained."""
    head = {id(p) for n, p in model.named_parameters() if n.startswith(("classifier", "score", "pooler"))}
    return copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers()) if id(t) not in head})


def with_peft(name: str, model: nn.Module, rank: int, **settings: Any) -> tuple[nn.Module, Callable[..., Tensor]]:
    """PEFT's LoRA on the layers of `targets="all-linear"`, and its loss."""
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=16,
        target_modules="all-linear",
        exclude_modules=None if is_causal(name) else ".*(pooler|classifier).*",
        task_type="CAUSAL_LM" if is_causal(name) else "SEQ_CLS",
        **settings,
    )
    adapted = peft.get_peft_model(model, config)
    if "monteclora_config" not in settings:
        return adapted, lambda batch: adapted(**batch).loss
    return adapted, lambda batch: adapted(**batch).loss + adapted.base_model._get_monteclora_loss()


def ours(name: str, model: nn.Module, rank: int, method: str) -> tuple[Program, Callable[..., Tensor]]:
    """A program of ours, and its loss."""
    likelihood = CausalLM(model.config.vocab_size) if is_causal(name) else Classification(2)
    program = Program(AdaptedNetwork(model, rank=rank), make_method(method), likelihood).to(DEVICE)
    return program, lambda batch: program(**batch).loss


def tokens(name: str, model: nn.Module, rows: int, length: int) -> dict[str, Tensor]:
    """A batch of random tokens and labels; a small one without an accelerator."""
    rows, length = (rows, length) if REAL else (min(rows, 2), 8)
    ids = torch.randint(5, model.config.vocab_size, (rows, length), device=DEVICE)
    labels = ids.clone() if is_causal(name) else torch.randint(0, 2, (rows,), device=DEVICE)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


@contextmanager
def running() -> Iterator[None]:
    """Autocast; what runs on the accelerator has ended on leaving."""
    with torch.autocast(DEVICE.type, torch.bfloat16):
        yield
    if REAL:
        torch.cuda.synchronize()


def peak_of(call: Call) -> int:
    """Bytes on the accelerator at most while a call runs, what was there before included."""
    if not REAL:
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    call()
    return torch.cuda.max_memory_allocated()


def steps(name: str) -> list[dict[str, Any]]:
    """Training steps: time of each contender in turn, and the memory that each takes alone."""
    _, (rows, length), rank = SHAPES[name]
    model = base(name)
    batch = tokens(name, model, rows, length)

    def stepping(contender: tuple[nn.Module, Callable[..., Tensor]]) -> Call:
        module, loss = contender
        optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-4)

        def train() -> None:
            module.train()
            with running():
                loss(batch).backward()
                optimizer.step()
                optimizer.zero_grad()

        return train

    montecarlo = {"monteclora_config": peft.MontecloraConfig(num_samples=4)}
    makers: dict[str, Call] = {
        "PEFT LoRA": lambda: with_peft(name, shared(model), rank),
        "PEFT MonteCLoRA": lambda: with_peft(name, shared(model), rank, **montecarlo),
        "bayeslora lora": lambda: ours(name, shared(model), rank, "lora"),
        "bayeslora monteclora": lambda: ours(name, shared(model), rank, "monteclora"),
    }
    memory = {}
    for label, make in makers.items():
        train = stepping(make())  # type: ignore[arg-type]
        train()
        memory[label] = peak_of(train)
        del train
        gc.collect()
    seconds = taking_turns({label: stepping(make()) for label, make in makers.items()}, STEPS, 5)  # type: ignore[arg-type]
    peer = "PEFT LoRA"
    return [
        {
            "shape": name,
            "what": f"step, {rows} × {length}: {label}",
            "ms": statistics.median(own) * 1e3,
            "ratio": median_ratio(own, seconds[peer]),
            "to": peer,
            "GiB": memory[label] / 2**30,
            "memory": memory[label] / memory[peer] if memory[peer] else float("nan"),
        }
        for label, own in seconds.items()
    ]


def predictions(name: str) -> list[dict[str, Any]]:
    """Predictions by several draws, in passes of the base network."""
    _, (_, length), rank = SHAPES[name]
    model, rows_of = base(name), (1, 2, 4, 8)
    program, _ = ours(name, shared(model), rank, "monteclora")
    sites = draw(program.eval(), NUM_DRAWS, seed=0)
    factors = program.factors_at(sites)
    found = []
    for rows in rows_of:
        batch = tokens(name, model, rows, length)
        del batch["labels"]

        def draws(batch: dict[str, Tensor] = batch) -> None:
            with torch.inference_mode(), evaluating(program), running():
                for _ in chunks(program.network_logits, factors, batch, NUM_DRAWS):
                    pass
            program.network.unbind()

        def plain(batch: dict[str, Tensor] = batch) -> None:
            with torch.inference_mode(), running():
                model(**batch)

        seconds = taking_turns({"base": plain, "draws": draws}, REPEATS, 3)
        found.append(
            {
                "shape": name,
                "what": f"{NUM_DRAWS} draws, {rows} × {length}",
                "ms": statistics.median(seconds["draws"]) * 1e3,
                "ratio": median_ratio(seconds["draws"], seconds["base"]),
                "to": "one pass of the base network",
                "GiB": peak_of(draws) / 2**30,
            }
        )
    return found


def writing(name: str) -> list[dict[str, Any]]:
    """Generation by four draws together, beside the base network's own; nothing if the network does not write."""
    if not is_causal(name):
        return []
    model = base(name)
    program, _ = ours(name, shared(model), SHAPES[name][2], "monteclora")
    prompts = tokens(name, model, 1, 64)
    del prompts["labels"]
    sites = draw(program.eval(), 4, seed=0)
    settings = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}

    def plain() -> None:
        with torch.inference_mode(), running():
            model.generate(**prompts, **settings)

    def draws(average: bool) -> Call:
        def call() -> None:
            with running():
                generation.generate(program, sites, prompts, average, None, settings)

        return call

    seconds = taking_turns({"base": plain, "4 draws together": draws(True), "4 draws": draws(False)}, 3, 1)
    return [
        {
            "shape": name,
            "what": f"{NEW_TOKENS} tokens: {label}",
            "ms": statistics.median(own) * 1e3,
            "ratio": median_ratio(own, seconds["base"]),
            "to": "the base network's own",
        }
        for label, own in seconds.items()
        if label != "base"
    ]


PARTS = {"steps": steps, "predictions": predictions, "writing": writing}


def main() -> None:
    """Measure, store and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--print-only", action="store_true", help="store nothing, and leave docs/results.md as it is")
    options = parser.parse_args()
    logging.set_verbosity_error()
    machine = torch.cuda.get_device_name() if REAL else "no accelerator, tiny networks"
    rows = []
    for name in options.shapes:
        for part in options.parts:
            found = PARTS[part](name)
            rows += found
            gc.collect()
            if REAL:
                torch.cuda.empty_cache()
            print(machine, *map(json.dumps, found), sep="\n", flush=True)
    if options.print_only or not REAL:
        return
    STORE.mkdir(parents=True, exist_ok=True)
    path = STORE / f"{machine.lower().replace(' ', '-')}.json"
    before = json.loads(path.read_text())["rows"] if path.exists() else []
    anew = {(row["shape"], row["what"]): row for row in rows}
    merged = [anew.pop((row["shape"], row["what"]), row) for row in before] + list(anew.values())
    about = {"machine": machine, "torch": torch.__version__, "rows": merged}
    path.write_text(json.dumps(about, indent=1) + "\n")
    write_table()


def write_table() -> None:
    """Put what is stored into docs/results.md."""
    parts = []
    for path in sorted(STORE.glob("*.json")):
        about = json.loads(path.read_text())
        table = pd.DataFrame(about["rows"])
        table["ms"] = table["ms"].map("{:.1f}".format)
        parts.append(f"{about['machine']}, torch {about['torch']}:\n\n{markdown(table.fillna(''))}")
    fill(ROOT / "docs" / "results.md", "accelerator", "\n\n".join(parts))


if __name__ == "__main__":
    main()
