"""Mixtures of posteriors: several fits over one base as one."""

import itertools
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import bayeslora
from bayeslora import ArgumentError, Mixture, Posterior, metrics, mixture
from bayeslora.dials import TuningResult, curve_of
from bayeslora.stacking import mixed, stacking_weights
from tests.helpers import tiny_bert, tokens

DATA = tokens(24)


def fit(method: str = "lora", model: nn.Module | None = None, data: Any = DATA, **settings: Any) -> Posterior:
    """A posterior whose draws differ, without waiting for training."""
    settings = {"rank": 2, "epochs": 0, "progress": False} | settings
    posterior = bayeslora.fit(MODEL if model is None else model, data, method, **settings)
    generator = torch.Generator().manual_seed(settings.get("seed", 0))
    with torch.no_grad():
        for _, parameter in posterior.program.trainable():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return posterior


MODEL = tiny_bert().double()


@pytest.fixture(scope="module")
def pair() -> tuple[Posterior, Posterior]:
    return fit(), fit("monteclora", rank=3, targets="attention", seed=1)


def test_a_mixture_of_one_is_that_posterior(pair: tuple[Posterior, Posterior]) -> None:
    for posterior in pair:
        np.testing.assert_array_equal(mixture([posterior]).predict(DATA, 4).probs, posterior.predict(DATA, 4).probs)
        assert mixture([posterior]).evaluate(DATA, 4) == pytest.approx(posterior.evaluate(DATA, 4), rel=1e-12)


def test_a_mixture_of_identical_posteriors_is_that_posterior(pair: tuple[Posterior, Posterior]) -> None:
    whole = mixture([pair[0]] * 3, [0.2, 0.5, 0.3])
    assert whole.evaluate(DATA) == pytest.approx(pair[0].evaluate(DATA), rel=1e-9, abs=1e-12)
    assert float(whole.predict(DATA).epistemic.max()) < 1e-12


def test_probabilities_are_weighted_sums_of_the_components(pair: tuple[Posterior, Posterior]) -> None:
    whole = mixture(pair, [3, 1])
    assert whole.weights.tolist() == [0.75, 0.25]
    prediction = whole.predict(DATA, 8)
    own = [prediction.draws[:1], prediction.draws[1:]]
    np.testing.assert_allclose(own[0], pair[0].predict(DATA).draws, rtol=1e-12)
    assert len(own[1]) == 4
    np.testing.assert_allclose(prediction.probs, 0.75 * own[0][0] + 0.25 * own[1].mean(0), rtol=1e-12)
    entropies = [-(each * np.log(each)).sum(-1).mean(0) for each in own]
    np.testing.assert_allclose(prediction.aleatoric, 0.75 * entropies[0] + 0.25 * entropies[1], rtol=1e-9)
    drawn = whole.draw(8)
    assert {name.partition("/")[0] for name in drawn} == {"0", "1"}


def test_components_keep_their_temperature_and_share_another(pair: tuple[Posterior, Posterior]) -> None:
    cool = pair[0]._at_temperature(0.5)
    whole = mixture([cool, pair[1]])
    np.testing.assert_allclose(whole.predict(DATA, 2).draws[0], cool.predict(DATA).draws[0], rtol=1e-12)
    calibrated = whole.calibrate(DATA, 4)
    assert isinstance(calibrated, Mixture)
    assert calibrated.evaluate(DATA, 4)["nll"] <= whole.evaluate(DATA, 4)["nll"] + 1e-9
    nested = mixture([calibrated, pair[0]])
    assert len(nested.components) == 3
    expected = cool._at_temperature(0.5 * calibrated.temperature).predict(DATA).draws[0]
    np.testing.assert_allclose(nested.predict(DATA, 3).draws[0], expected, rtol=1e-12)


def test_each_component_keeps_its_way_of_predicting(pair: tuple[Posterior, Posterior]) -> None:
    data = tokens(12)
    laplace = bayeslora.fit(MODEL, data, "laplace", rank=2, epochs=1, progress=False, learning_rate=1e-2)
    whole = mixture([pair[0], laplace])
    prediction = whole.predict(data, 20)
    np.testing.assert_allclose(prediction.draws[0], pair[0].predict(data).draws[0], rtol=1e-12)
    np.testing.assert_allclose(prediction.draws[1:], laplace.predict(data, 10).draws, rtol=1e-9)


def test_a_component_without_weight_is_not_run(pair: tuple[Posterior, Posterior]) -> None:
    assert len(mixture(pair, [1, 0]).predict(DATA, 8).draws) == 1


def test_stacking_weights_are_the_best_of_a_grid() -> None:
    generator = np.random.default_rng(0)
    log_densities = np.log(generator.uniform(0.05, 0.95, (3, 200))) + np.array([[0.0], [0.3], [0.1]])
    weights = stacking_weights(log_densities)
    steps = np.linspace(0, 1, 51)
    grid = [(a, b, 1 - a - b) for a, b in itertools.product(steps, steps) if a + b <= 1 + 1e-9]
    scores = [mixed(log_densities, np.maximum(each, 0)).mean() for each in grid]
    assert mixed(log_densities, weights).mean() >= max(scores) - 1e-9
    np.testing.assert_allclose(weights, grid[int(np.argmax(scores))], atol=0.03)
    better = np.stack([log_densities[0], log_densities[0] - 1])
    assert stacking_weights(better).tolist() == [1, 0]
    impossible = np.concatenate([log_densities, np.full((3, 1), -np.inf)], axis=1)
    np.testing.assert_allclose(stacking_weights(impossible), weights, atol=1e-4)


def test_stacking_by_held_out_rows_says_what_each_component_is_worth(pair: tuple[Posterior, Posterior]) -> None:
    whole = mixture(pair, "stacking", validation=DATA, num_draws=4)
    densities = np.stack([each.predict(DATA, 4).log_density(DATA[1].numpy()) for each in pair])
    np.testing.assert_allclose(whole.weights, stacking_weights(densities), atol=1e-6)
    table = whole.elpd
    np.testing.assert_allclose(table["elpd"], densities.mean(1))
    np.testing.assert_allclose(table["se"], densities.std(1, ddof=1) / 24**0.5)
    apart = densities - mixed(densities, whole.weights)
    np.testing.assert_allclose(table["se_difference"], apart.std(1, ddof=1) / 24**0.5, atol=1e-12)


def test_a_mixture_among_them_counts_as_one(pair: tuple[Posterior, Posterior], tmp_path: Path) -> None:
    inner = mixture([pair[0], pair[1]], [1, 2])
    whole = mixture([inner, pair[0]], "stacking", validation=DATA, num_draws=4)
    table = whole.elpd
    assert table["method"].tolist() == ["2 × lora", "lora"]
    assert table["weight"].sum() == pytest.approx(1)
    np.testing.assert_allclose(whole.weights[:2], table["weight"][0] * np.array([1, 2]) / 3)
    whole.save(tmp_path)
    loaded = bayeslora.load(tmp_path, MODEL)
    assert isinstance(loaded, Mixture)
    assert loaded.elpd.equals(table)


def tuned(posterior: Posterior, digest: str = 16 * "a") -> Posterior:
    other = posterior._at_temperature(posterior.temperature)
    densities = posterior.predict(DATA, 4).log_density(DATA[1].numpy())
    curve = curve_of(np.ones(1), densities[None])
    other.tuning = TuningResult("temperature", "out-of-fold", 1.0, 1.0, curve, densities, np.zeros(24), digest)
    return other


def test_stacking_by_out_of_fold_rows_needs_the_same_data(pair: tuple[Posterior, Posterior]) -> None:
    by_folds = mixture([tuned(each) for each in pair], "stacking")
    by_rows = mixture(pair, "stacking", validation=DATA, num_draws=4)
    np.testing.assert_allclose(by_folds.weights, by_rows.weights, atol=1e-6)
    with pytest.raises(ValueError, match=r"weights='stacking' needs predictions .* pass validation=…"):
        mixture([tuned(pair[0]), pair[1]], "stacking")
    with pytest.raises(ValueError, match="folds of different data"):
        mixture([tuned(pair[0]), tuned(pair[1], 16 * "b")], "stacking")


def test_another_base_and_other_labels_are_refused(pair: tuple[Posterior, Posterior]) -> None:
    other = tiny_bert().double()
    with torch.no_grad():
        other.bert.encoder.layer[0].output.dense.weight.add_(0.1)  # type: ignore[union-attr, operator, index]
    with pytest.raises(ValueError, match="Posteriors 0 and 1 belong to different base models: 1 of"):
        mixture([pair[0], fit(model=other)])
    with pytest.raises(ValueError, match="other labels, classification of num_classes=3 and regression"):
        mixture([pair[0], fit(model=tiny_bert(1).double(), data=(DATA[0], DATA[1].double()))])
    with pytest.raises(ValueError, match=r"classification of num_classes=3 and classification of num_classes=2:"):
        mixture([pair[0], fit(model=tiny_bert(num_labels=2).double(), data=tokens(24, num_labels=2))])


def test_fits_of_any_method_over_one_base_go_together() -> None:
    data = tokens(6)
    names = ["lora", "dora", "bitfit", "full", "houlsby", "adalora", "deep_ensemble", "blob", "lora_dropout"]
    fits = [bayeslora.fit(MODEL, data, name, epochs=0, progress=False) for name in names]
    assert len(mixture(fits).predict(data, 18).draws) == 6 * 1 + 3 + 2 * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "posteriors=[]: give one posterior at least."),
        ((3,), "posteriors=3: give a list, each a Posterior"),
        ((["p"],), "give a list, each a Posterior"),
        (("pair", [1.0]), "weights=[1.0]: give one for each of 2 posteriors"),
        (("pair", [0.0, 0.0]), "and one above 0"),
        (("pair", [1.0, -1.0]), "a finite number of at least 0"),
        (("pair", "best"), "'stacking'"),
    ],
)
def test_what_does_not_fit_is_refused(pair: tuple[Posterior, Posterior], arguments: Any, message: str) -> None:
    given = [pair if each == "pair" else each for each in arguments]
    with pytest.raises(ArgumentError, match=message.replace("[", r"\[").replace(".", r"\.")):
        mixture(*given)


def test_what_is_of_one_fit_is_asked_of_a_component(pair: tuple[Posterior, Posterior]) -> None:
    whole = mixture(pair)
    for ask in (whole.merge, lambda: whole.export_peft("out"), whole.summary, lambda: whole.method):
        with pytest.raises(ValueError, match=r"A mixture has 2 components, .* mixture\.components\[0\]"):
            ask()  # type: ignore[operator]
    assert "components  1 × lora, 1 × monteclora" in repr(whole)


def test_arviz_takes_each_component_as_often_as_its_weight_says(pair: tuple[Posterior, Posterior]) -> None:
    idata = mixture(pair, [1, 3]).to_arviz(DATA, 80)
    says = idata.log_likelihood.attrs
    assert (says["components"], says["weights"], says["num_draws"]) == (2, "[0.25, 0.75]", 80)
    assert says["method"] == ", ".join(dict.fromkeys(each.method.name for each in pair))
    assert mixture(pair).to_arviz().attrs["inference_library_version"] == bayeslora.__version__
    component = idata.posterior["component"].values[0]
    assert len(component) == 80
    assert component.mean() == 0.75
    assert idata.log_likelihood["labels"].shape == (1, 80, 24)
    with pytest.raises(ArgumentError, match="raw=True"):
        mixture(pair).to_arviz(raw=True)


@pytest.mark.parametrize("weights", [None, [0.613, 0.387], [0.999, 0.001]])
def test_log_likelihoods_mixed_over_draws_are_what_evaluate_scores(
    pair: tuple[Posterior, Posterior], weights: list[float] | None
) -> None:
    whole = mixture([pair[0]._at_temperature(0.7), pair[1]], weights)._at_temperature(1.3)
    with warnings.catch_warnings():  # arviz announces its own next version
        warnings.simplefilter("ignore", FutureWarning)
        idata = whole.to_arviz(DATA, 7, seed=2)
    terms = idata.log_likelihood["labels"].to_numpy()[0]
    assert metrics.mixture_nll(terms) == pytest.approx(whole.evaluate(DATA, 7, seed=2)["nll"], rel=1e-12)
    own = [p.predict(DATA, 4, seed=2).log_likelihood(DATA[1].numpy()) for p in (pair[0]._at_temperature(0.7 * 1.3),)]
    shift = terms[idata.posterior["component"].to_numpy()[0] == 0] - own[0]
    np.testing.assert_allclose(shift - shift[0], 0, atol=1e-12)  # which changes no weight of a draw
    assert np.abs(shift).max() < 0.5


def test_decisions_are_a_mixtures_too(pair: tuple[Posterior, Posterior]) -> None:
    whole = mixture(pair).decide(DATA, 8)
    assert whole.predict(DATA, 8).sets(0.8).shape == (24, 3)


# On disk


def assert_same(one: Posterior, other: Posterior) -> None:
    np.testing.assert_array_equal(one.predict(DATA, 8).probs, other.predict(DATA, 8).probs)


def test_a_mixture_comes_back(pair: tuple[Posterior, Posterior], tmp_path: Path) -> None:
    whole = mixture([tuned(pair[0]), pair[1]], "stacking", validation=DATA, num_draws=4).calibrate(DATA, 4)
    whole.tuning = tuned(pair[0]).tuning
    whole.decide(DATA, 8)
    whole.save(tmp_path)
    loaded = bayeslora.load(tmp_path, MODEL)
    assert isinstance(loaded, Mixture)
    assert_same(loaded, whole)
    assert loaded.temperature == whole.temperature
    np.testing.assert_array_equal(loaded.elpd["difference"], whole.elpd["difference"])
    assert repr(loaded) == repr(whole)
    assert repr(loaded.tuning) == repr(whole.tuning)
    assert loaded.components[0].tuning is not None
    np.testing.assert_array_equal(loaded.predict(DATA, 8).sets(0.8), whole.predict(DATA, 8).sets(0.8))
    assert loaded.components[0].network.model is not loaded.components[1].network.model


def test_saving_over_another_leaves_that_one_alone(pair: tuple[Posterior, Posterior], tmp_path: Path) -> None:
    def kinds() -> list[str]:
        return sorted(path.name.partition("-")[0] for path in tmp_path.iterdir())

    pair[0].save(tmp_path)
    mixture(pair).save(tmp_path)
    assert kinds() == ["bayeslora.json", "component", "component", "posterior"]
    mixture([pair[1]] * 2).save(tmp_path)
    assert kinds() == ["bayeslora.json", "component", "posterior"]
    pair[0].save(tmp_path)
    assert kinds() == ["bayeslora.json", "posterior"]
    assert_same(bayeslora.load(tmp_path, MODEL), pair[0])


def test_a_strangers_mixture_is_checked(pair: tuple[Posterior, Posterior], tmp_path: Path) -> None:
    whole = mixture(pair)

    def damaged(change: Any) -> Path:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        whole.save(folder)
        record = json.loads((folder / "bayeslora.json").read_text())
        change(folder, record)
        (folder / "bayeslora.json").write_text(json.dumps(record))
        return folder

    def first(folder: Path, record: dict[str, Any]) -> Path:
        return folder / record["components"][0]["folder"]

    def link(folder: Path, record: dict[str, Any]) -> None:
        moved = first(folder, record).rename(folder / "elsewhere")
        first(folder, record).symlink_to(moved)

    def mix(folder: Path, record: dict[str, Any]) -> None:
        whole.save(first(folder, record))

    changes = [
        (lambda f, r: r["components"][0].update(folder="../other"), "give component-<16 digits>"),
        (lambda f, r: r["components"][0].update(weight=0.9), "the weights do not sum to 1"),
        (lambda f, r: r["components"][0].update(weight=-0.5), "give a number"),
        (lambda f, r: r.update(components=[]), "there are 0"),
        (lambda f, r: r["components"].extend(r["components"] * 600), "may be 1 to 1000"),
        (lambda f, r: r.update(temperature=0), "a positive number"),
        (lambda f, r: r.update(densities=["0"]), "no tensor 'densities/0'"),
        (lambda f, r: r["components"].pop(), "the weights do not sum to 1"),
        (lambda f, r: (first(f, r) / "bayeslora.json").write_text("{}"), "not the one it is named after"),
        (link, "no such folder of its own"),
        (mix, "not the one it is named after"),
    ]
    for change, message in changes:
        with pytest.raises(ValueError, match=message):
            bayeslora.load(damaged(change), MODEL)
