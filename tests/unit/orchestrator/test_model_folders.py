"""Resolution of the name of a model on the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from quadriga.data.errors import UserError
from quadriga.orchestrator.evaluation.settings import EvaluationSettings
from quadriga.orchestrator.model_folders import find_model, stage_runs


def model(folder: Path, architecture: str = "LlamaForCausalLM") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": [architecture]}))
    return folder


def run(folder: Path, config: dict[str, Any], started: str = "2026-01-01T00:00:00+00:00") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "run.json").write_text(json.dumps({"attempts": [{"started": started}]}))
    return folder


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """A pipeline of two rounds, the second without PPO yet; `sft` started after `pretrain`."""
    evaluation = {
        "prompts": {"rows": "held-out.jsonl"},
        "gold_reward": {"type": "function", "function": "a:b"},
        "rows": 7,
    }
    root = run(tmp_path / "all", {"stage": "pipeline", "evaluation": evaluation, "cluster": {"train_tokens": 77}})
    for name, began in (("sft", "2026-01-01T00:05:00+00:00"), ("pretrain", "2026-01-01T00:01:00+00:00")):
        model(run(root / "round-0" / name, {"stage": name}, began) / "export" / "policy")
    reward = run(root / "round-1" / "reward", {"stage": "reward"}) / "export" / "reward"
    model(reward, "LlamaForSequenceClassification")
    sft = str(root / "round-0" / "sft" / "export" / "policy")
    ppo = {"stage": "ppo", "policy": {"path": sft}, "reference": None, "reward": {"type": "model", "path": str(reward)}}
    checkpoints = run(root / "round-1" / "ppo", ppo, "2026-01-01T00:09:00+00:00") / "checkpoints"
    for step in (9, 10):
        model(checkpoints / f"step-{step}" / "export" / "policy")
    run(root / "round-2" / "rank", {"stage": "rank"})
    return root


def test_a_folder_with_a_config_is_a_model(tmp_path: Path) -> None:
    found = find_model(str(model(tmp_path / "gpt")))
    assert (found.folder, found.run, found.reward) == (str(tmp_path / "gpt"), None, None)
    assert found.pipeline_section("evaluation", EvaluationSettings) is None
    assert found.cluster.address is None


def test_a_run_gives_its_export_or_its_newest_checkpoint(pipeline: Path) -> None:
    ppo = pipeline / "round-1" / "ppo"
    assert find_model(str(ppo)).folder == str(ppo / "checkpoints" / "step-10" / "export" / "policy")
    assert find_model(str(ppo / "checkpoints" / "step-9")).folder == str(ppo / "checkpoints/step-9/export/policy")
    exported = model(ppo / "export" / "policy")
    assert find_model(str(ppo)).folder == str(exported)


def test_a_pipeline_gives_its_export_or_its_newest_stages(pipeline: Path) -> None:
    assert [r.path.name for r in stage_runs(pipeline)] == ["pretrain", "sft", "reward", "ppo", "rank"]
    assert find_model(str(pipeline)).folder == str(pipeline / "round-1/ppo/checkpoints/step-10/export/policy")
    assert find_model(str(pipeline), "reward").folder == str(pipeline / "round-1/reward/export/reward")
    exported = model(pipeline / "export" / "policy")
    assert find_model(str(pipeline)).folder == str(exported)


@pytest.mark.parametrize("name", ["", "round-0/sft", "round-1/ppo/checkpoints/step-9", "round-0/sft/export/policy"])
def test_a_model_has_the_evaluation_settings_of_its_pipeline(pipeline: Path, name: str) -> None:
    found = find_model(str(pipeline / name))
    settings = found.pipeline_section("evaluation", EvaluationSettings)
    assert settings is not None
    assert settings.rows == 7
    assert found.reward == str(pipeline / "round-1/reward/export/reward")
    assert found.reference == str(pipeline / "round-0/sft/export/policy")


def test_a_model_has_the_cluster_settings_of_its_run(pipeline: Path) -> None:
    model(pipeline / "export" / "policy")
    assert find_model(str(pipeline)).cluster.train_tokens == 77


def test_a_removed_reward_model_is_none(pipeline: Path) -> None:
    (pipeline / "round-1/reward/export/reward/config.json").unlink()
    assert find_model(str(pipeline)).reward is None


def test_a_name_that_is_not_a_model_is_refused(tmp_path: Path, pipeline: Path) -> None:
    with pytest.raises(UserError, match=r"no folder .*nowhere"):
        find_model(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="holds no policy model"):
        find_model(str(pipeline / "round-2" / "rank"))
    with pytest.raises(UserError, match="is a LlamaForSequenceClassification, and a causal language model is needed"):
        find_model(str(pipeline / "round-1/reward/export/reward"))
    with pytest.raises(UserError, match="is a LlamaForCausalLM, and a reward model is needed"):
        find_model(str(pipeline / "round-0/sft/export/policy"), "reward")


def test_a_config_of_another_version_is_refused(pipeline: Path) -> None:
    model(pipeline / "export" / "policy")
    (pipeline / "config.yaml").write_text("{stage: pipeline, cluster: {train_tokenz: 1}}")
    with pytest.raises(UserError, match=r"another version of Quadriga \(train_tokenz"):
        _ = find_model(str(pipeline)).cluster
