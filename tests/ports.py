"""Ports for what a test starts: no other process that runs tests has them, nor does a server that picks its own."""

from __future__ import annotations

import os
import socket
from itertools import cycle
from typing import Final

#: Beyond those that the kernel gives to connections, and those that Muster's servers pick by chance.
_FIRST: Final = 61_000
#: How many a process of xdist has, all of which are used before one is used again.
_EACH: Final = 500
_OURS: Final = _FIRST + _EACH * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw8").removeprefix("gw")) % 9)
_NEXT: Final = cycle(range(_OURS, _OURS + _EACH))


def own_port(*, in_a_row: int = 1) -> int:
    """A loopback port that is this test's, and as many after it as are asked for."""
    while True:
        first, *others = [next(_NEXT) for _ in range(in_a_row)]
        if others == list(range(first + 1, first + in_a_row)) and all(map(_is_free, (first, *others))):
            return first


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as a server will: what is closed does not count
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
