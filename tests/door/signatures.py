"""Every public signature: what users call, by the name they call it by."""

import inspect
from collections.abc import Callable
from typing import Any

import bayeslora
import bayeslora.plots
from bayeslora import LIKELIHOODS, METHODS, Comparison, Likelihood, Mixture, Posterior, Sweep, decisions
from bayeslora.harness import HarnessModel
from bayeslora.tasks.prediction import BasePrediction

PREDICTIONS = tuple(
    cls for name, cls in vars(bayeslora).items() if name.endswith("Prediction") and inspect.isclass(cls)
)

OF_METHODS = ("khat", "leave_one_out", "single", "held_out_like")
"""What stands in `diagnostics` or `decisions` and is called by methods of a posterior, which check its arguments."""


def public() -> dict[str, Callable[..., Any]]:
    """Name to function or method; properties, which take no arguments, are left out."""
    named = {name: getattr(bayeslora, name) for name in bayeslora.__all__}
    found = {name: value for name, value in named.items() if inspect.isfunction(value)}
    for cls in (Posterior, Mixture, *PREDICTIONS):
        methods = inspect.getmembers(cls, inspect.isfunction)
        # What a prediction or a mixture does not write itself, its interface does.
        own = {
            name: value
            for name, value in methods
            if name[0] != "_" and value is not getattr(BasePrediction, name, 0)
            if cls is Posterior or value is not getattr(Posterior, name, 0)
        }
        found |= {f"{cls.__name__}.{name}": value for name, value in own.items()}
    found |= {"Posterior.from_pretrained": Posterior.from_pretrained, "HarnessModel": HarnessModel.__init__}
    for cls in (Comparison, Sweep):
        takes = [
            name for name, f in vars(cls).items() if inspect.isfunction(f) and len(inspect.signature(f).parameters) > 1
        ]
        found |= {f"{cls.__name__}.{name}": getattr(cls, name) for name in takes if name[0] != "_"}
    for module in (bayeslora.metrics, bayeslora.theory, bayeslora.plots, bayeslora.diagnostics, decisions):
        short = module.__name__.partition(".")[2]
        own = {name: value for name, value in vars(module).items() if name[0] != "_" and inspect.isfunction(value)}
        at_home = {name: value for name, value in own.items() if value.__module__.startswith(module.__name__)}
        found |= {f"{short}.{name}": value for name, value in at_home.items() if name not in OF_METHODS}
    likelihoods = {name: cls for name, cls in LIKELIHOODS.items() if cls.__init__ is not Likelihood.__init__}
    found |= {f"LIKELIHOODS[{name!r}]": cls.__init__ for name, cls in likelihoods.items()}
    found |= {f"METHODS[{name!r}]": cls.__init__ for name, cls in METHODS.items()}
    return found
