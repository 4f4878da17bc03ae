"""Which texts mean the same."""

import unicodedata
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeAlias

import numpy as np

from bayeslora.contracts import Kind, Within, checked

Equivalence: TypeAlias = Annotated[Any, Kind("a function of two texts that says whether they mean the same", callable)]
"""A function of two texts."""

Encoder: TypeAlias = Annotated[
    Any, Kind("a function from a list of texts to their embeddings, [text, feature]", callable)
]
Entailment: TypeAlias = Annotated[Any, Kind("a function of two texts that says how sure the second follows", callable)]


def plain(text: str) -> str:
    """Return a text in lower case, without punctuation, and with single spaces."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(" " if unicodedata.category(c)[0] == "P" else c for c in folded).split())


def same_words(text: str, other: str) -> bool:
    """Return whether two texts are the same but for case, punctuation and spaces, or the same at all if that is all."""
    words = plain(text)
    return words == plain(other) and (bool(words) or text.strip() == other.strip())


@checked()
def by_embedding(
    encode: Encoder, at_least: Annotated[float, Within(at_least=-1, at_most=1)] = 0.9
) -> Callable[[str, str], bool]:
    """Return an equivalence: the cosine of two texts' embeddings is at least so large.

    Args:
        encode: From a list of texts to an array, `[text, feature]`, such as the `encode` of a sentence encoder.
        at_least: The least cosine.
    """
    known: dict[str, np.ndarray] = {}

    def embedding(text: str) -> np.ndarray:
        if text not in known:
            vector = np.asarray(encode([text]), dtype=np.float64)[0]
            known[text] = vector / max(float(np.linalg.norm(vector)), np.finfo(np.float64).tiny)
        return known[text]

    return lambda text, other: text == other or float(embedding(text) @ embedding(other)) >= at_least


@checked()
def by_entailment(
    entails: Entailment, at_least: Annotated[float, Within(at_least=0, at_most=1, noun="probability")] = 0.5
) -> Callable[[str, str], bool]:
    """Return an equivalence: each of two texts follows from the other, as in Kuhn et al. (2023).

    Args:
        entails: Of a premise and a hypothesis: whether it follows, or with which probability, such as an NLI model has.
            Put the question before both texts if they are short.
        at_least: The least probability.
    """

    def same(text: str, other: str) -> bool:
        return text == other or all(float(entails(*pair)) >= at_least for pair in ((text, other), (other, text)))

    return same


def meanings(texts: Sequence[str], equal: Callable[[str, str], bool]) -> np.ndarray:
    """Return the number of each text's meaning, `[text]`, from 0 in the order in which they come.

    A text has the meaning of the first text before it that it is equal to, of those that began a new one.
    """
    first: list[str] = []
    numbers = []
    for text in texts:
        number = next((index for index, other in enumerate(first) if bool(equal(other, text))), len(first))
        first += [text] if number == len(first) else []
        numbers.append(number)
    return np.asarray(numbers, dtype=int)
