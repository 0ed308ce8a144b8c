"""Following the log of a job over a connection that may break."""

import asyncio
import sys
import time
from collections.abc import Callable
from contextlib import aclosing, nullcontext, suppress
from typing import Any

from quadriga.data.errors import Fault, Unreachable
from quadriga.launch.jobs.client import ENDED, exit_code

SILENCE = 60.0
"""Seconds without a line after which a connection is made anew: one that is cut does not always say so."""
PATIENCE = 600.0
"""Seconds without an answer of the job server after which following ends."""
PAUSE = 1.0
NO_JOB = "status code 404"


def follow(client: Any, job_id: str, write: Callable[[str], None] | None = None, patience: float = PATIENCE) -> int:
    """Print a job's log as it grows, until the job ends; returns its exit code, as `quadriga run` gives them.

    After a break it goes on behind the last character that was printed. Raises Fault when the job never ran, and
    when no job server answers for `patience` seconds; the job does not depend on that.
    """
    log, answered = Log(client, job_id, write or _print), time.monotonic()
    while True:
        try:
            job = client.get_job_info(job_id)
            if job.status in ENDED:
                never_ended = job.status == "FAILED" and job.driver_exit_code is None
                with suppress(RuntimeError) if never_ended else nullcontext():  # its log may be lost with its node
                    log.finish()
                break
            answered = time.monotonic()
            log.tail()
        except (Unreachable, RuntimeError) as error:  # RuntimeError: the server is there, what it asks is not
            if NO_JOB in str(error):
                raise Fault(
                    f"The cluster does not know job {job_id} any more: its head was started anew, and the run ended "
                    "with the old one. Submit it again, and it goes on from its newest checkpoint."
                ) from error
            if time.monotonic() - answered > patience:
                waited = f"{patience:.0f} s without an answer about job {job_id}"
                raise Fault(f"{waited}. It may well be running: {error}") from error
        time.sleep(PAUSE)
    if never_ended:
        raise Fault(f"Job {job_id} did not run to its end: {(job.message or 'Ray does not say why').strip()}")
    return exit_code(job)


class Log:
    """A job's log and how much of it has been written. Every connection begins at its first character again."""

    def __init__(self, client: Any, job_id: str, write: Callable[[str], None]):
        self._client, self._job_id, self._write = client, job_id, write
        self._written = 0

    def tail(self) -> None:
        """Write what comes until the server ends the connection or is silent. Raises RuntimeError when it breaks."""
        import aiohttp

        try:
            asyncio.run(self._tail())
        except TimeoutError:
            return
        except (aiohttp.ClientError, OSError) as error:
            raise RuntimeError(str(error)) from error

    def finish(self) -> None:
        """Write what is left of the log of a job that has ended."""
        self._take(self._client.get_job_logs(self._job_id), 0)

    async def _tail(self) -> None:
        seen = 0
        async with aclosing(self._client.tail_job_logs(self._job_id)) as chunks:
            while (chunk := await asyncio.wait_for(anext(chunks, None), SILENCE)) is not None:
                self._take(chunk, seen)
                seen += len(chunk)

    def _take(self, text: str, begins: int) -> None:
        """Write the part of a text that is new. begins: where in the log it stands."""
        new = text[max(0, self._written - begins) :]
        if new:
            self._write(new)
            self._written += len(new)


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
