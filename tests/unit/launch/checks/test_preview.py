"""The preview of a stage's rows (`quadriga data`)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from quadriga.data.errors import UserError
from quadriga.launch.checks.preview import Preview
from quadriga.launch.config.load import load_config
from quadriga.orchestrator.settings import TrainStage


def test_rows_of_an_unknown_stage_are_an_error(unknown_stage: TrainStage) -> None:
    with pytest.raises(UserError, match="`stage: unknown` is not a stage"):
        Preview(Console(quiet=True), rows=1, scan=1).show(unknown_stage)


def test_cut_answers_are_counted(sft: dict[str, Any], write: Callable[..., Path], tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": "' + "word " * 60 + '"}\n')
    config = sft | {"data": {"train": str(rows), "max_tokens": 32}}
    console = Console(record=True, width=200, quiet=False)
    Preview(console, rows=1, scan=10).show(load_config(write(config)))
    assert "1 of 2 answers (50%) exceed `max_tokens` = 32 and were cut; 1 lost their end token" in console.export_text()
