"""Counts of learned numbers, and the rank that a budget of them allows."""

import pytest
import torch

import bayeslora
from bayeslora import rank_for_budget
from bayeslora.methods import MonteCLoRA
from tests.helpers import tiny_bert, tokens

PER_RANK = 2 * (4 * (32 + 32) + 2 * (32 + 48))  # of LoRA on two layers of tiny BERT


def test_summary_counts_adapters_head_and_base() -> None:
    model = tiny_bert()
    posterior = bayeslora.fit(model, tokens(), "lora", rank=3, epochs=1, progress=False)
    summary = posterior.summary()
    base = sum(parameter.numel() for parameter in model.parameters())
    assert summary == {
        "adapters": 3 * PER_RANK,
        "head": 3 * 32 + 3,
        "base": base,
        "share": (3 * PER_RANK + 3 * 32 + 3) / base,
    }


def test_what_stays_fixed_is_not_counted() -> None:
    lora = bayeslora.fit(tiny_bert(), tokens(), "lora", rank=3, epochs=1, progress=False)
    posterior = bayeslora.fit(tiny_bert(), tokens(), post_hoc=True, init=lora, epochs=1, progress=False)
    summary = posterior.summary()
    assert (summary["adapters"], summary["head"]) == (12 * (3 + 4), 0)  # v and α of twelve layers


@pytest.mark.parametrize(
    ("budget", "rank"),
    [(PER_RANK, 1), (2 * PER_RANK - 1, 1), (2 * PER_RANK, 2), (7 * PER_RANK, 7), (8 * PER_RANK - 1, 7), (10**9, 32)],
)
def test_the_largest_rank_within_the_budget(budget: int, rank: int) -> None:
    assert rank_for_budget(tiny_bert(), "lora", budget) == rank


def test_counts_are_the_methods_own() -> None:
    model = tiny_bert()
    # Per layer: A and B, v of the rank's length, and α of K.
    assert rank_for_budget(model, "monteclora", 5 * (PER_RANK + 12) + 12 * 4) == 5
    assert rank_for_budget(model, "monteclora", 5 * (PER_RANK + 12) + 12 * 4 - 1) == 4
    assert rank_for_budget(model, MonteCLoRA(components=9), 5 * (PER_RANK + 12) + 12 * 4) == 4
    assert rank_for_budget(model, "monteclora", 5 * (PER_RANK + 12) + 12 * 4, components=9) == 4
    assert rank_for_budget(model, "houlsby", 4 * (3 * (2 * 32 + 1) + 32)) == 3
    assert rank_for_budget(model, "lora", 6 * 3 * 64, targets="attention") == 3


def test_random_states_are_left_alone() -> None:
    model = tiny_bert()
    state = torch.get_rng_state()
    rank_for_budget(model, "lora", 5 * PER_RANK)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("method", "budget", "message"),
    [
        ("lora", PER_RANK - 1, "budget=831: even at rank 1, 'lora' learns 832 numbers"),
        ("bitfit", 10**9, "'bitfit' has no rank to choose: on these layers it learns 416 numbers"),
    ],
)
def test_what_cannot_be_met_says_so(method: str, budget: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rank_for_budget(tiny_bert(), method, budget)


def test_ranks_that_are_pruned_count_at_their_start() -> None:
    per_rank = PER_RANK + 12  # and λ of twelve layers
    assert rank_for_budget(tiny_bert(), "adalora", 6 * per_rank) == 4
    assert rank_for_budget(tiny_bert(), "adalora", 6 * per_rank - 1) == 3
    assert rank_for_budget(tiny_bert(), "adalora", 10**9) == 21  # starts at 32
