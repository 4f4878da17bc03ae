"""SWAG: moments of the path, and draws with its covariance."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bayeslora
from bayeslora.methods import SWAG, make_method
from bayeslora.methods.swag import moments
from bayeslora.program import Program
from tests.helpers import assert_mean_close, tiny_bert, tokens
from tests.methods.conftest import randomise

Make = Callable[..., Program]

SETTINGS: dict[str, Any] = {"epochs": 2, "learning_rate": 1e-2, "rank": 2, "progress": False}


def walked(program: Program, snapshots: int) -> dict[str, torch.Tensor]:
    """Collect snapshots of a random walk; returns them by parameter, `[snapshot, layer, …]`."""
    path = []
    for seed in range(snapshots):
        randomise(program, seed=seed)
        for site in moments(program.guide):
            site.collect()
        path.append({name: p.detach().clone() for name, p in program.guide.named_parameters()})
    return {name: torch.stack([point[name] for point in path]) for name in path[0]}


def test_swag_of_one_snapshot_is_that_snapshot(make_program: Make) -> None:
    program = make_program("swag")
    path = walked(program, 1)
    assert program.method.num_draws(program.guide) == 1
    randomise(program, seed=9)
    for name, value in program.draw(3).items():
        stack, factor = name.split(".")
        assert torch.equal(value, path[f"{stack}.sites.{factor}.loc"].expand_as(value))


def test_draws_have_the_papers_mean_and_covariance(make_program: Make) -> None:
    program = make_program("swag", double=True, deviations=3)
    path = walked(program, 5)
    A, B = (path[f"32x32.sites.{factor}.loc"][:, 0, :2, :2].flatten(1) for factor in "AB")
    snapshots = torch.cat([A, B], dim=1)
    mean = snapshots.mean(0)
    running = torch.stack([snapshots[: count + 1].mean(0) for count in range(5)])
    deviations = (snapshots - running)[2:]
    diagonal = snapshots.square().mean(0) - mean.square()
    covariance = diagonal.diag() / 2 + deviations.T @ deviations / (2 * (3 - 1))
    torch.manual_seed(0)
    draws = program.draw(20_000)
    values = torch.cat([draws[f"32x32.{factor}"][:, 0, :2, :2].flatten(1) for factor in "AB"], dim=1)
    assert_mean_close(values, mean)
    centred = values - mean
    # Entries of different factors, too: they share the noise of the deviations.
    assert_mean_close(centred[:, :, None] * centred[:, None, :], covariance)
    torch.testing.assert_close(program.centre()["32x32.A"][0, :2, :2].flatten(), mean[:4])


def test_snapshots_are_taken_in_the_last_part_and_survive_the_disk(tmp_path: Path) -> None:
    lora = bayeslora.fit(tiny_bert(), tokens(), "lora", **SETTINGS)
    posterior = bayeslora.fit(tiny_bert(), tokens(), SWAG(snapshots=3), init=lora, **SETTINGS)
    assert {int(site.collected) for site in moments(posterior.guide)} == {3}
    posterior.save(tmp_path)
    inputs, _ = tokens(5)
    expected = posterior.predict(inputs, 4).draws
    assert np.array_equal(bayeslora.load(tmp_path, tiny_bert()).predict(inputs, 4).draws, expected)
    assert np.abs(expected[0] - expected[1]).max() > 0


def test_fields_out_of_range_say_what_fits() -> None:
    with pytest.raises(ValueError, match="snapshots=0: give a whole number"):
        make_method("swag", snapshots=0)
    with pytest.raises(ValueError, match="last_part=2: give a fraction"):
        make_method("swag", last_part=2)
