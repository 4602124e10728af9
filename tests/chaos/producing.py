"""Producers that go on whatever happens to the servers, and the judge that holds what they were told against the log.

A producer repeats an append until it is acknowledged or can never be; what it was told it keeps apart from its log's
own witness, so that the judge does not depend on what is judged. Sessions are shared: the seqs that one producer lost
are soon taken by the commits of others.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import Event as Flag
from threading import Thread
from typing import Final, TypeAlias

from msgspec import Struct

from domain import Damaged, Event, Misconfigured, MusterError, Receipt, SessionLog, Unavailable
from domain.log import Connecting
from tests.conftest import ENVIRONMENT
from tests.domain.log.logs import assert_chained
from tests.waiting import wait_until

#: Sessions that all producers append to. One that a producer found damaged it leaves for the next in line.
SESSIONS: Final = 6
#: A pause after each append, so that the producers leave the processor to those who elect a primary.
_PACE_S: Final = 0.002
#: What ends a producer for good: there is nothing left to append to.
_ENDS: Final = frozenset({"STORE_MISSING", "STORE_CHANGED", "FUNCTIONS_MISSING"})

#: A commit as a receipt names it: session, first seq, last seq, digest.
Named: TypeAlias = tuple[str, int, int, str | None]


def name(receipt: Receipt) -> Named:
    return receipt.session, receipt.first_seq, receipt.last_seq, receipt.digest


class Told(Struct):
    """What one producer was told."""

    acknowledged: list[Receipt]
    #: Commits that its log said are lost.
    named: set[Named]
    #: How often each error was raised, by code.
    errors: Counter[str]
    #: What must never be raised, whatever happens.
    unexpected: list[str]


class Producer:
    """Appends commits of one to three events in a thread of its own, through a log of its own."""

    #: How many sessions it appends to, with all others of its kind.
    sessions = SESSIONS

    def __init__(self, number: int, log: SessionLog, seed: int) -> None:
        self.log = log
        self.told = Told([], set(), Counter(), [])
        #: Answers of any kind, so that a test can wait for "it tried" where nothing is acknowledged.
        self.answers = 0
        self.has_ended = False
        self._number = number
        self._chance = random.Random(seed)
        self._generation = Counter[int]()
        self._events = 0
        self._stopping = Flag()
        self._thread = Thread(target=self._run, name=f"producer-{number}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends after the append that is under way."""
        self._stopping.set()
        self._thread.join()

    def compare(self) -> None:
        """Asks the log what is lost of all that it was told."""
        for loss in self.log.compare():
            self.told.named.update(map(name, loss.receipts))

    def _run(self) -> None:
        while not self._stopping.is_set() and not self.has_ended:
            place = self._chance.randrange(self.sessions)
            session = f"s-{place}-{self._generation[place]}"
            if self._append(session, self._next_events()) is Damaged:
                self._generation[place] += 1

    def _next_events(self) -> list[Event]:
        first = self._events
        self._events += self._chance.randint(1, 3)
        return [Event.of("tool.called", actor="a", id=f"{self._number}:{n}") for n in range(first, self._events)]

    def _append(self, session: str, events: list[Event]) -> type[MusterError] | None:
        """Appends, again and again while it may help. Returns the class of the error that ended it, if one did."""
        while not self._stopping.wait(_PACE_S):
            try:
                self.told.acknowledged.append(self.log.append(session, events))
                return None
            except MusterError as error:
                self.told.errors[error.code] += 1
                if error.code in _ENDS:
                    self.has_ended = True
                    return Misconfigured
                if error.code in ("TAIL_LOST", "FORK"):
                    self.told.named.update(map(name, error.facts["lost"]))
                    return Damaged
                if not isinstance(error, Unavailable):
                    self.told.unexpected.append(str(error))
                    return type(error)
            finally:
                self.answers += 1
        return None


class Producers:
    """Several producers at once, and the judgement on what became of their commits."""

    def __init__(self, producers: Sequence[Producer]) -> None:
        self._producers = producers

    def wait_for(self, more: int) -> None:
        """Waits until each producer was acknowledged this often again, or can append no more."""
        before = [len(producer.told.acknowledged) for producer in self._producers]

        def went_on() -> bool:
            return all(
                producer.has_ended or len(producer.told.acknowledged) >= count + more
                for producer, count in zip(self._producers, before, strict=True)
            )

        wait_until(went_on, timeout_s=90, message=f"{more} more receipts for each producer; {self.errors()}")

    def wait_for_answers(self, more: int) -> None:
        """Waits until each producer got this many more answers, of any kind."""
        before = [producer.answers for producer in self._producers]

        def tried() -> bool:
            return all(
                producer.has_ended or producer.answers >= count + more
                for producer, count in zip(self._producers, before, strict=True)
            )

        wait_until(tried, timeout_s=90, message=f"{more} more answers for each producer; {self.errors()}")

    def stop(self) -> None:
        for producer in self._producers:
            producer._stopping.set()
        for producer in self._producers:
            producer.stop()

    def compare(self) -> None:
        for producer in self._producers:
            producer.compare()

    def acknowledged(self) -> list[Receipt]:
        return [receipt for producer in self._producers for receipt in producer.told.acknowledged]

    def named(self) -> set[Named]:
        return set().union(*(producer.told.named for producer in self._producers))

    def errors(self) -> Counter[str]:
        return sum((producer.told.errors for producer in self._producers), Counter())

    def unexpected(self) -> list[str]:
        return [error for producer in self._producers for error in producer.told.unexpected]


@contextmanager
def producing(
    url: str,
    count: int,
    *,
    seed: int,
    durability: str = "memory",
    namespace: str = "main",
    of: type[Producer] = Producer,
) -> Iterator[Producers]:
    """Producers on the store at `url`, which append until they are stopped, or else to the end of the block."""
    # Short: a producer that repeats by itself loses nothing by giving up early, and the test none of its time.
    connecting = Connecting(url, timeout_s=1.0, retry_for_s=1.0)
    logs = [
        SessionLog.open(connecting, environment=ENVIRONMENT, namespace=namespace, durability=durability)
        for _ in range(count)
    ]
    producers = Producers([of(number, log, seed + number) for number, log in enumerate(logs)])
    for producer in producers._producers:
        producer.start()
    try:
        yield producers
    finally:
        producers.stop()
        for log in logs:
            log.close()


def lost(log: SessionLog, receipts: Iterable[Receipt]) -> set[Named]:
    """Which of the acknowledged commits the log does not hold, by seq and digest."""
    told: dict[str, set[Named]] = {}
    for receipt in receipts:
        told.setdefault(receipt.session, set()).add(name(receipt))
    missing: set[Named] = set()
    for session, names in told.items():
        held = {(session, commit.first_seq, commit.last_seq, commit.digest) for commit in log.read(session)}
        missing |= names - held
    return missing


def disorder(log: SessionLog) -> list[str]:
    """Where the log breaks a law in itself: seqs and digests chain, no event is there twice, and each producer's events
    are in the order it appended them.
    """
    found = []
    for session in log.sessions():
        commits = list(log.read(session))
        assert_chained(session, commits, log.head(session))
        latest: dict[str, int] = {}
        for event in (event for commit in commits for event in commit.events):
            producer, _, number = event.id.partition(":")
            before = latest.get(producer, -1)
            if int(number) <= before:
                found.append(f"{session} holds event {event.id} after {producer}:{before}")
            latest[producer] = max(before, int(number))
    return found
