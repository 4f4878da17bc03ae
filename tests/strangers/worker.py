"""A process of its own that loads posteriors and watches what that does.

It reads a line of JSON for each posterior, `{"folder": …, "case": …}`, and answers with one: what came of it, which
files were opened, what else was done, and the memory and time that it took.
"""

import contextlib
import json
import os
import resource
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import transformers.utils.logging
from torch import nn

import bayeslora
import bayeslora.plots
from tests.fixtures.make import CASES, Case
from tests.strangers.further import KINDS

FORBIDDEN = (
    *("builtins.input", "ctypes.dlopen", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"),
    *("pickle.find_class", "socket.bind", "socket.connect", "socket.getaddrinfo", "subprocess.Popen"),
)
"""Events that no loading causes: code that is run, a question on the terminal, another machine."""

MODULES = tuple(os.path.realpath(path) for path in sys.path if path and os.path.isdir(path))
"""Where Python's own modules are, which may be imported for the first time."""


class Watch:
    """What happens while it is on, as Python's audit events tell."""

    def __init__(self) -> None:
        self.on = False
        self.opened: list[str] = []
        self.done: list[str] = []
        sys.addaudithook(self.hear)

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open" and isinstance(args[0], str | bytes):
            path = os.path.realpath(os.fsdecode(args[0]))
            if not (path.startswith(MODULES) and path.endswith((".py", ".pyc", ".so"))):
                self.opened.append(path)
        elif event in FORBIDDEN:
            self.done.append(f"{event} {args[:1]!r:.200}")
        elif event == "exec" and not getattr(args[0], "co_filename", "<").startswith(("<", *MODULES, sys.prefix)):
            self.done.append(f"exec {args[0].co_filename}")


def answer(task: dict[str, str], case: Case, network: nn.Module, expected: np.ndarray, watch: Watch) -> dict[str, Any]:
    """Load a posterior, and say what came of it: an error, the same predictions, or others."""
    watch.opened, watch.done = [], []
    forget_peak()
    before, start = memory("VmRSS"), time.perf_counter()
    posterior, result = None, {"outcome": "cannot predict"}
    watch.on = True
    try:
        posterior = bayeslora.load(task["folder"], network, **case.own())
    except BaseException as error:
        result = {"outcome": "error", "type": type(error).__name__, "message": str(error)}
    watch.on = False
    result |= {"seconds": time.perf_counter() - start, "memory": memory("VmHWM") - before}
    result |= {"opened": watch.opened, "done": watch.done}
    if posterior is None:
        return result
    try:
        actual = posterior.predict(case.test, num_draws=2, seed=0).draws
    except Exception as error:
        return result | {"type": type(error).__name__, "message": str(error)}
    try:
        shown(posterior)
    except Exception as error:
        return result | {"outcome": "cannot be shown", "type": type(error).__name__, "message": str(error)}
    same = actual.shape == expected.shape and np.array_equal(actual, expected, equal_nan=True)
    return result | {"outcome": "same" if same else "other" if np.isfinite(actual).all() else "not finite"}


def shown(posterior: Any) -> None:
    """Look at all that a posterior says of itself."""
    repr(posterior)
    posterior._repr_html_()
    if posterior.tuning is not None:
        repr(posterior.tuning)
        posterior.tuning.to_pandas()
        bayeslora.plots.dial(posterior.tuning)
    if getattr(posterior, "densities", None) is not None:
        repr(posterior.elpd)


def memory(field: str) -> int:
    """Bytes of this process that are (`VmRSS`), or at most were (`VmHWM`), in memory; 0 where nobody tells."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def forget_peak() -> None:
    """Let `VmHWM` begin again from what is in memory now."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    """Answer until there is nothing more to read."""
    # Memory that a posterior asks for in vain is an error, not the machine's end.
    with contextlib.suppress(OSError, ValueError):  # where the system knows no such limit
        resource.setrlimit(resource.RLIMIT_AS, (2**36, resource.RLIM_INFINITY))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print, too
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    watch = Watch()
    known: dict[str, tuple[nn.Module, np.ndarray]] = {}
    for line in sys.stdin:
        task = json.loads(line)
        case = (CASES | KINDS)[task["case"]]
        if task["case"] not in known:
            network = case.network()
            own = bayeslora.load(task["pristine"], network, **case.own())
            known[task["case"]] = network, own.predict(case.test, num_draws=2, seed=0).draws
        print(json.dumps(answer(task, case, *known[task["case"]], watch)), file=answers, flush=True)


if __name__ == "__main__":
    main()
