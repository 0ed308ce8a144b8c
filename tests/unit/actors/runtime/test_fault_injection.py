"""Injected faults are real: what the operating system reports of a process that has one."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from quadriga.actors.runtime.fault_injection import inject_fault

PROGRAM = """
import sys, threading, time
from quadriga.actors.runtime.fault_injection import InjectedFault, inject_fault
print("ready", flush=True)
try:
    timer = threading.Timer(0.1, inject_fault, (sys.argv[1], 1.0, threading.get_ident()))
    timer.start()
    for _ in range(40):
        time.sleep(0.05)
    print("lived", flush=True)
except InjectedFault:
    print("raised", flush=True)
"""


def start(action: str) -> "subprocess.Popen[str]":
    """A process that has this fault a moment after it prints that it is ready."""
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, action], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


def state(pid: int) -> str:
    """State of a process in /proc: R, S, T or Z."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Wait until a condition is true; fail after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_kill() -> None:
    assert start("kill").wait(10) == -signal.SIGKILL


def test_stop() -> None:
    process = start("stop")
    wait_for(lambda: state(process.pid) == "T")
    time.sleep(0.3)
    assert state(process.pid) == "T"
    process.kill()
    process.wait()


def test_slow_is_stopped_for_a_while() -> None:
    process = start("slow")
    wait_for(lambda: state(process.pid) == "T")
    stopped = time.monotonic()
    wait_for(lambda: state(process.pid) != "T")
    assert 0.5 < time.monotonic() - stopped < 3
    assert process.communicate(timeout=10)[0] == "lived\n"


def test_raise_reaches_the_working_thread() -> None:
    assert start("raise").communicate(timeout=10)[0] == "raised\n"


def test_disconnect_ends_only_tcp_connections() -> None:
    program = """
import socket, sys
from quadriga.actors.runtime.fault_injection import inject_fault
tcp, pair = socket.create_connection(("127.0.0.1", int(sys.argv[1]))), socket.socketpair()
inject_fault("disconnect", 0.0, None)
pair[0].sendall(b"x")
print(repr(tcp.recv(1)), pair[1].recv(1))
"""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        done = subprocess.run([sys.executable, "-c", program, port], capture_output=True, text=True, timeout=30)
        connection, _ = server.accept()
        with connection:
            assert connection.recv(1) == b""
    assert done.stdout == "b'' b'x'\n", done.stderr


def test_raise_needs_a_working_thread() -> None:
    with pytest.raises(AssertionError, match="has not started to work"):
        inject_fault("raise", 0.0, None)
