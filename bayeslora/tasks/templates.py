"""Chat templates: what they write of messages, and what they leave out."""

import functools
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from bayeslora.tasks.conversations import Conversation

TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "### {{ message.role | capitalize }}:{{ '\n' }}"
    "{% if message.role == 'assistant' %}"
    "{% generation %}"
    "{{ message.content | trim }}{% if message.tool_calls %}{{ message.tool_calls | tojson }}{% endif %}{{ eos_token }}"
    "{% endgeneration %}"
    "{% else %}{{ message.content | trim }}{% endif %}"
    "{{ '\n\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}### Assistant:{{ '\n' }}{% endif %}"
)
"""How conversations are written for tokenizers that have no chat template of their own."""

MARK = "\ue000"
"""A character of no script, which stands for an answer to see where a template writes it."""

FIRST = 0xF0000
"""The first of many more such characters."""

READ = {"role", "content", "tool_calls", "tool_call_id", "name"}
"""What messages have that is looked at elsewhere, or says nothing that could be learned."""

THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""What thoughts before an answer are called: `transformers` gives them to a template by any of these names."""

MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""What a template begins answers with, if it marks them."""


def template_of(tokenizer: Any, tools: Any) -> str:
    return tokenizer.get_chat_template(tools=tools) if tokenizer.chat_template else TEMPLATE


def rendered(talk: Conversation, tokenizer: Any, where: str, **how: Any) -> str:
    """Return the text of a conversation; a ValueError if the template refuses it."""
    try:
        messages = as_read(talk.messages, tokenizer, talk.tools)
        settings = {"chat_template": template_of(tokenizer, talk.tools), "tools": talk.tools, **how}
        if any(message.get("content") is None for message in messages):  # which `apply_chat_template` leaves out
            from transformers.utils.chat_template_utils import render_jinja_template

            texts, _ = render_jinja_template([messages], **tokenizer.special_tokens_map, **settings)
            return texts[0]
        return tokenizer.apply_chat_template(messages, tokenize=False, **settings)
    except Exception as error:  # a template may raise anything
        raise ValueError(
            f"{where}: the chat template of the tokenizer does not take this conversation "
            f"({', '.join(str(message['role']) for message in talk.messages):.80}): {error}"
        ) from error


def as_read(messages: Sequence[Mapping[str, Any]], tokenizer: Any, tools: Any = None) -> list[dict[str, Any]]:
    """Return messages as the tokenizer's template reads them: some write texts only if they are lists of parts.

    Likewise, some write tool calls only if the message has no text, or if the arguments are JSON, as OpenAI sends them.
    """
    template, special = template_of(tokenizer, tools), _special(tokenizer)
    in_parts, found = _reads_parts(template, special), []
    for message in messages:
        given = dict(message)
        if calls := message.get("tool_calls"):
            form = _form_of_calls(template, special)
            given["tool_calls"] = [_with_arguments(call, form.in_json) for call in calls]
            given["content"] = given.get("content") or form.content
        if in_parts and isinstance(text := given.get("content"), str):
            given["content"] = [{"type": "text", "text": text}]
        found.append(given)
    return found


def _special(tokenizer: Any) -> tuple[tuple[str, str], ...]:
    """Return the special tokens that templates name."""
    return tuple((name, token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str))


class _Form(NamedTuple):
    """How a template reads calls of tools.

    Args:
        content: The text of a message that has none.
        in_json: Whether arguments are to be given as JSON, and not as a mapping.
    """

    content: str | None = ""
    in_json: bool = False


@functools.lru_cache(maxsize=64)
def _form_of_calls(template: str, special: tuple[tuple[str, str], ...]) -> _Form:
    """Return the first form of a call of which a template writes the arguments as JSON, or in a way of its own."""
    function = {"name": "call", "arguments": {"key": MARK}}
    for form in itertools.starmap(_Form, itertools.product(("", None), (False, True))):
        call = _with_arguments({"id": "abcdefghi", "type": "function", "function": function}, form.in_json)
        asked = {"role": "user", "content": "a"}
        text = _tried(template, [asked, {"role": "assistant", "content": form.content, "tool_calls": [call]}], special)
        # Not as Python shows a mapping, and not as a text within JSON.
        if MARK in text and not any(wrong in text for wrong in ("{'key'", r"\"key")):
            return form
    return _Form()


def _with_arguments(call: Mapping[str, Any], in_json: bool) -> dict[str, Any]:
    """Return a call whose arguments are JSON, if they are to be, and were a mapping."""
    function = call.get("function", call)
    if not in_json or not isinstance(function.get("arguments"), Mapping):
        return dict(call)
    function = {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}
    return {**call, "function": function} if "function" in call else function


def _tried(template: str, messages: list[dict[str, Any]], special: tuple[tuple[str, str], ...], **how: Any) -> str:
    """Return the text of messages; none if the template refuses them."""
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        texts, _ = render_jinja_template(conversations=[messages], chat_template=template, **dict(special), **how)
    except Exception:  # a template may raise anything
        return ""
    return str(texts[0])


@functools.lru_cache(maxsize=64)
def _reads_parts(template: str, special: tuple[tuple[str, str], ...]) -> bool:
    """Whether a template writes more of contents that are lists of parts, than of those that are texts."""

    def written(content: Any) -> int:
        messages = [{"role": role, "content": content} for role in ("user", "assistant")]
        return _tried(template, messages, special).count(MARK)

    return written([{"type": "text", "text": MARK}]) > written(MARK)


def end_of_turn(tokenizer: Any, tools: Any = None) -> str | None:
    """Return the special token that ends an answer which others follow; None if the template writes none."""
    template = template_of(tokenizer, tools)
    after = _after_answer(template, _special(tokenizer), _reads_parts(template, _special(tokenizer)))
    special = special_tokens(tokenizer).match(after.lstrip())
    return None if special is None else special[0]


def asking(tokenizer: Any, tools: Any = None) -> str:
    """Return the prompt that a template writes after a message for its answer."""
    template, special = template_of(tokenizer, tools), _special(tokenizer)
    return _asking(template, special, _reads_parts(template, special))


@functools.lru_cache(maxsize=64)
def _asking(template: str, special: tuple[tuple[str, str], ...], in_parts: bool) -> str:
    with_prompt, without = (_turn(template, special, in_parts, "a", prompt=prompt) for prompt in (True, False))
    return with_prompt[same_start(with_prompt, without) :]


@functools.lru_cache(maxsize=64)
def _after_answer(template: str, special: tuple[tuple[str, str], ...], in_parts: bool) -> str:
    """Return what a template writes between an answer and the prompt for another."""
    _, _, after = _turn(template, special, in_parts, "a", MARK, prompt=True).rpartition(MARK)
    return after.removesuffix(_asking(template, special, in_parts))


def _turn(template: str, special: tuple[tuple[str, str], ...], in_parts: bool, *texts: str, prompt: bool) -> str:
    """Return the text of a question, and of its answer if there is one."""
    messages = [
        {"role": role, "content": [{"type": "text", "text": text}] if in_parts else text}
        for role, text in zip(("user", "assistant"), texts, strict=False)
    ]
    return _tried(template, messages, special, add_generation_prompt=prompt)


def unwritten(talk: Conversation, text: str, tokenizer: Any) -> tuple[str, ...]:
    """Return the roles of messages of whose texts a template writes nothing, and `tools` if it does not list those.

    Answers that count are not among them: `turns.shortened` says what is left out of those.
    """
    # What is written is seen with other texts in their places: a short one may stand in the text for other reasons.
    marks = {index: chr(FIRST + index) for index, message in enumerate(talk.messages) if message["content"].strip()}
    messages = [{**message, "content": marks.get(index, "")} for index, message in enumerate(talk.messages)]
    try:
        other = rendered(replace(talk, messages=messages), tokenizer, "")
    except ValueError:
        return ()
    found = [
        str(talk.messages[index]["role"])
        for index, mark in marks.items()
        if not talk.counts[index] and not any(form in other for form in forms(mark))
    ]
    names = [name for tool in talk.tools or () if (name := name_of(tool))]
    return tuple(dict.fromkeys([*found, *(["tools"] if names and not any(name in text for name in names) else [])]))


def forms(text: str) -> tuple[str, ...]:
    """Return a text as a template may write it: as it is, or within JSON."""
    return text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]


def unread(talk: Conversation, tokenizer: Any) -> set[str]:
    """Return what messages have beside their texts that the template never names, such as a reasoning, or a mark."""
    keys, template = {key for message in talk.messages for key in message} - READ, template_of(tokenizer, talk.tools)
    thinks = any(_is_named(name, template) for name in THOUGHTS)
    return {key for key in keys if not (thinks if key in THOUGHTS else _is_named(key, template))}


def _is_named(key: str, template: str) -> bool:
    return re.search(rf"\b{re.escape(key)}\b", template) is not None


def name_of(call: Any) -> str:
    """Return the name of the function of a tool, or of a call of one; an empty one if there is none."""
    inner = call.get("function", call) if isinstance(call, Mapping) else None
    name = inner.get("name") if isinstance(inner, Mapping) else None
    return name if isinstance(name, str) else ""


def special_tokens(tokenizer: Any) -> re.Pattern[str]:
    """Return what matches a token that is added to the vocabulary, such as one that ends a turn."""
    added = {*tokenizer.all_special_tokens, *(str(token) for token in tokenizer.added_tokens_decoder.values())}
    return re.compile("|".join(map(re.escape, sorted(filter(None, added), key=len, reverse=True))) or r"(?!)")


def same_start(text: str, other: str) -> int:
    """Return how many characters at the beginning of two texts are the same."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(text, other, strict=False)))
