"""Chat templates of common families, written by hand from their documented form, each with a rendering in Python.

A family's `pieces` is the independent rendering: the texts of a chat, each with whether the model learns it. A chat
that ends with an answer gives a training row, which ends with that answer's end token; another chat gives a prompt.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from quadriga.data.records import Message
from quadriga.data.tokens.tokenizer import load_tokenizer

Pieces = list[tuple[str, bool]]


@dataclass(frozen=True)
class Family:
    """A family's chat template and the facts of its tokenizer.

    special: special tokens. plain: added tokens that are ordinary text. ends: `eos_token_id` of generation_config.json,
    as tokens. adds_bos: whether the tokenizer writes BOS before plain text. system: whether the template takes a system
    message.
    """

    template: str
    pieces: Callable[[list[Message]], Pieces]
    special: tuple[str, ...]
    eos: str
    end: str
    """Token that ends an answer."""
    bos: str | None = None
    adds_bos: bool = False
    plain: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    system: bool = True
    rewrites: bool = field(default=False)
    """Whether earlier answers of a chat are rewritten, so that only the last one is learned."""

    def save(self, folder: Path) -> None:
        """Write tokenizer and generation_config.json, as a model folder has them."""
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        backend = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(alphabet)}, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens(list(self.special))
        backend.add_tokens(list(self.plain))
        if self.adds_bos:
            backend.post_processor = processors.TemplateProcessing(
                single=f"{self.bos} $A", special_tokens=[(self.bos, backend.token_to_id(self.bos))]
            )
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=self.bos, eos_token=self.eos)
        tokenizer.chat_template = self.template
        tokenizer.save_pretrained(folder)
        if self.ends:
            ids = tokenizer.convert_tokens_to_ids(list(self.ends))
            (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))

    def tokenizer(self, folder: Path) -> PreTrainedTokenizerBase:
        """Return the tokenizer as a stage loads it."""
        self.save(folder)
        return load_tokenizer(folder)


def trained(pieces: Pieces) -> Pieces:
    """Return the pieces up to the last learned one, where a training row ends."""
    last = max((n for n, (_, learned) in enumerate(pieces) if learned), default=len(pieces) - 1)
    return pieces[: last + 1]


def last_only(pieces: Pieces) -> Pieces:
    """Return the pieces with only the last learned one learned."""
    last = max((n for n, (_, learned) in enumerate(pieces) if learned), default=-1)
    return [(text, learned and n == last) for n, (text, learned) in enumerate(pieces)]


def with_system(messages: list[Message], text: str) -> list[Message]:
    """Return the chat with a system message: its own, or a default."""
    return messages if messages[0]["role"] == "system" else [{"role": "system", "content": text}, *messages]


def chatml(messages: list[Message]) -> Pieces:
    pieces: Pieces = []
    for message in messages:
        pieces += [
            (f"<|im_start|>{message['role']}\n", False),
            (f"{message['content']}<|im_end|>", message["role"] == "assistant"),
            ("\n", False),
        ]
    if messages[-1]["role"] != "assistant":
        return [*pieces, ("<|im_start|>assistant\n", False)]
    return trained(pieces)


def qwen25(messages: list[Message]) -> Pieces:
    return chatml(with_system(messages, "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."))


def smollm2(messages: list[Message]) -> Pieces:
    return chatml(with_system(messages, "You are a helpful AI assistant named SmolLM, trained by Hugging Face"))


def thoughtful(messages: list[Message], every: bool) -> Pieces:
    """ChatML with an empty think block before the last answer, or before every one."""
    last = len(messages) - 1
    return chatml(
        [
            {**message, "content": f"<think>\n\n</think>\n\n{message['content']}"}
            if message["role"] == "assistant" and (every or n == last)
            else message
            for n, message in enumerate(messages)
        ]
    )


def qwen3(messages: list[Message]) -> Pieces:
    return last_only(thoughtful(messages, every=False))


def qwen3_trained(messages: list[Message]) -> Pieces:
    return thoughtful(messages, every=True)


def llama3(messages: list[Message]) -> Pieces:
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    pieces: Pieces = [
        (
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
            f"Today Date: 26 Jul 2024\n\n{system}<|eot_id|>",
            False,
        )
    ]
    for message in messages[1:] if system else messages:
        pieces += [
            (f"<|start_header_id|>{message['role']}<|end_header_id|>\n\n", False),
            (f"{message['content']}<|eot_id|>", message["role"] == "assistant"),
        ]
    if messages[-1]["role"] != "assistant":
        return [*pieces, ("<|start_header_id|>assistant<|end_header_id|>\n\n", False)]
    return trained(pieces)


def gemma(messages: list[Message]) -> Pieces:
    pieces: Pieces = [("<bos>", False)]
    first = ""
    if messages[0]["role"] == "system":
        first, messages = messages[0]["content"] + "\n\n", messages[1:]
    for n, message in enumerate(messages):
        if message["role"] == "assistant":
            pieces += [("<start_of_turn>model\n", False), (f"{message['content']}<end_of_turn>", True), ("\n", False)]
        else:
            pieces += [(f"<start_of_turn>user\n{first if n == 0 else ''}{message['content']}<end_of_turn>\n", False)]
    if messages[-1]["role"] != "assistant":
        return [*pieces, ("<start_of_turn>model\n", False)]
    return trained(pieces)


def phi3(messages: list[Message]) -> Pieces:
    pieces: Pieces = []
    for message in messages:
        pieces += [
            (f"<|{message['role']}|>\n", False),
            (f"{message['content']}<|end|>", message["role"] == "assistant"),
            ("\n", False),
        ]
    if messages[-1]["role"] != "assistant":
        return [*pieces, ("<|assistant|>\n", False)]
    return trained(pieces)


def phi4(messages: list[Message]) -> Pieces:
    pieces: Pieces = []
    for message in messages:
        pieces += [
            (f"<|im_start|>{message['role']}<|im_sep|>", False),
            (f"{message['content']}<|im_end|>", message["role"] == "assistant"),
        ]
    if messages[-1]["role"] != "assistant":
        return [*pieces, ("<|im_start|>assistant<|im_sep|>", False)]
    return trained(pieces)


def zephyr(messages: list[Message]) -> Pieces:
    pieces: Pieces = []
    for message in messages:
        pieces += [
            (f"<|{message['role']}|>\n", False),
            (f"{message['content']}</s>", message["role"] == "assistant"),
            ("\n", False),
        ]
    if messages[-1]["role"] != "assistant":
        return [*pieces, ("<|assistant|>\n", False)]
    return trained(pieces)


def mistral_first(messages: list[Message]) -> Pieces:
    """Mistral 7B v0.1 and v0.2."""
    pieces: Pieces = [("<s>", False)]
    for message in messages:
        if message["role"] == "assistant":
            pieces += [(f"{message['content']}</s>", True)]
        else:
            pieces += [(f"[INST] {message['content']} [/INST]", False)]
    return pieces


def mistral(messages: list[Message]) -> Pieces:
    """Mistral 7B v0.3: the system message stands in the last question, so it moves as a chat continues."""
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    asked = max(n for n, message in enumerate(messages) if message["role"] == "user")
    pieces: Pieces = [("<s>", False)]
    for n, message in enumerate(messages):
        if message["role"] == "assistant":
            pieces += [(f" {message['content']}</s>", True)]
        elif message["role"] == "user":
            before = f"{system}\n\n" if system and n == asked else ""
            pieces += [(f"[INST] {before}{message['content']}[/INST]", False)]
    return last_only(pieces) if system else pieces


def r1(messages: list[Message]) -> Pieces:
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    pieces: Pieces = [(f"<|begin▁of▁sentence|>{system}", False)]
    for message in messages:
        if message["role"] == "assistant":
            pieces += [("<|Assistant|>", False), (f"{message['content']}<|end▁of▁sentence|>", True)]
        elif message["role"] == "user":
            pieces += [(f"<|User|>{message['content']}", False)]
    if messages[-1]["role"] != "assistant":
        return [*pieces, ("<|Assistant|><think>\n", False)]
    pieces[-2:] = [("<|Assistant|><think>\n", False), (f"</think>\n\n{pieces[-1][0]}", True)]
    return last_only(pieces)


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def _with_default_system(text: str) -> str:
    return (
        "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\n"
        + text
        + "<|im_end|>\\n' }}{% endif %}"
        + CHATML
    )


QWEN3 = """\
{%- set ns = namespace(question=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{%- set ns.question = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- set content = message.content %}
        {%- set thoughts = '' %}
        {%- if '</think>' in content %}
            {%- set thoughts = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.question and (loop.last or thoughts) %}
            {{- '<|im_start|>assistant\\n<think>\\n' + thoughts.strip('\\n') + '\\n</think>\\n\\n' }}
            {{- content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- elif message.role == 'user' or message.role == 'system' %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""

LLAMA3 = """\
{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.role == 'tool' or message.role == 'ipython' %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" + message.content | tojson + "<|eot_id|>" }}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""

LLAMA32 = LLAMA3.replace(
    '{%- set date_string = "26 Jul 2024" %}',
    '{%- if strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y") %}'
    '{%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}',
)

_ALTERNATE = (
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
)
_NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
_GEMMA_TURNS = (
    "{% for message in messages %}"
    + _ALTERNATE
    + "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\\n' + (first if loop.first else '') + message['content'] | trim }}"
    "{{ '<end_of_turn>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
GEMMA2 = "{{ bos_token }}" + _NO_SYSTEM + "{% set first = '' %}" + _GEMMA_TURNS
GEMMA3 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\\n\\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set first = '' %}{% endif %}" + _GEMMA_TURNS
)
PHI3 = (
    "{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}"
    "{{ '<|system|>\\n' + message['content'] + '<|end|>\\n' }}{% elif message['role'] == 'user' %}"
    "{{ '<|user|>\\n' + message['content'] + '<|end|>\\n' }}{% elif message['role'] == 'assistant' %}"
    "{{ '<|assistant|>\\n' + message['content'] + '<|end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
PHI4 = (
    "{% for message in messages %}{% if message['role'] in ('system', 'user', 'assistant') %}"
    "{{ '<|im_start|>' + message['role'] + '<|im_sep|>' + message['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
ZEPHYR = """\
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n' + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
MISTRAL_FIRST = (
    "{{ bos_token }}{% for message in messages %}"
    + _ALTERNATE
    + "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system_message = messages[0]['content'] %}"
    "{% set messages = messages[1:] %}{% endif %}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{% if loop.last and system_message is defined %}"
    "{{ '[INST] ' + system_message + '\\n\\n' + message['content'] + '[/INST]' }}"
    "{% else %}{{ '[INST] ' + message['content'] + '[/INST]' }}{% endif %}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
R1 = (
    "{% set ns = namespace(system='') %}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{% set ns.system = message['content'] %}{% endif %}{% endfor %}{{ bos_token }}{{ ns.system }}"
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '<|User|>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{% set content = message['content'] %}{% if '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}{{ '<|Assistant|>' + content + eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}"
)

_QWEN = {"special": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "end": "<|im_end|>"}
_THINK = ("<think>", "</think>")
_QWEN25 = _with_default_system("You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")
_LLAMA = {
    "special": (
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eom_id|>",
        "<|eot_id|>",
    ),
    "eos": "<|eot_id|>",
    "end": "<|eot_id|>",
    "bos": "<|begin_of_text|>",
    "adds_bos": True,
    "ends": ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
}
_GEMMA = {
    "special": ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
    "eos": "<eos>",
    "end": "<end_of_turn>",
    "bos": "<bos>",
    "adds_bos": True,
    "ends": ("<eos>", "<end_of_turn>"),
}
_MISTRAL = {
    "special": ("<unk>", "<s>", "</s>", "[INST]", "[/INST]"),
    "bos": "<s>",
    "eos": "</s>",
    "end": "</s>",
    "adds_bos": True,
}

FAMILIES: dict[str, Family] = {
    "chatml": Family(CHATML, chatml, eos="<|im_end|>", **_QWEN),
    "qwen2.5": Family(_QWEN25, qwen25, eos="<|im_end|>", ends=("<|im_end|>", "<|endoftext|>"), **_QWEN),
    "qwen2.5-base": Family(_QWEN25, qwen25, eos="<|endoftext|>", ends=("<|endoftext|>",), **_QWEN),
    "qwen3": Family(QWEN3, qwen3, eos="<|im_end|>", plain=_THINK, rewrites=True, **_QWEN),
    "llama-3.1": Family(LLAMA3, llama3, **_LLAMA),
    "gemma-2": Family(GEMMA2, gemma, system=False, **_GEMMA),
    "gemma-3": Family(GEMMA3, gemma, **_GEMMA),
    "phi-3": Family(
        PHI3,
        phi3,
        special=("<unk>", "<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        bos="<s>",
        eos="<|endoftext|>",
        end="<|end|>",
        ends=("<|endoftext|>", "<|end|>"),
    ),
    "phi-4": Family(
        PHI4,
        phi4,
        special=("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>"),
        bos="<|endoftext|>",
        eos="<|im_end|>",
        end="<|im_end|>",
    ),
    "mistral-v0.1": Family(MISTRAL_FIRST, mistral_first, system=False, **_MISTRAL),
    "mistral-v0.3": Family(MISTRAL, mistral, **_MISTRAL),
    "smollm2": Family(
        _with_default_system("You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
        smollm2,
        bos="<|im_start|>",
        eos="<|im_end|>",
        **_QWEN,
    ),
    "zephyr": Family(ZEPHYR, zephyr, special=("<unk>", "<s>", "</s>"), bos="<s>", eos="</s>", end="</s>"),
    "deepseek-r1": Family(
        R1,
        r1,
        special=("<|begin▁of▁sentence|>", "<|end▁of▁sentence|>"),
        plain=("<|User|>", "<|Assistant|>", *_THINK),
        bos="<|begin▁of▁sentence|>",
        eos="<|end▁of▁sentence|>",
        end="<|end▁of▁sentence|>",
        adds_bos=True,
        rewrites=True,
    ),
}
