"""The code on the pages runs, from a page's first block to its last, as a reader would run it."""

import re
import warnings
from pathlib import Path
from typing import Any

import pytest

from bayeslora import LIKELIHOODS, METHODS, recipe

ROOT = Path(__file__).parents[1]
FROM_THE_HUB = ("sentence-transformers/all-MiniLM-L6-v2", "distilbert/distilbert-base-uncased")
"""What the pages load by name; the tests have an encoder on disk."""


def code(page: Path) -> str:
    """The Python blocks of a page, one after another, the files they include written out."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r'--8<-- "(.*)"', lambda match: (ROOT / match[1]).read_text(), "\n".join(blocks))


PAGES = [page for page in sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]) if code(page)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_on_the_page_runs(page: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = code(page)
    for name in FROM_THE_HUB:
        source = source.replace(name, str(encoder))
    # A reader may wait longer, for fits of many epochs and for those that leave their number to the library.
    source = re.sub(r"\bepochs=\d\d+", "epochs=1", source)
    monkeypatch.setattr(recipe, "epochs", lambda *given: 1.0)
    tables: list[dict[str, Any]] = [METHODS, LIKELIHOODS]
    known = [dict(table) for table in tables]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            exec(compile(source, str(page), "exec"), {"__name__": "page"})
    finally:
        for table, entries in zip(tables, known, strict=True):
            table.clear()
            table.update(entries)


def test_tests_and_files_that_the_pages_name_are_there() -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        text = page.read_text()
        named = re.findall(r"`(test_\w+_\w+)`", text)  # `test_dropout` is a field
        assert [name for name in named if f"def {name}(" not in tests] == [], page
        files = re.findall(r"\b((?:tests|benchmarks|examples)/[\w/]+\.py)\b", text)
        assert [name for name in files if not (ROOT / name).is_file()] == [], page
