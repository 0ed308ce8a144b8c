"""The summary of a pipeline and `quadriga eval`, with made-up measurements instead of engines."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from quadriga.actors.settings import ClusterSettings
from quadriga.data.errors import UserError
from quadriga.data.rundir import RunDir
from quadriga.data.settings import Source
from quadriga.data.tokens.tokenizer import train_tokenizer
from quadriga.orchestrator.evaluation import report as evaluation
from quadriga.orchestrator.evaluation.evaluate import check_same_shape
from quadriga.orchestrator.evaluation.metrics import Answer, Evaluation, measure
from quadriga.orchestrator.evaluation.report import base_and_last, evaluate_run, summary
from quadriga.orchestrator.evaluation.settings import EvaluationPrompts, EvaluationSettings
from quadriga.orchestrator.rewards.function import RewardFunctionSettings

KINDS = ("facts", "howto", "harmful", "lookalike")
SETTINGS = EvaluationSettings(
    prompts=EvaluationPrompts(rows=[Source(path="held-out.jsonl")]),
    gold_reward=RewardFunctionSettings(type="function", function="a:b"),
)
SCORES = {"pretrain": 0.1, "sft": 0.5, "ppo": 0.75}
"""Stage -> gold score of each of its answers."""


def made(name: str, score: float) -> Evaluation:
    answers = [
        Answer(
            prompt=f"p{n}",
            index=0,
            kind=KINDS[n % 4],
            question=f"What is {n}?",
            text=f"{name} says {n}",
            ended=True,
            gold={
                "score": score,
                "truthful": score,
                "harmless": 1.0,
                "helpful": score / 2,
                "refused": 0.0,
                "abstained": 1.0,
            },
            reward=10 * score,
            turn=1 + n // 30,
        )
        for n in range(40)
    ]
    means = measure(answers)
    fields = {field: getattr(means, field) for field in type(means).__dataclass_fields__}
    return Evaluation(**fields, kl=score - 0.5, seconds=3.0, greedy=means)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of every call of `evaluate_models`, which is replaced."""
    seen: list[dict[str, Any]] = []

    def evaluate_models(models: Mapping[str, str], settings: Any, cluster: Any, logs: Any, **more: Any) -> Any:
        seen.append({"models": dict(models), "settings": settings, **more})
        return {name: made(name, SCORES.get(Path(name).name, 0.5)) for name in models}

    monkeypatch.setattr(evaluation, "evaluate_models", evaluate_models)
    return seen


def screen() -> Console:
    return Console(file=io.StringIO(), width=140, force_terminal=False)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def stages(root: Path) -> list[tuple[str, str, float]]:
    result = []
    for number, name in enumerate(SCORES):
        folder = root / f"round-{number // 2}" / name / "export" / "policy"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
        result.append((name, str(folder), 10.0 * (number + 1)))
    return result


def test_summary_has_the_promised_shape(
    tmp_path: Path, calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run, console = RunDir.create(tmp_path / "runs" / "assistant"), screen()
    done = stages(run.path)
    result = summary(run, done, "the/reward", SETTINGS, ClusterSettings(), 5, console)
    written = json.loads((run.path / "summary.json").read_text())
    assert written["stages"] == [
        {
            "stage": name,
            "truthful": SCORES[name],
            "harmless": 1.0,
            "helpful": SCORES[name] / 2,
            "reward_score": pytest.approx(10 * SCORES[name]),
            "kl": pytest.approx(SCORES[name] - 0.5),
            "seconds": 10.0 * (number + 1),
        }
        for number, name in enumerate(SCORES)
    ]
    assert set(written["win_rate"]) == {"mean", "low", "high", "n"}
    assert written["win_rate"]["mean"] == 1.0
    assert written["win_rate"]["n"] == 40
    # Wilson (1927) at 40 of 40: the lower bound is n / (n + z^2).
    assert written["win_rate"]["low"] == pytest.approx(40 / (40 + 1.959964**2), abs=1e-5)
    assert written["measures"]["ppo"]["greedy"]["by_kind"]["harmful"]["score"] == 0.75
    assert result["stages"] == written["stages"]
    assert (calls[0]["reward"], calls[0]["reference"], calls[0]["seed"]) == ("the/reward", done[1][1], 5)
    kinds = [row["kind"] for row in written["answers"]]
    assert len(kinds) == 6
    assert kinds[:4] == sorted(KINDS)
    for row in written["answers"]:
        number = row["prompt"].removeprefix("What is ").removesuffix("?")
        assert row["answers"] == {"sft": f"sft says {number}", "ppo": f"ppo says {number}"}
    shown = text(console)
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if "│" in line]
    for title in ("harmful", "turn 1", "turn 2"):
        assert [title, "0.500 (0.000, 1.000)", "0.750 (0.000, 1.000)"] in cells
    assert "ppo wins against sft at the training temperature: 1.000 [0.912, 1.000], n = 40" in shown
    assert "quadriga chat runs/assistant" in shown
    assert "quadriga eval runs/assistant --against runs/assistant/round-0/sft" in shown
    assert "runs/assistant/round-1/ppo/metrics.jsonl" in shown
    assert "runs/assistant/round-1/ppo/export/policy" in shown
    assert "runs/assistant/summary.json" in shown


def test_an_existing_summary_is_not_measured_again(tmp_path: Path, calls: list[dict[str, Any]]) -> None:
    run, first, second = RunDir.create(tmp_path / "assistant"), screen(), screen()
    done = stages(run.path)
    before = summary(run, done, None, SETTINGS, ClusterSettings(), 5, first)
    assert summary(run, done, None, SETTINGS, ClusterSettings(train_tokens=99), 5, second).items() >= before.items()
    assert len(calls) == 1
    assert text(first) == text(second)
    summary(run, done, None, SETTINGS.model_copy(update={"rows": 9}), ClusterSettings(), 5, screen())
    assert len(calls) == 2  # other settings give other numbers
    (Path(done[2][1]) / "config.json").write_text('{"model_type": "gpt2"}')
    summary(run, done, None, SETTINGS.model_copy(update={"rows": 9}), ClusterSettings(), 5, screen())
    assert len(calls) == 3  # and so does another model


def test_a_single_policy_has_no_win_rate(tmp_path: Path, calls: list[dict[str, Any]]) -> None:
    run, console = RunDir.create(tmp_path / "assistant"), screen()
    result = summary(run, stages(run.path)[:1], None, SETTINGS, ClusterSettings(), 5, console)
    assert result["win_rate"] is None
    assert "wins against" not in text(console)
    assert list(result["answers"][0]["answers"]) == ["pretrain"]


def test_the_last_stage_is_compared_with_sft_or_its_predecessor() -> None:
    assert base_and_last(["pretrain", "sft", "ppo-1", "ppo-2"]) == ("sft", "ppo-2")
    assert base_and_last(["base", "tuned", "ppo"]) == ("tuned", "ppo")
    assert base_and_last(["ppo"]) == ("ppo", "ppo")


def test_eval_prints_tables_and_returns_the_numbers(
    tmp_path: Path, calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stages(tmp_path)
    ppo, sft, console = "round-1/ppo", "round-0/sft", screen()
    result = evaluate_run(ppo, sft, rows=500, temperature=0.5, console=console)
    assert list(result["models"]) == [ppo, sft]
    assert result["models"][ppo]["score"] == 0.75
    assert result["models"][sft]["by_kind"]["facts"]["n"] == 10
    assert result["win_rate"]["mean"] == result["win_rate_greedy"]["mean"] == 1.0
    assert (result["rows"], result["temperature"]) == (40, 0.5)
    json.dumps(result)
    asked = calls[0]["settings"]
    assert asked.sampling.temperature == 0.5
    assert asked.rows == asked.prompts.rows[0].rows == 500
    assert asked.gold_reward.function == "quadriga.data.assistant.gold:gold"
    assert calls[0]["models"] == {name: str(tmp_path / name / "export/policy") for name in (ppo, sft)}
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text(console).splitlines() if "│" in line]
    assert rows[0] == [ppo, "sampled", "0.750", "1.000", "0.375", "0.750", "0.000", "1.000", "7.500", "0.250", "1.000"]
    assert rows[1] == ["", "greedy", "0.750", "1.000", "0.375", "0.750", "0.000", "1.000", "7.500", "–", "1.000"]
    assert ["facts", "0.750 (0.000, 1.000)", "0.500 (0.000, 1.000)"] in rows


def test_eval_of_one_model_has_no_win_rate(tmp_path: Path, calls: list[dict[str, Any]]) -> None:
    stages(tmp_path)
    for against in (None, str(tmp_path / "round-0/sft")):
        result = evaluate_run(str(tmp_path / "round-0/sft"), against, console=screen())
        assert result["win_rate"] is None
        assert len(result["models"]) == 1


def test_models_of_different_shapes_do_not_share_an_engine(tmp_path: Path) -> None:
    config = {"model_type": "llama", "hidden_size": 64, "rope_theta": 1e4}
    others = {"a": {"transformers_version": "5"}, "b": {"dtype": "bfloat16"}, "c": {"hidden_size": 128}, "d": {}}
    for name, more in others.items():
        tokenizer = train_tokenizer(["sun moon"] * 3, 300 if name != "d" else 264)
        tokenizer.save_pretrained(tmp_path / name)
        (tmp_path / name / "config.json").write_text(json.dumps(config | more))
    a, b, c, d = (str(tmp_path / name) for name in "abcd")
    check_same_shape(a, b)
    with pytest.raises(UserError, match="hidden_size is 64 and 128"):
        check_same_shape(a, c)
    with pytest.raises(UserError, match="different tokenizers"):
        check_same_shape(a, d)
