"""Playing a replay to a callback: at a speed, with pause, resume, seek and stop from any thread or signal handler."""

from __future__ import annotations

import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Final

from msgspec import Struct

from domain.errors import Damaged, Refused
from projections.replaying import Replay, Replayed, ReplayPosition

#: As fast as possible.
MAX: Final = float("inf")


class Played(Struct, frozen=True):
    """What was played: so many events, up to `position` (None: none); `is_whole`: to the end, not stopped before."""

    events: int
    position: ReplayPosition | None
    is_whole: bool
    damages: list[Damaged]


class Player:
    """Plays a replay. At speed 1 events come as far apart as they were written, at 10 ten times as fast; a pause longer
    than `longest_pause_s` is cut to that.

    `clock` and `wait` are for tests: the time in seconds, and what is told within so many seconds (None: nothing was).
    """

    def __init__(
        self,
        replay: Replay,
        speed: float = MAX,
        *,
        longest_pause_s: float = MAX,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float | None], Callable[[], None] | None] | None = None,
    ) -> None:
        if not speed > 0:
            raise Refused("FIELD_INVALID", f"a speed is more than 0, not {speed:g}")
        self._replay = replay
        self._speed = speed
        self._longest_pause_s = longest_pause_s
        self._clock = clock
        self._wait = wait or self._told
        #: A queue that may be put into at any moment, also by a signal handler while its own thread waits for it.
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._is_paused = self._is_stopped = False
        #: When the event that was played last was due by the clock, and its server time; None: the next one is due.
        self._due: tuple[float, int] | None = None

    def pause(self) -> None:
        """Plays nothing until it is resumed."""
        self._commands.put(self._pause)

    def resume(self) -> None:
        """Goes on where it was paused."""
        self._commands.put(self._resume)

    def stop(self) -> None:
        """Ends the playing after the event that is being played."""
        self._commands.put(self._stop)

    def seek(self, to: int | ReplayPosition) -> None:
        """Goes on with the first event at or after a server time in ms, or after a position; at once."""
        self._commands.put(lambda: self._seek(to))

    def play(self, to: Callable[[Replayed], None]) -> Played:
        """Gives each event to `to` when it is due, until there is none left or it is stopped.

        What `to` raises ends the playing; the event it was given is not counted.
        """
        events, position = 0, None
        while self._obeys() and (replayed := next(self._replay, None)) is not None:
            if not self._is_due(replayed):
                if self._is_stopped:
                    break
                continue  # it was told to go elsewhere meanwhile
            to(replayed)
            events, position = events + 1, replayed.position
        return Played(events, position, not self._is_stopped, self._replay.damages)

    # -- the thread that plays -----------------------------------------------------------------------------------------

    def _obeys(self) -> bool:
        """Does what it was told, as long as it is paused; whether it is to go on."""
        while not self._is_stopped:
            if not self._listens(None if self._is_paused else 0) and not self._is_paused:
                break
        return not self._is_stopped

    def _is_due(self, replayed: Replayed) -> bool:
        """Waits until an event is due; False if it was told to play another one next, or none."""
        before = self._due
        if before is None or self._speed == MAX:
            self._due = self._clock(), replayed.at_ms
            return True
        gap_s = min((replayed.at_ms - before[1]) / 1000 / self._speed, self._longest_pause_s)
        while True:
            left_s = before[0] + gap_s - self._clock()
            if left_s <= 0 and not self._is_paused:
                self._due = before[0] + gap_s, replayed.at_ms
                return True
            self._listens(None if self._is_paused else left_s)
            before = self._due
            if before is None or self._is_stopped:
                return False

    def _listens(self, seconds: float | None) -> bool:
        """Does what it is told within so many seconds; whether it was told anything. A pause takes no time."""
        began, was_paused = self._clock(), self._is_paused
        command = self._wait(seconds)
        if command is None:
            return False
        if was_paused and self._due is not None:
            self._due = self._due[0] + self._clock() - began, self._due[1]
        command()
        return True

    def _told(self, seconds: float | None) -> Callable[[], None] | None:
        try:
            return self._commands.get(timeout=seconds) if seconds != 0 else self._commands.get_nowait()
        except Empty:
            return None

    def _pause(self) -> None:
        self._is_paused = True

    def _resume(self) -> None:
        self._is_paused = False

    def _stop(self) -> None:
        self._is_stopped = True

    def _seek(self, to: int | ReplayPosition) -> None:
        self._replay.seek(to)
        self._due = None
