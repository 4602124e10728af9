"""Being told to stop by a signal, whatever is being waited for just then."""

from __future__ import annotations

from queue import Empty, SimpleQueue
from threading import Event


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
        if not self._is_set:
            try:
                self._told.get(timeout=None if timeout is None else max(0.0, timeout))
            except Empty:
                return self._is_set
            self._told.put(None)  # for others who wait
        return True
