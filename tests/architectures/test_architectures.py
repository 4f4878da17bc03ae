"""One set of checks for every network in the table; `make test-all` runs those marked slow, too."""

from pathlib import Path

import pytest

from tests.architectures.cases import CASES, KNOWN_WRONG, QUICK, Case, is_right, known_wrong
from tests.architectures.checks import CHECKS, survey


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name, marks=() if c.name in QUICK else pytest.mark.slow) for c in CASES]
)
def test_nothing_is_silently_wrong(case: Case) -> None:
    results, _ = survey(case)
    failed = {check: result for check, result in results.items() if not is_right(case, check, result)}
    known = known_wrong(case.name)
    new = [f"{check} {result.outcome}: {result.detail}" for check, result in failed.items() if check not in known]
    assert not new, "\n".join(new)
    mended = [check for check in known if check not in failed]
    assert not mended, f"These hold now: take them out of KNOWN_WRONG: {', '.join(mended)}"


def test_the_lists_name_cases_and_checks_that_exist() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names) >= 120
    assert set(QUICK) <= set(names)
    for cases in KNOWN_WRONG.values():
        assert set(cases) <= set(names)
        assert {check for checks in cases.values() for check in checks.split()} <= set(CHECKS)


def test_the_page_has_every_case_and_every_fault() -> None:
    page = (Path(__file__).parents[2] / "docs" / "architectures.md").read_text()
    missing = [text for text in (*(case.name for case in CASES), *KNOWN_WRONG) if text not in page]
    assert not missing, f"Run `make architectures`: the page does not have {', '.join(missing)}"
    assert ("not right yet" in page) == bool(KNOWN_WRONG)
