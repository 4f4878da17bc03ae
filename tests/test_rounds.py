"""As many draws as each example needs."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import bayeslora
from bayeslora import guides
from bayeslora.rounds import TOLERANCE, ends
from bayeslora.tasks.classification import Prediction
from bayeslora.tasks.multilabel import MultiLabelPrediction
from bayeslora.tasks.question_answering import AnswerPrediction, SpanPrediction
from bayeslora.tasks.questions import Questions
from bayeslora.tasks.regression import RegressionPrediction
from bayeslora.tasks.settling import Component, standard_error
from bayeslora.tasks.token_classification import TokenPrediction
from tests.helpers import tiny_bert, tokens
from tests.tasks.cases import model as small
from tests.test_data import tiny_tokenizer
from tests.test_tables import arc, squad

ROUNDS, PAIRED = ends(), ends(pairs=True)


def spread_out(made: bayeslora.Posterior) -> None:
    """Give every factor a mean and a spread."""
    torch.manual_seed(1)
    with torch.no_grad():
        spreads = {id(parameter) for parameter in guides.spreads(made.guide)}
        for parameter in made.guide.parameters():
            parameter.copy_(
                torch.full_like(parameter, 0.2) if id(parameter) in spreads else 0.5 * torch.randn_like(parameter)
            )


def loud(network: Any) -> Any:
    """Make predictions clear enough that noise changes them."""
    head = network.qa_outputs if hasattr(network, "qa_outputs") else network.classifier
    head.weight.data.mul_(20)
    return network.double()


def quieten(made: list[bayeslora.Posterior], predict: Callable[[], Any]) -> Any:
    """Turn factors down from where they are loud until some examples are settled sooner than others."""
    for _ in range(120):
        found = predict()
        if len(set(found.used)) > 1:
            return found
        with torch.no_grad():
            for parameter in (parameter for each in made for parameter in each.guide.parameters()):
                parameter.mul_(0.95)
    raise AssertionError("no noise leaves some examples settled and others not")


@pytest.fixture(scope="module")
def posterior() -> bayeslora.Posterior:
    """Draws that differ a little, so that some examples are settled soon."""
    made = bayeslora.fit(loud(tiny_bert()), tokens(12), "blob", progress=False, epochs=0, rank=2)
    in_rounds(made, tokens(40, seed=2)[0], antithetic=False)
    return made


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
    made = bayeslora.fit(small("GPT2", "LMHeadModel")(), inputs, "blob", progress=False, epochs=0, rank=2)
    seen: list[int] = []
    made.network.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    with pytest.raises(ValueError, match="give a number of draws"):
        made.predict(inputs, "auto", batch_size=5)
    assert 5 not in seen  # one example, and what is measured on two, but not a batch


def in_rounds(made: bayeslora.Posterior, data: Any, **settings: Any) -> Any:
    """Predict with factors so loud that some examples are settled sooner than others."""
    spread_out(made)
    return quieten([made], lambda: made.predict(data, "auto", seed=3, **settings))


def test_tokens_are_settled_by_example() -> None:
    inputs, _ = tokens(12)
    inputs["attention_mask"][::3, 4:] = 0  # rows of several lengths
    data = inputs, torch.zeros_like(inputs["input_ids"])
    network = loud(small("Bert", "ForTokenClassification")())
    made = bayeslora.fit(network, data, "blob", progress=False, epochs=0, rank=2)
    found = in_rounds(made, inputs, batch_size=5)
    whole: Any = made.predict(inputs, 32, antithetic=True, seed=3)
    np.testing.assert_array_equal(found.rows.example, whole.rows.example)
    for count in PAIRED:
        rows = found.used == count
        first = TokenPrediction(whole.draws[:count], whole.rows)
        np.testing.assert_allclose(found.probs[rows], first.probs[rows], atol=1e-6)
        settled: Any = first.settled(TOLERANCE, pairs=True)
        each = whole.rows.by_example(1.0 - settled[None])[0] == 0  # all tokens
        assert each[whole.rows.example][rows].all() or count == PAIRED[-1]
        assert not each[whole.rows.example][found.used > count].any()


def test_spans_have_the_average_of_their_own_draws() -> None:
    inputs, _ = tokens(12)
    data = inputs, torch.zeros(12, 2, dtype=torch.long)
    made = bayeslora.fit(loud(small("Bert", "ForQuestionAnswering")()), data, "blob", progress=False, epochs=0, rank=2)
    found = in_rounds(made, inputs)
    whole = made.predict(inputs, 32, antithetic=True, seed=3).draws
    for count in PAIRED:
        rows = found.used == count
        settled: Any = SpanPrediction(whole[:count]).settled(TOLERANCE, pairs=True)
        assert settled[rows].all() or count == PAIRED[-1]
        assert not settled[found.used > count].any()
        np.testing.assert_allclose(found.probs[rows], whole[:count, rows].mean(0), atol=1e-6)


def test_a_span_is_settled_with_its_ends_and_its_rivals() -> None:
    """By hand: two draws have the last token at 1 with ½ ± δ, and at 2 otherwise; the first token is mostly 0."""
    draws = np.zeros((2, 3, 3, 2))
    draws[:, :, 0, 0], draws[:, :, 1, 0] = 0.9, 0.1
    for row, (one, other) in enumerate([(0.7, 0.7), (0.71, 0.69), (0.6, 0.41)]):
        draws[0, row, 1:, 1], draws[1, row, 1:, 1] = [one, 1 - one], [other, 1 - other]
    found = SpanPrediction(draws).settled(0.02)
    assert found is not None
    assert found.tolist() == [True, True, False]
    assert SpanPrediction(draws).settled(0.2).tolist() == [True, True, False]  # type: ignore[union-attr]


def test_windows_of_a_question_are_settled_together() -> None:
    """By hand: either window's best span is settled, but not which of them answers."""
    offsets = [np.array([[-1, -1], [0, 4]]), np.array([[-1, -1], [5, 8]]), np.array([[-1, -1], [0, 4]])]
    questions = Questions(["good bad", "good bad"], None, np.array([0, 0, 1]), offsets)
    draws = np.zeros((2, 3, 2, 2))
    draws[0, :, 1], draws[1, :, 1] = np.array([[0.81, 0.8, 0.8]] * 2).T, np.array([[0.8, 0.81, 0.81]] * 2).T
    draws[:, :, 0] = 1 - draws[:, :, 1]
    assert SpanPrediction(draws).settled(0.02).all()  # type: ignore[union-attr]
    found = AnswerPrediction(draws, questions=questions)
    assert found.settled(0.02).tolist() == [False, False, True]  # type: ignore[union-attr]
    same = Questions(["good bad", "good bad"], None, np.array([0, 0, 1]), [offsets[0], offsets[0], offsets[0]])
    assert AnswerPrediction(draws, questions=same).settled(0.02).all()  # type: ignore[union-attr]
    part = questions.take(np.array([False, False, True]))
    assert (part.contexts, part.question.tolist(), part.text(0, 1, 1)) == (["good bad"], [0], "good")


def test_what_runs_again_may_be_narrower() -> None:
    """Questions with fewer choices than others have them, and windows are cut from questions that ran before."""
    table = arc()
    choices = table["choices"][:]
    choices[1]["text"] = ["bad"] * 3  # which are alike, so that each has a third in every draw
    table = arc(choices=choices)
    settings: dict[str, Any] = {"tokenizer": tiny_tokenizer(), "progress": False, "epochs": 0, "rank": 2}
    made = bayeslora.fit(loud(small("Bert", "ForMultipleChoice")()), table, "blob", **settings)
    found = in_rounds(made, table)
    assert found.used[1] < max(found.used)  # that with three choices
    whole = made.predict(table, 32, antithetic=True, seed=3).draws
    for row, count in enumerate(found.used):
        np.testing.assert_allclose(found.probs[row], whole[:count, row].mean(0), atol=1e-6)
    made = bayeslora.fit(small("Bert", "ForQuestionAnswering")(), squad(), "blob", **settings)
    answers: Any = made.predict(squad(), "auto")
    assert len(answers.to_pandas()) == len(answers.of_table(answers.used)) == 2
    assert len(answers.used) == 3


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


@pytest.fixture
def components() -> list[bayeslora.Posterior]:
    """Two with draws of their own, and a point."""
    made = []
    for shift, method in ((0.0, "blob"), (0.03, "blob"), (0.0, "lora")):
        made.append(bayeslora.fit(loud(tiny_bert()), tokens(12), method, progress=False, epochs=0, rank=2))
        spread_out(made[-1])
        with torch.no_grad():
            for parameter in made[-1].guide.parameters():
                parameter.add_(shift)
    return made


@pytest.mark.parametrize("weights", [[0.8, 0.2, 0], [0.5, 0.2, 0.3]])
def test_draws_of_a_mixture_are_its_components(components: list[bayeslora.Posterior], weights: list[float]) -> None:
    """An example that used n draws of each component has the mixture of these, by the components' weights."""
    inputs, labels = tokens(40, seed=2)
    mixture = bayeslora.mixture(components, weights=weights)
    found = quieten(components, lambda: mixture.predict(inputs, "auto", seed=3))
    sizes = ends(np.count_nonzero(weights), pairs=weights[2] == 0)
    whole: Any = mixture.predict(inputs, sizes[-1] * np.count_nonzero(weights), antithetic=weights[2] == 0, seed=3)
    draws = np.split(whole.draws, [sizes[-1], 2 * sizes[-1]])
    points = int(weights[2] > 0)
    for count in sizes:
        rows = found.used == 2 * count + points
        own = [part[:count, rows] if len(part) > 1 else part[:, rows] for part in draws if len(part)]
        means = np.stack([part.mean(0) for part in own])
        np.testing.assert_allclose(found.probs[rows], np.tensordot(weights[: len(own)], means, 1), atol=1e-6)
    assert found.made["num_draws"] == "auto"
    scores = mixture.evaluate((inputs, labels), "auto", seed=3)
    assert scores["nll"] == pytest.approx(found.scores(labels.numpy())["nll"])
    assert abs(scores["nll"] - mixture.evaluate((inputs, labels), 32, seed=3)["nll"]) < 0.05


def test_points_of_a_mixture_run_once(components: list[bayeslora.Posterior]) -> None:
    inputs, _ = tokens(6)
    found: Any = bayeslora.mixture([components[2]] * 3).predict(inputs, "auto")
    assert found.used.tolist() == [3] * 6


def test_draws_of_components_vary_around_the_mean_of_each() -> None:
    """By hand: components differ, but each of them is sure; and of a finite one, all draws are there."""
    draws = np.array([0.9, 0.9, 0.6, 0.6])[:, None, None] * [[1, -1]] + [0, 1]
    apart = Prediction(draws)
    assert not apart.settled(0.02).any()  # type: ignore[union-attr]
    assert apart.settled(0.02, components=[Component(2), Component(2)]).all()  # type: ignore[union-attr]
    assert apart.settled(0.02, components=[Component(4, sampled=False)]).all()  # type: ignore[union-attr]
    values, weights = np.array([1.0, 3.0, 10.0, 14.0])[:, None], np.array([0.35, 0.35, 0.15, 0.15])
    by_hand = math.sqrt(0.7**2 * 2 / 2 + 0.3**2 * 8 / 2) * stats.t.ppf(0.95, 2) / stats.norm.ppf(0.95)
    found = standard_error(values, components=[Component(2), Component(2)], weights=weights)
    assert found == pytest.approx(by_hand)


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
