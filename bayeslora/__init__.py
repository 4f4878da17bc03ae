"""Bayesian adapters for pre-trained networks, written as Pyro programs."""

from bayeslora import distributions, likelihoods, methods, metrics, theory
from bayeslora.budget import rank_for_budget
from bayeslora.fit import fit
from bayeslora.likelihoods import LIKELIHOODS
from bayeslora.methods import METHODS, Method, MonteCLoRA, PerStackMethod, register
from bayeslora.outcomes import (
    LanguagePrediction,
    MultiLabelPrediction,
    ObservationPrediction,
    Prediction,
    RegressionPrediction,
    SpanPrediction,
    TokenPrediction,
)
from bayeslora.posterior import Posterior, load

__version__ = "0.1.0"

__all__ = [
    "LIKELIHOODS",
    "METHODS",
    "LanguagePrediction",
    "Method",
    "MonteCLoRA",
    "MultiLabelPrediction",
    "ObservationPrediction",
    "PerStackMethod",
    "Posterior",
    "Prediction",
    "RegressionPrediction",
    "SpanPrediction",
    "TokenPrediction",
    "distributions",
    "fit",
    "likelihoods",
    "load",
    "methods",
    "metrics",
    "rank_for_budget",
    "register",
    "theory",
]
