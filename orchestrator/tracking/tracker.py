"""The one writer of a run's numbers: metrics.jsonl, samples/*.parquet and W&B."""

import json
import logging
import math
import os
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import pyarrow as pa
import pyarrow.parquet as pq

from quadriga.data.atomic_files import write_text_atomic
from quadriga.data.errors import Fault
from quadriga.data.secrets import without_secrets
from quadriga.orchestrator.settings import TrackingSettings

AXIS = "train/global_step"
NAMESPACES = (
    "train",
    "rollout",
    "reward",
    "critic",
    "actor",
    "human",
    "moderation",
    "eval",
    "perf",
    "timing_s",
    "system",
)
CLOCKED = ("time", "timing_s/", "perf/", "system/")
"""Metrics that depend on the clock or the machine."""
Replay = Literal["exact", "note", "forget"]
SAMPLES_KEY = "rollout/samples"
SAMPLE_COLUMNS = {
    "prompt": pa.string(),
    "response": pa.string(),
    "reward": pa.float64(),
    "kl": pa.float64(),
    "finish_reason": pa.string(),
    "policy_version": pa.int64(),
    "reward_version": pa.string(),
    "prompt_id": pa.string(),
    "sample_index": pa.int64(),
}
START_TIMEOUT = 30.0  # seconds to reach the W&B server before the run is recorded offline
NONFINITE = "system/nonfinite_metrics"

log = logging.getLogger(__name__)


class RunFolder(Protocol):
    """What the tracker needs of a run directory."""

    @property
    def path(self) -> Path: ...
    @property
    def metrics_path(self) -> Path: ...
    @property
    def samples_dir(self) -> Path: ...


class Tracker:
    """Writes each step once, to metrics.jsonl and to W&B, on one axis: `train/global_step`.

    run_dir: where metrics.jsonl, samples/ and wandb/ go.
    stage, name: W&B job type and run name; `settings.group` (else `name`) is the W&B group.
    config: the resolved configuration; secrets are stripped before W&B sees it.
    run_id: the id of an earlier attempt, so that W&B goes on with the same run; None makes a new one.
    resume_step: the last step that the checkpoint holds. Steps after it that were logged before are run again: they are
        compared with what was logged, and not logged twice. None starts from nothing.
    replay: `exact`: a step that is run again must give the same numbers (`CLOCKED` ones aside), else Fault. `note`: the
        difference is counted as `system/replay_differences`, for devices that do not repeat themselves. `forget`: what
        was logged after `resume_step` is dropped and logged anew, because the settings were changed.

    W&B is online when WANDB_API_KEY is in the environment (and WANDB_MODE does not say otherwise), offline without.
    Nothing W&B does can stop a run: its errors are counted in `wandb_errors` and the first one is a warning.
    """

    def __init__(
        self,
        run_dir: RunFolder,
        settings: TrackingSettings,
        stage: str,
        name: str,
        config: Mapping[str, Any],
        run_id: str | None = None,
        resume_step: int | None = None,
        replay: Replay = "exact",
    ):
        self.run_id = run_id or secrets.token_hex(4)
        self.nonfinite: Counter[str] = Counter()
        self._settings = settings
        self._samples_dir = run_dir.samples_dir
        self._samples_dir.mkdir(parents=True, exist_ok=True)
        self._path, self._replay, self.replay_differences = run_dir.metrics_path, replay, 0
        step = -1 if resume_step is None else resume_step
        if resume_step is None or replay == "forget":
            _rewind(self._path, self._samples_dir, step)
        else:
            _cut_unfinished_line(self._path)
        self._logged = {row["global_step"]: row for row in read_metrics(self._path) if row["global_step"] > step}
        self._last_step = max([step, *self._logged])
        mode = wandb_mode(settings)
        self._wandb = None
        if mode != "disabled":
            identity = {
                "id": self.run_id,
                "project": settings.project,
                "group": settings.group or name,
                "name": name,
                "job_type": stage,
                "config": without_secrets(dict(config)),
            }
            self._wandb = _WandbRun(run_dir.path, mode, identity)

    @property
    def address(self) -> str | None:
        """Where to look: the dashboard's URL, or the command that uploads an offline run; None without W&B."""
        return self._wandb.address if self._wandb else None

    @property
    def wandb_errors(self) -> int:
        """Calls of W&B that failed."""
        return self._wandb.errors if self._wandb else 0

    def log(self, step: int, metrics: Mapping[str, Any], samples: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Write one step.

        metrics: namespaced names (`NAMESPACES`) and scalars: Python, numpy or torch. NaN and infinity become null in
            metrics.jsonl and are left out of W&B; how many there were so far is `system/nonfinite_metrics`.
        samples: rows with `prompt`, `response` and any of `SAMPLE_COLUMNS`; other keys become columns of their own.
            The first `settings.samples` are kept.
        Raises Fault when a step that is run again differs, comes out of order, or a name is in no namespace.
        """
        row = {_checked(name): _finite(value) for name, value in metrics.items()}
        if step <= self._last_step:
            self._compare(step, row)
            return
        self._last_step = step
        self._count_nonfinite(step, {name: metrics[name] for name, value in row.items() if value is None})
        if self.nonfinite:
            row[NONFINITE] = self.nonfinite.total()
        if self.replay_differences:
            row["system/replay_differences"] = self.replay_differences
        kept = [dict(sample) for sample in samples or []][: self._settings.samples]
        table = _sample_table(step, kept) if kept else None
        if table is not None:
            _write_parquet(table, self._samples_dir / f"step-{step:06d}.parquet")
        # After the samples: a step that has its line has them too. Opened anew each time: a file that somebody removed
        # comes back, and the run goes on.
        line = {"global_step": step, "time": round(time.time(), 3), **row}
        self._logged[step] = line
        with self._path.open("a", encoding="ascii") as file:
            file.write(json.dumps(line) + "\n")
        if self._wandb:
            self._wandb.log({AXIS: step} | {key: value for key, value in row.items() if value is not None}, table)

    def confirmed(self, step: int) -> None:
        """Steps up to this one will not be run again: there is a checkpoint after them."""
        self._logged = {number: row for number, row in self._logged.items() if number > step}

    def _compare(self, step: int, row: Mapping[str, Any]) -> None:
        """A step that was logged before was run again."""
        if step not in self._logged:
            raise Fault(f"step {step} was logged after step {self._last_step}", phase="commit")
        before = self._logged[step]
        same = {key: value for key, value in before.items() if key in row and not key.startswith(CLOCKED)}
        differing = sorted(key for key, value in same.items() if row[key] != value)
        if differing and self._replay == "exact":
            key = differing[0]
            raise Fault(
                f"Step {step} was run again after a loss and differs from what was logged: {key} is {row[key]} and was "
                f"{before[key]} ({len(differing)} of {len(same)} numbers differ). A run that does not repeat itself "
                "cannot be resumed exactly; please report this.",
                phase="replay",
            )
        self.replay_differences += bool(differing)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Set final values of the W&B run (the numbers its run table shows)."""
        if self._wandb:
            self._wandb.summary(values)

    def close(self, exit_code: int = 0) -> None:
        """Finish the W&B run, which is marked failed when exit_code is not 0. Further calls do nothing."""
        if self._wandb:
            self._wandb.finish(exit_code)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.close(0 if kind is None else 1)

    def _count_nonfinite(self, step: int, metrics: Mapping[str, Any]) -> None:
        for name, value in metrics.items():
            if not self.nonfinite[name]:
                log.warning("%s is %s at step %d; it is written as null", name, float(value), step)
            self.nonfinite[name] += 1


def _finite(value: Any) -> float | int | None:
    """A Python number; None for NaN and infinity."""
    number: float | int = value.item() if hasattr(value, "item") else value
    return number if math.isfinite(number) else None


def wandb_mode(settings: TrackingSettings) -> str:
    """`online`, `offline` or `disabled`: the settings, then WANDB_MODE, then whether there is a key."""
    asked = os.environ.get("WANDB_MODE", "online")
    if not settings.wandb or asked == "disabled":
        return "disabled"
    return "online" if asked == "online" and os.environ.get("WANDB_API_KEY") else "offline"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, oldest first; an absent file has none.

    The last line may be half-written (by a run that lives, or that was killed): it is left out. Any other line that is
    not JSON raises Fault.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise Fault(f"{path}, line {number}: not JSON ({error})") from None
    return rows


def _rewind(metrics_path: Path, samples_dir: Path, last_step: int) -> None:
    """Forget what was logged after last_step."""
    rows = [row for row in read_metrics(metrics_path) if row["global_step"] <= last_step]
    write_text_atomic(metrics_path, "".join(json.dumps(row) + "\n" for row in rows))
    for path in samples_dir.glob("step-*.parquet"):
        if int(path.stem.removeprefix("step-")) > last_step:
            path.unlink()


def _cut_unfinished_line(path: Path) -> None:
    """Remove what a kill left of a last line."""
    if path.exists() and not (text := path.read_bytes()).endswith(b"\n"):
        with path.open("rb+") as file:
            file.truncate(text.rfind(b"\n") + 1)


def _checked(name: str) -> str:
    space, slash, rest = name.partition("/")
    if name == AXIS or space not in NAMESPACES or not slash or not rest:
        raise Fault(f"the metric name '{name}' does not start with one of {', '.join(f'{s}/' for s in NAMESPACES)}")
    return name


def _sample_table(step: int, samples: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Columns: global_step, SAMPLE_COLUMNS (null where a sample has no value), then all other keys by name."""
    others = sorted({key for sample in samples for key in sample} - set(SAMPLE_COLUMNS) - {"global_step"})
    columns = {"global_step": pa.array([step] * len(samples), pa.int64())}
    for key, kind in SAMPLE_COLUMNS.items():
        values = [sample.get(key) for sample in samples]
        if key == "reward_version":  # a number in one run, a path or a hash in another
            values = [value if value is None else str(value) for value in values]
        columns[key] = pa.array(values, kind)
    for key in others:
        columns[key] = pa.array([sample.get(key) for sample in samples])
    return pa.table(columns)


def _write_parquet(table: pa.Table, path: Path) -> None:
    draft = path.with_suffix(".tmp")
    pq.write_table(table, draft)
    draft.replace(path)


class _WandbRun:
    """One W&B run that never raises."""

    def __init__(self, folder: Path, mode: str, identity: dict[str, Any]):
        self.errors = 0
        self.address: str | None = None
        self._run: Any = None
        self._data = folder / "wandb" / "data"
        # A server that cannot be reached must not cost the record: it is then kept offline.
        for attempt in dict.fromkeys([mode, "offline"]):
            with self._guard(f"starting the {attempt} run"):
                if self.errors:
                    _forget_failed_start()
                self._run = _init(folder, attempt, identity)
                offline = f"offline; upload it with: wandb sync {Path(self._run.dir).parent}"
                self.address = self._run.url if attempt == "online" else offline
                return

    def log(self, row: dict[str, Any], table: pa.Table | None) -> None:
        with self._guard("logging"):
            if table is not None:
                import wandb

                # A new table each step: W&B keeps every one of them under its step.
                rows = [list(values) for values in zip(*table.to_pydict().values(), strict=True)]
                row = row | {SAMPLES_KEY: wandb.Table(columns=table.column_names, data=rows)}
            self._run.log(row)  # never step=: W&B drops, without an error, what is logged to an earlier step

    def summary(self, values: Mapping[str, Any]) -> None:
        with self._guard("writing the summary"):
            self._run.summary.update(dict(values))

    def finish(self, exit_code: int) -> None:
        with self._guard("finishing"):
            if self._run is not None:
                self._run.finish(exit_code=exit_code)

    @contextmanager
    def _guard(self, doing: str) -> Iterator[None]:
        """Count errors instead of raising them, and keep the files W&B stages for upload inside the run directory."""
        before = os.environ.get("WANDB_DATA_DIR")
        os.environ["WANDB_DATA_DIR"] = before or str(self._data)
        try:
            yield
        except Exception as error:
            if not self.errors:
                reason = " ".join(str(error).split())
                log.warning("W&B failed while %s (%s). The run goes on; metrics.jsonl has every step.", doing, reason)
            self.errors += 1
        finally:
            if before is None:
                del os.environ["WANDB_DATA_DIR"]


def _forget_failed_start() -> None:
    """End W&B's own process, in which the id of a run that did not start stays taken."""
    import wandb

    wandb.teardown(exit_code=1)


def _init(folder: Path, mode: str, identity: dict[str, Any]) -> Any:
    """Start or resume the run, silent and without code, git state, package list, command line or machine data."""
    import wandb

    settings = wandb.Settings(
        mode=mode,
        silent=True,
        console="off",
        save_code=False,
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        x_save_requirements=False,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_disable_stats=True,  # it sees the driver's machine only; the hosts' own numbers are under system/
        init_timeout=START_TIMEOUT,
        finish_timeout=120,
    )
    # create_new: the stages of a pipeline are runs of their own, and a run of the caller's is left alone.
    run = wandb.init(dir=str(folder), resume="allow", reinit="create_new", settings=settings, **identity)
    run.define_metric(AXIS)
    for space in NAMESPACES:
        run.define_metric(f"{space}/*", step_metric=AXIS, step_sync=True)
    return run
