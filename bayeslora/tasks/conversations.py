"""Instructions and conversations in their published forms, as messages with roles."""

import contextlib
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from bayeslora.tasks import choices
from bayeslora.tasks.checking import REPAIR, is_missing

Answers: TypeAlias = Literal["all", "last"]
"""Which answers of a conversation are learned: all of the assistant's messages, or only the last."""

LISTS = ("messages", "conversations", "conversation")
"""Columns that hold whole conversations: lists of `{"role", "content"}`, or of ShareGPT's `{"from", "value"}`."""

ASKED = ("prompt", "instruction", "query", "question")
"""Columns that hold what is asked, if the answer has a column of its own."""

ANSWERED = ("completion", "output", "response", "answer")
"""Columns that hold the answer."""

CONTEXT = ("input", "context")
"""Columns with what an instruction is about; many of their texts are empty."""

KEYS = {"role", "from", "content", "value", "tool_calls", "tool_call_id", "name", "weight"}
"""What messages consist of, if they are not the rows of another table."""

PREFERRED = ("chosen", "rejected")
"""Columns of two answers, of which one is preferred."""

BESIDE = ("system", "tools")
"""Columns with the system's message, and with the tools that the assistant may call, in any of these forms."""

ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(
        ("assistant", "ai", "gpt", "chatgpt", "model", "bot", "bard", "bing", "function_call", "tool_call"), "assistant"
    ),
    **dict.fromkeys(("tool", "observation", "function_response", "tool_response", "tool_result"), "tool"),
    **{name: name for name in ("system", "developer", "function", "ipython")},
}
"""What the roles of messages are called, to the names that chat templates know."""


@dataclass(frozen=True)
class Conversation:
    """Messages, of which some are answers to be learned.

    Args:
        messages: Mappings with `role`, `content` and what else a chat template may ask for.
        counts: Which messages are answers that are learned, or scored.
        tools: Tools that the assistant may call, as JSON schemas; None for none.
        is_plain: Whether a prompt and its completion are to be joined as they stand, without a template.
    """

    messages: list[dict[str, Any]]
    counts: list[bool]
    tools: list[Any] | None = None
    is_plain: bool = False


def columns_in(names: Iterable[Any], answered: bool = True) -> tuple[str, ...]:
    """Return the columns of a table that make up conversations, in the order in which they are read; none if it has no.

    Args:
        names: The names of all columns.
        answered: Whether prompts need a column of answers.
    """
    names = [*names]
    if choices.are_in([name for name in names if isinstance(name, str)]):
        return ()
    beside = tuple(name for name in BESIDE if name in names)
    for name in LISTS:
        if name in names:
            return (*beside, name)
    answer = next((name for name in ANSWERED if name in names), None)
    asked = next((name for name in ASKED if name in names), None)
    asked = "input" if asked is None and answer == "output" and "input" in names else asked
    if asked is None or (answered and answer is None):
        return ()
    about = next((name for name in CONTEXT if name in names and name not in (asked, answer)), None)
    return (*beside, asked, *((about,) if about else ()), *((answer,) if answer else ()))


def are_lists(columns: Sequence[str], row: Mapping[str, Any] | None = None) -> bool:
    """Return whether conversations are told apart from texts by the columns' names, or by a row's values."""
    values = [row.get(name) for name in columns if name not in BESIDE] if row else []
    return any(name in LISTS for name in columns) or any(isinstance(value, list | np.ndarray) for value in values)


def check_read(columns: Collection[Any], name: str, model: str, labelled: bool) -> None:
    """Raise a ValueError if columns that nothing reads are conversations, or two answers of which one is preferred.

    Args:
        columns: The columns.
        name: What to call the data.
        model: The model's class.
        labelled: Whether another column is the label.
    """
    if {*PREFERRED} <= {*columns} and not labelled:
        raise ValueError(
            f"{name} has 'chosen' and 'rejected', answers of which one is preferred, and preferences are not learned: "
            "keep the chosen ones, as 'messages', or as 'completion' beside 'prompt'."
        )
    if are_lists(found := columns_in(columns)):
        raise ValueError(
            f"{name} are conversations ({', '.join(found)}), which a language model reads, and {model} is none: fit "
            "one such as AutoModelForCausalLM loads."
        )


def read(row: Mapping[str, Any], where: str, answers: Answers = "all", answered: bool = True) -> Conversation:
    """Return the conversation in a row of a table.

    Args:
        row: Columns to values.
        where: What to call the row in messages.
        answers: Which of its answers count.
        answered: Whether there has to be an answer.

    Raises:
        ValueError: If a text is missing, a role is not known, or there is no answer.
    """
    # A table of several forms has all of their columns, empty in the rows of others.
    filled = [name for name, value in row.items() if not is_nothing(value)]
    found = columns_in(filled, answered) or columns_in(row, answered)
    columns, first = [name for name in found if name not in BESIDE], 0
    if not columns:
        raise ValueError(
            f"{where} has {', '.join(map(str, row))}, and no conversation: give messages, or what is asked and its "
            "answer."
        )
    if columns[0] in LISTS:
        messages = messages_of(row[columns[0]], f"{where}: {columns[0]!r}")
    else:
        asked, answer = columns[0], next((name for name in columns if name in ANSWERED), None)
        values = [row[asked], *([] if answer is None or (is_nothing(row[answer]) and not answered) else [row[answer]])]
        if (
            columns[0] == "prompt"
            and all(isinstance(value, str) for value in values)
            and answer in (None, "completion")
        ):
            named = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), values, strict=False)]
            return Conversation(named, [False, True][: len(named)], is_plain=True)
        parts = [
            _side(value, role, f"{where}: {name!r}")
            for value, role, name in zip(values, ("user", "assistant"), (asked, answer), strict=False)
        ]
        about = next((name for name in columns[1:] if name in CONTEXT and name != answer), None)
        text = None if about is None else row[about]
        if not is_nothing(text) and not isinstance(text, str):
            raise ValueError(f"{where}: {about!r} is {text!r:.40}, which is not a text. {REPAIR}.")
        if isinstance(text, str) and text.strip():
            parts[0][-1]["content"] = f"{parts[0][-1]['content']}\n\n{text}"
        messages, first = [message for part in parts for message in part], len(parts[0])
    if not is_nothing(system := row.get("system")) and messages[0]["role"] != "system":
        messages, first = [{"role": "system", "content": str(system)}, *messages], first + 1 if first else 0
    counts = [
        _counts(message, f"{where}, message {index}") and index >= first and message["role"] == "assistant"
        for index, message in enumerate(messages)
    ]
    if answered and not any(counts):
        raise ValueError(f"{where} has no answer of the assistant's to learn from: {_roles(messages)}. {REPAIR}.")
    if answers == "last" and any(counts):
        last = max(index for index, counted in enumerate(counts) if counted)
        counts = [index == last for index in range(len(counts))]
    tools = row.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools or "null")
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{where}: 'tools' is a text that is not JSON, {tools!r:.60}: {error}. Correct it."
            ) from None
    tools = [tools] if isinstance(tools, Mapping) and tools else tools
    if not is_nothing(tools) and not isinstance(tools, list | tuple | np.ndarray):
        raise ValueError(f"{where}: 'tools' is {tools!r:.60}, where a list of JSON schemas is needed.")
    return Conversation(messages, counts, None if is_nothing(tools) else _plain(tools))


def _counts(message: dict[str, Any], where: str) -> bool:
    """Return whether a message is to be learned, if it is an answer, and take that out of it."""
    weight = message.pop("weight", 1)
    try:
        number = float(weight)
    except (TypeError, ValueError):
        number = math.nan
    if number not in (0, 1):
        raise ValueError(f"{where} has the weight {weight!r:.40}: a message is learned, 1, or not, 0.")
    return number == 1


def is_nothing(value: Any) -> bool:
    """Return whether a cell has neither a text nor a message."""
    return (
        value is None or (np.ndim(value) == 0 and is_missing(value)) or (hasattr(value, "__len__") and not len(value))
    )


def _side(value: Any, role: str, where: str) -> list[dict[str, Any]]:
    """Return what is asked, or answered, as messages: a text is one of them."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, Mapping | list | tuple | np.ndarray):
        raise ValueError(f"{where} is {value!r:.60}, which is neither a text nor a list of messages. {REPAIR}.")
    return messages_of(value, where)


def messages_of(value: Any, where: str) -> list[dict[str, Any]]:
    """Return messages with `role` and `content`.

    Args:
        value: A list of mappings with `role` and `content`, or with `from` and `value`; or JSON of such a list.
        where: What to call it in messages.

    Raises:
        ValueError: If it is not, is empty, or a message lacks its text or has an unknown role.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            raise ValueError(f"{where} is a text, {value!r:.60}, where a list of messages is needed.") from None
    value = [value] if isinstance(value, Mapping) else value
    are_many = isinstance(value, list | tuple | np.ndarray) and not is_nothing(value)
    if not are_many or not all(isinstance(each, Mapping) for each in value):
        raise ValueError(
            f'{where} is {value!r:.60}: give a list of messages, {{"role": "user", "content": …}} and so on. {REPAIR}.'
        )
    return [_message(each, f"{where}, message {index}") for index, each in enumerate(value)]


def are_messages(value: Any) -> bool:
    """Whether a value is a list of messages, each of which says who speaks."""
    if not isinstance(value, list | tuple) or not len(value):
        return False
    return all(isinstance(each, Mapping) and ("role" in each or "from" in each) for each in value)


def as_rows(values: list[Any]) -> list[Any]:
    """Return rows of a table, of which each may be a list of messages, or all of which may be one such list."""
    if all(map(are_messages, values)):
        return [{"messages": each} for each in values]
    is_one = are_messages(values) and all(
        (each.get("role") or each.get("from")) in ROLES and {*each} <= KEYS and len(each) > 1 for each in values
    )
    return [{"messages": values}] if is_one else values


def _message(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a message with the names that chat templates know, without entries that are None."""
    message = _plain(given)
    if not {"role", "from"} & {*message}:
        raise ValueError(f"{where} has {', '.join(message) or 'nothing'}, where 'role' and 'content' are needed.")
    role = message.pop("from", None) if "role" not in message else message.pop("role")
    content = message.pop("value", None) if "content" not in message else message.pop("content")
    known = ROLES.get(role.strip().casefold()) if isinstance(role, str) else None
    if known is None:
        raise ValueError(f"{where} has the role {role!r:.40}, and the roles are {', '.join(dict.fromkeys(ROLES))}.")
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{where} has a part that is not a text: only texts can be read.")
        content = "".join(map(str, texts))
    call = message.get("function_call")  # OpenAI's former name
    if isinstance(call, Mapping) and "tool_calls" not in message:
        del message["function_call"]
        message["tool_calls"] = [{"type": "function", "function": call}]
    if content is None and message.get("tool_calls"):
        content = ""
    if not isinstance(content, str):
        raise ValueError(f"{where} has no text, but {content!r:.40}. {REPAIR}.")
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise ValueError(f"{where} has the tool calls {calls!r:.60}, where a list of mappings is needed.")
    for call in calls:
        function = call.get("function", call)
        if not isinstance(function, dict):
            raise ValueError(f"{where} calls {function!r:.60}, where its name and arguments are needed.")
        if isinstance(function.get("arguments"), str):  # as OpenAI has them; templates write JSON themselves
            with contextlib.suppress(json.JSONDecodeError):
                function["arguments"] = json.loads(function["arguments"])
    return {"role": known, "content": content} | message


def _plain(value: Any) -> Any:
    """Return a value of lists and mappings without entries that are None, with which tables fill what a row lacks."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items() if each is not None}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(each) for each in value]
    return value.item() if isinstance(value, np.generic) else value


def _roles(messages: Sequence[Mapping[str, Any]]) -> str:
    return f"its messages are of {', '.join(str(message['role']) for message in messages)}"
