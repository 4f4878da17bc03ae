"""What every kind of label in `LIKELIHOODS` promises."""

from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from bayeslora import LIKELIHOODS, tasks
from bayeslora.tasks import Likelihood
from bayeslora.testing import LikelihoodContract


def counts(logits: Tensor, labels: Tensor | None) -> Tensor:
    """A user's own observation: counts."""
    return pyro.sample("labels", dist.Poisson(logits[..., 0].exp()), obs=labels)


@dataclass
class Kind:
    """A likelihood, the shape of the network's outputs for one example, and what else it needs."""

    likelihood: Likelihood
    num_outputs: tuple[int, ...]
    batch: dict[str, Tensor] = field(default_factory=dict)
    code: Any = None


MASK = torch.ones(40, 5, dtype=torch.long)
MASK[::3, 3:] = 0
CHOICES = torch.ones(40, 3, 4, dtype=torch.long)
CHOICES[::4, 2] = 0

KINDS = {
    "classification": Kind(tasks.Classification(3), (3,)),
    "regression": Kind(tasks.Regression(0.7), (1,)),
    "student_t": Kind(tasks.StudentT(0.7, df=5.0), (1,)),
    "ordinal": Kind(tasks.Ordinal(4, [-1.0, 0.2, 0.9]), (1,)),
    "multilabel": Kind(tasks.MultiLabel(3), (3,)),
    "token_classification": Kind(tasks.TokenClassification(4), (5, 4)),
    "multiple_choice": Kind(tasks.MultipleChoice(3), (3,), {"attention_mask": CHOICES}),
    "answer_letters": Kind(tasks.AnswerLetters([2, 5, 6]), (5, 8), {"attention_mask": MASK}),
    "question_answering": Kind(tasks.QuestionAnswering(), (5, 2), {"attention_mask": MASK}),
    "causal_lm": Kind(tasks.CausalLM(6), (5, 6)),
    "seq2seq_lm": Kind(tasks.Seq2SeqLM(6), (5, 6)),
    "observation": Kind(tasks.Observation(counts), (1,), code=counts),
}


class TestContract(LikelihoodContract):
    """Each kind of label, Student t and a user's observation among them."""

    @pytest.fixture(autouse=True, params=LIKELIHOODS)
    def choose(self, request: pytest.FixtureRequest) -> None:
        self.kind = KINDS[request.param]
        self.likelihood, self.num_outputs, self.code = self.kind.likelihood, self.kind.num_outputs, self.kind.code

    def batch(self) -> dict[str, Tensor]:
        return self.kind.batch
