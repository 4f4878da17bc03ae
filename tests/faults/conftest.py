"""What the tests of faults share."""

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="package", autouse=True)
def imported_objects_stay() -> Iterator[None]:
    """The Trainer collects garbage before every fit: half a second over all that is imported, most of a small fit."""
    gc.freeze()
    yield
    gc.unfreeze()
