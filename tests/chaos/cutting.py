"""A network that breaks connections after so many bytes: between a client and a server, in both directions."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Lock, Thread
from typing import Final

_CHUNK: Final = 4096


class CuttingProxy:
    """Forwards bytes, and breaks each connection after a number of them. `lives` says how many a new one lives, asked
    for either direction.
    """

    def __init__(self, host: str, port: int, lives: Callable[[], int]) -> None:
        self.server = (host, port)
        self._is_shut = False
        self._lives = lives
        self._lock = Lock()
        self._open: set[socket.socket] = set()
        self.cuts = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def close(self) -> None:
        _break(self._listener)
        self._break_all()

    @contextmanager
    def shut(self) -> Iterator[None]:
        """Nobody gets through meanwhile; then new connections do, to `server` as it is by then."""
        with self._lock:
            self._is_shut = True
        self._break_all()
        yield
        with self._lock:
            self._is_shut = False

    def _break_all(self) -> None:
        for connection in list(self._open):
            _break(connection)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        try:
            upstream = socket.create_connection(self.server, timeout=5)
        except OSError:
            _break(client)
            return
        upstream.settimeout(None)
        both = (client, upstream)
        with self._lock:
            left = [0, 0] if self._is_shut else [self._lives() for _ in both]
            self._open.update(both)
        pairs = ((client, upstream, left[0]), (upstream, client, left[1]))
        for source, target, bytes_left in pairs:
            Thread(target=self._forward, args=(source, target, bytes_left), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket, left: int) -> None:
        with suppress(OSError):
            while chunk := source.recv(_CHUNK):
                target.sendall(chunk[:left])
                left -= len(chunk)
                if left <= 0:
                    with self._lock:
                        self.cuts += 1
                    break
        for connection in (source, target):
            self._open.discard(connection)
            _break(connection)


def _break(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
