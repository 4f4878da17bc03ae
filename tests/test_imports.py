"""Imports run one way, and importing the library is cheap."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "bayeslora"

ORDER = (
    ("contents", "contracts", "counting", "origins", "surroundings"),
    ("hashing", "places", "failing"),
    ("types", "isolation", "saving", "paths", "passes", "devices", "showing", "stopping"),
    ("filing", "claiming"),
    ("networks",),
    ("limits",),
    ("adapters", "distributions", "tasks"),
    ("fitted", "natural", "packing", "runaway"),
    ("priors", "guides", "curvature", "elbo", "tuning", "precision", "dials"),
    ("antithetic",),
    ("data", "methods"),
    ("carried",),
    ("program", "budget", "record", "registry", "preparation", "arguments", "recipe", "verdict", "weights"),
    ("bases",),
    ("tables", "stacking", "drawing"),
    ("prediction", "storage", "choice", "facts"),
    ("diagnostics", "generation", "interop", "sizing", "hub", "prices", "trying"),
    ("distilling", "rounds", "together"),
    ("posterior",),
    ("mixture", "unpacking"),
    ("loading", "testing", "states", "divergence", "onward"),
    ("checkpoints",),
    ("grouping", "harness", "pipelines", "several"),
    ("watching",),
    ("trainer",),
    ("training",),
    ("dialling",),
    ("fitting",),
    ("folds",),
    ("fit", "foreign", "outcomes", "texts"),
    ("study", "piping"),
    ("report",),
    ("demo", "sklearn", "wording"),
    ("shell",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
"""A part imports from those before it, and from itself; parts of one row do not import each other."""

LEAVES = ("decisions", "display", "metrics", "plots", "serving", "theory")
"""These rest on `types` and `contracts` alone, and any part may use them."""

HEAVY = ("transformers", "datasets", "arviz", "pandas", "matplotlib", "sklearn", "scipy", "peft")

FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def part(path: Path) -> str:
    """The file or folder of the package that a source file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def rank(name: str) -> int:
    return next(index for index, row in enumerate(ORDER) if name in row)


def module_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run on import, those under `if TYPE_CHECKING` included."""
    for statement in body:
        yield statement
        for block in ("body", "orelse", "finalbody"):
            if not isinstance(statement, ast.FunctionDef | ast.ClassDef):
                yield from module_level(getattr(statement, block, []))


def imported_parts(source: str) -> set[str]:
    """The parts of the package that a module imports when it is imported."""
    names = set()
    for statement in module_level(ast.parse(source).body):
        if isinstance(statement, ast.Import):
            names |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            assert statement.level == 0, "imports are absolute"
            names |= {f"{statement.module}.{alias.name}" for alias in statement.names}
    return {name.split(".")[1] for name in names if name.startswith("bayeslora.")}


def allowed(importer: str, imported: str) -> bool:
    if importer == imported:
        return True
    if importer in LEAVES:
        return imported in ("contracts", "types")
    return imported in LEAVES or rank(imported) < rank(importer)


def test_every_room_exists() -> None:
    parts = {part(path) for path in FILES}
    assert {name for row in ORDER for name in row} | set(LEAVES) == parts


def test_no_module_is_too_long_to_read() -> None:
    lengths = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in FILES}
    assert not {name: length for name, length in lengths.items() if length > (200 if "methods" in name else 400)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    known = {name for row in ORDER for name in row} | set(LEAVES)
    assert part(path) in known, "give the new module a place in ORDER"
    wrong = {name for name in imported_parts(path.read_text()) if name not in known or not allowed(part(path), name)}
    assert not wrong, f"{part(path)} may not import {', '.join(sorted(wrong))}: take it as an argument"


def test_the_reader_sees_what_it_should() -> None:
    source = """
from typing import TYPE_CHECKING
import bayeslora.elbo
from bayeslora import metrics
from bayeslora.adapters.stack import Stack
if TYPE_CHECKING:
    from bayeslora.posterior import Posterior
def f():
    from bayeslora.trainer import ProgramTrainer
"""
    assert imported_parts(source) == {"elbo", "metrics", "adapters", "posterior"}
    assert not allowed("types", "adapters")
    assert not allowed("guides", "priors")
    assert not allowed("metrics", "data")
    assert not allowed("methods", "data")
    assert allowed("prediction", "data")
    assert allowed("methods", "adapters")


def in_fresh_process(code: str) -> str:
    """What code prints in a process of its own, which keeps what it compiles, as an installation does."""
    settings = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=PACKAGE.parent, env=settings, timeout=600
    ).stdout


def test_importing_is_light_and_pulls_in_nothing_heavy() -> None:
    code = f"""
import time, sys
start = time.process_time()
import torch, pyro
theirs = time.process_time()
before = set(sys.modules)
import bayeslora
print((time.process_time() - theirs) / (theirs - start), *sorted((set(sys.modules) - before) & set({HEAVY!r})))
"""
    runs = [in_fresh_process(code).split() for _ in range(2)]  # the first may compile, for the second
    assert [pulled_in for _, *pulled_in in runs] == [[]] * 2
    assert min(float(ratio) for ratio, *_ in runs) < 0.3
