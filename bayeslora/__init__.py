"""Bayesian adapters for pre-trained networks, written as Pyro programs."""

import importlib
from typing import Any

from bayeslora import diagnostics, distributions, methods, metrics, tasks, theory
from bayeslora.budget import rank_for_budget
from bayeslora.contracts import ArgumentError
from bayeslora.fit import fit
from bayeslora.loading import load
from bayeslora.methods import METHODS, Method, MonteCLoRA, PerStackMethod
from bayeslora.mixture import mixture
from bayeslora.pipelines import pipeline
from bayeslora.posterior import Posterior
from bayeslora.posterior.mixture import Mixture
from bayeslora.prices import prices
from bayeslora.registry import register
from bayeslora.study import Comparison, Sweep, compare, sweep
from bayeslora.tasks import LIKELIHOODS, Likelihood
from bayeslora.tasks.classification import Prediction
from bayeslora.tasks.language_model import LanguagePrediction
from bayeslora.tasks.multilabel import MultiLabelPrediction
from bayeslora.tasks.observed import ObservationPrediction
from bayeslora.tasks.question_answering import SpanPrediction
from bayeslora.tasks.regression import RegressionPrediction
from bayeslora.tasks.token_classification import TokenPrediction

__version__ = "0.1.0"

__all__ = [
    "LIKELIHOODS",
    "METHODS",
    "ArgumentError",
    "Comparison",
    "LanguagePrediction",
    "Likelihood",
    "Method",
    "Mixture",
    "MonteCLoRA",
    "MultiLabelPrediction",
    "ObservationPrediction",
    "PerStackMethod",
    "Posterior",
    "Prediction",
    "RegressionPrediction",
    "SpanPrediction",
    "Sweep",
    "TokenPrediction",
    "compare",
    "diagnostics",
    "distributions",
    "fit",
    "load",
    "methods",
    "metrics",
    "mixture",
    "pipeline",
    "prices",
    "rank_for_budget",
    "register",
    "sweep",
    "tasks",
    "theory",
]


def __getattr__(name: str) -> Any:
    """Import what needs scikit-learn when it is first asked for."""
    if name == "sklearn":
        return importlib.import_module("bayeslora.sklearn")
    raise AttributeError(f"module 'bayeslora' has no attribute {name!r}")
