"""Elements of a step of typical size, and stages that nobody has planned for."""

import pytest

from quadriga.data.errors import UserError
from quadriga.launch.plan.workload import micro_batches, planned_stages, work_of
from quadriga.orchestrator.settings import TrainStage
from quadriga.orchestrator.stages.work import evenly


def test_elements_are_taken_evenly() -> None:
    assert evenly([[3], [1], [2], [4]], 2) == [[2], [4]]
    assert evenly([[1], [9]], 4) == [[1], [1], [9], [9]]


def test_micro_batches_keep_to_their_budget() -> None:
    assert sorted(map(sorted, micro_batches([[2, 3], [4], [5]], 1, 9))) == [[2, 3, 4], [5]]


def test_unknown_stages_are_not_planned(unknown_stage: TrainStage) -> None:
    with pytest.raises(UserError, match="`stage: unknown` is not a stage"):
        planned_stages(unknown_stage)


def test_unknown_stages_have_no_work(unknown_stage: TrainStage) -> None:
    with pytest.raises(UserError, match="`stage: unknown` is not a stage"):
        work_of(unknown_stage)
