"""Text written by draws of a language model, or by their average."""

from bayeslora.generation.answering import Answers, grouped
from bayeslora.generation.meaning import Equivalence, by_embedding, by_entailment, same_words
from bayeslora.generation.prompts import encode, repeated
from bayeslora.generation.settings import of_posterior as settings_of
from bayeslora.generation.settings import sampling
from bayeslora.generation.text import Generation
from bayeslora.generation.writing import generate

__all__ = [
    "Answers",
    "Equivalence",
    "Generation",
    "by_embedding",
    "by_entailment",
    "encode",
    "generate",
    "grouped",
    "repeated",
    "same_words",
    "sampling",
    "settings_of",
]
