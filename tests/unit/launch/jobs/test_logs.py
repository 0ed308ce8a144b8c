"""Logs over connections that break: every line once, in order, and the job's exit code at the end."""

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from quadriga.data.errors import Fault, Unreachable
from quadriga.launch.jobs import logs
from quadriga.launch.jobs.logs import follow

LOG = "".join(f"line {number}: ä\n" for number in range(40))

Connection = Callable[[], AsyncIterator[str]]


async def breaks(after: int, error: Exception | None) -> AsyncIterator[str]:
    """Send the first `after` characters of the log, in pieces that do not end with lines; then break."""
    for begin in range(0, after, 7):
        yield LOG[begin : min(begin + 7, after)]
    if error is not None:
        raise error


async def hangs(after: int) -> AsyncIterator[str]:
    """Send the first `after` characters of the log, then nothing: a dead connection that raises no error."""
    yield LOG[:after]
    await asyncio.sleep(3600)


class Server:
    """Job server that gives out these connections in turn; the job has ended when none is left."""

    def __init__(self, connections: list[Any], status: str = "SUCCEEDED", code: int | None = 0):
        self.connections, self.status, self.code = connections, status, code

    def get_job_info(self, job_id: str) -> Any:
        if self.connections and isinstance(self.connections[0], Exception):
            raise self.connections.pop(0)
        status = "RUNNING" if self.connections else self.status
        return SimpleNamespace(status=status, driver_exit_code=self.code, message="no such node")

    def get_job_logs(self, job_id: str) -> str:
        if self.code is None and self.status == "FAILED":
            raise RuntimeError("Request failed with status code 500: the node is gone")
        return LOG

    def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        return self.connections.pop(0)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(logs, "SILENCE_SECONDS", 0.2)


def follow_log(server: Server) -> tuple[int, str]:
    written: list[str] = []
    return follow(server, "tune-1", written.append), "".join(written)


@pytest.mark.parametrize(
    "connections",
    [
        [],
        [breaks(len(LOG), None)],
        [breaks(100, aiohttp.ClientConnectionError("gone")), breaks(60, RuntimeError("closed")), breaks(200, None)],
        [breaks(0, OSError("refused")), Unreachable("away"), RuntimeError("500"), breaks(300, None)],
        [hangs(120), breaks(150, ConnectionResetError()), hangs(200)],
    ],
    ids=["ended before", "whole", "broken", "restarted", "hung"],
)
def test_every_line_is_written_once(connections: list[Any]) -> None:
    assert follow_log(Server(connections)) == (0, LOG)


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [("FAILED", 1, 1), ("FAILED", 2, 2), ("FAILED", 130, 130), ("FAILED", 137, 1), ("STOPPED", None, 130)],
)
def test_the_exit_code_is_that_of_the_run(status: str, code: int | None, expected: int) -> None:
    assert follow_log(Server([], status, code))[0] == expected


def test_a_job_that_never_ran_is_a_fault() -> None:
    with pytest.raises(Fault, match="Job tune-1 did not run to its end: no such node"):
        follow_log(Server([], "FAILED", None))


def test_a_silent_server_ends_following() -> None:
    away = Server([Unreachable("nothing answers")] * 1000)
    with pytest.raises(Fault, match="It may still be running: nothing answers"):
        follow(away, "tune-1", give_up_seconds=0.0)


def test_a_job_lost_with_its_cluster_is_a_fault() -> None:
    lost = Server([breaks(50, None), RuntimeError("Request failed with status code 404: Job tune-1 does not exist")])
    with pytest.raises(Fault, match="no longer knows job tune-1"):
        follow_log(lost)
