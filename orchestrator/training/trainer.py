"""TrainingStage: what every stage that trains shares: resume, the step loop, recovery, commits, clean stops."""

import copy
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from quadriga.actors.model.group import ActorGroup
from quadriga.actors.settings import Role
from quadriga.data.errors import Lost
from quadriga.data.loading.readers import BadRow
from quadriga.data.rundir import RunDir
from quadriga.orchestrator.cluster.processes import ModelUse, Processes, RolloutPlan, connected, processes
from quadriga.orchestrator.faults.injector import FaultInjector
from quadriga.orchestrator.faults.recovery import Recovery
from quadriga.orchestrator.faults.watchdog import Watchdog, dump_stacks
from quadriga.orchestrator.settings import StageBase
from quadriga.orchestrator.tracking.console import StageProgress
from quadriga.orchestrator.tracking.tracker import Replay, Tracker
from quadriga.orchestrator.training import checkpoint
from quadriga.orchestrator.training.checkpoint import Export
from quadriga.orchestrator.training.run_state import RunState
from quadriga.orchestrator.training.stop import Stop


class TrainingStage(ABC):
    """A stage that trains models step by step.

    What a subclass fills in, in the order in which it is called:

        load_inputs -> models -> engine -> [processes start, checkpoint is restored] -> setup_workers
        -> sync_after_restore -> step, step, ... (exports at every checkpoint) -> teardown

    When a process is lost during a step: abort_step -> [it is replaced, models go back to the newest checkpoint if one
    of them was trained] -> sync_after_restore -> step. This class owns the rest: resume, the loop, recovery, commits,
    clean stops.
    """

    trained: ClassVar[tuple[str, ...]]
    """Roles with an optimizer: what a checkpoint holds."""

    tokenizer: Any
    """Tokenizer that exports are saved with; set by `load_inputs`."""
    progress: StageProgress
    running: Processes
    recovery: Recovery
    watchdog: Watchdog
    injector: FaultInjector

    def __init__(self, settings: StageBase, run: RunDir):
        self.settings, self.run = settings, run
        self.state = RunState()
        self.timings: dict[str, float] = {}
        """Seconds per part of the step under way."""
        self.skipped: list[BadRow] = []
        """Rows that `load_inputs` left out."""
        self.notes: list[str] = []
        """Sentences about the other rows."""
        self.worker_classes: dict[str, Any] = {}
        """Role -> another class to run in its processes (tests inject faults so)."""
        self._synced = False
        self._saved, self._saved_at = 0, 0.0
        self._commit_seconds = 0.0
        self._logged: tuple[int, Mapping[str, float]] = 0, {}

    @abstractmethod
    def load_inputs(self) -> None:
        """Read data, tokenizer and configs, before a process is started. Raise UserError for bad input."""

    @abstractmethod
    def models(self) -> list[ModelUse]:
        """Return the models that run in processes of their own."""

    def engine(self) -> RolloutPlan | None:
        """Return what the rollout workers start with; None starts none."""
        return None

    def setup_workers(self) -> None:
        """Create what lives as long as the processes do. `teardown` releases it."""
        return None

    def sync_after_restore(self) -> None:
        """Bring what checkpoints do not hold to `state.step`: before the first step, and again after a loss."""
        return None

    def abort_step(self) -> None:
        """Stop whatever still works for a step that is given up."""
        return None

    @abstractmethod
    def step(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Run one step and return its metrics and the samples to log. Must not change `state.step`."""

    @abstractmethod
    def exports(self) -> dict[str, Export]:
        """Return what a checkpoint exports: folder name -> model."""

    def is_finished(self) -> bool:
        """Return whether there is no step left."""
        return self.state.step >= self.settings.total_steps

    def teardown(self) -> None:
        """Release what `setup_workers` created."""
        return None

    def execute(self, progress: StageProgress, replay: Replay = "exact") -> bool:
        """Run to the end, or to a clean stop. Return True when the stage is finished, False when it was stopped.

        replay: what to do about logged steps that are run again (see `Tracker`).
        """
        self.load_inputs()
        self.progress = progress
        settings, cluster = self.settings, self.settings.cluster
        self.recovery = Recovery(cluster.recovery, self.run.note)
        with (
            connected(cluster) as dashboard,
            Stop(self.run).listening() as stop,  # after Ray, which takes SIGTERM for itself when it starts
            progress.waiting("starting processes"),
            processes(
                cluster,
                self.models(),
                self.engine(),
                str(self.run.logs_dir),
                self.worker_classes,
                self.recovery.note,
                self.run.note,
            ) as self.running,
            Watchdog(cluster.deadlines.progress, self._dump_stacks, self._give_up).watching() as self.watchdog,
        ):
            self.injector = FaultInjector(settings.faults, self.run, self.running)
            self._restore(checkpoint.latest_valid(self.run, self._note_damage))
            with self._tracker(replay) as tracker:
                address, logs = tracker.address, self.running.logs
                progress.started(self.state.step, settings.total_steps, dashboard, address, logs)
                note_skipped(self.skipped, self.run, progress)
                for note in self.notes:
                    progress.note(f"  {note}")
                self.setup_workers()
                try:
                    self._loop(tracker, stop)
                finally:
                    self.teardown()
            if self.is_finished():
                checkpoint.publish_exports(self.run, self.run.checkpoint_dir(self.state.step))
            return self.is_finished()

    def group(self, role: str) -> ActorGroup:
        """Return the ranks of a role."""
        return self.running.groups[role]

    def trained_groups(self) -> dict[str, ActorGroup]:
        """Return the groups that a checkpoint holds."""
        return {role: group for role, group in self.running.groups.items() if role in self.trained}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Time a part of the step; its wall-clock seconds are logged as timing_s/<name>."""
        self.injector.enter(self.state.step + 1, name)
        self.watchdog.moved(name)
        began = time.monotonic()
        yield
        self.timings[name] = self.timings.get(name, 0.0) + time.monotonic() - began

    def _tracker(self, replay: Replay) -> Tracker:
        """Open the run's log at `state.step`, under the id that it has had from its first attempt on."""
        settings, running = self.settings, self.running
        tracker = Tracker(
            self.run,
            settings.tracking,
            settings.stage,
            settings.name,
            settings.model_dump(mode="json"),
            run_id=self.state.tracker_id or self.run.read_run().get("tracker_id"),
            resume_step=self.state.step,
            replay="note" if replay == "exact" and running.device != "cpu" else replay,
        )
        self.state.tracker_id = tracker.run_id
        self.run.update_run(tracker_id=tracker.run_id)
        running.record_locations(self.run)
        return tracker

    def _loop(self, tracker: Tracker, stop: Stop) -> None:
        """Step until the stage is finished or a stop is requested, and the last step is saved."""
        self._synced, self._saved, self._saved_at = False, self.state.step, time.monotonic()
        self._logged = self.state.step, {}
        while not (self.is_finished() or stop.requested) or self._saved != self.state.step:
            before = copy.deepcopy(self.state)
            self.recovery.step = before.step + 1
            try:
                if not self._synced:
                    self.sync_after_restore()
                    self._synced = True
                if self.is_finished() or stop.requested:
                    self._save(tracker)
                else:
                    self._run_one_step(tracker)
            except Lost as lost:
                self._recover(lost, before)
                self._synced = False

    def _run_one_step(self, tracker: Tracker) -> None:
        """Scale if asked, step, log, and save when a checkpoint is due."""
        self._scale()
        began, self.timings = time.monotonic(), {}
        self.injector.enter(self.state.step + 1, None)
        metrics, samples = self.step()
        self.state.step += 1
        seconds = time.monotonic() - began
        self.state.seconds += seconds
        metrics |= {f"timing_s/{name}": value for name, value in self.timings.items()}
        # A row is written before its own commit ends, so it has the seconds of the commit before it.
        metrics |= {"timing_s/commit": self._commit_seconds, "timing_s/step": seconds}
        metrics |= {"perf/total_tokens": self.state.tokens} | self._memory()
        began = time.monotonic()
        tracker.log(self.state.step, metrics, samples)
        self.progress.step(self.state.step, metrics)
        self._logged = self.state.step, metrics
        if self._save_is_due():
            self._save(tracker)
        self._commit_seconds = time.monotonic() - began

    def _scale(self) -> None:
        """Have as many rollout workers as `quadriga scale` asked for, in this attempt or an earlier one."""
        wanted, fleet = self.run.requested("rollout"), self.running.fleet
        if wanted is None or not fleet.workers or wanted == fleet.count:
            return
        self.run.note("scaled", rollout=wanted, before=fleet.count, step=self.state.step + 1)
        self.progress.note(f"  rollout workers: {fleet.count} -> {wanted}")
        fleet.resize(wanted)

    def _recover(self, lost: Lost, before: RunState) -> None:
        """Replace what was lost and go back to where its state is known.

        A frozen model (or a reward function) has no state: the step is done again. A trained one goes back to the
        newest checkpoint, and all other trained ones with it, or to the start where there is none.
        Raises Fault when more was lost than `cluster.recovery` allows.
        """
        began = time.monotonic()
        roles = set[Role]()  # kept over losses on the way: what was rebuilt then has not been restored yet
        while True:
            self.recovery.note(lost)
            self.progress.note(f"  {lost}: starting it again")
            try:
                self.state = before
                self.abort_step()
                roles |= self.running.dead_roles()
                if self.is_model_worker(lost):
                    roles.add(self.running.role_of(lost.process))
                trained = {self.group(role).specs[0].role for role in self.trained_groups()}
                back = bool(roles & trained)
                found = checkpoint.latest_valid(self.run, self._note_damage) if back else None
                if back and found is None:
                    roles |= trained
                self.running.rebuild(roles)
                if back:
                    self._restore(found)
            except Lost as again:
                lost = again
            else:
                break
        self._saved = min(self._saved, self.state.step)
        self.running.record_locations(self.run)
        seconds = round(time.monotonic() - began, 1)
        self.run.note("recovered", rebuilt=sorted(roles), step=self.state.step, seconds=seconds)

    def is_model_worker(self, lost: Lost) -> bool:
        """Return whether a model's process was lost; rollout workers are replaced by their pool."""
        return lost.process.split(" ")[0] in self.running.groups

    def _restore(self, found: Path | None) -> None:
        """Load a checkpoint; without one, begin at the start."""
        known = self.state.tracker_id
        self.state = checkpoint.restore(found, self.trained_groups()) if found else RunState(tracker_id=known)

    def _note_damage(self, folder: Path, reason: str) -> None:
        self.run.note("damaged_checkpoint", folder=folder.name, reason=reason)
        self.progress.note(f"  {reason}. It was set aside as {folder.name}; the one before it is used.")

    def _save_is_due(self) -> bool:
        settings = self.settings.checkpoint
        by_step = settings.every_steps is not None and self.state.step % settings.every_steps == 0
        minutes = (time.monotonic() - self._saved_at) / 60
        return by_step or (settings.every_minutes is not None and minutes >= settings.every_minutes)

    def _save(self, tracker: Tracker) -> None:
        self.injector.enter(self.state.step, "checkpoint")
        self.watchdog.moved("checkpoint")
        self._note_best()
        checkpoint.save(self.run, self.state, self.trained_groups(), self.exports(), self.tokenizer)
        checkpoint.prune(self.run, self.settings.checkpoint.keep, self.state.best and self.state.best[0])
        tracker.confirmed(self.state.step)
        self._saved, self._saved_at = self.state.step, time.monotonic()

    def _note_best(self) -> None:
        """Remember the step if it is the best of those that are saved."""
        best, (step, metrics) = self.settings.checkpoint.keep_best, self._logged
        if best is None or step != self.state.step:
            return
        if best.metric not in metrics:
            self.progress.note(f"  checkpoint.keep_best: step {step} has no `{best.metric}`, so it is not compared.")
            return
        value = float(metrics[best.metric])
        sign = 1 if best.mode == "max" else -1
        if self.state.best is None or sign * value > sign * self.state.best[1]:
            self.state.best = (step, value)

    def _memory(self) -> dict[str, float]:
        """Return the largest peak memory of a process per role, in GiB."""
        memory = {role: group.memory for role, group in self.running.groups.items()}
        if self.running.fleet.workers:
            memory["rollout"] = self.running.fleet.peak_memory()
        return {f"system/memory_gb_{role}": value / 2**30 for role, value in memory.items()}

    def _dump_stacks(self) -> None:
        dump_stacks(self.run.logs_dir / "driver-stacks.txt", self.running.process_locations().values())

    def _give_up(self, reason: str) -> None:
        """Write down why and leave: the main thread takes no signal."""
        self.run.end_attempt("failed", reason)
        os._exit(1)


def note_skipped(rows: Sequence[BadRow], run: RunDir, progress: StageProgress) -> None:
    """Say how many rows were left out; list them in logs/skipped-rows.txt with file, line and reason."""
    if rows:
        file = run.logs_dir / "skipped-rows.txt"
        file.write_text("".join(f"{row}\n" for row in rows))
        progress.note(f"  {len(rows)} rows were left out: {file}")
