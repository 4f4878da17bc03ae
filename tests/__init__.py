"""Tests. What they state holds for other seeds, too: BAYESLORA_TEST_SEED shifts all of them (`make test-machines`)."""

import os

import torch

SHIFT = 1_000_003 * int(os.environ.get("BAYESLORA_TEST_SEED", "0"))


def shifted(seed: int) -> int:
    """Return the seed that stands for a test's own."""
    return (int(seed) + SHIFT) % 2**63 if SHIFT else int(seed)


if SHIFT:
    seed_as_given = torch.manual_seed
    torch.manual_seed = lambda seed: seed_as_given(shifted(seed))
