"""Bad calls of everything public, from hypothesis: `python -m tests.door.calls 2000`.

It runs in a process of its own, without the type checks that the tests put on every function. A call succeeds, or
raises an error of the library's own that names an argument which is to blame; and it leaves no state behind.
"""

import contextlib
import faulthandler
import inspect
import io
import json
import linecache
import logging
import os
import random
import re
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from pyro.poutine.runtime import _PYRO_STACK
from torch import nn
from typer.main import get_command
from typer.testing import CliRunner

import bayeslora
from bayeslora import LIKELIHOODS, METHODS
from bayeslora.cli import app
from bayeslora.divergence import DivergedError
from bayeslora.failing import NotSavedError
from bayeslora.harness import HarnessModel
from bayeslora.methods.fields import declarations
from bayeslora.sklearn import Classifier, Regressor
from tests.door.signatures import public as with_contract
from tests.door.things import NAMES, VALUES
from tests.tasks.cases import model as tiny
from tests.test_data import tiny_tokenizer

PACKAGE = str(Path(bayeslora.__file__).parent)
OWN = (ValueError, TypeError, FileNotFoundError, NotSavedError, DivergedError)

SLOWEST = 120.0
"""Seconds that a call may take, on a busy machine."""

OTHERS = ("self", "hyperparameters", "generation_settings", "settings", "n_jobs")
"""Parameters that no call names; more than one job starts processes."""

FURTHER = {
    "fit": ("prior_scale",),
    "compare": ("learning_rate", "epochs", "label", "targets"),
    "sweep": ("epochs", "rank", "learning_rate"),
    "sklearn.Classifier": ("model", "method", "likelihood", "init", "batch_size", "head", "random_state"),
    "sklearn.Regressor": ("model", "alpha", "targets", "exclude", "folds", "refit", "progress"),
    "Posterior.generate": ("max_new_tokens", "temperature", "do_sample", "num_beams", "top_k", "top_p", "use_cache"),
}
"""Further keywords of functions that are worth a try."""

LONG = {
    "epochs": 2,
    "num_draws": 50,
    "num_particles": 50,
    "max_new_tokens": 20,
    "num_beams": 4,
    "num_bins": 1000,
    "seeds": 2,
}
"""Above this, values that fit only take long, or much memory."""

ABOUT = {
    "X": ("rank", "label", "sample_weight"),
    "class_weight": ("class_weights",),
    "data": ("label", "row", "input"),
    "test": ("label", "data", "row"),
    "validation": ("label", "data"),
    "init": ("adapter",),
}
"""What else a message about an argument speaks of."""


def classifier(
    X: Any = None, y: Any = None, sample_weight: Any = None, class_weight: Any = None, **parameters: Any
) -> Any:
    """A classifier of scikit-learn's, fitted and asked for its score."""
    made = Classifier(class_weight=class_weight, **{"epochs": 0, "num_draws": 2, "rank": 2} | parameters)
    return made.fit(X, y, sample_weight).score(X, y, sample_weight)


def regressor(X: Any = None, y: Any = None, sample_weight: Any = None, random_state: Any = 0, **parameters: Any) -> Any:
    """A regressor of scikit-learn's, fitted and asked for its score."""
    made = Regressor(random_state=random_state, **{"epochs": 0, "num_draws": 2, "rank": 2} | parameters)
    return made.fit(X, y, sample_weight).score(X, y, sample_weight)


def public() -> dict[str, Callable[..., Any]]:
    """What has a contract, and what scikit-learn calls, which has its own."""
    return {**with_contract(), "sklearn.Classifier": classifier, "sklearn.Regressor": regressor}


def network() -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    made = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return made


def rows() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
    return x, (x[:, 0] > 0).astype(int)


def arrays(name: str) -> dict[str, Any]:
    """Good arguments of functions of numbers."""
    probs = np.array([[0.2, 0.8], [0.7, 0.3], [0.5, 0.5]])
    good = {"probs": probs, "labels": np.array([1, 0, 1]), "logits": np.log(probs), "reference": probs}
    good |= {"uncertainty": probs[:, 0], "wrong": np.array([0, 1, 1]), "mean": probs[:, 0], "values": np.log(probs)}
    good |= {"scores_inside": probs[:, 0], "scores_outside": probs[:, 1], "log_likelihood": np.log(probs)}
    good |= {"loss": lambda temperature: (temperature - 1) ** 2, "p": 0.5, "regularization": 1.0, "lipschitz": 1.0}
    good |= {"num_examples": 10, "curvature": 1.0, "empirical_risk": 0.5, "loss_bound": 1.0}
    good |= {"inside": {"entropy": [0.1, 0.2]}, "outside": {"entropy": [0.2, 0.3]}, "least": 2}
    good |= {"costs": 1 - np.eye(2), "risk": 0.1, "confidence": 0.9, "coverage": 0.9, "scores": probs[:, 0]}
    good |= {"curves": {"a": bayeslora.metrics.reliability(probs, [1, 0, 1])}}
    if name in ("plots.uncertainties", "plots.boxes"):
        good["values"] = {"a": probs[:, 0]}
    good |= {"draws": probs[None, :, :]}
    if name == "plots.risk_coverage":
        good["curves"] = {"a": bayeslora.metrics.risk_coverage([0.1, 0.2], [0, 1])}
    if name == "metrics.fit_temperature":
        good["logits"] = np.log(probs)[None]
    return {key: good[key] for key in inspect.signature(public()[name]).parameters if key in good}


def predictions() -> dict[str, Any]:
    """A prediction of each kind, of three examples and two draws, as far as they are made in a line."""
    probs = np.array([[[0.2, 0.8], [0.7, 0.3], [0.5, 0.5]]] * 2)
    real = torch.distributions.Normal(torch.zeros(3), torch.ones(3))
    return {
        "Prediction": bayeslora.Prediction(probs),
        "MultiLabelPrediction": bayeslora.MultiLabelPrediction(probs),
        "ObservationPrediction": bayeslora.ObservationPrediction([real, real]),
    }


WORDS = ("0", "-1", "1.5", "nan", "inf", "1e400", "9" * 30, "", "x", "true", "null", "[1]", "--", "\U0001f600", "a=b")
"""Values of flags."""


class Subjects:
    """What is called, and good arguments for it."""

    def __init__(self, folder: Path):
        self.model, self.data = network(), rows()
        plain: dict[str, Any] = {"rank": 2, "epochs": 0, "progress": False}
        self.posterior = bayeslora.fit(self.model, self.data, "monteclora", **plain)
        self.claimed = bayeslora.fit(self.model, self.data, "blob", **plain)  # a posterior, as khat and loo want one
        self.mixture = bayeslora.mixture([self.posterior, self.posterior])
        self.saved = folder / "saved"
        self.posterior.save(self.saved)
        ids = torch.randint(2, 60, (4, 5), generator=torch.Generator().manual_seed(0))
        self.writer = bayeslora.fit(tiny("GPT2", "LMHeadModel")(), {"input_ids": ids}, "monteclora", **plain)

        self.writer.tokenizer = tiny_tokenizer()
        few: dict[str, Any] = {"test": self.data, "seeds": 1, "rank": 2, "epochs": 0, "num_draws": 2}
        self.studies = {
            "Comparison": bayeslora.compare(self.model, self.data, ["blob"], **few),
            "Sweep": bayeslora.sweep(self.model, self.data, ["blob"], learning_rates=[1e-3], batch_sizes=[4], **few),
        }
        self.predictions = predictions()

    def arguments(self, name: str) -> dict[str, Any]:
        """Good arguments of a function."""
        data: dict[str, Any] = {"model": self.model, "data": self.data}
        if name == "fit":
            few = {"rank": 2, "epochs": 0, "batch_size": 4, "progress": False}
            return {**data, "method": "lora", **few}
        if name == "Posterior.forgotten":
            return {"data": self.data, "before": self.posterior}
        if name == "mixture":
            return {"posteriors": [self.posterior, self.posterior]}
        if name == "Posterior.distil":
            return {"data": self.data, "num_draws": 2, "epochs": 1}
        if name == "compare":
            few = {"rank": 2, "epochs": 0, "batch_size": 4, "num_draws": 2}
            return {**data, "methods": ["blob"], "test": self.data, "seeds": 1, **few}
        if name == "sweep":
            few = {"rank": 2, "epochs": 0, "num_draws": 2, "learning_rates": [1e-3], "batch_sizes": [4]}
            return {**data, "methods": ["blob"], "test": self.data, "seeds": 1, **few}
        if name.startswith("sklearn."):
            return {"X": self.data[0], "y": self.data[1], "method": "lora"}
        if name.partition(".")[0] in self.studies:
            known = inspect.signature(public()[name]).parameters
            good = {"method": "blob", "path": Path("page.html")}
            return {key: value for key, value in good.items() if key in known}
        if name == "HarnessModel":
            return {"posterior": self.writer, "num_draws": 2}
        if name == "Posterior.from_pretrained":
            return {"name": self.saved, "model": self.model}
        if name == "load":
            return {"folder": self.saved, "model": self.model}
        if name in ("Posterior.generate", "Posterior.answers"):
            return {"inputs": [[5, 6], [7]], "num_draws": 2, "max_new_tokens": 2}
        if "Prediction." in name:
            known = inspect.signature(public()[name]).parameters
            kind = np.array([[0, 1], [1, 1], [0, 0]]) if name.startswith("Multi") else np.array([0.0, 1.0, 0.0])
            good = {"labels": kind if name[0] in "MO" else np.array([0, 1, 1]), "costs": 1 - np.eye(2)}
            return {key: value for key, value in good.items() if key in known}
        if name.partition(".")[0] in ("metrics", "theory", "plots", "decisions"):
            return arrays(name)
        good = {
            **data,
            "familiar": self.data,
            "method": "lora",
            "cls": bayeslora.MonteCLoRA,
            "budget": 100,
            "validation": self.data,
        }
        good |= {"folder": Path("out"), "num_draws": 2, "num_classes": 3, "num_choices": 3, "token_ids": [4, 5]}
        good |= {"observe": print, "path": Path("report.html"), "test": self.data}
        return {key: good[key] for key in inspect.signature(public()[name]).parameters if key in good}

    def can_call(self, name: str) -> bool:
        """Whether there are good arguments for all that a function needs: what lacks one fails for that alone."""
        known = inspect.signature(public()[name]).parameters.values()
        needed = {p.name for p in known if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        decides = name.endswith((".sets", ".abstain"))  # by held-out rows, which predictions made in a line lack
        return not decides and needed <= {"self", *self.arguments(name)}

    def function(self, name: str) -> Callable[..., Any]:
        """What is called."""
        if name.startswith("METHODS"):
            return METHODS[name.split("'")[1]]
        if name.startswith("LIKELIHOODS"):
            return LIKELIHOODS[name.split("'")[1]]
        if name == "HarnessModel":
            return HarnessModel
        if name.partition(".")[0] in self.studies:
            return getattr(self.studies[name.partition(".")[0]], name.partition(".")[2])
        if name.startswith("Posterior."):
            subject = self.writer if name.endswith(("generate", "answers")) else self.posterior
            subject = self.claimed if name.endswith(("khat", "loo")) else subject
            return getattr(subject, name.partition(".")[2])
        if name.startswith("Mixture."):
            return getattr(self.mixture, name.partition(".")[2])
        if "Prediction." in name:
            return getattr(self.predictions[name.partition(".")[0]], name.partition(".")[2])
        return public()[name]

    def state(self) -> dict[str, Any]:
        """What a call must leave as it was."""
        loggers = [logging.getLogger(name) for name in (None, "bayeslora", "transformers", "pyro")]
        networks = {"model": self.model, "posterior": self.posterior.program, "writer": self.writer.program}
        return {
            "random of Python": hash(random.getstate()),
            "random of numpy": np.random.get_state()[1].tobytes(),  # noqa: NPY002
            "random of torch": torch.get_rng_state().numpy().tobytes(),
            "dtype": torch.get_default_dtype(),
            "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
            "threads": torch.get_num_threads(),
            "Pyro's handlers": len(_PYRO_STACK),
            "Pyro's parameters": len(dict(pyro.get_param_store())),
            "Pyro's settings": sorted((key, str(value)) for key, value in pyro.settings.get().items()),
            "logging": [(logger.level, len(logger.handlers), logger.disabled, logger.propagate) for logger in loggers],
            "warnings": len(warnings.filters),
            "folder": os.getcwd(),
            **{f"{part} of {name}": value for name, each in networks.items() for part, value in inside(each).items()},
        }


def inside(model: nn.Module) -> dict[str, Any]:
    """What a call must leave as it was in a network."""
    modules = list(model.modules())
    return {
        "parameters": [(name, value._version) for name, value in model.state_dict(keep_vars=True).items()],
        "gradients": [parameter.requires_grad for parameter in model.parameters()],
        "modes": [module.training for module in modules],
        "hooks": sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules),
    }


def fault(error: BaseException, blamed: Mapping[str, Any]) -> str | None:
    """What is wrong with an error: somebody else's, or names nothing that is to blame."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
    line = linecache.getline(last.filename, last.lineno or 0)
    if not isinstance(error, OWN) or not last.filename.startswith(PACKAGE) or not line.strip().startswith("raise"):
        return f"{where}, somebody else's"
    words = {*blamed, *(word for name in blamed for word in ABOUT.get(name, ()))}
    texts = (value for value in blamed.values() if isinstance(value, str | Path) or getattr(value, "ndim", 1) == 0)
    words |= {*map(str, texts)} - {""}  # NumPy's texts among them
    if not any(re.search(rf"(?<!\w){re.escape(word)}", str(error), re.IGNORECASE) for word in words):
        return f"{where}, which names none of {', '.join(blamed)}"
    return None


@dataclass
class Tally:
    """How calls went."""

    made: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest: float = 0.0

    def call(self, subjects: Subjects, name: str, arguments: dict[str, Any], blamed: dict[str, Any]) -> None:
        """Call a function, and note how it went."""
        self.made[name.partition("[")[0]] += 1
        before, began, wrong = subjects.state(), time.perf_counter(), None
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                subjects.function(name)(**arguments)
            self.ended["succeeded"] += 1
        except Exception as error:
            self.ended[type(error).__name__] += 1
            wrong = fault(error, blamed)
            wrong = wrong and f"{wrong}: {error!s:.200}"
        seconds = time.perf_counter() - began
        self.slowest = max(self.slowest, seconds)
        # Without a seed, torch's state is used and advanced.
        kept = "random of torch" if blamed.get("seed", 0) is None else ""
        changed = [key for key, value in subjects.state().items() if value != before[key] and key != kept]
        if wrong or changed or seconds > SLOWEST:
            shown = ", ".join(f"{key}={_shown(value)}" for key, value in blamed.items())
            left = f"left other {', '.join(changed)}" if changed else ""
            self.faults.append(f"{name}({shown}): {wrong or ''} {left} ({seconds:.1f} s)")

    def command(self, subjects: Subjects, words: list[str], flag: str) -> None:
        """Run a command whose data do not exist, with a bad flag perhaps, and note how it went."""
        self.made[f"bayeslora {words[0]}"] += 1
        result = CliRunner().invoke(app, words)
        self.ended[f"exit {result.exit_code}"] += 1
        said = " ".join(result.output.split())
        # A flag that is good leads to what is missing: the model, the data, the name of the base.
        words_of_it = (flag, flag.strip("-").replace("-", "_"), repr(words[-1]))
        named = any(word in said for word in (*words_of_it, "missing", "posterior", "hub"))
        if result.exit_code != 2 or not isinstance(result.exception, SystemExit) or not named:
            self.faults.append(f"bayeslora {' '.join(words)}: {result.exception!r:.200}, {said[:200]}")


def flagged(data: st.DataObject, subjects: Subjects) -> tuple[list[str], str]:
    """Draw a command with a flag that may be bad; return it and the flag."""
    name = data.draw(st.sampled_from(["fit", "fit", "predict", "evaluate"]))
    needed = {
        "fit": ["--model", "missing-model", "--data", "missing.csv", "--output", "out"],
        "predict": [str(subjects.saved), "missing.csv"],
        "evaluate": [str(subjects.saved), "missing.csv"],
    }[name]
    options = [option for each in get_command(app).commands[name].params for option in each.opts if option[:2] == "--"]  # type: ignore[attr-defined]
    fields = [f"--{each}".replace("_", "-") for each in declarations(METHODS["monteclora"])] if name == "fit" else []
    flag = data.draw(st.one_of(st.sampled_from([*options, *fields]), NAMES.map(lambda name: f"--{name}")))
    return [name, *needed, flag, data.draw(st.one_of(st.sampled_from(WORDS), st.text(max_size=5)))], flag


def spoilt(data: st.DataObject, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Spoil one or two arguments: other values, unknown names, or none at all; return those spoilt."""
    known = [key for key in inspect.signature(public()[name]).parameters if key not in OTHERS]
    tried = [*known, *FURTHER.get(name, ())]
    blamed: dict[str, Any] = {}
    for _ in range(data.draw(st.integers(1, 2))):
        kind = data.draw(st.sampled_from(["value"] * 6 + ["name", "missing"]))
        if kind == "value" and tried:
            argument, value = data.draw(st.sampled_from(tried)), data.draw(VALUES)()
            with contextlib.suppress(Exception):
                value = -1 if float(value) > LONG.get(argument, float("inf")) else value
            arguments[argument] = blamed[argument] = value
        elif kind == "name":
            argument = data.draw(NAMES)
            if argument not in known:
                arguments[argument] = blamed[argument] = 1
        elif arguments:
            argument = data.draw(st.sampled_from(sorted(arguments)))
            del arguments[argument]
            blamed.setdefault(argument, None)
    return blamed


def main(number: int, start: int = 0) -> dict[str, Any]:
    """Make so many calls; return how many of each function were made, how they ended, and what is wrong."""
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore")
    faulthandler.dump_traceback_later(SLOWEST * 15, exit=True)
    made = predictions()
    names, tally = [n for n in sorted(public()) if "Prediction." not in n or n.partition(".")[0] in made], Tally()
    # Most of what can be called badly is in a few functions.
    names.remove("metrics.best_temperature")  # what it raises, a function of the caller's raises
    names += ["fit"] * 12 + [name for name in names if name.startswith("Posterior.")] * 3 + ["load"] * 4
    names += ["bayeslora"] * 8
    every = settings(
        max_examples=number,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        subjects = Subjects(Path(scratch))
        names = [name for name in names if name == "bayeslora" or subjects.can_call(name)]

        @seed(start)
        @every
        @given(st.data())
        def call(data: st.DataObject) -> None:
            name = data.draw(st.sampled_from(names))
            if name == "bayeslora":
                return tally.command(subjects, *flagged(data, subjects))
            arguments = subjects.arguments(name)
            blamed = spoilt(data, name, arguments)
            tally.call(subjects, name, arguments, blamed)

        call()
    return {"calls": tally.made.total(), **vars(tally)}


def _shown(value: Any) -> str:
    try:
        return f"{value!r:.60}"
    except Exception:
        return type(value).__name__


if __name__ == "__main__":
    print(json.dumps(main(*map(int, sys.argv[1:])), indent=1, ensure_ascii=False))
