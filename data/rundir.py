"""RunDir: the folder of a run, with its layout, the record of its attempts, its lock and requests to it."""

import errno
import fcntl
import json
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal

import yaml

from quadriga.data.atomic_files import recover, write_json_atomic, write_text_atomic
from quadriga.data.errors import UserError
from quadriga.data.secrets import without_secrets

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""Errors of storage without file locks, such as Lustre mounted without `-o flock`."""
Status = Literal["running", "finished", "interrupted", "failed", "lost"]


class RunDir:
    """The folder of a run. The constructor does not touch the disk; `create` does.

    Layout: config.yaml, run.json, metrics.jsonl, samples/, checkpoints/step-N/, export/<role>/, logs/, requests/.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config_path = self.path / "config.yaml"
        self.run_json = self.path / "run.json"
        self.metrics_path = self.path / "metrics.jsonl"
        self.samples_dir = self.path / "samples"
        self.checkpoints_dir = self.path / "checkpoints"
        self.export_dir = self.path / "export"
        self.logs_dir = self.path / "logs"
        self._writing = threading.RLock()

    def __repr__(self) -> str:
        return f"RunDir({str(self.path)!r})"

    @classmethod
    def create(cls, path: str | Path) -> "RunDir":
        """Create the folders, or open those of an earlier attempt and complete writes that a kill interrupted there.

        Only the driver may call it. Raises UserError when the folder cannot be written.
        """
        run = cls(Path(path).expanduser().absolute())
        try:
            for folder in (run.samples_dir, run.checkpoints_dir, run.export_dir, run.logs_dir):
                folder.mkdir(parents=True, exist_ok=True)
            probe = run.path / f".probe-{os.getpid()}"
            probe.write_text("writable")
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"The run directory {run.path} cannot be written: {error.strerror or error}. Give a folder that you "
                "may write to with `run_dir`; on a cluster it must be one that every node sees."
            ) from None
        for folder in (run.checkpoints_dir, run.export_dir):
            recover(folder)
        return run

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the resolved config, without secrets."""
        write_text_atomic(
            self.config_path, yaml.safe_dump(without_secrets(config), sort_keys=False, allow_unicode=True)
        )

    def read_run(self) -> dict[str, Any]:
        """Return the content of run.json, empty before the first attempt. Raises UserError when it is not JSON."""
        try:
            return dict(json.loads(self.run_json.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise UserError(
                f"{self.run_json} is damaged ({error}). Remove the run directory or choose another."
            ) from None

    def update_run(self, **fields: Any) -> dict[str, Any]:
        """Set fields of run.json and return all of it."""
        with self._writing:
            run = self.read_run() | without_secrets(fields)
            write_json_atomic(self.run_json, run)
        return run

    def start_attempt(self, versions: Mapping[str, str]) -> int:
        """Record that an attempt begins, with the versions of the software it runs on. Returns its number, from 1.

        An earlier attempt without a recorded end was killed: it is marked as lost.
        """
        self.clear_request("stop")
        attempts = self.read_run().get("attempts", [])
        if attempts and attempts[-1]["status"] == "running":
            attempts[-1] |= {
                "status": "lost",
                "error": "the driver ended silently: it was killed, or its machine was lost",
            }
            self.update_run(attempts=attempts)
            self.note("driver_lost", attempt=len(attempts))
        attempts.append(
            {"started": _now(), "ended": None, "status": "running", "versions": dict(versions), "error": None}
        )
        self.update_run(status="running", attempts=attempts)
        return len(attempts)

    def began(self) -> datetime:
        """Return when the first attempt began: the present time before it."""
        attempts = self.read_run().get("attempts", [])
        return datetime.fromisoformat(attempts[0]["started"] if attempts else _now())

    def note(self, event: str, **fields: Any) -> None:
        """Append to the events in run.json: losses, recoveries, injected faults, damaged checkpoints."""
        with self._writing:
            events = [*self.events(), {"time": _now(), "event": event} | fields]
            self.update_run(events=events)

    def events(self) -> list[dict[str, Any]]:
        """Return the events that `note` recorded, oldest first."""
        return list(self.read_run().get("events", []))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the directory for this process; the lock ends with the process, however that ends.

        Storage without locks is noted in run.json: nothing then keeps a second run out. Raises UserError when another
        run holds the lock.
        """
        with (self.path / ".lock").open("a+") as file:
            try:
                free = _try_lock(file)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                free = True
                self.note("not_locked", reason=f"the storage of {self.path} has no file locks ({error.strerror})")
            if not free:
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise UserError(
                    f"{self.path} is in use by {holder}. Wait for that run, stop it, or give another `run_dir`."
                ) from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {os.uname().nodename}")
            file.flush()
            yield

    def request(self, name: str, value: Any = True) -> None:
        """Leave a request for the process that runs here, which checks for one at every step. Any process may call it.

        name: `stop`, or `rollout` with the wanted number of workers.
        """
        folder = self.path / "requests"
        folder.mkdir(exist_ok=True)
        write_json_atomic(folder / f"{name}.json", value)

    def requested(self, name: str) -> Any:
        """Return the value of a request to this run or to the pipeline of which it is a stage; None without one."""
        for folder in self._with_pipeline():
            try:
                return json.loads((folder / "requests" / f"{name}.json").read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
        return None

    def in_use(self) -> bool:
        """Return whether a process holds the lock of this directory, or of the pipeline of which it is a stage."""
        for folder in self._with_pipeline():
            try:
                with (folder / ".lock").open() as file:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except FileNotFoundError:
                continue
            except BlockingIOError:
                return True
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
        return False

    def _with_pipeline(self) -> list[Path]:
        return [self.path, self.path.parent.parent] if self.path.parent.name.startswith("round-") else [self.path]

    def clear_request(self, name: str) -> None:
        """Remove a request from this folder: it was met, or made before this attempt."""
        (self.path / "requests" / f"{name}.json").unlink(missing_ok=True)

    def end_attempt(self, status: Status, error: str | None = None) -> None:
        """Record how the attempt ended; `error` is the root cause."""
        attempts = self.read_run().get("attempts", [])
        if attempts:
            attempts[-1] |= {"ended": _now(), "status": status, "error": error}
        self.update_run(status=status, attempts=attempts)

    def checkpoint_dir(self, step: int) -> Path:
        """Return the folder of the checkpoint after `step` steps."""
        return self.checkpoints_dir / f"step-{step}"

    def checkpoint_steps(self) -> list[int]:
        """Return the steps with a published checkpoint, oldest first."""
        found = (re.fullmatch(r"step-(\d+)", folder.name) for folder in self.checkpoints_dir.glob("step-*"))
        return sorted(int(match.group(1)) for match in found if match)


def _try_lock(file: IO[str]) -> bool:
    """Try to lock a file, for a moment longer than `RunDir.in_use` holds it. Returns whether it is locked now."""
    for _ in range(3):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.05)
    return False


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
