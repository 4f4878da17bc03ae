"""Tables of instructions and conversations, turned into a language model's inputs and labels."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bayeslora.tasks import chat, conversations, templates, turns

if TYPE_CHECKING:
    from bayeslora.tasks.base import Reader

logger = logging.getLogger(__name__)


def continued(rows: Iterable[Mapping[str, Any]], reader: "Reader") -> tuple[list[dict[str, Any]], str]:
    """Return conversations as a causal model reads them, each in one sequence, and what the log says of them.

    Raises:
        ValueError: If a row has no answer, or one that does not fit; the message says which row.
    """
    tokenizer, found, cut, lost, counted = reader.needed_tokenizer(), [], 0, 0, 0
    rows, unwritten, unread, shortened = [*rows], Counter[str](), set[str](), list[str]()
    for number, row in enumerate(rows):
        where = _where(reader, number, len(rows))
        talk = conversations.read(row, where, reader.answers)
        encoded = chat.encode(talk, tokenizer, tokenizer.model_max_length, where)
        cut, lost, counted = cut + encoded.is_cut, lost + encoded.lost, counted + len(encoded.answers)
        unwritten.update(encoded.unwritten)
        shortened += encoded.shortened
        unread |= set() if talk.is_plain else templates.unread(talk, tokenizer)
        inputs = {"input_ids": encoded.ids, "attention_mask": [1] * len(encoded.ids)}
        kept = {name: value for name, value in inputs.items() if name in reader.parameters}
        found.append({**kept, "labels": encoded.labels})
    _say_cut(reader, cut, lost, len(rows), tokenizer.model_max_length)
    if rows and (apart := turns.asked_otherwise(conversations.read(rows[0], "", reader.answers), tokenizer)):
        logger.warning(
            "%s: the chat template's prompt for an answer has %r where the conversation with it has %r: what generate "
            "asks is not what is learned.",
            *(reader.name, *apart),
        )
    if unwritten:
        logger.warning(
            "%s: the tokenizer's chat template leaves out messages, which the model does not see: those of %s.",
            reader.name,
            ", ".join(f"{role!r} in {times} of {len(rows)} conversations" for role, times in unwritten.items()),
        )
    if shortened:
        logger.warning(
            "%s: the tokenizer's chat template leaves out text of %d of %d answers, such as %r, which is not learned. "
            "A template may keep the thoughts of a last answer alone: give each answer a row of its own.",
            *(reader.name, len(shortened), counted, shortened[0][: chat.SHOWN]),
        )
    if unread:
        logger.warning(
            "%s: the tokenizer's chat template does not read %s of messages. An answer is learned unless it has "
            '"weight": 0.',
            *(reader.name, ", ".join(map(repr, sorted(unread)))),
        )
    return found, _said(rows, tokenizer, counted)


def answered(rows: Iterable[Mapping[str, Any]], reader: "Reader") -> tuple[list[dict[str, Any]], str]:
    """Return conversations as an encoder-decoder reads them: what the last answer answers, and that answer.

    A single message is read as it stands. Of one that is too long, the beginning is left out.

    Raises:
        ValueError: If a row has no answer, or one that does not fit; the message says which row.
    """
    tokenizer, found, cut = reader.needed_tokenizer(), [], 0
    rows, longest = [*rows], tokenizer.model_max_length
    for number, row in enumerate(rows):
        where = _where(reader, number, len(rows))
        talk = conversations.read(row, where, "last")
        last = talk.counts.index(True)
        if talk.messages[last].get("tool_calls"):
            raise ValueError(f"{where}: the answer calls tools, and an encoder-decoder writes texts: leave it out.")
        ids = asked(replace(talk, messages=talk.messages[:last]), tokenizer, where)
        labels = list(tokenizer(text_target=talk.messages[last]["content"], verbose=False)["input_ids"])
        if len(labels) > longest:
            raise ValueError(f"{where}: the answer has {len(labels)} tokens, and {longest} can be written: shorten it.")
        cut += len(ids) > longest
        ids = ids[max(len(ids) - longest, 0) :]
        inputs = {"input_ids": ids, "attention_mask": [1] * len(ids)}
        kept = {name: value for name, value in inputs.items() if name in reader.parameters}
        found.append({**kept, "labels": labels})
    _say_cut(reader, cut, 0, len(rows), longest)
    return found, _said(rows, tokenizer, len(found))


def to_answer(talk: conversations.Conversation, tokenizer: Any, where: str) -> list[int]:
    """Return what an encoder reads of a conversation that is to be answered: all before the assistant's last words."""
    return asked(replace(talk, messages=chat.before_answer(talk, where)), tokenizer, where)


def asked(talk: conversations.Conversation, tokenizer: Any, where: str) -> list[int]:
    """Return what an encoder reads of a conversation: its only message as it stands, or all of them by the template."""
    if len(talk.messages) == 1:
        return list(tokenizer(talk.messages[0]["content"], verbose=False)["input_ids"])
    ids, end = chat.prompt(talk, tokenizer, where), tokenizer.eos_token_id
    return ids if end is None else [*ids, end]


def _where(reader: "Reader", number: int, count: int) -> str:
    return f"{reader.name}, row {number}" if count > 1 else reader.name


def _said(rows: list[Any], tokenizer: Any, answers: int) -> str:
    """Return what the log says of conversations: their columns, how they are written, and how many answers count."""
    columns = conversations.columns_in(rows[0] if rows else ())
    plain = bool(rows) and conversations.read(rows[0], "").is_plain
    own = "the tokenizer's chat template" if tokenizer.chat_template else "the default template"
    count = f"; {answers} answers" if len(rows) > 1 else ""
    return f"conversations: {', '.join(columns)} ({'as they stand' if plain else own}{count})"


def _say_cut(reader: "Reader", cut: int, lost: int, count: int, longest: int) -> None:
    if cut and count > 1:
        logger.warning(
            "%s: %d of %d conversations have more than %d tokens: their beginnings are left out%s.",
            *(reader.name, cut, count, longest, f", and {lost} answer(s) with them" if lost else ""),
        )
