"""Checks of tokenizer and chat template ask for what a stage needs of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.chat_families import FAMILIES

from quadriga.launch.checks.stage import check_config
from quadriga.launch.config.load import load_config

REWRITING = (
    "{{- bos_token }}{%- for m in messages %}{{- '<' + m['role'] + '>' }}{%- if m['role'] == 'assistant' %}"
    "{%- if loop.last %}{{- 'So: ' }}{%- endif %}{{- m['content'] | trim + eos_token }}{%- else %}"
    "{{- m['content'] | trim }}{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<assistant>' }}{%- endif %}"
)
ENDLESS = (
    "{%- for m in messages %}{{- '<' + m['role'] + '>' + m['content'] }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<assistant>' }}{%- endif %}"
)
ASK, ANSWER = {"role": "user", "content": "What is red?"}, {"role": "assistant", "content": "The stone."}


def findings(config: dict[str, Any], write: Callable[..., Path]) -> tuple[list[str], str]:
    """Return the problems of a config, and all other lines joined."""
    results = check_config(load_config(write(config)))
    problems = [result.text for result in results if result.level == "problem"]
    return problems, "\n".join(result.text for result in results if result.level != "problem")


def chats(path: Path, *turns: int) -> dict[str, Any]:
    """Write chats with these numbers of turns; return the settings that read them."""
    path.write_text("".join(json.dumps({"messages": [ASK, ANSWER] * count}) + "\n" for count in turns))
    return {"train": str(path), "max_tokens": 128}


@pytest.fixture
def rewriting(tmp_path: Path) -> str:
    """A template that writes the last answer in another form than earlier ones."""
    (tmp_path / "rewriting.jinja").write_text(REWRITING)
    return str(tmp_path / "rewriting.jinja")


@pytest.mark.parametrize("template", [REWRITING, ENDLESS])
def test_prompts_need_no_mask(ppo, write, tmp_path: Path, template: str) -> None:
    (tmp_path / "prompts.jinja").write_text(template)
    problems, lines = findings(
        {**ppo, "prompts": {**ppo["prompts"], "chat_template": str(tmp_path / "prompts.jinja")}}, write
    )
    assert not problems
    assert "prompts read: 4" in lines


def test_documents_need_no_template(ppo, write, tmp_path: Path, model: Path) -> None:
    (tmp_path / "broken.jinja").write_text("{{ raise_exception('no chats') }}")
    config = {"stage": "pretrain", "name": "x", "model": {"path": str(model)}, "cluster": {"device": "cpu"}}
    data = {"train": {"builtin": "assistant.text", "rows": 4}, "chat_template": str(tmp_path / "broken.jinja")}
    assert not findings({**config, "data": {**data, "max_tokens": 128}}, write)[0]


def test_a_template_without_an_end_is_refused_for_answers(sft, write, tmp_path: Path) -> None:
    (tmp_path / "endless.jinja").write_text(ENDLESS)
    data = {**chats(tmp_path / "c.jsonl", 1), "chat_template": str(tmp_path / "endless.jinja")}
    (problem,) = findings({**sft, "data": data}, write)[0]
    assert "does not end an assistant message with an end token (here '<eos>')" in problem


def test_single_turns_are_learned_with_a_rewriting_template(sft, write, tmp_path: Path, rewriting: str) -> None:
    data = {**chats(tmp_path / "c.jsonl", 1, 1), "chat_template": rewriting}
    problems, lines = findings({**sft, "data": data}, write)
    assert not problems
    assert "earlier answers are not" not in lines


def test_last_answers_of_a_rewriting_template_are_counted(sft, write, tmp_path: Path, rewriting: str) -> None:
    data = {**chats(tmp_path / "c.jsonl", 1, 2, 3), "chat_template": rewriting}
    problems, lines = findings({**sft, "data": data}, write)
    assert not problems
    assert "only the last answer is learned in 2 chats; 3 earlier answers are not" in lines


@pytest.mark.parametrize(
    ("name", "bos", "ends"),
    [
        ("gemma-2", "one BOS", "'<eos>' or '<end_of_turn>'"),
        ("phi-3", "no BOS", "'<|endoftext|>' or '<|end|>'"),
        ("qwen2.5-base", "no BOS", "'<|endoftext|>' or '<|im_end|>'"),
        ("smollm2", "one BOS", "'<|im_end|>'"),
    ],
)
def test_families_pass(sft, write, model: Path, tmp_path: Path, name: str, bos: str, ends: str) -> None:
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_bytes((model / file).read_bytes())
    FAMILIES[name].save(tmp_path)
    data = chats(tmp_path / "c.jsonl", 1, 2)
    problems, lines = findings({**sft, "model": {"path": str(tmp_path)}, "data": data}, write)
    assert not problems
    assert f"{bos}, answers end with {ends}" in lines
