"""Many producers and readers at once, over a network and a server that fail at random: every history keeps the laws."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from threading import Event as Flag
from typing import Any, Final

import pytest
from msgspec import structs

from domain import AsyncSessionLog, Commit, Event, MemoryLog, MusterError, OutcomeUnknown, SessionLog, Unavailable
from domain.log import Connecting
from domain.log.contract import AppendRequest, Expected
from tests.chaos.effort import FULL, seeded
from tests.chaos.history import Appended, History, broken
from tests.chaos.proxy import Fault, Proxy
from tests.conftest import ENVIRONMENT, Store
from workers.embedded import EmbeddedServer

PRODUCERS: Final = 8
#: Of these, so many are tasks of one event loop, and so many share one blocking log.
ASYNCIO, SHARING = 3, 3
READERS: Final = 2
APPENDS: Final = 300 if FULL else 30
SESSIONS: Final = ["s0", "s1", "s2"]
FAULTS: Final = [Fault.REQUEST_LOST, Fault.REQUEST_LATE, Fault.REPLY_LOST, Fault.REPLY_CUT]


# -- the run ---------------------------------------------------------------------------------------------------------


class Chaos:
    """One run: who produces, who reads, what fails."""

    def __init__(self, store: Store, server: EmbeddedServer, proxy: Proxy, chance: random.Random) -> None:
        self.history = History()
        self.kills = 0
        self._store = store
        self._server = server
        self._proxy = proxy
        self._chance = chance
        self._done = Flag()
        self._doubts: list[tuple[Appended, AppendRequest]] = []

    def run(self) -> None:
        """Returns when every producer has done its part and every doubt is settled."""
        with ThreadPoolExecutor(PRODUCERS + READERS + 1) as threads, self._open() as shared:
            chances = [random.Random(self._chance.random()) for _ in range(PRODUCERS + READERS + 1)]
            producing: list[Future[None]] = [threads.submit(self._produce_asyncio, chances[:ASYNCIO])]
            for number in range(ASYNCIO, PRODUCERS):
                log = shared if number < ASYNCIO + SHARING else None
                producing.append(threads.submit(self._produce, number, chances[number], log))
            others = [threads.submit(self._read, chances[PRODUCERS + number]) for number in range(READERS)]
            others.append(threads.submit(self._disturb, chances[-1]))
            try:
                for future in producing:
                    future.result()
            finally:
                self._done.set()
            for future in others:
                future.result()
        with self._store.open() as log:
            for append, doubt in self._doubts:
                self.history.settle(append, log.resolve(doubt))

    def _connecting(self, retry_for_s: float) -> Connecting:
        return Connecting(self._proxy.url, timeout_s=2, retry_for_s=retry_for_s)

    def _open(self, *, retry_for_s: float = 30) -> SessionLog:
        while True:
            try:
                return SessionLog.open(
                    self._connecting(retry_for_s), environment=ENVIRONMENT, namespace=self._store.namespace
                )
            except Unavailable:
                if retry_for_s:
                    raise

    def _produce(self, number: int, chance: random.Random, shared: SessionLog | None) -> None:
        # The last one sends once: its outcomes are unknown more often.
        log = shared or self._open(retry_for_s=0 if number >= PRODUCERS - 1 else 30)
        try:
            for n in range(APPENDS):
                session, events, exact = self._next(number, n, chance)
                expected = self._head_of(log, session) if exact else None
                append = self.history.invoke(session, [event.id for event in events], expected)
                with self._noting(append):
                    wish: Expected = "any" if expected is None else expected
                    self.history.complete(append, "ok", log.append(session, events, expected=wish))
        finally:
            if shared is None:
                log.close()

    def _produce_asyncio(self, chances: list[random.Random]) -> None:
        async def produce(log: AsyncSessionLog, number: int, chance: random.Random) -> None:
            for n in range(APPENDS):
                session, events, _ = self._next(number, n, chance)
                append = self.history.invoke(session, [event.id for event in events], None)
                with self._noting(append):
                    self.history.complete(append, "ok", await log.append(session, events))

        async def all_of_them() -> None:
            opening = AsyncSessionLog.open(
                self._connecting(30), environment=ENVIRONMENT, namespace=self._store.namespace
            )
            async with await opening as log:
                await asyncio.gather(*(produce(log, number, chance) for number, chance in enumerate(chances)))

        asyncio.run(all_of_them())

    @staticmethod
    def _next(number: int, n: int, chance: random.Random) -> tuple[str, list[Event], bool]:
        ids = [f"{number}-{n}-{k}" for k in range(chance.randrange(1, 4))]
        return chance.choice(SESSIONS), [Event.of("tool.called", actor="a", id=id) for id in ids], chance.random() < 0.3

    @staticmethod
    def _head_of(log: SessionLog, session: str) -> int | None:
        try:
            head = log.head(session)
        except MusterError:
            return None
        return head.seq if head is not None else 0

    def _noting(self, append: Appended) -> Any:
        return _Noting(self.history, append, self._doubts)

    def _read(self, chance: random.Random) -> None:
        """Reads whole sessions, straight from the server: one that is away is not read."""
        with SessionLog.open(
            Connecting(self._server.url, timeout_s=30, retry_for_s=30),
            environment=ENVIRONMENT,
            namespace=self._store.namespace,
        ) as log:
            while not self._done.is_set():
                session, invoked = chance.choice(SESSIONS), self.history.tick()
                self.history.read(session, invoked, list(log.read(session)))

    def _disturb(self, chance: random.Random) -> None:
        """Lets appends fail, and kills the server, until all is done."""
        while not self._done.wait(chance.uniform(0, 0.1)):
            self._proxy.plan.extend(chance.choices([*FAULTS, Fault.NONE, Fault.NONE], k=4))
            if chance.random() < 0.2:
                self._server.kill()
                time.sleep(chance.uniform(0, 0.05))
                self._server.restart()
                self.kills += 1
        self._proxy.plan.clear()
        with suppress(OSError):
            self._proxy.deliver_late_requests()


class _Noting:
    """Notes how an append ended, unless it was acknowledged."""

    def __init__(self, history: History, append: Appended, doubts: list[tuple[Appended, AppendRequest]]) -> None:
        self._history, self._append, self._doubts = history, append, doubts

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        if isinstance(error, OutcomeUnknown):
            (doubt,) = error.doubts
            self._doubts.append((self._append, doubt))
            self._history.complete(self._append, "unknown")
        elif isinstance(error, MusterError):
            self._history.complete(self._append, "refused")
        return isinstance(error, MusterError)


def test_no_history_under_faults_breaks_a_law(
    killable: EmbeddedServer, killable_store: Store, killable_proxy: Proxy
) -> None:
    """Eight producers, two readers, lost and late requests and replies, a server that dies: every law is kept."""
    chaos = Chaos(killable_store, killable, killable_proxy, seeded())
    chaos.run()

    log = killable_store.open()
    final = {session: list(log.read(session)) for session in SESSIONS}
    outcomes = [append.outcome for append in chaos.history.appends]
    print({name: outcomes.count(name) for name in sorted(set(outcomes))}, f"{chaos.kills} kills")
    assert broken(chaos.history, final) == []
    assert len(outcomes) == PRODUCERS * APPENDS
    assert outcomes.count("ok") > len(outcomes) / 3


# -- the checker -----------------------------------------------------------------------------------------------------


@pytest.fixture
def log() -> MemoryLog:
    ticks = iter(range(1_000_000))
    return MemoryLog(clock_ms=lambda: next(ticks))


@pytest.fixture
def history(log: MemoryLog) -> History:
    """A good history: two commits in order, one refused, one in doubt that is there, one that is not; and a reading."""
    history = History()
    history.complete(a := history.invoke("s", ["a"], None), "ok", log.append("s", event("a")))
    history.complete(history.invoke("s", ["no"], 0), "refused")
    history.complete(b := history.invoke("s", ["b", "c"], 1), "ok", log.append("s", [event("b"), event("c")]))
    history.complete(d := history.invoke("s", ["d"], None), "unknown")
    history.settle(d, log.append("s", event("d")))
    history.complete(e := history.invoke("s", ["e"], None), "unknown")
    history.settle(e, None)
    history.read("s", history.tick(), list(log.read("s")))
    assert a.completed < b.invoked < d.invoked < e.invoked
    return history


def event(id: str) -> Event:
    return Event.of("tool.called", actor="a", id=id)


def laws(history: History, commits: list[Commit]) -> set[str]:
    return {law.partition(":")[0] for law in broken(history, {"s": commits})}


def test_a_good_history_breaks_no_law(log: MemoryLog, history: History) -> None:
    """What really happened is possible."""
    assert broken(history, {"s": list(log.read("s"))}) == []


def _again(log: MemoryLog, id: str) -> list[Commit]:
    """The log's commits, with one more that holds this id, rightly chained."""
    log.append("s", [event(id)], expected=4)
    return list(log.read("s"))


#: What may be wrong with a history or with the final log, and the laws that it breaks.
BAD: Final[dict[str, tuple[set[str], Callable[[MemoryLog, History], list[Commit]]]]] = {}


def bad(*broken_laws: str) -> Callable[[Callable[[MemoryLog, History], list[Commit]]], None]:
    def add(spoil: Callable[[MemoryLog, History], list[Commit]]) -> None:
        BAD[spoil.__name__] = (set(broken_laws), spoil)

    return add


@bad("DENSE", "PLACE", "PREFIX")
def an_acknowledged_commit_is_lost(log: MemoryLog, history: History) -> list[Commit]:
    first, _, last = log.read("s")
    return [first, last]


@bad("PLACE", "ORDER")
def an_acknowledged_commit_is_there_twice(log: MemoryLog, history: History) -> list[Commit]:
    return _again(log, "a")


@bad("PLACE")
def a_receipt_names_another_digest(log: MemoryLog, history: History) -> list[Commit]:
    receipt = history.appends[0].receipt
    assert receipt is not None
    history.appends[0].receipt = structs.replace(receipt, digest="0" * 20)
    return list(log.read("s"))


@bad("REFUSED")
def a_refused_commit_is_there(log: MemoryLog, history: History) -> list[Commit]:
    history.appends[1].expected = None
    return _again(log, "no")


@bad("DENSE")
def a_body_was_altered(log: MemoryLog, history: History) -> list[Commit]:
    first, *others = log.read("s")
    return [structs.replace(first, at_ms=first.at_ms + 1), *others]


@bad("DOUBT")
def a_doubt_was_left_open(log: MemoryLog, history: History) -> list[Commit]:
    history.appends[3].settled = False
    return list(log.read("s"))


@bad("DOUBT")
def a_doubt_was_said_to_be_absent_and_is_there(log: MemoryLog, history: History) -> list[Commit]:
    history.appends[3].receipt = None
    return list(log.read("s"))


@bad("DOUBT")
def a_doubt_was_said_to_be_there_and_is_absent(log: MemoryLog, history: History) -> list[Commit]:
    history.appends[4].receipt = history.appends[3].receipt
    return list(log.read("s"))


@bad("EXPECTED")
def a_commit_is_not_where_it_had_to_be(log: MemoryLog, history: History) -> list[Commit]:
    history.appends[2].expected = 2
    return list(log.read("s"))


@bad("ORDER")
def a_later_commit_comes_first(log: MemoryLog, history: History) -> list[Commit]:
    a, _, b, *_ = history.appends
    # Now a was invoked after b had been acknowledged, and yet stands before it.
    b.invoked, b.completed, a.invoked, a.completed = 1, 2, 5, 6
    return list(log.read("s"))


@bad("PREFIX")
def a_reader_saw_what_is_not_there(log: MemoryLog, history: History) -> list[Commit]:
    history.reads[0].seen.append((5, "0" * 20, ("ghost",)))
    return list(log.read("s"))


@bad("PREFIX")
def a_reader_saw_a_gap(log: MemoryLog, history: History) -> list[Commit]:
    del history.reads[0].seen[1]
    return list(log.read("s"))


@bad("PREFIX")
def a_reader_missed_what_was_acknowledged(log: MemoryLog, history: History) -> list[Commit]:
    del history.reads[0].seen[1:]
    return list(log.read("s"))


@bad("STRANGER")
def something_is_there_that_nobody_appended(log: MemoryLog, history: History) -> list[Commit]:
    return _again(log, "ghost")


@pytest.mark.parametrize("name", BAD)
def test_a_bad_history_breaks_its_law(log: MemoryLog, history: History, name: str) -> None:
    """Each law has a history that breaks it and no other than it must: the checker names them."""
    expected, spoil = BAD[name]

    assert laws(history, spoil(log, history)) == expected
