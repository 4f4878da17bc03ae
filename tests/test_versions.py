"""What `pyproject.toml` says of other people's packages, and what is overridden in them."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from transformers import Trainer

from bayeslora.trainer import ProgramTrainer

ROOT = Path(__file__).parents[1]
OWN = {"_groups", "_loader"}
"""Methods of our Trainer that override none."""


def test_bounds_admit_the_versions_that_were_tested() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    tested = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    tested = {canonicalize_name(name): version for name, version in tested.items()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    given = [*project["dependencies"], *extras["peft"], *extras["dev"], *extras["docs"], *extras["demo"]]
    for each in map(Requirement, given):
        assert tested[canonicalize_name(each.name)] in each.specifier, each


@pytest.mark.parametrize("name", [name for name, value in vars(ProgramTrainer).items() if callable(value)])
def test_the_trainer_has_what_is_overridden(name: str) -> None:
    # A version that calls it by another name would train without it, and say nothing.
    assert hasattr(Trainer, name) or name in OWN
