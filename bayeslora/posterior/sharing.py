"""A posterior on the hub."""

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from torch import nn

from bayeslora import filing, hub
from bayeslora.contracts import Fields, Kind, checked, declared
from bayeslora.isolation import public
from bayeslora.metrics import reliability as bins
from bayeslora.plots import reliability
from bayeslora.posterior.leaving import Leaving
from bayeslora.types import Data, Folder, ModelName, NumDraws, Seed

Metrics = Mapping[str, float]
HubName = Annotated[str, Kind("a name on the hub, user/name", lambda v: isinstance(v, str) and "/" in v)]

FIGURE = "reliability.png"


def _of_load(arguments: Mapping[str, Any]) -> Fields:
    """Return the further arguments of `load`."""
    from bayeslora.loading import load

    known = declared(load)
    return Fields({name: known[name] for name in ("likelihood", "method", "download")}, "from_pretrained", "argument")


class Sharing(Leaving):
    """Writes a card, and pushes to the hub."""

    @public()
    def card(
        self,
        name: str = "user/name",
        *,
        test: Data | None = None,
        metrics: Metrics | None = None,
        intended_use: str | None = None,
        num_draws: NumDraws = 32,
        seed: Seed | None = 0,
    ) -> str:
        """Return a model card in Markdown: method, data, metrics with intervals, intended use, and how to load it.

        Args:
            name: The name on the hub.
            test: Labelled data that the fit has not seen, to compute metrics on, with 95 % intervals over examples for
                NLL and accuracy.
            metrics: Metrics that you have: results of `evaluate`. They have no intervals.
            intended_use: What it is meant for, and what not.
            num_draws: Draws of the weights, for `test`.
            seed: Seed of the draws.
        """
        measured = self._measured(test, num_draws, seed)[0] if test is not None else {}
        return self._card(name, measured, metrics, intended_use, None)

    @public()
    def save_pretrained(
        self,
        folder: Folder,
        *,
        name: str = "user/name",
        test: Data | None = None,
        metrics: Metrics | None = None,
        intended_use: str | None = None,
        num_draws: NumDraws = 32,
        seed: Seed | None = 0,
    ) -> None:
        """Save as `save` does, and write a card beside, `README.md`, with a reliability diagram of `test` data.

        Arguments are those of `card`.
        """
        measured: dict[str, hub.Measured] = {}
        picture = None
        if test is not None:
            measured, probs, labels = self._measured(test, num_draws, seed)
            if probs is not None:
                curves = {self._shown()[1].get("method", "draws"): bins(probs, labels)}
                picture = filing.picture(reliability(curves), dpi=120)
        text = self._card(name, measured, metrics, intended_use, FIGURE if picture else None)
        self._save(Path(folder), {"README.md": text.encode()} | ({FIGURE: picture} if picture else {}))

    @public()
    def push_to_hub(
        self,
        repo_id: HubName,
        *,
        test: Data | None = None,
        metrics: Metrics | None = None,
        intended_use: str | None = None,
        num_draws: NumDraws = 32,
        seed: Seed | None = 0,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload a posterior of bayeslora",
    ) -> str:
        """Upload everything that `save_pretrained` writes to the hub, and return the address.

        `bayeslora.load(repo_id, download=True)` reads it there. You are logged in by `hf auth login` or `HF_TOKEN`.

        Args:
            repo_id: The name on the hub, `user/name`, which is made if it is not there.
            test: As in `card`.
            metrics: As in `card`.
            intended_use: As in `card`.
            num_draws: As in `card`.
            seed: As in `card`.
            private: Whether a new repository is private; None for the hub's default.
            revision: The branch to push to; None for the main one.
            commit_message: Of the commit.
        """
        settings: dict[str, Any] = {"test": test, "metrics": metrics, "intended_use": intended_use}
        with tempfile.TemporaryDirectory() as scratch:
            self.save_pretrained(scratch, name=repo_id, num_draws=num_draws, seed=seed, **settings)
            return hub.push(Path(scratch), repo_id, private, revision, commit_message)

    @classmethod
    @checked(_of_load)
    def from_pretrained(
        cls, name: Folder, model: nn.Module | ModelName | None = None, *, revision: str | None = None, **settings: Any
    ) -> "Sharing":
        """Load a posterior from a folder or from the hub, and fetch what is not on this machine.

        It is `bayeslora.load(name, model, download=True, revision=revision, …)`.

        Args:
            name: Its folder, or its name on the hub.
            model: As in `load`.
            revision: As in `load`.
            settings: Further arguments of `load`.
        """
        from bayeslora.loading import load

        return load(name, model, **{"download": True, "revision": revision, **settings})

    def _card(
        self,
        name: str,
        measured: Mapping[str, hub.Measured],
        metrics: Metrics | None,
        intended_use: str | None,
        figure: str | None,
    ) -> str:
        record = self.record()
        record = record if "method" in record else self.components[0].record()  # type: ignore[attr-defined]
        given = {key: hub.Measured(float(value)) for key, value in (metrics or {}).items()}
        auto_class = self._likelihood.auto_class
        return hub.card(record, self._shown()[1], auto_class, name, given | dict(measured), intended_use, figure)

    def _measured(
        self, test: Data, num_draws: int, seed: int | None
    ) -> tuple[dict[str, hub.Measured], np.ndarray | None, np.ndarray]:
        """Return metrics, and probabilities and labels where they are of classes."""
        found, labels = self._labelled(self._source(test, name="test"), num_draws, seed, 64)
        prediction = self._prediction(found)
        measured = {name: hub.Measured(float(value)) for name, value in prediction.scores(labels).items()}
        wrong = prediction.wrong(labels)
        right = {} if wrong is None else dict.fromkeys(("accuracy", "exact_match"), 1.0 - wrong)
        for name, values in ({"nll": -prediction.log_density(labels)} | right).items():
            mean = float(values.mean())
            # Of several labels, a row is right if all are, and the accuracy is that of each label.
            if name in measured and len(values) > 1 and math.isclose(mean, measured[name].value, rel_tol=1e-6):
                width = 1.96 * float(values.std(ddof=1)) / math.sqrt(len(values))
                measured[name] = hub.Measured(measured[name].value, mean - width, mean + width)
        return measured, getattr(prediction, "probs", None) if "ece" in measured else None, labels
