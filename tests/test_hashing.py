"""Reading data never hashes the network: `datasets` pickles whatever is mapped over a table, with all that it holds."""

from collections.abc import Callable
from typing import Any

import datasets
import pytest
from datasets import Dataset
from datasets.utils._dill import Pickler
from torch import nn

from bayeslora.data import Source
from bayeslora.tasks import QuestionAnswering
from tests.architectures.tiny import tiny_model
from tests.helpers import tiny_bert
from tests.test_data import TEXTS, tiny_tokenizer

BUDGET = 20_000
"""Objects that may be pickled while a few rows are read; a tiny network alone has more."""


@pytest.fixture
def pickled(monkeypatch: pytest.MonkeyPatch) -> list[type]:
    """Classes of what is pickled for a hash."""
    seen: list[type] = []
    save = Pickler.save

    def noted(self: Any, obj: Any, *others: Any, **settings: Any) -> Any:
        seen.append(type(obj))
        return save(self, obj, *others, **settings)

    monkeypatch.setattr(Pickler, "save", noted)
    return seen


def bert() -> nn.Module:
    return tiny_bert()


def bart() -> nn.Module:
    return tiny_model("BartForConditionalGeneration")


def answering() -> nn.Module:
    return tiny_model("BertForQuestionAnswering")


LABELS = [0, 1, 0, 1, 0]
IDS = [[2, 3, 4]] * 5
CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "tokens": (bert, {"input_ids": IDS, "label": LABELS}),
    "text": (bert, {"text": TEXTS, "label": LABELS}),
    "pairs of texts": (bert, {"premise": TEXTS, "hypothesis": TEXTS, "label": LABELS}),
    "texts as labels": (bart, {"text": TEXTS, "labels": TEXTS}),
    "spans": (answering, {"input_ids": IDS, "start_positions": LABELS, "end_positions": [2] * 5}),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("streamed", [False, True])
def test_no_network_is_hashed(name: str, streamed: bool, pickled: list[type]) -> None:
    make, columns = CASES[name]
    model, tokenizer = make(), tiny_tokenizer()
    table: Any = Dataset.from_dict(columns)
    table = table.to_iterable_dataset() if streamed else table
    datasets.disable_caching()  # a cached table would not be mapped
    pickled.clear()
    try:
        kind = QuestionAnswering if name == "spans" else None
        rows = [*Source(table, model, tokenizer, num_examples=5 if streamed else None).about(kind).batches(2)]
    finally:
        datasets.enable_caching()
    assert len(rows) == 3
    assert not [cls for cls in pickled if issubclass(cls, nn.Module)]
    assert len(pickled) < BUDGET
    assert streamed or name == "tokens" or pickled, "nothing was mapped"


def test_what_holds_the_network_would_be_seen(pickled: list[type]) -> None:
    model = tiny_bert()
    Dataset.from_dict({"x": [1]}).map(lambda row: {"y": model.num_labels})
    assert any(issubclass(cls, nn.Module) for cls in pickled)
