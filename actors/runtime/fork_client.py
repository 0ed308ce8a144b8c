"""Client of the fork server: Ray runs it instead of Python to start a worker.

It passes everything on to the server and waits until the forked worker ends. It runs as a script and imports only the
standard library: `python -I -S fork_client.py SOCKET script.py ARGUMENTS...`.
"""

import json
import os
import socket
import struct
import sys
from typing import Any


def send(path: str, order: dict[str, Any], descriptors: list[int]) -> socket.socket:
    """Connect to the server, send an order with open file descriptors, and return the connection."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    body = json.dumps(order).encode()
    socket.send_fds(connection, [struct.pack(">I", len(body))], descriptors)
    connection.sendall(body)
    return connection


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Return the order and file descriptors of a `send`. Raises EOFError if the connection ends too early."""
    header, descriptors, _, _ = socket.recv_fds(connection, 4, 8, socket.MSG_WAITALL)
    (length,) = struct.unpack(">I", header)
    body = bytearray()
    while len(body) < length:
        part = connection.recv(length - len(body))
        if not part:
            raise EOFError("the order was cut off")
        body += part
    return json.loads(body), list(descriptors)


def main() -> None:
    """Have a worker forked with our arguments, environment, folder and streams; the connection closes when it ends."""
    order = {"argv": sys.argv[2:], "env": dict(os.environ), "cwd": os.getcwd()}
    send(sys.argv[1], order, [0, 1, 2]).recv(1)


if __name__ == "__main__":
    main()
