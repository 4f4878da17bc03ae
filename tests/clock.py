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
        times: How often it is called.
    """
    least = min(_seconds(function) for _ in range(times))
    # Some systems count processor time in steps of 10 ms: time many units together.
    count, start = 0, time.process_time()
    while (passed := time.process_time() - start) < 0.1:
        _unit()
        count += 1
    return least * count / passed
