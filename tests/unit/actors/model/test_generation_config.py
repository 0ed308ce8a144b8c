"""Generation settings as models ship them, written and read back by transformers."""

from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig, LlamaConfig

from quadriga.actors.model.generation_config import take_generation_fields, writable

TOKENS = {"bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 0}


def written(folder: Path, config: GenerationConfig, **fields: Any) -> dict[str, Any]:
    """Return the settings that an export has after a round through its folder."""
    writable(config, fields).save_pretrained(folder)
    back = GenerationConfig.from_pretrained(folder).to_diff_dict()
    return {name: value for name, value in back.items() if name != "transformers_version"}


@pytest.mark.parametrize("shipped", [{"temperature": 0.6, "top_p": 0.9}, {"top_k": 20}, {"min_p": 0.1}])
def test_sampling_settings_without_do_sample_are_kept(tmp_path: Path, shipped: dict[str, Any]) -> None:
    """Reported (Vicuna, early Llama 2): the save at the end of training raised, and the training was gone."""
    config = GenerationConfig(**TOKENS, **shipped)
    with pytest.raises(ValueError, match="do_sample"):
        config.save_pretrained(tmp_path)
    assert written(tmp_path, config) == {**TOKENS, **shipped, "do_sample": True}


@pytest.mark.parametrize(
    "shipped", [{"early_stopping": True}, {"length_penalty": 2.0}, {"output_scores": True}, {"num_return_sequences": 3}]
)
def test_settings_that_contradict_each_other_are_left_out(tmp_path: Path, shipped: dict[str, Any]) -> None:
    assert written(tmp_path, GenerationConfig(**TOKENS, max_length=99), **shipped) == {**TOKENS, "max_length": 99}


def test_a_negative_pad_token_is_left_out(tmp_path: Path) -> None:
    found = written(tmp_path, GenerationConfig(**(TOKENS | {"pad_token_id": -1})))
    assert found == {"bos_token_id": 1, "eos_token_id": [2, 3]}


@pytest.mark.parametrize("shipped", [{}, {"do_sample": True, "temperature": 0.7}, {"temperature": 1.0, "top_p": 1.0}])
def test_sound_settings_stay_as_they_are(tmp_path: Path, shipped: dict[str, Any]) -> None:
    config = GenerationConfig(**TOKENS, **shipped)
    config.save_pretrained(tmp_path / "before")
    writable(config, {}).save_pretrained(tmp_path / "after")
    before, after = ((tmp_path / name / "generation_config.json").read_text() for name in ("before", "after"))
    assert before == after


def test_settings_inside_config_json_move(tmp_path: Path) -> None:
    config = LlamaConfig()
    config.temperature, config.max_length = 0.6, 64
    with pytest.raises(ValueError, match="generation parameters"):
        config.save_pretrained(tmp_path)
    fields = take_generation_fields(config)
    config.save_pretrained(tmp_path)
    assert "temperature" not in (tmp_path / "config.json").read_text()
    assert written(tmp_path, GenerationConfig(**TOKENS, max_length=32), **fields) == {
        **TOKENS,
        "temperature": 0.6,
        "max_length": 32,
        "do_sample": True,
    }
