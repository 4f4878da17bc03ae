"""Questions with their answers, which precede every question."""

from bayeslora.contracts import ArgumentError
from bayeslora.data.files import given, opened
from bayeslora.data.plain import plain
from bayeslora.tasks import AnswerLetters
from bayeslora.types import Data


def shots_in(data: Data | None) -> tuple[str, ...]:
    """Return a text for each row of a table of questions with choices; none without a table.

    Raises:
        ArgumentError: If it is not such a table.
    """
    if data is None:
        return ()
    table = plain(given(opened(data), "train", "validation", "test"), name="shots").inputs
    if not hasattr(table, "column_names"):
        raise ArgumentError("shots are not a table: give rows with a question, its choices and its answer, as in data.")
    return AnswerLetters.shots(table)
