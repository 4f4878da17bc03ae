"""A likelihood of the user's own."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
from pyro import poutine
from torch import Tensor

from bayeslora.contracts import checked
from bayeslora.tasks.base import Likelihood, class_settings, precise
from bayeslora.types import LabelColumn, LabelValues, Tokenizer


class Observation(Likelihood):
    """A likelihood of your own: a callable that makes the observation, as in a Pyro program.

    Labels: anything.
    Logits: anything.

    Of counts: `lambda logits, labels: pyro.sample("labels", dist.Poisson(logits[..., 0].exp()), obs=labels)`.
    It makes one site, `"labels"`, of batch shape `[*draw, batch]`, and runs in a plate over the examples of a batch.

    Args:
        observe: Called with logits `[*draw, batch, …]` and labels `[batch, …]`, or None to draw them.
    """

    name = "observation"
    has_temperature = False
    needs_code: ClassVar[bool] = True

    @checked()
    def __init__(self, observe: Callable[[Tensor, Tensor | None], Any]):
        super().__init__()
        self.make = observe

    @classmethod
    def fitting(cls, logits: Tensor, labels: LabelValues, tokenizer: Tokenizer | None = None) -> "Observation":
        raise ValueError("likelihood='observation' needs the callable itself: likelihood=your_callable.")

    def site(self, logits: Tensor, labels: Tensor | None) -> dict[str, Any]:
        """Run the callable, and return the site that it makes."""
        trace = poutine.trace(self.make).get_trace(precise(logits), labels)
        names = [name for name, site in trace.nodes.items() if site["type"] == "sample"]
        if names != ["labels"]:
            raise ValueError(f"The likelihood makes sites {names}: let it make one, 'labels'.")
        return trace.nodes["labels"]

    def distribution(self, logits: Tensor) -> dist.Distribution:
        return self.site(logits, None)["fn"]

    def observe(self, logits: Tensor, labels: Tensor) -> None:
        size = len(labels)
        with pyro.plate("examples", size, dim=-1), poutine.scale(scale=1 / size):
            self.make(precise(logits), labels)

    def log_prob(self, logits: Tensor, labels: Tensor) -> Tensor:
        site = self.site(logits, labels)
        return site["fn"].log_prob(site["value"])  # the labels as the callable observes them

    def check_labels(self, labels: LabelValues) -> None:
        """Accept any labels: nothing is known about them."""

    def config(self) -> dict[str, Any]:
        return {}

    @classmethod
    def restored(cls, config: Mapping[str, Any], code: Callable[..., Any] | None = None) -> "Observation":
        assert code is not None  # `needs_code`: `load` has asked for it
        return cls(code)

    @classmethod
    def model_settings(cls, model: str, names: Sequence[str] | None, labels: LabelColumn | None) -> dict[str, Any]:
        return class_settings(model, names, labels)
