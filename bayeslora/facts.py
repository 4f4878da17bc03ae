"""What there is to say of a fitted program in a few lines."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bayeslora.adapters import AdaptedNetwork
from bayeslora.dials import TuningResult
from bayeslora.display import SHOWN_CLASSES
from bayeslora.methods import Method
from bayeslora.program import Program


def learned(program: Program) -> dict[str, float]:
    """Count the numbers that are learned: `adapters`, `head`, those of the `base` model, and the `share` of it."""
    counts = {"adapters": 0, "head": 0}
    for name, parameter in program.trainable():
        counts["adapters" if name.startswith("guide.") else "head"] += parameter.numel()
    base = sum(parameter.numel() for parameter in program.network.parameters())
    return {**counts, "base": base, "share": sum(counts.values()) / base}


def facts(posterior: Any) -> dict[str, str]:
    """Return what a posterior shows of itself, by name."""
    program, class_names, held_out = posterior.program, posterior.class_names, posterior.held_out
    count, likelihood = learned(program), program.likelihood
    names = [] if class_names is None else [*class_names[:SHOWN_CLASSES], "…"][: len(class_names)]
    return {
        "method": method(program.method),
        "network": _network(program.network),
        "layers": _layers(program.network),
        "labels": likelihood.name + (f", {len(class_names or ())} classes: {', '.join(names)}" if names else ""),
        "learned": f"{count['adapters']:,} numbers in adapters, {count['head']:,} in the head: "
        f"{count['share']:.2%} of {count['base']:,}",
        "fit": _fit(posterior._history, program.network.stacks.num_examples),
        **({} if posterior.temperature == 1 else {"temperature": f"{posterior.temperature:.3f}"}),
        **({} if posterior.tuning is None else {"dial": dial(posterior.tuning)}),
        **({} if held_out is None else {"decides by": f"{len(held_out):,} held-out rows"}),
        "state": "finished" if posterior.state is None else f"not finished: {posterior.state}",
    }


def dial(tuning: TuningResult) -> str:
    """What was set by prediction, and by which rows."""
    elpd = "" if tuning.elpd is None else f", whose elpd is {tuning.elpd:.3f} ± {tuning.elpd_se:.3f} nats per row"
    return f"{tuning.dial} = {tuning.chosen:.3g}, by the NLL of {tuning.rows} rows{elpd}"


def method(method: Method) -> str:
    """Return a method's name, and those of its fields that are not as by default; functions by their names."""
    values = {field.name: (getattr(method, field.name), field.default) for field in dataclasses.fields(method)}  # type: ignore[arg-type]
    changed = [
        f"{name}={_shown(value):.40}" for name, (value, default) in values.items() if repr(value) != repr(default)
    ]
    return method.name + (f", {', '.join(changed)}" if changed else "")


def _shown(value: Any) -> str:
    """Return a value as one writes it; a function says itself where in memory it lies, which no two processes share."""
    return str(getattr(value, "__name__", type(value).__name__)) if callable(value) else repr(value)


def _network(network: AdaptedNetwork) -> str:
    config = getattr(network.model, "config", None)
    name = getattr(config, "_name_or_path", "")
    return type(network.model).__name__ + (f" from {name}" if name else "")


def _layers(network: AdaptedNetwork) -> str:
    body = [stack for stack in network.stacks.values() if not stack.in_head]
    ranks = sorted({stack.rank for stack in body})
    rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    shapes = ", ".join(f"{len(stack)} of {stack.name}" for stack in body)
    return f"{sum(map(len, body))} adapted, {rank}: {shapes}"


def _fit(history: Mapping[str, Sequence[float]], num_examples: int) -> str:
    """The number of examples and of steps, and the NLL over the last epoch."""
    epoch, nll = (np.asarray(history.get(name, ()), dtype=np.float64) for name in ("epoch", "nll"))
    said = [f"n = {num_examples:,}", f"{len(nll):,} steps"]
    if len(nll) and len(nll) == len(epoch):
        said += [
            f"{epoch[-1]:g} epoch{'' if epoch[-1] == 1 else 's'}",
            f"NLL {nll[epoch > epoch[-1] - 1].mean():.3f} nats in the last",
        ]
    validation = [value for value in history.get("validation_nll", ()) if not math.isnan(value)]
    return ", ".join(said + ([f"validation NLL {validation[-1]:.3f}"] if validation else []))
