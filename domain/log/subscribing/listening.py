"""Hearing that there is something new: one connection follows all feeds, for all subscriptions of a log.

What is heard is a hint and nothing more. A subscription reads on from its own place whenever it hears something, and
what it misses hearing of it finds the next time; so nothing depends on this. Whenever the follower itself may have
missed something (it begins, was cut off, or finds other totals than it read), everybody hears of everything.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from contextlib import AbstractContextManager, nullcontext
from threading import BoundedSemaphore, Event, Lock, Thread
from typing import Any, Final, Protocol

from domain.errors import MusterError
from domain.log.connection import raised
from domain.log.exchange import Sending, Wire
from domain.log.feed import parse_feed_entry
from domain.log.keys import Keyspace

logger = logging.getLogger(__name__)

#: How long the server is to wait for something new, in ms, unless commands time out sooner.
BLOCK_MS: Final = 100
#: How many entries of each feed are heard at a time.
HEARD_ENTRIES: Final = 256
#: How often running totals are compared with what was heard, in seconds.
COMPARE_EVERY_S: Final = 1.0
#: How many subscriptions of a log read at a time, each on a connection: however many there are.
READERS: Final = 16
#: How long to wait for a thread to end, in seconds.
JOIN_S: Final = 1.0
#: The longest pause after a failure, in seconds.
LONGEST_PAUSE_S: Final = 1.0


class Listener(Protocol):
    """Who wants to hear."""

    def heard(self, partitions: Collection[int] | None) -> None:
        """There may be something new in these partitions; None: anywhere. Called in whichever thread hears it."""
        ...

    def end(self) -> None:
        """The log is closed."""
        ...


class Listeners:
    """Who listens to what: to all partitions, or to one session."""

    def __init__(self, keyspace: Keyspace) -> None:
        self.turns: AbstractContextManager[object] = nullcontext()
        self._keyspace = keyspace
        self._to_all: set[Listener] = set()
        self._to_session: dict[str, set[Listener]] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._to_all) + sum(map(len, self._to_session.values()))

    def add(self, listener: Listener, session: str | None) -> None:
        with self._lock:
            (self._to_all if session is None else self._to_session.setdefault(session, set())).add(listener)

    def remove(self, listener: Listener, session: str | None) -> None:
        with self._lock:
            if session is None:
                self._to_all.discard(listener)
            elif session in self._to_session:
                self._to_session[session].discard(listener)
                if not self._to_session[session]:
                    del self._to_session[session]

    def end(self) -> None:
        """The log is closed."""
        with self._lock:
            told = [*self._to_all, *(one for listeners in self._to_session.values() for one in listeners)]
            self._to_all.clear()
            self._to_session.clear()
        for listener in told:
            listener.end()

    def tell(self, partition: int, sessions: Iterable[str]) -> None:
        """Something was written to sessions of a partition."""
        with self._lock:
            told = [*self._to_all]
            for session in set(sessions):
                told += self._to_session.get(session, ())
        for listener in told:
            listener.heard((partition,))

    def tell_all(self, partition: int | None = None) -> None:
        """Anything may have been written to a partition, or to all."""
        with self._lock:
            told = [*self._to_all]
            for session, listeners in self._to_session.items():
                if partition is None or self._keyspace.partition_of(session) == partition:
                    told += listeners
        for listener in told:
            listener.heard(None if partition is None else (partition,))


class _Nobody:
    def heard(self, partitions: Collection[int] | None) -> None:
        pass

    def end(self) -> None:
        pass


_NOBODY: Final = _Nobody()


class Following:
    """Follows the feeds of all partitions, a turn at a time. Does no I/O."""

    def __init__(self, keyspace: Keyspace, listeners: Listeners, timeout_s: float) -> None:
        self._keyspace = keyspace
        self._listeners = listeners
        self._block_ms = max(1, min(BLOCK_MS, int(timeout_s * 500)))
        self._partition_of = {keys.feed.encode(): at for at, keys in enumerate(keyspace.partitions)}
        self._heard: list[int] = []
        self._compared = 0.0
        self._failures = 0

    def turn(self) -> Wire[None]:
        """Waits for something new, and tells of it."""
        if not self._heard:
            self._heard = yield from self._totals()
            self._listeners.tell_all()
        feeds = [keys.feed for keys in self._keyspace.partitions]
        command = ["XREAD", "COUNT", HEARD_ENTRIES, "BLOCK", self._block_ms, "STREAMS", *feeds]
        # Once: after a failure all begins again at the totals, or too much to hear at once would stay too much.
        (reply,) = yield Sending([[*command, *(f"{total}-0" for total in self._heard)]], once=True)
        for feed, entries in raised(reply) or ():
            self._hear(self._partition_of[feed], entries)
        self._failures = 0
        if not reply or time.monotonic() - self._compared > COMPARE_EVERY_S:
            yield from self._compare()

    def failed(self, error: Exception) -> float:
        """Notes that a turn failed; returns after how many seconds the next may begin."""
        level = logging.WARNING if self._failures == 1 else logging.DEBUG  # a connection that broke is no trouble yet
        about = {"action": "subscription.feeds_unfollowed"}
        text = "the feeds cannot be followed; subscriptions look for themselves meanwhile: %s"
        logger.log(level, text, error, extra=about)
        self._failures += 1
        self._heard = []
        self._listeners.tell_all()
        return random.uniform(0.5, 1) * min(LONGEST_PAUSE_S, 0.05 * 2.0 ** min(self._failures, 8))

    def _hear(self, partition: int, entries: list[Any]) -> None:
        found = [parse_feed_entry(entry) for entry in entries]
        self._heard[partition] = found[-1].position
        if all(entry.spans for entry in found):
            self._listeners.tell(partition, (span.session for entry in found for span in entry.spans))
        else:
            self._listeners.tell_all(partition)

    def _compare(self) -> Wire[None]:
        """A feed that was trimmed, or lost its end, tells of nothing; the totals do."""
        totals = yield from self._totals()
        for partition, total in enumerate(totals):
            if total != self._heard[partition]:
                self._listeners.tell_all(partition)
        self._heard = totals
        self._compared = time.monotonic()

    def _totals(self) -> Wire[list[int]]:
        replies = yield Sending([["HMGET", keys.meta, "total"] for keys in self._keyspace.partitions], once=True)
        return [int(raised(reply)[0] or 0) for reply in replies]


class FollowingThread:
    """Follows the feeds in a thread, while anybody listens."""

    def __init__(self, keyspace: Keyspace, drive: Callable[[Wire[None]], None], timeout_s: float) -> None:
        self.listeners = Listeners(keyspace)
        self._timeout_s = timeout_s
        self._keyspace = keyspace
        self._drive = drive
        self.turns = BoundedSemaphore(READERS)
        self._lock = Lock()
        self._running: tuple[Thread, Event, int] | None = None

    def add(self, listener: Listener, session: str | None) -> None:
        with self._lock:
            self.listeners.add(listener, session)
            if self._running is None or self._running[2] != os.getpid():  # in a forked child there is no thread
                stop = Event()
                thread = Thread(target=self._run, args=(stop,), name="muster-feeds", daemon=True)
                self._running = (thread, stop, os.getpid())
                thread.start()

    def remove(self, listener: Listener, session: str | None) -> None:
        with self._lock:
            self.listeners.remove(listener, session)
            if len(self.listeners):
                return
            running, self._running = self._running, None
        if running is not None:
            thread, stop, process = running
            stop.set()
            if process == os.getpid():
                thread.join(JOIN_S)  # where the server is away, it ends by itself

    def close(self) -> None:
        """Ends all that listens."""
        self.listeners.end()
        self.remove(_NOBODY, None)

    def _run(self, stop: Event) -> None:
        following = Following(self._keyspace, self.listeners, self._timeout_s)
        while not stop.is_set():
            try:
                self._drive(following.turn())
            except (MusterError, OSError, ValueError) as error:
                stop.wait(following.failed(error))


class FollowingTask:
    """Follows the feeds in a task of the event loop, while anybody listens."""

    def __init__(self, keyspace: Keyspace, drive: Callable[[Wire[None]], Awaitable[None]], timeout_s: float) -> None:
        self.listeners = Listeners(keyspace)
        self._timeout_s = timeout_s
        self._keyspace = keyspace
        self._drive = drive
        self.turns = asyncio.Semaphore(READERS)
        self._task: asyncio.Task[None] | None = None

    def add(self, listener: Listener, session: str | None) -> None:
        self.listeners.add(listener, session)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="muster-feeds")

    async def remove(self, listener: Listener, session: str | None) -> None:
        self.listeners.remove(listener, session)
        if not len(self.listeners) and self._task is not None:
            task, self._task = self._task, None
            task.cancel()
            await asyncio.wait([task])

    async def close(self) -> None:
        """Ends all that listens."""
        self.listeners.end()
        await self.remove(_NOBODY, None)

    async def _run(self) -> None:
        following = Following(self._keyspace, self.listeners, self._timeout_s)
        # Not for ever: where a connection breaks just then, the error of closing it can take a cancellation's place.
        while self._task is asyncio.current_task():
            try:
                await self._drive(following.turn())
            except (MusterError, OSError, ValueError) as error:
                await asyncio.sleep(following.failed(error))
