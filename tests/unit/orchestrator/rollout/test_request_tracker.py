"""RequestTracker with workers that answer, leave and come back in any order."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from quadriga.actors.rollout.engine_loop import Finished, Request
from quadriga.actors.settings import SamplingSettings
from quadriga.data.errors import Fault
from quadriga.orchestrator.rollout.request_tracker import RequestTracker

WORKERS = ["rollout 0", "rollout 1", "rollout 2"]


def request(id_: str) -> Request:
    return Request(id_, [1], 0, SamplingSettings(), ())


def finished(id_: str) -> Finished:
    return Finished(id_, [2], [0.0], [0], "stop")


class Generation(RuleBasedStateMachine):
    """A second account of the requests open at each worker, kept beside the tracker."""

    @initialize(count=st.integers(0, 12))
    def ask(self, count: int) -> None:
        self.ids = [str(number) for number in range(count)]
        self.tracker = RequestTracker([request(id_) for id_ in self.ids])
        self.open_ids: dict[str, list[str]] = {}
        self.answered: list[str] = []
        self.reissued = 0

    @rule(workers=st.lists(st.sampled_from(WORKERS), unique=True))
    def assign(self, workers: list[str]) -> None:
        shares = self.tracker.assign(workers)
        assert set(shares) <= set(workers)
        sizes = [len(shares.get(worker, [])) for worker in workers]
        assert not sizes or max(sizes) - min(sizes) <= 1
        for worker, share in shares.items():
            self.open_ids.setdefault(worker, []).extend(request.id for request in share)

    @precondition(lambda self: any(self.open_ids.values()))
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(worker for worker, ids in self.open_ids.items() if ids)))
        ids = data.draw(st.lists(st.sampled_from(self.open_ids[worker]), unique=True))
        self.tracker.record(worker, [finished(id_) for id_ in ids])
        self.answered += ids
        self.open_ids[worker] = [id_ for id_ in self.open_ids[worker] if id_ not in ids]

    @rule(worker=st.sampled_from(WORKERS), data=st.data())
    def answer_a_request_of_another_worker(self, worker: str, data: st.DataObject) -> None:
        others = [id_ for id_ in self.ids if id_ not in self.open_ids.get(worker, [])]
        if others:
            with pytest.raises(Fault, match=f"{worker} answered"):
                self.tracker.record(worker, [finished(data.draw(st.sampled_from(others)))])

    @rule(worker=st.sampled_from(WORKERS))
    def lose(self, worker: str) -> None:
        self.tracker.reissue(worker)
        self.reissued += len(self.open_ids.pop(worker, []))

    @invariant()
    def every_request_ends_once_at_most(self) -> None:
        assert len(self.answered) == len(set(self.answered))
        assert sorted(self.tracker.answers) == sorted(self.answered)
        assert self.tracker.remaining == len(self.ids) - len(self.answered)
        assert self.tracker.reissued == self.reissued
        assert [worker for worker in WORKERS if self.tracker.has_open(worker)] == [
            w for w in WORKERS if self.open_ids.get(w)
        ]

    def teardown(self) -> None:
        """Finish the batch with one worker, which is enough."""
        if not hasattr(self, "tracker"):
            return
        for worker in WORKERS[1:]:
            self.tracker.reissue(worker)
        self.tracker.assign(WORKERS[:1])
        waiting = [id_ for id_ in self.ids if id_ not in self.answered]
        if waiting:
            with pytest.raises(Fault, match="requests were made"):
                self.tracker.check()
        self.tracker.record(WORKERS[0], [finished(id_) for id_ in waiting])
        self.tracker.check()
        assert sorted(self.tracker.answers, key=int) == self.ids


TestGeneration = Generation.TestCase
TestGeneration.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)


def test_late_answers_of_an_aborted_batch_are_refused() -> None:
    tracker = RequestTracker([request("a"), request("b"), request("c")])
    tracker.assign(WORKERS[:2])
    tracker.record(WORKERS[0], [finished("a")])
    tracker.abort()
    tracker.check()
    assert (tracker.remaining, tracker.aborted, list(tracker.answers)) == (0, 2, ["a"])
    with pytest.raises(Fault, match="which it does not have"):
        tracker.record(WORKERS[1], [finished("b")])
