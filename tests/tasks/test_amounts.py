"""Amounts with units, and the words for truth values, as labels."""

import logging

import numpy as np
import pytest

from bayeslora.tasks import Classification
from bayeslora.tasks.amounts import amounts, in_order, real
from bayeslora.tasks.labels import RawLabels

AMOUNTS: list[tuple[list[str], list[float] | None]] = [
    (["20%", "5%"], [20, 5]),
    (["1,5", "-2,25", "3"], [1.5, -2.25, 3]),
    (["1,500", "2,250"], None),
    (["1.500 €", "900 €"], None),
    (["1.500", "12.000"], None),
    (["0.125 kg", "1.250 kg"], [0.125, 1.25]),
    (["\u22125", "\u22123 "], [-5, -3]),
    (["-$5", "-$3"], None),
    (["(5)", "(3)"], None),
    (["5 MW", "3 mW"], None),
    (["5 m", "3 ms"], None),
    (["1 day", "2 Days"], [1, 2]),
    (["€3", "€ 4.5"], [3, 4.5]),
    (["1.2 kg", "500 g"], None),
    (["5 stars", "1 star"], [5, 1]),
    (["★★☆", "★☆☆"], [2, 1]),
    (["3/5", "1/5"], [3, 1]),
    (["3/5", "1/4"], None),
    (["v1.2.3", "v2.0.1"], None),
    (["2024-01-02", "2024-01-03"], None),
    (["a-1", "a-2"], [1, 2]),
    (["+", "-"], None),
    (["good", "bad"], None),
    ([], None),
]


@pytest.mark.parametrize(("texts", "expected"), AMOUNTS)
def test_amounts(texts: list[str], expected: list[float] | None) -> None:
    assert amounts(texts) == expected


def test_order() -> None:
    assert in_order(["10 stars", "1 star", "2 stars"]) == ["1 star", "2 stars", "10 stars"]
    assert in_order(["18-25 years", "9-12 years", "13-17 years"]) == ["9-12 years", "13-17 years", "18-25 years"]
    assert in_order(["1 star", "1 stars"]) is None
    assert in_order(["1-2", "all"]) is None


def test_labels_with_units_are_numbers_if_they_are_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    labels = RawLabels(["1,5 kg", "2 kg"], "weight")
    np.testing.assert_array_equal(real(labels), [1.5, 2.0])
    assert "the labels in 'weight' are read as numbers without what stands beside them, such as '1,5 kg' as 1.5" in (
        caplog.text
    )
    with pytest.raises(ValueError, match=r"row 0: the label in 'weight' is '1 kg', which is not a number\. Write"):
        real(RawLabels(["1 kg", "500 g"], "weight"))
    with pytest.raises(ValueError, match=r"texts such as '1\.500', whose points may part the thousands"):
        real(RawLabels(["1.500", "12.000"], "price"))


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["10%", "5%", "20%"], ("5%", "10%", "20%")),
        (["★★", "★", "★★★"], ("★", "★★", "★★★")),
        (["Y", "n", "y", "N", "Y", "n"], ("Y", "n")),
        (["yes", "y", "no", "no", "yes"], ("no", "yes")),
        (["y", "n", "t", "f"], ("f", "n", "t", "y")),
    ],
)
def test_classes(labels: list[str], names: tuple[str, ...], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    found = Classification.classes(RawLabels(labels), None, None)
    assert found is not None
    assert found.names == names
    assert Classification.encode(RawLabels(labels), found).max() == len(names) - 1
