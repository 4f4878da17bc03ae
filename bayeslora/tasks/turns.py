"""Where the answers of a conversation stand in the text that a chat template writes of it."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from bayeslora.tasks import templates
from bayeslora.tasks.conversations import Conversation

MATCHING = 8
"""The end of a prompt is recognised by so many characters, such as those of `?[/INST]`."""

CONTEXT = (64, 16, 5)
"""Characters of a prompt that have to stand before an answer which is looked for by its text, the most first."""

SHOWN = 20
"""Characters of prompts that the log shows."""

Span = tuple[int, int]


def spans_of(talk: Conversation, tokenizer: Any, where: str) -> tuple[str, list[Span]]:
    """Return the text of a conversation, and the first and past-the-last character of every answer that counts.

    An answer of which the template writes nothing has no characters.

    Raises:
        ValueError: If the template refuses the conversation, hides or leaves out an answer, or writes nothing of all.
    """
    text = templates.rendered(talk, tokenizer, where)
    counted = [index for index, counts in enumerate(talk.counts) if counts]
    marked = _marked(talk, tokenizer)
    special = templates.special_tokens(tokenizer)
    spans: list[Span] = []
    which = [index for index, message in enumerate(talk.messages) if message["role"] == "assistant"]
    for index in counted if marked is None else ():
        since = spans[-1][1] if spans else 0
        span = (
            _by_prefix(talk, index, text, tokenizer, special)
            or _by_mark(talk, index, text, tokenizer, special, since)
            or _by_itself(talk, index, text, tokenizer, special, since)
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
    if not any(end > start for start, end in spans):
        raise ValueError(f"{where}: the template marks no token of its answers, which are empty: leave it out.")
    return text, spans


def _marked(talk: Conversation, tokenizer: Any) -> list[Span] | None:
    """Return the answers that the template marks, if it marks every one."""
    template = templates.template_of(tokenizer, talk.tools)
    if not templates.MARKED.search(template):
        return None
    # Its characters, and not the tokens that the tokenizer makes of them: that loses those after dropped white space.
    from transformers.utils.chat_template_utils import render_jinja_template

    _, marked = render_jinja_template(
        conversations=[templates.as_read(talk.messages, tokenizer, talk.tools)],
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


def _written(talk: Conversation, tokenizer: Any, **how: Any) -> str | None:
    """Return the text of a part of a conversation; None where a template refuses the part, and not the whole."""
    try:
        return templates.rendered(talk, tokenizer, "", **how)
    except ValueError:
        return None


def _before(talk: Conversation, index: int, tokenizer: Any) -> str | None:
    """Return the prompt for an answer."""
    return _written(replace(talk, messages=talk.messages[:index]), tokenizer, add_generation_prompt=True)


def _through(talk: Conversation, index: int, tokenizer: Any) -> str | None:
    """Return the text up to and with an answer."""
    return _written(replace(talk, messages=talk.messages[: index + 1]), tokenizer)


def _by_prefix(talk: Conversation, index: int, text: str, tokenizer: Any, special: re.Pattern[str]) -> Span | None:
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
            end = _with_end(text, end, tokenizer, talk)
            break
        end += len(token[0])
    # What follows the last token of the turn is never written by the model.
    trimmed = text[start:end].rstrip()
    tokens = [*special.finditer(trimmed)]
    end = start + len(trimmed) if tokens and tokens[-1].end() == len(trimmed) else end
    message = talk.messages[index]
    is_nothing = not (message["content"] or message.get("tool_calls") or templates.end_of_turn(tokenizer, talk.tools))
    return (start, end) if end > start or is_nothing else None


def _with_end(text: str, end: int, tokenizer: Any, talk: Conversation) -> int:
    """Return where an answer ends with the token that ends those which others follow, if it stands there."""
    token = templates.end_of_turn(tokenizer, talk.tools)
    found = re.compile(rf"\s*{re.escape(token)}").match(text, end) if token else None
    return end if found is None else found.end()


def _by_mark(
    talk: Conversation, index: int, text: str, tokenizer: Any, special: re.Pattern[str], since: int
) -> Span | None:
    """Return where an answer stands by writing another in its place: what differs, with the token that ends it."""
    messages = [*talk.messages[:index], {"role": "assistant", "content": templates.MARK}, *talk.messages[index + 1 :]]
    other = _written(replace(talk, messages=messages), tokenizer)
    if other is None or other.count(templates.MARK) != 1 or not _is_apart(talk, messages, index, tokenizer):
        return None
    # The mark is in no text; thoughts may stand before an answer that go with it.
    start = min(other.index(templates.MARK), _snapped(text, templates.same_start(text, other), special))
    end = len(text) - min(_same_end(text, other), len(text) - start, len(other) - start)
    if (token := re.compile(rf"\s*({special.pattern})").match(text, end)) is not None:
        through = _through(talk, index, tokenizer)
        known = {templates.end_of_turn(tokenizer, talk.tools), *special.findall((through or "")[-SHOWN:])}
        # A template that ends no turn goes on with the next, which is not written by the model.
        end = token.end() if through is None or token[1] in known else end
    # What the prompt for the answer does not have is written by the model: white space, and empty thoughts.
    before = _before(talk, index, tokenizer)
    if before is None:  # as before a conversation that the assistant begins: `transformers` writes none of no messages
        before = templates.asking(tokenizer, talk.tools).lstrip()
    if before:
        tail, asked = before[-CONTEXT[0] :], talk.messages[index - 1]["content"].strip() if index else ""
        at = text.rfind(tail, max(since - len(tail), 0), start)
        kept = text[:start].rstrip()
        if at >= 0 and not (asked and asked in text[at + len(tail) : start]):
            start = at + len(tail)
        elif _same_end(kept, before.rstrip()) >= MATCHING:
            space = before[len(before.rstrip()) :]
            start = len(kept) + len(space) if text.startswith(space, len(kept)) else start
    return (start, end) if end > start else None


def _is_apart(talk: Conversation, messages: list[dict[str, Any]], index: int, tokenizer: Any) -> bool:
    """Return whether no other message is written within what changes with an answer, as results of tools may be."""
    after = talk.messages[index + 1 :]
    if not (after and (talk.messages[index].get("tool_calls") or after[0]["role"] != "user")):
        return True
    pair = []
    for those in (talk.messages, messages):
        marks = [
            {**message, "content": chr(templates.FIRST + number)} if number > index and message["content"] else message
            for number, message in enumerate(those)
        ]
        pair.append(_written(replace(talk, messages=marks), tokenizer))
    text, other = pair
    if text is None or other is None:
        return True
    start = templates.same_start(text, other)
    changed = text[start : len(text) - min(_same_end(text, other), len(text) - start)]
    return not any(chr(templates.FIRST + number) in changed for number in range(index + 1, len(messages)))


def _by_itself(
    talk: Conversation, index: int, text: str, tokenizer: Any, special: re.Pattern[str], since: int
) -> Span | None:
    """Return where an answer stands by looking for what follows the prompt for it, after the end of the one before.

    So are calls of tools found, in whose place a template may take nothing else, and which may be all that it keeps.
    """
    before = _before(talk, index, tokenizer)
    for message in _parts(talk.messages[index]) if before is not None else ():
        messages = [*talk.messages[:index], message]
        through = _written(replace(talk, messages=messages), tokenizer)
        if through is None or before is None:
            continue
        first = len(before)
        if not through.startswith(before):  # as where the prompt has empty thoughts, and a call has none
            base = _written(replace(talk, messages=talk.messages[:index]), tokenizer) or ""
            first = _snapped(through, templates.same_start(through, before), special)
            if first < templates.same_start(base, before):
                continue
        prompt, answer = through[:first], through[first:].rstrip()
        while special.sub("", answer).strip():
            for length in CONTEXT:
                at = text.find(prompt[-length:] + answer, since)
                if at >= 0:
                    start = at + len(prompt[-length:])
                    return start, start + len(answer)
            # A template may end the last message differently.
            last = re.search(rf"(?:{special.pattern})\Z", answer)
            answer = "" if last is None else answer[: last.start()].rstrip()
    return None


def _parts(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a message, and what a template may keep of it: without thoughts, and of its calls without a text, too."""
    yield message
    plain = {name: value for name, value in message.items() if name in templates.READ}
    if plain != message:
        yield plain
    if message.get("tool_calls") and message["content"]:
        yield {**plain, "content": ""}


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
    alike = templates.same_start(before, text)
    return before[alike : alike + SHOWN], text[alike : alike + SHOWN]


def shortened(talk: Conversation, text: str, spans: list[Span], tokenizer: Any) -> list[str]:
    """Return texts of answers that a template does not write as they are, such as thoughts that it takes out."""
    unread, found = templates.unread(talk, tokenizer), []
    counted = [message for message, counts in zip(talk.messages, talk.counts, strict=True) if counts]
    for message, (start, end) in zip(counted, spans, strict=True):
        own = {name: value for name, value in message.items() if name not in templates.READ | unread}
        given = [message["content"], *(value for value in own.values() if isinstance(value, str))]
        answer = _squeezed(text[start:end])
        found += [each for each in given if not any(_squeezed(form) in answer for form in templates.forms(each))][:1]
    return found


def _squeezed(text: str) -> str:
    """Return a text without white space, which templates trim."""
    return "".join(text.split())


def _snapped(text: str, place: int, special: re.Pattern[str]) -> int:
    """Return a place in a text that is within no special token: before the one that it is in."""
    return next((found.start() for found in special.finditer(text) if found.start() < place < found.end()), place)


def _same_end(text: str, other: str) -> int:
    """Return how many characters at the end of two texts are the same."""
    return templates.same_start(text[::-1], other[::-1])
