"""Bad calls, of which hypothesis thinks, end in the library's own words and leave nothing behind."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "number", [pytest.param(200, id="short"), pytest.param(3000, id="long", marks=pytest.mark.slow)]
)
def test_bad_calls_end_in_our_words_and_leave_nothing_behind(number: int) -> None:
    command = [sys.executable, "-m", "tests.door.calls", str(number)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr[-2000:]
    tally = json.loads(ended.stdout)
    assert tally["calls"] >= number
    assert not tally["faults"], "\n".join(tally["faults"])
    assert tally["ended"]["succeeded"] > 0
    assert tally["ended"]["ArgumentError"] > number / 2
