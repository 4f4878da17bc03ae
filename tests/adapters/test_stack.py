"""Names of sites: built by their stack, and taken apart again."""

import torch

from bayeslora.adapters import Stack, split_site


def make(name: str) -> Stack:
    return Stack(name, ("layer",), d_in=6, d_out=5, rank=3, scaling=(2.0,), num_layers=1, num_examples=10)


def test_a_site_is_taken_apart_as_it_was_built() -> None:
    for stack in ("6x5", "6x5r3", "head_6x5"):
        for name in ("A", "cov_tril", "of.ones.own"):
            assert split_site(make(stack).site(name)) == (stack, name)
    assert make("6x5").site("A") == "6x5.A"


def test_a_stack_finds_its_own_sites() -> None:
    sites = {site: torch.tensor(float(i)) for i, site in enumerate(("6x5.A", "6x5r3.A", "6x5.B", "head_6x5.A"))}
    assert make("6x5").own(sites) == {"A": sites["6x5.A"], "B": sites["6x5.B"]}
