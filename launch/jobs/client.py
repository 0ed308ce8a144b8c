"""The runs that Ray's job server knows: connecting to it, and which jobs are attempts at which run."""

import logging
import os
import re
import secrets
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from quadriga.data.errors import Unreachable, UserError

ADDRESS = "http://127.0.0.1:8265"
"""Of the job server, where nothing else is said."""
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
ANSWER_SECONDS = 60.0
"""How long the job server may be silent while it owes an answer."""

RUN = "quadriga_run"
"""Key of a job's metadata: the run's name. Jobs without it are not ours."""
RUN_DIR = "run_dir"

INTERRUPTED = 130
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


def connect(address: str | None = None) -> Any:
    """Ray's JobSubmissionClient for the cluster at `address`; null: where Ray's own variables say, else this machine.

    Every call of it raises UserError when the token is missing or wrong, and Unreachable when nothing answers.
    """
    from ray.job_submission import JobSubmissionClient

    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.WARNING)  # it tells of every package and connection

    class Client(JobSubmissionClient):  # type: ignore[misc, valid-type]
        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            with _explained(self.get_address()):
                return super()._do_request(method, endpoint, **{"timeout": ANSWER_SECONDS} | options)

    if address is not None and "://" not in address:
        address = f"http://{address}"
    said = [address, *(os.environ.get(name) for name in ADDRESS_VARIABLES), ADDRESS]
    chosen = next(each for each in said if each)
    with _unset(ADDRESS_VARIABLES), _explained(chosen):  # they would win over what we were given
        return Client(chosen)


def attempts(client: Any, run: str | None = None) -> list[Any]:
    """The jobs that are attempts at this run, or at any; oldest first."""
    ours = [job for job in client.list_jobs() if (job.metadata or {}).get(RUN)]
    return sorted((job for job in ours if run in (None, job.metadata[RUN])), key=lambda job: job.start_time or 0)


def newest(client: Any, run: str) -> Any:
    """The newest attempt at a run. Raises UserError when there is none."""
    found = attempts(client, run)
    if not found:
        known = sorted({job.metadata[RUN] for job in attempts(client)})
        listed = f"it has {', '.join(known)}" if known else "it has none of Quadriga's"
        raise UserError(f"There is no run `{run}` on the cluster at {client.get_address()}: {listed}.")
    return found[-1]


def next_id(client: Any, run: str) -> str:
    """`<run>-<n>`, one above every attempt there was."""
    matches = (re.fullmatch(rf"{re.escape(run)}-(\d+)", job.submission_id or "") for job in client.list_jobs())
    return f"{run}-{max((int(match[1]) for match in matches if match), default=0) + 1}"


def beside(client: Any, job: Any, words: Sequence[str]) -> str:
    """Run Python with these words where a job runs, with the Quadriga and the interpreter of that job; returns its id.

    It sees the job's run directory, which only the nodes may see, and takes no resources.
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
    """What `quadriga run` would have returned: 0 finished, 130 stopped, 2 bad input, 1 anything else."""
    if job.status == "STOPPED":
        return INTERRUPTED
    code = job.driver_exit_code
    return 0 if job.status == "SUCCEEDED" else code if code in (2, INTERRUPTED) else 1


def state(job: Any) -> str:
    """How an attempt stands, in the words of run.json."""
    if job.status in ENDED:
        return {0: "finished", INTERRUPTED: "interrupted"}.get(exit_code(job), "failed")
    return str(job.status.value).lower()


@contextmanager
def _explained(address: str) -> Iterator[None]:
    """Turns what requests and Ray raise for a server that is away, or that wants a token, into one paragraph."""
    import requests
    from ray.exceptions import AuthenticationError, RpcError

    try:
        yield
    except AuthenticationError as error:
        wrong = "does not take the token that it got" if "Authentication failed" in str(error) else "wants a token"
        raise UserError(
            f"The Ray cluster at {address} {wrong}: set RAY_AUTH_MODE=token and, to the token of that cluster, "
            "RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH, a file that holds it; without both it is read from "
            "~/.ray/auth_token). On the head, `ray get-auth-token` prints it."
        ) from error
    except (requests.RequestException, ConnectionError, RpcError) as error:
        raise Unreachable(
            f"No Ray job server answers at {address}. Give the address of the head's dashboard with --address "
            "http://HEAD:8265 (or RAY_API_SERVER_ADDRESS), and see that the cluster is up and that this machine "
            "reaches that port."
        ) from error


@contextmanager
def _unset(names: Sequence[str]) -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
