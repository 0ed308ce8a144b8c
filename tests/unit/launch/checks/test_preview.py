"""The preview of a stage's rows (`quadriga data`)."""

import pytest
from rich.console import Console

from quadriga.data.errors import UserError
from quadriga.launch.checks.preview import Preview
from quadriga.orchestrator.settings import TrainStage


def test_rows_of_an_unknown_stage_are_an_error(unknown_stage: TrainStage) -> None:
    with pytest.raises(UserError, match="`stage: unknown` is not a stage"):
        Preview(Console(quiet=True), rows=1, scan=1).show(unknown_stage)
