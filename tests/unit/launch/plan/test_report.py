"""The JSON and the tables that `quadriga plan` prints, and bad input."""

import json
from pathlib import Path
from typing import Any

import pytest

from quadriga.launch.cli.app import main
from quadriga.launch.plan.report import as_json


@pytest.fixture
def plain(plan_ppo: Any) -> Any:
    """The JSON of the PPO config."""
    return json.loads(json.dumps(as_json([plan_ppo()], 80_000_000_000)))


def test_keys_of_the_json(plain: Any) -> None:
    """Programs rely on them."""
    assert set(plain) == {"schema", "gpu_memory_bytes", "fits", "stages"}
    assert plain["schema"] == 1
    assert len(plain["stages"]) == 1


def test_keys_of_a_stage(plain: Any) -> None:
    facts = {"name", "stage", "device", "gpus", "fits", "roles", "devices", "suggestions"}
    stage = plain["stages"][0]
    assert set(stage) == facts | {"seconds", "seconds_from", "assumed"}
    assert set(stage["devices"][0]) == {"kind", "count", "roles", "bytes"}
    assert set(stage["suggestions"][0]) == {"gpus", "overrides"}
    assert set(stage["seconds"]) == {"generate", "forward", "update", "sync", "step"}


def test_keys_of_a_role(plain: Any) -> None:
    roles = plain["stages"][0]["roles"]
    assert set(roles) == {"actor", "critic", "reference", "reward", "rollout"}
    common = {"parameters", "trained", "processes", "held_bytes", "phase_bytes", "host_bytes", "peak_bytes"}
    assert set(roles["actor"]) == common | {"zero_stage", "offload"}
    assert set(roles["rollout"]) == common | {"tensor_parallel"}


def test_pipelines_get_a_table_each(capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(__file__).parents[4]
    assert main(["plan", str(root / "configs/assistant/pipeline.yaml")]) == 0
    printed = capsys.readouterr().out
    for name in ("pretrain", "sft", "rank", "reward", "ppo"):
        assert f"{name} ({name}, float32)" in printed
    assert "557,696" in printed
    assert "No time estimate" in printed


def test_json_on_the_command_line(sft_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(sft_file), "--json", "--gpu-memory", "40"]) == 0
    assert json.loads(capsys.readouterr().out)["gpu_memory_bytes"] == 40_000_000_000


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=models/llama-3.1-9b"], "llama-3.1-9b"),
        (["model={path: nowhere}"], "nowhere is not a model folder: config.json is missing"),
        (["model={shape: {model_type: t5}}"], "cannot be planned"),
        (["total_stps=3"], "did you mean `total_steps`"),
    ],
)
def test_bad_input(sft_file: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], message: str) -> None:
    assert main(["plan", str(sft_file), *overrides]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert error.startswith("Error: ")
    assert message in error


def test_nothing_to_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan"]) == 2
    assert "Name a config to plan" in capsys.readouterr().err
