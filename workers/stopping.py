"""Being told to stop by a signal, whatever is being waited for just then."""

from __future__ import annotations

import time
from queue import Empty, SimpleQueue
from threading import Event
from typing import Final

#: For how long at a time a thread waits, in seconds. A signal that comes between the interpreter's look for signals and
#: the beginning of a wait interrupts nothing: its handler runs when that wait ends.
AT_A_TIME_S: Final = 0.25


class Stop(Event):
    """An event that a signal handler may set while its own thread waits for it.

    `threading.Event` hangs there for good: the handler runs between two steps of `wait`, which holds the lock that
    `set` needs. A SimpleQueue may be put into at any moment.
    """

    def __init__(self) -> None:
        super().__init__()
        self._is_set = False
        self._told: SimpleQueue[None] = SimpleQueue()

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        self._told.put(None)

    def wait(self, timeout: float | None = None) -> bool:
        until = float("inf") if timeout is None else time.monotonic() + timeout
        while not self._is_set:
            left = max(0.0, until - time.monotonic())
            try:
                self._told.get(timeout=min(left, AT_A_TIME_S))
            except Empty:
                if left <= AT_A_TIME_S:
                    break
            else:
                self._told.put(None)  # for others who wait
        return self._is_set
