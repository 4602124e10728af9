"""A proxy between a log and its server that does to appends what bad networks do.

It forwards everything both ways, and lets the next fault of its plan befall every call of the append function. A test
may also strike at an exact moment of an append, such as kill the server. The proxy knows as much of RESP as that takes:
a request that holds the function's name is an append, and its reply is what the server sends next.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from threading import Event, Lock, Thread
from typing import Final, NamedTuple

import hiredis

from domain.log.protocol import APPEND_FUNCTION

_CHUNK: Final = 1 << 16


class Fault(Enum):
    """What may befall an append."""

    NONE = "nothing"
    REQUEST_LOST = "the connection breaks before the request arrives"
    REQUEST_LATE = "the connection breaks, and the request arrives after the next one was answered"
    REPLY_LOST = "the connection breaks before the reply arrives"
    REPLY_CUT = "the connection breaks in the middle of the reply"
    REPLY_LATE = "the reply comes when the client has given up"


class Moment(Enum):
    """Where in the life of an append a strike falls."""

    ARRIVING = "before the server gets the request"
    TAKEN = "when the request was handed to the server"
    ANSWERED = "after the server answered, and before its client hears of it (it never will)"


class Strike(NamedTuple):
    """What is done at a moment of an append, while the append waits."""

    moment: Moment
    act: Callable[[], None]


class Proxy:
    """Listens on a loopback port, forwards to a server.

    `plan` is the faults of the next appends, in order, and `strikes` what strikes them.
    """

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.plan: deque[Fault] = deque()
        self.strikes: deque[Strike] = deque()
        #: Requests that wait for the next append to be answered.
        self._late: list[bytes] = []
        self._lock = Lock()
        self.delivered_late = 0
        #: How many connections were turned away because the way is cut.
        self.refused = 0
        self._closing = Event()
        self._is_cut = False
        self._open: set[socket.socket] = set()
        self._thread = Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"

    def close(self) -> None:
        """Breaks every connection and stops listening."""
        self._closing.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.break_connections()
        self._thread.join()

    def break_connections(self) -> None:
        """Breaks every connection there is; new ones get through."""
        for connection in list(self._open):
            _break(connection)

    @contextmanager
    def cut(self) -> Iterator[None]:
        """For the time of the block nobody gets through: connections break, and new ones as soon as they are made."""
        self._is_cut = True
        self.break_connections()
        try:
            yield
        finally:
            self._is_cut = False

    def deliver_late_requests(self) -> None:
        """Sends the requests that were held back, on connections of their own, and waits for their answers."""
        with self._lock:
            late, self._late = self._late, []
        for request in late:
            with socket.create_connection(self._server) as upstream:
                upstream.sendall(request)
                upstream.recv(_CHUNK)
                self.delivered_late += 1

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            if self._is_cut:
                self.refused += 1
                _break(client)
                continue
            try:
                upstream = socket.create_connection(self._server)
            except OSError:
                _break(client)  # the server is away, and so it looks from here
                continue
            self._open |= {client, upstream}
            Thread(target=self._serve, args=(client, upstream), daemon=True).start()

    def _serve(self, client: socket.socket, upstream: socket.socket) -> None:
        """One connection: requests that came together, their replies, the next. Clients of the log never send ahead."""
        try:
            while True:
                count, request = _commands(client)
                fault, strike = self._what_befalls(request)
                if strike and strike.moment is Moment.ARRIVING:
                    strike.act()
                if fault is Fault.REQUEST_LOST:
                    return
                if fault is Fault.REQUEST_LATE:
                    with self._lock:
                        self._late.append(request)
                    return
                upstream.sendall(request)
                if strike and strike.moment is Moment.TAKEN:
                    strike.act()
                _, reply = _messages(upstream, count)
                if strike and strike.moment is Moment.ANSWERED:
                    strike.act()
                    return
                if not self._forward(client, reply, fault):
                    return
                if APPEND_FUNCTION.encode() in request:
                    self.deliver_late_requests()
        except OSError:
            pass
        finally:
            for connection in (client, upstream):
                self._open.discard(connection)
                _break(connection)

    def _what_befalls(self, request: bytes) -> tuple[Fault, Strike | None]:
        if APPEND_FUNCTION.encode() not in request:
            return Fault.NONE, None
        with self._lock:
            fault = self.plan.popleft() if self.plan else Fault.NONE
            return fault, self.strikes.popleft() if self.strikes else None

    def _forward(self, client: socket.socket, reply: bytes, fault: Fault) -> bool:
        """Hands a reply on, as far as the fault lets it; False if the connection is to break."""
        match fault:
            case Fault.REPLY_LOST:
                return False
            case Fault.REPLY_CUT:
                client.sendall(reply[: len(reply) // 2])
                return False
            case Fault.REPLY_LATE:
                # Until the client gives up and closes; then there is nobody to hand it to.
                client.recv(1)
                return False
            case _:
                client.sendall(reply)
                return True


@contextmanager
def proxied(url: str) -> Iterator[Proxy]:
    """A proxy before the server at `url`."""
    host, _, port = url.removeprefix("redis://").partition("/")[0].partition(":")
    proxy = Proxy(host, int(port))
    try:
        yield proxy
    finally:
        proxy.close()


def _commands(connection: socket.socket) -> tuple[int, bytes]:
    """The commands that came together: how many, and their bytes; none is cut in two. OSError at the end."""
    received = b""
    while not (count := _whole_commands(received)):
        if not (chunk := connection.recv(_CHUNK)):
            raise ConnectionError("closed")
        received += chunk
    return count, received


def _whole_commands(data: bytes) -> int:
    """How many commands these bytes are; 0 if they end in the middle of one."""
    count = at = 0
    while at < len(data):
        left = 1
        while left:
            end = data.find(b"\r\n", at)
            if end < 0:
                return 0
            kind, number = data[at : at + 1], int(data[at + 1 : end])
            left += number - 1 if kind == b"*" else -1
            at = end + 2 + (number + 2 if kind == b"$" else 0)
        count += 1
    return count if at == len(data) else 0


def _messages(connection: socket.socket, count: int = 1) -> tuple[int, bytes]:
    """So many replies, and those that came with them: how many, and their bytes. OSError at the end."""
    reader, found, received = hiredis.Reader(), 0, b""
    while found < count or reader.has_data():
        if not (chunk := connection.recv(_CHUNK)):
            raise ConnectionError("closed")
        received += chunk
        reader.feed(chunk)
        while reader.has_data() and reader.gets() is not False:
            found += 1
    return found, received


def _break(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
