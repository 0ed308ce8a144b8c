"""Elements of a step of typical size, and stages that nobody has planned for."""

from types import SimpleNamespace

import pytest

from quadriga.launch.plan.workload import evenly, micro_batches, planned_stages, work_of


def test_elements_are_taken_evenly() -> None:
    assert evenly([[3], [1], [2], [4]], 2) == [[2], [4]]
    assert evenly([[1], [9]], 4) == [[1], [1], [9], [9]]


def test_micro_batches_keep_to_their_budget() -> None:
    assert sorted(map(sorted, micro_batches([[2, 3], [4], [5]], 1, 9))) == [[2, 3, 4], [5]]


def test_unknown_stages_are_not_planned() -> None:
    with pytest.raises(TypeError, match="SimpleNamespace cannot be planned"):
        planned_stages(SimpleNamespace(name="new"))


def test_unknown_stages_have_no_work() -> None:
    prompts = SimpleNamespace(max_tokens=8)
    stage = SimpleNamespace(prompts=prompts, policy=SimpleNamespace(path=None), sampling=SimpleNamespace(max_tokens=8))
    with pytest.raises(TypeError, match="SimpleNamespace is not known"):
        work_of(stage)
