"""Estimators of scikit-learn: `Classifier` and `Regressor`."""

import copy
import inspect
import os
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, is_classifier
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_sample_weight,
    check_array,
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
    validate_data,
)
from torch import nn

from bayeslora.contracts import Fields, check_arguments, checked, refuse_unknown
from bayeslora.data import weighing
from bayeslora.fit import fit
from bayeslora.foreign import naming
from bayeslora.isolation import seeded
from bayeslora.methods import METHODS, Method, fields_for_fit, make_method
from bayeslora.outcomes import Outcomes, check_kind
from bayeslora.posterior import Posterior
from bayeslora.surroundings import outside
from bayeslora.texts import rows_of, text_table

NUMBERS = "finite numbers, [example, feature], in the columns of the fit, or texts"

WIDTH = 64
"""Features of the hidden layer of the default network."""


class _Estimator(BaseEstimator):
    """What both estimators share.

    Args:
        model: What is fine-tuned: the path or hub name of a model; a module, which is copied; or a function that makes
            one, called with those of `num_features` and `num_outputs` that its signature names. None for a small
            network, for numbers alone.
        method: A name in `bayeslora.METHODS`, or an instance, `MonteCLoRA(components=8)`. `set_params` and searches set
            its fields, `method__components`.
        tokenizer: For texts, where the model is not given by name.
        likelihood: Labels given logits, as in `bayeslora.fit`.
        init: Trained adapters to start from, as in `bayeslora.fit`.
        rank: r; None for 8, or less in narrower layers.
        alpha: LoRA's alpha.
        targets: Layers to adapt, as in `bayeslora.fit`.
        exclude: Layers to leave out of these.
        head: Names of the modules that form the task head; None for those that are found.
        epochs: Passes over the data; None to choose by their number.
        batch_size: Examples per training step.
        learning_rate: Peak learning rate; None to choose by the network's width.
        folds: K, for cross-fitting, as in `bayeslora.fit`; None for one fit.
        refit: Whether one fit of all data follows, as in `bayeslora.fit`.
        num_draws: Draws of the weights in predictions.
        random_state: Seed of the fit and of predictions: a whole number, a `RandomState`, or None for another one in
            each fit.
        progress: Whether to show a progress bar and the log.
    """

    _likelihood: str

    # Annotated as anything because, as scikit-learn asks, it is `fit` that checks the parameters.
    @checked(noun="parameter")
    def __init__(
        self,
        model: Any = None,
        method: Any = "monteclora",
        *,
        tokenizer: Any = None,
        likelihood: Any = None,
        init: Any = None,
        rank: Any = None,
        alpha: Any = 16,
        targets: Any = "all-linear",
        exclude: Any = None,
        head: Any = None,
        epochs: Any = None,
        batch_size: Any = 16,
        learning_rate: Any = None,
        folds: Any = None,
        refit: Any = None,
        num_draws: Any = 32,
        random_state: Any = 0,
        progress: Any = False,
    ):
        self.model = model
        self.method = method
        self.tokenizer = tokenizer
        self.likelihood = likelihood
        self.init = init
        self.rank = rank
        self.alpha = alpha
        self.targets = targets
        self.exclude = exclude
        self.head = head
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.folds = folds
        self.refit = refit
        self.num_draws = num_draws
        self.random_state = random_state
        self.progress = progress

    posterior_: Posterior
    _has_texts: bool
    _seed: int

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters; if `deep`, with the method's fields as `method__<field>`."""
        params = super().get_params(deep=False)
        known = isinstance(self.method, Method) or (isinstance(self.method, str) and self.method in METHODS)
        if deep and known:  # `fit` refuses others
            method = make_method(self.method)
            names = fields_for_fit({"method": method}).names
            params |= {f"method__{name}": getattr(method, name) for name in names}
        return params

    def set_params(self, **params: Any) -> "_Estimator":
        """Set parameters, those of `get_params`; a method whose fields are set becomes an instance."""
        fields = {name.removeprefix("method__"): v for name, v in params.items() if name.startswith("method__")}
        own = {name: value for name, value in params.items() if not name.startswith("method__")}
        refuse_unknown(own, Fields(dict.fromkeys(self._get_param_names()), type(self).__name__, "parameter"))
        super().set_params(**own)
        if fields:
            self.method = make_method(self.method, **fields)
        return self

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = tags.input_tags.one_d_array = self.model is not None
        return tags

    def _checked(self, X: Any, y: Any) -> tuple[Any, np.ndarray]:
        """Return the inputs and the column of labels, and check the parameters that only predictions use."""
        check_arguments(Posterior.predict, None, (), num_draws=self.num_draws)
        check_kind(self.likelihood, is_classifier(self), type(self).__name__)
        if y is None:
            raise ValueError(
                f"{type(self).__name__} requires y to be passed, but the target y is None: give a label per example."
            )
        inputs = self._inputs(X, reset=True)
        if isinstance(inputs, list) and self.model is None:
            raise ValueError("X is text, and there is no model for it: give model=…, the path or name of one.")
        with naming("y", "a label for each example of X"):
            y = column_or_1d(y, warn=True)
            check_consistent_length(inputs, y)
        return inputs, y

    def _fit(self, inputs: Any, labels: Any, num_outputs: int, weight: np.ndarray | None) -> None:
        """Fit a posterior to checked inputs, labels and weights."""
        with naming("random_state", "a whole number from 0 to 4294967295, a RandomState, or None"):
            self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self.posterior_ = fit(
            self._network(inputs, num_outputs, weight),
            (inputs, labels),
            self.method,
            weight=weight,
            tokenizer=self.tokenizer,
            likelihood=self._likelihood if self.likelihood is None else self.likelihood,
            init=self.init,
            rank=self.rank,
            alpha=self.alpha,
            targets=self.targets,
            exclude=self.exclude,
            head=self.head,
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            folds=self.folds,
            refit=self.refit,
            seed=self._seed,
            progress=self.progress,
        )

    def _predict(self, X: Any) -> Any:
        """Return the library's own prediction, with all its draws."""
        check_is_fitted(self, "posterior_")
        return self.posterior_.predict(self._inputs(X, reset=False), self.num_draws, seed=self._seed)

    def _weights(self, sample_weight: Any, y: np.ndarray) -> np.ndarray | None:
        """Return checked weights of examples; None if there are none."""
        if sample_weight is None:
            return None
        with naming("sample_weight", "a finite number of at least 0 for each example, and more than 0 for some"):
            weight = _check_sample_weight(sample_weight, y, dtype=np.float64, ensure_non_negative=True)
            return weighing.checked(weight, "sample_weight")

    def _inputs(self, X: Any, reset: bool) -> list[Any] | np.ndarray:
        """Return a list of texts, or of pairs, or an array of numbers; all are compared with those of the fit."""
        with naming("X", NUMBERS):
            table = text_table(X)
        if table is None:
            if not reset and self._has_texts:
                raise ValueError("X is not text, and the estimator was fitted to texts.")
            self._has_texts = False
            # Networks for pictures and the like take more than one axis of features.
            wide = self.model is not None
            how = {"dtype": np.float64, "force_writeable": True, "allow_nd": wide, "ensure_min_samples": 1 + reset}
            with naming("X", NUMBERS):
                return validate_data(self, X, reset=reset, **how)
        if not reset and not self._has_texts:
            raise ValueError("X is text, and the estimator was fitted to numbers.")
        self._has_texts = True
        with naming("X", "texts in the columns of the fit"):
            validate_data(self, table, reset=reset, skip_check_array=True)
        return rows_of(table)

    def _network(self, inputs: Any, num_outputs: int, weight: np.ndarray | None) -> nn.Module | str | os.PathLike[str]:
        """Return the model to fine-tune, which is the estimator's own."""
        if self.model is None:
            with seeded(self._seed):
                return _SmallNetwork(inputs, num_outputs, weight)
        if isinstance(self.model, str | os.PathLike):
            return self.model
        if isinstance(self.model, nn.Module):
            return copy.deepcopy(self.model)
        if not callable(self.model):
            kind = type(self.model).__name__
            raise TypeError(f"model is a {kind}: give the path or name of a model, a module, or a function of one.")
        sizes = {"num_features": self.n_features_in_, "num_outputs": num_outputs}
        with naming("model", f"a function that makes a module, of {' and '.join(sizes)}, or of fewer"):
            asked = inspect.signature(self.model)
            given = {name: size for name, size in sizes.items() if name in asked.parameters}
            asked.bind(**given)
        with seeded(self._seed), outside():
            return self.model(**given)


class Classifier(ClassifierMixin, _Estimator):
    """A classifier of texts or numbers: an adapted network, whose predictions average over draws of the weights.

    It works wherever scikit-learn takes a classifier: `cross_val_score`, `GridSearchCV`, `Pipeline`,
    `CalibrationDisplay`, `clone`, `pickle`.

        Classifier("all-MiniLM-L6-v2", "blob").fit(texts, labels).predict_proba(new)

    `X` are texts (a list, an array or a Series of strings, or a table with one column of them), pairs of texts (a list
    of pairs, or two columns), or numbers, `[example, feature]`. `y` are classes of any kind: words, numbers, truth
    values.

    Args:
        class_weight: How much classes count: a mapping from them (others count 1), or `"balanced"`, inversely to their
            frequency.

    Attributes:
        classes_: The classes, in order; columns of `predict_proba`.
        n_features_in_: Columns of `X`.
        posterior_: The `Posterior`, with everything else it offers.
    """

    _likelihood = "classification"
    classes_: np.ndarray
    _outcomes: Outcomes

    @checked(noun="parameter")
    def __init__(
        self,
        model: Any = None,
        method: Any = "monteclora",
        *,
        tokenizer: Any = None,
        likelihood: Any = None,
        init: Any = None,
        rank: Any = None,
        alpha: Any = 16,
        targets: Any = "all-linear",
        exclude: Any = None,
        head: Any = None,
        epochs: Any = None,
        batch_size: Any = 16,
        learning_rate: Any = None,
        folds: Any = None,
        refit: Any = None,
        num_draws: Any = 32,
        random_state: Any = 0,
        progress: Any = False,
        class_weight: Any = None,
    ):
        own = {name: value for name, value in locals().items() if name in _Estimator._get_param_names()}
        super().__init__(**own)
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "Classifier":
        """Fit the posterior.

        Args:
            X: The inputs.
            y: The classes.
            sample_weight: How much examples count, `[example]`, relative to their mean. Twice the weight is not quite
                the example twice, which would stand in other batches.

        Raises:
            ValueError: If the texts, numbers, classes or weights do not fit; the message says what does.
        """
        inputs, column = self._checked(X, y)
        self._outcomes = Outcomes(y, column)
        with naming("y", "the class of each example: words, whole numbers or truth values"):
            check_classification_targets(column)
        is_ordinal = getattr(self.likelihood, "name", self.likelihood) == "ordinal"
        if is_ordinal:
            self._outcomes.check_order()
        weight = self._weights(sample_weight, column)
        if self.class_weight is not None:
            with naming("class_weight", "a mapping from classes to numbers of at least 0, 'balanced', or None"):
                weights = self._outcomes.weights(self.class_weight, column)
            weight = weights if weight is None else weighing.checked(weight * weights, "sample_weight and class_weight")
        self.classes_ = self._outcomes.classes
        self._fit(inputs, self._outcomes.labels(column), 1 if is_ordinal else len(self.classes_), weight)
        return self

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the share of examples whose most probable class is right."""
        with naming("y and sample_weight", "a class, and a weight or None, for each example of X"):
            return super().score(X, y, sample_weight)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probabilities of the classes, `[example, class]`, averaged over draws of the weights."""
        prediction = self._predict(X)
        by_index = self.posterior_.columns.by_index
        return self._outcomes.probabilities(prediction.probs, prediction.class_names, by_index)

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable class of each example."""
        best = self.predict_proba(X).argmax(-1)
        return self.classes_[best]


class Regressor(RegressorMixin, _Estimator):
    """A regressor of texts or numbers: an adapted network, whose predictions average over draws of the weights.

    Parameters and `X` are those of `Classifier`; `y` is one real number per example.

    Attributes:
        n_features_in_: Columns of `X`.
        posterior_: The `Posterior`, with everything else it offers.
    """

    _likelihood = "regression"

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "Regressor":
        """Fit the posterior.

        Args:
            X: The inputs.
            y: The labels.
            sample_weight: How much examples count, `[example]`, relative to their mean. Twice the weight is not quite
                the example twice, which would stand in other batches.

        Raises:
            ValueError: If the texts, numbers or weights do not fit; the message says what does.
        """
        inputs, y = self._checked(X, y)
        with naming("y", "a finite number for each example"):
            y = check_array(y, dtype=np.float64, ensure_2d=False, input_name="y")
        self._fit(inputs, y, 1, self._weights(sample_weight, y))
        return self

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return R², the share of the labels' variance that the predicted means explain."""
        with naming("y and sample_weight", "a number, and a weight or None, for each example of X"):
            return super().score(X, y, sample_weight)

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Return the mean of each label, and, if asked, its standard deviation, noise included."""
        prediction = self._predict(X)
        return (prediction.mean, np.sqrt(prediction.variance)) if return_std else prediction.mean


class _SmallNetwork(nn.Module):
    """A network with one hidden layer, which takes features in units of the training data's standard deviations."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, inputs: np.ndarray, num_outputs: int, weight: np.ndarray | None):
        super().__init__()
        mean = np.average(inputs, 0, weight)
        scale = np.sqrt(np.average((inputs - mean) ** 2, 0, weight))
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("scale", torch.tensor(np.where(scale > 0, scale, 1.0)))
        # In double precision, predictions do not depend on which examples are predicted together.
        self.hidden = nn.Linear(inputs.shape[1], WIDTH, dtype=torch.float64)
        self.output = nn.Linear(WIDTH, num_outputs, dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output(torch.tanh(self.hidden((x - self.mean) / self.scale)))
