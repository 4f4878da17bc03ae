"""Chat templates: what they write of messages, and what they leave out."""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

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

MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""What a template begins answers with, if it marks them."""


def template_of(tokenizer: Any, tools: Any) -> str:
    return tokenizer.get_chat_template(tools=tools) if tokenizer.chat_template else TEMPLATE


def rendered(talk: Conversation, tokenizer: Any, where: str, **how: Any) -> str:
    """Return the text of a conversation; a ValueError if the template refuses it."""
    try:
        settings = {"chat_template": template_of(tokenizer, talk.tools), "tokenize": False, "tools": talk.tools, **how}
        return tokenizer.apply_chat_template(as_read(talk.messages, tokenizer, talk.tools), **settings)
    except Exception as error:  # a template may raise anything
        raise ValueError(
            f"{where}: the chat template of the tokenizer does not take this conversation "
            f"({', '.join(str(message['role']) for message in talk.messages):.80}): {error}"
        ) from error


def as_read(messages: Sequence[Mapping[str, Any]], tokenizer: Any, tools: Any = None) -> list[dict[str, Any]]:
    """Return messages as the tokenizer's template reads them: some write texts only if they are lists of parts."""
    special = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    in_parts = _reads_parts(template_of(tokenizer, tools), tuple(special.items()))
    return [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if in_parts and isinstance(message.get("content"), str)
        else dict(message)
        for message in messages
    ]


@functools.lru_cache(maxsize=64)
def _reads_parts(template: str, special: tuple[tuple[str, str], ...]) -> bool:
    """Whether a template writes more of contents that are lists of parts, than of those that are texts."""
    from transformers.utils.chat_template_utils import render_jinja_template

    def written(content: Any) -> int:
        messages = [{"role": role, "content": content} for role in ("user", "assistant")]
        try:
            texts, _ = render_jinja_template(conversations=[messages], chat_template=template, **dict(special))
        except Exception:  # a template may raise anything
            return 0
        return texts[0].count(MARK)

    return written([{"type": "text", "text": MARK}]) > written(MARK)


def unwritten(talk: Conversation, text: str, tokenizer: Any) -> tuple[str, ...]:
    """Return the roles of messages of whose texts a template writes nothing, and `tools` if it does not list those."""
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
        if not any(form in other for form in (mark, json.dumps(mark)[1:-1]))
    ]
    names = [name for tool in talk.tools or () if (name := name_of(tool))]
    return tuple(dict.fromkeys([*found, *(["tools"] if names and not any(name in text for name in names) else [])]))


def unread(talk: Conversation, tokenizer: Any) -> set[str]:
    """Return what messages have beside their texts that the template never names, such as a reasoning, or a mark."""
    keys = {key for message in talk.messages for key in message} - READ
    if not keys:
        return keys
    template = template_of(tokenizer, talk.tools)
    return {key for key in keys if not re.search(rf"\b{re.escape(key)}\b", template)}


def name_of(call: Any) -> str:
    """Return the name of the function of a tool, or of a call of one; an empty one if there is none."""
    inner = call.get("function", call) if isinstance(call, Mapping) else None
    name = inner.get("name") if isinstance(inner, Mapping) else None
    return name if isinstance(name, str) else ""


def special_tokens(tokenizer: Any) -> re.Pattern[str]:
    """Return what matches a token that is added to the vocabulary, such as one that ends a turn."""
    added = {*tokenizer.all_special_tokens, *(str(token) for token in tokenizer.added_tokens_decoder.values())}
    return re.compile("|".join(map(re.escape, sorted(filter(None, added), key=len, reverse=True))) or r"(?!)")
