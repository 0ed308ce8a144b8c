"""Client of Ray's job server: connects to it and finds the jobs that are attempts at a run."""

import logging
import os
import re
import secrets
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from quadriga.data.errors import INTERRUPTED, Unreachable, UserError

ADDRESS = "http://127.0.0.1:8265"
"""Default address of the job server."""
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
ANSWER_SECONDS = 60.0
"""Timeout of one request to the job server."""
START_SECONDS = 120.0
"""Time in which a cluster that has just been started must answer and take jobs. On a busy machine it takes a minute."""
RETRY_SECONDS = 1.0

RUN = "quadriga_run"
"""Key of a job's metadata for the run's name. Jobs without it are not Quadriga's."""
RUN_DIR = "run_dir"
"""Key of a job's metadata for the run's directory."""

"""Exit code of a run that was stopped, as after Ctrl-C."""
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


def connect(address: str | None = None) -> Any:
    """Return Ray's JobSubmissionClient for the cluster at `address`.

    None takes the address from Ray's own environment variables, and without them that of this machine. Every call of
    the client raises UserError when the token is missing or wrong, and Unreachable when nothing answers. A cluster that
    answers but cannot take jobs yet, as in its first seconds, is waited for.
    """
    from ray.job_submission import JobSubmissionClient

    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.WARNING)  # its INFO lines report every package and connection

    class Client(JobSubmissionClient):
        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            deadline = time.monotonic() + START_SECONDS
            while True:
                with _explain_errors(self.get_address()):
                    answer = super()._do_request(method, endpoint, **{"timeout": ANSWER_SECONDS} | options)
                starting = answer.status_code == 500 and "No available agent" in answer.text
                if not starting or time.monotonic() > deadline:
                    return answer
                time.sleep(RETRY_SECONDS)

    if address is not None and "://" not in address:
        address = f"http://{address}"
    candidates = [address, *(os.environ.get(name) for name in ADDRESS_VARIABLES), ADDRESS]
    chosen = next(candidate for candidate in candidates if candidate)
    with _unset(ADDRESS_VARIABLES), _explain_errors(chosen):  # Ray lets them override its argument
        return Client(chosen)


def await_server(address: str) -> Any:
    """Connect as `connect` does, to a cluster that has just been started. Raises Unreachable after START_SECONDS."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return connect(address)
        except Unreachable:
            if time.monotonic() > deadline:
                raise
            time.sleep(RETRY_SECONDS)


def attempts(client: Any, run: str | None = None) -> list[Any]:
    """Return the jobs that are attempts at this run, or at any run for None, oldest first."""
    ours = [job for job in client.list_jobs() if (job.metadata or {}).get(RUN)]
    return sorted((job for job in ours if run in (None, job.metadata[RUN])), key=lambda job: job.start_time or 0)


def newest(client: Any, run: str) -> Any:
    """Return the newest attempt at a run. Raises UserError when there is none."""
    found = attempts(client, run)
    if not found:
        known = sorted({job.metadata[RUN] for job in attempts(client)})
        listed = f"it has {', '.join(known)}" if known else "it has none of Quadriga's"
        raise UserError(f"There is no run `{run}` on the cluster at {client.get_address()}: {listed}.")
    return found[-1]


def next_id(client: Any, run: str) -> str:
    """Return the submission ID of the next attempt, `<run>-<n>`, where n is one more than the highest so far."""
    matches = (re.fullmatch(rf"{re.escape(run)}-(\d+)", job.submission_id or "") for job in client.list_jobs())
    return f"{run}-{max((int(match[1]) for match in matches if match), default=0) + 1}"


def submit_alongside(client: Any, job: Any, words: Sequence[str]) -> str:
    """Run Python with these arguments on the cluster, with a job's Quadriga and interpreter; return the new job's ID.

    The new job sees the run directory of the first one, which perhaps only the nodes see, and takes no resources.
    """
    python = shlex.split(job.entrypoint)[0]
    return str(
        client.submit_job(
            entrypoint=shlex.join([python, *words]),
            submission_id=f"{job.submission_id}-beside-{secrets.token_hex(3)}",
            runtime_env={"py_modules": job.runtime_env["py_modules"]},
        )
    )


def exit_code(job: Any) -> int:
    """Return the exit code of `quadriga run` in a job: 0 finished, 130 stopped, 2 bad input, 1 anything else."""
    if job.status == "STOPPED":
        return INTERRUPTED
    code = job.driver_exit_code
    return 0 if job.status == "SUCCEEDED" else code if code in (2, INTERRUPTED) else 1


def state(job: Any) -> str:
    """Return the status of an attempt in the terms of run.json."""
    if job.status in ENDED:
        return {0: "finished", INTERRUPTED: "interrupted"}.get(exit_code(job), "failed")
    return str(job.status.value).lower()


@contextmanager
def _explain_errors(address: str) -> Iterator[None]:
    """Turn the errors of requests and Ray about an unreachable server or a token into UserError and Unreachable."""
    import requests
    from ray.exceptions import AuthenticationError, RpcError

    try:
        yield
    except AuthenticationError as error:
        reason = "rejects the given token" if "Authentication failed" in str(error) else "requires a token"
        raise UserError(
            f"The Ray cluster at {address} {reason}: set RAY_AUTH_MODE=token and, to the token of that cluster, "
            "RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH, a file that holds it; without both it is read from "
            "~/.ray/auth_token). On the head, `ray get-auth-token` prints it."
        ) from error
    except (requests.RequestException, ConnectionError, RpcError) as error:
        raise Unreachable(
            f"No Ray job server answers at {address}. Give the address of the head's dashboard with --address "
            "http://HEAD:8265 (or RAY_API_SERVER_ADDRESS), and check that the cluster is up and that this machine "
            "can reach that port."
        ) from error


@contextmanager
def _unset(names: Sequence[str]) -> Iterator[None]:
    """Remove environment variables while the block runs."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
