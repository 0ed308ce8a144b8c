"""The vLLM workers as one generator of answers. Every request ends exactly once, and the counts are checked."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from quadriga.actors.rollout import Finished, Request
from quadriga.actors.settings import DeadlineSettings, SamplingSettings
from quadriga.actors.waiting import wait_all
from quadriga.data.errors import Fault
from quadriga.data.records import Prompt, Sample


def sampling_seed(run_seed: int, step: int, prompt_id: str, index: int) -> int:
    """Seed of one answer: hash of (run seed, step, prompt id) plus the sample index; a repeated request repeats."""
    digest = hashlib.blake2b(f"{run_seed}/{step}/{prompt_id}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big") + index


@dataclass
class Counts:
    """What became of the requests of one call: `asked` = done + failed + dropped + aborted."""

    asked: int = 0
    done: int = 0
    failed: int = 0
    dropped: int = 0
    aborted: int = 0

    def check(self) -> None:
        """Raises Fault unless every request ended in exactly one way."""
        ended = self.done + self.failed + self.dropped + self.aborted
        if ended != self.asked:
            raise Fault(f"generate: {self.asked} requests were made but {ended} ended: {self}", "generate")


@dataclass
class RolloutPool:
    """Owns the requests of a batch. workers: RolloutWorker actor handles."""

    workers: list[Any]
    deadlines: DeadlineSettings
    stop_ids: tuple[int, ...]
    decode: Callable[[list[int]], str]
    version: int = 0
    seconds: float = 0.0
    counts: Counts = field(default_factory=Counts)

    def generate(
        self,
        prompts: list[Prompt],
        samples_per_prompt: int | list[int],
        sampling: SamplingSettings,
        seed: int,
        step: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Sample]:
        """Answers in (prompt, sample index) order.

        samples_per_prompt: one number, or one a prompt. progress: called with (finished, asked).
        Raises Fault if no answer finishes within `deadlines.generate`, or a worker is lost.
        """
        began = time.monotonic()
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
        self.counts = Counts(asked=len(requests))
        self._submit(requests)
        answers = self._collect(len(requests), progress)
        self.counts.check()
        self.seconds = time.monotonic() - began
        return [self._sample(owners[request.id], answers[request.id]) for request in requests]

    def _submit(self, requests: list[Request]) -> None:
        share = [requests[i :: len(self.workers)] for i in range(len(self.workers))]
        refs = {f"rollout {i}": w.submit.remote(share[i], self.version) for i, w in enumerate(self.workers)}
        wait_all(refs, "generate", self.deadlines.call)

    def _collect(self, asked: int, progress: Callable[[int, int], None] | None) -> dict[str, Finished]:
        answers: dict[str, Finished] = {}
        last = time.monotonic()
        while len(answers) < asked:
            refs = {f"rollout {i}": worker.collect.remote(0.5) for i, worker in enumerate(self.workers)}
            finished = [f for batch in wait_all(refs, "generate", self.deadlines.generate).values() for f in batch]
            for answer in finished:
                if answer.id in answers:
                    raise Fault(f"generate: request {answer.id} was answered twice", "generate")
                answers[answer.id] = answer
                self.counts.done += 1
            if finished:
                last = time.monotonic()
                if progress is not None:
                    progress(len(answers), asked)
            elif time.monotonic() - last > self.deadlines.generate:
                raise Fault(
                    f"generate: no answer finished for {self.deadlines.generate:.0f} s; {asked - len(answers)} of "
                    f"{asked} are still due",
                    "generate",
                )
        return answers

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
