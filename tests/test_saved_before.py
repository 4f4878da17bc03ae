"""Posteriors that an earlier version saved are loaded, and predict what they did then."""

import json
from typing import Any

import numpy as np
import pytest
import torch

import bayeslora
from tests.fixtures.make import CASES, FOLDER, PREDICTIONS, predictions

EXPECTED: dict[str, Any] = json.loads(PREDICTIONS.read_text())

# Their masks come from MKL's generator, and from another one in builds of torch without MKL.
MASKED = ("lora_dropout", "mc_dropout")


def test_every_posterior_is_held_to_what_it_predicted() -> None:
    folders = {path.name for path in FOLDER.iterdir() if path.is_dir()}
    assert folders == set(EXPECTED) == set(CASES)
    records = [json.loads((FOLDER / name / "bayeslora.json").read_text()) for name in folders]
    assert len({record["method"]["name"] for record in records}) == 18
    assert len({record["likelihood"]["name"] for record in records}) == 11


@pytest.mark.parametrize("name", EXPECTED)
def test_a_posterior_saved_before_predicts_the_same(name: str) -> None:
    case = CASES[name]
    posterior = bayeslora.load(FOLDER / name, model=case.network(), **case.own())
    assert posterior.history["step"].tolist() == [1, 2]
    assert (posterior.temperature != 1) == case.calibrated
    actual = predictions(posterior, case)
    # On the machine and the build of torch that saved them they are the same bits. Elsewhere sums are taken in another
    # order; all of it runs in double precision, where that makes a difference of about 1e-15.
    portable = torch.backends.mkl.is_available() or not name.startswith(MASKED)
    for part in ("draws", "centre", "nll") if portable else ("centre",):
        np.testing.assert_allclose(actual[part], EXPECTED[name][part], rtol=1e-9, atol=1e-12, err_msg=part)
