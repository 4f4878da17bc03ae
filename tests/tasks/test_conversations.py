"""Instructions and conversations: which of their tokens are answers, token by token."""

import json
import logging
import math
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import AddedToken
from torch.utils.data import Dataset, IterableDataset

import bayeslora
from bayeslora.data import Columns, Reading, Source
from bayeslora.generation import encode
from bayeslora.tasks import chat, conversations
from bayeslora.types import IGNORED
from tests.tasks.cases import model
from tests.tasks.templates import TEMPLATES, byte_tokenizer, family, word_tokenizer

TURNS = [
    {"role": "user", "content": "one?"},
    {"role": "assistant", "content": "1"},
    {"role": "user", "content": "two?"},
    {"role": "assistant", "content": "2, of course"},
    {"role": "user", "content": "three?"},
    {"role": "assistant", "content": " 3 "},
]
SYSTEM = [{"role": "system", "content": "Count."}, *TURNS]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
TOOLS = [
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "2"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "sure?"},
    {"role": "assistant", "content": "yes"},
]
WRITTEN = '{"name": "add", "arguments": {"a": 1}}'


def header(role: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n"


# Written by hand: the texts, of which every second one is an answer.
BY_HAND: dict[tuple[str, str], list[str]] = {
    ("llama", "turns"): [
        f"<|begin_of_text|>{header('user')}one?<|eot_id|>{header('assistant')}",
        "1<|eot_id|>",
        f"{header('user')}two?<|eot_id|>{header('assistant')}",
        "2, of course<|eot_id|>",
        f"{header('user')}three?<|eot_id|>{header('assistant')}",
        "3<|eot_id|>",
    ],
    ("llama", "system"): [
        f"<|begin_of_text|>{header('system')}Count.<|eot_id|>{header('user')}one?<|eot_id|>{header('assistant')}",
        "1<|eot_id|>",
        f"{header('user')}two?<|eot_id|>{header('assistant')}",
        "2, of course<|eot_id|>",
        f"{header('user')}three?<|eot_id|>{header('assistant')}",
        "3<|eot_id|>",
    ],
    ("llama", "tools"): [
        f"<|begin_of_text|>{header('user')}1+1?<|eot_id|>{header('assistant')}",
        f"{WRITTEN}<|eot_id|>",
        f'{header("ipython")}"2"<|eot_id|>{header("assistant")}',
        "two<|eot_id|>",
        f"{header('user')}sure?<|eot_id|>{header('assistant')}",
        "yes<|eot_id|>",
    ],
    ("qwen", "turns"): [
        "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\none?<|im_end|>\n<|im_start|>assistant\n",
        "1<|im_end|>",
        "\n<|im_start|>user\ntwo?<|im_end|>\n<|im_start|>assistant\n",
        "2, of course<|im_end|>",
        "\n<|im_start|>user\nthree?<|im_end|>\n<|im_start|>assistant\n",
        " 3 <|im_end|>",
        "\n",
    ],
    ("qwen", "system"): [
        "<|im_start|>system\nCount.<|im_end|>\n<|im_start|>user\none?<|im_end|>\n<|im_start|>assistant\n",
        "1<|im_end|>",
        "\n<|im_start|>user\ntwo?<|im_end|>\n<|im_start|>assistant\n",
        "2, of course<|im_end|>",
        "\n<|im_start|>user\nthree?<|im_end|>\n<|im_start|>assistant\n",
        " 3 <|im_end|>",
        "\n",
    ],
    ("qwen", "tools"): [
        "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n",
        f"<tool_call>\n{WRITTEN}\n</tool_call><|im_end|>",
        "\n<|im_start|>user\n<tool_response>\n2\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
        "two<|im_end|>",
        "\n<|im_start|>user\nsure?<|im_end|>\n<|im_start|>assistant\n",
        "yes<|im_end|>",
        "\n",
    ],
    ("thinking", "turns"): [
        "<|im_start|>user\none?<|im_end|>\n<|im_start|>assistant\n",
        "1<|im_end|>",
        "\n<|im_start|>user\ntwo?<|im_end|>\n<|im_start|>assistant\n",
        "2, of course<|im_end|>",
        "\n<|im_start|>user\nthree?<|im_end|>\n<|im_start|>assistant\n",
        "<think>\n\n</think>\n\n 3 <|im_end|>",
        "\n",
    ],
    ("gemma", "turns"): [
        "<bos><start_of_turn>user\none?<end_of_turn>\n<start_of_turn>model\n",
        "1<end_of_turn>",
        "\n<start_of_turn>user\ntwo?<end_of_turn>\n<start_of_turn>model\n",
        "2, of course<end_of_turn>",
        "\n<start_of_turn>user\nthree?<end_of_turn>\n<start_of_turn>model\n",
        "3<end_of_turn>",
        "\n",
    ],
    ("mistral", "turns"): [
        "<s>[INST] one?[/INST]",
        " 1</s>",
        "[INST] two?[/INST]",
        " 2, of course</s>",
        "[INST] three?[/INST]",
        " 3</s>",
    ],
    ("mistral", "tools"): [
        "<s>[INST] 1+1?[/INST]",
        f"[TOOL_CALLS] {WRITTEN}</s>",
        "[TOOL_RESULTS] 2[/TOOL_RESULTS]",
        " two</s>",
        "[INST] sure?[/INST]",
        " yes</s>",
    ],
    ("phi", "turns"): [
        "<|user|>\none?<|end|>\n<|assistant|>\n",
        "1<|end|>",
        "\n<|user|>\ntwo?<|end|>\n<|assistant|>\n",
        "2, of course<|end|>",
        "\n<|user|>\nthree?<|end|>\n<|assistant|>\n",
        " 3 <|end|>\n<|endoftext|>",
    ],
    ("parts", "turns"): [
        "User: one?<end_of_utterance>\nAssistant:",
        " 1<end_of_utterance>",
        "\nUser: two?<end_of_utterance>\nAssistant:",
        " 2, of course<end_of_utterance>",
        "\nUser: three?<end_of_utterance>\nAssistant:",
        "  3 <end_of_utterance>",
        "\n",
    ],
    ("phi", "system"): [
        "<|system|>\nCount.<|end|>\n<|user|>\none?<|end|>\n<|assistant|>\n",
        "1<|end|>",
        "\n<|user|>\ntwo?<|end|>\n<|assistant|>\n",
        "2, of course<|end|>",
        "\n<|user|>\nthree?<|end|>\n<|assistant|>\n",
        " 3 <|end|>\n<|endoftext|>",
    ],
}
BY_HAND |= {
    ("channels", "turns"): [
        "<|start|>user<|message|>one?<|end|><|start|>assistant",
        "<|channel|>final<|message|>1<|end|>",
        "<|start|>user<|message|>two?<|end|><|start|>assistant",
        "<|channel|>final<|message|>2, of course<|end|>",
        "<|start|>user<|message|>three?<|end|><|start|>assistant",
        "<|channel|>final<|message|> 3 <|return|>",
    ],
    ("channels", "tools"): [
        "<|start|>user<|message|>1+1?<|end|><|start|>assistant",
        ' to=add<|message|>{"a": 1}<|call|>',
        "<|start|>tool<|message|>2<|end|><|start|>assistant",
        "<|channel|>final<|message|>two<|end|>",
        "<|start|>user<|message|>sure?<|end|><|start|>assistant",
        "<|channel|>final<|message|>yes<|return|>",
    ],
    ("channels", "thoughts"): [
        "<|start|>user<|message|>one?<|end|><|start|>assistant",
        "<|channel|>final<|message|>1<|end|>",
        "<|start|>user<|message|>two?<|end|><|start|>assistant",
        "<|channel|>analysis<|message|>huh<|end|><|start|>assistant<|channel|>final<|message|>2<|return|>",
    ],
    ("channels", "empty"): [
        "<|start|>user<|message|>one?<|end|><|start|>assistant",
        "<|channel|>final<|message|><|end|>",
        "<|start|>user<|message|>two?<|end|><|start|>assistant",
        "<|channel|>final<|message|>2, of course<|return|>",
    ],
    ("channels", "said"): [
        "<|start|>user<|message|>1+1?<|end|><|start|>assistant",
        ' to=add<|message|>{"a": 1}<|call|>',
        "<|start|>tool<|message|>2<|end|><|start|>assistant",
        "<|channel|>final<|message|>two<|return|>",
    ],
    ("open", "turns"): [
        "<sop><|user|>\none?<|assistant|>",
        "\n<think></think>\n1",
        "<|user|>\ntwo?<|assistant|>",
        "\n<think></think>\n2, of course",
        "<|user|>\nthree?<|assistant|>",
        "\n<think></think>\n 3 ",
    ],
    ("open", "first"): [
        "<sop><|assistant|>",
        "\n<think></think>\n1",
        "<|user|>\ntwo?<|assistant|>",
        "\n<think></think>\n2, of course",
    ],
    ("parts", "first"): [
        "Assistant:",
        " 1<end_of_utterance>",
        "\nUser: two?<end_of_utterance>\nAssistant:",
        " 2, of course<end_of_utterance>",
        "\n",
    ],
    ("open", "thoughts"): [
        "<sop><|user|>\none?<|assistant|>",
        "\n<think></think>\n1",
        "<|user|>\ntwo?<|assistant|>",
        "\n<think>huh</think>\n2",
    ],
    ("deepseek", "tools"): [
        "<s><User>1+1?<Assistant>",
        '<Call>add\n{"a": 1}<CallEnd></s>',
        "<Result>2<ResultEnd>",
        "two</s>",
        "<User>sure?<Assistant>",
        "yes</s>",
    ],
    ("within", "tools"): [
        "<bos><|turn>user\n1+1?<turn|>\n<|turn>assistant\n",
        '<|call>add{"a": 1}<call|><|result>',
        "2<result|>",
        "two<turn|>",
        "\n<|turn>user\nsure?<turn|>\n<|turn>assistant\n",
        "yes<turn|>",
        "\n",
    ],
    ("zephyr", "turns"): [
        "<|user|>\none?</s>\n<|assistant|>\n",
        "1</s>",
        "\n<|user|>\ntwo?</s>\n<|assistant|>\n",
        "2, of course</s>",
        "\n<|user|>\nthree?</s>\n<|assistant|>\n",
        " 3 </s>",
        "\n",
    ],
}
THOUGHTS = [
    TURNS[0],
    TURNS[1] | {"thinking": "hm"},
    TURNS[2],
    {"role": "assistant", "content": "2", "reasoning": "huh"},
]
GIVEN = {"turns": TURNS, "system": SYSTEM, "tools": TOOLS, "thoughts": THOUGHTS}
GIVEN["first"] = TURNS[1:4]
GIVEN["empty"] = [TURNS[0], TURNS[1] | {"content": ""}, *TURNS[2:4]]
GIVEN["said"] = [TOOLS[0], TOOLS[1] | {"content": "Let me see."}, *TOOLS[2:4]]


def expected(tokenizer: Any, pieces: list[str]) -> tuple[list[int], list[int]]:
    """Tokens and labels of texts of which every second one is an answer, each tokenised by itself."""
    ids, labels = [], []
    for index, piece in enumerate(pieces):
        part = tokenizer(piece, add_special_tokens=False)["input_ids"]
        ids += part
        labels += part if index % 2 else [IGNORED] * len(part)
    return ids, labels


def encoded(tokenizer: Any, messages: Any, answers: Any = "all", longest: int = 10_000) -> chat.Encoded:
    return chat.encode(conversations.read({"messages": messages}, "row", answers), tokenizer, longest, "row")


@pytest.mark.parametrize(("name", "kind"), BY_HAND)
def test_answers_are_those_found_by_hand(name: str, kind: str) -> None:
    tokenizer = family(name)
    found = encoded(tokenizer, GIVEN[kind])
    assert (found.ids, found.labels) == expected(tokenizer, BY_HAND[name, kind])
    last = encoded(tokenizer, GIVEN[kind], "last")
    ids, labels = expected(tokenizer, BY_HAND[name, kind])
    first = found.answers[-1][0]
    assert (last.ids, last.labels) == (ids, [IGNORED] * first + labels[first:])


@pytest.mark.parametrize("kind", ["turns", "system"])
def test_earlier_answers_are_found_where_the_prompt_before_them_changes(kind: str) -> None:
    tokenizer = family("mistral")
    system = "Count.\n\n" if kind == "system" else ""
    # Only the last of the user's messages has the system's, which is that before the last answer.
    *talk, _ = GIVEN[kind]
    pieces = [
        "<s>[INST] one?[/INST]",
        " 1</s>",
        "[INST] two?[/INST]",
        " 2, of course</s>",
        f"[INST] {system}three?[/INST]",
    ]
    found = encoded(tokenizer, talk)
    assert (found.ids, found.labels) == expected(tokenizer, pieces)


def test_calls_are_found_where_a_template_takes_nothing_else_in_their_place() -> None:
    tokenizer = byte_tokenizer(None, "</s>")
    tokenizer.chat_template = (
        "{% set users = messages | selectattr('role', 'equalto', 'user') | list %}{% for message in messages %}"
        "{% if message.role == 'user' %}{{ '[TOOLS]' if message == users[-1] }}[INST]{{ message.content }}[/INST]"
        "{% elif message.role == 'tool' %}{{ raise_exception('a result of no call') if not loop.previtem.tool_calls }}"
        "[RESULT]{{ message.content }}{% elif message.tool_calls %}{{ message.tool_calls[0].function | tojson }}</s>"
        "{% else %}{{ message.content }}</s>{% endif %}{% endfor %}"
    )
    pieces = ["[INST]1+1?[/INST]", f"{WRITTEN}</s>", "[RESULT]2", "two</s>", "[TOOLS][INST]sure?[/INST]", "yes</s>"]
    found = encoded(tokenizer, TOOLS)
    assert (found.ids, found.labels) == expected(tokenizer, pieces)


def test_a_prompt_that_is_not_what_is_learned_is_said(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = family("phi", model_max_length=1000)
    list(Source([{"messages": TURNS}], writer(), tokenizer).batches(1))
    assert not caplog.records
    tokenizer.chat_template = TEMPLATES["phi"].replace("<|assistant|>\n'", "<|assistant|>\n<think>'")
    list(Source([{"messages": TURNS}], writer(), tokenizer).batches(1))
    assert [record.getMessage() for record in caplog.records] == [
        "data: the chat template's prompt for an answer has '<think>' where the conversation with it has ' 3 <|end|>\\n"
        "<|endofte': what generate asks is not what is learned."
    ]


def test_a_refused_conversation_is_named_with_the_template_s_words() -> None:
    with pytest.raises(ValueError, match=r"row: the chat template .*System role not supported"):
        encoded(family("gemma"), SYSTEM)


def test_the_template_s_own_marks_are_taken() -> None:
    tokenizer = byte_tokenizer("<s>", "</s>")
    tokenizer.chat_template = (
        "{{ bos_token }}{% for message in messages %}{% if message.role == 'assistant' %}"
        "A: {% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}"
        "{% else %}{{ message.role }}: {{ message.content }}{% endif %} | {% endfor %}"
    )
    pieces = ["<s>user: one? | A: ", "1</s>", " | user: two? | A: ", "2, of course</s>", " | user: three? | A: "]
    pieces += [" 3 </s>", " | "]
    found = encoded(tokenizer, TURNS)
    assert (found.ids, found.labels) == expected(tokenizer, pieces)
    own = tokenizer.apply_chat_template(TURNS, return_dict=True, return_assistant_tokens_mask=True)
    assert own["input_ids"] == found.ids
    assert [label != IGNORED for label in found.labels] == [mask == 1 for mask in own["assistant_masks"]]


def test_an_empty_answer_changes_no_other_s_marks() -> None:
    tokenizer = byte_tokenizer("<s>", "</s>")
    tokenizer.chat_template = (
        "{% for message in messages %}{% if message.role == 'assistant' %}"
        "{% generation %}{{ message.content }}{% endgeneration %}{{ message.tool_calls }}{{ eos_token }}"
        "{% else %}{{ message.content }}: {% endif %}{% endfor %}"
    )
    empty = {"role": "assistant", "content": ""}
    found = encoded(tokenizer, [TURNS[0], empty, *TURNS[2:4]])
    assert (found.ids, found.labels) == expected(tokenizer, ["one?: </s>two?: ", "2, of course", "</s>"])
    with pytest.raises(ValueError, match="row: the template marks no token of its answers, which are empty"):
        encoded(tokenizer, [TURNS[0], empty])
    # Calls are not marked here, so that answers are found without the marks.
    called = encoded(tokenizer, [TURNS[0], {**empty, "tool_calls": [CALL]}])
    assert tokenizer.decode(called.ids[slice(*called.answers[0])]) == f"{[CALL]}</s>"


def test_an_empty_answer_that_no_token_ends_is_no_token() -> None:
    tokenizer = byte_tokenizer(None, None, ("[A]", "[Q]"))
    tokenizer.chat_template = (
        "{% for message in messages %}{{ '[A]' if message.role == 'assistant' else '[Q]' }}{{ message.content }}"
        "{% endfor %}{% if add_generation_prompt %}[A]{% endif %}"
    )
    found = encoded(tokenizer, [TURNS[0], {"role": "assistant", "content": ""}, *TURNS[2:4]])
    assert (found.ids, found.labels) == expected(tokenizer, ["[Q]one?[A][Q]two?[A]", "2, of course"])


@pytest.mark.parametrize("make", [byte_tokenizer, word_tokenizer])
@pytest.mark.parametrize("begin", [None, "<s>"])
def test_without_a_template_there_is_a_default(make: Any, begin: str | None) -> None:
    words = (
        {"words": "Count . one ? 1 two 2 of course , three 3 ### User Assistant System :"}
        if make is word_tokenizer
        else {}
    )
    tokenizer = make(begin, "</s>", **words)
    pieces = [f"{begin or ''}### System:\nCount.\n\n### User:\none?\n\n### Assistant:\n", "1</s>"]
    pieces += ["\n\n### User:\ntwo?\n\n### Assistant:\n", "2, of course</s>"]
    pieces += ["\n\n### User:\nthree?\n\n### Assistant:\n", "3</s>", "\n\n"]
    found = encoded(tokenizer, SYSTEM)
    assert (found.ids, found.labels) == expected(tokenizer, pieces)
    assert found.ids.count(tokenizer.bos_token_id) == (begin is not None)


@pytest.mark.parametrize("name", ["llama", "qwen", "gemma", "phi"])
def test_white_space_that_a_tokenizer_loses_moves_no_answer(name: str) -> None:
    words = "system user assistant model You help . one ? 1 two 2 , of course three 3"
    tokenizer = family(name, word_tokenizer, words=words)
    found = encoded(tokenizer, TURNS)
    pieces = [piece for piece in BY_HAND[name, "turns"] if piece.strip()]
    assert (found.ids, found.labels) == expected(tokenizer, pieces)


def test_a_special_token_that_swallows_white_space_is_not_part_of_an_answer() -> None:
    tokenizer = byte_tokenizer(None, "<|endoftext|>")
    names = ("<|user|>", "<|assistant|>", "<|end|>")
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False, rstrip=True) for name in names], True)
    tokenizer.chat_template = TEMPLATES["phi"]
    found = encoded(tokenizer, [TURNS[0], TURNS[5]])
    answer = [token for token, label in zip(found.ids, found.labels, strict=True) if label != IGNORED]
    assert tokenizer.convert_ids_to_tokens(answer) == ["3", "Ġ", "<|end|>", "<|endoftext|>"]


def test_what_a_template_leaves_out_is_said(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = family("phi", model_max_length=1000)
    with pytest.raises(ValueError, match=r"row: .*leaves out tool calls of message 1, .*\"weight\": 0"):
        encoded(tokenizer, TOOLS)
    silent = TEMPLATES["phi"].replace("message.content", "('' if message.role == 'assistant' else message.content)")
    tokenizer.chat_template = silent
    with pytest.raises(ValueError, match=r"row: .*leaves out the text of message 1"):
        encoded(tokenizer, TURNS[:2])
    tokenizer.chat_template = TEMPLATES["phi"].replace("in messages", "in messages if message.role != 'system'")
    tools = [CALL["function"] | {"parameters": {}}]
    rows = [{"messages": SYSTEM, "tools": tools}, {"messages": TURNS}, {"messages": [SYSTEM[0], *TURNS[:2]]}]
    list(Source(rows, writer(), tokenizer).batches(1))
    assert [record.getMessage() for record in caplog.records] == [
        "data: the tokenizer's chat template leaves out messages, which the model does not see: those of 'system' in 2 "
        "of 3 conversations, 'tools' in 1 of 3 conversations."
    ]
    caplog.clear()
    marked = [TURNS[0] | {"name": "Ann"}, TURNS[1] | {"train": False, "reasoning": "easy", "note": None}]
    list(Source([{"messages": marked}, {"messages": TURNS}], writer(), tokenizer).batches(1))
    assert [record.getMessage() for record in caplog.records] == [
        "data: the tokenizer's chat template does not read 'reasoning', 'train' of messages. An answer is learned "
        'unless it has "weight": 0.'
    ]
    tokenizer.chat_template += "{# message.train #}"
    tokenizer.chat_template = tokenizer.chat_template.replace("+ message.c", "+ (message.reasoning or '') + message.c")
    caplog.clear()
    list(Source([{"messages": marked}], writer(), tokenizer).batches(1))
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("channels", "thoughts", "leaves out text of 1 of 2 answers, such as 'hm', which is not learned"),
        ("channels", "said", "leaves out text of 1 of 2 answers, such as 'Let me see.'"),
        ("deepseek", "within", "leaves out text of 2 of 2 answers, such as '<think>hm</think>1'"),
    ],
)
def test_what_a_template_leaves_out_of_answers_is_said(
    name: str, kind: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    talks = GIVEN | {"within": [t | {"content": f"<think>hm</think>{t['content']}"} for t in TURNS[:4]]}
    list(Source([{"messages": talks[kind]}], writer(), family(name, model_max_length=1000)).batches(1))
    assert sum(words in record.getMessage() for record in caplog.records) == 1


def joined(tokenizer: Any, prompt: str, completion: str) -> tuple[list[str], list[bool]]:
    found = chat.encode(conversations.read({"prompt": prompt, "completion": completion}, "row"), tokenizer, 1000, "row")
    return tokenizer.convert_ids_to_tokens(found.ids), [label != IGNORED for label in found.labels]


def test_a_prompt_and_its_completion_are_joined_as_they_stand() -> None:
    tokenizer = family("llama")
    ends = ["<|begin_of_text|>", "<|eot_id|>"]
    assert joined(tokenizer, "a:", "b") == ([ends[0], "a", ":", "b", ends[1]], [False, False, False, True, True])
    given = joined(tokenizer, "<|begin_of_text|>a:", "b<|eot_id|>")
    assert given == joined(tokenizer, "a:", "b"), "neither is doubled"
    assert joined(tokenizer, "", "b") == ([ends[0], "b", ends[1]], [False, True, True])


@pytest.mark.parametrize(
    ("row", "roles", "counts"),
    [
        ({"messages": SYSTEM[:3]}, "system user assistant", [2]),
        ({"messages": json.dumps(TURNS)}, "user assistant user assistant user assistant", [1, 3, 5]),
        ({"prompt": SYSTEM[:4], "completion": SYSTEM[4:5]}, "system user assistant user assistant", [4]),
        ({"prompt": TURNS[:1], "completion": "1"}, "user assistant", [1]),
        ({"instruction": "Add", "input": "1, 2", "output": "3"}, "user assistant", [1]),
        ({"instruction": "Add", "input": "", "output": "3", "system": "Count."}, "system user assistant", [2]),
        ({"instruction": "Add", "context": None, "response": "3", "category": "x"}, "user assistant", [1]),
        ({"question": "1+1?", "answer": "2"}, "user assistant", [1]),
        ({"input": "1+1?", "output": "2"}, "user assistant", [1]),
        # A table of several forms has the columns of all.
        ({"messages": None, "instruction": "Add", "input": "1, 2", "output": "3"}, "user assistant", [1]),
        ({"messages": TURNS[:2], "instruction": None, "input": None, "output": None}, "user assistant", [1]),
        ({"messages": None, "conversations": [*TURNS[:2]], "output": math.nan}, "user assistant", [1]),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "c"},
            "system user assistant",
            [2],
        ),
        (
            {
                "conversations": [
                    {"from": who, "value": "a"} for who in ("human", "function_call", "observation", "gpt")
                ]
            },
            "user assistant tool assistant",
            [1, 3],
        ),
        *(
            (
                {"messages": [TURNS[0], {**TURNS[1], "weight": weight}, *TURNS[2:4]]},
                "user assistant user assistant",
                [3],
            )
            for weight in (0, 0.0, "0", False)
        ),
        (
            {"conversations": [{"from": who, "value": "a"} for who in ("human", "tool_call", "tool_result", "gpt")]},
            "user assistant tool assistant",
            [1, 3],
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, TURNS[1]]}, "user assistant", [1]),
        ({"conversations": [{"from": who, "value": "a"} for who in ("user", "AI")]}, "user assistant", [1]),
        (
            {"messages": [TURNS[0], {"role": "assistant", "content": None, "function_call": CALL["function"]}]},
            "user assistant",
            [1],
        ),
    ],
)
def test_every_published_form_is_read(row: dict[str, Any], roles: str, counts: list[int]) -> None:
    talk = conversations.read(row, "row")
    assert [message["role"] for message in talk.messages] == roles.split()
    assert [index for index, counted in enumerate(talk.counts) if counted] == counts
    assert all(isinstance(message["content"], str) for message in talk.messages)
    if "instruction" in row and row.get("input"):
        assert talk.messages[-2]["content"] == "Add\n\n1, 2"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": []}, "give a list of messages"),
        ({"messages": None}, "give a list of messages"),
        ({"foo": 1}, "row 7 has foo, and no conversation"),
        ({"messages": None, "prompt": None, "completion": "a"}, "'messages' is None"),
        ({"messages": "hello"}, "where a list of messages is needed"),
        ({"messages": TURNS[:1]}, "no answer of the assistant's"),
        ({"messages": [{"role": "asistant", "content": "a"}]}, "role 'asistant'"),
        ({"messages": [TURNS[0], {"role": "assistant", "content": None}]}, "message 1 has no text"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "not a text"),
        ({"instruction": None, "output": "a"}, "'instruction' is None"),
        ({"prompt": "a", "completion": None}, "'completion' is None"),
        ({"messages": TURNS, "tools": "{bad"}, "'tools' is a text that is not JSON"),
        ({"messages": TURNS, "tools": 3}, "'tools' is 3, where a list"),
        ({"question": "1+1?", "answer": 2}, "'answer' is 2, which is neither a text nor a list of"),
        ({"instruction": "Add", "input": 3, "output": "4"}, "'input' is 3, which is not a text"),
        ({"messages": [TURNS[0], {**TURNS[1], "weight": 0.5}]}, "message 1 has the weight 0.5: .*learned, 1, or not"),
        ({"messages": [TURNS[0], {**TURNS[1], "weight": "x"}]}, "message 1 has the weight 'x'"),
        ({"messages": [{"role": "user", "content": [3]}]}, "not a text"),
        ({"conversations": [{"speaker": "a", "text": "b"}]}, "message 0 has speaker, text, where 'role' and 'content'"),
        ({"messages": [{"role": "assistant", "tool_calls": ["add"]}]}, "message 0 has the tool calls .*list of mapp"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": "add"}]}]}, "message 0 calls 'add'"),
    ],
)
def test_what_is_no_conversation_is_said(row: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        conversations.read(row, "data, row 7")
    assert str(error.value).startswith("data, row 7")


def test_a_long_conversation_loses_its_beginning_and_no_answer() -> None:
    tokenizer = family("llama")
    whole = encoded(tokenizer, SYSTEM)
    fits = encoded(tokenizer, SYSTEM, longest=len(whole.ids))
    assert fits == whole
    # The system's message stays, and the first exchange goes.
    cut = encoded(tokenizer, SYSTEM, longest=len(whole.ids) - 1)
    pieces = BY_HAND["llama", "system"]
    kept = [f"<|begin_of_text|>{header('system')}Count.<|eot_id|>{pieces[2]}", *pieces[3:]]
    assert (cut.ids, cut.labels, cut.is_cut, cut.lost) == (*expected(tokenizer, kept), True, 1)
    # Of the last exchange, the beginning of the question is left out; the answer is whole.
    last = encoded(tokenizer, SYSTEM, longest=6)
    assert tokenizer.convert_ids_to_tokens(last.ids[:1]) == ["<|begin_of_text|>"]
    assert last.labels[-2:] == expected(tokenizer, pieces[4:])[1][-2:]
    assert (len(last.ids), last.lost) == (6, 2)
    assert [label != IGNORED for label in last.labels] == [False] * 4 + [True] * 2
    with pytest.raises(ValueError, match="row: the answer has 2 tokens, and 2 can be read"):
        encoded(tokenizer, SYSTEM, longest=2)


def test_an_answer_that_would_be_cut_does_not_count() -> None:
    talk = [TURNS[0], {"role": "assistant", "content": "thinking"}, {"role": "tool", "content": "x"}, TURNS[1]]
    tokenizer = family("llama")
    whole = encoded(tokenizer, talk)
    (first, end), _ = whole.answers
    for longest in (len(whole.ids) - first, len(whole.ids) - first - 1, len(whole.ids) - end):
        cut = encoded(tokenizer, talk, longest=longest)
        assert len(cut.ids) == longest
        assert [cut.ids[a:b] for a, b in cut.answers] == [whole.ids[-2:]]
        assert cut.lost == 1
    assert len(encoded(tokenizer, talk, longest=len(whole.ids) - 2).answers) == 2


class Rows(Dataset[Any]):
    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


class Flow(IterableDataset[Any]):
    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __iter__(self) -> Any:
        return iter(self.rows)


TALKS = [{"messages": SYSTEM, "source": "a", "id": 1}, {"messages": TOOLS, "source": "b", "id": 2}]
ALPACA = [
    {"instruction": "Add", "input": "1, 2", "output": "3"},
    {"instruction": "Say hello", "input": "", "output": "hello"},
]
FORMS: dict[str, Any] = {
    "records": lambda rows: rows,
    "frame": pd.DataFrame,
    "dataset": datasets.Dataset.from_list,
    "mapping": lambda rows: {name: [row[name] for row in rows] for name in rows[0]},
    "torch": Rows,
    "stream": Flow,
    "streamed": lambda rows: datasets.Dataset.from_list(rows).to_iterable_dataset(),
}


def writer(size: int = 300) -> Any:
    """A small Llama for byte tokenizers."""
    return model("Llama", "ForCausalLM", vocab_size=size, max_position_embeddings=400)()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", [TALKS, ALPACA], ids=["messages", "alpaca"])
def test_every_form_of_data_gives_the_same_tokens(form: str, rows: list[Any]) -> None:
    tokenizer = family("qwen", model_max_length=1000)
    source = Source(FORMS[form](rows), writer(), tokenizer, num_examples=2, likelihood=None)
    batch = source.first_batch(2)
    for index, row in enumerate(rows):
        talk = conversations.read(row, "row")
        found = chat.encode(talk, tokenizer, 1000, "row")
        size = len(found.ids)
        assert batch["input_ids"][index, :size].tolist() == found.ids
        assert batch["attention_mask"][index].tolist() == [1] * size + [0] * (batch["input_ids"].shape[1] - size)
        assert batch["labels"][index, :size].tolist() == found.labels
        assert (batch["labels"][index, size:] == IGNORED).all()


@pytest.mark.parametrize("rows", [[TURNS, TOOLS], TURNS], ids=["several", "one"])
def test_lists_of_messages_are_conversations(rows: Any) -> None:
    tokenizer = family("qwen", model_max_length=1000)
    batch = Source(rows, writer(), tokenizer).first_batch(2)
    talks = rows if isinstance(rows[0], list) else [rows]
    tables = Source([{"messages": talk} for talk in talks], writer(), tokenizer).first_batch(2)
    assert all(torch.equal(batch[name], tables[name]) for name in tables)


PAIRS = {"prompt": "one?", "chosen": "1", "rejected": "2"}


@pytest.mark.parametrize("form", ["records", "dataset", "torch", "stream"])
@pytest.mark.parametrize(
    ("row", "words"),
    [
        (PAIRS, "'chosen' and 'rejected', .* preferences are not learned: keep the chosen"),
        ({name: [{"role": "user", "content": text}] for name, text in PAIRS.items()}, "preferences are not learned"),
        ({"turns": TURNS}, "where numbers are needed. Call the column 'messages'"),
    ],
    ids=["texts", "messages", "name"],
)
def test_tables_that_are_almost_conversations_are_refused(form: str, row: dict[str, Any], words: str) -> None:
    if form in ("dataset", "stream") and "turns" in row:
        words = "turns"
    with pytest.raises(ValueError, match=words):
        Source(FORMS[form]([row] * 2), writer(), family("qwen"))


def test_a_label_of_a_row_is_not_that_of_its_tokens() -> None:
    rows = [{"prompt": "a", "completion": "b", "label": good} for good in (True, False)]
    with pytest.raises(ValueError, match=r"'causal_lm' does not fit .* one for each row: leave it out"):
        bayeslora.fit(writer(), rows, "lora", tokenizer=family("qwen"), likelihood="causal_lm")


def test_json_lines_are_read(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "talks.jsonl"
    path.write_text("\n".join(json.dumps({"messages": talk}) for talk in (TURNS, SYSTEM)))
    caplog.set_level(logging.INFO, "bayeslora")
    tokenizer = family("phi")
    posterior = bayeslora.fit(writer(), path, "lora", tokenizer=tokenizer, epochs=0, progress=False, answers="last")
    assert "conversations: messages (the tokenizer's chat template; 2 answers)" in caplog.text
    assert posterior.program.likelihood.name == "causal_lm"
    assert posterior.columns.answers == "last"
    prediction = posterior.predict([{"messages": TURNS}], num_draws=1)
    ids = encoded(tokenizer, TURNS, "last")
    assert prediction.tokens.tolist() == [label for label in ids.labels if label != IGNORED]
    start = ids.answers[0][0]
    assert prediction.rows.position.tolist() == list(range(start, len(ids.ids)))

    # Rows of several forms in one file, which predictions read as fits do.
    rows = [{"messages": TURNS[:2]}, {"instruction": "Add", "input": "", "output": "3"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    np.testing.assert_array_equal(posterior.predict(path, num_draws=1).probs, posterior.predict(rows, 1).probs)


def test_only_answers_are_learned_and_scored(tmp_path: Any) -> None:
    network, tokenizer = writer().double(), family("llama")
    posterior = bayeslora.fit(network, TALKS, "monteclora", tokenizer=tokenizer, epochs=1, progress=False, rank=2)
    assert posterior.history["nll"].notna().all()
    scores = posterior.evaluate(TALKS, num_draws=2)
    merged = posterior.merge()
    total = 0.0
    for row in TALKS:
        found = encoded(tokenizer, row["messages"])
        with torch.no_grad():
            logits = merged(torch.tensor([found.ids])).logits[0].log_softmax(-1)
        for start, end in found.answers:
            total -= float(sum(logits[place - 1, found.ids[place]] for place in range(start, end)))
    assert scores["center_nll"] == pytest.approx(total / 2, abs=1e-6)
    posterior.save(tmp_path / "saved")
    again = bayeslora.load(tmp_path / "saved", network)
    assert again.tokenizer.chat_template == tokenizer.chat_template
    assert again.columns == posterior.columns
    assert again.evaluate(TALKS, num_draws=2) == pytest.approx(scores, abs=1e-9)


def test_what_is_cut_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = family("llama", model_max_length=60)
    caplog.set_level(logging.WARNING, "bayeslora")
    source = Source([{"messages": SYSTEM}, {"messages": TURNS[:2]}], writer(), tokenizer)
    list(source.batches(1))
    assert [record.getMessage() for record in caplog.records] == [
        "data: 1 of 2 conversations have more than 60 tokens: their beginnings are left out, and 2 answer(s) with them."
    ]


PROMPT = f"<|begin_of_text|>{header('user')}one?<|eot_id|>{header('assistant')}"


@pytest.mark.parametrize(
    "inputs",
    [
        TURNS[:1],
        TURNS[:2],
        [TURNS[:1]],
        {"messages": TURNS[:1]},
        {"messages": [TURNS[:2]]},
        [{"messages": TURNS[:1], "source": "a"}],
        {"prompt": TURNS[:1]},
        {"instruction": "one?", "input": "", "output": "1"},
        {"instruction": "one?", "input": None},
        {"instruction": ["one?"], "input": [""], "output": ["1"]},
        datasets.Dataset.from_list([{"messages": TURNS[:2]}]),
        pd.DataFrame({"instruction": ["one?"]}),
        [{"from": "human", "value": "one?"}],
    ],
    ids=str,
)
def test_conversations_are_answered(inputs: Any) -> None:
    tokenizer = family("llama")
    found = encode(inputs, writer(), tokenizer)
    assert found["input_ids"].tolist() == [tokenizer(PROMPT, add_special_tokens=False)["input_ids"]]
    assert found.ends == (tokenizer.eos_token_id,)


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("llama", "<|eot_id|>"),
        ("qwen", "<|im_end|>"),
        ("gemma", "<end_of_turn>"),
        ("mistral", "</s>"),
        ("phi", "<|end|>"),
        ("parts", "<end_of_utterance>"),
    ],
)
def test_an_answer_ends_with_its_turn(name: str, end: str) -> None:
    tokenizer = family(name)
    assert chat.ends(tokenizer) == tokenizer.convert_tokens_to_ids([end])


def test_what_is_generated_is_what_is_learned() -> None:
    tokenizer = family("gemma")
    network = writer()
    posterior = bayeslora.fit(network, [{"messages": TURNS}], "lora", tokenizer=tokenizer, epochs=0, progress=False)
    talk = encoded(tokenizer, TURNS)
    start, _ = talk.answers[-1]
    assert encode(TURNS, network, tokenizer)["input_ids"].tolist() == [talk.ids[:start]]
    end = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    written = posterior.generate(
        TURNS, num_draws=1, max_new_tokens=3, suppress_tokens=[i for i in range(300) if i != end]
    )
    assert written.tokens[0, 0].tolist() == [end]
    both = posterior.generate([TURNS[:1], TURNS[:3]], num_draws=1, max_new_tokens=2)
    assert both.tokens.shape[1] == 2


def test_a_prompt_that_is_a_text_is_continued_as_it_stands() -> None:
    tokenizer = family("llama")
    found = encode({"prompt": ["a:", "b"], "completion": ["c", "d"]}, writer(), tokenizer)
    assert found["attention_mask"].sum(1).tolist() == [3, 2]
    assert found["input_ids"][0].tolist() == tokenizer("a:")["input_ids"]
    assert found.ends == ()


def test_an_encoder_decoder_reads_what_is_asked_and_writes_the_answer() -> None:
    tokenizer = byte_tokenizer(None, "</s>")
    network = model("T5", "ForConditionalGeneration", vocab_size=300, eos_token_id=256, pad_token_id=256)()
    source = Source(ALPACA, network, tokenizer)
    batch = source.first_batch()
    assert tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True) == "Add\n\n1, 2"
    assert [tokenizer.decode(row[row != IGNORED]) for row in batch["labels"]] == ["3", "hello"]
    posterior = bayeslora.fit(network, ALPACA, "lora", tokenizer=tokenizer, epochs=0, progress=False)
    assert posterior.program.likelihood.name == "seq2seq_lm"
    assert posterior.generate(ALPACA[0], num_draws=1, max_new_tokens=2).tokens.shape == (1, 1, 2)


def test_conversations_need_a_model_that_writes() -> None:
    with pytest.raises(ValueError, match=r"conversations \(messages\), which a language model reads"):
        Source(TALKS, model("Bert", "ForSequenceClassification")(), byte_tokenizer(), reading=Reading(Columns()))


def test_a_model_by_name_is_a_causal_one_for_conversations(tmp_path: Any) -> None:
    writer().save_pretrained(tmp_path)
    family("llama").save_pretrained(tmp_path)
    posterior = bayeslora.fit(str(tmp_path), TALKS, "lora", epochs=0, progress=False)
    assert type(posterior.network.model).__name__ == "LlamaForCausalLM"


def test_labels_beside_a_prompt_and_a_completion_are_not_dropped() -> None:
    table = pd.DataFrame({"prompt": ["a", "b"], "completion": ["c", "d"], "label": [True, False]})
    network = model("Bert", "ForSequenceClassification", vocab_size=300)()
    source = Source(table, network, byte_tokenizer())
    assert source.columns.text == ("prompt", "completion")
    assert np.asarray(source.labels).tolist() == [True, False]
