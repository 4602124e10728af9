"""The sessions of `incidents`, moved while they are appended to by producers that know both places.

    python -m tests.chaos.moving_incidents [--sessions N] [--rate EVENTS_PER_S] [--batch N] [--fsync always]
        [--source redis7|valkey]

prints what came of it: how many events are lost or doubled, whether both sides are equal, and how long sessions took no
appends. It starts its own servers: the distribution's Redis, and the embedded Valkey.
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

from domain import Append, Event, Receipt, SessionLog
from domain.codec import parse_line
from domain.log import Connecting, connect, create_store
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


def move(there: Address, here: Address, *, sessions: int | None, rate: float | None, batch: int) -> Result:
    """Loads half of each history, and moves the sessions while producers append the other half."""
    events = histories(sessions)
    with ExitStack() as closing:
        ends = closing.enter_context(opened(there, here))
        load(ends.source.log, {name: list_[: len(list_) // 2] for name, list_ in events.items()})
        producers = []
        for number in range(PRODUCERS):
            log = closing.enter_context(
                SessionLog.open(
                    there.connecting, environment=there.environment, namespace=there.namespace, moved=[here.connecting]
                )
            )
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
        with work.phase("moved", "moved"):
            problems = work.verify().problems
        moves = dict(migrations.moves(migration.id))
        lost, doubled, misplaced = counted(ends.target.log, events)
        return Result(
            len(events), sum(map(len, events.values())), sum(producer.appended for producer in producers),
            lost, doubled, misplaced, len(problems), failed,
            downtimes(moves.values()), migrations.get(migration.id).proof, round(seconds, 2),
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
        result = move(ends[0], ends[1], sessions=options.sessions, rate=options.rate, batch=options.batch)
        right = seqs_are_as_expected(ends[1], list(histories(options.sessions)))
    print(json.dumps({name: getattr(result, name) for name in result.__struct_fields__} | {"as_expected": right}))


if __name__ == "__main__":
    main(sys.argv[1:])
