"""A subprocess that runs a user's function, and both ends of the pipe to it.

Run as a module, this file is the subprocess: it imports the function and answers calls over its standard input and
output (a 4-byte big-endian length, then JSON), which the user's code never gets to see.
"""

import contextlib
import importlib
import json
import math
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from decimal import Decimal
from numbers import Real
from typing import Any, BinaryIO

START_TIMEOUT = 120.0  # seconds to import the user's module
MESSAGE_LENGTH = 500


class StartError(Exception):
    """The subprocess could not import the function."""


class FunctionProcess:
    """Our end: one subprocess, the leader of its own process group."""

    def __init__(self, function: str, log: BinaryIO | None):
        self._function, self._log = function, log
        self.busy = 0.0  # seconds spent in calls
        self._start()

    def _start(self) -> None:
        # -P: the working directory goes last on the path (see main), where it cannot hide an installed package.
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "quadriga.orchestrator.rewards.function_process",
                self._function,
                str(os.getpid()),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
        )
        assert self.process.stdin and self.process.stdout
        self._in, self._out = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self._in, False)
        self._ready = self._gone = False

    def wait_ready(self) -> None:
        """Wait until the function is imported; raises StartError when it cannot be."""
        if self._ready:
            return
        try:
            reply = self._receive(time.monotonic() + START_TIMEOUT)
        except TimeoutError:
            raise StartError(f"its module was not imported after {START_TIMEOUT:g} s") from None
        except EOFError as error:
            raise StartError(f"while it was imported {error}") from None
        if "error" in reply:
            raise StartError(reply["error"])
        self._ready = True

    def ask(self, rows: list[Mapping[str, Any]], timeout: float) -> dict[str, Any]:
        """Call the function; raises TimeoutError, or EOFError when the process died."""
        start = time.monotonic()
        try:
            return self._exchange(rows, start + timeout)
        finally:
            self.busy += time.monotonic() - start

    def _exchange(self, rows: list[Mapping[str, Any]], deadline: float) -> dict[str, Any]:
        body = json.dumps(rows, default=str).encode("ascii")
        rest = memoryview(struct.pack(">I", len(body)) + body)
        while rest:
            self._wait(deadline, write=True)
            try:
                rest = rest[os.write(self._in, rest) :]
            except BrokenPipeError:
                raise EOFError(self._describe_exit()) from None
        return self._receive(deadline)

    def _receive(self, deadline: float) -> dict[str, Any]:
        (length,) = struct.unpack(">I", self._read(4, deadline))
        message: dict[str, Any] = json.loads(self._read(length, deadline))
        return message

    def _read(self, count: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < count:
            self._wait(deadline)
            part = os.read(self._out, min(count - len(data), 1 << 16))
            if not part:
                raise EOFError(self._describe_exit())
            data += part
        return bytes(data)

    def _wait(self, deadline: float, write: bool = False) -> None:
        """Until the pipe is ready. A process that died is noticed even when a child of its holds the pipe open."""
        poller = select.poll()  # select() itself takes no descriptor above 1023
        poller.register(self._in if write else self._out, select.POLLOUT if write else select.POLLIN)
        while True:
            dead = self.process.poll() is not None
            left = deadline - time.monotonic()
            if poller.poll(0 if dead else max(0.0, min(left, 0.1)) * 1000):
                return
            if dead:
                raise EOFError(self._describe_exit())
            if left <= 0:
                raise TimeoutError

    def _describe_exit(self) -> str:
        """How the process ended, when its pipe has."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)  # the pipe closes a moment before the exit code is known
        self.kill()
        code = self.process.returncode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        return f"the process {how}"

    def restart(self) -> None:
        """Kill the process and start a fresh one, which imports while others work."""
        self.kill()
        self._start()

    def kill(self) -> None:
        """Kill the process and its children; it is gone when this returns."""
        if self._gone:
            return  # its id may belong to another process by now
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._gone = True
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()


def main(target: str, parent: int) -> None:
    """The subprocess: import `module:function`, say so, then answer calls until standard input ends."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # What the user's code reads and prints has nothing to do with the protocol.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # keep output if the process is killed
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    sys.path.append(os.getcwd())
    module, _, name = target.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
        if not callable(function):
            raise TypeError(f"{name} is not a function")
    except BaseException as error:
        _send(replies, {"error": _describe(error)})
        return
    _send(replies, {})
    own = os.getpid()
    while header := requests.read(4):
        rows = json.loads(requests.read(struct.unpack(">I", header)[0]))
        reply = _run(function, rows)
        if os.getpid() != own:  # the function forked and its child came back here
            os._exit(0)
        _send(replies, reply)


def _run(function: Any, rows: list[Any]) -> dict[str, Any]:
    try:
        results = list(function(rows))
        if len(results) != len(rows):
            return {"error": f"returned {len(results)} results for {len(rows)} answers"}
        return {"results": [_plain(result) for result in results]}
    except BaseException as error:
        return {"error": _describe(error)}


def _plain(result: Any) -> dict[str, Any]:
    """Return {"ok": number, or dict of numbers and texts}, or {"error": why it is neither}."""
    if isinstance(result, Mapping) and "score" not in result:
        return {"error": f"returned a dict without 'score' (it has {', '.join(map(str, result)) or 'nothing'})"}
    try:
        if isinstance(result, Mapping):
            named = {str(key): _named(value) for key, value in result.items() if value is not None or key == "score"}
            return {"ok": named | {"score": _finite(result["score"])}}
        return {"ok": _finite(result)}
    except (TypeError, ValueError):
        return {"error": f"returned {repr(result)[:MESSAGE_LENGTH]}, which is not finite numbers"}


def _named(value: Any) -> float | str:
    """Return a value beside the score: a number if it is one, of whatever library, else its text."""
    with contextlib.suppress(Exception):  # what has no item, or several
        value = value.item()  # a scalar of numpy or torch
    if isinstance(value, Real | Decimal):
        return _finite(value)
    return str(value).encode("utf-8", "replace").decode()  # half of a character cannot be written to a file


def _finite(value: Any) -> float:
    if isinstance(value, str):  # float("1") works, but says that something else is wrong
        raise TypeError
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:MESSAGE_LENGTH]


def _send(replies: BinaryIO, message: dict[str, Any]) -> None:
    body = json.dumps(message).encode("ascii")
    replies.write(struct.pack(">I", len(body)) + body)
    replies.flush()


def _die_with(parent: int) -> None:
    """A function that hangs does not outlive a trainer that was killed."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
