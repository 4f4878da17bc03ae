"""Kinds of labels: one file each, with p(labels given logits), its prediction, the tables it reads and its scores."""

# A kind is one line here, in the order in which they are listed.
# isort: off
from bayeslora.tasks.base import Likelihood as Likelihood
from bayeslora.tasks.classification import Classification as Classification
from bayeslora.tasks.regression import Regression as Regression
from bayeslora.tasks.regression import StudentT as StudentT
from bayeslora.tasks.ordinal import Ordinal as Ordinal
from bayeslora.tasks.multilabel import MultiLabel as MultiLabel
from bayeslora.tasks.token_classification import TokenClassification as TokenClassification
from bayeslora.tasks.multiple_choice import MultipleChoice as MultipleChoice
from bayeslora.tasks.answer_letters import AnswerLetters as AnswerLetters
from bayeslora.tasks.question_answering import QuestionAnswering as QuestionAnswering
from bayeslora.tasks.language_model import CausalLM as CausalLM
from bayeslora.tasks.language_model import Seq2SeqLM as Seq2SeqLM
from bayeslora.tasks.observation import Observation as Observation
# isort: on

LIKELIHOODS: dict[str, type[Likelihood]] = {
    cls.name: cls
    for cls in tuple(globals().values())
    if isinstance(cls, type) and issubclass(cls, Likelihood) and "name" in vars(cls)
}
"""Name to class: what `fit(likelihood=…)` takes."""
