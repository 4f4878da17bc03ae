"""What the benchmarks of time share: calls that take turns, ratios of them, and where the table goes."""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
from demo_study import ROOT, fill, markdown
from transformers.utils import logging

Name = TypeVar("Name")


def taking_turns(calls: Mapping[Name, Callable[[], object]], repeats: int, warm_up: int = 1) -> dict[Name, list[float]]:
    """Seconds of each call, one of every kind before the next: what else the machine does slows neighbours alike."""
    seconds: dict[Name, list[float]] = {name: [] for name in calls}
    for index in range(warm_up + repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if index >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratio(own: Sequence[float], peer: Sequence[float]) -> float:
    """The median ratio of neighbouring calls."""
    return statistics.median(a / b for a, b in zip(own, peer, strict=True))


def ratio(own: Sequence[float], peer: Sequence[float], times: float = 1.0) -> str:
    """The median ratio of neighbouring calls and its quartiles, for a table; `times` is how often the peer counts."""
    low, middle, high = np.quantile([a / b / times for a, b in zip(own, peer, strict=True)], (0.25, 0.5, 0.75))
    return f"{middle:.3f} ({low:.3f}–{high:.3f})"


def words(rows: int, length: int) -> dict[str, torch.Tensor]:
    """A batch of random words with a class each."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1_000, 20_000, (rows, length), generator=generator)
    labels = torch.randint(0, 2, (rows,), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def report(description: str | None, tables: Callable[[], Iterable[pd.DataFrame]], marker: str) -> None:
    """Measure, print, and put the table into the documents, unless told otherwise on the command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--print-only", action="store_true", help="leave docs/results.md as it is")
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    table = markdown(pd.concat(tables(), ignore_index=True))
    print(table)
    if not options.print_only:
        fill(ROOT / "docs" / "results.md", marker, table)
