"""What every training stage shares: run directory, resume, the step loop, commit, clean stops, export."""

import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

from quadriga.actors.group import ActorGroup
from quadriga.actors.models import ModelSpec, read_config
from quadriga.actors.settings import ModelSettings
from quadriga.data.errors import UserError
from quadriga.data.readers import BadRow
from quadriga.data.rundir import RunDir
from quadriga.orchestrator import checkpoint
from quadriga.orchestrator.checkpoint import Export
from quadriga.orchestrator.cluster import Hosting, Processes, RolloutPlan, connected, processes
from quadriga.orchestrator.console import StageProgress
from quadriga.orchestrator.run_state import RunState
from quadriga.orchestrator.settings import StageBase
from quadriga.orchestrator.tracking import Tracker


class Stop:
    """Ctrl-C and SIGTERM ask for a clean stop: the step under way is finished and saved. A second Ctrl-C won't wait."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator["Stop"]:
        """Handle both signals inside the block."""
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True


class TrainingStage(ABC):
    """A stage that trains models step by step. Subclasses say what they need, what a step does and what comes out."""

    stage: ClassVar[str]
    trained: ClassVar[tuple[str, ...]]
    """Roles with an optimizer: what a checkpoint holds."""

    def __init__(self, settings: StageBase, run: RunDir):
        self.settings, self.run = settings, run
        self.state = RunState()
        self.timings: dict[str, float] = {}
        self.skipped: list[BadRow] = []
        self.host_classes: dict[str, Any] = {}

    @abstractmethod
    def prepare(self) -> None:
        """Read data, tokenizer and configs; set `self.tokenizer`. Bad input ends here, before a process is started."""

    @abstractmethod
    def hostings(self) -> list[Hosting]:
        """The models to host."""

    def rollout(self) -> RolloutPlan | None:
        """The rollout engines to start."""
        return None

    def begin(self) -> None:
        """After start or resume, before the first step: what does not survive in a checkpoint."""
        return None

    @abstractmethod
    def step(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """One step: metrics and samples to log. Must not change `state.step`."""

    @abstractmethod
    def exports(self) -> dict[str, Export]:
        """What a checkpoint exports: folder name -> model."""

    def finished(self) -> bool:
        """Whether there is no step left."""
        return self.state.step >= self.settings.total_steps

    def close(self) -> None:
        """Release what `begin` opened."""
        return None

    def execute(self, progress: StageProgress) -> bool:
        """Run to the end, or to a clean stop. Returns True when the stage is finished, False when it was stopped."""
        self.prepare()
        self.progress = progress
        settings = self.settings
        with (
            connected(settings.cluster) as dashboard,
            Stop().listening() as stop,  # after Ray, which takes SIGTERM for itself when it starts
            progress.waiting("starting processes"),
            processes(
                settings.cluster, self.hostings(), self.rollout(), str(self.run.logs_dir), self.host_classes
            ) as running,
        ):
            self.running = running
            found = checkpoint.latest(self.run)
            if found is not None:
                self.state = checkpoint.restore(found, self.trained_groups())
            tracker = Tracker(
                self.run,
                settings.tracking,
                self.stage,
                settings.name,
                settings.model_dump(mode="json"),
                run_id=self.state.tracker_id,
                resume_step=self.state.step if found is not None else None,
            )
            self.state.tracker_id = tracker.run_id
            with tracker:
                progress.started(self.state.step, settings.total_steps, dashboard, tracker.address, running.logs)
                note_skipped(self.skipped, self.run, progress)
                self.begin()
                try:
                    self._loop(tracker, progress, stop)
                finally:
                    self.close()
            if self.finished():
                checkpoint.publish_exports(self.run, self.run.checkpoint_dir(self.state.step))
            return self.finished()

    def group(self, role: str) -> ActorGroup:
        """The ranks of a role."""
        return self.running.groups[role]

    def trained_groups(self) -> dict[str, ActorGroup]:
        """The groups that a checkpoint holds."""
        return {role: group for role, group in self.running.groups.items() if role in self.trained}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Wall-clock seconds of a part of the step, logged as timing_s/<name>."""
        began = time.monotonic()
        yield
        self.timings[name] = self.timings.get(name, 0.0) + time.monotonic() - began

    def _loop(self, tracker: Tracker, progress: StageProgress, stop: Stop) -> None:
        every = self.settings.checkpoint.every_steps
        saved = self.state.step if self.run.checkpoint_steps() else -1
        commit = 0.0  # of the step before: a row is written before its own commit ends
        while not self.finished() and not stop.asked:
            began, self.timings = time.monotonic(), {}
            metrics, samples = self.step()
            self.state.step += 1
            seconds = time.monotonic() - began
            self.state.seconds += seconds
            metrics |= {f"timing_s/{name}": value for name, value in self.timings.items()}
            metrics |= {"timing_s/commit": commit, "timing_s/step": seconds, "perf/total_tokens": self.state.tokens}
            metrics |= self._memory()
            began = time.monotonic()
            tracker.log(self.state.step, metrics, samples)
            progress.step(self.state.step, metrics)
            if every is not None and self.state.step % every == 0:
                saved = self._save()
            commit = time.monotonic() - began
        if saved != self.state.step:
            self._save()

    def _save(self) -> int:
        checkpoint.save(
            self.run, self.state, self.trained_groups(), self.exports(), self.tokenizer, self.settings.checkpoint.keep
        )
        return self.state.step

    def _memory(self) -> dict[str, float]:
        """Largest peak memory of a process of each role."""
        memory = {role: group.memory for role, group in self.running.groups.items()}
        if self.running.workers:
            memory["rollout"] = self.running.rollout_memory()
        return {f"system/memory_gb_{role}": value / 2**30 for role, value in memory.items()}

    tokenizer: Any
    running: Processes
    progress: StageProgress


def note_skipped(rows: Sequence[BadRow], run: RunDir, progress: StageProgress) -> None:
    """Say how many rows were left out and list them in logs/skipped-rows.txt, with file, line and reason."""
    if rows:
        file = run.logs_dir / "skipped-rows.txt"
        file.write_text("".join(f"{row}\n" for row in rows))
        progress.note(f"  {len(rows)} rows were left out: {file}")


def model_path(model: ModelSettings, key: str) -> str:
    """The folder of a model that must exist already, absolute: actors need not share our working directory.

    Raises UserError for a shape without weights, or a folder that holds no model.
    """
    if model.path is None:
        raise UserError(f"`{key}.shape` has no weights; this stage starts from `{key}.path`, a trained model's folder.")
    read_config(model.path)
    return str(Path(model.path).absolute())


def check_context(path: str | Path, tokens: int, key: str) -> None:
    """Raises UserError when a model cannot read sequences of `tokens` tokens."""
    config = read_config(path)
    limit = config.get("max_position_embeddings", config.get("n_positions"))
    if limit is not None and tokens > limit:
        raise UserError(f"{key} allows sequences of {tokens} tokens, but the context of {path} is {limit}. Lower it.")


def scalar_spec(path: str, seed: int, bias: float | None, head_std: float | None = None) -> ModelSpec:
    """A critic or reward model."""
    return ModelSpec(path, "scalar", seed=seed, bias=bias, head_std=head_std)
