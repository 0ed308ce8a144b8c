"""Models measured in one real engine whose weights are swapped, and a chat with an engine of its own."""

import io
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from helpers.chat_tokens import encode_prompt
from rich.console import Console
from rich.text import Text
from transformers import AutoModelForCausalLM

from quadriga.actors.model.export import save_fresh_model
from quadriga.actors.model.folder import read_config
from quadriga.actors.settings import ClusterSettings, SamplingSettings
from quadriga.data.settings import Source
from quadriga.data.tokens.tokenizer import load_tokenizer
from quadriga.orchestrator.chat import chat
from quadriga.orchestrator.evaluation.evaluate import evaluate_models
from quadriga.orchestrator.evaluation.metrics import Evaluation
from quadriga.orchestrator.evaluation.settings import EvaluationPrompts, EvaluationSettings
from quadriga.orchestrator.rewards.function import RewardFunctionSettings
from quadriga.orchestrator.tracking.console import StageProgress

pytestmark = pytest.mark.integration
QUESTIONS = ["sun moon", "red bird", "old tree", "wind rain", "blue fish", "green stone"]
TOKENS = 12
JUDGE = """
def length(rows):
    return [{"score": len(row["response"]) / 100, "refused": float("e" in row["response"])} for row in rows]
"""


@pytest.fixture(scope="module")
def other_model(made_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same shape and tokenizer with other weights."""
    folder = tmp_path_factory.mktemp("models") / "other"
    config = read_config(made_model)
    names = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    names += ("num_key_value_heads", "max_position_embeddings", "tie_word_embeddings", "initializer_range")
    save_fresh_model({name: config[name] for name in names}, load_tokenizer(made_model), 7, folder)
    return folder


@pytest.fixture(scope="module")
def results(
    ray_cluster: None,
    made_model: Path,
    other_model: Path,
    made_reward: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Evaluation]:
    """One engine: it starts on `a`, takes the weights of `b`, and those of `a` again."""
    folder = tmp_path_factory.mktemp("evaluation")
    (folder / "trivial_judge.py").write_text(JUDGE)
    rows = [{"prompt": q, "id": f"q{n}", "kind": ("plain", "odd")[n % 2]} for n, q in enumerate(QUESTIONS)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = EvaluationSettings(
        prompts=EvaluationPrompts(rows=[Source(path=str(folder / "prompts.jsonl"))], max_tokens=32),
        gold_reward=RewardFunctionSettings(type="function", function="trivial_judge:length"),
        sampling=SamplingSettings(max_tokens=TOKENS),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # where the judge is found
        return evaluate_models(
            {"a": str(made_model), "b": str(other_model), "a again": str(made_model)},
            settings,
            ClusterSettings(),
            folder / "logs",
            reward=str(made_reward),
            reference=str(made_model),
            seed=3,
            samples_per_prompt=2,
            progress=StageProgress("evaluation", "test", Console(file=io.StringIO())),
        )


def greedy_text(folder: Path, question: str) -> str:
    """What transformers says, one token after the other from whole logits."""
    tokenizer = load_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = encode_prompt(tokenizer, [{"role": "user", "content": question}])
    answer: list[int] = []
    while len(answer) < TOKENS and (not answer or answer[-1] != tokenizer.eos_token_id):
        with torch.no_grad():
            answer.append(int(model(torch.tensor([ids + answer])).logits[0, -1].argmax()))
    end = answer[-1] == tokenizer.eos_token_id
    return str(tokenizer.decode(answer[:-1] if end else answer))


def test_each_model_answers_with_its_own_weights(
    results: dict[str, Evaluation], made_model: Path, other_model: Path
) -> None:
    for name, folder in (("a", made_model), ("b", other_model)):
        greedy = results[name].greedy
        assert greedy is not None
        assert [answer.text for answer in greedy.answers] == [greedy_text(folder, question) for question in QUESTIONS]
    assert results["a again"].answers == results["a"].answers != results["b"].answers


def test_kl_is_zero_from_the_same_weights_only(results: dict[str, Evaluation]) -> None:
    kl = {name: result.kl for name, result in results.items()}
    assert kl["a"] == pytest.approx(0, abs=1e-4) and kl["a again"] == pytest.approx(0, abs=1e-4)
    assert kl["b"] is not None and kl["b"] > 1


def test_gold_and_reward_stand_side_by_side(results: dict[str, Evaluation]) -> None:
    b = results["b"]
    assert b.score == pytest.approx(sum(len(answer.text) for answer in b.answers) / 12 / 100)
    assert b.refused == pytest.approx(sum("e" in answer.text for answer in b.answers) / 12)
    assert b.by_kind["odd"]["n"] == 6 and b.truthful is None and b.errors == 0
    rewards = [answer.reward for answer in b.answers]
    assert b.reward_score == pytest.approx(sum(rewards) / 12) and len(set(rewards)) > 1
    assert b.best is not None and b.best.reward_score == pytest.approx(sum(map(max, rewards[::2], rewards[1::2])) / 6)


def test_chat_reads_questions_from_a_pipe(
    ray_cluster: None,
    results: dict[str, Evaluation],
    other_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    lines = [QUESTIONS[0], "", "<eos>", "/reset", QUESTIONS[1], "/quit", QUESTIONS[2]]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    said, expected = (Console(file=io.StringIO(), width=120) for _ in range(2))
    chat(str(other_model), temperature=0, max_tokens=TOKENS, console=said)
    # An engine that started on these weights says what the one said that took them over.
    greedy = results["b"].greedy
    assert greedy is not None
    for answer in greedy.answers[:2]:
        shown = re.sub("<(bos|eos|pad|user|assistant|system)>", "", answer.text).strip()
        expected.print(Text(shown), soft_wrap=True)
    assert said.file.getvalue() == expected.file.getvalue()  # type: ignore[attr-defined]
    notes = capfd.readouterr().err
    assert "context 128 tokens" in notes and "special token '<eos>'" in notes and "forgotten" in notes
