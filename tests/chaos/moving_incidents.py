"""The sessions of `incidents`, moved while they are appended to by producers that know both places.

    python -m tests.chaos.moving_incidents [--sessions N] [--rate EVENTS_PER_S] [--batch N] [--fsync always]
        [--source redis7|valkey] [--subscribed]

prints what came of it: how many events are lost or doubled, whether both sides are equal, and how long sessions took no
appends; with `--subscribed` a member of a durable subscription works all the while, and goes along. It starts its own
servers: the distribution's Redis, and the embedded Valkey.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path
from threading import Event as Flag
from threading import Thread
from typing import Any, Final

from msgspec import Struct

from domain import Append, Conflict, Event, Receipt, SessionLog
from domain.codec import parse_line
from domain.log import Connecting, connect, create_store
from tests.domain.log.subscribing.member_processes import is_acknowledged
from tests.main_job.inputs import expected, lines_of
from tests.own_server import binary
from workers.embedded import EmbeddedServer
from workers.migration.ends import Address, opened
from workers.migration.moving import Moving, downtimes
from workers.migration.record import Migrations
from workers.pacing import Pace

PRODUCERS: Final = 4
ENVIRONMENT, NAMESPACE = "test", "incidents"


class Result(Struct, frozen=True):
    """What came of it. `while_moving` of the events were appended while their sessions were copied and moved."""

    sessions: int
    events: int
    while_moving: int
    lost: int
    doubled: int
    misplaced: int
    problems: int
    failed: int
    downtime_ms: dict[str, Any]
    seal_proof: str
    seconds: float
    #: How many events the member was not given, was given again after it had acknowledged them, or was given too early.
    not_given: int | None = None
    given_again: int | None = None
    out_of_order: int | None = None


class Producing(Thread):
    """A producer of some of the sessions, which appends the rest of their events, one a commit, in turn."""

    def __init__(self, log: SessionLog, rest: dict[str, list[Event]], rate: float | None) -> None:
        super().__init__()
        self.over = Flag()
        self.appended = 0
        self.failure: Exception | None = None
        self._log = log
        self._rest = rest
        self._rate = rate

    def run(self) -> None:
        began = time.monotonic()
        try:
            for session, event in self._in_turn():
                self._log.append(session, event)
                self.appended += not self.over.is_set()
                if self._rate is not None and not self.over.is_set():
                    self.over.wait(max(0.0, self.appended / self._rate - (time.monotonic() - began)))
        except Exception as failure:  # told by whoever joins
            self.failure = failure

    def _in_turn(self) -> Iterator[tuple[str, Event]]:
        for turn in zip_longest(*self._rest.values()):
            for session, event in zip(self._rest, turn, strict=True):
                if event is not None:
                    yield session, event


class Member(Thread):
    """A member of a durable subscription, which goes to where the sessions go. `given` is what it acknowledged."""

    def __init__(self, log: SessionLog, target: SessionLog) -> None:
        super().__init__()
        self.over = Flag()
        self.given: list[tuple[str, int]] = []
        #: What it took while it moved: of some of it the acknowledgement was for nothing.
        self.unsure: list[tuple[str, int]] = []
        self.failure: Exception | None = None
        self._log = log
        self._target = target

    def run(self) -> None:
        taken: list[tuple[str, int]] = []
        try:
            with self._log.subscribe_as("audit", after="beginning", ttl_ms=2000) as member:
                while not self.over.is_set() or not is_acknowledged(self._target, "audit"):
                    delivery = member.get(timeout_s=0.1)
                    taken += [] if delivery is None else [(delivery.session, delivery.seq)]
                    if delivery is None or len(taken) == 100:
                        try:
                            member.ack()
                            self.given += taken
                        except Conflict:  # it moved: what was not acknowledged is given again
                            self.unsure += taken
                        taken = []
        except Exception as failure:
            self.failure = failure

    def told(self, events: dict[str, list[Event]]) -> tuple[int, int, int]:
        """How many events it was not given, was given again, was given before an earlier one of its session."""
        again = sum(count - 1 for count in Counter(self.given).values())
        wanted = {(session, seq) for session, found in events.items() for seq in range(1, len(found) + 1)}
        reached: Counter[str] = Counter()
        early = 0
        for session, seq in self.given:
            early += seq < reached[session]
            reached[session] = max(reached[session], seq)
        return len(wanted - set(self.given) - set(self.unsure)), again, early


def histories(sessions: int | None) -> dict[str, list[Event]]:
    """The events of the first so many sessions of the file, in order."""
    found: dict[str, list[Event]] = {}
    for line in lines_of("incidents"):
        session, event = parse_line(line)
        if session in found or sessions is None or len(found) < sessions:
            found.setdefault(session, []).append(event)
    return found


def load(log: SessionLog, begun: dict[str, list[Event]]) -> None:
    """Appends what was there before, a commit a session."""
    names = list(begun)
    for at in range(0, len(names), 500):
        appends = [Append(name, tuple(begun[name])) for name in names[at : at + 500] if begun[name]]
        assert all(isinstance(receipt, Receipt) for receipt in log.append_many(appends))


def move(
    there: Address, here: Address, *, sessions: int | None, rate: float | None, batch: int, subscribed: bool = False
) -> Result:
    """Loads half of each history, and moves the sessions while producers append the other half."""
    events = histories(sessions)
    with ExitStack() as closing:
        ends = closing.enter_context(opened(there, here))
        load(ends.source.log, {name: list_[: len(list_) // 2] for name, list_ in events.items()})
        following: dict[str, Any] = {"environment": there.environment, "namespace": there.namespace}
        following["moved"] = [here.connecting]
        member = None
        if subscribed:
            member = Member(closing.enter_context(SessionLog.open(there.connecting, **following)), ends.target.log)
            member.start()
        producers = []
        for number in range(PRODUCERS):
            log = closing.enter_context(SessionLog.open(there.connecting, **following))
            names = list(events)[number::PRODUCERS]
            rest = {name: events[name][len(events[name]) // 2 :] for name in names}
            producers.append(Producing(log, rest, None if rate is None else rate / PRODUCERS))
        began = time.monotonic()
        migrations = Migrations(ends.target.store)
        migration = migrations.create(ends, "move", {}, "tester")
        work = Moving(
            ends, migration, who="tester", pace=Pace(lambda _: None, verb=""), say=lambda _: None, batch=batch
        )
        for producer in producers:
            producer.start()
        with work.phase("copying", "copied"):
            work.copy()
        with work.phase("cutting over", "moved"):
            failed = work.cutover().failed
            failed += work.cutover().failed  # those that began at the source since
        seconds = time.monotonic() - began
        for producer in producers:
            producer.over.set()
        for producer in producers:
            producer.join()
            if producer.failure is not None:
                raise producer.failure
        told: tuple[int | None, int | None, int | None] = (None, None, None)
        if member is not None:
            member.over.set()
            member.join()
            if member.failure is not None:
                raise member.failure
            told = member.told(events)
        with work.phase("moved", "moved"):
            problems = work.verify().problems
        moves = dict(migrations.moves(migration.id))
        lost, doubled, misplaced = counted(ends.target.log, events)
        return Result(
            len(events), sum(map(len, events.values())), sum(producer.appended for producer in producers),
            lost, doubled, misplaced, len(problems), failed,
            downtimes(moves.values()), migrations.get(migration.id).proof, round(seconds, 2), *told,
        )  # fmt: skip


def counted(log: SessionLog, events: dict[str, list[Event]]) -> tuple[int, int, int]:
    """How many events of the file are not on the target, are there twice, or not in their place."""
    lost = doubled = misplaced = 0
    for session, wanted in events.items():
        held = [event.id for commit in log.read(session) for event in commit.events]
        times = Counter(held)
        lost += sum(not times[event.id] for event in wanted)
        doubled += sum(count - 1 for count in times.values())
        misplaced += held != [event.id for event in wanted]
    return lost, doubled, misplaced


def seqs_are_as_expected(here: Address, sessions: Sequence[str]) -> bool:
    """Whether each session stands where the file's own count says."""
    should = expected("incidents").sessions
    with SessionLog.open(here.connecting, environment=here.environment, namespace=here.namespace) as log:
        heads = log.heads(sessions)
    return all(head is not None and head.seq == should[one].seq for one, head in zip(sessions, heads, strict=True))


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sessions", type=int)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--fsync", choices=("everysec", "always"), default="everysec")
    parser.add_argument("--source", choices=("redis7", "valkey"), default="redis7")
    parser.add_argument("--subscribed", action="store_true")
    options = parser.parse_args(arguments)
    with ExitStack() as stopping:
        ends = []
        other = "valkey" if options.source == "redis7" else "redis7"
        for side, kind, partitions in (("source", options.source, 16), ("target", other, 32)):
            folder = Path(stopping.enter_context(tempfile.TemporaryDirectory(prefix=f"moving-{side}-")))
            server = EmbeddedServer(folder, binary=binary(kind), appendfsync=options.fsync)
            stopping.enter_context(server)
            with connect(Connecting(server.url)) as client:
                create_store(client, environment=ENVIRONMENT, namespace=NAMESPACE, partitions=partitions)
            ends.append(Address(Connecting(server.url), ENVIRONMENT, NAMESPACE))
        result = move(
            ends[0], ends[1], sessions=options.sessions, rate=options.rate, batch=options.batch,
            subscribed=options.subscribed,
        )  # fmt: skip
        right = seqs_are_as_expected(ends[1], list(histories(options.sessions)))
    print(json.dumps({name: getattr(result, name) for name in result.__struct_fields__} | {"as_expected": right}))


if __name__ == "__main__":
    main(sys.argv[1:])
