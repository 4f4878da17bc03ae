"""What a user holds after a fit: predictions, uncertainty, calibration, arviz, merging."""

import warnings

import arviz_base
import arviz_stats
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bayeslora
from bayeslora import Posterior, Prediction, metrics
from bayeslora.diagnostics import groups
from tests.helpers import tiny_bert, tiny_gpt2, tokens

with warnings.catch_warnings():  # arviz announces its own next version
    warnings.simplefilter("ignore", FutureWarning)
    import arviz as az

TEST = tokens(40, seed=3)
GROUPS = {"posterior", "prior", "posterior_predictive", "prior_predictive", "log_likelihood", "observed_data"}


@pytest.fixture(scope="module")
def posterior() -> Posterior:
    return bayeslora.fit(tiny_bert(), tokens(), epochs=12, learning_rate=5e-3, progress=False)


@pytest.fixture(scope="module")
def point() -> Posterior:
    return bayeslora.fit(tiny_bert(), tokens(), "lora", epochs=3, learning_rate=5e-3, progress=False)


def test_prediction_is_the_average_of_draws_and_its_entropy_splits(posterior: Posterior) -> None:
    prediction = posterior.predict(TEST, num_draws=6)
    assert prediction.draws.shape == (6, 40, 3)
    np.testing.assert_allclose(prediction.draws.sum(-1), 1)
    np.testing.assert_allclose(prediction.probs, prediction.draws.mean(0))
    np.testing.assert_allclose(prediction.entropy, prediction.aleatoric + prediction.epistemic, atol=1e-12)
    np.testing.assert_array_equal(prediction.predicted, prediction.probs.argmax(-1))
    assert (prediction.epistemic >= 0).all()
    assert prediction.epistemic.max() > 1e-7
    assert len(prediction) == 40


def test_draws_are_those_of_the_sites(posterior: Posterior) -> None:
    draws = posterior.draw(3, seed=4)
    inputs, _ = TEST
    with torch.no_grad():
        logits = posterior.program.logits({name: value[1] for name, value in draws.items()}, inputs)
    prediction = posterior.predict(TEST, num_draws=3, seed=4)
    np.testing.assert_allclose(prediction.draws[1], metrics.softmax(logits), atol=1e-5)


def test_a_point_estimate_has_one_draw_and_no_epistemic_uncertainty(point: Posterior) -> None:
    prediction = point.predict(TEST, num_draws=32)
    assert len(prediction.draws) == 1
    assert (prediction.epistemic == 0).all()
    scores = point.evaluate(TEST)
    assert all(scores[name] == scores[f"center_{name}"] for name in ("accuracy", "nll", "ece", "ece_floor", "brier"))


def test_to_pandas_has_a_row_per_example() -> None:
    draws = np.array([[[0.9, 0.1], [0.2, 0.8]], [[0.7, 0.3], [0.4, 0.6]]])
    table = Prediction(draws, ("no", "yes")).to_pandas()
    assert list(table.columns) == ["predicted", "p(no)", "p(yes)", "entropy", "aleatoric", "epistemic"]
    assert table["predicted"].tolist() == ["no", "yes"]
    assert table["p(yes)"].tolist() == pytest.approx([0.2, 0.7])
    assert Prediction(draws).to_pandas()["predicted"].tolist() == ["0", "1"]


def test_evaluate_gives_the_metrics_of_the_prediction_and_of_the_centre(posterior: Posterior) -> None:
    scores = posterior.evaluate(TEST, num_draws=6)
    probs = posterior.predict(TEST, num_draws=6).probs
    centre = posterior.predict(TEST, center=True).probs
    for name, value in metrics.classification_scores(probs, TEST[1].numpy()).items():
        assert scores[name] == pytest.approx(value, abs=1e-9)
    for name, value in metrics.classification_scores(centre, TEST[1].numpy()).items():
        assert scores[f"center_{name}"] == pytest.approx(value, abs=1e-9)


def test_evaluation_needs_labels(posterior: Posterior) -> None:
    with pytest.raises(ValueError, match="The data has no labels"):
        posterior.evaluate(TEST[0])
    with pytest.raises(ValueError, match="range from 0 to 9, and the network has 3 classes"):
        posterior.evaluate((TEST[0], torch.arange(40) % 10))


def test_batch_size_does_not_change_predictions(posterior: Posterior) -> None:
    large, small = (posterior.predict(TEST, 4, batch_size=size).draws for size in (64, 7))
    np.testing.assert_allclose(large, small, atol=1e-5)


def test_calibration_lowers_held_out_nll_and_keeps_the_identities(posterior: Posterior) -> None:
    calibrated = posterior.calibrate(TEST)
    assert calibrated.temperature != 1
    assert posterior.temperature == 1
    assert calibrated.evaluate(TEST)["nll"] <= posterior.evaluate(TEST)["nll"] + 1e-9
    prediction = calibrated.predict(TEST)
    np.testing.assert_allclose(prediction.probs, prediction.draws.mean(0))
    np.testing.assert_allclose(prediction.entropy, prediction.aleatoric + prediction.epistemic, atol=1e-12)


def test_averaging_probabilities_is_never_worse_than_the_average_draw(posterior: Posterior) -> None:
    # Jensen's inequality, on any data.
    prediction = posterior.predict(TEST, num_draws=8)
    members = np.mean([metrics.nll(draw, TEST[1]) for draw in prediction.draws])
    assert metrics.nll(prediction.probs, TEST[1]) <= members


@pytest.mark.parametrize("make", [tiny_bert, tiny_gpt2])
def test_merged_model_is_plain_and_predicts_as_the_centre(make: object) -> None:
    fitted = bayeslora.fit(make(), tokens(), epochs=2, learning_rate=5e-3, progress=False)  # type: ignore[operator]
    merged = fitted.merge()
    assert type(merged) is type(make())  # type: ignore[operator]
    assert not any("Adapted" in type(module).__name__ for module in merged.modules())
    with torch.no_grad():
        logits = merged(**TEST[0]).logits
    np.testing.assert_allclose(metrics.softmax(logits), fitted.predict(TEST, center=True).probs, atol=1e-5)


def test_arviz_summary_loo_and_trace(posterior: Posterior) -> None:
    idata = posterior.to_arviz(TEST, num_draws=50)
    assert set(idata.groups()) == GROUPS
    names = [f"bert.encoder.layer.{i}.attention.self.{part}" for i in (0, 1) for part in ("query", "key", "value")]
    assert set(names) <= set(idata.posterior["layer_32x32"].to_numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one chain has no R-hat, and arviz says so
        summary = az.summary(idata)
        assert summary["mean"].notna().all()
        assert np.isfinite(az.loo(idata).elpd_loo)
        az.plot_trace(idata, var_names=["weights_32x32"], show=False)
    assert "delta_norm_32x32[bert.encoder.layer.0.attention.self.query]" in summary.index


def test_arviz_holds_what_it_says(posterior: Posterior) -> None:
    idata = posterior.to_arviz(TEST, num_draws=9, seed=2)
    prediction = posterior.predict(TEST, num_draws=9, seed=2)
    chosen = np.take_along_axis(prediction.draws, TEST[1].numpy()[None, :, None], axis=-1)[..., 0]
    np.testing.assert_allclose(idata.log_likelihood["labels"][0], np.log(chosen), atol=1e-9)
    np.testing.assert_array_equal(idata.observed_data["labels"], TEST[1])
    draws = posterior.draw(9, seed=2)
    stack = posterior.program.stacks["32x32"]
    A = posterior.program.factors_at(draws)["32x32"].A
    delta = 2 * draws["32x32.B"] @ A  # s = alpha / rank = 2
    np.testing.assert_allclose(idata.posterior["delta_norm_32x32"][0], delta.norm(dim=(-2, -1)), rtol=1e-4)
    np.testing.assert_allclose(idata.posterior["weights_32x32"][0], draws["32x32.weights"])
    variance = (draws["32x32.cov_tril"] ** 2).sum((-2, -1)) / stack.rank
    np.testing.assert_allclose(idata.posterior["mean_variance_32x32"][0], variance, rtol=1e-5)


def test_arviz_without_data_is_posterior_and_prior_alone(posterior: Posterior) -> None:
    idata = posterior.to_arviz(num_draws=20)
    assert idata.groups() == ["posterior", "prior"]
    assert posterior.to_arviz(num_draws=20, prior=False).groups() == ["posterior"]
    with_data = posterior.to_arviz(TEST, num_draws=20)
    assert idata.posterior.equals(with_data.posterior)


def test_raw_sites_only_when_asked_for(posterior: Posterior) -> None:
    assert "noise_32x32" not in posterior.to_arviz(TEST, num_draws=2).posterior
    raw = posterior.to_arviz(TEST, num_draws=2, raw=True)
    assert raw.posterior["noise_32x32"].shape == (1, 2, 8, 8, 32)


def test_predictive_labels_follow_the_probabilities(posterior: Posterior) -> None:
    idata = posterior.to_arviz(TEST, num_draws=400, prior=False)
    drawn = idata.posterior_predictive["labels"].to_numpy()[0]
    probs = posterior.predict(TEST, num_draws=400).probs
    share = np.stack([(drawn == label).mean(0) for label in range(3)], axis=-1)
    assert np.abs(share - probs).max() < 4.8 * 0.5 / np.sqrt(400)


def test_the_same_groups_serve_arviz_1(posterior: Posterior, monkeypatch: pytest.MonkeyPatch) -> None:
    original = groups.from_dict
    monkeypatch.setattr(groups, "from_dict", lambda *args: original(*args, library="arviz_base"))
    tree = posterior.to_arviz(TEST, num_draws=50)
    assert isinstance(tree, arviz_base.convert_to_datatree(tree).__class__)
    assert set(tree.children) == GROUPS
    assert tree.attrs["method"] == tree["posterior"].attrs["method"] == "monteclora"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.isfinite(arviz_stats.loo(tree).elpd)
        assert len(arviz_stats.summary(tree, var_names=["delta_norm_32x32"])) == 8


def test_without_a_seed_all_groups_come_from_the_same_draws(posterior: Posterior) -> None:
    torch.manual_seed(8)
    idata = posterior.to_arviz(TEST, num_draws=5, seed=None, raw=True)
    names = {site: "_".join(site.split(".")[::-1]) for site in posterior.draw(1)}
    sites = {site: torch.as_tensor(idata.posterior[name].to_numpy()[0]) for site, name in names.items()}
    with torch.no_grad():
        logits = posterior.program.logits(sites, TEST[0])
    chosen = torch.log_softmax(logits.double(), -1)[:, range(40), TEST[1]]
    np.testing.assert_allclose(idata.log_likelihood["labels"][0], chosen, atol=1e-4)


def test_rows_of_which_the_network_makes_nan_are_said() -> None:
    class Dividing(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * x[:, :1] / x[:, :1]

    torch.manual_seed(0)
    network = Dividing(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    x = torch.randn(6, 4, dtype=torch.float64)
    posterior = bayeslora.fit(network, (x, [0, 1] * 3), "lora", rank=2, epochs=0, progress=False)
    expected = posterior.predict(x).probs
    x[2, 0] = 0
    with pytest.warns(UserWarning, match=r"returns NaN or infinity for 1 row\(s\), the first is row 2: what is"):
        found = posterior.predict(x, batch_size=2).probs
    rest = [0, 1, 3, 4, 5]
    np.testing.assert_allclose(found[rest], expected[rest], atol=1e-12)
