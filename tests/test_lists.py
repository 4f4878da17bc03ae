"""The lists of methods and of kinds of labels on the pages are those of the code."""

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import bayeslora
from bayeslora import METHODS
from bayeslora.methods import LoRA

ROOT = Path(__file__).parents[1]


@pytest.fixture
def lists() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lists", ROOT / "docs" / "lists.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> type:
    """A method in a file of its own, with its line in `METHODS`."""
    fields = {"name": "my_own", "__module__": "bayeslora.methods.my_own", "__doc__": "What I always wanted."}
    method = type("MyOwn", (LoRA,), fields)
    monkeypatch.setitem(METHODS, "my_own", method)
    return method


def navigation(lists: ModuleType) -> dict[str, Any]:
    """The two parts of the navigation that have lists, as the hook leaves them."""
    nav = [{"Tasks": "tasks.md"}, {"Methods": "methods/index.md"}]
    return {title: pages for part in lists.on_config(SimpleNamespace(nav=nav)).nav for title, pages in part.items()}


def test_the_tables_on_the_pages_are_up_to_date(lists: ModuleType) -> None:
    lists.main(check=True)


def test_a_stale_table_is_found_and_rewritten(
    lists: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "README.md"
    page.write_text((ROOT / "README.md").read_text().replace("[`swag`]", "[`swagger`]"))
    monkeypatch.setattr(lists, "ROOT", tmp_path)
    monkeypatch.setattr(lists, "FILES", [page])
    with pytest.raises(SystemExit, match=r"README\.md: run `python docs/lists\.py`"):
        lists.main(check=True)
    lists.main(check=False)
    assert "[`swag`](" in page.read_text()
    assert "swagger" not in page.read_text()
    lists.main(check=True)


def test_a_method_without_a_page_is_told_where_to_write_it(lists: ModuleType, own: type) -> None:
    with pytest.raises(SystemExit, match=r"write docs/methods/my-own\.md"):
        lists.methods_table(ROOT / "README.md")


def test_a_new_method_needs_its_page_alone(
    lists: ModuleType, own: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for page in (ROOT / "docs").glob("**/*.md"):
        copy = tmp_path / page.relative_to(ROOT / "docs")
        copy.parent.mkdir(exist_ok=True)
        copy.write_text(page.read_text())
    (tmp_path / "methods" / "my-own.md").write_text("# My own\n")
    monkeypatch.setattr(lists, "DOCS", tmp_path)

    assert "[`my_own`](my-own.md) | What I always wanted." in lists.methods_table(tmp_path / "methods" / "index.md")
    assert "::: bayeslora.methods.my_own.MyOwn" in lists.reference("methods")
    assert {"My own": "methods/my-own.md"} in navigation(lists)["Methods"]


def test_a_kind_of_label_may_have_a_page_of_its_own(
    lists: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert navigation(lists)["Tasks"] == "tasks.md" or navigation(lists)["Tasks"][0] == {"Overview": "tasks.md"}
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks.md").write_text("# Tasks\n")
    (tmp_path / "tasks" / "multiple-choice.md").write_text("# Choices\n")
    monkeypatch.setattr(lists, "DOCS", tmp_path)
    monkeypatch.setattr(lists, "METHODS", {})
    assert "[`multiple_choice`](tasks/multiple-choice.md)" in lists.tasks_table(tmp_path / "tasks.md")
    assert navigation(lists)["Tasks"] == [{"Overview": "tasks.md"}, {"Choices": "tasks/multiple-choice.md"}]


def test_pages_that_methods_share_are_listed_once(lists: ModuleType) -> None:
    pages = [path for entry in navigation(lists)["Methods"][1:] for path in entry.values()]
    assert sorted(pages) == sorted(
        path.relative_to(ROOT / "docs").as_posix()
        for path in (ROOT / "docs" / "methods").glob("*.md")
        if path.name != "index.md"
    )


@pytest.mark.parametrize("what", ["methods", "tasks", "predictions"])
def test_the_reference_has_every_public_class(lists: ModuleType, what: str) -> None:
    table = {
        "methods": [*METHODS.values(), bayeslora.Method, bayeslora.PerStackMethod],
        "tasks": bayeslora.LIKELIHOODS.values(),
        "predictions": [getattr(bayeslora, name) for name in bayeslora.__all__ if name.endswith("Prediction")],
    }[what]
    entries = lists.on_page_markdown(f"<!-- reference of {what} -->").split("\n\n")
    assert {f"::: {cls.__module__}.{cls.__qualname__}" for cls in table} <= set(entries)
    assert len(entries) == len(set(entries))
    assert f"<!-- reference of {what} -->" in (ROOT / "docs" / "reference.md").read_text()


def test_a_kind_of_label_says_what_labels_and_logits_are(lists: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bayeslora.LIKELIHOODS["multilabel"], "__doc__", "Any of several labels.\n\nLabels: some.\n")
    with pytest.raises(SystemExit, match=r"MultiLabel needs a line `Logits: …\.`"):
        lists.tasks_table(ROOT / "docs" / "tasks.md")


def test_tables_leave_out_formulas(lists: ModuleType) -> None:
    assert "$" not in lists.tasks_table(ROOT / "docs" / "tasks.md")
    assert "change δ; a layer without a bias gets one." in lists.methods_table(ROOT / "README.md")
