"""Long work that a person waits for: how far it is, how fast it may go, and whether it is to stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Event
from typing import Final

#: The longest pause between two signs of life, in seconds.
PAUSE_S: Final = 0.5


class Stopped(Exception):
    """The work was told to stop, between two steps: what is done is done, what is not is as it was."""


class Pace:
    """Counts the events that work has gone through, of about `total` (0: nobody knows), and says so.

    With `per_s`, no more events a second than that. `stop` ends the work after the step it is in.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        *,
        verb: str,
        total: int = 0,
        per_s: float | None = None,
        stop: Event | None = None,
    ) -> None:
        self._say = say
        self._verb = verb
        self._total = total
        self._per_s = per_s
        self._stop = stop or Event()
        self._began = time.monotonic()
        self.events = 0

    @property
    def seconds(self) -> float:
        """How long it has gone on."""
        return max(1e-9, time.monotonic() - self._began)

    @property
    def per_s(self) -> float | None:
        """Events a second so far; None before the first."""
        return self.events / self.seconds if self.events else None

    def took(self, events: int, alive: Callable[[], None] = lambda: None) -> None:
        """The work went through more events; returns when it may go on. `alive` is called while it waits.

        Raises Stopped.
        """
        self.events += events
        self._say(self._line())
        while True:
            if self._stop.is_set():
                raise Stopped
            ahead_s = self.events / self._per_s - self.seconds if self._per_s else 0.0
            if ahead_s <= 0:
                return
            alive()
            self._stop.wait(min(PAUSE_S, ahead_s))

    def _line(self) -> str:
        rate = self.per_s or 0.0
        line = f"{self._verb} {self.events:,} events"
        if self._total > self.events and rate:
            left_s = (self._total - self.events) / rate
            return f"{line} of about {self._total:,}, {rate:,.0f}/s, about {left_s:,.0f} s left"
        return f"{line}, {rate:,.0f}/s"
