"""Chat templates of several families, written down in our own words, and small tokenizers that know their tokens."""

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

LLAMA = """{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\n\n' + message.content | trim | tojson + '<|eot_id|>' }}
    {%- elif message.tool_calls %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
        {{- message.tool_calls[0].function | tojson + '<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}"""

QWEN = """{%- if messages[0].role != 'system' %}
    {{- '<|im_start|>system\nYou help.<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {%- if loop.previtem.role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}{{- '<|im_end|>\n' }}{%- endif %}
    {%- elif message.role == 'assistant' and message.tool_calls %}
        {{- '<|im_start|>assistant' }}
        {%- for call in message.tool_calls %}
            {{- '\n<tool_call>\n' + call.function | tojson + '\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""

THINKING = """{%- for message in messages %}
    {%- if message.role == 'assistant' and loop.last %}
        {{- '<|im_start|>assistant\n<think>\n\n</think>\n\n' + message.content + '<|im_end|>\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\n' + message.content.split('</think>')[-1].lstrip() + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""
"""As Qwen 3: the last answer is written with thoughts, and those before it without."""

GEMMA = """{{- bos_token }}
{%- if messages[0].role == 'system' %}{{- raise_exception('System role not supported') }}{%- endif %}
{%- for message in messages %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {{- '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' }}
    {{- message.content | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{%- endif %}"""

MISTRAL = """{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content %}{%- set rest = messages[1:] %}
{%- else %}
    {%- set rest = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in rest %}
    {%- if message.role == 'user' %}
        {%- if system is defined and loop.last %}
            {{- '[INST] ' + system + '\n\n' + message.content + '[/INST]' }}
        {%- else %}
            {{- '[INST] ' + message.content + '[/INST]' }}
        {%- endif %}
    {%- elif message.role == 'tool' %}
        {{- '[TOOL_RESULTS] ' + message.content + '[/TOOL_RESULTS]' }}
    {%- elif message.tool_calls %}
        {{- '[TOOL_CALLS] ' + message.tool_calls[0].function | tojson + eos_token }}
    {%- else %}
        {{- ' ' + message.content | trim + eos_token }}
    {%- endif %}
{%- endfor %}"""
"""The system's message stands in the last of the user's: what was written before changes with every turn."""

PHI = """{%- for message in messages %}
    {{- '<|' + message.role + '|>\n' + message.content + '<|end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\n' }}{%- else %}{{- eos_token }}{%- endif %}"""

PARTS = """{%- for message in messages %}
    {{- message.role | capitalize + ': ' }}
    {%- for part in message.content %}
        {%- if part.type == 'text' %}{{- part.text }}{%- endif %}
    {%- endfor %}
    {{- '<end_of_utterance>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'Assistant:' }}{%- endif %}"""
"""As those of models that see, too: contents that are texts are not written, and those in parts are."""

CHANNELS = """{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- raise_exception('a result of no call') if not loop.previtem.tool_calls }}
        {{- '<|start|>tool<|message|>' + message.content + '<|end|>' }}
    {%- elif message.role == 'assistant' %}
        {%- set later = messages[loop.index:] | selectattr('role', 'equalto', 'assistant') | list %}
        {%- set thought = message.thinking or (message.content if message.tool_calls) %}
        {%- if thought and not later %}
            {{- '<|start|>assistant<|channel|>analysis<|message|>' + thought + '<|end|>' }}
        {%- endif %}
        {%- for call in message.tool_calls or [] %}
            {{- '<|start|>assistant to=' + call.function.name + '<|message|>' }}
            {{- call.function.arguments | tojson + '<|call|>' }}
        {%- else %}
            {{- '<|start|>assistant<|channel|>final<|message|>' + message.content }}
            {{- '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}
        {%- endfor %}
    {%- else %}
        {{- '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"""
"""As gpt-oss: thoughts are written of the last answer alone, which ends otherwise than those before it."""

OPEN = """{{- '<sop>' }}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- set thought = message.reasoning_content if loop.last else '' %}
        {{- '<|assistant|>\n<think>' + (thought or '') + '</think>\n' + message.content }}
    {%- else %}
        {{- '<|' + message.role + '|>\n' + message.content }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"""
"""As GLM 4.5: no token ends an answer."""

DEEPSEEK = """{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' %}{{- message.content }}
    {%- elif message.role == 'user' %}{{- '<User>' + message.content }}
    {%- elif message.role == 'tool' %}{{- '<Result>' + message.content + '<ResultEnd>' }}
    {%- elif message.content is none %}
        {%- for call in message.tool_calls %}
            {{- '<Assistant><Call>' + call.function.name + '\n' + call.function.arguments + '<CallEnd>' + eos_token }}
        {%- endfor %}
    {%- else %}
        {{- ('' if loop.previtem.role == 'tool' else '<Assistant>') + message.content.split('</think>')[-1] }}
        {{- eos_token }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt and messages[-1].role != 'tool' %}{{- '<Assistant>' }}{%- endif %}"""
"""As DeepSeek R1: calls have no text, and their arguments are texts; no answer keeps its thoughts."""

WITHIN = """{{- bos_token }}
{%- for message in messages if message.role != 'tool' %}
    {%- if loop.first or not loop.previtem.tool_calls %}
        {{- '<|turn>' + message.role + '\n' }}
    {%- endif %}
    {%- for call in message.tool_calls or [] %}
        {{- '<|call>' + call.function.name + call.function.arguments | tojson + '<call|>' }}
        {%- for result in messages if result.role == 'tool' %}
            {{- '<|result>' + result.content + '<result|>' }}
        {%- else %}
            {{- '<|result>' }}
        {%- endfor %}
    {%- else %}
        {{- message.content + '<turn|>\n' }}
    {%- endfor %}
{%- endfor %}
{%- if add_generation_prompt and messages[-1].role != 'tool' %}{{- '<|turn>assistant\n<think></think>' }}{%- endif %}"""
"""As Gemma 4: results of tools stand within the assistant's turn, and the prompt has an empty thought."""

ZEPHYR = """{% for message in messages %}
{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token }}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""

SPECIAL = {
    "llama": ("<|begin_of_text|>", "<|eot_id|>", ("<|start_header_id|>", "<|end_header_id|>")),
    "qwen": (None, "<|im_end|>", ("<|im_start|>", "<tool_call>", "</tool_call>", "<think>", "</think>")),
    "thinking": (None, "<|im_end|>", ("<|im_start|>", "<think>", "</think>")),
    "gemma": ("<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>")),
    "mistral": ("<s>", "</s>", ("[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]")),
    "phi": (None, "<|endoftext|>", ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")),
    "parts": (None, "<end_of_utterance>", ()),
    "channels": (None, "<|return|>", ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>")),
    "open": (None, "<|endoftext|>", ("<sop>", "<|user|>", "<|assistant|>", "<think>", "</think>")),
    "deepseek": ("<s>", "</s>", ("<User>", "<Assistant>", "<Call>", "<CallEnd>", "<Result>", "<ResultEnd>")),
    "within": ("<bos>", "<eos>", ("<|turn>", "<turn|>", "<|call>", "<call|>", "<|result>", "<result|>")),
    "zephyr": ("<s>", "</s>", ("<|user|>", "<|assistant|>")),
}
"""The token that begins a text, the one that ends it, and others."""

TEMPLATES = {
    **{"llama": LLAMA, "qwen": QWEN, "thinking": THINKING, "gemma": GEMMA, "mistral": MISTRAL, "phi": PHI},
    **{"parts": PARTS, "channels": CHANNELS, "open": OPEN, "deepseek": DEEPSEEK, "within": WITHIN, "zephyr": ZEPHYR},
}


def byte_tokenizer(begin: str | None = None, end: str | None = "<end>", others: Any = (), **settings: Any) -> Any:
    """A tokenizer that knows every byte, and special tokens; it begins every text with its first, if it has one."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    names = [name for name in (begin, end, *others) if name]
    inner.add_special_tokens(names)
    if begin:
        inner.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, inner.token_to_id(begin))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=begin, eos_token=end, pad_token=end, **settings)


def word_tokenizer(
    begin: str | None = None, end: str | None = "<end>", others: Any = (), words: str = "", **settings: Any
) -> Any:
    """A tokenizer of whole words, which loses white space."""
    names = [name for name in ("[UNK]", begin, end, *others) if name]
    known = {word: index for index, word in enumerate(dict.fromkeys([*names, *words.split()]))}
    inner = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.add_special_tokens(names)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=begin, eos_token=end, pad_token=end, unk_token="[UNK]", **settings
    )


def family(name: str, make: Any = byte_tokenizer, **settings: Any) -> Any:
    """A small tokenizer with the special tokens and the template of a family."""
    tokenizer = make(*SPECIAL[name], **settings)
    tokenizer.chat_template = TEMPLATES[name]
    return tokenizer
