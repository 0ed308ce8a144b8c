"""Checks of a config."""

from pathlib import Path

import pytest

from quadriga.data.errors import UserError
from quadriga.launch.checks.stage import check_config
from quadriga.launch.config.load import load_config
from quadriga.orchestrator.settings import TrainStage


def test_checks_of_a_sound_ppo_config(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "ppo.yaml"
    path.write_text(
        f"stage: ppo\nname: x\npolicy: {{path: {model}}}\ncritic: {{path: {model}}}\n"
        "reward: {type: function, function: 'json:dumps'}\n"
        "prompts: {train: [{builtin: assistant.prompts, rows: 3}], max_tokens: 96}\nsampling: {max_tokens: 32}\n"
        "cluster: {device: cpu, actor: {offload: all}}\n"
    )
    results = check_config(load_config(path))
    assert [result.text for result in results if result.level == "note"] == [
        "`cluster.actor.offload` has no effect without a GPU."
    ]
    texts = " ".join(result.text for result in results if result.level == "ok")
    for message in (
        "function json:dumps imports",
        "llama, context 128",
        "vLLM on CPU supports head size 32",
        "one BOS",
        "prompts read: 3",
    ):
        assert message in texts
    assert not [result for result in results if result.level == "problem"]


def test_an_unknown_stage_is_an_error(unknown_stage: TrainStage) -> None:
    with pytest.raises(UserError, match="`stage: unknown` is not a stage"):
        check_config(unknown_stage)
