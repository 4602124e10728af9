"""What a process holds: what is more of it after something is over than before was leaked."""

from __future__ import annotations

import gc
import os
import threading
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from domain.log.subscribing.subscription import Subscribing


class Held(Struct, frozen=True):
    """Threads, open sockets, and subscriptions of a process."""

    threads: int
    sockets: int
    subscriptions: int


def held() -> Held:
    """What this process holds now."""
    gc.collect()
    sockets = 0
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            sockets += os.readlink(f"/proc/self/fd/{number}").startswith("socket:")
    alive = sum(isinstance(found, Subscribing) for found in gc.get_objects())
    return Held(threading.active_count(), sockets, alive)


def memory_mib() -> float:
    """The memory of this process that is in RAM."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
