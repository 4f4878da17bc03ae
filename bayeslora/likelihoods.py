r"""Likelihoods: from the network's logits to a distribution over the labels.

The unit is the example, everywhere. An example's log-likelihood is that of all its labels together, summed over tokens
where there are several, in nats; the training loss is its mean over the examples of a batch, negated. So the loss of a
batch, `evaluate`'s `nll` and the pointwise terms of `arviz.loo` are the same quantity, a KL enters as KL / n whatever
the task, and every token of the data weighs the same. (`transformers` divides by the tokens of the batch instead.)
"""

import abc
import math
import string
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from jaxtyping import Float
from pyro import poutine
from torch import Tensor, nn

from bayeslora.types import IGNORED, Batch, Logits, RealLogits, TokenLogits

NUM_SAMPLES = 32
"""Samples for each draw of a mixture, to estimate a divergence: for one of 0.01, to within about 0.002."""


class Likelihood(nn.Module, abc.ABC):
    """p(labels given logits), one independent factor per example.

    It is a module: parameters of its own, such as a noise scale, are trained with the adapters and saved with them.
    Named `log_*`, as in a guide, they take no weight decay.

    Attributes:
        name: What `fit(likelihood=…)` calls it, and a saved posterior.
        learning_rate: Peak learning rate of its own parameters. A noise scale that starts at the labels' standard
            deviation may have to shrink tenfold, which at the rate of the adapters would take thousands of steps.
        has_temperature: Whether dividing its logits by a temperature sharpens or flattens its distribution.
        unit: The size of differences between logits that matter, by which the output layer's learning rate is
            multiplied; that of log-odds is 1.
    """

    name: ClassVar[str]
    learning_rate: ClassVar[float] = 5e-2
    has_temperature: ClassVar[bool] = True
    unit: float = 1.0

    @classmethod
    @abc.abstractmethod
    def fitting(cls, logits: Tensor, labels: Any, tokenizer: Any = None) -> "Likelihood":
        """One for a network with such outputs and data with such labels.

        Args:
            logits: What the network returns for a few examples.
            labels: Labels of the training data, as many as are at hand.
            tokenizer: The data's tokenizer, if there is one.
        """

    @abc.abstractmethod
    def distribution(self, logits: Tensor) -> dist.Distribution:
        """The distribution of an example's labels, batch shape `[*draw, batch]`."""

    @abc.abstractmethod
    def check_labels(self, labels: Any) -> None:
        """Raise a ValueError that says what is wrong with the labels, if anything is."""

    @abc.abstractmethod
    def config(self) -> dict[str, Any]:
        """What its constructor needs, for a saved posterior."""

    @property
    def num_labels(self) -> int | None:
        """The `num_labels` with which `transformers` loads a model for it; None where it takes none."""
        return None

    def select(self, logits: Tensor, batch: Batch) -> Tensor:
        """The part of the network's logits that the labels are about, `[*draw, batch, …]`; by default, all of it."""
        return logits

    @torch.no_grad()
    def divergence(self, logits: Tensor, others: Tensor) -> float:
        """KL divergence of a mixture over draws from another, `[draw, batch, …]`, in nats per example.

        It is what predicting the other one adds to the NLL of labels that come from the first. Estimated from samples.
        """
        mixture, other = self.distribution(logits), self.distribution(others)
        labels = mixture.sample((NUM_SAMPLES,)).flatten(0, 1).unsqueeze(1)
        log_prob, other_log_prob = (d.log_prob(labels).logsumexp(1) for d in (mixture, other))
        return float((log_prob - other_log_prob).mean())

    def observe(self, logits: Tensor, labels: Tensor) -> None:
        """The observation, averaged over the batch: log-likelihood in nats per example."""
        size = len(labels)
        with pyro.plate("examples", size, dim=-1), poutine.scale(scale=1 / size):
            pyro.sample("labels", self.distribution(logits), obs=labels)

    def log_prob(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Log-likelihood per example in nats, `[*draw, batch]`."""
        return self.distribution(logits).log_prob(labels)


class Categorical(Likelihood):
    r"""One of several classes per example: $p(y) = \mathrm{softmax}(f)_y$."""

    num_classes: int

    @property
    def num_labels(self) -> int | None:
        return self.num_classes

    def distribution(self, logits: Logits) -> dist.Distribution:
        return dist.Categorical(logits=_precise(logits))

    def check_labels(self, labels: Any) -> None:
        _check_classes(labels, self.num_classes, "classification")


class Classification(Categorical):
    r"""One class per example: $p(y) = \mathrm{softmax}(f)_y$.

    Labels: a whole number.
    Logits: `[batch, class]`.

    Args:
        num_classes: Number of classes.
    """

    name = "classification"

    def __init__(self, num_classes: int):
        super().__init__()
        if num_classes < 2:
            raise ValueError(
                f"Classification needs at least two classes, and the network has {num_classes} output(s): load it "
                "with `num_labels` set to the number of classes; or, for real numbers, set likelihood='regression'."
            )
        self.num_classes = num_classes

    @classmethod
    def fitting(cls, logits: Tensor, labels: Any, tokenizer: Any = None) -> "Classification":
        return cls(logits.shape[-1])

    def config(self) -> dict[str, Any]:
        return {"num_classes": self.num_classes}


class MultipleChoice(Categorical):
    r"""One of several choices per example, of which the network scores each: $p(y) = \mathrm{softmax}(f)_y$.

    Labels: the number of a choice; inputs are `[choice, token]`.
    Logits: `[batch, choice]`.

    Args:
        num_choices: Number of choices.
    """

    name = "multiple_choice"

    def __init__(self, num_choices: int):
        super().__init__()
        self.num_classes = num_choices

    @classmethod
    def fitting(cls, logits: Tensor, labels: Any, tokenizer: Any = None) -> "MultipleChoice":
        return cls(logits.shape[-1])

    @property
    def num_labels(self) -> int | None:
        return None

    def select(self, logits: Logits, batch: Batch) -> Logits:
        """The logits, −∞ for a choice that is padding throughout: examples may have fewer choices than others."""
        mask = batch.get("attention_mask")
        if mask is None or mask.dim() != 3:
            return logits
        return _precise(logits).masked_fill(~mask.to(logits.device).bool().any(-1), -math.inf)

    def config(self) -> dict[str, Any]:
        return {"num_choices": self.num_classes}


class AnswerLetters(Categorical):
    r"""One of several answers per prompt: the next token of a causal language model, restricted to their letters.

    Labels: the number of an answer.
    Logits: those of the next token, `[batch, token, vocabulary]`.

    Args:
        token_ids: The token of each answer.
    """

    name = "answer_letters"

    def __init__(self, token_ids: Sequence[int]):
        super().__init__()
        if len(set(token_ids)) < 2 or len(set(token_ids)) < len(token_ids):
            raise ValueError(f"token_ids={list(token_ids)}: give two or more different tokens, one for each answer.")
        self.token_ids = list(token_ids)
        self.num_classes = len(self.token_ids)

    @classmethod
    def fitting(cls, logits: Tensor, labels: Any, tokenizer: Any = None) -> "AnswerLetters":
        if tokenizer is None:
            raise ValueError(
                "Which tokens stand for the answers cannot be told without the tokenizer: pass tokenizer=…, or "
                "likelihood=AnswerLetters(token_ids=[…])."
            )
        count = max(int(np.max(np.asarray(labels))) + 1, 2)
        return cls.of(tokenizer, [f" {letter}" for letter in string.ascii_uppercase[:count]])

    @classmethod
    def of(cls, tokenizer: Any, answers: Sequence[str]) -> "AnswerLetters":
        """The last token of each answer, such as `" A"`, `" B"`, `" C"`."""
        return cls([tokenizer(answer, add_special_tokens=False)["input_ids"][-1] for answer in answers])

    @property
    def num_labels(self) -> int | None:
        return None

    def select(self, logits: Float[Tensor, "*draw batch token vocabulary"], batch: Batch) -> Logits:
        """Logits of the answers after the last token that is no padding."""
        last = torch.full((logits.shape[-3],), logits.shape[-2] - 1, device=logits.device)
        mask = batch.get("attention_mask")
        if mask is not None:
            last = (mask.to(logits.device) * torch.arange(mask.shape[-1], device=logits.device)).argmax(-1)
        ids = torch.as_tensor(self.token_ids, device=logits.device)
        return logits[..., torch.arange(len(last), device=logits.device), last, :][..., ids]

    def config(self) -> dict[str, Any]:
        return {"token_ids": self.token_ids}


class RealValued(Likelihood):
    r"""One real number per example, the network's one logit plus noise: $y = f + \sigma \epsilon$.

    Attributes:
        log_scale: ln σ, σ in units of the labels.
        df: Degrees of freedom of the noise's Student t distribution; infinite for Normal noise.
    """

    has_temperature = False
    df: float = math.inf

    def __init__(self, scale: float = 1.0, learned: bool = True):
        super().__init__()
        if not 0 < scale < math.inf:
            raise ValueError(f"scale={scale!r}: give a positive number, the noise's scale in units of the labels.")
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)), requires_grad=learned)
        self.unit = max(scale, 1.0)

    @classmethod
    def fitting(cls, logits: Tensor, labels: Any, tokenizer: Any = None) -> "RealValued":
        spread = float(np.std(np.asarray(labels, dtype=np.float64)))
        return cls(spread if 0 < spread < math.inf else 1.0)

    @property
    def num_labels(self) -> int | None:
        return 1

    @property
    def scale(self) -> float:
        """σ, in units of the labels."""
        return math.exp(self.log_scale.item())

    def select(self, logits: Tensor, batch: Batch) -> RealLogits:
        if logits.shape[-1] != 1:
            raise ValueError(
                f"Regression needs one output per example, [batch, 1], and the network returns {tuple(logits.shape)}: "
                "load it with num_labels=1, or let its forward end with .unsqueeze(-1)."
            )
        return _precise(logits.squeeze(-1))

    def residuals(self, logits: Tensor, batch: Batch) -> RealLogits:
        """Labels minus logits."""
        logits = self.select(logits, batch)
        return batch["labels"].to(logits) - logits

    def log_prob(self, logits: RealLogits, labels: Tensor) -> Tensor:
        return super().log_prob(logits, labels.to(logits.dtype))

    def observe(self, logits: RealLogits, labels: Tensor) -> None:
        super().observe(logits, labels.to(logits.dtype))

    def check_labels(self, labels: Any) -> None:
        values = np.asarray(labels)
        if values.dtype.kind not in "fiub" or values.ndim != 1:
            raise ValueError(
                f"Labels are {values.dtype} of shape {values.shape}; regression needs one number per example."
            )
        if not np.isfinite(values.astype(np.float64)).all():
            row = int(np.flatnonzero(~np.isfinite(values.astype(np.float64)))[0])
            raise ValueError(f"Labels are NaN or infinite, the first in row {row}: remove those rows, or fill them.")

    def config(self) -> dict[str, Any]:
        return {"scale": self.scale, "learned": self.log_scale.requires_grad}


class Regression(RealValued):
    r"""A real number with Normal noise: $y \sim N(f, \sigma^2)$.

    Labels: a real number.
    Logits: `[batch, 1]`.

    Args:
        scale: σ, in units of the labels: its start, or its value if it is not learned.
        learned: Whether σ is learned, one for all examples.
    """

    name = "regression"

    def distribution(self, logits: RealLogits) -> dist.Distribution:
        return dist.Normal(logits, self.log_scale.exp())


class StudentT(RealValued):
    r"""A real number with Student t noise, for labels with outliers: $(y - f) / \sigma \sim t_\nu$.

    Labels: a real number.
    Logits: `[batch, 1]`.

    Args:
        scale: σ, in units of the labels: its start, or its value if it is not learned.
        df: ν, degrees of freedom, above 2 (a finite variance).
        learned: Whether σ is learned, one for all examples. ν is not.
    """

    name = "student_t"

    def __init__(self, scale: float = 1.0, df: float = 4.0, learned: bool = True):
        super().__init__(scale, learned)
        if not 2 < df < math.inf:
            raise ValueError(f"df={df!r}: give a number above 2.")
        self.df = df

    def distribution(self, logits: RealLogits) -> dist.Distribution:
        return dist.StudentT(self.df, logits, self.log_scale.exp())

    def config(self) -> dict[str, Any]:
        return {**super().config(), "df": self.df}


class MultiLabel(Likelihood):
    r"""Any of several labels per example, independent given the logits: $p(y_j = 1) = 1 / (1 + e^{-f_j})$.

    Labels: a row of 0 and 1.
    Logits: `[batch, label]`.

    Args:
        num_classes: Number of labels.
    """

    name = "multilabel"

    def __init__(self, num_classes: int):
        super().__init__()
        self.num_classes = num_classes

    @classmethod
    def fitting(cls, logits: Tensor, labels: Any, tokenizer: Any = None) -> "MultiLabel":
        return cls(logits.shape[-1])

    @property
    def num_labels(self) -> int | None:
        return self.num_classes

    def distribution(self, logits: Logits) -> dist.Distribution:
        return dist.Bernoulli(logits=_precise(logits)).to_event(1)

    def observe(self, logits: Logits, labels: Tensor) -> None:
        super().observe(logits, labels.to(_precise(logits).dtype))

    def log_prob(self, logits: Logits, labels: Tensor) -> Tensor:
        return super().log_prob(logits, labels.to(_precise(logits).dtype))

    def check_labels(self, labels: Any) -> None:
        values = np.asarray(labels)
        if values.ndim != 2 or values.shape[-1] != self.num_classes or not np.isin(values, (0, 1)).all():
            raise ValueError(
                f"Labels of shape {values.shape} do not fit {self.num_classes} labels per example: give a row of "
                f"{self.num_classes} numbers, 0 or 1, for each."
            )

    def config(self) -> dict[str, Any]:
        return {"num_classes": self.num_classes}


class Tokens(dist.TorchDistribution):
    r"""Independent categorical tokens, one event; a value of −100 is not observed.

    Args:
        logits: `[…, token, class]`.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = False

    def __init__(self, logits: Tensor):
        self.logits = logits
        super().__init__(logits.shape[:-2], logits.shape[-2:-1], validate_args=False)

    def token_log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of each token, 0 where it is not observed, `[…, token]`."""
        value = value.expand(self.logits.shape[:-1])
        losses = F.cross_entropy(self.logits.flatten(0, -2), value.flatten(), ignore_index=IGNORED, reduction="none")
        return -losses.view(value.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.token_log_prob(value).sum(-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return dist.Categorical(logits=self.logits).sample(sample_shape)


class PerToken(Likelihood):
    r"""A class per token, independent given the logits, $\prod_t \mathrm{softmax}(f_t)_{y_t}$; −100 is not observed.

    Attributes:
        shift: How many tokens before its own place a label's logits are.
    """

    shift: ClassVar[int] = 0
    num_classes: int

    def __init__(self, num_classes: int):
        super().__init__()
        self.num_classes = num_classes

    @classmethod
    def fitting(cls, logits: Tensor, labels: Any, tokenizer: Any = None) -> "PerToken":
        return cls(logits.shape[-1])

    def targets(self, labels: Tensor) -> Tensor:
        """The label that each position of the logits is about, `[batch, token]`; −100 where there is none."""
        return F.pad(labels[:, self.shift :], (0, self.shift), value=IGNORED)

    def distribution(self, logits: TokenLogits) -> dist.Distribution:
        return Tokens(_precise(logits))

    def observe(self, logits: TokenLogits, labels: Tensor) -> None:
        super().observe(logits, self.targets(labels))

    def log_prob(self, logits: TokenLogits, labels: Tensor) -> Tensor:
        return super().log_prob(logits, self.targets(labels))

    def check_labels(self, labels: Any) -> None:
        _check_classes(labels, self.num_classes, f"{self.name} (besides {IGNORED}, not observed)", IGNORED)

    def config(self) -> dict[str, Any]:
        return {"num_classes": self.num_classes}


class TokenClassification(PerToken):
    """One class per token, such as the parts of a name; tokens labelled −100 are not observed.

    Labels: a class per token; −100 is not observed.
    Logits: `[batch, token, class]`.

    Args:
        num_classes: Number of classes.
    """

    name = "token_classification"

    @property
    def num_labels(self) -> int | None:
        return self.num_classes


class LanguageModel(PerToken):
    """The tokens of a vocabulary, each given those before it (or, of a masked model, around it).

    A vocabulary is too large to keep every draw's probabilities: predictions are summarised token by token.
    """

    has_temperature = False


class CausalLM(LanguageModel):
    """The next token, of a causal language model; tokens labelled −100, such as a prompt, are not observed.

    Labels: the tokens; −100 is not observed; without labels, the inputs.
    Logits: `[batch, token, vocabulary]`.

    Labels are those of `transformers`, at the place of the token itself; where the data has none, they are the inputs.

    Args:
        num_classes: Size of the vocabulary.
    """

    name = "causal_lm"
    shift = 1


class Seq2SeqLM(LanguageModel):
    """The tokens that an encoder-decoder writes, or that a masked language model fills in; −100 is not observed.

    Labels: the tokens to write, or texts; −100 is not observed.
    Logits: `[batch, token, vocabulary]`.

    Args:
        num_classes: Size of the vocabulary.
    """

    name = "seq2seq_lm"


class Positions(dist.TorchDistribution):
    """Start and end of a span, independent: one event of two positions.

    Args:
        logits: `[…, position, 2]`.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = False

    def __init__(self, logits: Tensor):
        self.ends = dist.Categorical(logits=logits.transpose(-2, -1))
        super().__init__(logits.shape[:-2], (2,), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.ends.log_prob(value).sum(-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.ends.sample(sample_shape)


class QuestionAnswering(Likelihood):
    r"""First and last token of the answer: $p(i, j) = \mathrm{softmax}(f^{start})_i\, \mathrm{softmax}(f^{end})_j$.

    Labels: the first and last token, or columns `start_positions` and `end_positions`.
    Logits: start and end, `[batch, token]` each.

    Labels are `[start, end]`, or the two columns `start_positions` and `end_positions`. Padding has probability 0.
    (`transformers` halves the sum of the two losses; this is the log-likelihood of both.)
    """

    name = "question_answering"

    @classmethod
    def fitting(cls, logits: Tensor, labels: Any, tokenizer: Any = None) -> "QuestionAnswering":
        return cls()

    def select(self, logits: TokenLogits, batch: Batch) -> TokenLogits:
        mask = batch.get("attention_mask")
        if mask is None:
            return logits
        return _precise(logits).masked_fill((mask.to(logits.device) == 0)[..., None], -math.inf)

    def distribution(self, logits: TokenLogits) -> dist.Distribution:
        return Positions(_precise(logits))

    def check_labels(self, labels: Any) -> None:
        values = np.asarray(labels)
        if values.dtype.kind not in "iu" or values.ndim != 2 or values.shape[-1] != 2 or (values < 0).any():
            raise ValueError(
                f"Labels are {values.dtype} of shape {values.shape}; question answering needs the position of the "
                "answer's first and last token, from 0, for each example (those of the first token for no answer)."
            )

    def config(self) -> dict[str, Any]:
        return {}


class Observation(Likelihood):
    """A likelihood of your own: a callable that makes the observation, as in a Pyro program.

    Labels: anything.
    Logits: anything.

    For counts, say: `lambda logits, labels: pyro.sample("labels", dist.Poisson(logits[..., 0].exp()), obs=labels)`. It
    makes one site, `"labels"`, of batch shape `[*draw, batch]`, and runs in a plate over the examples of a batch.

    Args:
        observe: Called with logits `[*draw, batch, …]` and labels `[batch, …]`, or None to draw them.
    """

    name = "observation"
    has_temperature = False

    def __init__(self, observe: Callable[[Tensor, Tensor | None], Any]):
        super().__init__()
        self.make = observe

    @classmethod
    def fitting(cls, logits: Tensor, labels: Any, tokenizer: Any = None) -> "Observation":
        raise ValueError("likelihood='observation' needs the callable itself: likelihood=your_callable.")

    def site(self, logits: Tensor, labels: Tensor | None) -> dict[str, Any]:
        """The site that the callable makes."""
        trace = poutine.trace(self.make).get_trace(_precise(logits), labels)
        names = [name for name, site in trace.nodes.items() if site["type"] == "sample"]
        if names != ["labels"]:
            raise ValueError(f"The likelihood makes sites {names}: let it make one, 'labels'.")
        return trace.nodes["labels"]

    def distribution(self, logits: Tensor) -> dist.Distribution:
        return self.site(logits, None)["fn"]

    def observe(self, logits: Tensor, labels: Tensor) -> None:
        size = len(labels)
        with pyro.plate("examples", size, dim=-1), poutine.scale(scale=1 / size):
            self.make(_precise(logits), labels)

    def log_prob(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.site(logits, labels)["fn"].log_prob(labels)

    def check_labels(self, labels: Any) -> None:
        """Nothing is known about the labels."""

    def config(self) -> dict[str, Any]:
        return {}


LIKELIHOODS: dict[str, type[Likelihood]] = {
    cls.name: cls
    for cls in (
        *(Classification, Regression, StudentT, MultiLabel, TokenClassification, MultipleChoice, AnswerLetters),
        *(QuestionAnswering, CausalLM, Seq2SeqLM, Observation),
    )
}
"""Name to class: what `fit(likelihood=…)` takes."""


def _precise(logits: Tensor) -> Tensor:
    """Logits in single precision at least."""
    return logits if logits.dtype == torch.float64 else logits.float()


def _check_classes(labels: Any, num_classes: int, task: str, ignored: int | None = None) -> None:
    """Raise a ValueError unless labels are whole numbers below the number of classes, or the ignored one."""
    values = np.asarray(labels)
    if values.dtype.kind in "OSU":
        raise ValueError(
            f"Labels are text, such as {str(values.flat[0])!r}: number them from 0, for a datasets.Dataset with "
            "data.class_encode_column('label')."
        )
    labels = torch.as_tensor(labels)
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"Labels are {labels.dtype}; {task} needs whole numbers from 0 to {num_classes - 1}.")
    if ignored is not None:
        labels = labels[labels != ignored]
    if labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) < num_classes):
        raise ValueError(
            f"Labels range from {int(labels.min())} to {int(labels.max())}, and the network has "
            f"{num_classes} classes, 0 to {num_classes - 1}: renumber the labels, or load the model with "
            f"num_labels={int(labels.max()) + 1}."
        )
