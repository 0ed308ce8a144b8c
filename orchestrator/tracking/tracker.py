"""Tracker: the only writer of a run's metrics.jsonl, samples/*.parquet and W&B run."""

import json
import logging
import math
import netrc
import os
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol, Self
from urllib.parse import urlsplit

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
    "eval",
    "perf",
    "timing_s",
    "system",
)
CLOCKED = ("time", "timing_s/", "perf/", "system/")
"""Prefixes of metrics that depend on the clock or the machine."""
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
START_TIMEOUT = 30.0
"""Seconds to reach the W&B server before the run is recorded offline."""
NONFINITE = "system/nonfinite_metrics"

log = logging.getLogger(__name__)


class RunFolder(Protocol):
    """The paths that the tracker needs from a run directory."""

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
    run_id: the id of an earlier attempt, so that W&B continues the same run; None makes a new one.
    resume_step: the step of the checkpoint. Later steps that were logged before are run again: they are compared with
        the log and not logged twice. None starts an empty log.
    replay: `exact`: a step that is run again must give the same numbers (except `CLOCKED` ones), else Fault. `note`:
        differing steps are counted in `system/replay_differences`, for devices that are not deterministic. `forget`:
        steps after `resume_step` are dropped and logged again, because the settings were changed.

    W&B is online if there is a key (`has_wandb_key`) and WANDB_MODE does not say otherwise, else offline. An error of
    W&B never stops a run: the first one is logged as a warning.
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
                "project": wandb_project(settings),
                "group": settings.group or name,
                "name": name,
                "job_type": stage,
                "config": without_secrets(dict(config)),
            }
            self._wandb = _WandbRun(run_dir.path, mode, identity)

    @property
    def address(self) -> str | None:
        """The URL of the W&B run, or the command that uploads an offline run; None without W&B."""
        return self._wandb.address if self._wandb else None

    def log(self, step: int, metrics: Mapping[str, Any], samples: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Write one step.

        metrics: name in one of the `NAMESPACES` -> scalar of Python, numpy or torch. NaN and infinity become null in
            metrics.jsonl and are left out of W&B; `system/nonfinite_metrics` counts them.
        samples: rows with `prompt`, `response` and any of `SAMPLE_COLUMNS`; other keys become additional columns. The
            first `settings.samples` rows are kept.
        Raises Fault if a step that is run again differs, if steps are out of order, or if a name is not in a namespace.
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
        # After the samples, so that a step with a line has its samples. Opened for each line, so that a removed file
        # does not stop the run.
        line = {"global_step": step, "time": round(time.time(), 3), **row}
        self._logged[step] = line
        with self._path.open("a", encoding="ascii") as file:
            file.write(json.dumps(line) + "\n")
        if self._wandb:
            self._wandb.log({AXIS: step} | {key: value for key, value in row.items() if value is not None}, table)

    def confirmed(self, step: int) -> None:
        """Forget the rows up to this step: a checkpoint holds it, so they are not run again."""
        self._logged = {number: row for number, row in self._logged.items() if number > step}

    def _compare(self, step: int, row: Mapping[str, Any]) -> None:
        """Compare a step that is run again with its logged row. Raises Fault if it differs and `replay` is `exact`."""
        if step not in self._logged:
            raise Fault(f"step {step} was logged after step {self._last_step}", phase="commit")
        before = self._logged[step]
        same = {key: value for key, value in before.items() if key in row and not key.startswith(CLOCKED)}
        differing = sorted(key for key, value in same.items() if row[key] != value)
        if differing and self._replay == "exact":
            key = differing[0]
            raise Fault(
                f"Step {step} was run again after a loss and differs from the log: {key} is {row[key]} and was "
                f"{before[key]} ({len(differing)} of {len(same)} numbers differ). A run that is not deterministic "
                "cannot be resumed exactly; please report this.",
                phase="replay",
            )
        self.replay_differences += bool(differing)

    def close(self, exit_code: int = 0) -> None:
        """Finish the W&B run, as failed unless exit_code is 0. Further calls do nothing."""
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
    """Return a scalar as a Python number; None for NaN and infinity."""
    number: float | int = value.item() if hasattr(value, "item") else value
    return number if math.isfinite(number) else None


def wandb_mode(settings: TrackingSettings) -> str:
    """Return `online`, `offline` or `disabled`, by the settings, then WANDB_MODE, then the presence of a key."""
    mode = os.environ.get("WANDB_MODE", "online")
    if not settings.wandb or mode == "disabled":
        return "disabled"
    return "online" if mode == "online" and has_wandb_key() else "offline"


def has_wandb_key() -> bool:
    """Return whether there is a key: in the environment, or in the netrc file where `wandb login` writes it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    files = [os.environ["NETRC"]] if "NETRC" in os.environ else ["~/.netrc", "~/_netrc"]
    for file in map(os.path.expanduser, files):
        try:
            if netrc.netrc(file).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def wandb_project(settings: TrackingSettings) -> str:
    """Return the project of the settings; where they leave it open, that of WANDB_PROJECT, else `quadriga`."""
    return settings.project or os.environ.get("WANDB_PROJECT") or "quadriga"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics.jsonl, oldest first; none if the file does not exist.

    A last line that is half-written (by a running or a killed run) is left out. Raises Fault for any other line that is
    not JSON.
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
                raise Fault(f"{path}, line {number}: not JSON ({error})") from error
    return rows


def _rewind(metrics_path: Path, samples_dir: Path, last_step: int) -> None:
    """Remove the rows and samples of the steps after `last_step`."""
    rows = [row for row in read_metrics(metrics_path) if row["global_step"] <= last_step]
    write_text_atomic(metrics_path, "".join(json.dumps(row) + "\n" for row in rows))
    for path in samples_dir.glob("step-*.parquet"):
        if int(path.stem.removeprefix("step-")) > last_step:
            path.unlink()


def _cut_unfinished_line(path: Path) -> None:
    """Remove a last line that a kill left half-written."""
    if path.exists() and not (text := path.read_bytes()).endswith(b"\n"):
        with path.open("rb+") as file:
            file.truncate(text.rfind(b"\n") + 1)


def _checked(name: str) -> str:
    """Return a metric's name. Raises Fault unless it is in a namespace."""
    space, slash, rest = name.partition("/")
    if name == AXIS or space not in NAMESPACES or not slash or not rest:
        raise Fault(f"the metric name '{name}' does not start with one of {', '.join(f'{s}/' for s in NAMESPACES)}")
    return name


def _sample_table(step: int, samples: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Return a table of global_step, `SAMPLE_COLUMNS` (null if a sample has no value), then all other keys by name."""
    others = sorted({key for sample in samples for key in sample} - set(SAMPLE_COLUMNS) - {"global_step"})
    columns = {"global_step": pa.array([step] * len(samples), pa.int64())}
    for key, kind in SAMPLE_COLUMNS.items():
        values = [sample.get(key) for sample in samples]
        if key == "reward_version":  # a number in one run, a path or a hash in another
            values = [value if value is None else str(value) for value in values]
        columns[key] = pa.array(values, kind)
    for key in others:
        values = [sample.get(key) for sample in samples]
        if any(isinstance(value, str) for value in values):  # a number in one row, a text in another
            values = [value if value is None else str(value) for value in values]
        columns[key] = pa.array(values)
    return pa.table(columns)


def _write_parquet(table: pa.Table, path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    pq.write_table(table, temporary)
    temporary.replace(path)


class _WandbRun:
    """A W&B run whose methods never raise."""

    def __init__(self, folder: Path, mode: str, identity: dict[str, Any]):
        self._failed = False
        self.address: str | None = None
        self._run: Any = None
        self._data = folder / "wandb" / "data"
        # If the server cannot be reached, the run is recorded offline.
        for attempt in dict.fromkeys([mode, "offline"]):
            with self._guard(f"starting the {attempt} run"):
                if self._failed:
                    _forget_failed_start()
                self._run = _init(folder, attempt, identity)
                offline = f"offline; upload it with: wandb sync {Path(self._run.dir).parent}"
                self.address = self._run.url if attempt == "online" else offline
                return

    def log(self, row: dict[str, Any], table: pa.Table | None) -> None:
        with self._guard("logging"):
            if table is not None:
                import wandb

                # A new table for each step: W&B keeps all of them.
                rows = [list(values) for values in zip(*table.to_pydict().values(), strict=True)]
                row = row | {SAMPLES_KEY: wandb.Table(columns=table.column_names, data=rows)}
            self._run.log(row)  # never step=: W&B drops, without an error, what is logged to an earlier step

    def finish(self, exit_code: int) -> None:
        with self._guard("finishing"):
            if self._run is not None:
                self._run.finish(exit_code=exit_code)

    @contextmanager
    def _guard(self, doing: str) -> Iterator[None]:
        """Turn the first error into a warning, ignore later ones, and keep W&B's staged files in the run directory."""
        before = os.environ.get("WANDB_DATA_DIR")
        os.environ["WANDB_DATA_DIR"] = before or str(self._data)
        try:
            yield
        except Exception as error:
            if not self._failed:
                reason = " ".join(str(error).split())
                log.warning("W&B failed while %s (%s). The run continues; metrics.jsonl has every step.", doing, reason)
            self._failed = True
        finally:
            if before is None:
                del os.environ["WANDB_DATA_DIR"]


def _forget_failed_start() -> None:
    """End W&B's service process, which keeps the id of a run that failed to start."""
    import wandb

    wandb.teardown(exit_code=1)


def _init(folder: Path, mode: str, identity: dict[str, Any]) -> Any:
    """Start or resume a W&B run, silently and without code, git state, package list, command line or machine data."""
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
        x_disable_stats=True,  # it sees the driver's machine only; the hosts' numbers are under system/
        init_timeout=START_TIMEOUT,
        finish_timeout=120,
    )
    # create_new: each stage of a pipeline is a separate run, and the caller's own run is left alone.
    run = wandb.init(dir=str(folder), resume="allow", reinit="create_new", settings=settings, **identity)
    run.define_metric(AXIS)
    for space in NAMESPACES:
        run.define_metric(f"{space}/*", step_metric=AXIS, step_sync=True)
    return run
