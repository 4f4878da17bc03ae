"""What benchmarks share."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_ratios_have_quartiles_of_neighbouring_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    timing = pytest.importorskip("timing")
    calls: list[str] = []
    seconds = timing.taking_turns({name: lambda name=name: calls.append(name) for name in "ab"}, 2, warm_up=1)
    assert (calls, {name: len(each) for name, each in seconds.items()}) == ([*"ababab"], {"a": 2, "b": 2})
    assert timing.ratio([1.0, 4.0, 9.0, 16.0, 25.0], [1.0, 2.0, 3.0, 4.0, 5.0]) == "3.000 (2.000–4.000)"
    assert timing.ratio([8.0], [1.0], times=4) == "2.000 (2.000–2.000)"
    for name in ("timing", "demo_study"):
        sys.modules.pop(name, None)
