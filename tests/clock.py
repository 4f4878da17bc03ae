"""Processor time in units of a plain loop that is timed beside it, so that a test means the same on any processor."""

import time
from collections.abc import Callable


def _seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def _unit() -> int:
    return sum(number * number for number in range(10_000))


def units(function: Callable[[], object], times: int = 20) -> float:
    """Return the least time that a call takes over that of summing 10,000 squares in Python, about a millisecond.

    Args:
        function: What to call.
        times: How often both are called, in turn.
    """
    pairs = [(_seconds(function), _seconds(_unit)) for _ in range(times)]
    return min(pair[0] for pair in pairs) / min(pair[1] for pair in pairs)
