"""Draws of a fitted program, and the network run on them."""

import abc
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from bayeslora.adapters.network import has_rows
from bayeslora.data import to_device
from bayeslora.isolation import seeded
from bayeslora.likelihoods import LanguageModel, Likelihood, PerToken, QuestionAnswering
from bayeslora.outcomes import LanguagePrediction, Outputs, Rows
from bayeslora.program import Program, evaluating
from bayeslora.types import IGNORED, Batch, Sites

# Rows × positions up to which draws are folded into one pass. Folding is faster only while a pass is bound by
# overhead: 0.57 × a loop's time at 16 × 6 tokens, the same at 16 × 64.
FOLDED_POSITIONS = 2048


# Linearised prediction is compared with the network itself on so many examples of the first batch, at so many draws.
CHECKED_EXAMPLES, CHECKED_DRAWS = 16, 8
# Divergence beyond which it warns, in nats per example: what the expansion adds to the NLL if the network is right.
TRUSTED_DIVERGENCE = 0.01


def draw(program: Program, num_draws: int, seed: int | None) -> dict[str, Tensor]:
    """Draws of every site, `[draw, layer, …]`; a finite posterior's members, each once, instead."""
    if num_draws < 1:
        raise ValueError(f"num_draws={num_draws}: give a whole number of at least 1.")
    finite = program.method.num_draws(program.guide)
    with seeded(seed):
        return {name: value.detach() for name, value in program.draw(finite or num_draws).items()}


def run(
    program: Program,
    sites: Sites,
    batches: Iterable[tuple[np.ndarray, Batch]],
    num_draws: int,
    with_labels: bool = True,
    linear: bool = False,
) -> Any:
    """The network's outputs at draws of the sites: `Outputs`, or for a language model its `LanguagePrediction`.

    Args:
        program: The program; it is left in the mode it was in.
        sites: Draws, `[draw, layer, …]`.
        batches: The data: positions of the examples, and their batch.
        num_draws: Size of the `draw` dimension.
        with_labels: Whether labels are looked at. Without them, the rows of a token task are all that is no padding.
        linear: Whether the network's first-order expansion in the factors is run on the draws, not the network.
    """
    collect = Summaries if isinstance(program.likelihood, LanguageModel) else Everything
    collector = collect(program.likelihood, with_labels)
    try:
        with evaluating(program), torch.inference_mode(not linear):
            factors = program.factors_at(sites)
            linearised = program.linearised(sites) if linear else None
            for where, batch in batches:
                on_device = to_device(batch, program.device)
                if linearised is None:
                    collector.add(where, batch, chunks(program.network_logits, factors, on_device, num_draws))
                    continue
                inputs = {name: value for name, value in on_device.items() if name != "labels"}
                logits = linearised(inputs)
                if not collector.num_examples and program.method.approximation != "linear":
                    _check_linear(program, factors, inputs, logits)
                collector.add(where, batch, iter([logits]))
    finally:
        program.network.unbind()
    return collector.result()


class Collector(abc.ABC):
    """Takes in what the network says of one batch after another.

    Args:
        likelihood: Labels given logits.
        with_labels: Whether labels are looked at.
    """

    def __init__(self, likelihood: Likelihood, with_labels: bool):
        self.likelihood = likelihood
        self.with_labels = with_labels
        self.examples: list[np.ndarray] = []
        self.positions: list[np.ndarray] = []
        self.num_examples = 0

    @abc.abstractmethod
    def add(self, where: np.ndarray, batch: Batch, chunks: Iterator[Tensor]) -> None:
        """Take in a batch: positions of its examples in the data, and logits of a few draws at a time."""

    @abc.abstractmethod
    def result(self) -> Any:
        """All of it, in the data's order."""

    def place(self, where: np.ndarray, rows: Tensor | None = None, shift: int = 0) -> None:
        """Note which examples, or which of their tokens, `[batch, token]`, the next rows belong to."""
        self.num_examples += len(where)
        example, position = (np.arange(len(where)), np.zeros(len(where), int)) if rows is None else _nonzero(rows)
        self.examples.append(where[example])
        self.positions.append(position + shift)

    @property
    def order(self) -> np.ndarray:
        return np.lexsort((np.concatenate(self.positions), np.concatenate(self.examples)))

    @property
    def rows(self) -> Rows:
        """Places of the rows, in the data's order."""
        order = self.order
        return Rows(np.concatenate(self.examples)[order], np.concatenate(self.positions)[order], self.num_examples)


class Everything(Collector):
    """Keeps all logits."""

    def __init__(self, likelihood: Likelihood, with_labels: bool):
        super().__init__(likelihood, with_labels)
        self.logits: list[np.ndarray] = []
        self.labels: list[np.ndarray] = []

    def add(self, where: np.ndarray, batch: Batch, chunks: Iterator[Tensor]) -> None:
        logits = torch.cat([chunk.cpu() for chunk in chunks], dim=0)
        labels = batch.get("labels") if self.with_labels else None
        labels = None if labels is None else torch.as_tensor(labels).cpu()
        rows = None
        if isinstance(self.likelihood, PerToken):
            labels = None if labels is None else self.likelihood.targets(labels)
            rows = _tokens(batch, logits) if labels is None else labels != IGNORED
            logits, labels = logits[:, rows], None if labels is None else labels[rows]
        self.place(where, rows)
        self.logits.append(logits.double().numpy())
        if labels is not None:
            self.labels.append(labels.numpy())

    def result(self) -> Outputs:
        padded = self.logits
        if isinstance(self.likelihood, QuestionAnswering):
            longest = max(values.shape[2] for values in self.logits)
            # Positions that only longer examples have are as impossible as padding.
            padded = [
                np.pad(values, ((0, 0), (0, 0), (0, longest - values.shape[2]), (0, 0)), constant_values=-np.inf)
                for values in self.logits
            ]
        labels = np.concatenate(self.labels)[self.order] if self.labels else None
        rows = self.rows if isinstance(self.likelihood, PerToken) else None
        return Outputs(np.concatenate(padded, axis=1)[:, self.order], labels, rows)


class Summaries(Collector):
    """Keeps a few numbers per observed token: a vocabulary's logits at all draws do not fit the memory."""

    likelihood: LanguageModel

    def __init__(self, likelihood: Likelihood, with_labels: bool):
        super().__init__(likelihood, with_labels)
        self.parts: list[dict[str, np.ndarray]] = []

    def add(self, where: np.ndarray, batch: Batch, chunks: Iterator[Tensor]) -> None:
        if batch.get("labels") is None:
            raise ValueError(
                "A language model's prediction says how probable given tokens are, and the data has none: give a "
                "'labels' column."
            )
        targets = self.likelihood.targets(torch.as_tensor(batch["labels"]))
        seen = targets != IGNORED
        tokens = targets[seen]
        self.place(where, seen, self.likelihood.shift)
        total: Any = 0.0
        aleatoric: Any = 0.0
        draws, sampled = [], []
        for logits in chunks:
            rows = logits[:, seen.to(logits.device)]
            probs = rows.to(torch.promote_types(rows.dtype, torch.float32)).softmax(-1)
            given = tokens.to(probs.device).expand(probs.shape[:-1])[..., None]
            draws.append(probs.gather(-1, given)[..., 0].cpu())
            sampled.append(torch.multinomial(probs.flatten(0, 1), 1).view(probs.shape[:-1]).cpu())
            aleatoric = aleatoric + torch.special.entr(probs).sum((0, -1)).double()
            total = total + probs.double().sum(0)
        num_draws = sum(map(len, draws))
        mean = total / num_draws
        self.parts.append(
            {
                "draws": torch.cat(draws).double().numpy(),
                "tokens": tokens.numpy(),
                "most_probable": mean.argmax(-1).cpu().numpy(),
                "mixture_entropy": torch.special.entr(mean).sum(-1).cpu().numpy(),
                "mean_entropy": (aleatoric / num_draws).cpu().numpy(),
                "sampled": torch.cat(sampled).numpy(),
            }
        )

    def result(self) -> LanguagePrediction:
        parts, order = self.parts, self.order
        columns = {name: np.concatenate([part[name] for part in parts], axis=-1)[..., order] for name in parts[0]}
        return LanguagePrediction(**columns, rows=self.rows)


def _nonzero(rows: Tensor) -> tuple[np.ndarray, np.ndarray]:
    example, position = rows.cpu().numpy().nonzero()
    return example, position


def _tokens(batch: Batch, logits: Tensor) -> Tensor:
    """Which positions are no padding, `[batch, token]`."""
    mask = batch.get("attention_mask")
    return torch.ones(logits.shape[1:3], dtype=torch.bool) if mask is None else mask.cpu() != 0


def chunks(
    logits: Callable[[Mapping[str, Any], Batch], Tensor], factors: Mapping[str, Any], batch: Batch, num_draws: int
) -> Iterator[Tensor]:
    """Logits of a batch as a function of factors, a few draws at a time, `[draw, batch, …]`."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    positions = max(value[:, :1].numel() if value.is_floating_point() else value.numel() for value in tensors(inputs))
    chunk = max(1, FOLDED_POSITIONS // positions)
    for start in range(0, num_draws, chunk):
        part = {
            name: type(value)(*(factor[start : start + chunk] for factor in value)) for name, value in factors.items()
        }
        yield logits(part, batch)


def _check_linear(program: Program, factors: Mapping[str, Any], inputs: Batch, linear: Tensor) -> None:
    """Warn if linearised predictions are far from the network's own, on a few draws and examples."""
    linear = linear[:CHECKED_DRAWS, :CHECKED_EXAMPLES]
    few_draws = {name: type(value)(*(f[:CHECKED_DRAWS] for f in value)) for name, value in factors.items()}
    size = max(len(value) for value in tensors(inputs))
    few = {n: v[:CHECKED_EXAMPLES] if has_rows(v) and len(v) == size else v for n, v in inputs.items()}
    with torch.inference_mode():
        exact = torch.cat(list(chunks(program.network_logits, few_draws, few, len(linear))))
    with seeded(0), pyro.validation_enabled(False):
        divergence = program.likelihood.divergence(exact.double(), linear.double())
    if divergence > TRUSTED_DIVERGENCE:
        warnings.warn(
            f"Linearised predictions are not to be trusted here: on {exact.shape[1]} examples, averaged over the same "
            f"{len(linear)} draws, they diverge from the network's by {divergence:.3f} nats per example. The noise is "
            "too loud for a first-order expansion: predict with approximation='draws'.",
            stacklevel=2,
        )


def tensors(batch: Batch) -> list[Tensor]:
    """The tensors of a batch that have rows."""
    return [value for value in batch.values() if isinstance(value, Tensor) and value.dim() > 0]


def centre_sites(program: Program) -> dict[str, Tensor]:
    """Every site at its guide's mean, as one draw, `[1, layer, …]`."""
    with torch.no_grad():
        return {name: value.unsqueeze(0) for name, value in program.centre().items()}
