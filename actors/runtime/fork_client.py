"""Client of the fork server: Ray runs it instead of Python to start a worker.

It finds the server, or starts one, passes everything on to it and waits until the forked worker ends. Where that fails,
it becomes the worker itself, as without a server. It runs as a script and imports only the standard library:
`python -I -S fork_client.py TOKEN KIND script.py ARGUMENTS...`.
"""

import errno
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import IO, Any

ATTEMPTS = 100


def address(token: str, kind: str) -> bytes:
    """Return the address of a driver's server for workers of a kind, an abstract Unix socket.

    It is free again when the server has ended, however it ended. A fork is in the container of the server, so each
    container has its own address; Linux separates those of different network namespaces itself.
    """
    containers = "-".join(os.readlink(f"/proc/self/ns/{name}") for name in ("mnt", "pid"))
    return f"\0quadriga-fork-{token}-{kind}-{containers}".encode()


def connect(token: str, kind: str) -> socket.socket:
    """Connect to the server of this kind, which is started if there is none. Raises OSError if that fails."""
    for _ in range(ATTEMPTS):
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(address(token, kind))
            require_own_user(connection)
            return connection
        except ConnectionRefusedError:
            connection.close()
            start(token, kind)
    raise ConnectionRefusedError("no fork server answers")


def require_own_user(connection: socket.socket) -> None:
    """Raise PermissionError if the other end belongs to another user: an abstract socket has no file mode."""
    user = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
    if user != os.geteuid():
        raise PermissionError(f"the other end belongs to user {user}")


def start(
    token: str, kind: str, driver: int = 0, environment: Mapping[str, str] = os.environ, errors: int | IO[Any] = 2
) -> "subprocess.Popen[bytes] | None":
    """Start the server of this kind; it accepts orders at once, and follows them when its imports are done.

    driver: process with which the server ends; 0 for a server that ends when it has had no worker for a while.
    environment, errors: of the server. Return its process; None if it is forked from another server, or if another
    process starts it at this moment.
    """
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            listener.bind(address(token, kind))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            time.sleep(0.05)
            return None
        listener.listen(64)
        if kind == "rollout":
            # vLLM takes as long to import as all the rest, so its server is forked from the one that has the rest.
            send(connect(token, "model"), {"serve": kind}, [listener.fileno()]).close()
            return None
        server = [sys.executable, "-P", "-m", "quadriga.actors.runtime.fork_server"]
        return subprocess.Popen(
            [*server, str(driver), str(listener.fileno())],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )


def send(connection: socket.socket, order: dict[str, Any], descriptors: list[int]) -> socket.socket:
    """Send an order with open file descriptors; return the connection."""
    body = json.dumps(order).encode()
    socket.send_fds(connection, [struct.pack(">I", len(body))], descriptors)
    connection.sendall(body)
    return connection


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Return the order and file descriptors of a `send`. Raises EOFError if the connection ends too early."""
    header, descriptors, _, _ = socket.recv_fds(connection, 4, 8, socket.MSG_WAITALL)
    length = struct.unpack(">I", header)[0] if len(header) == 4 else 1
    body = bytearray()
    while len(body) < length:
        part = connection.recv(length - len(body))
        if not part:
            raise EOFError("the order was cut off")
        body += part
    return json.loads(body), list(descriptors)


def main() -> None:
    """Have a worker forked with our arguments, environment, folder and streams, and wait for its end."""
    token, kind, *arguments = sys.argv[1:]
    order = {"argv": arguments, "env": dict(os.environ), "cwd": os.getcwd()}
    try:
        connection = send(connect(token, kind), order, [0, 1, 2])
        if not connection.recv(1):  # the worker's first act is to send a byte
            raise ConnectionResetError("the fork server ended")
    except OSError as error:
        print(f"This {kind} worker is not forked and imports its packages itself: {error}", file=sys.stderr, flush=True)
        os.execv(sys.executable, [sys.executable, *arguments])
    connection.recv(1)  # the connection closes when it ends


if __name__ == "__main__":
    main()
