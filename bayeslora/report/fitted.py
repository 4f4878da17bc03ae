"""The page of a posterior."""

import copy
import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from bayeslora import facts, plots
from bayeslora.data import Columns
from bayeslora.filing import check_file, write_file
from bayeslora.prediction import check_familiar, features
from bayeslora.report import examples, findings
from bayeslora.report.page import Section, picture, render
from bayeslora.study.runs import Evaluation, Setting
from bayeslora.tasks.prediction import BasePrediction

PACKAGES = ("bayeslora", "torch", "pyro-ppl", "transformers", "numpy")

MOST_LAYERS = 80
"""Layers up to which the figure of all of them can be read."""

LONGEST_RECORD = 30_000
"""Characters of a posterior's record that are shown."""


def report(
    posterior: Any,
    path: str | os.PathLike[str],
    test: Any,
    familiar: Any = None,
    validation: Any = None,
    khat: Any = None,
    num_draws: int = 32,
    seed: int = 0,
    batch_size: int = 64,
    risks: Sequence[float] = (0.01, 0.05, 0.1),
    count: int = 8,
    columns: Mapping[str, Any] | None = None,
) -> Path:
    """Write the page of a posterior, see `Posterior.report`."""
    check_file(path)
    asked = Columns.asked(**{name: (columns or {}).get(name) for name in ("text", "label", "id")})
    source = posterior._source(test, asked, name="test")
    source.check_labels()
    first = getattr(posterior, "components", (posterior,))[0]
    known = None if familiar is None else first._source(familiar, name="familiar")
    if known is not None:
        check_familiar(known)
    if validation is not None:
        posterior = copy.copy(posterior).decide(validation, num_draws, seed=seed, batch_size=batch_size)
    evaluation = Evaluation(posterior, Setting(None, None, test, num_draws=num_draws, columns=columns), seed)
    outputs, labels = evaluation.outputs, evaluation.labels
    made = posterior._made(num_draws, seed, False, None)
    prediction = posterior._prediction(outputs).decided_by(posterior.held_out, made)
    scored = evaluation(posterior.temperature)
    found, _ = posterior._labelled(source, 1, seed, batch_size, True, "draws")
    centre = posterior._prediction(found)
    about = dict(posterior._shown()[1])
    nearest = None if known is None else _nearest(first, source, familiar, known, prediction, batch_size)
    fitted = Section("What was fitted", about)
    sections = of_prediction(
        prediction,
        labels,
        examples.texts_of(test, posterior, source),
        scored["left_out"],
        centre,
        nearest,
        risks,
        count,
    )
    again = Section("How to reproduce", versions() | {"seed": str(seed), "draws": str(num_draws)})
    record = json.dumps(posterior.record(), indent=1, default=str, ensure_ascii=False)
    again.code = {"Record of the posterior": record[:LONGEST_RECORD]}
    again.says.append(
        "posterior.save(folder) keeps the posterior; bayeslora.load(folder) and "
        f"report(path, test, num_draws={num_draws}, seed={seed}) make this page again."
    )
    lead = findings.lead(prediction, labels, scored["scores"], scored["left_out"], centre.log_density(labels))
    title = f"{about.get('method', type(posterior).__name__)} on {about['labels']}"
    return write_file(path, render(title, lead, [fitted, *sections, diagnostics(posterior, khat), again]))


def of_prediction(
    prediction: BasePrediction,
    labels: np.ndarray,
    inputs: Any,
    left_out: findings.Left,
    centre: BasePrediction | None = None,
    nearest: examples.Nearest | None = None,
    risks: Sequence[float] = (0.01, 0.05, 0.1),
    count: int = 8,
) -> list[Section]:
    """Return the parts of a page that are about predictions.

    Args:
        prediction: The predictions.
        labels: Their labels.
        inputs: Returns the text of an example.
        left_out: Scores without each block of examples.
        centre: The prediction at the centre.
        nearest: Finds familiar examples.
        risks: Risks to decide at.
        count: Rows of each table of examples.
    """
    scores = prediction.scores(labels)
    scored = Section("Scores")
    scored.tables.append(findings.scores_table(scores, left_out, {} if centre is None else centre.scores(labels)))
    scored.pictures += findings.pictures(prediction, labels, scores)
    decided = findings.decisions(prediction, labels, risks)
    shown = examples.section(prediction, labels, inputs, count, nearest)
    return [scored, *([] if decided is None else [decided]), shown]


def diagnostics(posterior: Any, khat: Any = None) -> Section:
    """Return how the fit went, and whether it is the posterior that it claims to be."""
    section = Section("Diagnostics", {"fit": posterior.state or "finished"})
    if khat is not None:
        section.facts["is it a posterior?"] = khat.verdict
    elif "components" not in vars(posterior):
        claims = getattr(posterior.method, "claims", None)
        if claims is not None:
            section.facts["claims to be"] = str(claims)
            if str(claims) == "posterior":
                section.says.append(
                    "Whether it is the posterior that it claims to be: khat=posterior.khat(training data)."
                )
    history = posterior.history
    if len(history) > 1 and "component" not in history:
        last = history.iloc[-max(len(history) // 10, 1) :]
        first = history.iloc[: max(len(history) // 10, 1)]
        text = f"Loss by step, from {first['loss'].mean():.3f} to {last['loss'].mean():.3f} nats per example."
        caption = "Loss, NLL and weighted KLs of training, smoothed."
        section.pictures.append(picture(plots.losses(history), text, caption))
        section.facts["loss"] = (
            f"{first['loss'].mean():.3f} in the first tenth of steps, {last['loss'].mean():.3f} in the last"
        )
    if posterior.tuning is not None:
        section.facts["dial"] = facts.dial(posterior.tuning)
        if len(posterior.tuning.curve["value"]) > 1:
            text = f"NLL of rows that were not trained on, by {posterior.tuning.dial}."
            section.pictures.append(picture(plots.dial(posterior.tuning), text, "How the dial was set."))
    if "components" not in vars(posterior):
        layers = sum(len(stack) for stack in posterior.network.stacks.values())
        if layers <= MOST_LAYERS:
            groups = posterior.to_arviz(num_draws=50, prior=False)
            text = "Norms of each layer's update, with intervals over draws."
            section.pictures.append(picture(plots.layers(groups), text, "‖ΔW‖ by layer: where the adapters act."))
    return section


def versions() -> dict[str, str]:
    """Return the versions of what made a page, and the day."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return {"made on": f"{datetime.now(UTC):%Y-%m-%d}", "Python": platform.python_version(), **found}


def _nearest(
    posterior: Any, source: Any, familiar: Any, known: Any, prediction: BasePrediction, batch_size: int
) -> examples.Nearest | None:
    """Return what finds the nearest familiar examples; None for networks without a linear layer at their end."""
    try:
        theirs, labels = features(posterior.program, known, batch_size)
        own, _ = features(posterior.program, source, batch_size)
    except ValueError:
        return None
    plain = labels is not None and labels.ndim == 1
    names = [examples.label_text(prediction, label) for label in labels] if plain and labels is not None else None
    return examples.Nearest.made(examples.texts_of(familiar, posterior, known), names, theirs, own)
