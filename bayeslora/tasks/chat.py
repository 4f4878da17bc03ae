"""Conversations as a language model reads them: the text of a chat template, as tokens, and which of them answer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bayeslora.tasks import templates, turns
from bayeslora.tasks.conversations import Conversation
from bayeslora.types import IGNORED

SHOWN = 40
"""Characters of an answer that the log shows."""


@dataclass(frozen=True)
class Encoded:
    """A conversation as tokens.

    Args:
        ids: The tokens.
        answers: First and past-the-last token of every answer that counts.
        is_cut: Whether the beginning did not fit.
        lost: Answers that went with it.
        unwritten: Roles of messages of which the template writes nothing; `tools` if it does not list those.
        shortened: Texts of answers that the template does not write as they are.
    """

    ids: list[int]
    answers: list[tuple[int, int]]
    is_cut: bool = False
    lost: int = 0
    unwritten: tuple[str, ...] = ()
    shortened: tuple[str, ...] = ()

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
    text, spans = turns.spans_of(talk, tokenizer, where)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = list(encoded["input_ids"])
    full = [(start, end) for start, end in spans if end > start]
    answers = _within(_stripped(ids, encoded["offset_mapping"], text, tokenizer), full)
    shortened = tuple(turns.shortened(talk, text, spans, tokenizer))
    return Encoded(ids, answers, unwritten=templates.unwritten(talk, text, tokenizer), shortened=shortened)


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
    if end is not None and ids[-2:] == [end, end]:  # so has the completion
        ids, offsets = ids[:-1], offsets[:-1]
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
