"""The page and the files of the examples fit together."""

from pathlib import Path

import pytest
from helpers.corpora import needs

from quadriga.launch.config.load import PRESETS, load_config

HERE = Path(__file__).parent
CONFIGS = sorted((PRESETS / "examples").glob("*/*.yaml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_config_loads(config: Path) -> None:
    """With its presets, and in a pipeline with its inputs."""
    load_config(config)


def test_every_command_on_the_page_is_run_by_a_test(page_commands: list[str]) -> None:
    """By name; some of them only in `make slow`."""
    tests = "".join(path.read_text(encoding="utf-8") for path in HERE.glob("test_*.py"))
    assert page_commands
    assert [command for command in page_commands if f'"{command}"' not in tests] == []


@needs("hh-rlhf")
def test_rows_are_shown_before_training(documented: object, capfd: pytest.CaptureFixture[str]) -> None:
    """Where the tokenizer is still to be trained, the rows as text."""
    documented("quadriga data configs/examples/hh-rlhf/pretrain.yaml")  # type: ignore[operator]
    assert "Human:" in capfd.readouterr().out
