"""A fleet to be measured: an embedded server, two worker processes, and appends at a steady pace."""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from domain import Event, SessionLog
from projections import session_view
from projections.store import ProjectionStore
from tests.bench.arena import wait_until
from workers.embedded import EmbeddedServer
from workers.leasing import living_workers
from workers.settings import Settings
from workers.stack import Stack

WORKERS: Final = 2
#: The pace of appends whose visibility is measured, events/s, and over how many sessions they go.
PACE: Final = 200
SESSIONS: Final = 50


@contextmanager
def running(settings: Settings | None = None) -> Iterator[tuple[Stack, SessionLog, ProjectionStore]]:
    """An embedded server and two workers that hold all partitions."""
    with tempfile.TemporaryDirectory(prefix="muster-bench-") as data_dir:
        stack = Stack(EmbeddedServer(Path(data_dir)), settings or Settings(), log=say, workers=WORKERS)
        stack.start()
        try:
            with stack.open_log() as log:
                store = ProjectionStore(log.client, log.keyspace)
                wait_until(lambda: is_shared_out(log))
                wait_until(lambda: all(cursor is not None for cursor, _ in store.standing(range(32)).values()))
                yield stack, log, store
        finally:
            stack.stop()


def is_shared_out(log: SessionLog) -> bool:
    """Both workers live and hold half of the partitions each."""
    return sorted(len(worker["partitions"]) for worker in living_workers(log.client, log.keyspace)) == [16, 16]


def left(store: ProjectionStore) -> int:
    """How many events are not applied; asked so that those who work are hardly disturbed."""
    return sum(total - (position or 0) for position, total in store.standing(range(32)).values())


def paced(log: SessionLog, store: ProjectionStore, is_over: Callable[[int], bool]) -> tuple[list[float], list[float]]:
    """Appends at a steady pace until it is over, given how many there were; how long each took, and until it was
    visible after its reply, in seconds.

    The same thread appends, then asks for the view again and again: what is measured is late by half a question.
    """
    chance = random.Random(7)
    appends: list[float] = []
    visible: list[float] = []
    due = time.perf_counter()
    while not is_over(len(appends)):
        due += 1 / PACE
        time.sleep(max(0.0, due - time.perf_counter()))
        session = f"paced-{chance.randrange(SESSIONS)}"
        began = time.perf_counter()
        receipt = log.append(session, Event.of("tool.called", actor="a", data={"tool": "edit"}))
        replied = time.perf_counter()
        key, seen = log.keyspace.of(session).session_view(session), b""
        while True:
            stored = store.client.get(key) or b""
            if stored != seen:
                seen = stored
                view = session_view.readable(stored, session)
                if view is not None and view.seq >= receipt.last_seq:
                    break
        visible.append(time.perf_counter() - replied)
        appends.append(replied - began)
    return appends, visible


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
