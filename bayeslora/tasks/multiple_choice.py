r"""One of several choices per example, each of which the network scores."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from bayeslora.contracts import ClassCount, checked
from bayeslora.networks import continues, is_a
from bayeslora.tasks import choices
from bayeslora.tasks.base import Reader, precise
from bayeslora.tasks.classification import Categorical
from bayeslora.types import Batch, Logits

if TYPE_CHECKING:
    from datasets import Dataset


class MultipleChoice(Categorical):
    r"""One of several choices per example, of which the network scores each: $p(y) = \mathrm{softmax}(f)_y$.

    Labels: the number of a choice; inputs are `[choice, token]`.
    Logits: `[batch, choice]`.

    Args:
        num_choices: Number of choices.
    """

    name = "multiple_choice"
    auto_class: ClassVar[str] = "AutoModelForMultipleChoice"
    answer_columns = choices.KEYS

    @checked()
    def __init__(self, num_choices: ClassCount):
        super().__init__(num_choices)

    @property
    def num_labels(self) -> int | None:
        return None

    def select(self, logits: Logits, batch: Batch) -> Logits:
        """Set the logits of choices that are all padding to −∞: some examples have fewer choices than others."""
        mask = batch.get("attention_mask")
        if mask is None or mask.dim() != 3:
            return logits
        return precise(logits).masked_fill(~mask.to(logits.device).bool().any(-1), -math.inf)

    def config(self) -> dict[str, Any]:
        return {"num_choices": self.num_classes}

    @classmethod
    def suggested_by(cls, columns: Sequence[str], label: Any) -> bool:
        return choices.are_in(columns)

    @classmethod
    def is_of(cls, model: nn.Module) -> bool:
        return is_a(model, "MULTIPLE_CHOICE")

    @classmethod
    def fits(cls, model: nn.Module, logits: Tensor, labels: Tensor) -> bool:
        return logits.dim() == 2 and labels.dim() == 1 and cls.is_of(model)

    @classmethod
    def columns_read(cls, columns: Sequence[str]) -> dict[str, list[str]]:
        return choices.columns_read(columns)

    @classmethod
    def reads(cls, columns: Sequence[str], model: nn.Module) -> bool:
        return choices.are_in(columns) and not continues(model)

    @classmethod
    def read(cls, table: "Dataset", reader: Reader) -> tuple[list[dict[str, Any]], None]:
        """Turn each question into one sequence per choice.

        Raises:
            ValueError: If the network scores no choices.
        """
        if not is_a(reader.model, "MULTIPLE_CHOICE"):
            raise ValueError(
                f"{reader.name} has choices, but {type(reader.model).__name__} scores none: load the model as multiple "
                "choice (fit(name, …, likelihood='multiple_choice')) or as a causal language model "
                "(likelihood='answer_letters'), or remove the columns of choices."
            )
        prompts, texts, labels = choices.read(table, reader.name)
        return choices.labelled(choices.encode(prompts, texts, reader.needed_tokenizer()), labels), None
