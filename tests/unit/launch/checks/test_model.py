"""Checks of models and their data."""

from pathlib import Path

import pytest

from quadriga.launch.checks.model import check_data
from quadriga.orchestrator.settings import TrainStage


def test_data_of_an_unknown_stage_is_an_error(unknown_stage: TrainStage, model: Path) -> None:
    with pytest.raises(TypeError, match="no loader is known for the data of UnknownStage"):
        check_data(unknown_stage, str(model))
