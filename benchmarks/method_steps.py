"""Training steps of the methods against our own `lora`, in one run: medians of ratios of neighbouring steps.

Run with `make bench`. Forward, backward, optimiser step and the method's own work after it; the same 22M encoder, rank
and targets for all. What takes several passes by definition is compared with as many steps of `lora`: LoRA Dropout with
N masks with N of them, an ensemble of M members, each with a batch of its own, with M.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from step_time import base
from timing import ratio, report, taking_turns, words

from bayeslora.adapters import AdaptedNetwork
from bayeslora.methods import make_method
from bayeslora.program import Program
from bayeslora.tasks import Classification

ROWS, LENGTHS, STEPS = 16, (16, 64), 15


@dataclass(frozen=True)
class Contender:
    """A method with fields, its draws per step, and the steps of `lora` it is compared with."""

    method: str
    fields: tuple[tuple[str, Any], ...] = ()
    num_particles: int = 1
    steps_of_lora: int = 1

    def __str__(self) -> str:
        changed = [f"{name}={value}" for name, value in self.fields]
        changed += [f"N={self.num_particles}"] if self.method == "lora_dropout" else []
        return f"{self.method} ({', '.join(changed)})" if changed else self.method


CONTENDERS = [
    Contender("lora"),
    Contender("monteclora"),
    Contender("lora_dropout"),
    Contender("lora_dropout", num_particles=4, steps_of_lora=4),
    Contender("mc_dropout", (("p", 0.1),)),
    Contender("deep_ensemble", (("members", 4),), 4, 4),
    Contender("adalora"),
    Contender("dora"),
    Contender("full"),
    Contender("bitfit"),
    Contender("blob"),
    Contender("scalabl"),
]


def stepper(contender: Contender, length: int) -> Callable[[], None]:
    """One training step of a method, to be called again and again."""
    method = make_method(contender.method, **dict(contender.fields))
    network = AdaptedNetwork(
        base(), method.family, rank=8, head_family=method.head_family, start_rank=method.start_rank, num_examples=500
    )
    program = Program(network, method, Classification(2), contender.num_particles)
    program.num_steps = 10 * STEPS
    rows = ROWS * (contender.num_particles if method.own_batches else 1)
    batch = words(rows, length)
    optimizer = torch.optim.AdamW([parameter for _, parameter in program.trainable()], lr=1e-4)
    taken = 0

    def train() -> None:
        nonlocal taken
        taken += 1
        program(**batch, rows_by_draw=method.own_batches).loss.backward()
        optimizer.step()
        method.after_step(program, taken)
        optimizer.zero_grad()

    program.train()
    return train


def measure(length: int) -> pd.DataFrame:
    """One length's table."""
    steppers = {contender: stepper(contender, length) for contender in CONTENDERS}
    seconds = taking_turns(steppers, STEPS, warm_up=2)
    lora = seconds[CONTENDERS[0]]
    return pd.DataFrame(
        {
            "case": f"{ROWS} × {length} tokens",
            "method": str(contender),
            "ms per step": f"{statistics.median(own) * 1e3:.0f}",
            "steps of lora": str(contender.steps_of_lora),
            "time / as many steps of lora": ratio(own, lora, contender.steps_of_lora),
        }
        for contender, own in seconds.items()
    )


if __name__ == "__main__":
    report(__doc__, lambda: map(measure, LENGTHS), "method-steps")
