"""The choice of a prior's precision: against cases with a known answer."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bayeslora.precision import CANDIDATES, largest_evidence, least_nll


@pytest.mark.parametrize(("curvature", "square"), [(3.0, 0.7), (40.0, 2.0), (0.5, 0.01)])
def test_one_weight_has_its_evidence_where_the_equation_says(curvature: float, square: float) -> None:
    # τ = ℓ / ((ℓ + τ) f²) is a quadratic equation.
    expected = (math.sqrt(curvature**2 + 4 * curvature / square) - curvature) / 2
    found = largest_evidence([torch.tensor([curvature])], [torch.tensor([square]).double().sqrt()])
    assert found == pytest.approx(expected, rel=1e-5)


def test_evidence_is_about_all_matrices_together() -> None:
    torch.manual_seed(0)
    values, weights = 20 * torch.rand(2, 3, 4).double(), torch.randn(2, 3, 4).double()
    together = largest_evidence([values], [weights])
    assert together == pytest.approx(largest_evidence(list(values), list(weights)), rel=1e-12)
    assert together != pytest.approx(largest_evidence([values[0]], [weights[0]]), rel=1e-3)


def test_evidence_stays_between_the_candidates() -> None:
    ones = torch.ones(3)
    assert largest_evidence([1e9 * ones], [1e-12 * ones]) == CANDIDATES[-1]
    assert largest_evidence([1e9 * ones], [1e12 * ones]) == CANDIDATES[0]
    assert largest_evidence([0 * ones], [ones]) == CANDIDATES[0]


class OneNumber:
    """A program whose logits are draws of N(0, 1/τ), and whose labels have the unnormalised density e^(−(y−f)²/2)."""

    def __init__(self) -> None:
        self.precision = 0.0
        self.seen: list[Tensor] = []
        self.likelihood = self

    def put(self, precision: float) -> None:
        self.precision = precision

    def draw(self, num_draws: int) -> Tensor:
        self.seen.append(torch.randn(num_draws, dtype=torch.float64))
        return self.seen[-1] / math.sqrt(self.precision)

    def linearised(self, draws: Tensor) -> Any:
        return lambda inputs: draws[:, None].expand(-1, len(inputs["x"]))

    def log_prob(self, logits: Tensor, labels: Tensor) -> Tensor:
        return -(logits - labels).square() / 2


@pytest.mark.parametrize(("label", "expected"), [(0.0, CANDIDATES[-1]), (10.0, CANDIDATES[0])])
def test_held_out_labels_choose_how_wide_the_prior_is(label: float, expected: float) -> None:
    program = OneNumber()
    batches = [{"x": torch.zeros(n), "labels": torch.full((n,), label).double()} for n in (5, 2)]
    before = torch.get_rng_state()
    assert least_nll(program, batches, program.put) == expected
    assert len(program.seen) == len(CANDIDATES)
    assert all(torch.equal(draws, program.seen[0]) for draws in program.seen)  # the same noise for every candidate
    torch.set_rng_state(before)
    again = OneNumber()
    least_nll(again, batches, again.put)
    assert torch.equal(again.seen[0], program.seen[0])
