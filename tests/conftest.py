"""Shapes and types are checked on every call while the tests run; networks are small and made on the spot."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import install_import_hook

import tests.typecheck  # noqa: F401 (the hook looks it up by name)

install_import_hook("bayeslora", "tests.typecheck.check")

from collections.abc import Iterator

import pyro
import pytest
import torch
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """Every test starts from the same random state, and leaves Pyro's global parameter store empty."""
    torch.manual_seed(0)
    yield
    assert not dict(pyro.get_param_store()), "Pyro's global parameter store is not empty"
