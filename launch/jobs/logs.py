"""Log of a job: follows it over a connection that may break."""

import asyncio
import sys
import time
from collections.abc import Callable
from contextlib import aclosing, nullcontext, suppress
from typing import Any

from quadriga.data.errors import Fault, Unreachable
from quadriga.launch.jobs.client import ENDED, exit_code

SILENCE_SECONDS = 60.0
"""Time without a line after which to reconnect: a broken connection does not always raise an error."""
GIVE_UP_SECONDS = 600.0
"""Time without an answer from the job server after which following ends."""
RETRY_SECONDS = 1.0
UNKNOWN_JOB = "status code 404"


def follow(
    client: Any, job_id: str, write: Callable[[str], None] | None = None, give_up_seconds: float = GIVE_UP_SECONDS
) -> int:
    """Print a job's log as it grows, until the job ends; return the exit code of its `quadriga run`.

    After a broken connection, printing resumes after the last printed character. Raises Fault when the job never ran,
    and when no job server answers for `give_up_seconds`; the job itself keeps running then.
    """
    log, answered = Log(client, job_id, write or _print), time.monotonic()
    while True:
        try:
            job = client.get_job_info(job_id)
            if job.status in ENDED:
                never_ended = job.status == "FAILED" and job.driver_exit_code is None
                with (
                    suppress(RuntimeError) if never_ended else nullcontext()
                ):  # its node may be lost, and its log with it
                    log.finish()
                break
            answered = time.monotonic()
            log.tail()
        except (Unreachable, RuntimeError) as error:  # RuntimeError: the server answers, but the job's node does not
            if UNKNOWN_JOB in str(error):
                raise Fault(
                    f"The cluster no longer knows job {job_id}: its head was restarted, and the run ended with the "
                    "old one. Submit it again to resume from its newest checkpoint."
                ) from error
            if time.monotonic() - answered > give_up_seconds:
                waited = f"{give_up_seconds:.0f} s without an answer about job {job_id}"
                raise Fault(f"{waited}. It may still be running: {error}") from error
        time.sleep(RETRY_SECONDS)
    if never_ended:
        raise Fault(f"Job {job_id} did not run to its end: {(job.message or 'Ray gives no reason').strip()}")
    return exit_code(job)


class Log:
    """Log of a job, and how much of it has been written. Every connection starts again at its first character."""

    def __init__(self, client: Any, job_id: str, write: Callable[[str], None]):
        self._client, self._job_id, self._write = client, job_id, write
        self._written = 0

    def tail(self) -> None:
        """Write new text until the server closes the connection or is silent. Raises RuntimeError when it breaks."""
        import aiohttp

        try:
            asyncio.run(self._tail())
        except TimeoutError:
            return
        except (aiohttp.ClientError, OSError) as error:
            raise RuntimeError(str(error)) from error

    def finish(self) -> None:
        """Write the rest of the log of a job that has ended."""
        self._write_new(self._client.get_job_logs(self._job_id), 0)

    async def _tail(self) -> None:
        seen = 0
        async with aclosing(self._client.tail_job_logs(self._job_id)) as chunks:
            while (chunk := await asyncio.wait_for(anext(chunks, None), SILENCE_SECONDS)) is not None:
                self._write_new(chunk, seen)
                seen += len(chunk)

    def _write_new(self, text: str, start: int) -> None:
        """Write the part of a text that has not been written. start: position of the text in the log."""
        new = text[max(0, self._written - start) :]
        if new:
            self._write(new)
            self._written += len(new)


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
