"""Checks of a config."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def test_a_trainer_that_cannot_be_imported_is_a_problem(
    sft: dict[str, Any], write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "odd_stage.py").write_text(
        "from quadriga.orchestrator.settings import TrainStage\n"
        "from quadriga.orchestrator.stages.sft.spec import SFT\n"
        "class OddStage(TrainStage): pass\n"
        "class OddSpec(type(SFT)):\n"
        "    def unused(self, settings): yield from ()\n"
        "SPEC = OddSpec(settings=OddStage, trainer='odd_trainer:Odd', loader=SFT.loader)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    results = check_config(load_config(write(sft | {"stage": "odd_stage:SPEC"})))
    assert [result.text for result in results if result.level == "problem"] == [
        "The trainer of `stage: odd_stage:SPEC` cannot be used: `odd_trainer:Odd` cannot be imported "
        "(ModuleNotFoundError: No module named 'odd_trainer')."
    ]


def test_answers_that_are_cut_are_noted_from_5_percent(
    sft: dict[str, Any], write: Callable[..., Path], tmp_path: Path
) -> None:
    for cut, level in ((1, "ok"), (2, "note")):
        rows = tmp_path / f"rows-{cut}.jsonl"
        answers = ["word " * 60] * cut + ["short"] * (40 - cut)
        rows.write_text("".join(f'{{"prompt": "a", "completion": "{answer}"}}\n' for answer in answers))
        config = sft | {"data": {"train": str(rows), "max_tokens": 32}}
        (result,) = [each for each in check_config(load_config(write(config))) if "data read: 40 rows" in each.text]
        assert result.level == level
    assert "2 of 40 answers (5%) exceed `max_tokens` = 32 and were cut; 2 lost their end token" in result.text
    assert "Raise `data.max_tokens`" in result.text
