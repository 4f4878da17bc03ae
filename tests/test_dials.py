"""The dial of a method: set by the NLL of rows that were not trained on."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import bayeslora
from bayeslora import METHODS, Mixture, Posterior
from bayeslora.contracts import fits
from bayeslora.dials import curve_of, wanted, with_default
from bayeslora.methods import make_method
from bayeslora.methods.fields import declarations

DIALS = {name: cls.dial for name, cls in METHODS.items() if cls.dial is not None}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0.5).long()
NEW = torch.randn(40, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def fit(method: str, value: Any = "auto", **settings: Any) -> Posterior:
    settings = {"rank": 2, "epochs": 1, "batch_size": 8, "learning_rate": 3e-2, "progress": False} | settings
    return bayeslora.fit(network(), (X, Y), method, **{DIALS[method].field: value}, **settings)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", DIALS)
def test_a_dial_is_a_field_with_values_to_try(name: str) -> None:
    dial, cls = DIALS[name], METHODS[name]
    assert dial is not None
    declared = declarations(cls)[dial.field]
    assert fits("auto", declared)
    assert len(dial.grid) > 1
    assert list(dial.grid) == sorted(dial.grid)
    for value in dial.grid:
        assert fits(value, declared)
        assert getattr(make_method(name, **{dial.field: value}), dial.field) == value
    auto = make_method(name, **{dial.field: "auto"})
    assert wanted(auto) is dial
    assert wanted(make_method(name)) is None
    assert auto.record()[dial.field] == "auto"
    assert dial.in_training or wanted(with_default(auto)) is None


@pytest.mark.parametrize("name", [name for name, dial in DIALS.items() if dial and dial.buffer])
def test_a_dial_that_acts_after_training_turns_the_draws(name: str) -> None:
    dial = DIALS[name]
    assert dial is not None
    posterior = fit(name, epochs=1)
    apart = []
    for value in (dial.grid[0], dial.grid[-1]):
        dial.put(posterior.guide, value)
        assert dial.value(posterior.guide) == pytest.approx(value, rel=1e-6)
        apart.append(float(posterior.predict(NEW, 16).draws.std(0).mean()))
    loud = apart[1] > apart[0]
    assert loud == (name != "laplace")  # whose dial is a precision


def test_after_training_the_best_of_the_grid_is_set_by_a_held_out_tenth() -> None:
    posterior = fit("tfb")
    assert posterior.network.stacks.num_examples == 54
    tuning = posterior.tuning
    assert tuning is not None
    assert (tuning.dial, tuning.rows) == ("sigma", "held-out")
    curve = tuning.to_pandas()
    assert tuning.chosen == curve["value"][curve["nll"].idxmin()]
    assert METHODS["tfb"].dial.value(posterior.guide) == pytest.approx(tuning.chosen)  # type: ignore[union-attr]
    assert tuple(curve["value"]) == METHODS["tfb"].dial.grid  # type: ignore[union-attr]
    given = fit("tfb", validation=(NEW, (NEW[:, 0] > 0).long()))
    assert given.network.stacks.num_examples == 60
    assert given.tuning is not None


def test_in_training_each_value_takes_a_fit_and_the_best_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METHODS["mc_dropout"], "dial", METHODS["mc_dropout"].dial.__class__("p", (0.1, 0.5)))  # type: ignore[union-attr]
    posterior = fit("mc_dropout")
    assert posterior.tuning is not None
    assert posterior.tuning.chosen == posterior.method.p in (0.1, 0.5)  # type: ignore[attr-defined]
    assert posterior.tuning.to_pandas()["value"].tolist() == [0.1, 0.5]


@pytest.mark.slow
def test_with_folds_the_best_members_are_kept_and_all_rows_judge() -> None:
    posterior = fit("tfb", folds=3)
    assert isinstance(posterior, Mixture)
    tuning, dial = posterior.tuning, METHODS["tfb"].dial
    assert tuning is not None
    assert dial is not None
    assert tuning.log_density is not None
    assert (tuning.dial, len(tuning.log_density)) == ("sigma", 60)
    assert all(dial.value(part.guide) == pytest.approx(tuning.chosen) for part in posterior.components)
    again = fit("laplace", folds=2, refit=True)
    assert again.tuning is not None
    assert METHODS["laplace"].dial.value(again.guide) == pytest.approx(again.tuning.chosen)  # type: ignore[union-attr]
    assert again.network.stacks.num_examples == 60


@pytest.mark.slow
def test_monteclora_finds_its_own_in_training_and_the_refit_has_it() -> None:
    held_out = fit("monteclora")
    assert held_out.tuning is not None
    assert held_out.tuning.chosen == METHODS["monteclora"].dial.value(held_out.guide)  # type: ignore[union-attr]
    assert len(held_out.tuning.to_pandas()) in (5, 6)
    members = fit("monteclora", folds=2, refit=False)
    assert isinstance(members, Mixture)
    ratios = [METHODS["monteclora"].dial.value(part.guide) for part in members.components]  # type: ignore[union-attr]
    assert members.tuning is not None
    assert members.tuning.chosen == pytest.approx(np.exp(np.log(ratios).mean()))
    refit = fit("monteclora", folds=2)
    assert refit.method.noise_ratio == refit.tuning.chosen  # type: ignore[attr-defined, union-attr]


def test_too_few_rows_leave_the_default() -> None:
    posterior = bayeslora.fit(network(), (X[:30], Y[:30]), "lora_dropout", p="auto", epochs=0, rank=2, progress=False)
    assert posterior.method.p == METHODS["lora_dropout"].p  # type: ignore[attr-defined]
    assert posterior.tuning is None


def test_a_curve_has_the_standard_error_of_the_difference() -> None:
    log_densities = np.log(np.random.default_rng(0).uniform(0.1, 0.9, (3, 50)))
    curve = curve_of(np.arange(3.0), log_densities)
    best = log_densities.mean(1).argmax()
    assert curve["nll"].argmin() == best
    np.testing.assert_allclose(curve["se"], log_densities.std(1, ddof=1) / 50**0.5)
    apart = log_densities[best] - log_densities
    np.testing.assert_allclose(curve["difference"], apart.mean(1))
    np.testing.assert_allclose(curve["se_difference"], apart.std(1, ddof=1) / 50**0.5, atol=1e-15)
