"""A user's Python function that scores answers, in subprocesses that can be killed.

The function may hang, crash, fork, print or leak: the trainer sees a result or a `RowError` for each row, in time.
"""

import queue
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self

from pydantic import Field

from quadriga.data.errors import Fault, UserError
from quadriga.data.settings import Settings
from quadriga.orchestrator.rewards.function_process import FunctionProcess, StartError


class FunctionSettings(Settings):
    """How a Python function is called, in subprocesses that can be killed."""

    function: str = Field(pattern=r"^[\w.]+:\w+$")
    """The function as `module:function`. It gets a list of rows {"prompt", "messages", "response", "response_ids",
    "meta"} and returns as many results: numbers, or dicts with at least the number "score". Other numbers of a dict are
    logged, the rest goes to the table of samples as text."""
    timeout: float = Field(10.0, gt=0)
    """Longest time for one call (a chunk of answers), in seconds."""
    processes: int = Field(1, ge=1)
    """Number of subprocesses that call the function at the same time."""
    retries: int = Field(1, ge=0)
    """How often a failed answer is scored again, by itself, after an exception, a death or a time-out."""
    drop: Literal["answer", "group"] = "answer"
    """What is dropped when an answer fails for good (never scored 0): the answer, or all answers to its prompt."""
    max_error_rate: float = Field(0.1, ge=0, le=1)
    """Share of a batch's answers that may fail for good before the run stops; with 0 the first failure stops it."""


CHUNK = 8  # rows a call: what one timeout or crash can cost


@dataclass(frozen=True)
class RowError:
    """Why a row has no result. again: whether it may have one when it is scored again."""

    message: str
    again: bool = field(default=True, compare=False)


Result = float | dict[str, float | str] | RowError


def score_of(result: float | dict[str, float | str]) -> float:
    """The score of a good result: the number itself, or the dict's `score`."""
    return float(result["score"]) if isinstance(result, dict) else result


class RewardFunctionPool:
    """A pool of `settings.processes` subprocesses that call `settings.function`.

    The function gets a list of rows {"prompt": [messages], "messages": [messages], "response": str, "response_ids":
    [int], "meta": {}} and returns a list as long, of finite numbers or of dicts with at least the number "score". What
    is not a number in a dict comes back as text; None is left out.

    log_path: a file that gets what the function prints; None sends it to standard error.
    Raises UserError, naming the function and the reason, when it cannot be imported.
    """

    def __init__(self, settings: FunctionSettings, log_path: Path | None = None):
        self.settings = settings
        self._allowed, self._failed = 0.0, 0  # of the rows being scored
        self._log: BinaryIO | None = log_path.open("ab") if log_path else None
        self._workers = [FunctionProcess(settings.function, self._log) for _ in range(settings.processes)]
        self._idle: queue.SimpleQueue[FunctionProcess] = queue.SimpleQueue()
        try:
            for worker in self._workers:
                worker.wait_ready()
                self._idle.put(worker)
        except BaseException as error:
            self.close()
            if isinstance(error, StartError):
                raise UserError(
                    f"The function {settings.function} cannot be used: {error}. Give it as module:function, with the "
                    "module installed or in the working directory."
                ) from None
            raise

    def score(self, rows: Sequence[Mapping[str, Any]]) -> list[Result]:
        """One result a row, in order; a row that failed has a `RowError`, never a number.

        A call that raises, kills its process or takes longer than `settings.timeout` (its process is killed then) is
        repeated row by row, so that one bad row does not spoil its neighbours; what fails then is repeated again, up to
        `settings.retries` rounds in all, each within `settings.timeout` seconds for all of its rows. Once more rows
        failed for good than `settings.max_error_rate` allows, the rest is not scored: the run will stop anyway.
        """
        self._allowed, self._failed = self.settings.max_error_rate * len(rows), 0
        chunks = [list(rows[start : start + CHUNK]) for start in range(0, len(rows), CHUNK)]
        with ThreadPoolExecutor(max_workers=len(self._workers)) as threads:
            return [result for results in threads.map(self._score_chunk, chunks) for result in results]

    def check_rate(self, results: Sequence[Result], phase: str) -> None:
        """Raise Fault when more than `settings.max_error_rate` of the results are errors, or all of them."""
        errors = [result for result in results if isinstance(result, RowError)]
        if errors and (len(errors) > self.settings.max_error_rate * len(results) or len(errors) == len(results)):
            raise Fault(
                f"{self.settings.function} failed on {len(errors)} of {len(results)} answers, more than "
                f"max_error_rate = {self.settings.max_error_rate:g} allows. The first error: {errors[0].message}",
                phase=phase,
                process=self.settings.function,
            )

    @property
    def pids(self) -> list[int]:
        """The subprocesses' ids."""
        return [worker.process.pid for worker in self._workers]

    def close(self) -> None:
        """Kill the subprocesses and whatever they started."""
        for worker in self._workers:
            worker.kill()
        if self._log:
            self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _score_chunk(self, rows: list[Mapping[str, Any]]) -> list[Result]:
        worker = self._idle.get()
        try:
            if self._failed > self._allowed:
                return [RowError("not scored: too many others failed")] * len(rows)
            results = self._call(worker, rows, self.settings.timeout)
            for _ in range(self.settings.retries):
                self._repeat(worker, rows, results)
            self._failed += sum(isinstance(result, RowError) for result in results)  # seen late at worst
            return results
        finally:
            self._idle.put(worker)

    def _repeat(self, worker: FunctionProcess, rows: list[Mapping[str, Any]], results: list[Result]) -> None:
        """Score the rows that failed once more, one by one. A row may take its share of the time that is left."""
        failed = [index for index, result in enumerate(results) if isinstance(result, RowError) and result.again]
        end = worker.busy + self.settings.timeout  # the time of the calls; restarts do not count
        for number, index in enumerate(failed):
            share = (end - worker.busy) / (len(failed) - number)
            results[index] = self._call(worker, [rows[index]], share)[0]

    def _call(self, worker: FunctionProcess, rows: list[Mapping[str, Any]], timeout: float) -> list[Result]:
        try:
            worker.wait_ready()
            reply = worker.ask(rows, timeout)
        except TimeoutError:
            worker.restart()
            return [RowError(f"timed out after {timeout:.3g} s")] * len(rows)
        except (EOFError, StartError) as error:
            worker.restart()
            return [RowError(str(error))] * len(rows)
        if "error" in reply:
            return [RowError(reply["error"])] * len(rows)
        return [RowError(item["error"], again=False) if "error" in item else item["ok"] for item in reply["results"]]
