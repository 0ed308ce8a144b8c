"""Which weights a rollout worker answers with."""

from types import SimpleNamespace
from typing import Any

import pytest

from quadriga.actors.rollout.worker import RolloutWorker
from quadriga.actors.settings import ClusterSettings
from quadriga.data.errors import Fault


class Engine:
    """Accepts every call of a weight update."""

    busy = False

    def has_unfinished_requests(self) -> bool:
        return self.busy

    def collective_rpc(self, method: str, **given: Any) -> None:
        pass

    def reset_prefix_cache(self) -> bool:
        return True

    def set_weight_version(self, version: str) -> None:
        self.weight_version = version


@pytest.fixture
def worker() -> RolloutWorker:
    """A worker without weights, whose engine is played."""
    worker, engine = RolloutWorker(ClusterSettings(), "cpu"), Engine()
    worker.loop = SimpleNamespace(engine=engine, call=lambda function: function(engine), add=lambda requests: None)
    return worker


def test_worker_without_weights_answers_nothing(worker: RolloutWorker) -> None:
    with pytest.raises(Fault, match="asked for answers of policy version 0 but holds no weights"):
        worker.submit([], 0)


def test_finished_update_is_the_version_served(worker: RolloutWorker) -> None:
    worker.start_weight_update(4)
    worker.finish_weight_update()
    assert worker.loop.engine.weight_version == "4"
    worker.submit([], 4)
    with pytest.raises(Fault, match="asked for answers of policy version 5 but holds version 4"):
        worker.submit([], 5)


def test_nothing_is_served_during_an_update(worker: RolloutWorker) -> None:
    worker.start_weight_update(4)
    worker.finish_weight_update()
    worker.start_weight_update(5)
    with pytest.raises(Fault, match="policy version 4 but holds no weights"):
        worker.submit([], 4)


def test_weights_do_not_change_during_a_request(worker: RolloutWorker) -> None:
    worker.loop.engine.busy = True
    with pytest.raises(RuntimeError, match="only change while no request is running"):
        worker.start_weight_update(4)
