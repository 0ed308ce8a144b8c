"""What Ray runs instead of Python to start a worker: hands all to the fork server and waits for the worker's end.

Run as a script, with the standard library only: `python -I -S fork_client.py SOCKET script.py ARGUMENTS...`.
"""

import json
import os
import socket
import struct
import sys
from typing import Any


def send(path: str, order: dict[str, Any], descriptors: list[int]) -> socket.socket:
    """Connect to the server, send an order with open files, return the connection."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    body = json.dumps(order).encode()
    socket.send_fds(connection, [struct.pack(">I", len(body))], descriptors)
    connection.sendall(body)
    return connection


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The order and the open files of a `send`."""
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
    """Have the worker forked with our arguments, environment, folder and streams; its end closes the connection."""
    order = {"argv": sys.argv[2:], "env": dict(os.environ), "cwd": os.getcwd()}
    send(sys.argv[1], order, [0, 1, 2]).recv(1)


if __name__ == "__main__":
    main()
