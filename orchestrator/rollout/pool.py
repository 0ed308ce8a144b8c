"""RolloutPool: hands prompts to vLLM workers, collects their answers, and keeps the workers' weights current."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from quadriga.actors.rollout.engine_loop import Finished, Request
from quadriga.actors.runtime.remote_calls import gather, poll
from quadriga.actors.settings import SamplingSettings
from quadriga.data.errors import Lost
from quadriga.data.records import Prompt, Sample
from quadriga.orchestrator.cluster.fleet import Fleet, Worker
from quadriga.orchestrator.cluster.health import State
from quadriga.orchestrator.cluster.processes import Processes
from quadriga.orchestrator.rollout.request_tracker import RequestTracker


def sampling_seed(run_seed: int, step: int, prompt_id: str, index: int) -> int:
    """Return the seed of one answer: a hash of (run seed, step, prompt id), plus the sample index.

    It does not depend on the worker, so a request that is sent again gives the same answer.
    """
    digest = hashlib.blake2b(f"{run_seed}/{step}/{prompt_id}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big") + index


class Weights(Protocol):
    """Where the weights of the rollout workers come from."""

    def send(self, version: int, workers: dict[str, Any]) -> dict[str, Lost]:
        """Bring the weights of now, as this version, into workers (name -> handle); return losses by name."""
        ...


@dataclass
class GroupWeights:
    """The weights of the model workers of a role, through `cluster.weight_transfer`.

    bytes: how many the last sync sent to each rollout worker.
    """

    running: Processes
    role: str = "actor"
    bytes: int = field(default=0, init=False)

    def send(self, version: int, workers: dict[str, Any]) -> dict[str, Lost]:
        """Have the role's group send its weights: the one that there is now, since recovery replaces groups."""
        self.bytes, lost = self.running.groups[self.role].send_weights(version, workers).result()
        return lost


@dataclass
class RolloutPool:
    """The rollout workers as one generator of samples; each request of a batch ends exactly once.

    stop_ids: token ids that end an answer. decode: token ids -> text. weights: where the workers' weights come from;
    None for those of the folder that they start with. version: the weights that samples must come from.
    """

    fleet: Fleet
    stop_ids: tuple[int, ...]
    decode: Callable[[list[int]], str]
    weights: Weights | None = None
    version: int = 0
    request_tracker: RequestTracker = field(default_factory=lambda: RequestTracker([]))
    """The requests of the latest batch."""
    _collecting: dict[str, Any] = field(default_factory=dict)
    """Worker -> reference of its open `collect` call."""

    def sync(self, version: int) -> None:
        """Give every worker the weights of now as this version; a worker that fails to load them is replaced.

        Replacements get them before they serve.
        """
        self.version = version
        for worker in self.fleet.in_state(State.HEALTHY, State.SUSPECT):
            worker.health.mark_stale()
        self._sync_stale_workers()

    def generate(
        self,
        prompts: list[Prompt],
        samples_per_prompt: int | list[int],
        sampling: SamplingSettings,
        seed: int,
        step: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Sample]:
        """Return samples in the order of (prompt, sample index).

        samples_per_prompt: one number, or one per prompt. progress: called with (finished, requested). A lost worker is
        replaced; its open requests go to other workers or to the replacement, with the same seeds.
        Raises Lost if no answer finishes within `deadlines.generate`, or too many workers are lost.
        """
        each = [samples_per_prompt] * len(prompts) if isinstance(samples_per_prompt, int) else samples_per_prompt
        owners: dict[str, tuple[Prompt, int]] = {}
        requests: list[Request] = []
        for number, (prompt, count) in enumerate(zip(prompts, each, strict=True)):
            for index in range(count):
                id_ = f"{step}/{number}/{index}"
                owners[id_] = (prompt, index)
                requests.append(
                    Request(id_, prompt.token_ids, sampling_seed(seed, step, prompt.id, index), sampling, self.stop_ids)
                )
        self.request_tracker, self._collecting = RequestTracker(requests), {}
        self._await_answers(progress)
        self.request_tracker.check()
        answers = self.request_tracker.answers
        return [self._sample(owners[request.id], answers[request.id]) for request in requests]

    def abort(self) -> None:
        """Drop the open requests of an abandoned batch, here and at the workers."""
        self.request_tracker.abort()
        refs = {w.name: w.handle.clear.remote() for w in self._up()}
        _, lost = gather(refs, "generate", self.fleet.deadlines.heartbeat)
        self._lose(lost)

    def _await_answers(self, progress: Callable[[int, int], None] | None) -> None:
        limit, tracker = self.fleet.deadlines.generate, self.request_tracker
        last = time.monotonic()
        while tracker.remaining:
            self._sync_stale_workers()
            self._assign()
            finished = self._collect()
            for name, answers in finished.items():
                tracker.record(name, answers)
            if any(finished.values()):
                last = time.monotonic()
                if progress is not None:
                    progress(len(tracker.answers), len(tracker.requests))
            elif time.monotonic() - last > limit:
                remaining = f"{tracker.remaining} of {len(tracker.requests)} are still due"
                raise Lost(f"no answer finished for {limit:.0f} s; {remaining}", phase="generate", process="rollout")

    def _sync_stale_workers(self) -> None:
        """Send the current weights to every worker that is up without them."""
        self.fleet.poll_starts()
        if stale := self.fleet.in_state(State.STALE):
            handles = {worker.name: worker.handle for worker in stale}
            lost = self.weights.send(self.version, handles) if self.weights is not None else {}
            for worker in stale:
                if worker.name not in lost:
                    worker.health.on_weights_loaded(self.version)
            self._lose(lost)

    def _assign(self) -> None:
        """Assign waiting requests to ready workers."""
        serving = {w.name: w.handle for w in self._up() if w.health.serves(self.version)}
        shares = self.request_tracker.assign(list(serving))
        refs = {name: serving[name].submit.remote(share, self.version) for name, share in shares.items()}
        deadlines = self.fleet.deadlines
        self._lose(gather(refs, "generate", deadlines.call, serving, deadlines.heartbeat)[1])

    def _collect(self) -> dict[str, list[Finished]]:
        """Return worker -> finished answers; wait up to a second for the first."""
        for worker in self._up():
            if self.request_tracker.has_open(worker.name) and worker.name not in self._collecting:
                self._collecting[worker.name] = worker.handle.collect.remote(0.5)
                worker.health.on_request()
        if not self._collecting:
            time.sleep(0.2)  # all workers are being replaced
            return {}
        done, lost = poll(self._collecting, "generate", 1.0)
        for worker in self._up():
            if worker.name in done:
                worker.health.on_response()
                del self._collecting[worker.name]
            elif worker.name in self._collecting and worker.health.on_timeout_check() is State.DEAD:
                silence = f"{worker.name} shows no sign of life for {self.fleet.deadlines.heartbeat:.0f} s"
                lost.setdefault(
                    worker.name, Lost(f"{silence} (stopped, or cut off)", phase="generate", process=worker.name)
                )
        self._lose(lost)
        return done

    def _up(self) -> list[Worker]:
        return self.fleet.in_state(State.HEALTHY, State.SUSPECT)

    def _lose(self, lost: dict[str, Lost]) -> None:
        """Replace lost workers; their open requests wait for another worker."""
        for worker in self.fleet.workers:
            if worker.name in lost:
                self._collecting.pop(worker.name, None)
                self.request_tracker.reissue(worker.name)
                self.fleet.lose(worker, lost[worker.name])

    def _sample(self, owner: tuple[Prompt, int], answer: Finished) -> Sample:
        prompt, index = owner
        return Sample(
            prompt=prompt,
            index=index,
            response_ids=answer.token_ids,
            rollout_logprobs=answer.logprobs,
            action_mask=[1] * len(answer.token_ids),
            versions=answer.versions,
            finish_reason="stop" if answer.finish_reason == "stop" else "length",
            text=self.decode(answer.token_ids),
        )
