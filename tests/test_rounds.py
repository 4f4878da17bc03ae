"""As many draws as each example needs."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import bayeslora
from bayeslora import guides
from bayeslora.rounds import PAIRED, ROUNDS, TOLERANCE
from bayeslora.tasks.classification import Prediction
from bayeslora.tasks.multilabel import MultiLabelPrediction
from bayeslora.tasks.regression import RegressionPrediction
from tests.helpers import tiny_bert, tokens
from tests.tasks.cases import model as small


def spread_out(made: bayeslora.Posterior) -> None:
    """Give every factor a mean and a spread."""
    torch.manual_seed(1)
    with torch.no_grad():
        spreads = {id(parameter) for parameter in guides.spreads(made.guide)}
        for parameter in made.guide.parameters():
            parameter.copy_(
                torch.full_like(parameter, 0.2) if id(parameter) in spreads else 0.5 * torch.randn_like(parameter)
            )


@pytest.fixture(scope="module")
def posterior() -> bayeslora.Posterior:
    """Draws that differ a little, so that some examples are settled soon."""
    made = bayeslora.fit(tiny_bert(), tokens(12), "blob", progress=False, epochs=0, rank=2)
    spread_out(made)
    with torch.no_grad():
        weight: Any = made.network.model.classifier.weight
        for _ in range(8):  # until some need more draws than others
            weight.mul_(2)
            if len(set(made.predict(tokens(40, seed=2)[0], "auto", antithetic=False, seed=3).used)) > 1:  # type: ignore[arg-type]
                return made
    raise AssertionError("no scale of the logits leaves some examples settled and others not")


def test_every_example_has_the_average_of_its_own_draws(posterior: bayeslora.Posterior) -> None:
    inputs, labels = tokens(40, seed=2)
    found: Any = posterior.predict(inputs, "auto", antithetic=False, seed=3)
    assert set(found.used) <= set(ROUNDS)
    assert len(set(found.used)) > 1
    for count in ROUNDS:
        rows = found.used == count
        draws = posterior.predict(inputs, 32, seed=3).draws[:count]
        whole = Prediction(draws)
        for name in ("probs", "entropy", "epistemic", "epistemic_corrected"):
            np.testing.assert_allclose(getattr(found, name)[rows], getattr(whole, name)[rows], rtol=1e-4, atol=1e-6)
        settled = whole.settled(TOLERANCE)
        assert settled is not None
        assert settled[rows].all() or count == ROUNDS[-1]
        assert not settled[found.used > count].any()
    scores = posterior.evaluate((inputs, labels), "auto", antithetic=False, seed=3)
    assert scores["nll"] == pytest.approx(found.scores(labels.numpy())["nll"])


def test_pairs_are_judged_as_pairs(posterior: bayeslora.Posterior) -> None:
    inputs, _ = tokens(40, seed=2)
    found: Any = posterior.predict(inputs, "auto", seed=3)  # pairs, because there are Gaussian sites
    assert found.made["antithetic"]
    whole = posterior.predict(inputs, 32, antithetic=True, seed=3).draws
    left = np.arange(40)
    for count in PAIRED:
        settled: Any = Prediction(whole[:count, left]).settled(TOLERANCE, pairs=True)
        assert (found.used[left[settled]] == count).all()
        left = left[~settled]
    shown = f"{found.used.min()} to {found.used.max()} a row, {found.used.mean():.1f} on average"
    assert shown in " ".join(repr(found).split())


def test_draws_without_mirror_images_are_independent() -> None:
    masks = bayeslora.fit(tiny_bert(), tokens(12), "lora_dropout", progress=False, epochs=0, rank=2)
    found: Any = masks.predict(tokens(5)[0], "auto")
    assert "antithetic" not in found.made
    assert set(found.used) <= set(ROUNDS)


def test_draws_do_not_depend_on_the_batch_size(posterior: bayeslora.Posterior) -> None:
    inputs, _ = tokens(40, seed=2)
    found, other = (posterior.predict(inputs, "auto", batch_size=size) for size in (64, 7))
    np.testing.assert_array_equal(found.used, other.used)
    np.testing.assert_allclose(found.draws, other.draws, atol=1e-5)


def test_only_the_unsettled_run_again(posterior: bayeslora.Posterior) -> None:
    inputs, _ = tokens(40, seed=2)
    seen: list[int] = []
    hook = posterior.network.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    found = posterior.predict(inputs, "auto", seed=3)
    hook.remove()
    assert found.used is not None
    assert sum(seen) == found.used.sum()


def test_decisions_promise_nothing_for_another_number_of_draws(posterior: bayeslora.Posterior) -> None:
    assert posterior.predict(tokens(3)[0], "auto").made["num_draws"] == "auto"


def test_a_point_has_one_draw() -> None:
    found = bayeslora.fit(tiny_bert(), tokens(12), "lora", progress=False, epochs=0, rank=2).predict(
        tokens(3)[0], "auto"
    )
    assert found.used is not None
    assert found.used.tolist() == [1, 1, 1]


def test_kinds_that_do_not_say_are_refused() -> None:
    inputs, _ = tokens(12)
    data = inputs, torch.zeros_like(inputs["input_ids"])
    made = bayeslora.fit(small("Bert", "ForTokenClassification")(), data, "blob", progress=False, epochs=0, rank=2)
    seen: list[int] = []
    made.network.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    with pytest.raises(ValueError, match="give a number of draws"):
        made.predict(inputs, "auto", batch_size=5)
    assert 5 not in seen  # one example, and what is measured on two, but not a batch


def test_numbers_have_the_average_of_their_own_draws() -> None:
    data = tokens(12)[0], torch.randn(12)
    made = bayeslora.fit(tiny_bert(num_labels=1).double(), data, "blob", progress=False, epochs=0, rank=2)
    spread_out(made)
    inputs, _ = tokens(40, seed=2)
    whole: Any = made.predict(inputs, 32, seed=3)
    likelihood: Any = made.program.likelihood
    for times in np.geomspace(1, 30, 12):  # until some need more draws than others
        likelihood.log_scale.data.fill_(float(np.log(times * np.median(whole.draws.std(0)))))
        found: Any = made.predict(inputs, "auto", antithetic=False, seed=3)
        if len(set(found.used)) > 1:
            break
    else:
        raise AssertionError("no scale of the noise leaves some examples settled and others not")
    for count in ROUNDS:
        np.testing.assert_allclose(found.mean[found.used == count], whole.draws[:count, found.used == count].mean(0))


def test_a_number_is_settled_where_its_distribution_function_is() -> None:
    """By hand: the means of two draws are ±δ, so that the median is 0, where the draws have Φ(±δ / σ)."""
    shifts = np.array([0.02, 0.1])
    draws = np.stack([-shifts, shifts])
    for df, law in ((math.inf, stats.norm()), (4.0, stats.t(4))):
        error = (law.cdf(shifts) - law.cdf(-shifts)) / 2  # (a − b) / √2 is the deviation of two, over √2
        for tolerance in (*(error - 1e-9), *(error + 1e-9)):
            found = RegressionPrediction(3 * draws, 3.0, df).settled(tolerance)
            assert found is not None
            assert found.tolist() == (error <= tolerance).tolist()
    one = RegressionPrediction(draws[:1], 1.0)
    assert one.settled(0.02) is None


def test_a_mixture_is_refused(posterior: bayeslora.Posterior) -> None:
    with pytest.raises(ValueError, match="give a mixture a number of draws"):
        bayeslora.mixture([posterior, posterior]).predict(tokens(3)[0], "auto")


def test_what_is_settled() -> None:
    sure, torn = np.array([0.9, 0.1]), np.array([0.6, 0.4])
    draws = np.stack([[sure, torn, torn], [sure, torn[::-1], torn]])
    assert Prediction(draws).settled(0.02).tolist() == [True, False, True]  # type: ignore[union-attr]
    assert MultiLabelPrediction(draws).settled(0.02).tolist() == [True, False, True]  # type: ignore[union-attr]
    # Two of a pair are one number where what is predicted is even in the noise, and cancel where it is odd.
    even, odd = np.array([[0.55, 0.55, 0.65, 0.65]]), np.array([[0.5, 0.7, 0.5, 0.7]])
    both = np.concatenate([even, odd]).T[..., None] * [1, -1] + [0, 1]
    assert Prediction(both).settled(0.03).tolist() == [True, False]  # type: ignore[union-attr]
    assert Prediction(both).settled(0.03, pairs=True).tolist() == [False, True]  # type: ignore[union-attr]
    near = np.array([[[0.52, 0.48]], [[0.49, 0.51]]])
    assert not Prediction(near).settled(0.02).any()  # type: ignore[union-attr]
