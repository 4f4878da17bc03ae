"""Conversations as a language model reads them: the text of a chat template, as tokens, and which of them answer."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bayeslora.tasks import templates
from bayeslora.tasks.conversations import Conversation
from bayeslora.types import IGNORED

MATCHING = 5
"""The end of a prompt is recognised by so many characters, such as those of `user` or `INST]`."""

CONTEXT = (64, 16, MATCHING)
"""Characters of a prompt that have to stand before an answer which is looked for by its text, the most first."""

SHOWN = 20
"""Characters of prompts that the log shows."""


@dataclass(frozen=True)
class Encoded:
    """A conversation as tokens.

    Args:
        ids: The tokens.
        answers: First and past-the-last token of every answer that counts.
        is_cut: Whether the beginning did not fit.
        lost: Answers that went with it.
        unwritten: Roles of messages of which the template writes nothing; `tools` if it does not list those.
    """

    ids: list[int]
    answers: list[tuple[int, int]]
    is_cut: bool = False
    lost: int = 0
    unwritten: tuple[str, ...] = ()

    @property
    def labels(self) -> list[int]:
        """The tokens of answers; −100 for all others."""
        labels = [IGNORED] * len(self.ids)
        for start, end in self.answers:
            labels[start:end] = self.ids[start:end]
        return labels


def encode(talk: Conversation, tokenizer: Any, longest: int, where: str) -> Encoded:
    """Return a conversation as tokens, of which those of answers are known; at most so many.

    An answer is what `generate` would write: from the end of the template's prompt for it to the token that ends the
    turn. It is what the template marks by `{% generation %}`, if it does that for every answer. Otherwise it is found
    by writing the conversation up to the answer, and with it; and where earlier messages are written differently in a
    longer conversation, by writing another answer in its place.

    If it does not fit, the oldest messages are left out, from one of the user's to the next, but not the system's; then
    tokens from the left, but not the first that begins every text. An answer that would be cut does not count.

    Args:
        talk: The conversation.
        tokenizer: A tokenizer that knows where in the text its tokens are.
        longest: The most tokens.
        where: What to call the conversation in messages.

    Raises:
        ValueError: If the template refuses the conversation, or hides or leaves out an answer; if no answer fits; or if
            the tokenizer does not know.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"{where}: conversations need a fast tokenizer, which knows where its tokens are.")
    whole = _tokens(talk, tokenizer, where)
    if len(whole.ids) <= longest:
        return whole
    best = whole
    if not talk.is_plain:
        last = max(index for index, counted in enumerate(talk.counts) if counted)
        head = 1 if talk.messages[0]["role"] in ("system", "developer") else 0
        starts = [index for index in range(head, last) if talk.messages[index]["role"] == "user"]
        for start in starts or [head]:
            kept = [*range(head), *range(start, last + 1)]
            part = replace(talk, messages=[talk.messages[i] for i in kept], counts=[talk.counts[i] for i in kept])
            best = _tokens(part, tokenizer, where)
            if len(best.ids) <= longest:
                break
    begins = 1 if best.ids[:1] == [tokenizer.bos_token_id] else 0
    gone = max(len(best.ids) - longest, 0)
    cut = [start - gone if gone else start for start, _ in best.answers]
    answers = [
        (start, start + end - begin)
        for start, (begin, end) in zip(cut, best.answers, strict=True)
        if not gone or start >= max(begins, 1)
    ]
    if not answers:
        start, end = best.answers[-1]
        raise ValueError(
            f"{where}: the answer has {end - start} tokens, and {longest} can be read with what it answers: shorten "
            "it, or leave it out. The tokenizer's model_max_length says how many, up to what the model was made for."
        )
    ids = [*best.ids[:begins], *best.ids[begins + gone :]] if gone else best.ids
    return replace(best, ids=ids, answers=answers, is_cut=True, lost=len(whole.answers) - len(answers))


def prompt(talk: Conversation, tokenizer: Any, where: str) -> list[int]:
    """Return the tokens after which the model writes the next answer: answers at the end are left out.

    Raises:
        ValueError: If the template refuses the conversation, or there is nothing to answer.
    """
    messages = before_answer(talk, where)
    if talk.is_plain:
        ids, end = list(tokenizer(messages[0]["content"])["input_ids"]), tokenizer.eos_token_id
        return ids[:-1] if end is not None and ids[-1:] == [end] else ids
    text = templates.rendered(replace(talk, messages=messages), tokenizer, where, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def before_answer(talk: Conversation, where: str) -> list[dict[str, Any]]:
    """Return the messages up to the last that the assistant can answer; a ValueError if there is none."""
    messages = list(talk.messages)
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages:
        raise ValueError(f"{where} has no message to answer.")
    return messages


def ends(tokenizer: Any) -> list[int]:
    """Return the tokens that end an answer by the tokenizer's template, as far as it can be told."""
    asked = [{"role": "user", "content": "a"}]
    talk = Conversation([*asked, {"role": "assistant", "content": templates.MARK}], [False, True])
    try:
        text = templates.rendered(talk, tokenizer, "a conversation")
    except ValueError:
        return []
    _, is_there, after = text.rpartition(templates.MARK)
    special = templates.special_tokens(tokenizer).match(after.lstrip()) if is_there else None
    return [] if special is None else list(tokenizer(special[0], add_special_tokens=False)["input_ids"])[:1]


def _tokens(talk: Conversation, tokenizer: Any, where: str) -> Encoded:
    """Return a whole conversation as tokens."""
    if talk.is_plain:
        return _joined(talk, tokenizer)
    text, spans = spans_of(talk, tokenizer, where)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = list(encoded["input_ids"])
    answers = _within(_stripped(ids, encoded["offset_mapping"], text, tokenizer), spans)
    return Encoded(ids, answers, unwritten=templates.unwritten(talk, text, tokenizer))


def _joined(talk: Conversation, tokenizer: Any) -> Encoded:
    """Return a prompt and its completion as they stand, with the token that ends a text."""
    before, after = (str(message["content"]) for message in talk.messages)
    encoded = tokenizer(before + after, return_offsets_mapping=True, verbose=False)
    ids, begin, end = list(encoded["input_ids"]), tokenizer.bos_token_id, tokenizer.eos_token_id
    of_text = [each is not None for each in encoded.sequence_ids(0)]
    offsets = _stripped(ids, encoded["offset_mapping"], before + after, tokenizer)
    offsets = [span if own else (-1, -1) for span, own in zip(offsets, of_text, strict=True)]
    if begin is not None and ids[:2] == [begin, begin]:  # the prompt has it, and the tokenizer adds it
        ids, offsets = ids[1:], offsets[1:]
    spans = _within(offsets, [(len(before), len(before) + len(after))])
    if end is not None:
        ids = ids if ids[-1:] == [end] else [*ids, end]
        spans = [(spans[0][0] if spans else len(ids) - 1, len(ids))]
    return Encoded(ids, spans)


def _stripped(
    ids: Sequence[int], offsets: Sequence[tuple[int, int]], text: str, tokenizer: Any
) -> list[tuple[int, int]]:
    """Return where tokens are in a text, special ones without the white space that some swallow beside them."""
    added, places = tokenizer.added_tokens_decoder, []
    for token, (start, end) in zip(ids, offsets, strict=True):
        part = text[start:end]
        if token in added and part.strip():
            start, end = end - len(part.lstrip()), start + len(part.rstrip())
        places.append((start, end))
    return places


def _within(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the first and past-the-last token of parts of a text; a token that is partly in one belongs to it."""
    places, last = [], 0
    for start, end in offsets:
        if start == end:  # white space, which some tokenizers leave out of a token's place
            start = min(last, end - 1)
        places.append((start, end))
        last = max(last, end)
    found = []
    for start, end in spans:
        inside = [index for index, (a, b) in enumerate(places) if a < end and b > start and b > 0]
        if inside:
            found.append((inside[0], inside[-1] + 1))
    return found


def spans_of(talk: Conversation, tokenizer: Any, where: str) -> tuple[str, list[tuple[int, int]]]:
    """Return the text of a conversation, and the first and past-the-last character of every answer that counts."""
    text = templates.rendered(talk, tokenizer, where)
    counted = [index for index, counts in enumerate(talk.counts) if counts]
    marked = _marked(talk, tokenizer)
    special = templates.special_tokens(tokenizer)
    spans: list[tuple[int, int]] = []
    which = [index for index, message in enumerate(talk.messages) if message["role"] == "assistant"]
    for index in counted if marked is None else ():
        span = (
            _by_prefix(talk, index, text, tokenizer, special)
            or _by_mark(talk, index, text, tokenizer, special)
            or _by_itself(talk, index, text, tokenizer, special, spans[-1][1] if spans else 0)
        )
        if span is None:
            raise ValueError(
                f"{where}: the chat template of the tokenizer does not show where message {index} begins and ends: "
                "mark answers in it, {% generation %}…{% endgeneration %}."
            )
        spans.append(span)
    spans = spans if marked is None else [marked[which.index(index)] for index in counted]
    for index, (start, end) in zip(counted, spans, strict=True):
        message, answer = talk.messages[index], text[start:end]
        calls = [name for call in message.get("tool_calls") or () if (name := templates.name_of(call))]
        is_lost = bool(message["content"].strip()) and not special.sub("", answer).strip()
        if is_lost or not all(name in answer for name in calls):
            raise ValueError(
                f"{where}: the chat template of the tokenizer leaves out {'the text' if is_lost else 'tool calls'} of "
                f'message {index}, which is to be learned: use a template that writes it, or give it "weight": 0.'
            )
    spans = [(start, end) for start, end in spans if end > start]
    if not spans:
        raise ValueError(f"{where}: the template marks no token of its answers, which are empty: leave it out.")
    return text, spans


def _marked(talk: Conversation, tokenizer: Any) -> list[tuple[int, int]] | None:
    """Return the answers that the template marks, if it marks every one."""
    template = templates.template_of(tokenizer, talk.tools)
    if not templates.MARKED.search(template):
        return None
    # Its characters, and not the tokens that the tokenizer makes of them: that loses those after dropped white space.
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = templates.as_read(talk.messages, tokenizer, talk.tools)
    messages = [{key: value for key, value in message.items() if value is not None} for message in messages]
    _, marked = render_jinja_template(
        conversations=[messages],
        tools=talk.tools,
        chat_template=template,
        return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map,
    )
    answers = [message for message in talk.messages if message["role"] == "assistant"]
    are_full = [bool(message["content"].strip() or message.get("tool_calls")) for message in answers]
    for spans in (marked[0], [(start, end) for start, end in marked[0] if end > start]):
        # An answer of no text has no token if the marks are around texts alone.
        if len(spans) == len(answers) and all(
            end > start for full, (start, end) in zip(are_full, spans, strict=True) if full
        ):
            return spans
    return None


def _before(talk: Conversation, index: int, tokenizer: Any) -> str | None:
    """Return the prompt for an answer; None where a template refuses the part, and not the whole."""
    try:
        return templates.rendered(
            replace(talk, messages=talk.messages[:index]), tokenizer, "", add_generation_prompt=True
        )
    except ValueError:
        return None


def _through(talk: Conversation, index: int, tokenizer: Any) -> str | None:
    """Return the text up to and with an answer; None where a template refuses the part."""
    try:
        return templates.rendered(replace(talk, messages=talk.messages[: index + 1]), tokenizer, "")
    except ValueError:
        return None


def _by_prefix(
    talk: Conversation, index: int, text: str, tokenizer: Any, special: re.Pattern[str]
) -> tuple[int, int] | None:
    """Return where an answer stands, if the conversation up to it, and with it, is the beginning of the whole."""
    before, through = _before(talk, index, tokenizer), _through(talk, index, tokenizer)
    if before is None or through is None:
        return None
    start = len(before)
    if not (text.startswith(before) and through.startswith(before)):
        return None
    # A template may end the last message differently, so that what ends it is compared token by token.
    ending = re.compile(rf"(?:\s|{special.pattern})*\Z").search(through, start)
    end = len(through) if ending is None else ending.start()
    if not text.startswith(through[:end]):
        return None
    for token in re.finditer(rf"\s|{special.pattern}", through[end:]):
        if not text.startswith(token[0], end):
            break
        end += len(token[0])
    # What follows the last token of the turn is never written by the model.
    trimmed = text[start:end].rstrip()
    tokens = [*special.finditer(trimmed)]
    end = start + len(trimmed) if tokens and tokens[-1].end() == len(trimmed) else end
    return (start, end) if end > start else None


def _by_mark(
    talk: Conversation, index: int, text: str, tokenizer: Any, special: re.Pattern[str]
) -> tuple[int, int] | None:
    """Return where an answer stands by writing another in its place: what differs, with the token that ends it."""
    messages = [*talk.messages[:index], {"role": "assistant", "content": templates.MARK}, *talk.messages[index + 1 :]]
    try:
        other = templates.rendered(replace(talk, messages=messages), tokenizer, "")
    except ValueError:
        return None
    if other.count(templates.MARK) != 1:
        return None
    start = other.index(templates.MARK)  # which is in no text: up to it, both are the same
    end = len(text) - min(_same_end(text, other), len(text) - start, len(other) - start)
    token = re.compile(rf"\s*(?:{special.pattern})").match(text, end)
    end = end if token is None else token.end()
    # White space that the prompt for the answer does not have is written by the model.
    before, kept = _before(talk, index, tokenizer), text[:start].rstrip()
    if before is not None and _same_end(kept, before.rstrip()) >= MATCHING:
        space = before[len(before.rstrip()) :]
        start = len(kept) + len(space) if text.startswith(space, len(kept)) else start
    return (start, end) if end > start else None


def _by_itself(
    talk: Conversation, index: int, text: str, tokenizer: Any, special: re.Pattern[str], since: int
) -> tuple[int, int] | None:
    """Return where an answer stands by looking for what follows the prompt for it, after the end of the one before.

    So are calls of tools found, in whose place a template may take nothing else.
    """
    before, through = _before(talk, index, tokenizer), _through(talk, index, tokenizer)
    if before is None or through is None or not through.startswith(before):
        return None
    answer = through[len(before) :].rstrip()
    while special.sub("", answer).strip():
        for length in CONTEXT:
            at = text.find(before[-length:] + answer, since)
            if at >= 0:
                start = at + len(before[-length:])
                return start, start + len(answer)
        # A template may end the last message differently.
        last = re.search(rf"(?:{special.pattern})\Z", answer)
        answer = "" if last is None else answer[: last.start()].rstrip()
    return None


def asked_otherwise(talk: Conversation, tokenizer: Any) -> tuple[str, str] | None:
    """Return what the prompt for the last answer has where the whole conversation has something else, and that."""
    if talk.is_plain or not any(talk.counts):
        return None
    try:
        text, spans = spans_of(talk, tokenizer, "")
    except ValueError:
        return None
    before = _before(talk, max(index for index, counts in enumerate(talk.counts) if counts), tokenizer)
    learned = text[: spans[-1][0]]
    if before is None or before.rstrip() == learned.rstrip():
        return None
    alike = _same_end(before[::-1], text[::-1])
    return before[alike : alike + SHOWN], text[alike : alike + SHOWN]


def _same_end(text: str, other: str) -> int:
    """Return how many characters at the end of two texts are the same."""
    pairs = zip(reversed(text), reversed(other), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
