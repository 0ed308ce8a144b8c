"""A TCP proxy whose connections can be cut, as networks do."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class CutProxy:
    """Passes connections on to a port of this machine. port: its own."""

    def __init__(self, target: int):
        self._target, self._open = target, list[socket.socket]()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def cut(self) -> int:
        """End every connection there is now; returns how many. New ones are let through."""
        connections, self._open = self._open, []
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        return len(connections) // 2

    def close(self) -> None:
        """Take no more connections, and cut those there are."""
        self._server.close()
        self.cut()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                ends = (self._server.accept()[0], socket.create_connection(("127.0.0.1", self._target)))
                self._open += ends
                for source, sink in (ends, ends[::-1]):
                    threading.Thread(target=_pass_on, args=(source, sink), daemon=True).start()


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(1 << 16):
            sink.sendall(piece)
        sink.shutdown(socket.SHUT_WR)


@contextmanager
def cut_proxy(target: int) -> Iterator[CutProxy]:
    proxy = CutProxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
