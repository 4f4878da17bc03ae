"""The LoRA Dropout paper's bounds: values by hand, limits, monotonicity, and the event they are about."""

import math

import numpy as np
import pytest
import torch

from bayeslora import theory

SETTING = {"regularization": 0.5, "lipschitz": 3.0, "num_examples": 100, "curvature": 0.25}


def test_values_by_hand() -> None:
    # p = 1/2: 2p − p² = 3/4, κ = 1/4 + 2 · 1/2 · 3/4 = 1; β = 2 · 9 / 100.
    assert theory.hypothesis_stability(0.5, **SETTING) == pytest.approx(0.18)
    # √((4 + 24 · 2 · 9 / 1) / (2 · 100 · 1/10)) = √21.8
    bound = theory.generalization_bound(0.4, 0.5, loss_bound=2.0, delta=0.1, **SETTING)
    assert bound == pytest.approx(0.4 + math.sqrt(21.8))


def test_both_bounds_decrease_in_the_dropout_rate() -> None:
    rates = np.linspace(0, 1, 21)
    stability = [theory.hypothesis_stability(p, **SETTING) for p in rates]
    bound = [theory.generalization_bound(0.4, p, loss_bound=2.0, **SETTING) for p in rates]
    assert (np.diff(stability) < 0).all()
    assert (np.diff(bound) < 0).all()


def test_without_dropout_or_regulariser_only_the_curvature_is_left() -> None:
    expected = 2 * 9 / (0.25 * 100)
    assert theory.hypothesis_stability(0.0, **SETTING) == pytest.approx(expected)
    unregularised = SETTING | {"regularization": 0.0}
    for p in (0.0, 0.3, 1.0):
        assert theory.hypothesis_stability(p, **unregularised) == pytest.approx(expected)


def test_without_any_curvature_there_is_no_bound() -> None:
    flat = SETTING | {"curvature": 0.0}
    assert theory.hypothesis_stability(0.0, **flat) == math.inf
    assert theory.generalization_bound(0.4, 0.0, loss_bound=2.0, **flat) == math.inf
    assert theory.hypothesis_stability(0.5, **flat) == pytest.approx(2 * 9 / (0.75 * 100))


def test_the_bound_tightens_with_the_data() -> None:
    few, many = (
        theory.generalization_bound(0.4, 0.5, loss_bound=2.0, **SETTING | {"num_examples": n}) for n in (100, 10_000)
    )
    assert many - 0.4 == pytest.approx((few - 0.4) / 10)


def test_an_entry_of_the_update_is_dropped_at_the_stated_rate() -> None:
    p, size = 0.3, 400
    kept_A, kept_B = (torch.rand(size) >= p for _ in range(2))
    dropped = ~(kept_B[:, None] & kept_A)
    # The share of dropped entries, 1 − āb̄, varies with the two means of `size` masks.
    error = (1 - p) * math.sqrt(2 * p * (1 - p) / size)
    assert abs(dropped.double().mean().item() - theory.drop_rate(p)) < 4.3 * error


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("p", 1.1),
        ("p", -0.1),
        ("regularization", -1.0),
        ("lipschitz", math.nan),
        ("loss_bound", -1.0),
        ("num_examples", 0),
        ("curvature", -0.1),
        ("delta", 0.0),
        ("delta", 1.5),
    ],
)
def test_arguments_out_of_range(argument: str, value: float) -> None:
    arguments = {"empirical_risk": 0.4, "p": 0.5, "loss_bound": 2.0, **SETTING} | {argument: value}
    with pytest.raises(ValueError, match=f"{argument}={value!r}: give a"):
        theory.generalization_bound(**arguments)
